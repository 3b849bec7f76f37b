"""A run that was killed and resumed is the run that was not: same records, same weights, bit for bit."""

import signal
import time

import numpy as np
import pytest
import torch

from entreg import cli
from entreg.record import read_records
from tests.faults import final_state, lasting, python, start

BASE = ("--environments", "4", "--rollout", "32", "--hidden", "8", "--steps", "3840", "--no-video", "--eval-episodes", "2", "--eval-every", "1000")
CASES = {
    "ppo-population": ("ppo", "--coef", "linear(0.01, 0)", "--coef", "TargetEntropy(0.4)", "--normalise-observation", "--normalise-reward", "--seeds", "2"),
    "ppo-fused": ("ppo", "--update", "fused", "--coef", "linear(0.01, 0)", "--seeds", "2", "--threads", "2"),
    "a2c-toy-text": ("a2c", "--env", "FrozenLake-v1", "--coef", "PI(0.5, 0.1, 0.01, (0, 1))", "--rollout", "16", "--steps", "5120", "--over", "trajectory"),
    "reinforce-continuous": ("reinforce", "--env", "Pendulum-v1", "--squash", "--coef", "Plateau(linear(0.1, 0), 5)"),
}


def command(words, out):
    """A run of a case; its flags stand behind those of BASE and win."""
    return ["train", words[0], *BASE, *words[1:], "--out", str(out), "--quiet", "--checkpoint-every", "0"]


def assert_same(left, right, place="state"):
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_same(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), place
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), place
    else:
        assert left == right or (np.isnan(left) and np.isnan(right)), place


def killed_at(words, out, size):
    """Start a run and SIGKILL it when its records have grown to `size` bytes."""
    process = start(python("entreg.cli", *words))
    while not any(path.stat().st_size >= size for path in out.glob("*/records.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    words = CASES[case]
    assert cli.main(command(words, tmp_path / "whole")) == 0
    (expected,) = (tmp_path / "whole").iterdir()
    killed_at(command(words, tmp_path / "cut"), tmp_path / "cut", (expected / "records.jsonl").stat().st_size // 3)
    assert cli.main(["train", words[0], "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))


@pytest.mark.parametrize("until", [("--steps", "256"), ("--stop-at", "1")])
def test_resuming_a_complete_run_changes_nothing(until, tmp_path):
    assert cli.main(command(("ppo", *until, "--env", "CartPole"), tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    before = lasting(folder)
    assert cli.main(["train", "--resume", str(folder), "--quiet"]) == 0
    assert lasting(folder) == before
    assert [line["message"] for line in read_records(folder).lines if line.get("event") == "note"] == ["CartPole stands for CartPole-v1, its latest version"]
