"""A3C: one worker is the algorithm as it is written, several share everything that they should, and none is left behind whatever happens."""

import json
import math
import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from entreg import cli
from entreg.recipes import a3c
from entreg.record import read_records
from entreg.rl.stepping import environment_seed
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting, parent_of, processes, python, start, wait
from tests.recipes.test_on_policy import best_policy, probabilities
from tests.recipes.test_resume import assert_same

SMALL = {"environments": 2, "rollout": 8, "hidden": (8,), "video": False, "eval_episodes": 2}


def trained(folder, run=None, **config):
    summary = a3c.train(a3c.Config(**{**SMALL, **config}), Run(RunSettings(out=folder, quiet=True, **(run or {}))))
    return summary, read_records(summary.folder).lines


def network(weights, observation, tower):
    for layer in range(2):
        observation = observation @ weights[f"{tower}.{layer}.weight"][0] + weights[f"{tower}.{layer}.bias"][0]
        observation = torch.tanh(observation) if layer == 0 else observation
    return observation


def reference(weights, updates, *, n, steps, gamma, beta, rates, max_norm):
    """Algorithm S3 of Mnih et al. 2016 with one worker, in plain torch, on `n` copies of CartPole; noise and seeds as documented."""
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
    square = {name: torch.zeros_like(value) for name, value in weights.items()}
    envs = [gymnasium.make("CartPole-v1") for _ in range(n)]
    seen = np.stack([env.reset(seed=environment_seed(0, i))[0] for i, env in enumerate(envs)])
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 0xE27])))
    for update in range(updates):
        noise = stream.random((steps, n, 1), dtype=np.float32)
        kept = []
        for t in range(steps):
            logits = network(weights, torch.from_numpy(seen), "actor")
            action = (logits.softmax(-1).cumsum(-1)[:, :1] <= torch.from_numpy(noise[t])).long()[:, 0]
            following, done = [], []
            for env, one in zip(envs, action.tolist(), strict=True):
                observation, _, terminated, truncated, _ = env.step(one)
                assert not truncated
                following.append(env.reset()[0] if terminated else observation)
                done.append(terminated)
            kept.append((torch.from_numpy(seen), action, torch.tensor(done)))
            seen = np.stack(following)
        ret = network(weights, torch.from_numpy(seen), "critic")[:, 0].detach()
        loss = torch.zeros(())
        for observation, action, done in reversed(kept):
            ret = 1.0 + gamma * torch.where(done, 0.0, ret)
            value = network(weights, observation, "critic")[:, 0]
            log_p = network(weights, observation, "actor").log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            chosen = log_p.gather(1, action[:, None])[:, 0]
            loss = loss + (-(ret - value.detach()) * chosen + 0.5 * (ret - value) ** 2 - beta(update) * entropy).sum() / (n * steps)
        grads = torch.autograd.grad(loss, list(weights.values()))
        norm = torch.sqrt(sum(grad.square().sum() for grad in grads))
        for (name, weight), grad in zip(weights.items(), grads, strict=True):
            clipped = grad * min(1.0, max_norm / (float(norm) + 1e-6))
            square[name] = 0.99 * square[name] + 0.01 * clipped**2
            weight.data -= rates(update) * clipped / torch.sqrt(square[name] + 1e-5)
    return {name: value.detach() for name, value in weights.items()}


def test_one_worker_is_the_plain_algorithm(tmp_path):
    updates = 30
    summary, lines = trained(
        tmp_path, workers=1, steps=updates * 16, coef=("linear(0.1, 0)",), learning_rate="linear(0.01, 0)", max_grad_norm=0.3, run={"checkpoint_every": 3600}
    )
    from entreg.rl.learner import Learner

    fresh = Learner("a3c", a3c.Config(**SMALL), None).network.parameters
    start = {name: value.detach().clone() for name, value in fresh.plain.items()}
    expected = reference(
        start, updates, n=2, steps=8, gamma=0.99, beta=lambda k: 0.1 * (1 - k / updates), rates=lambda k: 0.01 * (1 - k / updates), max_norm=0.3
    )
    found, offset = final_state(summary.folder)["network"][0], 0
    for value in expected.values():
        torch.testing.assert_close(found[offset : offset + value.numel()], value.flatten(), atol=2e-5, rtol=0)
        offset += value.numel()
    assert sum((value - start[name]).abs().sum() for name, value in expected.items()) > 5.0  # something was learned
    assert offset == len(found) and lines[-1]["step"] == updates * 16


def test_two_workers_find_the_maximum_entropy_policy_of_a_bandit(tmp_path):
    summary, lines = trained(
        tmp_path, env="tests.rl.small:Bandit-v0", workers=2, environments=16, rollout=4, steps=40_000,
        coef=("0.4", "Plateau(constant(0.4), 100)"), learning_rate="linear(0.02, 0)",
    )  # fmt: skip
    np.testing.assert_allclose(probabilities(summary), best_policy("shannon", 0.4), atol=0.06)
    training = [line for line in lines if "coef" in line]
    assert {line["member"] for line in training} == {0, 1} and training[-1]["step"] == math.ceil(40_000 / 128) * 128
    assert [line["step"] for line in training] == sorted(line["step"] for line in training)


@pytest.mark.parametrize("more", [{"over": "trajectory"}, {"intrinsic": "count"}], ids=["trajectory", "count"])
def test_one_worker_that_is_stopped_and_resumed_is_the_one_that_was_not(more, tmp_path):
    changes = {"workers": 1, "steps": 1600, "coef": ("TargetEntropy(0.5)",), **more}
    whole, _ = trained(tmp_path / "whole", run={"eval_every": 500}, **changes)
    cut = Run(RunSettings(out=tmp_path / "cut", quiet=True, eval_every=500))
    logged = cut.log

    def log(step, **values):
        logged(step, **values)
        if step > 700:
            cut.stop("enough")

    cut.log = log
    first = a3c.train(a3c.Config(**{**SMALL, **changes}), cut)
    assert first.stopped == "enough" and first.step < 1600
    second, _ = trained(tmp_path / "cut", run={"resume": str(first.folder)}, **changes)
    assert lasting(second.folder) == lasting(whole.folder)
    assert_same(final_state(second.folder), final_state(whole.folder))
    told = ["intrinsic/share" in line for line in read_records(second.folder).lines if "coef" in line]
    assert told == ["intrinsic" in more] * len(told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers must be between 1 and 256, got 0"),
        ({"optimizer": "sgd"}, "optimizer must be one of rmsprop, adam, got 'sgd'"),
        ({"normalise_reward": True}, "normalise_reward is not for asynchronous workers"),
        ({"vectorise": "async"}, "vectorise must be auto or sync, got 'async'"),
        ({"env_kwargs": {"call": lambda: 0}}, "env_kwargs cannot be sent to another process"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        a3c.train(a3c.Config(**{**SMALL, **changes}), Run(RunSettings(out=tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


BROKEN = ["a3c", "--env", "tests.rl.broken:Faulty-v0", "--environments", "2", "--rollout", "8", "--hidden", "8", "--no-video", "--eval-episodes", "1"]


@pytest.mark.parametrize(("what", "message"), [("kill", "was ended by SIGKILL"), ("exit", "ended by itself with exit status 3")])
def test_the_death_of_a_worker_stops_the_run_by_name_and_leaves_nothing_behind(what, message, tmp_path, monkeypatch, capfd):
    before, kwargs = leftovers(), json.dumps({"only": str(tmp_path / "chosen")})
    monkeypatch.setenv("ENTREG_TEST_FAULT", what)
    words = ["train", *BROKEN, "--steps", "1600", "--env-kwargs", kwargs, "--out", str(tmp_path / "runs"), "--quiet", "--checkpoint-every", "0"]
    assert cli.main(words) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    said = capfd.readouterr().err
    assert any(f"entreg: worker {index} {message}; {folder} keeps the last good checkpoint" in said for index in (0, 1))
    assert [line for line in read_records(folder).lines if line.get("event") == "worker_failed" and message in line["message"]]
    assert leftovers() == before
    assert final_state(folder)["update"] > 0  # test_faults resumes such a run


def leftovers():
    """The children of this process (but for multiprocessing's tracker, which stays for the next ones) and named shared memory."""
    children = [pid for pid in processes() if parent_of(pid) == os.getpid() and "resource_tracker" not in command_of(pid)]
    return children, sorted(path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("torch_", "psm_", "pym-", "sem.")))


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def long_run(out):
    """A run of two workers that would take minutes, when its workers have begun: the process, and those of its children."""
    process = start(python("entreg.cli", "train", *BROKEN, "--steps", "3000000", "--out", str(out), "--quiet", "--checkpoint-every", "0.2"))
    deadline = time.monotonic() + 60
    while not list(out.glob("*/checkpoint/state-*/")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process, [pid for pid in processes() if parent_of(pid) == process.pid]


def gone(children):
    deadline = time.monotonic() + 10
    while any("multiprocessing" in command_of(pid) for pid in children):
        assert time.monotonic() < deadline, [command_of(pid) for pid in children]
        time.sleep(0.02)
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_ends_the_run_and_its_workers(number, code, tmp_path):
    process, children = long_run(tmp_path)
    assert len(children) >= 3  # two workers and multiprocessing's tracker
    begin = time.monotonic()
    for pid in (process.pid, *children) if number == signal.SIGINT else (process.pid,):  # Ctrl-C reaches every process of a terminal
        os.kill(pid, number)
    ended = wait(process, 20)
    assert ended.code == code and time.monotonic() - begin < 10
    assert "Traceback" not in ended.err, ended.err
    assert gone(children)
    (folder,) = tmp_path.iterdir()
    state = final_state(folder)
    steps = [line["step"] for line in read_records(folder).lines if "coef" in line]
    assert steps == sorted(set(steps)) and state["update"] > 0
