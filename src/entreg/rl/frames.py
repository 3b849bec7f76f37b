"""A replay for stacks of images that stores every frame once and puts the stacks together when they are drawn.

Shapes: M members, n environments of each, L = M n lanes, S frames of a stack; an observation `(S c, H, W)` is its S frames of c channels, the newest last.
Every step is a round of rows in the store. Where an episode ended, one more round holds the final frames; it is no step and is not drawn. A stack that
reaches back over the begin of its episode repeats the first frame or holds zeros, whichever the environment's own first observation does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entreg.rl.replay import Batch, Field, Rows, layout, require_fit
from entreg.rl.spaces import ObservationSpec


def _rounds(capacity: int, per_member: int, stack: int) -> int:
    """Of the ring: its oldest stack needs frames before it."""
    return max(2, capacity // max(1, per_member)) + stack


def _layout_for(observation: ObservationSpec, shape: tuple[int, ...], dtype: np.dtype[Any] | type, stack: int) -> tuple[dict[str, Field], int]:
    channels, height, width = observation.shape
    flags = dict.fromkeys(("terminated", "ended", "final", "zeros"), ((), np.bool_))
    parts: dict[str, Any] = {
        "frame": ((channels // stack, height, width), np.uint8),
        "action": (shape, dtype),
        "reward": ((), np.float32),
        "age": ((), np.uint8),
    }
    return layout({**parts, **flags})


class FrameReplay(Rows):
    """`Replay` for images of `stack` frames: the newest `capacity` of every member, a final frame counting as one.

    Raises: `ValueError` where it does not fit, for channels that are no whole number of frames, and for a first observation that is no stack.
    """

    def __init__(
        self,
        members: int,
        per_member: int,
        capacity: int,
        observation: ObservationSpec,
        action: tuple[tuple[int, ...], np.dtype[Any] | type],
        *,
        folder: Path | None = None,
        stack: int = 4,
    ) -> None:
        self.check_room(members, per_member, capacity, observation, *action, stack, folder=folder)
        rounds = _rounds(capacity, per_member, stack)
        super().__init__(members, per_member, _layout_for(observation, *action, stack), rounds, folder)
        self.stack = stack
        lanes, frame = members * per_member, self._fields["frame"].shape
        self._round_of = np.zeros(rounds, np.int64)  # the round of every step, a ring by the number of the step
        self._steps = self._first = 0
        self._cuts: list[int] = []  # steps after which all open episodes were lost
        self._age, self._zeros = np.zeros(lanes, np.int64), np.zeros(lanes, bool)
        self._next = np.zeros((lanes, *frame), np.uint8)  # the frames after the newest step

    @staticmethod
    def check_room(
        members: int,
        per_member: int,
        capacity: int,
        observation: ObservationSpec,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type,
        stack: int,
        *,
        folder: Path | None = Path(),
    ) -> None:
        """Raise `ValueError` where such a replay does not fit, on the disk of `folder` or (None) in memory: for runs that have no folder yet."""
        if stack < 1 or observation.shape[0] % stack or not observation.image:
            raise ValueError(f"stack must divide the {observation.shape[0]} channels of images, got {stack}")
        require_fit(members, per_member, capacity, _rounds(capacity, per_member, stack), _layout_for(observation, shape, dtype, stack)[1], folder)

    def __len__(self) -> int:
        """Transitions of each member that can be drawn."""
        first, end = self._window()
        return (end - first) * self.per_member

    def _window(self) -> tuple[int, int]:
        """The steps whose whole stacks are in the ring."""
        oldest, size = max(0, self._store.count - self._store.rounds), len(self._round_of)
        self._first = max(self._first, self._steps - size)
        while self._first < self._steps and self._round_of[self._first % size] < oldest:
            self._first += 1
        return (min(self._first + self.stack - 1, self._steps) if oldest else self._first), self._steps

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observation: np.ndarray,
        mask: np.ndarray | None = None,
        next_mask: np.ndarray | None = None,
    ) -> None:
        """Add one transition of every environment, `[M, n, ...]`; `next_observation` is the final one where an episode ended."""
        assert mask is None and next_mask is None, "images come without masks"
        frames = self._frames(observation)
        for lane in np.flatnonzero(self._age == 0):
            self._zeros[lane] = self._begins_with_zeros(frames[lane])
        ended = (terminated | truncated).ravel()
        row = {"frame": frames[:, -1], "age": np.minimum(self._age, self.stack - 1), "zeros": self._zeros, "ended": ended, "final": np.zeros_like(ended)}
        for name, values in {**row, "action": action, "reward": reward, "terminated": terminated}.items():
            self._parts[name][...] = values.reshape(self._parts[name].shape)
        self._round_of[self._steps % len(self._round_of)] = self._store.count
        self._steps += 1
        self._store.append(self._row)
        self._next[...] = self._frames(next_observation)[:, -1]
        self._age = np.where(ended, 0, self._age + 1)
        if ended.any():
            self._add_final()

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        return observation.reshape(len(self._row), self.stack, *self._parts["frame"].shape[1:])

    def _begins_with_zeros(self, frames: np.ndarray) -> bool:
        """Whether the first stack `[S, ...]` of an episode is filled with zeros, else with its frame."""
        if not frames[:-1].any():
            return True
        if (frames[:-1] == frames[-1]).all():
            return False
        raise ValueError(f"stack is {self.stack}, but an episode's first observation is neither its frame repeated nor zeros before it")

    def _add_final(self) -> None:
        self._parts["frame"][...] = self._next
        self._parts["final"][...] = True
        self._store.append(self._row)

    def draw(self, generators: Sequence[np.random.Generator], batch: int, replays: int = 1) -> np.ndarray:
        """The numbers `[M, batch]` of transitions, counted step by step over the environments; rings of frames are not `replays` filled alike."""
        assert replays == 1, "final frames fill every rank's ring differently"
        return super().draw(generators, batch)

    def take(self, drawn: np.ndarray) -> Batch:
        """The transitions of these numbers `[M, B]`, the oldest step first."""
        steps, environment = np.divmod(drawn, self.per_member)
        lanes = (np.arange(self.members)[:, None] * self.per_member + environment).ravel()
        steps = steps.ravel() + self._window()[0]
        newest = self._rows(steps, lanes)
        stack, following = self._stacks(newest, steps, lanes)
        shape = drawn.shape

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values).reshape(*shape, *values.shape[1:]))

        action, reward, terminated = (tensor(self._fields[name].of(newest)) for name in ("action", "reward", "terminated"))
        return Batch(tensor(stack), action, reward, terminated, tensor(following), None, None)

    def _rows(self, steps: np.ndarray, lanes: np.ndarray, *, after: int = 0) -> np.ndarray:
        """The rows of these steps, or of the rounds `after` them."""
        return self._store.take(self._round_of[steps % len(self._round_of)] + after, lanes)

    def _stacks(self, newest: np.ndarray, steps: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Observations and next observations `(K, S c, H, W)` of the steps whose rows are `newest`."""
        frame, age = self._fields["frame"], self._fields["age"].of(newest).astype(np.int64)
        empty = self._fields["zeros"].of(newest)
        frames = np.empty((len(steps), self.stack + 1, *frame.shape), np.uint8)
        frames[:, -2] = frame.of(newest)
        for back in range(1, self.stack):
            part = frame.of(self._rows(steps - np.minimum(back, age), lanes))
            frames[:, -2 - back] = part
            frames[(back > age) & empty, -2 - back] = 0
        ended, last = self._fields["ended"].of(newest) | np.isin(steps, self._cuts), steps == self._steps - 1
        open_end = last & ~ended
        frames[open_end, -1] = self._next[lanes[open_end]]
        for chosen, shift, after in ((ended, 0, 1), (~ended & ~last, 1, 0)):
            frames[chosen, -1] = frame.of(self._rows(steps[chosen] + shift, lanes[chosen], after=after))
        flat = (len(steps), self.stack * frame.shape[0], *frame.shape[1:])
        return frames[:, :-1].reshape(flat), frames[:, 1:].reshape(flat)

    def restarted(self) -> None:
        """Open episodes were lost: what is added next begins new ones."""
        if self._steps:
            if self._round_of[(self._steps - 1) % len(self._round_of)] == self._store.count - 1:  # else its final frames are there
                self._add_final()
            self._cuts.append(self._steps - 1)
            self._age[...] = 0

    def state_dict(self) -> dict[str, Any]:
        """The length (in memory: the rows too) and the frames after the newest step; files are on the disk when this returns."""
        lanes = {"age": self._age.copy(), "zeros": self._zeros.copy(), "next": self._next.copy()}
        self._cuts = [step for step in self._cuts if step >= self._window()[0]]
        counts = {"steps": self._steps, "cuts": list(self._cuts)}
        return {**super().state_dict(), **counts, **lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; what was added since is cut off. `ValueError` where files are missing or rows are of another kind."""
        super().load_state_dict(state)
        self._steps, self._cuts = state["steps"], list(state["cuts"])
        self._age, self._zeros, self._next = state["age"].copy(), state["zeros"].copy(), state["next"].copy()
        live = np.arange(max(0, self._store.count - self._store.rounds), self._store.count)
        parts = np.array_split(live, 1 + len(live) // 256)  # whole rows are read: a few megabytes at a time
        final = [self._fields["final"].of(self._store.take(part, np.zeros_like(part))) for part in parts]
        rounds = live[~np.concatenate(final)]
        self._first = self._steps - len(rounds)
        self._round_of[np.arange(self._first, self._steps) % len(self._round_of)] = rounds
