"""TensorBoard event files: TFRecord framing and the few protobuf fields that scalars need, read without any package.

A record is `length (8 bytes), masked CRC of these, data, masked CRC of the data`. In an Event: 2 step, 3 file version, 5 summary; in a summary 1 values; in a
value 1 tag, 2 simple value, 8 tensor; in a tensor 1 type, 4 content, 5 floats, 6 doubles. Everything else is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.gather import Gather

VERSION = "brain.Event:2"
LARGEST = 1 << 28  # bytes of a record: a longer one is no record
CHUNK = 4096  # values of a series that are handed on together
HEAD = 12


class Scalar(NamedTuple):
    """One value of an event file."""

    tag: str
    step: int
    value: float


class _Torn(Exception):
    """The file ends within a record."""


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli) of every byte."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data`, rotated and shifted as TFRecord stores it.

    >>> hex(masked_crc(b"123456789"))          # CRC-32C 0xe3069283
    '0xc78ab0e5'
    """
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_events(head: bytes) -> bool:
    """Whether a file that begins like this is an event file: the CRC of its first length is right."""
    return len(head) >= HEAD and masked_crc(head[:8]) == int.from_bytes(head[8:12], "little") and int.from_bytes(head[:8], "little") <= LARGEST


def read_events(path: Path, gather: Gather) -> str | None:
    """Fill `gather` with the scalars, and return where the file is cut off.

    Raises: `BadLog` for a wrong CRC, a record that is no event, and a version of the format that is not known.
    """
    waiting: dict[str, tuple[list[int], list[float]]] = {}
    wanted: dict[str, bool] = {}

    def hand_on(tag: str) -> None:
        steps, values = waiting.pop(tag)
        gather.scalar(tag, np.array(steps, np.float64), np.array(values, np.float64))

    cut = None
    with path.open("rb") as file:
        number = 0
        try:
            for number, data in enumerate(_records(path, file), 1):
                for tag, step, value in _scalars(path, number, data):
                    if tag not in wanted:
                        wanted[tag] = bool(gather.wanted([tag]))
                    if not wanted[tag]:
                        gather.passed(1)
                        continue
                    steps, values = waiting.setdefault(tag, ([], []))
                    steps.append(step)
                    values.append(value)
                    if len(steps) >= CHUNK:
                        hand_on(tag)
        except _Torn:
            cut = f"{path}, record {number + 1}: cut off"
    for tag in list(waiting):
        hand_on(tag)
    return cut


def _records(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The data of every record whose CRCs are right."""
    number = 0
    while head := file.read(HEAD):
        number += 1
        if len(head) < HEAD:
            raise _Torn
        length = int.from_bytes(head[:8], "little")
        if masked_crc(head[:8]) != int.from_bytes(head[8:], "little") or length > LARGEST:
            raise BadLog(f"{path}, record {number}: the CRC of its length is wrong; legal are TensorBoard event files")
        data = file.read(length + 4)
        if len(data) < length + 4:
            raise _Torn
        if masked_crc(data[:length]) != int.from_bytes(data[length:], "little"):
            raise BadLog(f"{path}, record {number}: the CRC of its data is wrong")
        yield data[:length]


def _scalars(path: Path, number: int, data: bytes) -> Iterator[Scalar]:
    """The scalars of one event."""
    try:
        step, summaries = 0, []
        for field, value in _fields(data):
            if field == 2 and isinstance(value, int):
                step = value - (1 << 64) if value >= 1 << 63 else value
            elif field == 3 and isinstance(value, bytes) and value.decode(errors="replace") != VERSION:
                raise BadLog(f"{path}, record {number}: format version {value.decode(errors='replace')!r:.40}; legal is {VERSION!r}")
            elif field == 5 and isinstance(value, bytes):
                summaries.append(value)
        found = [one for summary in summaries for field, inner in _fields(summary) if field == 1 and isinstance(inner, bytes) for one in [_value(inner)] if one]
    except (ValueError, IndexError, struct.error) as error:
        if isinstance(error, BadLog):
            raise
        raise BadLog(f"{path}, record {number}: no TensorBoard event ({error})") from None
    for tag, scalar in found:
        yield Scalar(tag, step, scalar)


def _value(data: bytes) -> tuple[str, float] | None:
    """Tag and number of a summary value; None where it is no scalar."""
    tag, number = "", None
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            tag = value.decode(errors="replace")
        elif field == 2 and isinstance(value, float):
            number = value
        elif field == 8 and isinstance(value, bytes):
            number = _tensor(value)
    return None if number is None else (tag, number)


def _tensor(data: bytes) -> float | None:
    """The number of a tensor of one float or double."""
    kind = 0
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field in (5, 6) and isinstance(value, float):
            return value
        elif field in (4, 5, 6) and isinstance(value, bytes):
            form = "<f" if field == 5 or (field == 4 and kind == 1) else "<d"
            if kind in (1, 2) and len(value) == struct.calcsize(form):
                return float(struct.unpack(form, value)[0])
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a protobuf message: numbers, doubles and floats, and bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind == 1:
            yield key >> 3, float(struct.unpack_from("<d", data, at)[0])
            at += 8
        elif kind == 5:
            yield key >> 3, float(struct.unpack_from("<f", data, at)[0])
            at += 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field is longer than its message")
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("a number of more than ten bytes")
