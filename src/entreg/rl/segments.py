"""Rows of bytes that are appended round by round and read at random: in files of a run's folder, or in memory.

Shapes: L lanes (members x environments), W bytes of a row; a round is one row of every lane, counted from 0 over the whole run. The newest `rounds` of them can
be read. Files are segments of some rounds each: written by the operating system's own calls, so that a full disk is an `OSError` (a write into a mapping of a
full disk kills the process), and read through a mapping. What has left the ring now and in every checkpoint that can still be loaded is removed.
"""

import contextlib
import mmap
import shutil
from collections import deque
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from entreg import disk

PARTS = 2  # segments that a full ring spans, besides the one that is begun: a sample looks into each
BEHIND = 64 * 2**20  # bytes that states may keep of what has left the ring, where that is more than a segment
_KEPT = 3  # states that can still be loaded: two checkpoints, and one that was asked for but perhaps not saved


class Memory:
    """A ring of rounds in memory."""

    def __init__(self, lanes: int, width: int, rounds: int) -> None:
        self.lanes, self.width, self.rounds, self.count = lanes, width, rounds, 0
        self._data = np.empty((rounds * lanes, width // 8), np.uint64)

    def append(self, rows: np.ndarray) -> None:
        """Add a round of bytes `[L, W]`."""
        first = self.count % self.rounds * self.lanes
        self._data[first : first + self.lanes] = rows.view(np.uint64)
        self.count += 1

    def take(self, rounds: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Rows `[K, W]` of bytes; the rounds lie among the newest."""
        rows: np.ndarray = self._data.take(rounds % self.rounds * self.lanes + lanes, axis=0)
        return rows.view(np.uint8)

    def state_dict(self) -> dict[str, Any]:
        live = np.arange(max(0, self.count - self.rounds), self.count)
        return {"count": self.count, "rows": self._data.reshape(self.rounds, -1)[live % self.rounds]}

    @property
    def crowded(self) -> bool:
        return False

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        live = np.arange(self.count - len(state["rows"]), self.count)
        self._data.reshape(self.rounds, -1)[live % self.rounds] = state["rows"]

    def close(self) -> None:
        """Nothing is open."""

    def remove(self) -> None:
        """Nothing is on the disk."""


class Files:
    """A ring of rounds in the segment files `NAME-00000000.bin`, `NAME-00000001.bin`, ... of `folder`, which is made with the first round."""

    def __init__(self, lanes: int, width: int, rounds: int, folder: Path, name: str = "rounds") -> None:
        self.lanes, self.width, self.rounds, self.count = lanes, width, rounds, 0
        self.folder, self.name = folder, name
        self.span = max(1, -(-rounds // PARTS))
        self._maps: dict[int, np.ndarray] = {}
        self._file: FileIO | None = None
        self._named: deque[int] = deque(maxlen=_KEPT)  # the oldest segment of the states given out

    @property
    def _round(self) -> int:
        return self.lanes * self.width

    def append(self, rows: np.ndarray) -> None:
        """Add a round of bytes `[L, W]`; `OSError` where the disk is full."""
        segment, place = divmod(self.count, self.span)
        if place == 0:
            self._begin(segment)
        assert self._file is not None
        disk.write(self._file, rows.tobytes())
        self.count += 1

    def take(self, rounds: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Rows `[K, W]` of bytes; the rounds lie among the newest."""
        segment = rounds // self.span
        rows = (rounds - segment * self.span) * self.lanes + lanes
        first, last = max(0, self.count - self.rounds) // self.span, (self.count - 1) // self.span
        result: np.ndarray
        if first == last:
            result = self._maps[first].take(rows, axis=0)
            return result.view(np.uint8)
        result = np.empty((len(rows), self.width // 8), np.uint64)
        for index in range(first, last + 1):
            here = (segment == index).nonzero()[0]
            result[here] = self._maps[index].take(rows[here], axis=0)
        return result.view(np.uint8)

    def _path(self, segment: int) -> Path:
        return self.folder / f"{self.name}-{segment:08d}.bin"

    def _begin(self, segment: int) -> None:
        self._end()
        if not self.folder.is_dir():
            disk.make_folders(self.folder)
        self._file = disk.open_file(self._path(segment), "w+b")
        disk.truncate(self._file, self.span * self._round)
        self._map(segment, self._file)
        self._let_go(max(0, self.count + 1 - self.rounds) // self.span)

    def _let_go(self, first: int) -> None:
        """Remove the segments that neither the ring, which begins in segment `first`, nor a state needs."""
        oldest = min([first, *self._named])
        for old in [index for index in self._maps if index < oldest]:
            del self._maps[old]
            disk.remove(self._path(old))

    def _map(self, segment: int, file: FileIO) -> None:
        mapping = mmap.mmap(file.fileno(), self.span * self._round, access=mmap.ACCESS_READ)
        self._maps[segment] = np.frombuffer(mapping, np.uint64).reshape(-1, self.width // 8)

    def _end(self) -> None:
        if self._file is not None:
            disk.sync(self._file)
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """How many rounds there are; they are on the disk when this returns."""
        if self._file is not None:
            disk.sync(self._file)
            disk.sync_folder(self.folder)
        first = max(0, self.count - self.rounds) // self.span
        self._named.append(first)
        self._let_go(first)
        return {"count": self.count}

    @property
    def crowded(self) -> bool:
        """Whether the states given out keep more behind the ring than `room` counts: newer ones, three of them, let it go."""
        return bool(self._named) and self.count - self._named[0] * self.span > self.rounds + self.span + _behind(self._round, self.span)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the rounds of `state`; what was written after them is cut off.

        Raises: `ValueError` naming a segment that is missing or too short.
        """
        self.close()
        self.count = int(state["count"])
        found = sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{self.name}-*.bin"))
        last = (self.count - 1) // self.span  # -1 where there is no round
        first = max(0, self.count - self.rounds) // self.span
        for segment in range(first, last + 1):
            path, size = self._path(segment), self.span * self._round
            if segment not in found or path.stat().st_size < size:
                raise ValueError(f"{path} is {'too short' if segment in found else 'missing'}; the checkpoint's replay of {self.count} rounds needs it")
            with disk.open_file(path, "r+b") as file:
                self._map(segment, file)
        for segment in found:
            if segment > last:
                disk.remove(self._path(segment))
        self._named.clear()
        self._named.append(min([first, *found]))
        if self.count % self.span:
            self._file = disk.open_file(self._path(last), "r+b")
            kept = self.count % self.span * self._round
            disk.truncate(self._file, kept)
            disk.truncate(self._file, self.span * self._round)
            self._file.seek(kept)

    def close(self) -> None:
        """Let go of files and mappings."""
        self._maps.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Let go of all files and remove them: no state can be loaded any more."""
        self.close()
        disk.remove(self.folder)


def _behind(size: int, span: int) -> int:
    """How many rounds of `size` bytes the states may keep behind the ring."""
    return max(span, BEHIND // size)


def room(size: int, rounds: int) -> int:
    """Bytes that the files of a ring of `rounds` rounds of `size` bytes come to at most: with a segment at both of its ends, and what states keep behind it."""
    span = -(-rounds // PARTS)
    return size * (rounds + 2 * span + _behind(size, span) + _KEPT)


def require_room(need: int, what: str, folder: Path | None) -> None:
    """Raise `ValueError` with both sizes where `need` bytes do not fit: on the disk of `folder` (which may not be there yet), or in memory where it is None."""
    if folder is None:
        free, where = _free_memory(), "memory"
    else:
        place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        free, where = shutil.disk_usage(place).free, f"disk of {place}"
    if free is not None and need > free:
        raise ValueError(f"{what} takes up to {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB of {where} are free; lower buffer_size or the number of members")


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system says."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return None
