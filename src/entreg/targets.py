"""Targets: the entropy wanted, by name, before the size of the task is known; and what a squashed Gaussian can reach. Standard library only.

A target is frozen and open: `resolve` turns it into nats with what the recipe knows, and fills every other open field of a controller on the way.
Shannon entropy in nats; a squashed Gaussian is y = tanh(u), u ~ N(mean, std^2), per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

from entreg.control import Controller, Observed, Plateau, as_controller, current_target
from entreg.schedules import OPEN, Schedule, Target, fix, number

__all__ = ["BestSquashed", "action_dim", "best_squashed", "feasible", "fraction_of_max", "greedy_probability", "named_targets", "needs", "resolve", "within"]


@dataclass(frozen=True)
class action_dim(Target):
    """`factor` times the number of action dimensions, nats: -dim(A) by SAC's convention.

    It can be out of reach for a squashed Gaussian: see `feasible`.

    >>> action_dim().nats(6)
    -6.0

    Source: Haarnoja et al. 2018 (arXiv:1812.05905), table 1.
    """

    factor: float = -1.0
    needs: ClassVar[str] = "action_dim"

    def __post_init__(self) -> None:
        fix(self, factor=number)

    def nats(self, size: float) -> float:
        return self.factor * size


@dataclass(frozen=True)
class fraction_of_max(Target):
    """The fraction `f` of the largest entropy that the allowed classes have, summed over heads: means the same in every action space.

    .98, a popular default for discrete SAC, is almost uniform: the better of two actions may hold .583 (see `greedy_probability`).

    >>> round(fraction_of_max(0.5).nats(math.log(4)), 3)
    0.693
    """

    f: float
    needs: ClassVar[str] = "max_entropy"

    def __post_init__(self) -> None:
        fix(self, f=lambda where, x: number(where, x, "a number in [0, 1]", lambda x: 0 <= x <= 1))

    def nats(self, size: float) -> float:
        return self.f * number("fraction_of_max: max_entropy", size, "a number > 0; a density has no maximum, so give its target in nats", lambda x: x > 0)


@dataclass(frozen=True)
class greedy_probability(Target):
    """The Shannon entropy at which the most probable action may hold `p`, and all others share the rest equally.

    `-p log p - (1 - p) log((1 - p) / (V - 1))` with V = exp(max_entropy) actions. No distribution of that entropy gives an action more than p. With several
    heads V counts joint actions and p is the joint greedy one's; independent heads cannot share the rest equally, so theirs holds less than p.
    ValueError where p is below 1/V (uniform), and in `resolve` for other families than Shannon's.

    >>> round(greedy_probability(0.9).nats(math.log(2)), 4)
    0.3251
    """

    p: float
    needs: ClassVar[str] = "max_entropy"

    def __post_init__(self) -> None:
        fix(self, p=lambda where, x: number(where, x, "a number in (0, 1)", lambda x: 0 < x < 1))

    def nats(self, size: float) -> float:
        actions = math.exp(number("greedy_probability: max_entropy", size, "a number > 0", lambda x: 0 < x < 700))
        legal = f"a number >= 1/{actions:.6g}, what each of the actions holds when all are equal"
        number("greedy_probability: p", self.p, legal, lambda p: p * actions >= 1.0 - 1e-9)
        return -self.p * math.log(self.p) - (1.0 - self.p) * (math.log1p(-self.p) - math.log(actions - 1.0))


def resolve(
    controller: Controller[Any] | float,
    *,
    steps: int | None = None,
    max_entropy: float | None = None,
    action_dim: float | None = None,
    lr: float | None = None,
    init_coef: float | None = None,
    family: str = "shannon",
) -> Controller[Any]:
    """The controller with its open fields filled, nested ones too: None under `steps`, `lr`, `init_coef`, and targets. A number becomes `constant`.

    `steps` is the length of the run in controller steps; `max_entropy` that of the family over the allowed classes, summed over heads; `family` its name.
    A recipe's `init_coef` outside the bounds that the user set is moved to the nearer bound. What stays None here stays open, and is a ValueError at `init()`.

    >>> from entreg.control import TargetEntropy, linear
    >>> resolve(linear(0.01, 0.0), steps=500)
    linear(start=0.01, end=0.0, steps=500)
    >>> resolve(TargetEntropy(action_dim(), init_coef=0.1), action_dim=6, lr=3e-4)
    TargetEntropy(target=-6.0, lr=0.0003, init_coef=0.1, bounds=(1e-08, 10000.0), form='log')
    """
    known = {"steps": steps, "lr": lr, "init_coef": init_coef, "max_entropy": max_entropy, "action_dim": action_dim}
    controller = as_controller(controller)
    outer = controller
    while isinstance(outer, Plateau):
        outer = outer.controller
    if isinstance(outer, Schedule) and (named := named_targets(outer)):
        raise ValueError(f"controller={outer!r}: {named[0]!r} is an entropy; legal: coefficients as numbers, or TargetEntropy(...) around the schedule")
    if family != "shannon" and (named := [target for target in named_targets(controller) if isinstance(target, greedy_probability)]):
        raise ValueError(f"family={family!r}: {named[0]!r} is a Shannon entropy; legal: family 'shannon', fraction_of_max(f), or a number")
    filled: Controller[Any] = _fill(controller, known)
    return filled


def within(controller: Controller[Any], most: float) -> None:
    """ValueError where a closed controller wants an entropy that no distribution of the task has: below 0, or not below `most`, nats or the family's units.

    >>> from entreg.control import PI
    >>> within(PI(2.0, 0.1, 0.01, (0, 1)), most=math.log(4))
    Traceback (most recent call last):
    ValueError: controller=PI(target=2.0, kp=0.1, ki=0.01, bounds=(0.0, 1.0)): its target is 2; legal is 0 <= target < 1.38629
    """
    wanted = current_target(controller, controller.init())
    if wanted is not None and not 0 <= wanted < most:
        raise ValueError(f"controller={controller!r}: its target is {wanted:.6g}; legal is 0 <= target < {most:.6g}")


def needs(controller: Controller[Any]) -> set[str]:
    """The optional signals that a closed controller reads: some of reward, kl, grad_share, progress.

    >>> from entreg.control import GradientShare, constant
    >>> sorted(needs(Plateau(GradientShare(0.1), 3))), needs(constant(0.1))
    (['grad_share', 'reward'], set())
    """
    every = Observed(0.5, reward=0.5, kl=0.5, grad_share=0.5, progress=0.5)
    state = controller.init()

    def misses(name: str) -> bool:
        try:
            controller.update(state, every._replace(**{name: None}))  # type: ignore[arg-type]  # mypy takes the name for that of any field
        except ValueError:
            return True
        return False

    return {name for name in ("reward", "kl", "grad_share", "progress") if misses(name)}


def named_targets(value: Any) -> list[Target]:
    """The targets inside a controller that stand there by name, such as `action_dim()`; none are left where `resolve` knew their size."""
    if isinstance(value, Target):
        return [value]
    inner: Iterable[Any] = value if isinstance(value, tuple) else (getattr(value, field.name) for field in fields(value)) if is_dataclass(value) else ()
    return [target for item in inner for target in named_targets(item)]


def _fill(value: Any, known: dict[str, float | None]) -> Any:
    if isinstance(value, Target):
        size = known[value.needs]
        return value if size is None else value.nats(size)
    if isinstance(value, tuple):
        return tuple(_fill(item, known) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    new = {field.name: _fill(getattr(value, field.name), known) for field in fields(value)}
    for name in OPEN:
        if name in new and new[name] is None:
            new[name] = known[name]
    if new.get("init_coef") is not None:
        new["init_coef"] = min(max(new["init_coef"], new["bounds"][0]), new["bounds"][1])
    return replace(value, **new)


class BestSquashed(NamedTuple):
    """The largest entropy that a squashed Gaussian of one mean has, and the std (before the tanh) that reaches it."""

    entropy: float
    std: float


def _density(u: float, mean: float, std: float) -> float:
    return math.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))


def _half_slope(mean: float, std: float) -> float:
    """std^2 E[sech^2 u] for u ~ N(mean, std^2): 1/2 where the entropy over std is largest, growing in std."""
    step = 0.1  # trapezoid on an analytic integrand: exact to rounding for std >= .7
    nodes = (step * i for i in range(-200, 201))
    return std * std * step * sum(_density(u, mean, std) / math.cosh(u) ** 2 for u in nodes)


def best_squashed(mean: float) -> BestSquashed:
    """The largest Shannon entropy of y = tanh(u), u ~ N(mean, std^2), over all std: it exists, and falls with |mean|.

    H(y) = log std + log(2 pi e)/2 - 2 E log cosh u, and dH/d(log std) = 1 - 2 std^2 E sech^2 u, which has one zero. Trapezoid rule, 1e-12.
    A bonus on the entropy of u instead pushes std past this point.

    >>> entropy, std = best_squashed(0.0)
    >>> round(entropy, 4), round(std, 4)
    (0.6836, 0.8744)
    """
    mean = abs(number("best_squashed: mean", mean, "a number in [-50, 50]", lambda x: abs(x) <= 50))
    low, high = math.sqrt(0.5), 2.0 + 2.0 * mean
    for _ in range(60):
        std = (low + high) / 2.0
        low, high = (std, high) if _half_slope(mean, std) < 0.5 else (low, std)
    step = 0.1
    start = math.floor((mean - 9.0 * std) / step)
    nodes = (step * i for i in range(start, start + math.ceil(18.0 * std / step) + 1))
    log_cosh = step * sum(_density(u, mean, std) * (abs(u) + math.log1p(math.exp(-2.0 * abs(u))) - math.log(2.0)) for u in nodes)
    return BestSquashed(math.log(std) + 0.5 * math.log(2.0 * math.pi * math.e) - 2.0 * log_cosh, std)


def feasible(target: float, mean: float | Iterable[float]) -> bool:
    """Whether a squashed Gaussian with this mean (before the tanh; one number a dimension) reaches the target, nats summed over dimensions, at any std.

    SAC's usual -1 a dimension is out of reach for |mean| > 1.844, and the coefficient of `TargetEntropy` then grows until its bound.

    >>> feasible(-1.0, 1.84), feasible(-1.0, 1.85), feasible(-2.0, [0.0, 2.5])
    (True, False, True)
    """
    means = mean if isinstance(mean, Iterable) else [mean]
    return sum(best_squashed(one).entropy for one in means) >= number("feasible: target", target)
