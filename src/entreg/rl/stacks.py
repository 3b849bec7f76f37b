"""Stacks of frames of a rollout, of which each is held once; `frames.py` does the same for a replay.

Shapes: M members, T steps, n environments of each, N = T n items of a member, S frames of a stack, H W pixels. A stack holds the last S frames, oldest first;
what lies before an episode's first frame is blank (0), as in `ale_py`'s vector environment and stable-baselines3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entreg.rl.spaces import ObservationSpec


@dataclass(frozen=True, eq=False)
class Stacks:
    """Observations `[M, N, S, H, W]` as rows `index [M, N, S]` of `frames [R, H, W]`; networks read them as they read a tensor."""

    frames: Tensor
    index: Tensor

    def take(self, order: Tensor) -> "Stacks":
        """The items `order [M, B]` of each member."""
        return Stacks(self.frames, self.index.take_along_dim(order[..., None], 1))

    def tensor(self) -> Tensor:
        """The observations themselves."""
        found: Tensor = self.frames[self.index]
        return found


class Frames:
    """The frames of one rollout: T + S - 1 of each environment, and the blank one, row 0.

    >>> store = Frames(1, 2, 1, ObservationSpec((2, 1, 1), image=True))
    >>> store.write(0, np.array([3, 4], np.uint8).reshape(1, 1, 2, 1, 1), np.array([[False]]))
    >>> store.write(1, np.array([0, 5], np.uint8).reshape(1, 1, 2, 1, 1), np.array([[True]]))
    >>> store.stacks().tensor().flatten().tolist(), len(store.stacks().frames)
    ([3, 4, 0, 5], 4)
    """

    def __init__(self, members: int, steps: int, per_member: int, spec: ObservationSpec) -> None:
        self.depth, height, width = spec.shape
        self._shape = members, steps + self.depth - 1, per_member
        self._frames = np.zeros((1 + int(np.prod(self._shape)), height, width), np.uint8)
        self._rows = self._frames[1:].reshape(*self._shape, height, width)
        self._first = np.full((members, steps, per_member), -self.depth)  # when an observation's episode began, this early: before the rollout

    def write(self, t: int, observation: np.ndarray, began: np.ndarray) -> None:
        """The stacks `[M, n, S, H, W]` of step t, in order; `began [M, n]` where they are the first ones of an episode."""
        if t == 0:  # with what came before, blank where nothing did
            self._rows[:, : self.depth] = observation.swapaxes(1, 2)
            return
        self._rows[:, t + self.depth - 1] = observation[:, :, -1]
        self._first[:, t] = np.where(began, t, self._first[:, t - 1])

    def stacks(self) -> Stacks:
        """All observations, `[M, T n]` of them."""
        members, held, per_member = self._shape
        rows = np.arange(1, len(self._frames)).reshape(members, held, 1, per_member)
        time = np.arange(self._first.shape[1])
        at = time[:, None] + np.arange(self.depth)  # [T, S]: of the frames held
        index = rows[:, at, 0].swapaxes(2, 3)  # [M, T, n, S]
        index = np.where((at - self.depth + 1)[None, :, None] >= self._first[..., None], index, 0)
        return Stacks(torch.from_numpy(self._frames), torch.from_numpy(index.reshape(members, -1, self.depth)))
