"""Schedules: an entropy coefficient, or an entropy target, as a function of the number of controller steps taken. Standard library only.

A schedule is a frozen dataclass with `at(step) -> float`, and so a controller (control.py) whose whole state is a step count. Its levels are coefficients where
it is the controller itself, and nats or a `Target` (targets.py) where it is the target of a feedback rule. `steps` None is open: the length of the run.
The checks of arguments that controllers and targets share stand here too: each returns the clean value or raises a ValueError that names the argument, the
value got and what is legal.
"""

from __future__ import annotations

import abc
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar, NamedTuple, TypeAlias

__all__ = ["constant", "cosine", "exponential", "linear", "piecewise"]

OPEN = ("steps", "lr", "init_coef")  # None under these names means open; under any other name None has a meaning of its own


class Target(abc.ABC):
    """An entropy wanted by name: `nats(size)` turns it into a number once `resolve` knows the size it `needs`."""

    needs: ClassVar[str]

    @abc.abstractmethod
    def nats(self, size: float) -> float: ...


class Clock(NamedTuple):
    """The state of a schedule: controller steps taken."""

    step: int


class Schedule(abc.ABC):
    """Open loop: counts steps and reads nothing."""

    @abc.abstractmethod
    def at(self, step: int) -> float: ...

    def init(self) -> Clock:
        check_closed(self)
        return Clock(0)

    def update(self, state: Clock, seen: object) -> Clock:
        return Clock(state.step + 1)

    def coef(self, state: Clock) -> float:
        return self.at(state.step)


Level: TypeAlias = float | Target | Schedule
Check: TypeAlias = Callable[[str, Any], Any]


def number(where: str, value: Any, legal: str = "a finite number", fits: Callable[[float], bool] = math.isfinite) -> float:
    """The value as a float, where it is a finite number that fits."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            got = float(value)
        except OverflowError:  # an integer beyond the floats
            got = math.inf
        if math.isfinite(got) and fits(got):
            return got
    raise ValueError(f"{where}={value!r}; legal: {legal}")


def positive(where: str, value: Any) -> float:
    return number(where, value, "a number > 0", lambda x: x > 0)


def not_negative(where: str, value: Any) -> float:
    return number(where, value, "a number >= 0", lambda x: x >= 0)


def count(where: str, value: Any) -> int:
    return int(number(where, value, "a whole number >= 1", lambda x: x >= 1 and x == int(x)))


def value_or_target(where: str, value: Any) -> float | Target:
    return value if isinstance(value, Target) else number(where, value, "a finite number or a target such as fraction_of_max(0.5)")


def level(where: str, value: Any) -> Level:
    if isinstance(value, constant):  # the same thing as its value, and spelled so
        return value.value
    return value if isinstance(value, Schedule) else value_or_target(where, value)


def bounds(where: str, value: Any) -> tuple[float, float]:
    legal = "two finite numbers (low, high), low < high"
    pair = value if isinstance(value, (tuple, list)) and len(value) == 2 else (None, None)
    low, high = (number(where, bound if isinstance(bound, Real) else value, legal) for bound in pair)
    if low >= high:
        raise ValueError(f"{where}={value!r}; legal: {legal}")
    return low, high


def positive_bounds(where: str, value: Any) -> tuple[float, float]:
    low, high = bounds(where, value)
    return positive(f"{where}[0]", low), high


def inside(where: str, value: float | None, limits: tuple[float, float]) -> None:
    if value is not None and not limits[0] <= value <= limits[1]:
        raise ValueError(f"{where}={value!r}; legal: a number within the bounds {limits}")


def maybe(check: Check) -> Check:
    """The same check, or None."""
    return lambda where, value: None if value is None else check(where, value)


def fix(self: object, **checks: Check) -> None:
    """Checks and normalises fields of a frozen dataclass in its `__post_init__`: `fix(self, lr=positive)`."""
    for name, check in checks.items():
        object.__setattr__(self, name, check(f"{type(self).__name__}: {name}", getattr(self, name)))


def _holes(value: Any) -> list[str]:
    """The open fields inside a controller, as `steps` or `fraction_of_max(f=0.5) (needs max_entropy)`."""
    if isinstance(value, Target):
        return [f"{value!r} (needs {value.needs})"]
    if isinstance(value, tuple):
        return [hole for item in value for hole in _holes(item)]
    if not is_dataclass(value):
        return []
    pairs = [(field.name, getattr(value, field.name)) for field in fields(value)]
    return [hole for name, item in pairs for hole in ([name] if item is None and name in OPEN else _holes(item))]


def check_closed(controller: object) -> None:
    """What every `init()` begins with: nothing inside the controller may be open any more."""
    if holes := _holes(controller):
        raise ValueError(f"{type(controller).__name__}: open: {', '.join(holes)}; legal: numbers, given here or filled in by targets.resolve")


def level_at(level: Level, step: int) -> float:
    if isinstance(level, Schedule):
        return level.at(step)
    return number("target", level, "a number of nats; targets.resolve fills in a named one")


@dataclass(frozen=True)
class constant(Schedule):
    """The same value at every step.

    >>> constant(0.01).at(1000)
    0.01
    """

    value: float | Target

    def __post_init__(self) -> None:
        fix(self, value=value_or_target)

    def at(self, step: int) -> float:
        return level_at(self.value, step)


@dataclass(frozen=True)
class linear(Schedule):
    """From start to end in a straight line over `steps` controller steps (None: the length of the run), then end.

    >>> [linear(1.0, 0.0, steps=4).at(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """

    start: float | Target
    end: float | Target
    steps: int | None = None

    def __post_init__(self) -> None:
        fix(self, start=value_or_target, end=value_or_target, steps=maybe(count))

    def at(self, step: int) -> float:
        done = min(step / count("linear: steps", self.steps), 1.0)
        return level_at(self.start, step) * (1.0 - done) + level_at(self.end, step) * done


@dataclass(frozen=True)
class exponential(Schedule):
    """Halves the distance to `floor` every `half_life` controller steps.

    >>> [exponential(1.0, 10, floor=0.5).at(step) for step in (0, 10, 10_000)]
    [1.0, 0.75, 0.5]
    """

    start: float
    half_life: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        fix(self, start=number, half_life=positive, floor=number)
        if self.start < self.floor:
            raise ValueError(f"exponential: floor={self.floor!r}; legal: a number <= start={self.start!r}")

    def at(self, step: int) -> float:
        return self.floor + (self.start - self.floor) * math.pow(2.0, -step / self.half_life)


@dataclass(frozen=True)
class cosine(Schedule):
    """From 0 to start in a line over `warmup` steps, then half a cosine to end, reached at `steps` (None: the length of the run).

    >>> [round(cosine(1.0, 0.0, steps=12, warmup=2).at(step), 3) for step in (0, 1, 2, 7, 12, 99)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]

    Source: Loshchilov & Hutter 2017 (SGDR), equation 5, one period; the warm-up is the field's.
    """

    start: float | Target
    end: float | Target
    steps: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        fix(self, start=value_or_target, end=value_or_target, steps=maybe(count))
        fits = f"a whole number >= 0{'' if self.steps is None else f' and < steps={self.steps}'}"
        limit = math.inf if self.steps is None else self.steps
        fix(self, warmup=lambda where, value: int(number(where, value, fits, lambda x: 0 <= x < limit and x == int(x))))

    def at(self, step: int) -> float:
        if step < self.warmup:
            return level_at(self.start, step) * step / self.warmup
        done = min((step - self.warmup) / (count("cosine: steps", self.steps) - self.warmup), 1.0)
        left = (1.0 + math.cos(math.pi * done)) / 2.0
        return level_at(self.start, step) * left + level_at(self.end, step) * (1.0 - left)


@dataclass(frozen=True)
class piecewise(Schedule):
    """Straight lines through points ((step, value), ...), level before the first and after the last.

    >>> [piecewise([(0, 1.0), (10, 0.5), (20, 0.0)]).at(step) for step in (0, 5, 15, 30)]
    [1.0, 0.75, 0.25, 0.0]
    """

    points: tuple[tuple[float, float | Target], ...]

    def __post_init__(self) -> None:
        fault = ValueError(f"piecewise: points={self.points!r}; legal: ((step, value), ...) with growing steps >= 0, at least one")
        pairs = self.points if isinstance(self.points, (tuple, list)) else ()
        if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise fault
        clean = tuple((not_negative("piecewise: points: step", step), value_or_target("piecewise: points: value", value)) for step, value in pairs)
        if any(after[0] <= before[0] for before, after in pairwise(clean)):
            raise fault
        object.__setattr__(self, "points", clean)

    def at(self, step: int) -> float:
        after = bisect_right([point[0] for point in self.points], step)
        if after in (0, len(self.points)):
            return level_at(self.points[max(after - 1, 0)][1], step)
        (x0, y0), (x1, y1) = self.points[after - 1], self.points[after]
        done = (step - x0) / (x1 - x0)
        return level_at(y0, step) * (1.0 - done) + level_at(y1, step) * done
