"""Bad logs: one clear line that names file and place, exit status 2, no traceback, bounded memory."""

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

from entreg import cli
from tests.diagnosis import junk

LINE = {
    "empty.csv": (b"", "holds no records"),
    "blank.csv": (b"\n\n\n", "holds no records"),
    "names.csv": (b"step,entropy\n", "holds no records"),
    "words.csv": (b"step,entropy\n1,0.5\n2,high\n", "line 3: entropy is 'high'; legal is a number"),
    "short.csv": (b"step,entropy,coef\n1,0.5,0.1\n2,0.5\n3,0.5,0.1\n", "line 3: 2 cells; legal are 3"),
    "twice.csv": (b"step,entropy,entropy\n1,0.5,0.1\n", "line 1: two columns are called 'entropy'"),
    "nan.csv": (b"step,entropy\n1,nan\n2,NaN\n", "column 'entropy' has no finite value, the first is at line 2"),
    "unknown.csv": (b"step,loss\n1,2\n2,3\n", "no known column of an entropy or a coefficient; there are step, loss: name one with --column entropy=NAME"),
    "quote.csv": (b'step,entropy\n1,"0.5\n2,0.4\n', "line 3: entropy is '0.5\\n2,0.4\\n'"),
    "member.csv": (b"step,entropy,member\n1,0.5,0\n2,0.5,1.5\n", "line 3: member is 1.5; legal are integers from 0 to 4095"),
    "zeros.csv": (b"step,entropy\n1,0.5\n\0\0\0\0", "line 3: byte 0x00 is no text (UTF-8)"),
    "latin.csv": (b"step,entropy\n1,0.5\n2,0.\xe9\n", "line 3: byte 0xe9 is no text (UTF-8)"),
    "png.csv": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 3: byte 0x00 is no text (UTF-8)"),
    "words.jsonl": (b'{"step": 1, "entropy": 0.5}\n{"step": 2, "entropy": "low"}\n', "line 2: entropy is 'low'; legal is a number"),
    "list.jsonl": (b'{"step": 1, "entropy": 0.5}\n[1, 2]\n', "line 2: '[1, 2]' is no JSON object"),
    "deep.jsonl": (b'{"step": 1, "entropy": 0.5}\n' + b"[" * 99999 + b"\n", "line 2: "),
    "null.jsonl": (b'{"step": 1, "entropy": null}\n', "column 'entropy' has no finite value"),
    "huge.jsonl": (b'{"step": 1, "entropy": 1' + b"0" * 400 + b"}\n", "line 1: entropy is 1000"),
    "trainer_state.json": (b'{\n "log_history": [\n  {"step": 1,\n', "line 4: no JSON"),
    "old.json": (b'{\n "max_steps": 3\n}', "log_history is missing or no list of objects"),
    "history.json": (b'{"log_history": [{"step": 1, "entropy": [3]}]}', "entry 0 of log_history: entropy is [3]; legal is a number"),
    "array.json": (b'[\n {"step": 1, "entropy": 0.5}\n]\n', "line 1: a JSON array; legal is an object a line, JSONL"),
    "feed.csv": (b"step,entr\x0cpy\x1b[2J\n1,1\n2,0.5\n", "there are step, entr\\x0cpy\\x1b[2J: name one"),
    "quiet.log": (b"hello\nworld\n", "holds no records"),
    "cut.tfevents": (junk.GOOD["events.out.tfevents.1"][:9], "record 1: cut off; it holds no records"),
}


def diagnose(capsys, *words):
    status = cli.main(["diagnose", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("name", LINE)
def test_what_is_wrong_is_one_line_that_names_file_and_place(tmp_path, capsys, name):
    data, words = LINE[name]
    (tmp_path / name).write_bytes(data)
    status, out, err = diagnose(capsys, tmp_path / name)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("entreg: ") and str(tmp_path / name) in err and words in err, err


@pytest.mark.parametrize(("name", "line"), [("log.csv", 13), ("log.jsonl", 12), ("events.out.tfevents.1", 13)])
def test_a_log_that_is_cut_off_is_diagnosed_as_far_as_it_goes_and_the_status_says_so(tmp_path, capsys, name, line):
    (tmp_path / name).write_bytes(junk.GOOD[name][:-9])
    status, out, err = diagnose(capsys, tmp_path / name)
    assert status == 2 and f" {line}: cut off; what stands before is diagnosed" in err and "to step 11" in out


def test_a_run_folder_may_end_in_a_torn_line_and_have_lines_that_are_no_records(tmp_path, capsys):
    """That is the law of records.jsonl: the last line is torn after a crash, and zeros stand where the power failed."""
    (tmp_path / "records.jsonl").write_bytes(junk.GOOD["log.jsonl"] + b'rubbish\n{"step": 13, "entropy": 0.1}\n{"step": 14, "ent')
    status, out, err = diagnose(capsys, tmp_path)
    assert status == 0 and "to step 13" in out
    assert "lines that are no records, left out: 1, the first is 13" in err


def test_a_later_format_of_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_bytes(junk.GOOD["log.jsonl"])
    (tmp_path / "config.json").write_text('{"format": 2}')
    status, _, err = diagnose(capsys, tmp_path)
    assert status == 2 and "config.json: format 2; legal is 1: this run was written by a later version" in err
    (tmp_path / "config.json").write_text('{\n "recipe"')
    assert "config.json, line 2: no JSON" in diagnose(capsys, tmp_path)[2]


def test_paths_that_are_not_there_or_hold_nothing(tmp_path, capsys):
    status, _, err = diagnose(capsys, tmp_path / "nowhere")
    assert status == 2 and f"{tmp_path / 'nowhere'}: cannot be read (No such file or directory)" in err
    status, _, err = diagnose(capsys, tmp_path)
    assert status == 2 and "holds no log; legal are records.jsonl" in err


@pytest.mark.skipif(os.name == "nt", reason="pipes are POSIX")
def test_a_pipe_is_refused(tmp_path, capsys):
    """It would be waited for without end, or read without its beginning, by which logs are told."""
    os.mkfifo(tmp_path / "pipe")
    status, out, err = diagnose(capsys, tmp_path / "pipe")
    assert (status, out) == (2, "") and f"{tmp_path / 'pipe'} is a pipe or a device; legal are files" in err and err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
@pytest.mark.parametrize(("path", "said"), [("log.csv", "log.csv"), (".", "shut/")])
def test_no_permission(tmp_path, path, said):
    (tmp_path / "log.csv").write_bytes(junk.GOOD["log.csv"])
    (tmp_path / "log.csv").chmod(0)
    for name, mode in (("open", 0o755), ("shut", 0o000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_bytes(junk.GOOD["log.csv"])
        (tmp_path / name).chmod(mode)
    look = f"command.run(['{path}'])"  # twice: nobody may not be allowed to read the interpreter's own modules either
    code = f"import os, sys; from entreg.diagnosis import command; {look}; os.geteuid() or os.seteuid(65534); sys.exit({look})"
    tmp_path.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True, capture_output=True, check=False
    )
    (tmp_path / "shut").chmod(0o755)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith(f"entreg: {said}")
    assert ended.stderr.endswith("cannot be read (Permission denied)\n")
    if path == ".":
        assert ended.stdout.splitlines()[-2].startswith("open/progress.csv")


def test_one_bad_log_among_good_ones_does_not_hide_their_findings(tmp_path, capsys):
    (tmp_path / "bad.csv").write_bytes(b"step,loss\n1,2\n")
    (tmp_path / "good.csv").write_bytes(junk.GOOD["log.csv"])
    status, out, err = diagnose(capsys, tmp_path / "bad.csv", tmp_path / "good.csv")
    assert status == 2 and "good.csv" in out and "bad.csv" in err and "good.csv" not in err


@pytest.mark.parametrize(
    "start", [b"", b"step,entropy\n1,0.5\n", b'{"step": 1, "entropy": 0.5}\n', junk.GOOD["events.out.tfevents.1"]], ids=["nothing", "csv", "jsonl", "events"]
)
def test_two_gigabytes_of_zeros_are_refused_in_little_memory(tmp_path, capsys, start):
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, _, err = diagnose(capsys, path)
    assert status == 2 and err.count("\n") == 1 and str(path) in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # kilobytes


def test_a_line_that_does_not_end_is_refused_in_little_memory(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_bytes(b"step,entropy\n" + b"1" * (5 << 20))
    status, _, err = diagnose(capsys, path)
    assert status == 2 and "log.csv, line 2: longer than 4194304 bytes" in err


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(junk.logs())
def test_no_log_whatever_it_holds_brings_diagnose_down(tmp_path_factory, log):
    junk.check(tmp_path_factory.getbasetemp(), *log)


def test_the_good_logs_of_the_fuzz_are_good(tmp_path):
    for name, data in junk.GOOD.items():
        assert junk.check(tmp_path, name, data) == 0, name
