"""Logs with a row a line: CSV, JSONL and verl's console. Each reader fills a `Collector` and returns where the file is cut off, or None."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.gather import Gather
from entreg.diagnosis.text import Batch, batches
from entreg.diagnosis.traces import Array

fast: Callable[[str], Any] = json.loads
with contextlib.suppress(ImportError):
    from orjson import loads as fast

MISSING = frozenset({"", "None", "null", "NULL", "NA", "N/A"})
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}  # as the W&B history spells them
CHUNK = 16384  # rows that are looked at together
CONSOLE = re.compile(r"\bstep:(\d+) - (\S.*)$")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def as_floats(values: Sequence[Any], what: Callable[[int], str]) -> Array:
    """Numbers, None and "" (missing: NaN) and texts of numbers as floats; `what(i)` says where value i stands.

    Raises: `BadLog` for anything else.
    """
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except (TypeError, ValueError, OverflowError):
        return np.array([_float(value, index, what) for index, value in enumerate(values)])


def _float(value: Any, index: int, what: Callable[[int], str]) -> float:
    if value is None or (isinstance(value, str) and value.strip() in MISSING):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadLog(f"{what(index)} is {value!r:.60}; legal is a number") from None


# -------------------------------------------------------------------- CSV


def read_csv(path: Path, gather: Gather) -> str | None:
    """A CSV with a line of names; the separator is the one of `,;tab` that the line of names has most of."""
    source = batches(path)
    head = next(source, None)
    if head is None or not any(line.strip() for line in head.lines):
        raise BadLog(f"{path} holds no records")
    skip = next(index for index, line in enumerate(head.lines) if line.strip())
    separator = max(",;\t", key=head.lines[skip].count)
    torn: list[int] = []
    reader = csv.reader(_flow(chain([head], source), skip, torn), delimiter=separator)
    try:
        names = [name.strip() for name in next(reader)]
        place = {name: index for index, name in enumerate(names)}
        if len(place) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise BadLog(f"{path}, line {skip + 1}: two columns are called {double!r}")
        return _csv_rows(path, gather, reader, place, skip, torn)
    except csv.Error as error:
        raise BadLog(f"{path}, line {skip + reader.line_num}: {error}") from None


def _flow(source: Iterable[Batch], skip: int, torn: list[int]) -> Iterator[str]:
    """Lines from the `skip`-th on; the number of a last line without its newline goes into `torn`."""
    for batch in source:
        if batch.torn:
            torn.append(batch.first + len(batch.lines) - 1)
        for line in batch.lines[skip:] if batch.first == 1 else batch.lines:
            yield line + "\n"


def _csv_rows(path: Path, gather: Gather, reader: Any, place: Mapping[str, int], skip: int, torn: list[int]) -> str | None:
    wanted = {name: place[name] for name in gather.wanted(place)}
    while True:
        rows, lines = [], []
        for row in reader:
            if row:
                rows.append(row)
                lines.append(skip + reader.line_num)
            if len(rows) >= CHUNK:
                break
        if not rows:
            return None
        cut = _check_widths(path, rows, lines, len(place), torn)
        if rows:
            _csv_chunk(path, gather, rows, lines, wanted)
        if cut is not None:
            return cut


def _check_widths(path: Path, rows: list[list[str]], lines: list[int], width: int, torn: list[int]) -> str | None:
    """Rows need as many cells as there are names; a last line without a newline may be cut off, and then goes."""
    wrong = next((index for index, row in enumerate(rows) if len(row) != width), None)
    if wrong is None:
        return None
    if torn and lines[wrong] == torn[0]:
        rows.pop()
        return f"{path}, line {lines.pop()}: cut off"
    raise BadLog(f"{path}, line {lines[wrong]}: {len(rows[wrong])} cells; legal are {width}, as in the line of names")


def _csv_chunk(path: Path, gather: Gather, rows: list[list[str]], lines: list[int], places: Mapping[str, int]) -> None:
    columns = {}
    for name, index in places.items():
        values = [row[index] for row in rows]
        if any(values):

            def where(at: int, name: str = name) -> str:
                return f"{path}, line {lines[at]}: {name}"

            columns[name] = as_floats(values, where)
    blank = {name: np.array([row[places[name]].strip() in MISSING for row in rows]) for name, column in columns.items() if not np.isfinite(column).all()}
    gather.rows(columns, lines, blank)


# -------------------------------------------------------------------- JSONL


def read_jsonl(path: Path, gather: Gather, *, tolerant: bool = False) -> str | None:
    """A JSON object a line; those of verl have the numbers in `data`. `tolerant` skips and counts lines that are no objects, as records of a run are read."""
    cut = None
    for batch in batches(path):
        for start in range(0, len(batch.lines), CHUNK):
            lines = batch.lines[start : start + CHUNK]
            last = batch.torn and start + CHUNK >= len(batch.lines)
            found, numbers, cut = _objects(path, lines, batch.first + start, torn=last, tolerant=tolerant, gather=gather)
            if found:
                _json_chunk(path, gather, found, numbers)
    return cut


def _objects(path: Path, lines: list[str], first: int, *, torn: bool, tolerant: bool, gather: Gather) -> tuple[list[dict[str, Any]], Sequence[int], str | None]:
    """The objects of these lines, their numbers, and where the last one is cut off."""
    full = [line for line in lines if line.strip()]
    for parse in (fast, json.loads):
        try:
            found = parse(f"[{','.join(full)}]")
        except (ValueError, RecursionError):
            continue
        if len(found) == len(full) and all(type(one) is dict for one in found):
            numbers = range(first, first + len(full)) if len(full) == len(lines) else [first + at for at, line in enumerate(lines) if line.strip()]
            return found, numbers, None
    found, numbers = [], []
    for at, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except (ValueError, RecursionError):
            one = None
        if isinstance(one, dict):
            found.append(one)
            numbers.append(first + at)
        elif torn and at == len(lines) - 1:
            return found, numbers, f"{path}, line {first + at}: cut off"
        elif tolerant:
            gather.skip(first + at)
        else:
            raise BadLog(f"{path}, line {first + at}: {line.strip()!r:.60} is no JSON object")
    return found, numbers, None


def _json_chunk(path: Path, gather: Gather, found: list[dict[str, Any]], lines: Sequence[int]) -> None:
    if any(type(one.get("data")) is dict for one in found):
        found = [{**one, **one["data"]} if type(one.get("data")) is dict else one for one in found]
    kept = [index for index, one in enumerate(found) if "event" not in one]
    if len(kept) < len(found):
        gather.events([one for one in found if "event" in one])
        found, lines = [found[index] for index in kept], [lines[index] for index in kept]
    columns = {}
    for name in gather.wanted(sorted(set().union(*found))):
        values = [one.get(name) for one in found]

        def where(at: int, name: str = name) -> str:
            return f"{path}, line {lines[at]}: {name}"

        columns[name] = as_floats(values, where)
    blank = {name: np.array([one.get(name) is None for one in found]) for name, column in columns.items() if not np.isfinite(column).all()}
    gather.rows(columns, lines, blank)


# -------------------------------------------------------------------- verl's console


def read_console(path: Path, gather: Gather) -> str | None:
    """Lines with `step:1 - key:value - key:value` among others; what is no number is left out."""
    rows: list[dict[str, float]] = []
    lines: list[int] = []
    for batch in batches(path):
        for at, line in enumerate(batch.lines):
            found = CONSOLE.search(ANSI.sub("", line))
            if found:
                rows.append({"step": float(found[1]), **dict(_pairs(found[2]))})
                lines.append(batch.first + at)
            if len(rows) >= CHUNK:
                _json_chunk(path, gather, rows, lines)
                rows, lines = [], []
    if rows:
        _json_chunk(path, gather, rows, lines)
    elif not lines and not gather.raw:
        raise BadLog(f"{path} holds no records: no table (its first line has no comma, semicolon or tab), no JSON, and no line like 'step:1 - key:value'")
    return None


def _pairs(text: str) -> Iterator[tuple[str, float]]:
    for part in text.split(" - "):
        name, _, value = part.rpartition(":")
        try:
            yield name.strip(), float(value.strip().removeprefix("np.float64(").removeprefix("np.float32(").removesuffix(")"))
        except ValueError:
            continue
