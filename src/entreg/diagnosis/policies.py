"""Rules about the policy: has it lost its entropy, is it losing it, has it too much of it, does the bonus do anything."""

from __future__ import annotations

import math

import numpy as np

from entreg.diagnosis.findings import HIGH, LOW, below_best, enough, flat, found, no_better, onset, reward_range
from entreg.diagnosis.traces import Column, Trace, percent, shown, slope, with_gap, with_scale
from entreg.finding import Finding, Severity

NO_EFFECT = 0.01  # share of the gradient below which a bonus does nothing that could be seen
UNMOVED = 0.95  # of the maximum: a policy that stays above it has not begun to choose
STILL = 0.03  # of the maximum: an entropy whose last two quarters differ by less stands still
PULLS = 0.02  # share of the gradient from which a bonus can be what keeps a policy from committing
HOLDS = 0.1  # share of the gradient above which a bonus holds the policy where it is (PPO on CartPole: .03 at coefficient .1, .2 at 1)
ALMOST = 0.02  # one class alone is half of two
SOON = 0.5  # how far beyond the log, as a share of it, an extrapolation may go: healthy Acrobot falls in the middle of a run as a collapse does


def collapsed(trace: Trace) -> Finding | None:
    """Entropy ended below 5 % while the reward is below the best known, no better than at the start, or was for the most part earned after the fall."""
    scaled = with_scale(trace) if enough(trace, "entropy") or enough(trace, "share") else None
    if scaled is None:
        return None
    trace, scale = scaled
    step, share = scale.column
    low = trace.mean("share", 0.95)
    if low >= LOW:
        return None
    since = float(step[onset((share < LOW).tolist())])
    severity, why = _unexcused(trace, since)
    if why is None:
        return None
    fell = f"entropy {percent(low)} {scale.words}, under {percent(LOW)} since step {shown(since)}"
    return found(trace, "collapsed", severity, since, fell + why)


def _unexcused(trace: Trace, since: float) -> tuple[Severity, str | None]:
    """Why a low entropy is a fault, in words: a policy that is done has the best reward there is, and earned it before."""
    if "reward" not in trace:
        return "warn", "; the log has no reward that could excuse it"
    late = shown(trace.mean("reward", 0.95))
    if no_better(trace):
        return "fail", f", and the reward {late} is no better than at the start"
    if below_best(trace):
        return "fail", f", while the reward {late} is below the best known, {shown(reward_range(trace)[1])}"
    earned = _earned(trace, since)
    return "warn", None if earned is None else f", when only {percent(earned)} of what the reward gained had been earned"


def _earned(trace: Trace, since: float) -> float | None:
    """The share of the reward's gain that was earned when entropy had fallen, in the first half of the log; None where it was half of it or more."""
    early, late = trace.mean("reward", 0.0, 0.05), trace.mean("reward", 0.95)
    earned = (trace.at("reward", since) - early) / (late - early) if late > early else 1.0
    return max(earned, 0.0) if earned < 0.5 and since - trace.first < 0.5 * (trace.last - trace.first) else None


def collapsing(trace: Trace) -> Finding | None:
    """Entropy still above 5 % falls so fast that it will be below before the end, while the reward does not rise: a line through the logarithm of the share."""
    scaled = with_scale(trace) if enough(trace, "entropy") or enough(trace, "share") else None
    if scaled is None or trace.facts.finished:
        return None
    trace, scale = scaled
    recent = trace.span("share", 0.6)
    now = trace.mean("share", 0.9)
    if not LOW <= now < 0.6 or len(recent.value) < 5:
        return None
    fall = slope(Column(recent.step, np.log(np.maximum(recent.value, 1e-12))))
    if fall >= 0 or slope(Column(*trace.span("share", 0.8))) >= 0:
        return None
    meets = trace.last + (math.log(LOW) - math.log(now)) / fall
    end = min(trace.facts.planned or math.inf, trace.last + SOON * (trace.last - trace.first))
    if meets >= end or ("reward" in trace and not _stands_still(trace)):
        return None
    when = (
        f"falls by {percent(-math.expm1(fall * (trace.last - trace.first) / 10))} each tenth of the log and meets {percent(LOW)} at about step {shown(meets)}"
    )
    reward = " while the reward does not rise" if "reward" in trace else ""
    return found(trace, "collapsing", "warn", trace.last, f"entropy is at {percent(now)} {scale.words}, {when}{reward}")


def _stands_still(trace: Trace) -> bool:
    """Whether the reward of the last 40 % rises by less than a tenth of its range."""
    low, best = reward_range(trace)
    return no_better(trace) or trace.mean("reward", 0.8) - trace.mean("reward", 0.6, 0.8) < 0.1 * (best - low) / 2


def exploded(trace: Trace) -> Finding | None:
    """Entropy stays near its maximum, or where none is known doubles, while the reward stays where it began: the coefficient is too large."""
    if trace.done < 0.3 or not enough(trace, "reward") or not (enough(trace, "entropy") or enough(trace, "share")):
        return None
    weak = "grad_share" in trace and trace.mean("grad_share", 0.3) < HOLDS
    off = "coef" in trace and trace.mean("coef", 0.3) <= 0
    scaled = with_scale(trace)
    if weak or off or scaled is None:
        return None
    trace, scale = scaled
    early, late = trace.mean("share", 0.0, 0.1), trace.mean("share", 0.5)
    if scale.known and late > HIGH:
        what = f"entropy is {percent(late)} {scale.words}"
    elif not scale.known and min(late, trace.mean("share", 0.9)) > 2 * early:
        what = f"entropy rose from {shown(trace.mean('entropy', 0.0, 0.1))} to {shown(trace.mean('entropy', 0.9))} nats"
    else:
        return None
    why = _unearned(trace, scale.known and late > UNMOVED)
    if why is None:
        return None
    strong = f", the bonus has {percent(trace.mean('grad_share', 0.3))} of the gradient" if "grad_share" in trace else ""
    return found(trace, "exploded", "fail" if strong or not scale.known else "warn", trace.last, f"{what}{strong}, and the reward {why}")


def _unearned(trace: Trace, unmoved: bool) -> str | None:
    """What the reward lacks, in words: any gain, most of what the most probable actions earn, or (of a policy that is `unmoved`) half of what it began with."""
    early, now = trace.mean("reward", 0.0, 0.1), trace.mean("reward", 0.9)
    if no_better(trace):
        return f"{shown(now)} is no better than at the start, {shown(early)}"
    if "greedy" in trace.columns:
        greedy = float(trace.columns["greedy"].value[-1])
        return f"{shown(now)} is far from what the most probable actions earn, {shown(greedy)}" if now - early < 0.25 * (greedy - early) else None
    return f"{shown(now)} is hardly better than at the start, {shown(early)}" if unmoved and now - early < 0.5 * abs(early) else None


def no_effect(trace: Trace) -> Finding | None:
    """The bonus has less than 1 % of the gradient over the first half of the run, where schedules have not ended yet, though its coefficient is not 0."""
    if not enough(trace, "grad_share") or ("coef" in trace and not np.any(trace.columns["coef"].value)):
        return None
    share = float(np.median(trace.span("grad_share", 0.0, 0.5).value))
    held = with_gap(trace)
    idle = "gap" in held and held.mean("gap", 0.0, 0.5) >= 0  # the rule has nothing to do: entropy is above its target
    if share >= NO_EFFECT or idle or (share == 0 and "coef" not in trace):
        return None
    coef = f" at coefficient {shown(trace.mean('coef', 0.0, 0.5))}" if "coef" in trace else ""
    severity: Severity = "warn" if share < NO_EFFECT / 10 else "info"
    return found(trace, "no_effect", severity, trace.last, f"the bonus has {percent(share)} of the gradient{coef} (median of the first half)")


def constant(trace: Trace) -> bool:
    """Whether the coefficient did not move; where the log has none, whether the run's settings say so."""
    if "coef" in trace:
        value = trace.columns["coef"].value
        return bool(value.max() > 0 and value.max() - value.min() <= 1e-3 * value.max())
    return False


def should_decay(trace: Trace) -> Finding | None:
    """A constant coefficient keeps the policy from committing: entropy and reward stand still, and the bonus holds against the task."""
    if trace.done < 0.6 or not enough(trace, "reward") or not constant(trace):
        return None
    held = uncommitted(trace)
    return None if held is None else found(trace, "should_decay", "warn", trace.last, f"coefficient {shown(trace.mean('coef'))} is constant; {held}")


def uncommitted(trace: Trace) -> str | None:
    """Why a policy does not commit: entropy stands still in between, and the bonus holds it there, or the most probable actions earn more. In words."""
    scaled = with_scale(trace)
    if scaled is None:
        return None
    trace, scale = scaled
    late = trace.mean("share", 0.67)
    moved = abs(trace.mean("share", 0.75) - trace.mean("share", 0.5, 0.75))
    if late < 3 * LOW or moved > STILL or ("grad_share" in trace and trace.mean("grad_share", 0.67) < PULLS):
        return None
    low, best = reward_range(trace)
    now = trace.mean("reward", 0.9)
    strong = f", the bonus has {percent(trace.mean('grad_share', 0.67))} of the gradient" if "grad_share" in trace else ""
    stands = f"entropy stands still at {percent(late)} {scale.words}{strong}"
    still = flat(trace, "reward", 0.67, 1.0, 0.1)
    if "greedy" in trace.columns and (still or strong):
        greedy = float(trace.columns["greedy"].value[-1])
        if greedy - now > 0.1 * (max(best, greedy) - low):
            return f"{stands}, and the most probable actions earn {shown(greedy)} where drawn ones earn {shown(now)}"
    if still and strong and trace.mean("grad_share", 0.67) > HOLDS and below_best(trace):
        return f"{stands}, and the reward stands still at {shown(now)}, below the best, {shown(best)}"
    return None


def marginal_collapse(trace: Trace) -> Finding | None:
    """The mean prediction uses less than half of the classes that it should, at the end: of the prior's, or of the most that it ever used."""
    if "classes" in trace:
        step, share = trace.columns["classes"]
        of = "of the prior's classes"
    elif "marginal" in trace:
        step, marginal = trace.columns["marginal"]
        used = np.exp(marginal)
        share, of = used / max(float(used.max()), 2.0), "of the classes that it has used, two at least"
    else:
        return None
    late = Trace({"classes": Column(step, share)}).mean("classes", 0.9)
    if late >= 0.5 + ALMOST:
        return None
    since = float(step[onset((share < 0.5 + ALMOST).tolist())])
    return found(trace, "marginal_collapse", "fail", since, f"the mean prediction uses {percent(late)} {of}, under half since step {shown(since)}")
