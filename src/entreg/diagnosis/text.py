"""Lines of a text file in batches of about a megabyte, so that neither a long file nor a long line fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from entreg.diagnosis.columns import BadLog

BLOCK = 1 << 20
LONGEST = 4 << 20  # bytes of a line


class Batch(NamedTuple):
    """Whole lines without their ends, the number of the first one (from 1), and whether the last one lacks its newline (a log that grows, or was cut off)."""

    first: int
    lines: list[str]
    torn: bool


def batches(path: Path) -> Iterator[Batch]:
    """All lines of `path`, UTF-8.

    Raises: `BadLog` for bytes that are no text and for a line of more than `LONGEST` bytes; `OSError` of the system.
    """
    rest, number = b"", 1
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            whole, newline, tail = block.rpartition(b"\n")
            if b"\0" in block:
                raise _binary(path, number, rest + block)
            if not newline:
                rest += tail
                if len(rest) > LONGEST:
                    raise BadLog(f"{path}, line {number}: longer than {LONGEST} bytes")
                continue
            lines = _decoded(path, number, rest + whole)
            yield Batch(number, lines, False)
            number, rest = number + len(lines), tail
    if rest:
        yield Batch(number, _decoded(path, number, rest), True)


def _decoded(path: Path, first: int, data: bytes) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _binary(path, first, data, error.start) from None
    if first == 1:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").removesuffix("\r").split("\n")


def _binary(path: Path, first: int, data: bytes, at: int | None = None) -> BadLog:
    at = data.index(b"\0") if at is None else at
    line = first + data.count(b"\n", 0, at)
    return BadLog(f"{path}, line {line}: byte {data[at]:#04x} is no text (UTF-8)")


def opening(path: Path, size: int = 65536) -> bytes:
    """The first bytes of a file, by which it is told what it is."""
    with path.open("rb") as file:
        return file.read(size)
