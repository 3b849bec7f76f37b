"""Intrinsic rewards without anything to train: counts of states, and the entropy of the states of a rollout.

Shapes: M members, N items of each, D numbers of a flat observation, B bits of a hash.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.normalize import RunningMoments
from entreg.rl.population import Streams, weight_generators
from entreg.rl.spaces import ObservationSpec

BITS = 32  # of a SimHash
EXACT_SIDE = 36  # images below this side are those of grid worlds, and counted exactly
ENCODED = 64  # numbers that a random encoder makes of an image
_NEAR_ROWS = 512  # rows of a distance matrix made at once: 1024 items in 64 dimensions take 2 MB instead of 4


class Count:
    """`1 / sqrt(n(s'))`, n counted over the whole run, this rollout included; each member counts for itself.

    States of whole numbers (one-hot, grids, small images) are counted exactly. Others share a count with those on the same side of 32 random planes, which are
    laid through the first rollout's mean in units of its standard deviation.

    Source: Tang et al. 2017 (arXiv:1611.04717), eq. 1 and 3; their planes go through 0.
    """

    def __init__(self, streams: Streams, observation: ObservationSpec) -> None:
        size = int(np.prod(observation.shape))
        self.counts: list[dict[int, int]] = [{} for _ in streams.generators]
        self.exact: bool | None = True if observation.image and min(observation.shape[1:]) < EXACT_SIDE else None
        self.planes = streams.noise((size + 1, BITS), "normal")  # the last row is how far a plane lies from the mean
        self.moments = RunningMoments(len(self.counts), (size,))

    def reward(self, before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        flat = after.reshape(*after.shape[:2], -1)
        if self.exact is None:
            self.exact = bool((flat == np.rint(flat)).all())
            self.moments.update(flat)
        keys = flat if self.exact else self._hashed(flat)
        return np.stack([_counted(rows, counts) for rows, counts in zip(keys, self.counts, strict=True)])

    def _hashed(self, flat: np.ndarray) -> np.ndarray:
        scaled = self.moments.normalise(flat)
        sides = np.matmul(scaled, self.planes[:, :-1]) + self.planes[:, -1:]
        return np.packbits(sides > 0, axis=-1)

    def state_dict(self) -> dict[str, Any]:
        columns = [(np.array(list(counts), np.uint64), np.array(list(counts.values()), np.int64)) for counts in self.counts]
        tables = {str(index): {"key": key, "count": count} for index, (key, count) in enumerate(columns)}
        return {"counts": tables, "exact": self.exact, "planes": self.planes, "moments": self.moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tables = [state["counts"][str(index)] for index in range(len(self.counts))]
        self.counts = [dict(zip(table["key"].tolist(), table["count"].tolist(), strict=True)) for table in tables]
        self.exact, self.planes = state["exact"], state["planes"]
        self.moments.load_state_dict(state["moments"])


def _counted(rows: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    """Add every row to the counts under the hash of its bytes; `1 / sqrt(count)` of each, `(N,)`."""
    rows = np.ascontiguousarray(rows) + rows.dtype.type(0)  # -0.0 becomes 0.0
    unique, inverse, found = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0], return_inverse=True, return_counts=True)
    total = np.empty(len(unique))
    for index, (row, number) in enumerate(zip(unique, found.tolist(), strict=True)):
        key = int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
        total[index] = counts[key] = counts.get(key, 0) + number
    result: np.ndarray = (1 / np.sqrt(total))[inverse]
    return result


class StateEntropy:
    """The distance to the k-th nearest of the rollout's other states to the power `1 - order`: it raises the Rényi entropy of visited states.

    Vectors are compared in units of their running standard deviation, images after a random network that is never trained. `k` is cut to the items there are.
    Order 1 takes `log(1 + distance)`. A state that k others share gets 0.

    Source: Yuan et al. 2022 (RISE, arXiv:2203.04297), eq. 10; order 1: Seo et al. 2021 (RE3, arXiv:2102.09430), eq. 3.
    """

    def __init__(self, seeds: Sequence[int], observation: ObservationSpec, k: int, order: float) -> None:
        self.k, self.order = k, order
        self.encoder: ActorCritic | None = None
        self.moments: RunningMoments | None = None
        if observation.image:
            self.encoder = ActorCritic(Architecture(observation.shape, True, ENCODED, (), "relu", critic=False), weight_generators(seeds), initial="uniform")
        else:
            self.moments = RunningMoments(len(seeds), observation.shape)

    def reward(self, before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        if self.moments is not None:
            self.moments.update(after)
            states = torch.from_numpy(self.moments.normalise(after))
        else:
            assert self.encoder is not None
            with torch.no_grad():
                states = self.encoder.actor(torch.from_numpy(after))
        distance = np.stack([nearest(member, self.k).numpy() for member in states])
        return np.log1p(distance) if self.order == 1 else distance ** (1 - self.order)

    def state_dict(self) -> dict[str, Any]:
        if self.moments is not None:
            return {"moments": self.moments.state_dict()}
        assert self.encoder is not None
        return {"encoder": self.encoder.parameters.data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
        elif self.encoder is not None:
            self.encoder.parameters.data.copy_(state["encoder"])


def nearest(points: Tensor, k: int) -> Tensor:
    """Euclidean distance of each point to its k-th nearest other one, `(N, D) -> (N,)`; 0 for a point that is alone.

    >>> nearest(torch.tensor([[0.0], [1.0], [5.0]]), 1).tolist()
    [1.0, 1.0, 4.0]
    """
    items = len(points)
    if items < 2:
        return points.new_zeros(items)
    rank = min(k, items - 1) + 1  # each is its own nearest
    exact = "donot_use_mm_for_euclid_dist"  # the faster form gives 1e-3 for equal points
    return torch.cat([torch.cdist(part, points, compute_mode=exact).kthvalue(rank, dim=1).values for part in points.split(_NEAR_ROWS)])
