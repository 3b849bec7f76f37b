"""Which setting is best, and whether that is more than luck.

A setting's score is the interquartile mean over its seeds with its bootstrap interval. The best is compared with every other setting by the
interquartile mean of the differences on common seeds, all comparisons together at 95 % (Bonferroni). Below five seeds nothing is said to differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from entreg import statistics
from entreg.statistics import DECIDABLE, Interval
from entreg.sweep.plan import Plan, Setting

LEVEL, RESAMPLES = 0.95, 4000
LISTED = 6  # settings by name in a sentence


class Cell(NamedTuple):
    """One setting: scores and last entropies by seed; `interval` is that of the interquartile mean."""

    setting: Setting
    scores: dict[int, float]
    entropies: dict[int, float]
    interval: Interval
    classes: int | None
    pruned: bool


class Choice(NamedTuple):
    """The best setting, and those whose difference to it may be chance (`rivals`) or cannot be judged (`unknown`)."""

    best: Cell
    rivals: list[Cell]
    unknown: list[Cell]
    lines: list[tuple[str, str]]


def cells(results: Mapping[Setting, Sequence[Mapping[str, Any]]]) -> list[Cell]:
    """The settings that have scores, from the results of their trials."""
    found = []
    for setting, of in results.items():
        scores = {int(seed): float(score) for one in of for seed, score in one["scores"].items()}
        entropies = {int(seed): float(value) for one in of for seed, value in one["entropies"].items() if value is not None}
        if scores:
            found.append(Cell(setting, scores, entropies, interval(list(scores.values())), of[0]["classes"], any(one["pruned"] for one in of)))
    return found


def interval(scores: Sequence[float], level: float = LEVEL) -> Interval:
    """The interquartile mean of one setting's scores, its seeds one stratum.

    >>> found = interval([480.0, 500.0, 470.0, 495.0, 490.0])
    >>> round(float(found.value), 1), bool(found.low < found.value < found.high)
    (488.3, True)
    """
    return statistics.iqm_interval([[score] for score in scores], level=level, resamples=RESAMPLES)


def choose(given: Sequence[Cell], plan: Plan) -> Choice | None:
    """The best setting among those whose runs were all trained to their end, with what may be said of it; None where there is none."""
    whole = [cell for cell in given if not cell.pruned and len(cell.scores) == plan.seeds] or [cell for cell in given if not cell.pruned]
    if not whole:
        return None
    best = max(whole, key=lambda cell: plan.sense * float(cell.interval.value))
    others = [cell for cell in whole if cell is not best]
    level = 1 - (1 - LEVEL) / max(1, len(others))
    said = {id(cell): verdict(best, cell, plan.sense, level) for cell in others}
    rivals = [cell for cell in others if said[id(cell)] in ("undecided", "worse")]
    unknown = [cell for cell in others if said[id(cell)] == "too few"]
    lines = [_best(best, plan, len(given)), *_significance(best, rivals, unknown, others)]
    pruned = sum(cell.pruned for cell in given)
    lines += [("plain", f"{pruned} of {len(given)} settings were pruned and are not in the choice.")] if pruned else []
    return Choice(best, rivals, unknown, lines)


def verdict(best: Cell, other: Cell, sense: int, level: float) -> str:
    """Whether `best` is better than `other` on their common seeds: better, worse, undecided or too few (seeds)."""
    common = sorted(best.scores.keys() & other.scores.keys())
    if len(common) < DECIDABLE:
        return "too few"
    gap = interval([sense * (best.scores[seed] - other.scores[seed]) for seed in common], level)
    return {"higher": "better", "lower": "worse"}.get(statistics.verdict(gap), "undecided")


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def _best(best: Cell, plan: Plan, count: int) -> tuple[str, str]:
    value, low, high = (number(float(end)) for end in best.interval[:3])
    n = best.interval.n
    how = "one seed: no interval" if n == 1 else f"95 % interval {low} to {high}, {n} seeds" if n >= DECIDABLE else f"{n} seeds, between {low} and {high}"
    return "plain", f"Best of {count} settings by {plan.metric}: {best.setting.name}, interquartile mean {value} ({how})."


def _significance(best: Cell, rivals: Sequence[Cell], unknown: Sequence[Cell], others: Sequence[Cell]) -> list[tuple[str, str]]:
    """Whether the choice means something, in plain words."""
    if not others:
        return [("plain", "There is no other finished setting to compare it with.")]
    if unknown:
        return [("bad", f"No verdict: the differences between settings may be chance. A verdict needs {DECIDABLE} seeds that both settings have.")]
    if not rivals:
        return [("good", f"Significant: better than every other setting ({len(others)} comparisons on common seeds, together at 95 %).")]
    names = "; ".join(cell.setting.name for cell in rivals[:LISTED]) + ("; ..." if len(rivals) > LISTED else "")
    lines = [
        (
            "bad",
            f"Not significant: its difference to {len(rivals)} of the {len(others)} other settings may be chance "
            f"({names}; {len(others)} comparisons on common seeds, together at 95 %).",
        )
    ]
    if not best.setting.without and any(cell.setting.without for cell in rivals):
        lines.append(("bad", "Coefficient 0 is among these: the best setting is not shown to be better than no bonus."))
    return lines
