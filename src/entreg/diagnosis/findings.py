"""Findings: what a rule has to say, and the thresholds that all rules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from entreg.diagnosis.advice import advice
from entreg.diagnosis.traces import Trace
from entreg.finding import Finding, Severity

ENOUGH = 10  # values a column needs before a rule speaks of its course
LOW, HIGH = 0.05, 0.9  # shares of the maximum below and above which a policy has collapsed or has not begun to choose
NEAR_BEST = 0.05  # of the range of rewards: what is nearer to the best than that is noise


Rule: TypeAlias = Callable[[Trace], Finding | None]


def found(trace: Trace, rule: str, severity: Severity, step: float, evidence: str) -> Finding:
    """A finding about a trace, with the advice for its host."""
    facts = trace.facts
    return Finding(rule, severity, int(step), evidence, advice(rule, facts.host, facts.setting), trace.member, trace.source)


def enough(trace: Trace, *names: str) -> bool:
    """Whether these columns have values enough to speak of their course."""
    return all(name in trace and len(trace.columns[name].value) >= ENOUGH for name in names)


def reward_range(trace: Trace) -> tuple[float, float]:
    """The lowest and the best reward known: of the trace, of other members of its run, of what the caller knows."""
    value = trace.columns["reward"].value
    worst, best = trace.facts.worst, trace.facts.best
    low, high = float(value.min()), float(value.max())
    return min(low, low if worst is None else worst), max(high, high if best is None else best)


def below_best(trace: Trace) -> bool:
    """Whether the reward ended below the best known by more than noise."""
    low, best = reward_range(trace)
    return trace.mean("reward", 0.95) < best - NEAR_BEST * (best - low)


def no_better(trace: Trace) -> bool:
    """Whether the reward ended no better than it began: above the mean of the first tenth by less than a tenth of its range, or by its noise."""
    low, best = reward_range(trace)
    early = trace.span("reward", 0.0, 0.1).value
    return trace.mean("reward", 0.9) <= float(early.mean()) + max(0.1 * (best - low), float(early.std()))


def flat(trace: Trace, name: str, low: float, high: float, share: float) -> bool:
    """Whether a column's halves of a span differ by less than a share of its range over the whole trace."""
    middle = (low + high) / 2
    value = trace.columns[name].value
    width = float(value.max() - value.min())
    if name == "reward":
        worst, best = reward_range(trace)
        width = best - worst
    return abs(trace.mean(name, middle, high) - trace.mean(name, low, middle)) <= share * width


def onset(held: list[bool]) -> int:
    """Where something begins that holds from then on four times in five; the last place where it never does.

    >>> onset([True, False, False, False, True, True, False, True, True, True])
    4
    """
    so_far = 0
    first = len(held) - 1
    for index in range(len(held) - 1, -1, -1):
        so_far += held[index]
        if held[index] and so_far >= 0.8 * (len(held) - index):
            first = index
    return first
