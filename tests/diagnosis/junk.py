"""Broken logs: good ones of every kind, edited; what any of them must do. Shared by the tests and by `make soak`."""

import contextlib
import io
import json
import struct

from hypothesis import strategies as st

from entreg.diagnosis import command, events

STEPS = range(1, 13)


def record(data):
    """A TFRecord."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", events.masked_crc(head)) + data + struct.pack("<I", events.masked_crc(data))


def field(number, data):
    """A protobuf field of bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def scalar(tag, step, value):
    """An event with one number."""
    return record(b"\x10" + bytes([step]) + field(5, field(1, field(1, tag) + b"\x15" + struct.pack("<f", value))))


ROWS = [{"step": step, "entropy": 1 / step, "return": step * 2.0, "coef": 0.01, "member": step % 2} for step in STEPS]
GOOD = {
    "log.csv": b"step,entropy,reward,note\n" + b"".join(b"%d,%f,%d,a b\n" % (step, 1 / step, step) for step in STEPS),
    "log.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "trainer_state.json": json.dumps({"log_history": ROWS, "max_steps": 20, "global_step": 12}, indent=1).encode(),
    "console.log": b"words\n" + b"".join(b"x step:%d - actor/entropy:%f - critic/score/mean:%d\n" % (step, 1 / step, step) for step in STEPS),
    "events.out.tfevents.1": record(field(3, b"brain.Event:2")) + b"".join(scalar(b"losses/entropy", step, 1 / step) for step in STEPS),
}
TOKENS = [
    b"",
    b"\0",
    b"\n",
    b",",
    b'"',
    b"{",
    b"}",
    b"[",
    b"NaN",
    b"1e999",
    b"-1",
    b"abc",
    b"\xff\xfe",
    b"null",
    b"true",
    b'{"a":1}',
    b"9" * 400,
    b"[" * 2000,
    b"\r",
    b"\x1b[1m",
]

edits = st.lists(
    st.tuples(st.sampled_from(["cut", "put", "drop", "double", "flip"]), st.integers(0, 1000), st.sampled_from(TOKENS) | st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=2) | st.just({"a": 1})
names = st.sampled_from(["step", "entropy", "return", "coef", "member", "entropy_loss", "event", "data", "entropy/max", "grad_share", "entropy/target", "x"])
tables = st.lists(st.dictionaries(names, values, max_size=5), min_size=1, max_size=14)


def edited(data, changes):
    """The bytes after these edits."""
    for kind, place, token in changes:
        at = place * len(data) // 1000
        if kind == "cut":
            data = data[:at]
        elif kind == "put":
            data = data[:at] + token + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + 1 + len(token) :]
        elif kind == "double":
            data = data[:at] + data[max(0, at - 40) :]
        elif data:
            data = data[: min(at, len(data) - 1)] + bytes([data[min(at, len(data) - 1)] ^ (1 + place % 255)]) + data[min(at, len(data) - 1) + 1 :]
    return data


@st.composite
def logs(draw):
    """A file's name and its bytes: a good log with edits, rows of anything as JSONL or as a table, or bytes."""
    kind = draw(st.integers(0, 9))
    if kind < 6:
        name = draw(st.sampled_from(sorted(GOOD)))
        return name, edited(GOOD[name], draw(edits))
    if kind < 8:
        return "log.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in draw(tables))
    if kind == 8:
        rows = draw(tables)
        columns = list(dict.fromkeys(name for row in rows for name in row)) or ["x"]
        lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
        return "log.csv", "\n".join(lines).encode(errors="replace")
    return draw(st.sampled_from(sorted(GOOD))), draw(st.binary(max_size=200))


def check(folder, name, data):
    """Diagnosing never raises: 0 or 1 and findings, or 2 and what is wrong in lines that name the file. Returns the status."""
    path = folder / name
    path.write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command.run([str(path)])
    said = err.getvalue().splitlines()
    assert status in (0, 1, 2), status
    assert all(line.startswith("entreg: ") and name in line for line in said), said
    assert status != 2 or said, "nothing was said"
    assert "Traceback" not in err.getvalue()
    return status
