"""The storage of a sweep: torn journals, who takes which job, processes that die, and what a killed one loses."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from entreg.recipes import ppo
from entreg.record import read_records
from entreg.run import RunSettings
from entreg.sweep.journal import Journal
from entreg.sweep.options import Options
from entreg.sweep.plan import make
from entreg.sweep.store import ATTEMPTS, LATE, Lost, Store

ROOT = Path(__file__).parent.parent


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def plan_of(**options):
    return make("ppo", ppo.Config(), RunSettings(), "CartPole-v1", Options(**{"coef_range": (1e-3, 1.0), "points": 2, "seeds": 2, "members": 2} | options))


def store_of(path, plan=None, **how):
    return Store(plan or plan_of(), str(path), beat=10, **how)


def result(value=1.0, **more):
    shared = {"curve": [(1, value)], "scores": {"0": value}, "entropies": {"0": 0.5}, "classes": 2, "folder": "x", "members": {"0": ["x", 0]}}
    return {"value": value, **shared, **more}


# ---------------------------------------------------------------- torn journals


def studies(storage):
    return [study.study_name for study in storage.get_all_studies()]


def torn(path, tail):
    storage = JournalStorage(Journal(path))
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "first")
    with path.open("ab") as file:
        file.write(tail)


TAILS = [b'{"op_code":0,"worker_id":"x","study_na', b"{", b"\x00" * 40, b"\x00" * 40 + b"\n", b'{"op_code":0,"wor\n', b"17\n", b'{"op_code":0,"a":"\xc3']


@pytest.mark.parametrize("tail", TAILS)
def test_a_torn_tail_is_cut_and_what_is_written_behind_it_is_read(tail, tmp_path):
    path = tmp_path / "journal.log"
    torn(path, tail)
    storage = JournalStorage(Journal(path))
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "second")
    assert studies(JournalStorage(Journal(path))) == studies(JournalStorage(JournalFileBackend(str(path)))) == ["first", "second"]


def test_optunas_own_journal_loses_what_is_written_behind_a_torn_line(tmp_path):
    """The reason for `Journal`: with another Optuna this may be mended, and this test then fails."""
    path = tmp_path / "journal.log"
    torn(path, TAILS[0])
    with pytest.raises((ValueError, AssertionError)):
        storage = JournalStorage(JournalFileBackend(str(path)))
        storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "second")
        storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "third")


def test_a_line_that_another_process_tears_while_this_one_lives_is_cut_before_the_next(tmp_path):
    path = tmp_path / "journal.log"
    storage = JournalStorage(Journal(path))
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "first")
    with path.open("ab") as file:
        file.write(TAILS[0])
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "second")
    assert studies(JournalStorage(JournalFileBackend(str(path)))) == ["first", "second"]


def test_a_write_that_fails_leaves_no_torn_line(tmp_path, monkeypatch):
    from entreg import disk

    path = tmp_path / "journal.log"
    storage = JournalStorage(Journal(path))
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "first")
    before = path.read_bytes()

    def full(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write", full)
        with pytest.raises(OSError, match="No space"):
            storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "second")
    assert path.read_bytes() == before and not list(tmp_path.glob("*.lock"))


def test_damage_in_the_middle_is_named_and_left_alone(tmp_path):
    path = tmp_path / "journal.log"
    torn(path, b"rubbish\n")
    whole = path.read_bytes() + path.read_bytes().split(b"\n")[0] + b"\n"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="line 2 is no record: b'rubbish'"):
        Journal(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"dear diary\nmore\n", b'{"step": 1}\n', b"dear diary", b"SQLite format 3\x00" + b"\x00" * 50])
def test_a_file_that_is_no_journal_is_refused_untouched(content, tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 1 is no record"):
        Journal(path)
    assert path.read_bytes() == content


# ---------------------------------------------------------------- taking jobs


def test_every_job_is_taken_once_by_several_processes(tmp_path):
    stores = [store_of(tmp_path / "journal.log", plan_of(points=6)) for _ in range(3)]
    claims = []
    for turn in range(9):
        if (claim := stores[turn % 3].claim()) is not None:
            claims.append(tuple(claim.trials))
    assert sorted(claims) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)] and stores[0].claim() is None


def test_threads_that_race_for_jobs_get_each_once(tmp_path):
    plan, taken = plan_of(points=8), []

    def take():
        store = store_of(tmp_path / "journal.log", plan)
        while (claim := store.claim()) is not None:
            taken.append(next(iter(claim.trials)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(taken) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_trials_that_two_processes_put_in_at_once_count_once(tmp_path):
    one, other = (store_of(tmp_path / "journal.log") for _ in range(2))
    for store in (one, other):  # both saw an empty study
        for index in range(4):
            store.storage.create_new_trial(store.study, store._template(index, None))
    first, second = one.claim(), other.claim()
    assert {*first.trials, *second.trials} == {0, 1, 2, 3} and other.claim() is None
    for store, claim in ((one, first), (other, second)):
        store.finish(claim, {index: result() for index in claim.trials})
    assert one.finished() and len(one.current()) == 4


def test_the_trial_that_stands_for_a_job_ends_last(tmp_path):
    """A process that dies between two results has lost none: the job is taken again for what is missing."""
    store = store_of(tmp_path / "journal.log")
    claim = store.claim()
    ended = []
    end = store._end
    store._end = lambda trial, facts: (ended.append(trial), end(trial, facts))
    store.finish(claim, {index: result() for index in claim.trials})
    assert ended[-1] == claim.lead and len(ended) == 2


def test_a_job_is_taken_up_after_two_missed_beats_and_not_before(tmp_path):
    clock = Clock()
    dead, other = store_of(tmp_path / "journal.log"), store_of(tmp_path / "journal.log", clock=clock)
    lost, kept = dead.claim(), other.claim()
    assert other.claim() is None
    clock.now = 20 + LATE - 0.1
    assert other.claim() is None
    clock.now = 20 + LATE + 0.1
    again = other.claim()
    assert tuple(again.trials) == tuple(lost.trials) and again.lead != lost.lead and tuple(kept.trials) == (2, 3)
    failed = other.storage.get_trial(lost.lead)
    assert failed.state is TrialState.FAIL and "error" not in failed.user_attrs
    with pytest.raises(Lost):  # it was only suspended: it must not go on
        dead.beat(lost.lead)


def test_a_job_that_beats_is_left_alone_however_slow_it_is(tmp_path):
    clock = Clock()
    slow, other = (
        store_of(tmp_path / "journal.log", plan_of(points=2, members=4)),
        store_of(tmp_path / "journal.log", plan_of(points=2, members=4), clock=clock),
    )
    claim = slow.claim()
    for moment in range(0, 200, 15):
        clock.now = moment
        slow.beat(claim.lead)
        assert other.claim() is None


def test_of_several_observers_of_a_death_one_takes_the_job(tmp_path):
    plan, clock = plan_of(members=4), Clock()
    dead = store_of(tmp_path / "journal.log", plan)
    dead.claim()
    others = [store_of(tmp_path / "journal.log", plan, clock=clock) for _ in range(3)]
    assert [store.claim() for store in others] == [None] * 3
    clock.now = 100
    assert sum(store.claim() is not None for store in others) == 1


def test_a_job_that_was_put_back_is_taken_at_once(tmp_path):
    one, other = (store_of(tmp_path / "journal.log", plan_of(members=4)) for _ in range(2))
    claim = one.claim()
    assert other.claim() is None
    one.release(claim)
    assert tuple(other.claim().trials) == tuple(claim.trials)


def test_a_job_that_kills_every_process_is_given_up(tmp_path):
    plan, clock = plan_of(points=2, seeds=1, members=2), Clock()
    store = store_of(tmp_path / "journal.log", plan, clock=clock)
    for _ in range(ATTEMPTS):
        assert store.claim() is not None
        store._owned.clear()  # that process is dead
        assert store.claim() is None
        clock.now += 100
    assert store.claim() is None and store.finished()
    assert [trial.user_attrs["error"] for trial in store.current().values()] == [f"its process died {ATTEMPTS} times"] * 2


def test_a_sampled_setting_stays_when_its_process_dies(tmp_path):
    plan, clock = plan_of(sampler="random", trials=1), Clock()
    store = store_of(tmp_path / "journal.log", plan, clock=clock)
    claim = store.claim()
    before = store.setting(0, claim.trials[0])
    store._owned.clear()
    assert store.claim() is None
    clock.now = 100
    again = store.claim()
    assert again.trials[0].params == {"rule": "coef", "coef": pytest.approx(before.coef, rel=1e-5), "family": "shannon"}
    assert again.lead != claim.lead and store.setting(0, again.trials[0]) == before


def test_a_password_is_not_repeated():
    with pytest.raises(ValueError, match=r"storage is 'postgresql://me@127.0.0.1:1/x'") as found:
        store_of("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(found.value) and "\n" not in str(found.value)


# ---------------------------------------------------------------- processes

SMALL = ["sweep", "ppo", "--steps", "6144", "--environments", "2", "--rollout", "32", "--hidden", "8", "--eval-episodes", "2", "--quiet"]
SMALL += ["--coef-range", "1e-2", "1", "--points", "2", "--seeds", "2", "--members", "2", "--checkpoint-every", "0", "--heartbeat", "0.5"]


def start(cwd, *words, **how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "entreg", *SMALL, *words], cwd=cwd, env=environment, text=True, stdout=-1, stderr=-1, **how)


def until(what, limit=120.0):
    end = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def begun(cwd):
    return [path.parent for path in cwd.glob("runs/*/runs/*/*/*/records.jsonl") if len(read_records(path).lines) > 20]


@pytest.mark.slow
def test_sigkill_loses_the_running_trial_only_and_the_same_command_goes_on_from_its_checkpoint(tmp_path):
    cwds = [tmp_path / name for name in ("killed", "whole")]
    [cwd.mkdir() for cwd in cwds]
    process = start(cwds[0], "--workers", "1")
    (folder,) = until(lambda: begun(cwds[0]))
    process.kill()
    process.communicate()
    said = []
    for cwd in cwds:
        process = start(cwd, "--workers", "1", "--json")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        said.append(json.loads(out))
    events = [line["event"] for line in read_records(folder).lines if "event" in line]
    assert events[:1] == ["resumed"] and said[0]["table"] == said[1]["table"]  # as if nothing had happened, to the last bit
    store = Store(plan_from(said[0]), str(cwds[0] / said[0]["folder"] / "journal.log"), beat=1)
    every = store.storage.get_all_trials(store.study)
    assert [trial.state.name for trial in every].count("FAIL") == 1 and [trial.state.name for trial in every].count("COMPLETE") == 4


def plan_from(said):
    """The study of a finished sweep, by name."""

    class Named(type(plan_of())):
        name = said["study"]

    plan = plan_of()
    return Named(**{field: getattr(plan, field) for field in plan.__dataclass_fields__})


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_sigterm_stops_with_a_word_on_how_to_go_on(tmp_path):
    process = start(tmp_path, "--workers", "2")
    until(lambda: len(begun(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on: entreg sweep ppo" in err and "Traceback" not in err
    first, second = start(tmp_path, "--workers", "1"), start(tmp_path, "--workers", "1")
    for one in (first, second):
        _, err = one.communicate(timeout=240)
        assert one.returncode == 0, err
    assert len(list(tmp_path.glob("runs/*/runs/*/*/*/records.jsonl"))) == 2
