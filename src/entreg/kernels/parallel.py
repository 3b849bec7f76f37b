"""Vocabulary shards: every rank of a process group holds V / ranks consecutive classes of the same tokens, in rank order (tensor parallelism, as in Megatron).

One all-gather a call, of at most eleven float64 numbers a token; the gradient of replicated per-token results with respect to a rank's own logits needs no
communication, that with respect to replicated hidden states is summed over ranks once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from entreg.kernels.rows import Parts, Spec, merge

Group = Any  # torch.distributed.ProcessGroup, which a torch built without it does not have


def is_group(group: object) -> bool:
    """Whether it is a process group, one that this process belongs to."""
    return dist.is_available() and isinstance(group, dist.ProcessGroup)


def offset(group: Group, classes: int) -> int:
    """The number of this rank's first class."""
    return 0 if group is None else dist.get_rank(group) * classes


def merged(parts: Parts, spec: Spec, scale: Tensor, group: Group, classes: int) -> Parts:
    """The sums of all shards, `[N, 1] -> [N, 1]`, the same on every rank.

    Raises: `ValueError` on every rank when shards differ in size (pad them, and mask the padding with `support`).
    """
    if group is None:
        return parts
    there = [part for part in parts if part is not None]
    mine = torch.cat([*there, torch.full_like(there[0], classes)], -1)
    every = mine.new_empty((dist.get_world_size(group), *mine.shape))
    dist.all_gather_into_tensor(every.flatten(0, 1), mine, group=group)
    if mine.shape[0] and bool((every[:, 0, -1] != classes).any()):
        raise ValueError(f"logits: got {every[:, 0, -1].int().tolist()} classes on the ranks of group, legal is the same number on each")
    columns = iter(every.movedim(0, -1).unbind(1))
    return merge(Parts(*(None if part is None else next(columns) for part in parts)), spec, scale)  # type: ignore[arg-type]


def summed(tensor: Tensor, group: Group) -> Tensor:
    """The sum over ranks, in place."""
    if group is not None:
        dist.all_reduce(tensor, group=group)
    return tensor
