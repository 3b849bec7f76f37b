"""Settings: flags that do nothing, targets that no policy has, micro-batches that do not add up, the temperature of the rest of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from entreg.finding import Finding
from entreg.linting.advice import finding
from entreg.linting.gradient import fit
from entreg.linting.heads import Categorical
from entreg.linting.probe import Probe
from entreg.schedules import Target

NEAR = 0.9  # of the largest entropy: the greedy one of two actions may then hold .68


def flags_at_work(probe: Probe, others: Mapping[str, Any]) -> list[Finding]:
    """One finding for each flag whose other value leaves loss and gradient as they are."""
    coef = 1.0 if probe.contract.coef is None else probe.contract.coef
    usual, found = probe.call(probe.leaf, coef), []
    for name, value in others.items():
        changed = Probe(**{**probe.__dict__, "flags": {**probe.flags, name: value}}).call(probe.leaf, coef)
        if torch.equal(changed.value, usual.value) and torch.equal(changed.grad, usual.grad):
            evidence = f"{name}: {probe.flags[name]!r} and {value!r} give the same loss and the same gradient"
            found.append(finding("ignored", "fail", evidence))
    return found


def reachable(probe: Probe, user: Tensor, target: float | Target) -> Finding | None:
    """Whether policies like those of the batch can have the target entropy, nats, and whether one that has it can still choose."""
    head, weights = probe.head, probe.weights
    counted = weights > 0
    largest, now = head.largest(user)[counted], head.entropy(user)[counted]
    top, mean = float(largest.mean()), float(now.mean())
    sizes = {"max_entropy": top, "action_dim": user.shape[-1] / 2}
    wanted = target.nats(sizes[target.needs]) if isinstance(target, Target) else float(target)
    spelled = f"target {wanted:.4g} nats"
    if not math.isfinite(wanted) or (isinstance(head, Categorical) and wanted < 0):
        return finding("target", "fail", f"{spelled}: no policy over classes has it, they have 0 to {top:.4g}")
    if wanted >= top:
        share = float((largest < wanted).double().mean())
        evidence = f"{spelled}: out of reach of {share:.0%} of the items, whose largest entropy is {top:.4g} on average; the coefficient would run away"
        return finding("target", "fail", evidence)
    if not isinstance(head, Categorical):
        return None
    if wanted > NEAR * top:
        evidence = f"{spelled}: {wanted / top:.0%} of the largest entropy, {top:.4g}, which is almost uniform"
        return finding("target", "warn", evidence)
    if wanted > 4 * mean and mean > 0:
        evidence = f"{spelled}: {wanted / mean:.1f} times the {mean:.4g} nats that this batch has"
        return finding("target", "warn", evidence)
    return None


def adds_up(probe: Probe, entropy: Callable[[Tensor], Tensor] | None, parts: int, tolerance: float) -> Finding | None:
    """Micro-batches against the whole batch: their mean, or with a `denominator` their sum."""
    total = torch.zeros_like(probe.leaf)
    for rows in torch.arange(len(probe.leaf), device=probe.leaf.device).tensor_split(parts):
        part = probe.rows(rows)
        total[rows] = part.term(part.leaf).grad * (1.0 if probe.contract.denominator else 1 / parts)
    found = fit(total, probe.exact(probe.leaf, entropy).grad, probe.contract.sign)
    counted = found.known & (probe.weights != 0)
    ratio = (found.weights / probe.weights)[counted]
    if bool(((ratio - 1).abs() <= tolerance).all()):
        return None
    how = "summed" if probe.contract.denominator else "averaged"
    evidence = f"{how} over {parts} micro-batches items count {float(ratio.min()):.4g} to {float(ratio.max()):.4g} times what they do in the whole batch"
    return finding("micro_batches", "warn", evidence)


def task_temperature(probe: Probe) -> float | None:
    """The temperature of the rest of the loss, read off the gradient of a policy-gradient term, in each item `-A (1_a - softmax(z / t))`: outside the
    action log |g_j| = z_j / t + const. None where it is not one.
    """
    head = probe.head
    if not isinstance(head, Categorical) or head.key != "logits" or "actions" not in probe.batch or probe.contract.coef is None or probe.leaf.shape[-1] < 3:
        return None
    grad = probe.call(probe.leaf, 0.0).grad
    other = head.live(probe.leaf).scatter(-1, probe.batch["actions"].long().unsqueeze(-1), False) & (grad != 0)
    item = other.sum(-1, keepdim=True) >= 2
    other = other & item
    signs = torch.where(other, grad.sign(), 0).sum(-1).abs()
    if not bool(item.any()) or not torch.isfinite(grad).all() or not torch.equal(signs, other.sum(-1).to(signs)):
        return None
    z, y = (_centred(values, other) for values in (probe.leaf, grad.abs().clamp(min=1e-300).log()))
    slope = float((z * y).sum() / z.square().sum())
    if slope <= 0 or float((y - slope * z).square().sum()) > 1e-6 * float(y.square().sum()):
        return None
    return 1 / slope


def _centred(values: Tensor, where: Tensor) -> Tensor:
    kept = torch.where(where, values, 0)
    return torch.where(where, kept - kept.sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp(min=1), 0)
