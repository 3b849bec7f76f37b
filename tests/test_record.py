"""Records: whatever byte a crash cuts at, nothing that was whole is lost, and nothing that was not is read."""

import errno
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg import disk
from entreg.record import FILE, Recorder, encode, read_records
from tests.faults import ERRORS, FaultyDisk

VALUES = {"entropy": 0.5, "note": 'ünïcode "\n', "nan": float("nan"), "inf": float("-inf"), "big": 2**200, "none": None, "list": [1, {"a": False}]}


def steps(folder):
    return [record["step"] for record in read_records(folder).lines]


def test_a_file_cut_at_every_byte_is_read_appended_and_read_again(tmp_path):
    with Recorder(tmp_path / "whole") as recorder:
        for step in range(4):
            recorder.log(step, **VALUES)
    data = (tmp_path / "whole" / FILE).read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    file = tmp_path / FILE
    for cut in range(len(data) + 1):
        file.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert steps(tmp_path) == list(range(whole)), cut
        with Recorder(tmp_path) as recorder:
            assert recorder.offset == ([0, *ends])[whole]
            recorder.log(99, again=1.0)
        found = read_records(tmp_path)
        assert [record["step"] for record in found.lines] == [*range(whole), 99], cut
        assert found.skipped == 0 and found.end == file.stat().st_size
        file.unlink()


def test_values_come_back(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log(1, **VALUES)
        recorder.log(torch.tensor(2), a=np.float32(0.5), b=torch.tensor(0.25), c=np.int64(7), d=np.bool_(True), e=np.float64("inf"), f=[np.int8(3)])
    first, second = read_records(tmp_path).lines
    assert first.pop("time") > 1.7e9 and math.isnan(first.pop("nan"))
    assert first == {"step": 1, **{name: value for name, value in VALUES.items() if name != "nan"}}
    assert {**second, "time": 0} == {"step": 2, "time": 0, "a": 0.5, "b": 0.25, "c": 7, "d": True, "e": math.inf, "f": [3]}
    assert isinstance(second["step"], int) and second["d"] is True


@pytest.mark.parametrize("value", [np.ones(2), torch.ones(2, 2), object(), {1, 2}, b"bytes", 1j])
def test_what_is_no_json_value_is_named_and_writes_nothing(tmp_path, value):
    with Recorder(tmp_path) as recorder:
        recorder.log(1, fine=1.0)
        with pytest.raises(ValueError, match="log: wrong is"):
            recorder.log(2, fine=1.0, wrong=value)
        recorder.log(3)
    assert steps(tmp_path) == [1, 3]


def test_lines_that_are_no_records_are_skipped_and_counted(tmp_path):
    rubbish = [b"\0" * 40, b"\xff\xfe", b"[1, 2]", b"7", b'{"step": ', b"[" * 100_000, b"{}}"]
    lines = [line for i, bad in enumerate(rubbish) for line in (json.dumps({"step": i}).encode(), bad)]
    (tmp_path / FILE).write_bytes(b"\n".join(lines) + b"\n\n  \n")
    found = read_records(tmp_path / FILE)
    assert [record["step"] for record in found.lines] == list(range(len(rubbish)))
    assert found.skipped == len(rubbish)


def test_a_missing_file_has_no_records(tmp_path):
    assert read_records(tmp_path) == ([], 0, 0)
    assert read_records(tmp_path / "nowhere" / FILE) == ([], 0, 0)


def test_cut_takes_back_what_came_later(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log(1)
        offset = recorder.offset
        recorder.log(2)
        recorder.cut(offset)
        assert recorder.offset == offset
        recorder.log(3)
        recorder.cut(10**6)  # a file that is shorter stays as it is
        recorder.log(4)
    assert steps(tmp_path) == [1, 3, 4]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("dead", [False, True])
def test_a_write_that_fails_halfway_is_an_error_and_leaves_whole_lines(tmp_path, error, dead):
    with Recorder(tmp_path) as recorder:
        recorder.log(1)
        with FaultyDisk(0, error, dead=dead).installed(), pytest.raises(OSError) as caught:
            recorder.log(2)
        assert caught.value.errno == error
        assert steps(tmp_path) == [1]
        assert dead or (tmp_path / FILE).stat().st_size == recorder.offset
        recorder.log(3)  # the disk is well again
    assert steps(tmp_path) == [1, 3]
    assert read_records(tmp_path).skipped == 0


def test_a_write_that_is_interrupted_halfway_is_cut_before_the_next(tmp_path, monkeypatch):
    write = disk.write

    def interrupted(file, data):
        write(file, data[: len(data) // 2])
        raise KeyboardInterrupt

    with Recorder(tmp_path) as recorder:
        recorder.log(1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(disk, "write", interrupted)
            recorder.log(2)
        recorder.log(3)
    assert steps(tmp_path) == [1, 3] and read_records(tmp_path).skipped == 0


def test_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Recorder(tmp_path / "file")
    with FaultyDisk(0, errno.EACCES).installed(), pytest.raises(PermissionError):
        Recorder(tmp_path / "folder")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_record_is_one_line_that_comes_back(record):
    line = encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line) == record
