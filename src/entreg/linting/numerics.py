"""What floating point does to a term: classes that do not exist, epsilons inside logarithms, arithmetic in half precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from entreg.finding import Finding
from entreg.linting.advice import finding
from entreg.linting.heads import Categorical
from entreg.linting.probe import Probe

ROUNDING = 1e-4  # of the term's value: float32 arithmetic stays below 2e-5 on all probes, bfloat16 is off by 1e-3 and more


def minus_inf(probe: Probe) -> Finding | None:
    """NaN once a class has the logit -inf, in the loss or in its gradient."""
    head = probe.head
    if not isinstance(head, Categorical) or probe.leaf.shape[-1] < 3:
        return None
    used = not bool(torch.isfinite(probe.leaf).all()) or head.support is not None
    leaf, changed = _without_a_class(probe, head)
    coef = probe.contract.coef
    try:
        slope = probe.call(leaf, 1.0 if coef is None else coef, **changed)
    except (ValueError, RuntimeError) as error:  # a distribution that checks its arguments, say
        evidence = f"with one class at -inf in each item the loss raises {type(error).__name__}"
    else:
        if slope.finite:
            return None
        what = "the loss" if not bool(torch.isfinite(slope.value)) else "the loss is finite, its gradient"
        evidence = f"with one class at -inf in each item {what} is NaN or infinite"
    return finding("minus_inf", "fail" if used else "info", evidence)


def _without_a_class(probe: Probe, head: Categorical) -> tuple[Tensor, dict[str, Any]]:
    """The leaf with the least likely class of each item at -inf, but not the action's; and the support that says so."""
    scores = torch.where(head.live(probe.leaf), probe.leaf, math.inf)
    if "actions" in probe.batch:
        scores = scores.scatter(-1, probe.batch["actions"].long().unsqueeze(-1), math.inf)
    least = scores.argmin(-1, keepdim=True)
    several = head.live(probe.leaf).sum(-1, keepdim=True) > 2
    gone = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, least, several)
    changed: dict[str, Any] = {"support": probe.batch["support"].expand(gone.shape) & ~gone} if "support" in probe.batch else {}
    return probe.leaf.masked_fill(gone, -math.inf), changed


def epsilon(probe: Probe) -> Finding | None:
    """The value of a term whose gradient is right at a usual policy, against the exact one at unusual ones, in float64."""
    worst, words, got, wanted = 0.0, "", 0.0, 0.0
    for place, leaf in (("at the probe", probe.leaf), *probe.head.extremes(probe.leaf)):
        value, exact = float(probe.term(leaf).value), probe.wanted(leaf)
        off = abs(value - exact) / (1e-6 + 1e-4 * abs(exact))
        if math.isfinite(off) and off > max(1.0, worst):
            worst, words, got, wanted = off, place, value, exact
    if not worst:
        return None
    evidence = f"{words} the term is {got:.6g} a unit of coef and should be {wanted:.6g}: {abs(got - wanted):.2g} nats off in float64"
    return finding("epsilon", "warn", evidence)


def precision(probe: Probe, user: Tensor) -> Finding | None:
    """The term in the dtype that was given against the same term of the same numbers in float64; and whether float64 is kept inside."""
    for place, leaf in _places(probe, user):
        low = leaf.to(probe.given)
        coef = 1.0 if probe.contract.coef is None else max(1.0, 10 * abs(float(probe.call(low.to(probe.leaf), 0.0).value)))
        times = 1.0 if probe.contract.coef is None else coef / probe.contract.coef
        rough, fine = float(probe.term(low, times=times).value), float(probe.term(low.to(probe.leaf), times=times).value)
        if not math.isfinite(fine):
            continue
        if not abs(rough - fine) <= ROUNDING * abs(fine) + 1e-6:
            evidence = f"{place} the term in {_name(probe.given)} is {rough:.6g} a unit of coef, in float64 {fine:.6g}"
            return finding("precision", "warn", evidence)
    return _quantised(probe)


def _places(probe: Probe, user: Tensor) -> Iterator[tuple[str, Tensor]]:
    if probe.given != torch.float64:
        yield "on this batch", user
        yield "at the probe", probe.leaf
        yield from probe.head.extremes(probe.leaf)


def _quantised(probe: Probe) -> Finding | None:
    """Arithmetic inside that is coarser than its input shows: the value does not follow its own gradient over a small step."""
    slope = probe.term(probe.leaf)
    norm = float(slope.grad.norm())
    if norm == 0.0:
        return None
    step = 1e-3 * torch.where(torch.isfinite(probe.leaf), slope.grad / norm, 0)
    moved = float(probe.term(probe.leaf + step).value - probe.term(probe.leaf - step).value) / 2e-3
    if abs(moved - norm) <= 0.05 * norm:
        return None
    evidence = f"a step of 0.001 along the term's gradient changes it by {moved / norm:.2f} of what the gradient says"
    return finding("precision", "warn", evidence)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
