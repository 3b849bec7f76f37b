"""Traces: what rules look at. One member of one run: a few columns of numbers over steps, and what else is known of the run.

Names: `entropy` (Shannon, nats), `share` (of the largest entropy there is), `reward` (more is better), `greedy` (reward of the most probable actions), `coef`,
`target` (nats), `regularised` (the entropy that the controller sees, nats), `gap` (that minus target), `grad_share` (the bonus's share of the gradient),
`classes` (perplexity of the mean prediction over that of the prior), `marginal` (entropy of the mean prediction, nats). Values are finite and ordered by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LANGUAGE = ("trl", "verl")  # hosts whose policies are language models
LEAST = 3  # values that a window has at least


class Column(NamedTuple):
    """Values over steps, `[T]` each."""

    step: Array
    value: Array


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its columns; None: not known."""

    host: str = ""
    planned: float | None = None  # steps that the run should have
    finished: bool | None = None  # whether no more records will come
    controller: str | None = None  # its spelling
    bounds: tuple[float, float] | None = None  # of the coefficient
    maximum: float | None = None  # of the entropy, nats
    best: float | None = None  # reward that is known to be possible
    worst: float | None = None  # the lowest reward of any member
    setting: Mapping[str, str] = field(default_factory=dict)  # what the host calls its settings, where it differs from run to run


@dataclass(frozen=True)
class Trace:
    """One member of one run."""

    columns: Mapping[str, Column]
    facts: Facts = Facts()
    member: int = 0
    source: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.columns and len(self.columns[name].value) >= LEAST

    @property
    def first(self) -> float:
        """The first step of any column."""
        return min(float(column.step[0]) for column in self.columns.values() if len(column.step))

    @property
    def last(self) -> float:
        """The last step of any column."""
        return max(float(column.step[-1]) for column in self.columns.values() if len(column.step))

    @property
    def done(self) -> float:
        """The share of the planned steps that lies behind; 1 where no plan is known."""
        planned = self.facts.planned
        return min(1.0, self.last / planned) if planned else 1.0

    def span(self, name: str, low: float = 0.0, high: float = 1.0) -> Column:
        """The part of a column between two fractions of the trace's steps, widened to `LEAST` values."""
        step, value = self.columns[name]
        first, length = self.first, self.last - self.first
        start, end = (int(at) for at in np.searchsorted(step, [first + low * length - 1e-9, first + high * length + 1e-9]))
        missing = max(0, LEAST - (end - start))
        start = max(0, start - (missing + 1) // 2)
        end = min(len(step), max(end, start + LEAST))
        start = max(0, min(start, end - LEAST))
        return Column(step[start:end], value[start:end])

    def mean(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """The mean value of `span`."""
        return float(self.span(name, low, high).value.mean())

    def at(self, name: str, step: float) -> float:
        """The value at a step, on the line between its neighbours."""
        return float(np.interp(step, *self.columns[name]))

    def joint(self, one: str, other: str) -> tuple[Array, Array, Array]:
        """Steps and values of the column `one`, with `other` at the same steps where both have values."""
        step, value = self.columns[one]
        there = self.columns[other]
        inside = (step >= there.step[0]) & (step <= there.step[-1])
        return step[inside], value[inside], np.interp(step[inside], *there)


class Scale(NamedTuple):
    """Entropy as a share of a reference: the maximum, or the highest seen where none is known; `words` say which."""

    column: Column
    known: bool
    words: str


def scale(trace: Trace) -> Scale | None:
    """Shares of the maximum; of the highest entropy seen where no maximum is known; None for a density (an entropy below 0), which has no such share.

    Where entropy begins within half a percent of log n, n up to 20, that is taken as the maximum: policies with n actions begin so (not language models).

    >>> trace = Trace({"entropy": Column(np.arange(4.0), np.array([0.5, 1.0, 0.5, 0.2]))})
    >>> scale(trace).column.value.tolist(), scale(trace).words
    ([0.5, 1.0, 0.5, 0.2], 'of the highest seen')
    >>> scale(Trace({"entropy": Column(np.arange(4.0), np.array([0.692, 0.6, 0.5, 0.2]))})).words
    'of log 2, where it began'
    """
    if "share" in trace:
        return Scale(trace.columns["share"], True, "of its maximum")
    if "entropy" not in trace:
        return None
    step, value = trace.columns["entropy"]
    if trace.facts.maximum is not None:
        return Scale(Column(step, value / trace.facts.maximum), True, "of its maximum")
    if value.min() < 0 or value.max() <= 0:
        return None
    actions = round(math.exp(min(float(value[0]), 10.0)))
    if 2 <= actions <= 20 and abs(value[0] / math.log(actions) - 1) < 0.005 and value.max() < 1.005 * math.log(actions) and trace.facts.host not in LANGUAGE:
        return Scale(Column(step, value / math.log(actions)), True, f"of log {actions}, where it began")
    return Scale(Column(step, value / value.max()), False, "of the highest seen")


def with_scale(trace: Trace) -> tuple[Trace, Scale] | None:
    """The trace with its `share` filled in, and what that is a share of."""
    found = scale(trace)
    if found is None:
        return None
    return Trace({**trace.columns, "share": found.column}, trace.facts, trace.member, trace.source), found


def with_gap(trace: Trace) -> Trace:
    """The trace with `gap` filled in from the entropy that the controller sees and its target, where it has them."""
    seen = "regularised" if "regularised" in trace else "entropy"
    if "gap" in trace or "target" not in trace or seen not in trace:
        return trace
    step, entropy, target = trace.joint(seen, "target")
    return Trace({**trace.columns, "gap": Column(step, entropy - target)}, trace.facts, trace.member, trace.source)


def together(traces: Sequence[Trace]) -> list[Trace]:
    """Members of one run: what the best and the worst of them had as reward, all of them know."""
    values = [trace.columns["reward"].value for trace in traces if "reward" in trace]
    if not values:
        return list(traces)
    best, worst = max(float(value.max()) for value in values), min(float(value.min()) for value in values)
    result = []
    for trace in traces:
        known = trace.facts.best
        facts = Facts(**{**vars(trace.facts), "best": best if known is None else max(best, known), "worst": worst})
        result.append(Trace(trace.columns, facts, trace.member, trace.source))
    return result


def slope(column: Column) -> float:
    """The slope of the least-squares line, a step.

    >>> slope(Column(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])))
    2.0
    """
    step = column.step - column.step.mean()
    square = float((step * step).sum())
    return float((step * (column.value - column.value.mean())).sum()) / square if square > 0 else 0.0


def shown(value: float) -> str:
    """A number as evidence shows it.

    >>> shown(0.012345), shown(65536.0), shown(59999.5), shown(3.2e-7), shown(-0.0)
    ('0.0123', '65536', '60000', '3.2e-07', '0')
    """
    if abs(value) < 1e7 and (value == int(value) or abs(value) >= 1000):
        return str(round(value))
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def percent(share: float) -> str:
    """A share in percent.

    >>> percent(0.0312), percent(0.5)
    ('3.1 %', '50 %')
    """
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.3g} %"
