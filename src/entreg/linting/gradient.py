"""What the gradient of an entropy term says: whether there is one, of which entropy it is (its direction in each item), and how items count (its length).

With h_i the exact gradient of item i's entropy, a correct term has g_i = -w_i h_i: the direction tells temperature, family, dimension and support apart,
the weights w_i tell sign, mask and aggregation. `unexplained` is the share of |g|^2 that no choice of weights explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from entreg.finding import Finding
from entreg.linting.advice import finding
from entreg.linting.heads import Categorical
from entreg.linting.probe import Probe, Slope

Entropy = Callable[[Tensor], Tensor]
ALMOST = 0.05  # weights that differ from item to item and are all nearer to the wanted ones than that: no count does so, an epsilon of .001 does


class Fit(NamedTuple):
    """Weights of items `[*]` and which of them can be told (their h is not 0), and the share of the gradient that is not explained."""

    weights: Tensor
    known: Tensor
    unexplained: float


def fit(grad: Tensor, exact: Tensor, sign: int) -> Fit:
    """Least-squares weights of the items' exact gradients in a gradient, both `[*, K]`."""
    length = exact.square().sum(-1)
    known = length > 1e-12 * length.max()
    along = torch.where(known, (grad * exact).sum(-1), 0)
    energy = float(grad.square().sum())
    explained = float(torch.where(known, along.square() / length.clamp(min=1e-300), 0).sum())
    return Fit(torch.where(known, -sign * along / length.clamp(min=1e-300), 0), known, 1 - explained / energy if energy > 0 else 0.0)


def no_effect(probe: Probe, term: Slope, exact: Slope) -> Finding | None:
    """The coefficient does nothing at all, or nothing to the gradient, or its value does not matter."""
    size = float((exact.grad * probe.weights.unsqueeze(-1)).norm())
    coef = probe.contract.coef
    if float(term.grad.norm()) <= 1e-9 * size:
        if coef is not None and float(term.value.abs()) <= 1e-9:
            return finding("ignored", "fail", f"coef: 0 and {coef:g} give the same loss and the same gradient")
        if coef is None and torch.equal(term.value, probe.term(probe.leaf * 0.5).value):
            return finding("ignored", "fail", "other outputs of the policy give the same loss")
        return finding("detached", "fail", f"the term is {float(term.value):.4g} a unit of coef, and has no gradient in the policy's outputs")
    if coef is None:
        return None
    double, length = probe.term(probe.leaf, times=2.0), float(term.grad.norm())
    if float((2 * double.grad - term.grad).norm()) <= 1e-6 * length:
        return finding("ignored", "fail", f"coef: {coef:g} and {2 * coef:g} give the same gradient; only 0 differs")
    off = float((double.grad - term.grad).norm()) / length
    return (
        finding("nonlinear", "warn", f"twice the coef makes the term's gradient {2 * float(double.grad.norm()) / length:.4g} times as long")
        if off > 1e-3
        else None
    )


def direction(probe: Probe, term: Slope, exact: Slope, tolerance: float) -> tuple[Finding | None, Entropy | None]:
    """Of which entropy the gradient is: nothing where it is the wanted one, else a finding and, where known, the entropy that explains it."""

    def unexplained(entropy: Entropy, total: bool) -> float:
        other = probe.exact(probe.leaf, entropy)
        if not other.finite or float(other.grad.norm()) == 0.0:
            return 1.0
        return 1 - _cosine(term.grad, other.grad) ** 2 if total else fit(term.grad, other.grad, 1).unexplained

    found = fit(term.grad, exact.grad, 1).unexplained
    if found <= tolerance:
        return None, None
    if (other := _other_entropy(probe, unexplained, tolerance)) is not None:
        return other
    evidence = f"{100 * found:.2g} % of the squared gradient is not along the entropy's, and no other temperature, family or dimension explains it"
    return finding("entropy", "fail", evidence), None


def _other_entropy(probe: Probe, unexplained: Callable[[Entropy, bool], float], tolerance: float) -> tuple[Finding, Entropy | None] | None:
    """The first entropy that leaves no more than `tolerance` unexplained, and what is wrong with it."""
    head = probe.head
    if isinstance(head, Categorical):
        at = _best_temperature(lambda temperature: unexplained(head.at_temperature(temperature), False))
        if unexplained(head.at_temperature(at), False) <= tolerance and abs(math.log(at / head.temperature)) > 1e-4:
            evidence = f"the gradient is that of the entropy at temperature {at:.4g}; the policy acts at {head.temperature:.4g}"
            return finding("temperature", "fail", evidence), head.at_temperature(at)
    for hypothesis in head.hypotheses(probe.leaf):
        try:
            left = unexplained(hypothesis.entropy, hypothesis.total)
        except ValueError:  # a family that this policy has not
            continue
        if left <= tolerance:
            one = finding(hypothesis.rule, "fail", f"the gradient is that of {hypothesis.words}")
            return one, None if hypothesis.total else hypothesis.entropy
    return None


def _best_temperature(unexplained: Callable[[float], float]) -> float:
    """Where least is left unexplained between 1/20 and 20: a grid, then golden section."""

    def at(log_temperature: float) -> float:
        return unexplained(math.exp(log_temperature))

    best = min((-3.0 + 0.25 * i for i in range(25)), key=at)
    low, high, golden = best - 0.25, best + 0.25, (math.sqrt(5.0) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if at(left) < at(right) else (left, high)
    return math.exp((low + high) / 2)


def _by_length(probe: Probe, term: Slope, tolerance: float) -> Finding | None:
    """Two classes leave every entropy one direction: there lengths tell entropies apart, once no other mask or mean explains them."""
    if not isinstance(probe.head, Categorical) or probe.leaf.shape[-1] > 2:
        return None
    weights = probe.weights.unsqueeze(-1)
    other = _other_entropy(
        probe, lambda entropy, total: 1 - _cosine(term.grad, probe.exact(probe.leaf, entropy).grad * (1 if total else weights)) ** 2, tolerance
    )
    return None if other is None else other[0]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300))


def aggregation(probe: Probe, term: Slope, exact: Slope, tolerance: float) -> Finding | None:
    """How items count: their weights against the wanted ones, and what other weights explain them."""
    found, wanted = fit(term.grad, exact.grad, probe.contract.sign), probe.weights
    known = found.known
    factor = _proportion(found.weights, wanted, known, tolerance)
    if factor is not None:
        return None if abs(factor - 1) <= tolerance else _scaled(probe, factor, tolerance)
    for rule, words, weights in _other_weights(probe):
        if (factor := _proportion(found.weights, weights, known, tolerance)) is not None:
            times = "" if abs(factor - 1) <= tolerance else f", times {factor:.4g}"
            return finding(rule, "fail" if rule == "mask" else "warn", f"items count as {words}{times}")
    pushed = known & (wanted == 0) & (found.weights.abs() > tolerance * float(found.weights.abs().max()))
    if bool(pushed.any()):
        return finding("mask", "fail", f"{int(pushed.sum())} of the {int((wanted == 0).sum())} items that the mask leaves out have a gradient")
    if (other := _by_length(probe, term, tolerance**2)) is not None:
        return other
    ratio = (found.weights / wanted)[known & (wanted != 0)]
    rule = "epsilon" if float((ratio - 1).abs().max()) <= ALMOST else "aggregation"
    return finding(rule, "warn", f"items count {float(ratio.min()):.4g} to {float(ratio.max()):.4g} times what they should")


def _proportion(weights: Tensor, wanted: Tensor, known: Tensor, tolerance: float) -> float | None:
    """The factor between two sets of weights, None where there is no single one."""
    a, b = weights[known], wanted[known]
    norm = float(b.norm())
    if norm == 0.0:
        return None
    factor = float((a * b).sum()) / norm**2
    return factor if float((a - factor * b).norm()) <= tolerance * max(float(a.norm()), 1e-300) else None


def _other_weights(probe: Probe) -> Iterator[tuple[str, str, Tensor]]:
    """Weights that losses are known to use in the place of the wanted ones, and the rule that each breaks."""
    like, mask, contract = probe.leaf[..., 0], probe.mask, probe.contract
    if like.ndim > 1:
        words = "in a mean over all items" if contract.sequences else "in a mean of the sequences' means"
        yield "aggregation", words, replace(contract, sequences=not contract.sequences, denominator=None).weights(like, mask)
    if mask is None:
        return
    full = mask.to(like.dtype)
    yield "mask", "if there were no mask: padding counts", torch.ones_like(like) / like.numel()
    yield "mask", "with the mask inverted", (full == 0).to(like.dtype) / max(1, int((full == 0).sum()))
    for by in (1, -1) if like.ndim > 1 else ():
        rolled = full.roll(by, -1)
        yield "mask", f"with the mask shifted by {by:+d}", rolled / full.sum()
        cut = torch.arange(like.shape[-1], device=like.device) != (0 if by > 0 else like.shape[-1] - 1)
        yield "mask", f"with the mask shifted by {by:+d}, its end cut off", rolled * cut / full.sum()


def _scaled(probe: Probe, factor: float, tolerance: float) -> Finding:
    """Right but for one factor: the sign, or a count that stands where another should."""
    if factor < 0:
        times = "" if abs(factor + 1) <= tolerance else f" (times {-factor:.4g})"
        return finding("sign", "fail", f"the loss {'rises' if probe.contract.sign > 0 else 'falls'} with the entropy{times}, and should do the opposite")
    for value, rule, words in _counts(probe):
        if abs(factor / value - 1) <= tolerance:
            return finding(rule, "warn", f"the term acts as {factor:.4g} times coef, which is {words}")
    return finding("aggregation", "warn", f"the term acts as {factor:.4g} times coef")


def _counts(probe: Probe) -> Iterator[tuple[float, str, str]]:
    """Factors that come from one count in the place of another, the likelier first."""
    like, mask = probe.leaf[..., 0], probe.mask
    items, rows = like.numel(), len(like)
    count = float(items if mask is None else mask.to(like.dtype).sum())
    divisor = probe.contract.denominator or count
    categorical = isinstance(probe.head, Categorical)
    width, what = (probe.leaf.shape[-1], "classes") if categorical else (probe.leaf.shape[-1] // 2, "action dimensions")
    yield 1 / width, "dimension", f"1/{width}: a mean over the {what}, where a sum is wanted"
    yield divisor, "aggregation", f"{divisor:g}, the number of items that count: a sum, where a mean is wanted"
    yield divisor / count, "aggregation", f"{divisor:g}/{count:g}: divided by the count of this batch, where the denominator is wanted"
    yield divisor / width, "dimension", f"{divisor:g}/{width}: summed over items and averaged over the {what}"
    yield divisor / items, "mask", f"{divisor:g}/{items}: padding is not summed, and counted"
    yield divisor / rows, "aggregation", f"{divisor:g}/{rows}: sums of rows, averaged over rows"
    yield float(rows), "aggregation", f"{rows}, the number of rows"
