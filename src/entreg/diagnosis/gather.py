"""From the rows of a log to traces: which columns are worth keeping, whose they are, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entreg.diagnosis import names as naming
from entreg.diagnosis.columns import HUGE, BadLog, Collector
from entreg.diagnosis.traces import Array, Column, Facts, Trace, together

NAMES = 2000  # names of a log that are remembered, to say what there is
MEMBERS = 4096
SHOWN = 12
OF_MEMBER = re.compile(r"/member-([0-9]{1,3})$")  # how our sinks call a column of a population's member


class Log(NamedTuple):
    """What a log holds: traces, what has to be said about how it was read, and where it is cut off (None: it is whole)."""

    traces: list[Trace]
    notes: list[str]
    broken: str | None = None


class Place(NamedTuple):
    """Where a column goes: the run, the plain name, and the member where the column is one member's."""

    run: str
    name: str
    member: int | None

    def all(self, count: int) -> NDArray[np.int64]:
        """The member of `count` rows."""
        return np.full(count, self.member, np.int64)


class Gather:
    """Takes in the rows of one file. `given` are the columns that the user names, as `names.check_given` gives them; `unit` is what a row is."""

    def __init__(self, path: Path, given: Mapping[str, str], unit: str = "line") -> None:
        self.path, self.given, self.unit = path, given, unit
        self.raw: dict[str, None] = {}
        self.happened: list[dict[str, Any]] = []
        self._collector = Collector()
        self._asked = {bare for column in given.values() for bare in (column, naming.signed(column)[1])}
        self._place: dict[str, Place | None] = {}  # by column; None: of no interest
        self._rows = 0
        self._clock: str | None = None
        self._skipped: list[int] = []

    # ---------------------------------------------------------------- names

    def wanted(self, present: Iterable[str]) -> list[str]:
        """Those of these columns that are worth reading."""
        present = [name for name in present if isinstance(name, str)]
        for name in present:
            if name not in self._place:
                self._place[name] = self._looked_up(name)
                if len(self._place) > 50 * NAMES:
                    raise BadLog(f"{self.path}: more than {50 * NAMES} different names of columns")
                if len(self.raw) < NAMES:
                    self.raw[name] = None
        return [name for name in present if self._place[name] is not None or name in self._clocks]

    @property
    def _clocks(self) -> tuple[str, ...]:
        return (self.given["step"],) if "step" in self.given else naming.STEPS

    def _looked_up(self, name: str) -> Place | None:
        """What a column holds. The tables that W&B exports call it `run - name`, with `__MIN` and `__MAX` beside it, our sinks `name/member-3`."""
        if name in self._asked or name == self.given.get("member", naming.MEMBER):
            return Place("", name, None)
        own = OF_MEMBER.search(name)
        run, dash, bare = name[: own.start() if own else None].rpartition(" - ")
        bare = naming.plain(bare if dash else name[: own.start() if own else None])
        return Place(run, bare, int(own[1]) if own else None) if bare in naming.INTERESTING and bare not in naming.STEPS else None

    # ---------------------------------------------------------------- rows

    def rows(self, columns: Mapping[str, Array], lines: Sequence[int], blank: Mapping[str, NDArray[np.bool_]]) -> None:
        """Take in rows: columns by name `[n]`, NaN where a row has no value, the lines where they stand, and where `blank` says that nothing was there."""
        count = len(lines)
        step = self._step(columns, count)
        member = self._member(columns, lines, count)
        for name, value in columns.items():
            place = self._place.get(name)
            if place is None or name == self.given.get("member", naming.MEMBER) or name in self._clocks:
                continue
            lost = ~(np.abs(value) < HUGE)
            if lost.any():
                lost &= ~blank.get(name, np.zeros(count, bool))
                if lost.any():
                    self._collector.lose(place.name, int(lost.sum()), f"{self.unit} {lines[int(lost.argmax())]}")
            self._collector.add_members(place.run, member if place.member is None else place.all(count), place.name, step, value, f"{self.path}: ")
        self._rows += count

    def _step(self, columns: Mapping[str, Array], count: int) -> Array:
        """The step of each row, NaN where it has none: the first clock that had a value in the first rows is that of the whole log; without one rows count."""
        if self._clock is None:
            known = [name for name in self._clocks if name in columns and np.isfinite(columns[name]).any()]
            self._clock = known[0] if known else ""
        if not self._clock:
            return np.arange(self._rows, self._rows + count, dtype=np.float64)
        return columns.get(self._clock, np.full(count, np.nan))

    def _member(self, columns: Mapping[str, Array], lines: Sequence[int], count: int) -> NDArray[np.int64] | None:
        column = columns.get(self.given.get("member", naming.MEMBER))
        if column is None:
            return None
        whole = np.where(np.isfinite(column), column, 0.0)
        wrong = (whole != np.floor(whole)) | (whole < 0) | (whole >= MEMBERS)
        if wrong.any():
            at = int(wrong.argmax())
            raise BadLog(f"{self.path}, {self.unit} {lines[at]}: member is {float(whole[at]):.6g}; legal are integers from 0 to {MEMBERS - 1}")
        return None if not whole.any() else whole.astype(np.int64)

    def scalar(self, name: str, step: Array, value: Array) -> None:
        """Take in one named series, as event files have them."""
        self._rows += len(step)
        place = self._place.get(name)
        if place is not None:
            lost = ~(np.abs(value) < HUGE)
            if lost.any():
                self._collector.lose(place.name, int(lost.sum()), f"step {int(step[int(lost.argmax())])}")
            self._collector.add_members(place.run, None if place.member is None else place.all(len(step)), place.name, step, value)

    def passed(self, count: int) -> None:
        """Note rows that have nothing of interest."""
        self._rows += count

    def skip(self, line: int) -> None:
        """Note a line that is no record."""
        if len(self._skipped) < 10**6:
            self._skipped.append(line)

    def events(self, found: Sequence[dict[str, Any]]) -> None:
        """Remember what happened in a run, the last few."""
        self.happened = [*self.happened, *found][-100:]

    # ---------------------------------------------------------------- the end

    def log(self, facts: Facts, members: Mapping[int, Facts] | None = None, broken: str | None = None) -> Log:
        """The traces of all that was taken in; `members` says more of single ones.

        Raises: `BadLog` where a column that the user named is not there, none is known, or none has a finite value.
        """
        series: dict[tuple[str, int], dict[str, Column]] = {}
        span: dict[str, tuple[float, float]] = {}
        for (run, member, name), column in self._collector.of():
            series.setdefault((run, member), {})[name] = column
            low, high = span.get(name, (np.inf, -np.inf))
            span[name] = min(low, float(column.value.min())), max(high, float(column.value.max()))
        if not self._rows:
            raise BadLog(f"{broken or self.path}{'; it' if broken else ''} holds no records")
        self._check_given(span)
        try:
            chosen = naming.choose(span, {ours: column for ours, column in self.given.items() if ours not in ("step", "member")}, set(self.raw))
        except ValueError as error:
            raise BadLog(f"{self.path}: {error}") from None
        self._check_known(chosen, span)
        facts = Facts(**{**vars(facts), "host": facts.host or chosen.host})
        traces = []
        for (run, member), columns in sorted(series.items()):
            named = {
                ours: Column(columns[column].step, factor * columns[column].value) for ours, (column, factor) in chosen.choices.items() if column in columns
            }
            source = f"{self.path}" + (f" ({run})" if run else "")
            if named:
                traces.append(Trace(_derived(named), (members or {}).get(member, facts), member, source))
        return Log(together(traces), [*chosen.notes, *self._left_out(chosen)], broken)

    def _check_given(self, span: Mapping[str, Any]) -> None:
        for ours, column in self.given.items():
            bare = column if column in self.raw else naming.signed(column)[1]
            if bare not in self.raw:
                there = ", ".join(list(self.raw)[:SHOWN]) + (" ..." if len(self.raw) > SHOWN else "")
                raise BadLog(f"{self.path}: no column {bare!r} for {ours}; there are {there}")
            if ours not in ("step", "member") and bare not in span:
                raise BadLog(f"{self.path}: column {bare!r} ({ours}) has no finite value{self._first_lost(bare)}")

    def _first_lost(self, name: str) -> str:
        return f", the first is at {self._collector.lost[name][1]}" if name in self._collector.lost else ""

    def _check_known(self, chosen: naming.Names, span: Mapping[str, Any]) -> None:
        if {"entropy", "share", "coef", "grad_share", "classes", "marginal", "regularised"} & set(chosen.choices):
            return
        empty = [name for name in self._collector.seen if name not in span and name in naming.INTERESTING]
        if empty:
            raise BadLog(f"{self.path}: column {empty[0]!r} has no finite value{self._first_lost(empty[0])}")
        there = ", ".join(list(self.raw)[:SHOWN]) + (" ..." if len(self.raw) > SHOWN else "")
        raise BadLog(f"{self.path}: no known column of an entropy or a coefficient; there are {there}: name one with --column entropy=NAME")

    def _left_out(self, chosen: naming.Names) -> list[str]:
        used = {column for column, _ in chosen.choices.values()}
        notes = [
            f"{name}: {count} values that are not finite, left out; the first at {where}"
            for name, (count, where) in self._collector.lost.items()
            if name in used
        ]
        if self._skipped:
            notes.append(f"lines that are no records, left out: {len(self._skipped)}, the first is {self._skipped[0]}")
        return notes


def _derived(columns: dict[str, Column]) -> dict[str, Column]:
    """What can be computed from what is logged. stable-baselines3's SAC logs no entropy, but `ent_coef_loss = log(coef) (H - target)` gives the gap."""
    loss = columns.pop("coef_loss", None)
    if loss is not None and "coef" in columns and "gap" not in columns and columns["coef"].value.min() > 0:
        log_coef = np.log(np.interp(loss.step, *columns["coef"]))
        clear = np.abs(log_coef) > 0.1
        if clear.any():
            columns["gap"] = Column(loss.step[clear], loss.value[clear] / log_coef[clear])
    return {name: column for name, column in columns.items() if len(column.step)}
