"""Two ranks are one process with twice the environments: the same records, controllers and weights, but for the order of summation."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from entreg.recipes import a3c, dqn, sac_discrete, soft_q
from entreg.record import read_records
from entreg.rl.part import Part
from entreg.rl.ranks import Ranks
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting, parent_of, processes, python, start, wait
from tests.recipes import together


def spawned(work, folder):
    """`work(rank, folder)` in as many processes as there are ranks: their exit codes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, str(folder))) for rank in range(together.RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        assert process.exitcode is not None
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have run every case."""
    place = tmp_path_factory.mktemp("ranks")
    assert spawned(together.work, place) == [0, 0]
    return place


def one(folder):
    (found,) = folder.iterdir()
    return found


@pytest.mark.parametrize("name", list(together.CASES))
def test_two_ranks_are_one_process_with_all_environments(name, folder, tmp_path):
    together.train(name, tmp_path)
    alone, both = lasting(one(tmp_path)), lasting(one(folder / name))
    assert len(alone) == len(both) > 8
    for ours, theirs in zip(both, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"entropy/infeasible"}:  # rank 0's own
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-5), (key, ours["step"])
    left, right = final_state(one(folder / name)), final_state(one(tmp_path))
    torch.testing.assert_close(left["network"], right["network"], atol=2e-5, rtol=0)
    assert left["books"]["recent"] == right["books"]["recent"] or name == "reinforce"  # whose rewards are not whole numbers
    for index, state in right["regularizers"].items():
        assert [*state["controller"].values()][1:] == pytest.approx([*left["regularizers"][index]["controller"].values()][1:], abs=1e-5)
    if right["collector"]["moments"] is not None:
        np.testing.assert_allclose(left["collector"]["moments"]["var"], right["collector"]["moments"]["var"], rtol=1e-9)


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_stop_on_one_rank_stops_both_and_the_resumed_run_is_the_uninterrupted_one(name, folder):
    cut, whole = one(folder / f"cut-{name}"), one(folder / name)
    assert str(lasting(cut)) == str(lasting(whole))  # as texts: NaN is NaN there
    assert torch.equal(final_state(cut)["network"], final_state(whole)["network"])


def test_only_one_process_resumes_what_one_made(folder):
    with pytest.raises(ValueError, match="the run has 2 ranks, and 1 were started"):
        together.train("ppo", folder / "ppo", settings={"resume": str(one(folder / "ppo"))})


def test_every_item_of_a_minibatch_is_taken_once_by_the_rank_that_holds_it():
    order = torch.from_numpy(np.random.default_rng(0).permuted(np.tile(np.arange(36), (3, 1)), axis=1))[:, :11]
    found = [[] for _ in range(3)]
    for rank in range(3):
        mine, weight, places = Ranks(Part(rank, 3)).take(order, environments=2)
        assert places is not None and weight is not None
        for member in range(3):
            local = mine[member][weight[member] > 0]
            found[member] += ((local // 2) * 6 + 2 * rank + local % 2).tolist()
    assert [sorted(one) for one in found] == [sorted(row.tolist()) for row in order]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_torchrun_resumes_and_stops_the_run(tmp_path):
    process = torchrun("--out", tmp_path, *ENDLESS)
    until(lambda: list(tmp_path.glob("*/checkpoint/state-*/")), process)
    (last,) = [pid for pid in processes() if parent_of(pid) == process.pid and environment_of(pid).get("RANK") == "1"]
    os.kill(last, signal.SIGKILL)
    ended = wait(process, 60)
    folder = one(tmp_path)
    assert ended.code == 1 and f"{folder} keeps the last good checkpoint" in ended.err, ended.err
    reached = final_state(folder)["update"]
    process = torchrun("--resume", folder, "--quiet")
    until(lambda: final_state(folder)["update"] > reached, process)
    process.send_signal(signal.SIGTERM)
    ended = wait(process, 60)
    assert f"entreg train ppo --resume {folder}" in ended.out, ended
    lines = read_records(folder).lines
    assert lines[-1]["event"] == "stopped" and lines[-1]["message"].startswith("SIGTERM")
    steps = [line["step"] for line in lines if "coef" in line]
    assert steps == sorted(set(steps)) and final_state(folder)["update"] * 2 * 2 * 16 == lines[-1]["step"]


ENDLESS = (
    "--steps",
    "4000000",
    "--environments",
    "2",
    "--rollout",
    "16",
    "--epochs",
    "1",
    "--hidden",
    "8",
    "--no-video",
    "--quiet",
    "--checkpoint-every",
    "0.3",
)


def torchrun(*words):
    return start(python("torch.distributed.run", "--nproc-per-node", "2", "-m", "entreg", "train", "ppo", *words))


def until(true, process):
    deadline = time.monotonic() + 90
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def environment_of(pid):
    try:
        return dict(entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def test_recipes_with_processes_of_their_own_are_refused_under_torchrun(monkeypatch, tmp_path):
    monkeypatch.setattr("entreg.rl.ranks.here", lambda: Ranks(Part(0, 2)))
    with pytest.raises(ValueError, match="a3c is for one process, and torchrun started 2; it starts workers of its own: --workers"):
        a3c.train(a3c.Config(), Run(RunSettings(out=tmp_path / "runs")))
    for name, recipe, env in (("dqn", dqn, "CartPole-v1"), ("sac_discrete", sac_discrete, "CartPole-v1"), ("soft_q", soft_q, "CartPole-v1"),
                              ("soft_q", soft_q, "Pendulum-v1")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} is for one process, and torchrun started 2; ranks are for ppo, a2c, reinforce and sac$"):
            recipe.train(recipe.Config(env=env), Run(RunSettings(out=tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()
