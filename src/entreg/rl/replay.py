"""The memory of off-policy recipes: the newest transitions of every member, drawn uniformly from each member's own stream.

Shapes: M members, n environments of each, B transitions of a batch. A transition lies in one row of bytes, so that drawing one touches one place of the disk.
An episode that was cut (truncated) is not terminated: its final observation is kept and its value counts.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg.rl.segments import Files, Memory, require_room, room
from entreg.rl.spaces import ObservationSpec

FOLDER = "replay"  # in the run's own


class Batch(NamedTuple):
    """Transitions `[M, B, ...]` as tensors; `terminated` is boolean, masks are None where actions are never masked."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor
    mask: Tensor | None
    next_mask: Tensor | None


class Field(NamedTuple):
    """A part of a row: where its bytes begin, and what they are."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def of(self, rows: np.ndarray) -> np.ndarray:
        """A view of this part in rows of bytes `[..., W]`."""
        size = int(np.prod(self.shape, dtype=int)) * self.dtype.itemsize
        return rows[..., self.start : self.start + size].view(self.dtype).reshape(*rows.shape[:-1], *self.shape)


def layout(parts: Mapping[str, tuple[tuple[int, ...], Any]]) -> tuple[dict[str, Field], int]:
    """Fields of a row from shapes and dtypes, the widest dtypes first so that all are aligned, and the row's width in bytes (a multiple of 8)."""
    fields: dict[str, Field] = {}
    start = 0
    for name, (shape, kind) in sorted(parts.items(), key=lambda part: -np.dtype(part[1][1]).itemsize):
        fields[name] = Field(start, tuple(shape), np.dtype(kind))
        start += int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize
    return fields, -(-start // 8) * 8


def _layout_for(observation: ObservationSpec, shape: tuple[int, ...], dtype: np.dtype[Any] | type, mask_size: int | None) -> tuple[dict[str, Field], int]:
    seen = observation.shape, np.uint8 if observation.image else np.float32
    parts: dict[str, Any] = {"observation": seen, "next_observation": seen, "action": (shape, dtype), "reward": ((), np.float32), "terminated": ((), np.bool_)}
    if mask_size is not None:
        parts |= {"mask": ((mask_size,), np.bool_), "next_mask": ((mask_size,), np.bool_)}
    return layout(parts)


class Rows:
    """What replays share: their rows in files or in memory, and how batches are drawn. A replay says how many transitions it holds and what they are."""

    def __init__(self, members: int, per_member: int, layout: tuple[Mapping[str, Field], int], rounds: int, folder: Path | None) -> None:
        self._fields, width = layout
        self.members, self.per_member = members, per_member
        lanes = members * per_member
        self._store = Memory(lanes, width, rounds) if folder is None else Files(lanes, width, rounds, folder / FOLDER)
        self._row = np.zeros((lanes, width), np.uint8)
        self._parts = {name: field.of(self._row) for name, field in self._fields.items()}

    @abstractmethod
    def __len__(self) -> int:
        """Transitions of each member that can be drawn."""

    @abstractmethod
    def take(self, drawn: np.ndarray) -> Batch:
        """The transitions of these numbers `[M, B]`, the oldest first."""

    def sample(self, generators: Sequence[np.random.Generator], batch: int) -> Batch:
        """`batch` transitions of every member with replacement, each member's by its own generator alone."""
        return self.take(self.draw(generators, batch))

    def draw(self, generators: Sequence[np.random.Generator], batch: int, replays: int = 1) -> np.ndarray:
        """The numbers `[M, batch]` of transitions of `replays` that are filled alike, counted round by round over the environments of all of them."""
        size = len(self) * replays
        if not size:
            raise ValueError("replay: nothing to draw from yet; legal is sample() after add()")
        return np.stack([generator.integers(0, size, batch) for generator in generators])

    @property
    def crowded(self) -> bool:
        """Whether checkpoints are too far apart: the files that they hold back come to more than was made sure of."""
        return self._store.crowded

    def state_dict(self) -> dict[str, Any]:
        """The length (in memory: the rows too); files are on the disk when this returns."""
        return {"store": self._store.state_dict(), "row": [self._store.lanes, self._store.width]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; what was added since is cut off. `ValueError` where files are missing or rows are of another kind."""
        if list(state["row"]) != [self._store.lanes, self._store.width]:
            raise ValueError(f"replay: rows are {state['row']} (lanes, bytes) in the checkpoint and {[self._store.lanes, self._store.width]} here")
        self._store.load_state_dict(state["store"])

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()

    def remove(self) -> None:
        """Let go of the files and remove them."""
        self._store.remove()


def require_fit(members: int, per_member: int, capacity: int, rounds: int, width: int, folder: Path | None) -> None:
    """Raise `ValueError` where a replay of so many rounds, rows of `width` bytes, does not fit, on the disk of `folder` or (None) in memory."""
    if min(members, per_member, capacity) < 1:
        raise ValueError(f"members, per_member, capacity must be at least 1, got {members}, {per_member}, {capacity}")
    size = members * per_member * width
    need = size * rounds if folder is None else room(size, rounds)
    require_room(need, f"a replay of {rounds * per_member} transitions of {members} members", folder)


class Replay(Rows):
    """The newest `capacity` transitions of every member, in files of the run's folder under `replay/`, or (`folder` None) in memory.

    `action` is the shape and dtype of one action, `mask_size` the number of classes where actions are masked. Give as `capacity` no more than the run
    will make: that it fits is made sure of here, before anything is written, and else a `ValueError` names both sizes.
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
        mask_size: int | None = None,
    ) -> None:
        self.check_room(members, per_member, capacity, observation, *action, mask_size, folder=folder)
        super().__init__(members, per_member, _layout_for(observation, *action, mask_size), max(1, capacity // max(1, per_member)), folder)
        self._lanes = np.arange(members)[:, None] * per_member

    @staticmethod
    def check_room(
        members: int,
        per_member: int,
        capacity: int,
        observation: ObservationSpec,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type,
        mask_size: int | None = None,
        *,
        folder: Path | None = Path(),
    ) -> None:
        """Raise `ValueError` where such a replay does not fit, on the disk of `folder` or (None) in memory: for runs that have no folder yet."""
        require_fit(members, per_member, capacity, max(1, capacity // max(1, per_member)), _layout_for(observation, shape, dtype, mask_size)[1], folder)

    def __len__(self) -> int:
        """Transitions of each member that can be drawn."""
        return min(self._store.count, self._store.rounds) * self.per_member

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
        given = {"observation": observation, "action": action, "reward": reward, "terminated": terminated, "next_observation": next_observation}
        if "mask" in self._parts:
            assert mask is not None and next_mask is not None
            given |= {"mask": mask, "next_mask": next_mask}
        for name, part in self._parts.items():
            part[...] = given[name].reshape(part.shape)
        self._store.append(self._row)

    def take(self, drawn: np.ndarray) -> Batch:
        """The transitions of these numbers `[M, B]`, the oldest round first."""
        batch = drawn.shape[1]
        rounds, environment = np.divmod(drawn, self.per_member) if self.per_member > 1 else (drawn, 0)
        rounds = rounds + max(0, self._store.count - self._store.rounds)
        rows = self._store.take(rounds.ravel(), (self._lanes + environment + 0 * drawn).ravel()).reshape(self.members, batch, -1)
        found = {name: torch.from_numpy(np.ascontiguousarray(field.of(rows))) for name, field in self._fields.items()}
        return Batch(**{"mask": None, "next_mask": None, **found})  # type: ignore[arg-type]

    def restarted(self) -> None:
        """Open episodes were lost: what is added next begins new ones. Rows that hold both ends of a step need nothing for it."""
