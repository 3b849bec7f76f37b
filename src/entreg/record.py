r"""Records: one JSON object a line in `records.jsonl`, written so that a crash at any byte costs at most the line being written.

The law of the file. A line counts when its newline is there. What stands behind the last newline is torn: readers drop it, and the writer CUTS it
before appending (a line appended behind a torn one would be lost with it). A line in the middle that is not a JSON object (the zeros that a
power failure leaves) is skipped and counted. NaN and Infinity are written as the standard json module spells them. stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from entreg import disk

FILE = "records.jsonl"
Record = dict[str, Any]


class Records(NamedTuple):
    """What `read_records` found: the records, how many lines were no records, and the byte where the last complete line ends."""

    lines: list[Record]
    skipped: int
    end: int


def read_records(path: str | os.PathLike[str]) -> Records:
    r"""Read `path` (a records file or the run folder that holds one) as far as it is whole; a file that is not there has no records.

    Raises: `OSError` when the file cannot be read; nothing for what is in it.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "records.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n{"st')
    ...     read_records(folder)
    Records(lines=[{'step': 1}, {'step': 2}], skipped=1, end=32)
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    data = disk.read(file) if file.exists() else b""
    end = data.rfind(b"\n") + 1
    parsed = [_parse(line) for line in data[:end].split(b"\n") if line.strip()]
    lines = [record for record in parsed if record is not None]
    return Records(lines, len(parsed) - len(lines), end)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def encode(record: Mapping[str, Any]) -> bytes:
    r"""One record as its line; numbers of numpy and torch (anything of one element with `.item()`) become plain ones.

    Raises: `ValueError` naming the entry that is no JSON value.

    >>> encode({"step": 3, "entropy": 0.5})
    b'{"step": 3, "entropy": 0.5}\n'
    """
    try:
        return json.dumps(record, default=_item).encode() + b"\n"
    except (TypeError, ValueError, RuntimeError):
        for name, value in record.items():  # found again one by one, to name it
            try:
                json.dumps(value, default=_item)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"log: {name} is {value!r:.80}; legal are numbers, text, None, and lists or dicts of these") from error
        raise


def _item(value: Any) -> Any:
    try:
        plain = value.item()
    except AttributeError:
        plain = value
    if not isinstance(plain, bool | int | float | str):
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return plain


class Recorder:
    r"""Gives any loop records, in two lines: append-only, one line a call, each in the operating system's hands when `log` returns.

    `folder` is made where it is missing. `offset` is the byte where the next line will begin. Use it as a context manager, or `close()` it.

    Raises: `OSError` of the system; the file then ends where it ended before the call.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Recorder(folder) as recorder:
    ...     recorder.log(1, entropy=0.69, **{"entropy/max": 1.0})
    ...     [(r["step"], r["entropy/max"]) for r in read_records(folder).lines]
    [(1, 1.0)]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        disk.make_folders(self.folder)
        self.offset = read_records(self.folder).end
        self._torn = False
        self._file = disk.open_file(self.folder / FILE, "ab")
        try:
            self.cut(self.offset)
        except OSError:
            self._file.close()
            raise

    def log(self, step: int, **values: Any) -> None:
        """Append the record `{"step": step, "time": seconds since the epoch, **values}`.

        Raises: `ValueError` naming a value that is no JSON value, `OSError` when it could not be written.
        """
        self.append({"step": step, "time": round(time.time(), 3), **values})

    def append(self, record: Mapping[str, Any]) -> Record:
        """Append a record as it is, and return it as readers will see it (plain numbers); raises as `log` does."""
        line = encode(record)
        if self._torn:
            self.cut(self.offset)
        self._torn = True  # until the line is whole: whatever interrupts the write, the next call cuts first
        try:
            disk.write(self._file, line)
        except OSError:
            with contextlib.suppress(OSError):  # the error that is raised is the first one
                self.cut(self.offset)
            raise
        self.offset += len(line)
        self._torn = False
        plain: Record = json.loads(line)
        return plain

    def cut(self, offset: int) -> None:
        """Cut the file to `offset` bytes, the end of a line: what came later is gone."""
        self._torn = True
        end = disk.size(self._file)
        if end > offset:
            disk.truncate(self._file, offset)
        self.offset = min(offset, end)
        self._torn = False

    def sync(self) -> None:
        """Wait until all records are on the disk itself."""
        disk.sync(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
