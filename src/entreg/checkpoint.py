"""Checkpoints: a state (see `state.py`) in a folder that appears whole or not at all.

    checkpoint/state-00000007/   state.safetensors  state.json  manifest.json (sizes and sha256 of both, step, byte offset of the records)
    checkpoint/best-0/           the same for the best policy of member 0, with its score

Order of a save: temporary folder, files synced, folder synced, read back, renamed, parent synced; only then the older ones go. So at every
moment, whatever call failed last, the newest folder that verifies is a complete state.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from entreg import disk
from entreg.state import State, pack, unpack

TENSORS, TREE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
SERIAL = re.compile(r"state-(\d{8,})")
BEST = re.compile(r"(?:tmp-old-)?best-(\d+)")
SHARE = 20  # checkpoints take at most one part in SHARE of the time


class Damaged(ValueError):
    """A checkpoint folder that is not what its manifest says."""


class Saved(NamedTuple):
    """A loaded checkpoint: the state, and the facts that were saved beside it (`step`, `offset` or `member`, `score`)."""

    state: State
    facts: dict[str, Any]
    folder: Path


# ---------------------------------------------------------------- one folder


def write_folder(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `state` with `facts` into the new folder `folder` and wait until it is on the disk."""
    disk.make_folder(folder)
    sums: dict[str, Any] = {}
    for name, data in zip((TENSORS, TREE), pack(state), strict=True):
        disk.write_file(folder / name, data)
        sums[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    disk.write_file(folder / MANIFEST, json.dumps({"facts": dict(facts), "files": sums}).encode())
    disk.sync_folder(folder)


def read_folder(folder: Path) -> Saved:
    """Read a checkpoint folder and check it against its manifest.

    Raises: `Damaged` when it is not whole, `OSError` when it cannot be read.
    """
    manifest, data = _verified(folder)
    try:
        return Saved(unpack(data[TENSORS], data[TREE]), manifest["facts"], folder)
    except ImportError:
        raise
    except Exception as error:  # safetensors and torch raise errors of their own for bytes that are no state
        raise Damaged(f"{folder}: {error}") from error


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        manifest = json.loads(disk.read(folder / MANIFEST))
        data = {name: disk.read(folder / name) for name in (TENSORS, TREE)}
        sums = {name: {"size": len(data[name]), "sha256": hashlib.sha256(data[name]).hexdigest()} for name in data}
        if manifest["files"] != sums:
            raise Damaged(f"{folder}: the files are not the ones that were saved")
    except FileNotFoundError as error:
        raise Damaged(f"{folder}: {Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{folder}: {error}") from error
    return manifest, data


# ---------------------------------------------------------------- the checkpoints of a run


class Checkpoints:
    """The folder `checkpoint/` of a run: the last two states, and the best policy of each member."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.say = say
        self._damaged: set[Path] = set()

    def save(self, state: Mapping[str, Any], *, step: int, offset: int) -> Path:
        """Save `state`; the two newest stay.

        Raises: `TypeError` for what cannot be saved, `OSError` of the system, `Damaged` when what was written does not read back; the older
        checkpoints are then still there.
        """
        serials = [serial for serial, _ in self._states()]
        target = self.folder / f"state-{max(serials, default=0) + 1:08d}"
        self._place(target, state, {"step": step, "offset": offset})
        good = [path for _, path in self._states() if path not in self._damaged]
        for path in {path for _, path in self._states()} - set(good[:2]):
            disk.remove(path)
        return target

    def load(self) -> Saved | None:
        """The newest checkpoint that verifies, None where there is none; says which ones were passed over."""
        for _, path in self._states():
            try:
                return read_folder(path)
            except (Damaged, OSError) as error:
                self._damaged.add(path)
                self.say(f"checkpoint passed over: {error}")
        return None

    def save_best(self, member: int, score: float, policy: Mapping[str, Any], *, step: int) -> None:
        """Save `policy` as the best of `member`; the one before goes when it has been read back."""
        target = self.folder / f"best-{member}"
        self._place(target, policy, {"step": step, "member": member, "score": float(score)})

    def best_scores(self) -> dict[int, float]:
        """The score of every member that has a best policy."""
        members = {int(match[1]) for path in self._children() if (match := BEST.fullmatch(path.name))}
        scores = {}
        for member in sorted(members):
            try:
                scores[member] = load_best(self.folder, member).facts["score"]
            except (Damaged, OSError) as error:
                self.say(f"best policy passed over: {error}")
        return scores

    def _states(self) -> list[tuple[int, Path]]:
        """The states, newest first."""
        found = [(int(match[1]), path) for path in self._children() if (match := SERIAL.fullmatch(path.name))]
        return sorted(found, reverse=True)

    def _children(self) -> Iterator[Path]:
        return self.folder.iterdir() if self.folder.is_dir() else iter(())

    def _place(self, target: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if not self.folder.is_dir():
            disk.make_folder(self.folder)
        for path in self._children():
            if path.name.startswith("tmp-new-"):  # what a crash left
                disk.remove(path)
        new, old = (self.folder / f"tmp-{what}-{target.name}" for what in ("new", "old"))
        write_folder(new, state, facts)
        _verified(new)
        if target.exists():  # only best-<member>: a folder cannot be renamed over another, so load_best knows the name in between
            disk.remove(old)
            disk.rename(target, old)
        disk.rename(new, target)
        disk.sync_folder(self.folder)
        disk.remove(old)


def load_best(folder: Path, member: int) -> Saved:
    """The best policy of `member` in the folder `checkpoint/` of a run.

    Raises: `FileNotFoundError` where there is none, `Damaged` where it is not whole.
    """
    damage: Damaged | None = None
    for path in (folder / f"best-{member}", folder / f"tmp-old-best-{member}"):
        if path.is_dir():
            try:
                return read_folder(path)
            except Damaged as error:
                damage = damage or error
    raise damage or FileNotFoundError(f"{folder}: no best policy of member {member}")


class Throttle:
    """When the next checkpoint may be made: `every` seconds after the last, and so that all together take at most 1/20 of the time.

    With `every` 0 always. The next one is expected to cost what the last did.

    >>> throttle = Throttle(every=5.0, now=0.0)
    >>> throttle.due(4.9), throttle.due(5.0)
    (False, True)
    >>> throttle.spent(5.0, 6.0)  # it took a second: the second one may follow when 2 s are 1/20 of the time
    >>> throttle.due(39.9), throttle.due(40.0)
    (False, True)
    """

    def __init__(self, every: float, now: float) -> None:
        self._every, self._start, self._last = every, now, now
        self._total = self._cost = 0.0

    def due(self, now: float) -> bool:
        """Whether a checkpoint may be made at time `now`."""
        if self._every == 0:
            return True
        return now - self._last >= self._every and now - self._start >= SHARE * (self._total + self._cost)

    def spent(self, start: float, end: float) -> None:
        """Note that one was made between `start` and `end`."""
        self._last, self._cost = end, end - start
        self._total += end - start
