"""Terms made of samples: what their gradient is on average over the policy's own actions, drawn stratified, against the exact one.

`-log p(a)` of a sampled action has the right value and an expected gradient of zero; k1 as a loss likewise. A slope is the part of the mean gradient along
the exact one: 1 is right, 0 is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from entreg.finding import Finding
from entreg.functional import categorical_kl
from entreg.linting.advice import finding
from entreg.linting.heads import Categorical
from entreg.linting.probe import Probe, Slope

SETS, DRAWS = 24, 16  # stratified sets, and draws in each
CLOSE = 0.1  # how far from 1, or from 0, a slope may be


class Mean(NamedTuple):
    """Coefficients `[J]` of the mean gradient in J exact ones (least squares), and the largest of their standard errors."""

    slopes: Tensor
    error: float


def depends_on_samples(probe: Probe, term: Callable[..., Slope]) -> bool:
    """Whether other actions, or other random numbers, change the gradient."""
    first, last = (term(probe.leaf, draw=draw, **changed) for draw, changed in enumerate(_drawn(probe, 2, 0)))
    return float((first.grad - last.grad).norm()) > 1e-6 * float(first.grad.norm() + last.grad.norm())


def mean_gradient(probe: Probe, term: Callable[..., Slope], *exact: Tensor) -> Mean:
    """Averaged over stratified sets of draws until the slopes are known to half of `CLOSE`, or over all `SETS`; one call where nothing is sampled."""
    basis = torch.stack([one.flatten() for one in exact]).double()
    solve = torch.linalg.pinv(basis.T)  # [J, items K]
    if not depends_on_samples(probe, term):
        return Mean(solve @ term(probe.leaf).grad.flatten().double(), 0.0)
    slopes: list[Tensor] = []
    error = math.inf
    while len(slopes) < SETS and (len(slopes) < 8 or error > CLOSE / 2):
        drawn = enumerate(_drawn(probe, DRAWS, len(slopes)), len(slopes) * DRAWS)
        grads = [term(probe.leaf, draw=draw, **changed).grad for draw, changed in drawn]
        slopes.append(solve @ torch.stack(grads).mean(0).flatten().double())
        error = float(torch.stack(slopes).std(0).max()) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.inf
    return Mean(torch.stack(slopes).mean(0), error)


def _drawn(probe: Probe, count: int, stream: int) -> list[dict[str, Tensor]]:
    if "actions" not in probe.batch:
        return [{}] * count
    generator = torch.Generator().manual_seed(probe.seed + 1 + stream)
    return [probe.actions_at(probe.leaf, actions) for actions in probe.head.draw(probe.leaf, count, generator)]


def sampled_term(probe: Probe, exact: Slope) -> Finding | None:
    """The entropy term where it is one of samples: zero on average, the wrong sign, another size."""
    mean = mean_gradient(probe, probe.term, -probe.contract.sign * probe.weights.unsqueeze(-1) * exact.grad)
    slope, margin = float(mean.slopes[0]), max(CLOSE, 4 * mean.error)
    if abs(slope - 1) <= margin:
        return None
    evidence = f"over sampled actions the gradient is on average {slope:.2f} +- {mean.error:.2f} of the entropy's"
    if abs(slope) <= margin:
        return finding("sampled", "fail", evidence)
    return finding("sign", "fail", evidence) if slope < 0 else finding("aggregation", "warn", evidence)


def kl_term(probe: Probe) -> Finding | None:
    """The KL term: no effect, k1 as a loss (zero on average), the other direction (k3 as a loss), the wrong sign, another size."""
    head, reference = probe.head, probe.contract.reference
    assert isinstance(head, Categorical) and reference is not None
    there, at = reference.to(probe.leaf) / head.temperature, head.temperature
    right = _kl_gradient(probe, lambda leaf: categorical_kl(leaf / at, there, support=head.support))
    other = _kl_gradient(probe, lambda leaf: categorical_kl(there, leaf / at, support=head.support))
    one = probe.kl_term(probe.leaf)
    if float(one.grad.norm()) <= 1e-9 * float(right.norm()):
        ignored = float(one.value.abs()) <= 1e-9
        return finding("ignored" if ignored else "detached", "fail", f"kl_coef changes {'nothing' if ignored else 'the loss and not its gradient'}")
    mean = mean_gradient(probe, probe.kl_term, right, other)
    ours, theirs = mean.slopes.tolist()
    evidence = f"the gradient is on average {ours:.2f} KL(policy || reference) + {theirs:.2f} KL(reference || policy), each +- {mean.error:.2f}"
    kinds = {(1, 0): None, (0, 0): "k1", (0, 1): "kl_direction", (-1, 0): "sign", (0, -1): "sign"}
    rule = kinds[min(kinds, key=lambda at: math.dist(at, (ours, theirs)))]
    if rule is None and abs(ours - 1) > max(CLOSE, 4 * mean.error):
        return finding("aggregation", "warn", evidence)
    return None if rule is None else finding(rule, "info" if rule == "kl_direction" else "fail", evidence)


def _kl_gradient(probe: Probe, kl: Callable[[Tensor], Tensor]) -> Tensor:
    return probe.weights.unsqueeze(-1) * probe.exact(probe.leaf, kl).grad
