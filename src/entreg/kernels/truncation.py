"""Where a truncated set ends: two numbers a row, so that kernels need no mask of [N, V].

The set holds the largest logits; classes equal to the last of them are taken in order of their number, so that the set is the smallest that fulfils its
condition. Shapes: `N` tokens, `V` classes. Ranks are those of the logits before soft-cap and temperature, which change no order.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from entreg.kernels.rows import Cut, capped, wide

SORTED = 1 << 22  # logits sorted at a time: with numbers and cumulated probabilities 100 MB


class Truncation(NamedTuple):
    """The smallest set of the largest probabilities whose sum reaches `top_p`, or all but the lowest `clamp` of the classes by rank."""

    top_p: float | None = None
    clamp: float | None = None


def cut(logits: Tensor, scale: Tensor, support: Tensor | None, softcap: float | None, truncation: Truncation) -> Cut:
    """The cut of each row, [N]; all classes of a row without any."""
    rows = max(1, SORTED // max(1, logits.shape[-1]))
    parts = []
    for start in range(0, logits.shape[0], rows):
        some = slice(start, start + rows)
        x = logits[some].to(torch.promote_types(logits.dtype, torch.float32))
        if support is not None:
            x = torch.where(support if support.shape[0] == 1 else support[some], x, -math.inf)
        parts.append(_cut(x, scale[some], softcap, truncation))
    if not parts:
        return Cut(logits.new_zeros(0, dtype=torch.promote_types(logits.dtype, torch.float32)), torch.zeros(0, dtype=torch.int32, device=logits.device))
    return Cut(torch.cat([part.value for part in parts]), torch.cat([part.last for part in parts]))


def _cut(x: Tensor, scale: Tensor, softcap: float | None, truncation: Truncation) -> Cut:
    ranked = x.sort(dim=-1, descending=True).values
    if truncation.top_p is not None:
        z = wide(capped(ranked, softcap))
        probs = ((z - z[:, :1]) * wide(scale)[:, None]).softmax(-1)
        count = (probs.cumsum(-1) - probs < truncation.top_p).sum(-1)  # a class is in while the mass before it has not reached p
    else:
        assert truncation.clamp is not None
        allowed = (x > -math.inf).sum(-1)
        count = allowed - (truncation.clamp * wide(allowed)).floor().long()
    value = ranked.gather(-1, (count - 1).clamp(min=0)[:, None])
    equal = (x == value).cumsum(-1)
    wanted = count[:, None] - (x > value).sum(-1, keepdim=True)
    return Cut(value.squeeze(-1), (equal < wanted).sum(-1).to(torch.int32))


def kept(x: Tensor, number: Tensor, value: Tensor, last: Tensor) -> Tensor:
    """Which classes are in the set, from their logits before the soft-cap, -inf where they do not exist, and their numbers."""
    return (x > value) | ((x == value) & (number <= last))
