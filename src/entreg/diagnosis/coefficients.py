"""Rules about the coefficient: controllers that cannot reach their target, swing or run away, and schedules that do not end."""

from __future__ import annotations

import math

import numpy as np

from entreg.diagnosis.findings import enough, found, onset
from entreg.diagnosis.policies import uncommitted
from entreg.diagnosis.traces import Array, Column, Trace, percent, shown, slope, with_gap
from entreg.finding import Finding, Severity

ALWAYS = 0.9  # share of the values that makes "all the time" of noisy ones
SWINGS = 4  # crossings of the target, each to beyond the tolerance, from which a controller oscillates


def tolerance(trace: Trace) -> float:
    """How far from the target is off target, nats: a tenth of it, and never under .02."""
    target = abs(trace.mean("target")) if "target" in trace else 0.0
    return max(0.1 * target, 0.02)


def _words(trace: Trace, low: float) -> str:
    """The gap over the end of the trace, in words."""
    gap = trace.mean("gap", low)
    if "target" not in trace:
        return f"entropy is {shown(abs(gap))} nats {'above' if gap > 0 else 'below'} its target"
    return f"entropy {shown(trace.mean('target', low) + gap)} is {'above' if gap > 0 else 'below'} its target {shown(trace.mean('target', low))}"


def saturated(trace: Trace) -> Finding | None:
    """The entropy stays off its target while the coefficient lies at a bound (a saturated controller) or rises in vain (a target out of reach)."""
    trace = with_gap(trace)
    if not enough(trace, "coef", "gap"):
        return None
    gap = trace.span("gap", 0.8).value
    if max(float((gap < 0).mean()), float((gap > 0).mean())) < ALWAYS or abs(float(gap.mean())) <= tolerance(trace):
        return None
    return _at_bound(trace, float(gap.mean())) or _out_of_reach(trace)


def _at_bound(trace: Trace, gap: float) -> Finding | None:
    bounds = trace.facts.bounds
    step, coef = trace.columns["coef"]
    bound = bounds[1 if gap < 0 else 0] if bounds else _resting(trace)
    if bound is None or (gap > 0 and abs(bound) < 1e-6):  # with the bonus off, more entropy than was asked for is no fault
        return None
    at = np.abs(coef - bound) <= 1e-3 * abs(bound) + 1e-12
    if at[step >= trace.first + 0.8 * (trace.last - trace.first)].mean() < ALWAYS:
        return None
    since = step[onset(at.tolist())]
    kind = "its bound" if bounds else "rest"
    return found(trace, "saturated", "fail", since, f"the coefficient is at {kind} {shown(bound)} since step {shown(float(since))}, and {_words(trace, 0.8)}")


def _out_of_reach(trace: Trace) -> Finding | None:
    """The entropy is below its target over the whole last half and does not come nearer, though the coefficient grew by 30 % or more."""
    late = trace.span("gap", 0.5)
    before, now = trace.mean("coef", 0.45, 0.55), trace.mean("coef", 0.95)
    if (late.value < 0).mean() < ALWAYS or trace.mean("gap", 0.75) > 0.85 * trace.mean("gap", 0.5, 0.75) or before <= 0 or now < 1.3 * before:
        return None
    grew = f"the coefficient grew from {shown(before)} to {shown(now)} in the last half"
    return found(trace, "saturated", "fail", late.step[0], f"{grew}, {_words(trace, 0.5)} and comes no nearer")


def _resting(trace: Trace) -> float | None:
    """Where a coefficient that moved before did not move over the last fifth, at its highest."""
    coef = trace.columns["coef"].value
    late = trace.span("coef", 0.8).value
    still = late.max() - late.min() <= 1e-6 * abs(late.max())
    return float(late[-1]) if still and coef.max() - coef.min() > 0.1 * abs(coef.max()) and late[-1] >= coef.max() * (1 - 1e-6) else None


def turns(value: Array, off: float) -> list[int]:
    """Where values cross from beyond one side of a tolerance around 0 to beyond the other.

    >>> turns(np.array([1.0, 0.1, -1.0, -2.0, 0.3, 2.0]), 0.5)
    [2, 5]
    """
    side, result = 0, []
    for index in np.flatnonzero(np.abs(value) > off):
        now = 1 if value[index] > 0 else -1
        if side and now != side:
            result.append(int(index))
        side = now
    return result


def oscillating(trace: Trace) -> Finding | None:
    """The entropy swings about its target, to beyond the tolerance on both sides at least four times in the last two thirds, and does not calm down."""
    trace = with_gap(trace)
    if not enough(trace, "coef", "gap"):
        return None
    step, gap = trace.span("gap", 0.33)
    at = turns(gap, tolerance(trace))
    if len(at) < SWINGS or at[-1] < 0.6 * len(gap):
        return None
    half = len(gap) // 2
    if float(gap[half:].std()) < 0.4 * float(gap[:half].std()):
        return None
    coef = trace.span("coef", 0.33).value
    if coef.max() - coef.min() <= 0.2 * float(np.abs(coef).mean()):
        return None
    swing = f"the coefficient between {shown(float(coef.min()))} and {shown(float(coef.max()))}"
    about = f"its target {shown(trace.mean('target', 0.33))}" if "target" in trace else "its target"
    return found(trace, "oscillating", "warn", step[at[0]], f"entropy crossed {about} {len(at)} times by more than {shown(tolerance(trace))} nats, {swing}")


def runaway(trace: Trace) -> Finding | None:
    """The coefficient grew thirtyfold, still grows at the end, and the entropy is below its target all the time; without a target: whatever entropy does."""
    trace = with_gap(trace)
    if not enough(trace, "coef"):
        return None
    step, coef = trace.columns["coef"]
    late = trace.span("coef", 0.7)
    early = max(float(np.median(trace.span("coef", 0.0, 0.1).value)), 1e-4)
    if late.value.min() <= 0 or late.value[-1] < 30 * early or late.value[-1] < 0.99 * coef.max():
        return None
    growth = slope(Column(late.step, np.log(late.value))) * float(late.step[-1] - late.step[0])
    if growth < math.log(1.1) or ("gap" in trace and (trace.span("gap", 0.7).value < 0).mean() < ALWAYS):
        return None
    reason = f", and {_words(trace, 0.7)}" if "gap" in trace else ""
    since = step[onset((coef > 10 * early).tolist())]
    grew = f"the coefficient grew from {shown(early)} to {shown(float(coef[-1]))}, by {percent(math.expm1(growth))} in the last 30 % of the log"
    return found(trace, "runaway", "fail", since, f"{grew}{reason}")


def schedule(trace: Trace) -> Finding | None:
    """A falling coefficient has not arrived when the run ends, or it arrived at a floor at which the policy cannot commit."""
    if not enough(trace, "coef") or "gap" in trace or "target" in trace:
        return None
    coef = trace.columns["coef"].value
    start = float(coef[: max(1, len(coef) // 20)].max())
    if start <= 0 or np.any(np.diff(coef) > 1e-3 * start) or coef[-1] > 0.97 * start:
        return None
    late = trace.span("coef", 0.67)
    moving = late.value[0] - late.value[-1] > 1e-3 * start
    return _late_end(trace, start, late) if moving else _floor(trace, start, float(coef[-1]))


def _late_end(trace: Trace, start: float, late: Column) -> Finding | None:
    """Where a line through the recent coefficients is at the planned end."""
    if trace.facts.planned is None and trace.facts.finished is False:
        return None
    end = trace.facts.planned or trace.last
    rate = slope(late)
    left = float(late.value[-1]) + rate * max(0.0, end - trace.last)
    if left < 0.25 * start or trace.done < 0.2:
        return None
    meets = trace.last - float(late.value[-1]) / rate
    when = f"it meets 0 at about step {shown(round(meets))}, the run ends at {shown(end)} with {percent(left / start)} of it left"
    severity: Severity = "warn" if trace.facts.planned or trace.facts.finished else "info"
    return found(trace, "schedule", severity, trace.last, f"the coefficient falls from {shown(start)} by {shown(abs(rate))} a step: {when}")


def _floor(trace: Trace, start: float, floor: float) -> Finding | None:
    if floor <= 0 or trace.done < 0.6 or not enough(trace, "reward"):
        return None
    held = uncommitted(trace)
    if held is None:
        return None
    return found(trace, "schedule", "warn", trace.last, f"the coefficient fell from {shown(start)} to a floor of {shown(floor)} and stays there; {held}")
