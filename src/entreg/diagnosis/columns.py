"""Columns in bounded memory: however long a log is, each of its series keeps at most `2 * CAPACITY` points.

A series that grows beyond that is halved: two neighbours become their mean, in step and in value, and from then on that many more values make a point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from entreg.diagnosis.traces import Array, Column

CAPACITY = 2048
SERIES = 16384  # of all members together; with CAPACITY points of 16 bytes each that is half a gigabyte
HUGE = 1e250  # beyond it sums overflow: as good as infinite


class BadLog(ValueError):
    """What is wrong with a log, in one line that names the file and where in it."""


class Key(NamedTuple):
    """Whose values: the run (where one file has several), the member, and the column's name in the log."""

    run: str
    member: int
    name: str


class _Series:
    """Means of `width` values each, the sum of those that do not make a whole point yet, and what waits to be added."""

    def __init__(self) -> None:
        self.width = 1
        self.whole = np.empty((2, 0))
        self.begun, self.count = np.zeros(2), 0
        self.parts: list[Array] = []
        self.waiting = 0

    def add(self, pairs: Array) -> None:
        self.parts.append(pairs)
        self.waiting += pairs.shape[1]
        if self.waiting >= CAPACITY:
            self.settle()

    def settle(self) -> None:
        """Make points of what waits."""
        new = np.concatenate(self.parts, axis=1) if self.parts else np.empty((2, 0))
        self.parts, self.waiting = [], 0
        missing = self.width - self.count
        if new.shape[1] >= missing:
            first = (self.begun + new[:, :missing].sum(1)) / self.width
            new, self.begun, self.count = new[:, missing:], np.zeros(2), 0
            full = new.shape[1] // self.width * self.width
            points = new[:, :full].reshape(2, -1, self.width).mean(2)
            self.whole = np.concatenate([self.whole, first[:, None], points], axis=1)
            new = new[:, full:]
        self.begun, self.count = self.begun + new.sum(1), self.count + new.shape[1]
        while self.whole.shape[1] >= 2 * CAPACITY:
            self._halve()

    def _halve(self) -> None:
        count = self.whole.shape[1]
        if count % 2:  # the odd one goes back to what is begun
            self.begun, self.count = self.begun + self.whole[:, -1] * self.width, self.count + self.width
        self.whole = self.whole[:, : count - count % 2].reshape(2, -1, 2).mean(2)
        self.width *= 2

    def column(self) -> Column:
        """All points by step; the last one may be of fewer values. Of several values at one step the last counts."""
        self.settle()
        points = np.concatenate([self.whole, (self.begun / self.count)[:, None]], axis=1) if self.count else self.whole
        order = np.argsort(points[0], kind="stable")
        step, value = points[:, order]
        last = np.append(step[1:] != step[:-1], True)
        return Column(step[last], value[last])


class Collector:
    """Takes in stretches of columns, and gives every series at the end; counts what is not finite."""

    def __init__(self) -> None:
        self._series: dict[Key, _Series] = {}
        self.lost: dict[str, tuple[int, str]] = {}  # column -> how many values were not finite, and where the first one stood
        self.seen: set[str] = set()  # columns that had a value, finite or not

    def add(self, key: Key, step: Array, value: Array, where: str = "") -> None:
        """Take in values `[n]` at steps `[n]`; what is not finite is left out."""
        fine = np.isfinite(step) & (np.abs(value) < HUGE)  # false for NaN
        self.seen.add(key.name)
        if not fine.any():
            return
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= SERIES:
                raise BadLog(f"{where}more than {SERIES} columns of members")
            series = self._series[key] = _Series()
        series.add(np.stack([step[fine], value[fine]]))

    def lose(self, name: str, count: int, where: str) -> None:
        """Note `count` values of a column that are no finite numbers."""
        before, first = self.lost.get(name, (0, where))
        self.lost[name] = (before + count, first)
        self.seen.add(name)

    def add_members(self, run: str, member: NDArray[np.int64] | None, name: str, step: Array, value: Array, where: str = "") -> None:
        """As `add`, for values of several members; None: all are of member 0."""
        if member is None:
            self.add(Key(run, 0, name), step, value, where)
            return
        for one in np.unique(member).tolist():
            of = member == one
            self.add(Key(run, one, name), step[of], value[of], where)

    def of(self) -> Iterator[tuple[Key, Column]]:
        """Every series."""
        for key, series in self._series.items():
            yield key, series.column()
