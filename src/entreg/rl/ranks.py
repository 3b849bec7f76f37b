"""Several processes as one: N ranks, started by torchrun, train what one process with N times the environments would.

Every rank has all members, the same parameters and the same random streams, and steps its part of the environments. What is averaged over items is averaged
over the items of all ranks, so that gradients, controllers and normalisers are the same everywhere, and those of one process but for the order of summation.
Only rank 0 writes. Without torchrun there is one rank, and everything here gives back what it was given.

Shapes: M members, B items of a rank; `weight [M, B]` is 1 for items that count and 0 for those that only fill rows of unequal length.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from entreg.finite import NonFinite, all_finite, where_not_finite
from entreg.rl.part import ALONE, Part
from entreg.run import Run, Summary
from entreg.state import State

PATIENCE = timedelta(minutes=10)  # that a rank waits for the others
_T = TypeVar("_T")


class RanksLost(ChildProcessError):
    """Another rank is gone, or has not answered for `PATIENCE`."""


class Taken(NamedTuple):
    """A rank's items of a minibatch `[M, B]` by its own numbers, which of them count, and at which places of the whole minibatch they stand."""

    items: Tensor
    weight: Tensor | None
    places: Tensor | None


class Ranks:
    """What the ranks do together. Every method that talks is called by all ranks, in the same order."""

    def __init__(self, part: Part = ALONE) -> None:
        self.part = part

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RanksLost(f"rank {self.part.rank} of {self.part.of} lost the others: {str(error).partition('. ')[0]}") from error

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.part.of > 1:
            with self._talking():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, value: _T) -> list[_T]:
        """What every rank gave, for every rank."""
        if self.part.of == 1:
            return [value]
        every: list[Any] = [None] * self.part.of
        with self._talking():
            dist.all_gather_object(every, value)
        return every

    def first(self, value: _T) -> _T:
        """What rank 0 gave."""
        if self.part.of == 1:
            return value
        box = [value]
        with self._talking():
            dist.broadcast_object_list(box)
        return box[0]

    def agree(self, reason: str | None, due: bool) -> tuple[str | None, bool]:
        """The first reason that a rank has, and whether one says that it is due."""
        if self.part.of == 1:
            return reason, due
        reasons, dues = self.sum(torch.tensor([reason is not None, due], dtype=torch.int64)).tolist()
        return next(one for one in self.gather(reason) if one is not None) if reasons else None, dues > 0

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over ranks."""
        return tensor if self.part.of == 1 else self.sum(tensor) / self.part.of

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Means `(*, M)` over the items of all ranks, of values `(*, M, B)`."""
        if weight is None:
            return self.average(values.mean(-1))
        return self.sum((values * weight).sum(-1)) / self.count(weight)

    def count(self, weight: Tensor) -> Tensor:
        """How many items count over all ranks, `(M,)`."""
        return self.sum(weight.sum(-1))

    def standardised(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Values `(M, B)` shifted and scaled by the mean and standard deviation over the items of all ranks."""
        if self.part.of == 1:
            return (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-8)
        count = values.shape[1] * self.part.of if weight is None else self.count(weight)
        centred = values - self.mean(values, weight)[:, None]
        variance = self.mean(centred.square(), weight) * count / (count - 1)
        return centred / (variance.sqrt()[:, None] + 1e-8)

    def take(self, order: Tensor, environments: int) -> "Taken":
        """Of items `order [M, B]`, numbered as one process would, those of this rank. Numbers go step by step, over `environments` of each rank.

        >>> taken = Ranks(Part(1, 2)).take(torch.tensor([[0, 1, 2, 7], [4, 1, 3, 0]]), environments=2)
        >>> taken.items.tolist(), taken.weight.tolist(), taken.places.tolist()
        ([[0, 3], [1, 0]], [[1.0, 1.0], [1.0, 0.0]], [[2, 3], [2, 0]])
        """
        if self.part.of == 1:
            return Taken(order, None, None)
        step, environment = order // (environments * self.part.of), order % (environments * self.part.of)
        mine = environment // environments == self.part.rank
        local = torch.where(mine, step * environments + environment % environments, 0)
        front = (~mine).to(torch.int8).argsort(dim=1, stable=True)[:, : max(1, int(mine.sum(1).max()))]
        return Taken(local.gather(1, front), mine.gather(1, front).float(), front)


@cache
def here() -> Ranks:
    """The ranks that this process belongs to: those of torchrun, or of a process group that is there already."""
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Ranks(Part(dist.get_rank(), dist.get_world_size()))


def alone(recipe: str, advice: str) -> None:
    """Raise `ValueError` where a recipe that is for one process has been started by torchrun."""
    if here().part.of > 1:
        raise ValueError(f"{recipe} is for one process, and torchrun started {here().part.of}; {advice}")


def run_for(run: Run | None) -> Run:
    """The run of this rank: the one that was given, a new one, or on ranks other than 0 one that writes nothing."""
    run = Run() if run is None else run
    return run if here().part.rank == 0 or isinstance(run, Follower) else Follower(run.settings)


class Follower(Run):
    """A run that another process records: it takes signals and stops on what is not finite, and writes nothing."""

    def start(self, recipe: str, task: str, config: Any, **_: Any) -> None:
        self.folder, self.started = Path(), True

    def log(self, step: int, **values: Any) -> None:
        """Nothing: rank 0 has the same."""

    def due(self) -> bool:
        return False

    def checkpoint(self, step: int, state: Callable[[], Mapping[str, Any]], *, force: bool = False) -> bool:
        """Hand over this rank's part of the state."""
        if force:
            state()
        return force

    def save_best(self, member: int, score: float, policy: Mapping[str, Any], *, step: int = 0) -> bool:
        return False

    def check_finite(self, step: int, **tensors: Any) -> None:
        """Raises: `NonFinite` that names the tensor, the step and the first place."""
        for name, value in tensors.items():
            if not all_finite(value):
                raise NonFinite(f"{name} at step {step}: {where_not_finite(value)}")

    def reload(self) -> State | None:
        """Nothing: rank 0 reads."""
        return None

    def finish(self, step: int, metrics: Mapping[str, float], following: str | None = None) -> Summary:
        return Summary(self.folder, step, self.stopping(), {name: float(value) for name, value in metrics.items()}, following)

    def _close(self) -> None:
        """There is nothing to close."""

    def _abandon(self) -> None:
        """There is no display to leave."""
