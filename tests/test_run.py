"""A run: what it leaves on the disk when it ends well, when it is stopped, killed, or finds the disk full; and that it goes on exactly."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entreg.checkpoint import load_best
from entreg.record import read_records
from entreg.run import NonFinite, Run, RunSettings, Summary, closing, exit_status, read_config
from tests import faults, toy
from tests.faults import ERRORS, FaultyDisk

STEPS = 120


def settings(tmp_path, **changes):
    return RunSettings(**{"out": tmp_path / "runs", "checkpoint_every": 0, "quiet": True, **changes})


def walk(tmp_path, steps=10, **changes):
    config = toy.Config(steps=steps)
    with Run.open("toy", "walk", config, settings(tmp_path, **changes)) as run:
        return toy.train(config, run)


@pytest.fixture
def tmp_path():
    with faults.memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def whole():
    """The folder of a walk that nothing disturbed."""
    with faults.memory_folder() as folder:
        yield walk(folder, STEPS).folder


def assert_same(folder, whole):
    assert faults.lasting(folder) == faults.lasting(whole)
    ours, theirs = faults.final_state(folder), faults.final_state(whole)
    assert ours["place"].tobytes() == theirs["place"].tobytes()
    assert (ours["step"], ours["generator"]) == (theirs["step"], theirs["generator"])
    ours, theirs = load_best(folder / "checkpoint", 0), load_best(whole / "checkpoint", 0)
    assert ours.facts == theirs.facts and ours.state["weights"]["place"].tobytes() == theirs.state["weights"]["place"].tobytes()


# ---------------------------------------------------------------- a run that ends well


def test_what_a_run_leaves(tmp_path):
    summary = walk(tmp_path, 10)
    assert summary.step == 10 and summary.stopped is None and exit_status(summary) == 0
    assert [record["step"] for record in read_records(summary.folder).lines] == list(range(1, 11))
    page = read_config(summary.folder)
    assert (page["recipe"], page["task"], page["config"]) == ("toy", "walk", {"steps": 10, "size": 5})
    assert {path.name for path in summary.folder.iterdir()} == {"config.json", "records.jsonl", "checkpoint", ".lock"}
    assert {path.name for path in (summary.folder / "checkpoint").iterdir()} == {"state-00000010", "state-00000011", "best-0"}


def test_json_has_no_nan(tmp_path):
    page = json.loads(closing(Summary(tmp_path, 3, None, {"return": float("nan"), "best": 1.5}), "ppo", as_json=True), parse_constant=pytest.fail)
    assert page["metrics"] == {"return": None, "best": 1.5}


def test_closing_lines(tmp_path):
    summary = Summary(tmp_path / "x", 7, "SIGTERM", {"return": 12.5})
    assert closing(summary, "ppo").splitlines() == ["stopped (SIGTERM) at step 7: return 12.5", f"{tmp_path / 'x'}: entreg train ppo --resume {tmp_path / 'x'}"]
    page = json.loads(closing(summary, "ppo", as_json=True, report=tmp_path / "report.html"))
    assert page == {"folder": str(tmp_path / "x"), "step": 7, "stopped": "SIGTERM", "metrics": {"return": 12.5}, "report": str(tmp_path / "report.html")}
    assert [exit_status(Summary(tmp_path, 0, stopped, {})) for stopped in (None, "max_time", "stop_at", "SIGINT", "SIGTERM")] == [0, 0, 0, 130, 143]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 10**22},
        {"threads": 0},
        {"threads": 100_000},
        {"checkpoint_every": -1.0},
        {"checkpoint_every": float("nan")},
        {"eval_every": 0},
        {"max_time": 0.0},
        {"dry_run": True, "resume": "latest"},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*legal"):
        RunSettings(**wrong)


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("stop", [1, 7, 10, 13])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, whole, stop):
    first = walk(tmp_path, stop)
    assert walk(tmp_path, STEPS, resume="latest" if stop % 2 else str(first.folder)).folder == first.folder
    assert_same(first.folder, whole)
    assert [record["event"] for record in read_records(first.folder).lines if "event" in record] == ["resumed"]


def test_records_behind_the_checkpoint_are_cut_and_made_again(tmp_path, whole):
    summary = walk(tmp_path, 20)
    with (summary.folder / "records.jsonl").open("ab") as file:  # as if it had gone on and died before the next checkpoint
        file.write(b'{"step": 21, "entropy": 1.0}\n{"step": 22, "entr')
    walk(tmp_path, STEPS, resume="latest")
    assert_same(summary.folder, whole)


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path, whole, capsys):
    summary = walk(tmp_path, 20)
    newest = max((summary.folder / "checkpoint").glob("state-*"))
    (newest / "state.json").write_bytes(b"{}")
    walk(tmp_path, STEPS, resume="latest")
    assert newest.name in capsys.readouterr().err
    assert_same(summary.folder, whole)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path, whole):
    config = toy.Config(steps=STEPS)
    with Run.open("toy", "walk", config, settings(tmp_path)) as run:
        run.log(1, entropy=5.0)
    with Run.open("toy", "walk", config, settings(tmp_path, resume="latest")) as again:
        assert again.restore() is None and again.folder == run.folder
        toy.train(config, again)
    assert_same(run.folder, whole)


def test_a_resumed_run_goes_by_its_own_seed(tmp_path):
    first = walk(tmp_path, 3, seed=5, eval_every=7)
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path, resume=str(first.folder), max_time=9.0)) as run:
        assert (run.settings.seed, run.settings.eval_every, run.settings.max_time) == (5, 7, 9.0)


def test_missing_records_are_said(tmp_path, capsys):
    first = walk(tmp_path, 3)
    (first.folder / "records.jsonl").write_bytes(b'{"step": 1}\n')
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path, resume="latest")):
        pass
    assert "bytes of records are missing before the checkpoint of step 3" in capsys.readouterr().err
    assert [record["step"] for record in read_records(first.folder).lines] == [1, 3]  # with the event


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lockf")
def test_a_run_that_is_being_written_cannot_be_resumed_beside_it(tmp_path):
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path)) as run:
        size = (run.folder / "records.jsonl").stat().st_size
        ended = faults.finish(faults.python("tests.toy", "--out", tmp_path / "runs", "--resume", "latest"))
        assert ended.code == 1 and "which another process is writing" in ended.err
        assert (run.folder / "records.jsonl").stat().st_size == size
    walk(tmp_path, 5, resume="latest")


def test_a_worse_policy_is_not_the_best_also_after_resuming(tmp_path):
    def policy(value):
        return {"spec": {}, "weights": {"w": torch.tensor([value])}, "normaliser": None}

    with Run.open("toy", "walk", toy.Config(), settings(tmp_path)) as run:
        assert [run.save_best(1, score, policy(score)) for score in (float("nan"), 2.0, 1.0, 2.0)] == [False, True, False, True]
        run.log(1)
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path, resume="latest")) as run:
        assert [run.save_best(1, score, policy(score)) for score in (1.5, 3.0)] == [False, True]
        assert run.save_best(0, -5.0, policy(-5.0))
    assert load_best(run.folder / "checkpoint", 1).state["weights"]["w"].item() == 3.0


# ---------------------------------------------------------------- usage errors leave nothing


class Unwritable:
    def __repr__(self):
        raise ValueError("coef has no spelling")


@pytest.mark.parametrize("fault", [*range(10)])
def test_opening_fails_cleanly_wherever_the_disk_does(tmp_path, fault):
    with FaultyDisk(fault, errno.EACCES).installed() as faulty, pytest.raises(OSError) as caught:
        Run.open("toy", "walk", toy.Config(), settings(tmp_path))
    assert "\n" not in str(caught.value) and len(faulty.calls) > fault
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_described_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="coef has no spelling"):
        Run.open("toy", "walk", {"coef": Unwritable()}, settings(tmp_path))
    with pytest.raises(ValueError, match="holds no run of toy"):
        Run.open("toy", "walk", toy.Config(), settings(tmp_path, resume="latest"))
    assert not (tmp_path / "runs").exists()


def test_a_missing_extra_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'entreg\[run\]'"):
        Run.open("toy", "walk", toy.Config(), settings(tmp_path))
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- time, dry runs, numbers that are none


def test_checkpoints_wait_for_their_time(tmp_path):
    made = []
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path, checkpoint_every=1e9)) as run:
        for step in range(5):
            run.checkpoint(step, lambda: made.append(1) or {"x": 1})
        assert not made
        assert run.checkpoint(5, lambda: {"x": 2}, force=True)
        assert run.reload() == {"x": 2}


def test_records_are_on_the_disk_before_the_checkpoint_that_counts_them(tmp_path):
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path)) as run, FaultyDisk().installed() as counted:
        run.log(1, entropy=1.0)
        run.checkpoint(1, lambda: {"x": 1}, force=True)
    assert counted.calls[:3] == ["write", "sync", "make_folder"]


def test_max_time_and_stop_end_a_run_well(tmp_path):
    timed = walk(tmp_path, STEPS, max_time=1e-9)
    assert (timed.step, timed.stopped, exit_status(timed)) == (0, "max_time", 0)
    with Run.open("toy", "walk", toy.Config(), settings(tmp_path)) as run:
        assert run.stopping() is None
        run.stop("stop_at")
        run.stop("later")
        summary = run.finish(3, {})
    assert summary.stopped == "stop_at"
    assert read_records(run.folder).lines[-1]["event"] == "stopped"


def test_a_dry_run_keeps_nothing_and_says_what_it_checked(tmp_path, capsys):
    summary = walk(tmp_path, 2, dry_run=True)
    assert list(tmp_path.iterdir()) == [] and not summary.folder.exists()
    err = capsys.readouterr().err
    assert "dry run: configuration and records written, a checkpoint of" in err and "GB are free" in err


def test_a_dry_run_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("entreg.run.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="dry run: 0 MB are free, a run needs 67 MB") as caught:
        walk(tmp_path, 2, dry_run=True)
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (float("nan"), "1 of 1 values are not finite, the first is nan at []"),
        (np.array([[0.0, 1.0], [np.inf, np.nan]]), "2 of 4 values are not finite, the first is inf at [1, 0]"),
        (np.float32("-inf"), "1 of 1 values are not finite, the first is -inf at []"),
        (torch.tensor([1.0, float("nan")], requires_grad=True), "1 of 2 values are not finite, the first is nan at [1]"),
        (torch.tensor([[float("inf")]], dtype=torch.bfloat16), "1 of 1 values are not finite, the first is inf at [0, 0]"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path, value, where):
    with pytest.raises(NonFinite) as caught, Run.open("toy", "walk", toy.Config(), settings(tmp_path)) as run:
        run.checkpoint(1, lambda: {"good": 1})
        run.check_finite(2, a=1.0, b=np.ones(3), c=torch.ones(2), d=np.arange(3), e=True, f=torch.arange(2), g=np.ones((0, 2)))
        run.check_finite(3, fine=np.zeros(2), **{"loss/policy": value})
    assert str(caught.value) == f"loss/policy at step 3: {where}"
    last = read_records(run.folder).lines[-1]
    assert (last["step"], last["event"], last["message"]) == (3, "nonfinite", str(caught.value))
    assert faults.final_state(run.folder) == {"good": 1}


# ---------------------------------------------------------------- signals


def test_signals_are_handled_inside_only_and_in_the_main_thread(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = Run.open("toy", "walk", toy.Config(), settings(tmp_path))
    with run:
        assert signal.getsignal(signal.SIGINT) != before[0] and run.stopping() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stopping() == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    seen = []

    def elsewhere():
        with Run.open("toy", "walk", toy.Config(), settings(tmp_path)):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before[1]]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("where", [("--pause", 0.002), ("--slow-disk", 0.01)], ids=["logging", "checkpointing"])
def test_a_signal_saves_and_the_run_goes_on_later(tmp_path, whole, number, code, where):
    name = signal.Signals(number).name
    ended = faults.signal_when(faults.python("tests.toy", "--out", tmp_path, "--steps", STEPS, "--announce", 6, *where), "announced", number)
    assert ended.code == code and f"stopped ({name})" in ended.out and "Traceback" not in ended.err
    (folder,) = faults.started(tmp_path)
    assert read_records(folder).lines[-1]["message"].startswith(name)
    reached = faults.final_state(folder)["step"]
    assert 6 <= reached < STEPS and len(faults.lasting(folder)) == reached
    walk(tmp_path, STEPS, resume=str(folder))
    assert_same(folder, whole)


def test_a_second_ctrl_c_quits_at_once(tmp_path):
    command = faults.python("tests.toy", "--out", tmp_path, "--steps", 10**9, "--announce", 5, "--deaf", "--every", 1e9)
    ended = faults.signal_when(command, "announced", signal.SIGINT, again="Ctrl-C quits at once")
    assert ended.code == 130 and ended.out == "" and "Traceback" not in ended.err
    assert read_records(faults.started(tmp_path)[0]).skipped == 0


FORKED = """
import multiprocessing, os, signal, sys, time
from entreg.run import Run, RunSettings
with Run.open("toy", "walk", {}, RunSettings(out=sys.argv[1])) as run:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    os.kill(worker.pid, signal.SIGINT)
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    code = worker.exitcode
    worker.kill()
    assert code == 143 and run.stopping() is None, code
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_worker_can_be_ended_and_leaves_ctrl_c_to_the_run(tmp_path):
    ended = faults.finish([sys.executable, "-c", FORKED, str(tmp_path)])
    assert ended.code == 0 and ended.err == "", ended.err


# ---------------------------------------------------------------- kills and a failing disk


def test_killed_at_random_moments_and_resumed(tmp_path, whole):
    delays = [random.Random(0).uniform(0.1, 0.8) for _ in range(6)]
    args = ("--out", tmp_path, "--steps", STEPS, "--pause", 0.01)
    folder, _ = faults.kill_and_resume(faults.python("tests.toy", *args), faults.python("tests.toy", *args, "--resume", "latest"), tmp_path, delays)
    assert_same(folder, whole)


def dies_and_goes_on(out, faulty, whole):
    """A walk of four steps on a disk that fails once or for good: it says so, and resumed it is the undisturbed one."""
    with faulty.installed(), pytest.raises(OSError) as caught:
        walk(out, 4)
    assert caught.value.errno == faulty.error, faulty.calls[faulty.at]
    walk(out, 4, resume="latest" if faults.started(out / "runs") else None)
    (folder,) = faults.started(out / "runs")
    assert_same(folder, whole)


@pytest.fixture
def short(tmp_path):
    """An undisturbed walk of four steps, and the number of its calls of the disk."""
    with FaultyDisk().installed() as counted:
        return walk(tmp_path / "short", 4).folder, len(counted.calls)


@pytest.mark.parametrize("dead", [False, True])
def test_any_call_of_the_disk_fails_and_the_run_goes_on_exactly(tmp_path, short, dead):
    folder, count = short
    for n in range(count):
        dies_and_goes_on(tmp_path / str(n), FaultyDisk(n, ERRORS[n % 3], dead=dead), folder)


def test_any_call_of_the_disk_fails_while_resuming(tmp_path, short):
    folder, count = short
    walk(tmp_path / "begun", 2)
    for n in range(count):
        out = tmp_path / str(n)
        shutil.copytree(tmp_path / "begun", out)
        with FaultyDisk(n, ERRORS[n % 3]).installed() as faulty, contextlib.suppress(OSError):
            walk(out, 4, resume="latest")  # a checkpoint that cannot be read once is passed over with a word: no error then
        if len(faulty.calls) <= n:
            return
        walk(out, 4, resume="latest")
        assert_same(faults.started(out / "runs")[0], folder)
