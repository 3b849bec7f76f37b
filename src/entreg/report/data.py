"""A run folder as numbers: who the members are, what each of them logged, and curves on a common grid of steps.

Shape legend: M members, T points of a curve. Steps are what the recipe counts. Nothing here raises for what stands in the files: what cannot be
understood is left out and counted in `notes`, since a report is wanted most when something went wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entreg.folder import COEFS, setting_name
from entreg.record import Record, read_records

Array = NDArray[np.float64]
Series = dict[int, tuple[Array, Array]]  # member -> steps, values; finite, ordered by step
NOT_METRICS = frozenset({"step", "member", "time"})
NOT_SETTINGS = frozenset({"member", "seed", "controller"})  # the controller is the coefficient's text, resolved
HUGE = 1e250  # beyond it sums overflow: as good as infinite
MAXIMUM = "entropy/maximum"  # derived, nats: entropy over its fraction of the maximum


class Group(NamedTuple):
    """Members that differ in their seed only; `settings` are their coefficient, family and whatever else the run varied."""

    name: str
    settings: dict[str, str]
    members: tuple[int, ...]
    baseline: bool  # its coefficients are 0


class Curve(NamedTuple):
    """Values `(M, T)` of `members` at `steps (T,)`; NaN before a member's first value and after its last."""

    steps: Array
    values: Array
    members: tuple[int, ...]

    def of(self, group: Group) -> Curve:
        """The rows of one group's members."""
        rows = [index for index, member in enumerate(self.members) if member in group.members]
        return Curve(self.steps, self.values[rows], tuple(self.members[index] for index in rows))


class Data(NamedTuple):
    """What a report is made from."""

    config: dict[str, Any]  # empty where there is none
    series: dict[str, Series]  # by name of the metric, in order of appearance
    groups: list[Group]
    seeds: dict[int, int]  # of the members whose seed is known
    events: list[Record]
    notes: list[str]
    last_step: int | None
    seconds: float | None  # from the first record to the last


def load(folder: Path) -> Data:
    """Read `config.json` and `records.jsonl` of `folder` as far as they can be read.

    Raises: `ValueError` when the folder holds neither; `OSError` when one of them cannot be opened.
    """
    if not any((folder / name).is_file() for name in ("config.json", "records.jsonl")):
        raise ValueError(f"folder is {str(folder)!r}, which holds no config.json and no records.jsonl; legal are run folders")
    records = read_records(folder)
    config, notes = _config(folder / "config.json")
    if records.skipped:
        notes.append(f"Lines of records.jsonl that are no records, left out: {records.skipped}.")
    return digest(config, records.lines, notes)


def _config(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        return {}, ["The folder has no config.json: settings, members and versions are not known."]
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    return (config, []) if isinstance(config, dict) else ({}, ["The config.json of the folder cannot be read: settings are not known."])


def digest(config: dict[str, Any], records: Sequence[Record], notes: Sequence[str] = ()) -> Data:
    """Records sorted into series by metric and member.

    >>> data = digest({}, [{"step": 2, "loss": 1.0}, {"step": 4, "loss": float("nan")}, {"step": 4, "event": "stopped", "message": "SIGINT"}])
    >>> {member: values.tolist() for member, (steps, values) in data.series["loss"].items()}, len(data.events), data.notes
    ({0: [1.0]}, 1, ['Values that are not finite, left out: 1.'])
    """
    events = [record for record in records if "event" in record]
    series, left_out, homeless = _series([record for record in records if "event" not in record])
    notes = list(notes)
    if left_out:
        notes.append(f"Values that are not finite, left out: {left_out}.")
    if homeless:
        notes.append(f"Records without a usable step or member, left out: {homeless}.")
    listed = _listed(config)
    present = sorted({member for one in series.values() for member in one} | set(listed))
    steps = [step for record in records if (step := finite(record.get("step"))) is not None]
    times = [moment for record in records if (moment := finite(record.get("time"))) is not None]
    seeds = {member: seed for member, facts in listed.items() if (seed := _whole(facts.get("seed"))) is not None}
    return Data(
        config=config,
        series=series,
        groups=_groups(present, listed),
        seeds=seeds,
        events=events,
        notes=notes,
        last_step=int(max(steps)) if steps else None,
        seconds=max(times) - min(times) if len(times) > 1 else None,
    )


def finite(value: Any) -> float | None:
    """`value` as a float when it is a finite number of a size that can be summed, else None.

    >>> finite(3), finite(True), finite(float("nan")), finite("3"), finite(10**400)
    (3.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -HUGE < value < HUGE else None


def _whole(value: Any) -> int | None:
    number = finite(value)
    return int(number) if number is not None and number == int(number) else None


def _series(records: Sequence[Record]) -> tuple[dict[str, Series], int, int]:
    """The series, how many values were not finite, and how many records had no usable step or member."""
    lists: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    left_out = homeless = 0
    for record in records:
        step, member = finite(record.get("step")), _whole(record.get("member", 0))
        if step is None or member is None:
            homeless += 1
            continue
        for name, value in _scalars(record):
            if -HUGE < value < HUGE:  # false for NaN
                steps, values = lists.setdefault(name, {}).setdefault(member, ([], []))
                steps.append(step)
                values.append(float(value))
            else:
                left_out += 1
    return {name: {member: _ordered(*one) for member, one in of.items()} for name, of in lists.items()}, left_out, homeless


def _ordered(steps: list[float], values: list[float]) -> tuple[Array, Array]:
    order = np.argsort(steps, kind="stable")
    return np.asarray(steps)[order], np.asarray(values)[order]


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    numbers = ((name, value) for name, value in record.items() if isinstance(value, float | int) and value is not True and value is not False)
    scalars = [(name, value) for name, value in numbers if name not in NOT_METRICS]
    entropy, fraction = finite(record.get("entropy")), finite(record.get("entropy/max"))
    if entropy is not None and fraction is not None and fraction > 1e-4:
        scalars.append((MAXIMUM, entropy / fraction))
    return scalars


def _listed(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The members of `config.json` by number."""
    members = config.get("members")
    found = [facts for facts in members if isinstance(facts, dict)] if isinstance(members, list) else []
    return {member: facts for index, facts in enumerate(found) if (member := _whole(facts.get("member", index))) is not None}


def _groups(present: Sequence[int], listed: Mapping[int, Mapping[str, Any]]) -> list[Group]:
    """Members by what they share; those that config.json does not list are one group, the last."""
    sorted_in: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for member in sorted(present, key=lambda one: (one not in listed, one)):
        facts = listed.get(member, {})
        settings = tuple((str(name), text(value)) for name, value in facts.items() if name not in NOT_SETTINGS)
        sorted_in.setdefault(settings, []).append(member)
    return [Group(setting_name(dict(key)), dict(key), tuple(members), _is_baseline(dict(key))) for key, members in sorted_in.items()]


def _is_baseline(settings: Mapping[str, str]) -> bool:
    coefs = [settings[name] for name in COEFS if name in settings]
    return bool(coefs) and all(map(is_zero, coefs))


def text(value: Any) -> str:
    """A value of config.json as text, long ones cut."""
    try:
        spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        spelled = "(nested too deep)"
    return spelled if len(spelled) <= 600 else f"{spelled[:600]} ..."


def is_zero(coef: str) -> bool:
    """Whether a coefficient's spelling is that of no bonus at all.

    >>> [is_zero(one) for one in ("0", "0.0", "constant(0.0)", "constant(value=0)", "linear(0.01, 0.0)", "1e-3", "")]
    [True, True, True, True, False, False, False]
    """
    bare = coef.strip().removeprefix("constant(").removesuffix(")").removeprefix("value=")
    try:
        return float(bare) == 0
    except ValueError:
        return False


def curve(series: Series, points: int = 400) -> Curve:
    """All members of a metric on one grid of at most `points` steps: every step where they are few, else means over equal stretches.

    Where a member has no value between two of its own, the line between them counts.

    >>> curve({0: (np.array([1.0, 3.0]), np.array([0.0, 2.0])), 1: (np.array([1.0, 2.0]), np.array([5.0, 6.0]))}).values.tolist()
    [[0.0, 1.0, 2.0], [5.0, 6.0, nan]]
    """
    grid = np.unique(np.concatenate([steps for steps, _ in series.values()]))
    edges = grid if len(grid) <= points else np.linspace(grid[0], grid[-1], points + 1)[1:]
    bucket = np.searchsorted(edges, grid)
    filled, counts = np.unique(bucket, return_counts=True)
    centres = np.bincount(bucket, weights=grid)[filled] / counts
    rows = [_resampled(np.searchsorted(filled, np.searchsorted(edges, steps)), values, centres) for steps, values in series.values()]
    return Curve(centres, np.stack(rows), tuple(series))


def _resampled(index: NDArray[np.int64], values: Array, grid: Array) -> Array:
    """Means of `values` by their place in the grid, with the gaps inside filled by straight lines."""
    counts = np.bincount(index, minlength=len(grid))
    known = np.flatnonzero(counts)
    means = np.bincount(index, weights=values, minlength=len(grid))[known] / counts[known]
    return np.interp(grid, grid[known], means, left=math.nan, right=math.nan)
