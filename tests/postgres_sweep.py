"""Sweeps over PostgreSQL (`make test-postgres`): the same laws as over a journal, where the storage is a server."""

import gc
import json
import os
import threading

import pytest
from optuna.trial import TrialState

from entreg.sweep.store import LATE, Lost, Store
from tests.test_sweep_store import Clock, begun, plan_of, result, start, until

# psycopg warns of connections that are collected without having been closed, and some of Optuna's are, although its engine was disposed of
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
URL = os.environ["ENTREG_POSTGRES"]


@pytest.fixture(autouse=True)
def collected():
    """Such connections are collected within the test that made them, where the warning is ignored."""
    yield
    gc.collect()


@pytest.fixture
def store_of():
    made = []

    def make(plan, **how):
        made.append(Store(plan, URL, beat=10, **how))
        return made[-1]

    yield make
    for store in made:
        store.close()


def test_processes_that_race_for_jobs_get_each_once(store_of):
    plan, taken = plan_of(points=8), []

    def take():
        store = store_of(plan)
        while (claim := store.claim()) is not None:
            taken.append(next(iter(claim.trials)))
            store.finish(claim, {index: result(float(index)) for index in claim.trials})
        store.close()  # a thread has a session of its own

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = store_of(plan)
    assert sorted(taken) == [0, 2, 4, 6, 8, 10, 12, 14] and store.finished()
    assert [trial.value for _, trial in sorted(store.current().items())] == list(map(float, range(16)))


def test_a_job_is_taken_up_by_one_observer_after_two_missed_beats_and_not_before(store_of):
    plan, clock = plan_of(points=3, members=6), Clock()
    dead = store_of(plan)
    lost = dead.claim()
    others = [store_of(plan, clock=clock) for _ in range(3)]
    assert [store.claim() for store in others] == [None] * 3
    clock.now = 20 + LATE - 0.1
    assert [store.claim() for store in others] == [None] * 3
    clock.now = 20 + LATE + 0.1
    assert sum(store.claim() is not None for store in others) == 1
    assert dead.storage.get_trial(lost.lead).state is TrialState.FAIL
    with pytest.raises(Lost):
        dead.beat(lost.lead)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_chooses_and_its_settings_stay_when_a_job_is_put_back(sampler, store_of):
    plan = plan_of(sampler=sampler, trials=3)
    store = store_of(plan)
    claim = store.claim()
    setting = store.setting(0, claim.trials[0])
    store.release(claim)
    assert store.setting(0, store_of(plan).claim().trials[0]) == setting


def test_a_killed_process_is_replaced_by_others_that_join_and_the_results_are_those_of_a_journal(tmp_path):
    process = start(tmp_path, "--workers", "1", "--storage", URL)
    until(lambda: begun(tmp_path))
    process.kill()
    process.communicate()
    both = [start(tmp_path, "--workers", "1", "--storage", URL, "--json") for _ in range(2)]
    alone = start(tmp_path, "--workers", "1", "--json", "--out", "alone")
    said = []
    for one in (*both, alone):
        out, err = one.communicate(timeout=400)
        assert one.returncode == 0, err
        said.append(json.loads(out)["table"])
    assert said[0] == said[1] == said[2]
