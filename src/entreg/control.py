"""Controllers: float -> float state machines that set an entropy coefficient. Standard library only.

A controller is a frozen dataclass with `init() -> state`, `update(state, seen) -> state` and `coef(state) -> float`. The state is a NamedTuple of numbers: it
is saved as JSON (`pack`, `unpack`), sent between ranks, replayed from a log and tested by hand; nothing changes in place. Entropies and targets are nats; a
step is one controller step. Schedules (lower case, schedules.py) count steps and read nothing. Feedback rules (upper case, here) read `Observed` and act on

    e = sense * (target - entropy):   e > 0 asks for a stronger coefficient, whether entropy is maximised (sense 1) or minimised (sense -1)

Their `target` is a number, a `Target` (targets.py) or a schedule of either. A field that is None under the name `steps`, `lr` or `init_coef` is open, and so
is a `Target`: `targets.resolve` fills them, and what is open at `init()` is a ValueError. So is a signal that a rule reads and that is absent or not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from entreg.schedules import (
    Level,
    bounds,
    check_closed,
    constant,
    cosine,
    count,
    exponential,
    fix,
    inside,
    level,
    level_at,
    linear,
    maybe,
    not_negative,
    number,
    piecewise,
    positive,
    positive_bounds,
)

__all__ = [
    "PI",
    "Band",
    "Controller",
    "GradientShare",
    "Observed",
    "Plateau",
    "TargetEntropy",
    "Thermostat",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "piecewise",
]

S = TypeVar("S")
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's own, as every SAC uses them for its coefficient


class Observed(NamedTuple):
    """What a controller may read at a step: mean entropy in nats (NaN: not measured), sense 1 or -1, and the host's optional signals."""

    entropy: float
    sense: int = 1
    reward: float | None = None
    kl: float | None = None
    grad_share: float | None = None
    progress: float | None = None


@runtime_checkable
class Controller(Protocol[S]):
    """What every controller is: three pure functions of a state."""

    def init(self) -> S: ...
    def update(self, state: S, seen: Observed) -> S: ...
    def coef(self, state: S) -> float: ...


def _read(controller: object, name: str, value: float | None) -> float:
    if value is None or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}; legal: a finite number, which {type(controller).__name__} reads at every step")
    return float(value)


def _error(controller: object, target: Level, step: int, seen: Observed) -> float:
    return seen.sense * (level_at(target, step) - _read(controller, "entropy", seen.entropy))


def _clip(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


class Dual(NamedTuple):
    """The state of TargetEntropy: Adam's on one number, the logarithm of the coefficient."""

    step: int
    log_coef: float
    m: float
    v: float


@dataclass(frozen=True)
class TargetEntropy:
    """SAC's learnt coefficient: Adam on log coef, so that the entropy meets the target.

    Minimises `log_coef * (entropy - target)` for form "log" (stable-baselines3), `exp(log_coef) * (entropy - target)` for form "exp" (the paper, CleanRL).
    `lr` and `init_coef` None are the recipe's own. A target out of reach runs into a bound: see `targets.feasible`, `targets.greedy_probability`.

    >>> rule = TargetEntropy(0.5, lr=0.1, init_coef=1.0)
    >>> round(rule.coef(rule.update(rule.init(), Observed(entropy=0.2))), 3)      # too little entropy: stronger
    1.105

    Source: Haarnoja et al. 2018 (arXiv:1812.05905), equation 18; the bounds are ours.
    """

    target: Level
    lr: float | None = None
    init_coef: float | None = None
    bounds: tuple[float, float] = (1e-8, 1e4)
    form: Literal["log", "exp"] = "log"

    def __post_init__(self) -> None:
        fix(self, target=level, lr=maybe(positive), init_coef=maybe(positive), bounds=positive_bounds)
        inside("TargetEntropy: init_coef", self.init_coef, self.bounds)
        if self.form not in ("log", "exp"):
            raise ValueError(f"TargetEntropy: form={self.form!r}; legal: 'log' or 'exp'")

    def init(self) -> Dual:
        check_closed(self)
        return Dual(0, math.log(positive("TargetEntropy: init_coef", self.init_coef)), 0.0, 0.0)

    def update(self, state: Dual, seen: Observed) -> Dual:
        error = _error(self, self.target, state.step, seen)
        gradient = -error * (math.exp(state.log_coef) if self.form == "exp" else 1.0)
        step = state.step + 1
        m = state.m + (gradient - state.m) * (1.0 - BETA1)
        v = state.v * BETA2 + (1.0 - BETA2) * gradient * gradient
        rate = positive("TargetEntropy: lr", self.lr) / (1.0 - BETA1**step)
        log_coef = state.log_coef - rate * m / (math.sqrt(v) / math.sqrt(1.0 - BETA2**step) + EPSILON)
        return Dual(step, _clip(log_coef, (math.log(self.bounds[0]), math.log(self.bounds[1]))), m, v)

    def coef(self, state: Dual) -> float:
        return _clip(math.exp(state.log_coef), self.bounds)


class Gate(NamedTuple):
    """The state of Thermostat: the coefficient it holds ready, and whether it applies."""

    step: int
    held: float
    on: bool


@dataclass(frozen=True)
class Thermostat:
    """Adds `delta` to the coefficient while entropy is at or below the target, takes it away above it, and applies it only while at or below.

    Elsewhere, and before the first measurement, the coefficient is 0. (With sense -1: at or above.)

    >>> rule = Thermostat(0.2, 0.005)
    >>> low = rule.update(rule.init(), Observed(entropy=0.1))
    >>> rule.coef(rule.init()), rule.coef(low), rule.coef(rule.update(low, Observed(entropy=0.3)))
    (0.0, 0.005, 0.0)

    Source: He et al. 2025 (Skywork-OR1, arXiv:2505.22312), section 4; step by step as the adaptive entropy of TRL 1.16.
    """

    target: Level
    delta: float
    start: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        fix(self, target=level, delta=positive, start=number, bounds=bounds)
        inside("Thermostat: start", self.start, self.bounds)

    def init(self) -> Gate:
        check_closed(self)
        return Gate(0, self.start, False)

    def update(self, state: Gate, seen: Observed) -> Gate:
        on = _error(self, self.target, state.step, seen) >= 0.0
        return Gate(state.step + 1, _clip(state.held + (self.delta if on else -self.delta), self.bounds), on)

    def coef(self, state: Gate) -> float:
        return state.held if state.on else 0.0


class Integral(NamedTuple):
    """The state of PI: the sum of the errors that counted, and the coefficient."""

    step: int
    total: float
    held: float


@dataclass(frozen=True)
class PI:
    """Proportional-integral control: `coef = kp e + ki sum(e)`, clipped to the bounds.

    Anti-windup: an error that would push a coefficient further past its bound is not summed, so that it leaves the bound at once when the error turns.
    Bounds on both sides of 0 make it two-sided: a negative coefficient is an entropy ceiling.

    >>> rule = PI(1.0, kp=0.1, ki=0.01, bounds=(-1.0, 1.0))
    >>> round(rule.coef(rule.update(rule.init(), Observed(entropy=2.0))), 3)      # too much entropy: pushed down
    -0.11

    Source: Yang et al. 2025 (EntroPIC, arXiv:2511.15248), there for the weights of samples; the anti-windup is ours.
    """

    target: Level
    kp: float
    ki: float
    bounds: tuple[float, float]

    def __post_init__(self) -> None:
        fix(self, target=level, kp=not_negative, ki=not_negative, bounds=bounds)

    def init(self) -> Integral:
        check_closed(self)
        return Integral(0, 0.0, _clip(0.0, self.bounds))

    def update(self, state: Integral, seen: Observed) -> Integral:
        error = _error(self, self.target, state.step, seen)
        total = state.total + error
        wanted = self.kp * error + self.ki * total
        held = _clip(wanted, self.bounds)
        return Integral(state.step + 1, state.total if (wanted - held) * error > 0.0 else total, held)

    def coef(self, state: Integral) -> float:
        return state.held


class Held(NamedTuple):
    """The state of Band and of GradientShare: the coefficient."""

    step: int
    held: float


@dataclass(frozen=True)
class Band:
    """Leaves the coefficient alone while entropy lies in [low, high], and outside moves it by `lr` times the distance.

    `coef += lr * sense * (max(0, low - entropy) - max(0, entropy - high))`. Starts at `start`; None: the point of the bounds nearest to 0.

    >>> rule = Band(0.1, 0.5, lr=0.01, bounds=(0.0, 0.1))
    >>> [round(rule.coef(rule.update(rule.init(), Observed(entropy))), 4) for entropy in (0.0, 0.3)]
    [0.001, 0.0]

    Source: Shen 2025 (AEnt, arXiv:2509.03493), whose clamped entropy is `functional.clamped_entropy`; the defaults are those of its code.
    """

    low: Level
    high: Level
    lr: float = 1e-3
    bounds: tuple[float, float] = (1e-5, 1e-2)
    start: float | None = None

    def __post_init__(self) -> None:
        fix(self, low=level, high=level, lr=positive, bounds=bounds, start=maybe(number))
        inside("Band: start", self.start, self.bounds)
        if isinstance(self.low, float) and isinstance(self.high, float) and self.low > self.high:
            raise ValueError(f"Band: high={self.high!r}; legal: a number >= low={self.low!r}")

    def init(self) -> Held:
        check_closed(self)
        return Held(0, _clip(0.0, self.bounds) if self.start is None else self.start)

    def update(self, state: Held, seen: Observed) -> Held:
        entropy = _read(self, "entropy", seen.entropy)
        missing = max(0.0, level_at(self.low, state.step) - entropy) - max(0.0, entropy - level_at(self.high, state.step))
        return Held(state.step + 1, _clip(state.held + self.lr * seen.sense * missing, self.bounds))

    def coef(self, state: Held) -> float:
        return state.held


@dataclass(frozen=True)
class GradientShare:
    """Holds the bonus at a share of the gradient, which transfers between tasks and reward scales: reads `grad_share`.

    `log coef += lr * (logit(share) - logit(grad_share))`: the odds of the share are proportional to the coefficient, so lr is the part of the gap closed in a
    step. Starts at `start`; None: the geometric middle of the bounds. More coefficient is more share in both senses.

    >>> rule = GradientShare(0.5, lr=1.0, start=0.01)
    >>> round(rule.coef(rule.update(rule.init(), Observed(1.0, grad_share=0.2))), 6)      # odds 1/4, wanted 1: four times as strong
    0.04
    """

    share: float
    lr: float = 0.1
    bounds: tuple[float, float] = (1e-8, 1e4)
    start: float | None = None

    def __post_init__(self) -> None:
        fix(self, share=lambda where, x: number(where, x, "a number in (0, 1)", lambda x: 0 < x < 1))
        fix(self, lr=positive, bounds=positive_bounds, start=maybe(positive))
        inside("GradientShare: start", self.start, self.bounds)

    def init(self) -> Held:
        return Held(0, math.sqrt(self.bounds[0]) * math.sqrt(self.bounds[1]) if self.start is None else self.start)

    def update(self, state: Held, seen: Observed) -> Held:
        share = _clip(_read(self, "grad_share", seen.grad_share), (1e-6, 1.0 - 1e-6))  # logit is infinite at 0 and 1
        gap = math.log(self.share / (1.0 - self.share)) - math.log(share / (1.0 - share))
        log_coef = _clip(math.log(state.held) + self.lr * gap, (math.log(self.bounds[0]), math.log(self.bounds[1])))
        return Held(state.step + 1, _clip(math.exp(log_coef), self.bounds))

    def coef(self, state: Held) -> float:
        return state.held


class Lowered(NamedTuple):
    """The state of Plateau: the inner controller's, the best reward, steps since it, and the product of the factors so far."""

    inner: Any
    best: float
    waited: int
    scale: float


@dataclass(frozen=True)
class Plateau:
    """Multiplies the coefficient of another controller by `factor` each time `patience` steps in a row bring no better `reward`.

    Meant around constants and schedules; a feedback rule inside would work against it.

    >>> rule = Plateau(constant(0.01), patience=2, factor=0.5)
    >>> state = rule.init()
    >>> for reward in (1.0, 0.9, 1.0): state = rule.update(state, Observed(0.0, reward=reward))
    >>> rule.coef(state)
    0.005
    """

    controller: Controller[Any]
    patience: int
    factor: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "controller", as_controller(self.controller))
        fix(self, patience=count, factor=lambda where, x: number(where, x, "a number in [0, 1)", lambda x: 0 <= x < 1))

    def init(self) -> Lowered:
        check_closed(self)
        return Lowered(self.controller.init(), -math.inf, 0, 1.0)

    def update(self, state: Lowered, seen: Observed) -> Lowered:
        reward = _read(self, "reward", seen.reward)
        waited = 0 if reward > state.best else state.waited + 1
        lower = waited >= self.patience
        scale = state.scale * (self.factor if lower else 1.0)
        return Lowered(self.controller.update(state.inner, seen), max(reward, state.best), 0 if lower else waited, scale)

    def coef(self, state: Lowered) -> float:
        return self.controller.coef(state.inner) * state.scale


def as_controller(value: Any) -> Controller[Any]:
    """The controller itself, or `constant` of a number; ValueError for anything else."""
    if isinstance(value, Controller) and not isinstance(value, type):
        return value
    return constant(number("controller", value, "a number or a controller such as linear(0.01, 0.0)"))


def current_target(controller: Any, state: Any) -> float | None:
    """The entropy in nats that a controller wants now, for logs; None where it has no single target."""
    if isinstance(controller, Plateau):
        return current_target(controller.controller, state.inner)
    return level_at(controller.target, state.step) if isinstance(controller, (TargetEntropy, Thermostat, PI)) else None


def pack(state: Any) -> dict[str, Any]:
    """A controller's state as a JSON-able dict by field name.

    >>> pack(linear(0.01, 0.0, steps=10).init())
    {'step': 0}
    """
    return {name: pack(value) if isinstance(value, tuple) else value for name, value in state._asdict().items()}


def unpack(template: S, packed: Mapping[str, Any]) -> S:
    """The state that `pack` wrote, in the shape of `template` (the same controller's `init()`); ValueError where the fields differ."""
    old: dict[str, Any] = template._asdict()  # type: ignore[attr-defined]
    if not isinstance(packed, Mapping) or set(packed) != set(old):
        raise ValueError(f"state={packed!r}; legal: the fields {', '.join(old)} of {type(template).__name__}")
    new = {name: unpack(was, packed[name]) if isinstance(was, tuple) else packed[name] for name, was in old.items()}
    if wrong := [name for name, was in old.items() if not isinstance(was, tuple) and not isinstance(new[name], Real)]:
        raise ValueError(f"state: {wrong[0]}={new[wrong[0]]!r}; legal: a number")
    return type(template)(**new)
