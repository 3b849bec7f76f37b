"""The few operating-system calls by which runs reach the disk, in one place, so that a test can make the n-th of them fail.

Nothing else in entreg opens, writes, syncs, renames or removes what a run must not lose. Every function raises the `OSError` of the system,
and none hides one. stdlib only.
"""

from __future__ import annotations

import os
import shutil
from io import FileIO
from pathlib import Path

FALLIBLE = (
    "make_folder",
    "make_folders",
    "open_file",
    "write",
    "truncate",
    "sync",
    "sync_folder",
    "rename",
    "read",
    "size",
    "remove",
)  # what tests/faults.py wraps


def make_folder(path: Path) -> None:
    """Make one new folder; `FileExistsError` where it is there already."""
    path.mkdir()


def make_folders(path: Path) -> None:
    """Make a folder with its parents where they are missing."""
    path.mkdir(parents=True, exist_ok=True)


def open_file(path: Path, mode: str) -> FileIO:
    """Open `path` unbuffered (`"wb"`, `"ab"`): what `write` returned from is in the operating system's hands and survives a SIGKILL."""
    return open(path, mode, buffering=0)  # type: ignore[return-value]  # noqa: PTH123  (buffering=0 in binary mode is a FileIO)


def write(file: FileIO, data: bytes) -> None:
    """Write all of `data`: one system call where the system takes it whole."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def truncate(file: FileIO, size: int) -> None:
    """Cut `file` to `size` bytes."""
    file.truncate(size)


def sync(file: FileIO) -> None:
    """Wait until `file` is on the disk itself."""
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in folder `path` are on the disk; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Give `old` the name `new` in one step; an existing file `new` is replaced."""
    os.replace(old, new)  # noqa: PTH105


def read(path: Path) -> bytes:
    """All bytes of a file."""
    return path.read_bytes()


def size(file: FileIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; what is not there is fine."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until its bytes are on the disk."""
    with open_file(path, "wb") as file:
        write(file, data)
        sync(file)


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: a reader sees the old bytes or the new ones."""
    new = path.with_name(f"{path.name}.tmp")
    try:
        write_file(new, data)
        rename(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
