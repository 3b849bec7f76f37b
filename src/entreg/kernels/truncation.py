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
COUNTED = 1 << 13  # classes from which a processor counts instead: [8, 151936] 12 ms, sorting 128; [256, 8192] 115 and 188; [512, 4096] 232 and 186
BINS = 1 << 16


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
        counts = x.device.type == "cpu" and x.shape[-1] >= COUNTED and not torch.compiler.is_compiling()
        parts.append((_counted if counts else _sorted)(x, scale[some], softcap, truncation))
    if not parts:
        return Cut(logits.new_zeros(0, dtype=torch.promote_types(logits.dtype, torch.float32)), torch.zeros(0, dtype=torch.int32, device=logits.device))
    return Cut(torch.cat([part.value for part in parts]), torch.cat([part.last for part in parts]))


def _sorted(x: Tensor, scale: Tensor, softcap: float | None, truncation: Truncation) -> Cut:
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


def _counted(x: Tensor, scale: Tensor, softcap: float | None, truncation: Truncation) -> Cut:
    """The same, row by row: a histogram over the upper half of a float's bits finds the bin in which the set ends, and its few classes alone are sorted."""
    ends = [_end(row, factor, softcap, truncation) for row, factor in zip(x, wide(scale), strict=True)]
    return Cut(torch.stack([value for value, _ in ends]), torch.stack([last for _, last in ends]).to(torch.int32))


def _end(x: Tensor, scale: Tensor, softcap: float | None, truncation: Truncation) -> tuple[Tensor, Tensor]:
    """Value and number of the last class of one row's set."""
    bits = (x.float() + 0.0).view(torch.int32)  # one zero: -0 and 0 are equal logits
    bins = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16).long() + BINS // 2  # larger logits have larger bins, none of them smaller
    if truncation.top_p is not None:
        z = capped(x, softcap)
        weight = ((z - z.amax()) * scale.to(x.dtype)).exp().double()
        part = truncation.top_p
    else:
        assert truncation.clamp is not None
        weight = (x > -math.inf).double()
        part = truncation.clamp
    mass = weight.new_zeros(BINS).scatter_add_(0, bins, weight).flip(0)
    before = _before(mass)
    total = before[-1] + mass[-1]
    wanted = part * total if truncation.clamp is None else total - (part * total).floor()
    bin = int((before < wanted).sum()) - 1
    if bin < 0:  # no class, or a NaN
        return x.new_full((), -math.inf), bins.new_zeros(())
    inside = (bins == BINS - 1 - bin).nonzero().squeeze(-1)
    ranked, order = x[inside].sort(descending=True, stable=True)  # equal ones in order of their number
    count = (before[bin] + _before(weight[inside][order]) < wanted).sum()
    return ranked[count - 1], inside[order[count - 1]]


def _before(mass: Tensor) -> Tensor:
    """Sums of what comes before each entry."""
    return torch.cat((mass.new_zeros(1), mass.cumsum(0)[:-1]))


def kept(x: Tensor, number: Tensor, value: Tensor, last: Tensor) -> Tensor:
    """Which classes are in the set, from their logits before the soft-cap, -inf where they do not exist, and their numbers."""
    return (x > value) | ((x == value) & (number <= last))
