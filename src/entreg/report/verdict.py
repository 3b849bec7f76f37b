"""What a run showed, in plain words: the score reached, against the coefficient-0 twin, whether entropy collapsed, how the run ended.

A score is the last evaluation of each member where all of them were evaluated at the end, else their last training value.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from entreg import statistics
from entreg.folder import COEFS
from entreg.report.data import Data, Group, Series, finite
from entreg.report.markup import duration, number

SCORES = (
    ("return", 1),
    ("answers", 1),
    ("modes", 1),
    ("accuracy", 1),
    ("bits_per_character", -1),
    ("loss", -1),
)  # what a run is judged by, the first that it has; -1: less is better
PLURAL = ("answers", "modes")
COLLAPSED = 0.05  # of the maximum entropy
CLASSES_LOST = 0.5  # of the effective classes of the prior
BELOW_BEST = 0.05  # of the range of scores: less than that below the best is noise
SPELLED_OUT = 3  # comparisons with a sentence each; more are sorted by their verdict, the table has the numbers
FREE = (*COEFS, "family", "sense", "prior")  # settings that play no part where the coefficients are 0
Tone = Literal["good", "bad", "plain"]


class Line(NamedTuple):
    """One sentence of the verdict."""

    tone: Tone
    text: str


class Score(NamedTuple):
    """What members are judged by: the `last` value of each, called `words`; `series` is its course over training."""

    name: str
    words: str
    sense: int
    last: dict[int, float]
    series: Series


def score(data: Data) -> Score | None:
    """The score of this run, None when it has none of `SCORES`."""
    for name, sense in SCORES:
        trained, evaluated = data.series.get(name, {}), data.series.get(f"eval/{name}", {})
        if trained or evaluated:
            judged, words = (evaluated, f"evaluation {name}") if _is_final(evaluated, trained) else (trained, name)
            return Score(name, words.replace("_", " "), sense, {member: float(values[-1]) for member, (_, values) in judged.items()}, trained or evaluated)
    return None


def _is_final(evaluated: Series, trained: Series) -> bool:
    """Whether every member was evaluated at the end of its training, or nearly."""
    return bool(evaluated) and all(member in evaluated and evaluated[member][0][-1] >= 0.95 * steps[-1] for member, (steps, _) in trained.items())


def spread(interval: statistics.Interval) -> str:
    """An interval in words; below `DECIDABLE` seeds only their extremes are known.

    >>> spread(statistics.mean_interval([1.0])), spread(statistics.mean_interval([1.0, 3.0]))
    ('one seed: no interval', '2 seeds, means between 1 and 3')
    """
    if interval.n == 1:
        return "one seed: no interval"
    low, high = number(float(interval.low)), number(float(interval.high))
    if interval.n < statistics.DECIDABLE:
        return f"{interval.n} seeds, means between {low} and {high}"
    return f"95 % interval {low} to {high}, {interval.n} seeds"


def interval_of(group: Group, values: dict[int, float]) -> statistics.Interval | None:
    """Mean and interval over the members of `group` that have a value."""
    known = [values[member] for member in group.members if member in values]
    return statistics.mean_interval(known) if known else None


def lines(data: Data) -> list[Line]:
    """The verdict, most important first."""
    judged = score(data)
    found = [] if judged is None else [*_reached(data, judged), *_against_twin(data, judged)]
    return [*found, *_collapse(data, judged), *_classes(data), *_guarded(data), *_end(data)]


def _reached(data: Data, judged: Score) -> list[Line]:
    groups = [(group, interval) for group in data.groups if (interval := interval_of(group, judged.last)) is not None]
    group, interval = max(groups, key=lambda one: judged.sense * float(one[1].value))
    by = f" with {group.name}" if group.name and len(groups) > 1 else ""
    of = "" if len(groups) == 1 else f", the {'best' if judged.sense > 0 else 'lowest'} of {len(groups)} settings"
    return [Line("plain", f"{judged.words.capitalize()} {number(float(interval.value))} ({spread(interval)}){by}{of}.")]


def twin_of(group: Group, groups: list[Group]) -> Group | None:
    """The setting with coefficient 0 that differs from `group` in nothing else; the family may differ, as without a bonus it plays no part."""
    if group.baseline:
        return None
    twins = [other for other in groups if other.baseline and _rest(other, FREE) == _rest(group, FREE)]
    return min(twins, key=lambda other: _rest(other, COEFS) != _rest(group, COEFS), default=None)


def _rest(group: Group, without: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in group.settings.items() if name not in without}


def difference(data: Data, group: Group, twin: Group, values: dict[int, float]) -> statistics.Interval | None:
    """`group` minus `twin`, paired by seed; None when no seed has a value in both."""
    by_seed = [{data.seeds[member]: values[member] for member in one.members if member in values and member in data.seeds} for one in (group, twin)]
    common = sorted(by_seed[0].keys() & by_seed[1].keys())
    return statistics.paired_difference(*([one[seed] for seed in common] for one in by_seed)) if common else None


def _against_twin(data: Data, judged: Score) -> list[Line]:
    pairs = [(group, twin) for group in data.groups if (twin := twin_of(group, data.groups)) is not None]
    if not pairs:
        return []
    found = [(group.name, *_compared(data, judged, group, twin)) for group, twin in pairs]
    if len(found) == 1:
        _, tone, word, numbers = found[0]
        return [Line(tone, f"Against the coefficient-0 twin: {word} ({numbers}).")]
    lucky = Line("plain", f"These are {len(pairs)} comparisons, each at 95 %: the more there are, the likelier a lucky one.")
    if len(found) <= SPELLED_OUT:
        return [*(Line(tone, f"{name} against its coefficient-0 twin: {word} ({numbers}).") for name, tone, word, numbers in found), lucky]
    words = dict.fromkeys((tone, word) for _, tone, word, _ in found)
    return [*(Line(tone, f"Against the coefficient-0 twin, {word}: {'; '.join(one[0] for one in found if one[2] == word)}.") for tone, word in words), lucky]


def _compared(data: Data, judged: Score, group: Group, twin: Group) -> tuple[Tone, str, str]:
    """Tone, verdict and the numbers behind it."""
    gap = difference(data, group, twin, judged.last)
    if gap is None:
        return "plain", "no verdict", "no seeds in common"
    value = float(gap.value)
    where = f"{judged.words} {'equal' if value == 0 else f'{number(abs(value))} ' + ('higher' if value > 0 else 'lower')}"
    if gap.n == 1:
        return "plain", "no verdict", f"one seed each; {where}"
    found = statistics.verdict(gap)
    if found == "too few":
        return "plain", "no verdict", f"{gap.n} paired seeds are too few; {where} on average"
    numbers = f"{where}, 95 % interval of the difference {number(float(gap.low))} to {number(float(gap.high))}, {gap.n} paired seeds"
    if found == "undecided":
        return "plain", "undecided", numbers
    return ("good", "better", numbers) if found == ("higher" if judged.sense > 0 else "lower") else ("bad", "worse", numbers)


def collapsed(data: Data, judged: Score | None) -> list[int]:
    """Members whose entropy ended below 5 % of its maximum while their score is below the best that any member of the run ever had."""
    low = [member for member, (_, values) in data.series.get("entropy/max", {}).items() if values[-1] < COLLAPSED]
    if judged is None:
        return low
    everything = judged.sense * np.concatenate([values for _, values in judged.series.values()])
    bar = everything.max() - BELOW_BEST * (everything.max() - everything.min())
    return [member for member in low if member in judged.series and judged.sense * judged.series[member][1][-1] < bar]


def _collapse(data: Data, judged: Score | None) -> list[Line]:
    shares = [float(values[-1]) for _, values in data.series.get("entropy/max", {}).values()]
    if not shares:
        return []
    fallen = collapsed(data, judged)
    if not fallen:
        lowest = f", the lowest member at {100 * min(shares):.3g} %" if len(shares) > 1 else ""
        return [Line("good", f"Entropy did not collapse: it ended at {100 * np.mean(shares):.3g} % of its maximum{lowest}.")]
    numbers = ", ".join(map(str, fallen[:12])) + (" ..." if len(fallen) > 12 else "")
    who = f" in {len(fallen)} of {len(shares)} members ({numbers})" if len(shares) > 1 else ""
    verb = "are" if judged is not None and judged.name in PLURAL else "is"
    missed = "" if judged is None else f" while the {judged.name} {verb} {'below the best' if judged.sense > 0 else 'above the lowest'} of the run"
    return [Line("bad", f"Entropy collapsed{who}: below 5 % of its maximum{missed}.")]


def _classes(data: Data) -> list[Line]:
    """Whether predictions on unlabelled data lost classes: their mean's perplexity is under half of the prior's."""
    shares = [float(values[-1]) for _, values in data.series.get("marginal/share", {}).values()]
    if not shares:
        return []
    lost = sum(share < CLASSES_LOST for share in shares)
    words = f"{100 * min(shares):.3g} % of the prior's effective classes" + (", the lowest member" if len(shares) > 1 else "")
    if not lost:
        return [Line("good", f"Classes did not collapse: the mean prediction ended at {words}.")]
    who = f" in {lost} of {len(shares)} members" if len(shares) > 1 else ""
    return [Line("bad", f"Classes collapsed{who}: the mean prediction ended at {words}.")]


def _guarded(data: Data) -> list[Line]:
    """What the collapse guard saw and did, by its first words."""
    seen, rescues = ([str(event.get("message", "")) for event in data.events if event.get("event") == kind] for kind in ("collapse", "rescue"))
    times = {1: "once", 2: "twice"}.get(len(seen), f"{len(seen)} times")
    found = [Line("bad", f"The guard spoke {times}{', first' if len(seen) > 1 else ''}: {seen[0]}.")] if seen else []
    first = [f"Rescued: {rescues[0]}{f', and of {len(rescues) - 1} more' if len(rescues) > 1 else ''}."] if rescues else []
    return [*found, *(Line("plain", text) for text in first)]


def _end(data: Data) -> list[Line]:
    ends = [event for event in data.events if event.get("event") in ("stopped", "nonfinite", "resumed")]
    last = str(ends[-1].get("message", "")) if ends else ""
    if ends and ends[-1]["event"] == "nonfinite":
        return [Line("bad", f"Stopped by a value that is not finite: {last}.")]
    if ends and ends[-1]["event"] == "stopped":
        if last.startswith("stop_at"):
            return [Line("good", f"Stopped when its goal was reached: {last}.")]
        return [Line("plain" if last.startswith("max_time") else "bad", f"Stopped early: {last}.")]
    settings = data.config.get("config")
    planned = finite(settings.get("steps")) if isinstance(settings, dict) else None
    if data.last_step is None:
        return []
    if planned is not None and data.last_step < planned:
        return [Line("bad", f"The records end at step {number(data.last_step)} of {number(planned)}: the run was cut off, or is still going on.")]
    took = "" if data.seconds is None else f" in {duration(data.seconds)}"
    return [Line("plain", f"Ran to step {number(data.last_step)}{took}.")]
