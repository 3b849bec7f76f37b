"""What kind of log a path is, and its traces."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from entreg.diagnosis import tables
from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.events import is_events, read_events
from entreg.diagnosis.folders import read_folder
from entreg.diagnosis.gather import Gather, Log
from entreg.diagnosis.names import check_given
from entreg.diagnosis.states import read_state
from entreg.diagnosis.text import opening
from entreg.diagnosis.traces import Facts
from entreg.record import FILE

DEPTH, MOST = 4, 256  # how deep folders are looked into, and how many logs a path may hold
STATE = "trainer_state.json"
PROGRESS = "progress.csv"
ARRAY = re.compile(rb"\[\s*[{\[]")


def logs_of(path: Path) -> list[Path]:
    """The logs that a path stands for: the file itself, a run folder, or what lies in a folder: of its kinds the first that is there, else its subfolders'.

    Raises: `ValueError` where there is none, `OSError` of the system.
    """
    if not path.is_dir():
        path.stat()
        if not path.is_file():
            raise BadLog(f"{path} is a pipe or a device; legal are files, which are read twice, and folders")
        return [path]
    found = _inside(path, DEPTH)
    if not found:
        raise BadLog(
            f"{path} holds no log; legal are {FILE}, {STATE}, {PROGRESS}, TensorBoard event files, or folders with these; other logs are named as files"
        )
    if len(found) > MOST:
        raise BadLog(f"{path} holds {len(found)} logs; legal are {MOST} at once")
    return found


def _inside(folder: Path, depth: int) -> list[Path]:
    try:
        return _logs_in(folder, depth)
    except PermissionError:  # reading it says so, and the logs beside it are read
        return [folder]


def _logs_in(folder: Path, depth: int) -> list[Path]:
    if (folder / FILE).is_file():
        return [folder]
    names = sorted(one.name for one in folder.iterdir())
    for name in (STATE, PROGRESS):
        if name in names:
            return [folder / name]
    if events := _events(folder):
        return events if len(events) == 1 else [folder]  # a run that was resumed, or one whose evaluation has a file of its own: as TensorBoard sees it
    inside = [folder / name for name in names if (folder / name).is_dir() and not (folder / name).is_symlink()]
    states = [one for one in inside if one.name.startswith("checkpoint-") and (one / STATE).is_file()]
    if states:  # each holds the whole history so far
        return [max(states, key=lambda one: (one / STATE).stat().st_mtime) / STATE]
    return [found for one in inside for found in _inside(one, depth - 1)] if depth else []


def _events(folder: Path) -> list[Path]:
    """The event files of a folder, the oldest first: their names begin with the time."""
    return sorted(one for one in folder.iterdir() if "tfevents" in one.name and one.is_file())


def _read_parts(folder: Path, parts: Sequence[Path], given: Mapping[str, str]) -> Log:
    """The log of a run that has several event files."""
    gather = Gather(folder, given)
    cuts = [cut for part in parts if (cut := read_events(part, gather)) is not None]
    return gather.log(Facts(), broken=cuts[0] if cuts else None)


def read(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> Log:
    """The log at `path`, one of those that `logs_of` gives; `columns` name columns as `NAME=COLUMN`.

    Raises: `BadLog`, in one line that names the file and the place; `OSError` of the system.
    """
    file, given = Path(path), check_given(columns)
    if file.is_dir():
        parts = [] if (file / FILE).is_file() else _events(file)
        return _read_parts(file, parts, given) if parts else read_folder(file, given)
    if file.name == FILE:
        return read_folder(file.parent, given)
    head = opening(file)
    if not head.strip():
        raise BadLog(f"{file} holds no records")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{") and _is_page(start) and not is_events(head):
        state = Gather(file, given, "entry")
        return state.log(read_state(file, state))
    gather = Gather(file, given)
    if is_events(head) or "tfevents" in file.name:
        broken = read_events(file, gather)
    elif ARRAY.match(start):
        raise BadLog(f"{file}, line 1: a JSON array; legal is an object a line, JSONL (jq -c '.[]' makes one)")
    elif start.startswith(b"{"):
        broken = tables.read_jsonl(file, gather)
    else:
        broken = tables.read_console(file, gather) if _is_console(file, head) else tables.read_csv(file, gather)
    return gather.log(Facts(), broken=broken)


def _is_page(start: bytes) -> bool:
    """Whether a file that begins with an object is one JSON object over several lines, or one with a history, and no JSONL."""
    first = start.split(b"\n", 1)[0]
    return b'"log_history"' in start or first.strip() == b"{"


def _is_console(file: Path, head: bytes) -> bool:
    """Whether a file has lines like verl's, or at least no separator where a CSV has its names."""
    lines = [line for line in tables.ANSI.sub("", head.decode(errors="replace")).splitlines() if line.strip()]
    return any(map(tables.CONSOLE.search, lines)) or (file.suffix not in (".csv", ".tsv") and not any(sign in "".join(lines[:1]) for sign in ",;\t"))


def facts_with(log: Log, extra: Mapping[str, float]) -> Log:
    """The log with what the caller knows: `planned` steps, `maximum` of the entropy, `best` reward."""
    if not extra:
        return log
    traces = [type(trace)(trace.columns, Facts(**{**vars(trace.facts), **extra}), trace.member, trace.source) for trace in log.traces]
    return log._replace(traces=traces)
