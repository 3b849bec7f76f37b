"""`lint`: one batch through somebody's own loss, and what is wrong with its entropy term.

The loss is a black box that is called, never read: with and without the term, at other logits, masks, actions, dtypes and rows, and its gradient is held
against the exact one. Nothing of it changes: no optimizer, no network, the caller's random state is put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from entreg.finding import Finding
from entreg.functional import SHANNON, Family
from entreg.linting import numerics, settings
from entreg.linting.advice import ADVICE
from entreg.linting.expectation import depends_on_samples, kl_term, sampled_term
from entreg.linting.gradient import aggregation, direction, no_effect
from entreg.linting.heads import Categorical, Gaussian, Head
from entreg.linting.probe import Contract, Probe, ragged
from entreg.schedules import Target, positive

RULES = tuple(ADVICE)
ORDER = {"fail": 0, "warn": 1, "info": 2}


def lint(
    loss: Callable[..., Tensor],
    batch: Mapping[str, Any],
    *,
    coef: float | None,
    kl_coef: float | None = None,
    reference: Tensor | None = None,
    sense: Literal["maximize", "minimize"] = "maximize",
    family: Family = SHANNON,
    temperature: float | None = None,
    squashed: bool = False,
    mean: Literal["items", "sequences"] = "items",
    denominator: float | None = None,
    micro_batches: int = 1,
    target: float | Target | None = None,
    flags: Mapping[str, tuple[Any, Any]] | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> list[Finding]:
    """Probes a loss on one batch: `loss(**batch, coef=...)` is a scalar to be minimised that holds an entropy term; the findings, worst first, [] if none.

    `batch`: what the loss takes by keyword. Known names: "logits" or "log_probs" `[*, V]`, or "mean" and "log_std" `[*, D]` (tanh of it: `squashed`); "mask"
    `[*]`, "support" `[*, V]`, "actions" `[*]` or `[*, D]`, "old_log_prob" and "reference_log_prob" `[*]` of the actions. Anything else is passed on; tensors
    are cut into rows along their first dimension. `coef`: the value of the keyword at which the term is looked at; None: the loss takes none and is the term.

    What is wanted: the loss falls by `coef * mean entropy` of the items that count (`sense`, `family`, nats). `mean` "sequences": the mean of rows' means.
    `denominator`: what sums are divided by instead. `temperature`: that of the policy, `softmax(logits / temperature)`; None reads it off a policy gradient
    in the loss, else 1. `micro_batches`: whether that many parts add up (averaged; with a denominator, summed). `kl_coef` is one more keyword, with the
    `reference` logits `[*, V]`. `target`: nats, or a name of `targets`. `flags`: keywords with two values each that should matter, the first the usual one.

    Some 30 calls of the loss, 200 to 4000 where it is made of samples: a few dozen items are enough. Raises ValueError for what it cannot probe.

    >>> from torch.distributions import Categorical
    >>> def loss(logits, actions, advantages, coef):
    ...     policy = Categorical(logits=logits)
    ...     return -(advantages * policy.log_prob(actions)).mean() + coef * policy.entropy().mean()
    >>> batch = {"logits": torch.zeros(32, 4), "actions": torch.arange(32) % 4, "advantages": torch.linspace(-1, 1, 32)}
    >>> for finding in lint(loss, batch, coef=0.01): print(finding)  # doctest: +ELLIPSIS
    fail sign: the loss rises with the entropy, and should do the opposite; loss - coef * entropy keeps entropy up; ...

    Source: `docs/lint.md`, each rule with the public bug behind it.
    """
    if unknown := set(skip) - set(RULES):
        raise ValueError(f"skip: {sorted(unknown)}; legal: {', '.join(RULES)}")
    if sense not in ("maximize", "minimize") or mean not in ("items", "sequences"):
        raise ValueError(f"sense, mean: {sense!r}, {mean!r}; legal: 'maximize' or 'minimize', 'items' or 'sequences'")
    contract = Contract(_value("coef", coef), _value("kl_coef", kl_coef), 1 if sense == "maximize" else -1, mean == "sequences", denominator, reference)
    if denominator is not None:
        positive("denominator", denominator)
    if target is not None and not isinstance(target, Real | Target):
        raise ValueError(f"target: {target!r}; legal: nats, or a name of targets")
    if kl_coef is not None and (reference is None or ("logits" not in batch and "log_probs" not in batch)):
        raise ValueError("kl_coef: needs a categorical policy and its reference=, logits [*, V]")
    leaf, others = _leaf(batch)
    if not 1 <= micro_batches <= len(leaf):
        raise ValueError(f"micro_batches: {micro_batches}; legal: 1 to {len(leaf)}, the rows of the batch")
    head = _head(batch, family, squashed, temperature)
    _check(others, leaf, head)
    usual = {name: pair[0] for name, pair in (flags or {}).items()}
    probe, user = _probe(Probe(loss, others, head, contract, leaf, leaf.dtype, usual, seed))
    if temperature is None and isinstance(head, Categorical) and (acts_at := settings.task_temperature(probe)) is not None:
        probe = replace(probe, head=replace(head, temperature=acts_at))
    found: list[Finding | None] = [*settings.flags_at_work(probe, {name: pair[1] for name, pair in (flags or {}).items()})]
    if target is not None:
        found.append(settings.reachable(probe, user, target))
    found.append(numerics.minus_inf(probe))
    found += _term(probe, user, micro_batches)
    if kl_coef is not None:
        found.append(kl_term(probe))
    return sorted((one for one in found if one is not None and one.rule not in skip), key=lambda one: ORDER[one.severity])


def _term(probe: Probe, user: Tensor, micro_batches: int) -> list[Finding | None]:
    """What there is to say of the entropy term itself; one fault hides others that would only follow from it."""
    exact, term = probe.exact(probe.leaf), probe.term(probe.leaf)
    if not term.finite:
        return []  # minus_inf has said so
    if (dead := no_effect(probe, term, exact)) is not None and dead.rule != "nonlinear":
        return [dead]
    if depends_on_samples(probe, probe.term):
        return [dead, sampled_term(probe, exact)]
    rounded = numerics.precision(probe, user)
    coarse = probe.leaf.dtype != torch.float64 or rounded is not None
    wrong, entropy = direction(probe, term, exact, 1e-2 if coarse else 1e-6)
    if wrong is not None and entropy is None:
        return [dead, wrong]
    weights = aggregation(probe, term, probe.exact(probe.leaf, entropy), 5e-2 if coarse else 1e-4)
    shift = numerics.epsilon(probe) if wrong is None and weights is None and not coarse else None
    parts = settings.adds_up(probe, entropy, micro_batches, 5e-2 if coarse else 1e-4) if micro_batches > 1 and weights is None else None
    return [dead, wrong, weights, rounded, shift, parts]


def _value(name: str, value: float | None) -> float | None:
    if value is not None and not (isinstance(value, Real) and math.isfinite(value) and value != 0):
        raise ValueError(f"{name}: {value!r}; legal: a finite number that is not 0, at which the term shows, or None")
    return value


def _leaf(batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The policy's outputs as one tensor `[*, K]`, and the rest of the batch."""
    keys = [key for key in ("logits", "log_probs", "mean", "log_std") if key in batch]
    if keys not in (["logits"], ["log_probs"], ["mean", "log_std"]):
        raise ValueError(f"batch: has {keys or 'none'} of the policy's outputs; legal: 'logits', or 'log_probs', or 'mean' and 'log_std'")
    for key in keys:
        tensor = batch[key]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() == 0:
            raise ValueError(f"batch: {key} is {_described(tensor)}; legal is a floating tensor [*, {'V' if len(keys) == 1 else 'D'}] with items before it")
    if len(keys) == 2:
        mean, log_std = torch.broadcast_tensors(batch["mean"], batch["log_std"])
        return torch.cat((mean, log_std), -1).detach(), {name: value for name, value in batch.items() if name not in keys}
    return batch[keys[0]].detach(), {name: value for name, value in batch.items() if name not in keys}


def _head(batch: Mapping[str, Any], family: Family, squashed: bool, temperature: float | None) -> Head:
    if "mean" in batch:
        if temperature is not None:
            raise ValueError(f"temperature: {temperature}; legal for a Gaussian is None")
        return Gaussian(family, squashed, batch["mean"].shape[-1])
    if squashed:
        raise ValueError("squashed: True; legal for a categorical policy is False")
    if temperature is not None and "log_probs" in batch:
        raise ValueError(f"temperature: {temperature}; legal beside log_probs, which have their own, is None")
    return Categorical("logits" if "logits" in batch else "log_probs", family, batch.get("support"), positive("temperature", temperature or 1.0))


def _check(others: Mapping[str, Any], leaf: Tensor, head: Head) -> None:
    items = leaf.shape[:-1]
    if bool((leaf.isnan() | (leaf == math.inf)).any()) or (isinstance(head, Gaussian) and bool(leaf.isinf().any())):
        raise ValueError(f"batch: {head.key} hold NaN or infinity; legal are finite numbers, and -inf for a class that does not exist")
    legal = {"mask": items, "support": leaf.shape, "actions": items if isinstance(head, Categorical) else (*items, leaf.shape[-1] // 2)}
    legal |= {"old_log_prob": items, "reference_log_prob": items}
    for name, shape in legal.items():
        value = others.get(name)
        if name in others and (not isinstance(value, Tensor) or value.shape != shape):
            raise ValueError(f"batch: {name} is {_described(value)}; legal is a tensor of shape {tuple(shape)}")
    if "support" in others and others["support"].dtype != torch.bool:
        raise ValueError(f"batch: support is {_described(others['support'])}; legal is a boolean tensor")
    for name, value in others.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != len(leaf):
            raise ValueError(f"batch: {name} has {len(value)} rows; legal are {len(leaf)}, as the policy's outputs have, or a tensor without dimensions")
    if "mask" in others and not bool((others["mask"] != 0).any()):
        raise ValueError("batch: mask leaves no item; legal is at least one")
    if isinstance(head, Categorical) and not bool((head.live(leaf).sum(-1) > 1).any()):
        raise ValueError("batch: no item has two classes to choose from; legal is at least one that has")


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _probe(probe: Probe) -> tuple[Probe, Tensor]:
    """The probe at logits where gradients can be told, in float64 where the loss allows it, else float32; and the batch's own leaf in that dtype."""
    given = probe.leaf
    mask = probe.mask
    generator = torch.Generator().manual_seed(probe.seed)
    if mask is not None:
        probe = replace(probe, batch={**probe.batch, "mask": ragged(mask, generator)})
    for dtype in (torch.float64, torch.float32):
        user = given.to(dtype)
        there = replace(probe, leaf=probe.head.probe(user, generator))
        try:
            there.call(there.leaf, 0.0 if probe.contract.coef is not None else 1.0)
        except RuntimeError:  # a float32 network or constant inside
            if dtype == torch.float32:
                raise
            continue
        break
    return there, user
