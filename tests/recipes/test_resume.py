"""A run that was killed and resumed is the run that was not: same records, same weights, bit for bit."""

import numpy as np
import pytest
import torch

from tests.faults import final_state, finish, kill_and_resume, lasting, python

BASE = ("--environments", "4", "--rollout", "32", "--hidden", "8", "--steps", "6400", "--no-video", "--eval-episodes", "2", "--eval-every", "2000")
CASES = {
    "ppo-population": ("ppo", "--coef", "linear(0.01, 0)", "--coef", "TargetEntropy(0.4)", "--normalise-observation", "--normalise-reward", "--seeds", "2"),
    "ppo-fused": ("ppo", "--update", "fused", "--coef", "linear(0.01, 0)", "--seeds", "2", "--threads", "2"),
    "a2c-toy-text": ("a2c", "--env", "FrozenLake-v1", "--coef", "PI(0.5, 0.1, 0.01, (0, 1))", "--rollout", "16", "--steps", "9600", "--over", "trajectory"),
    "reinforce-continuous": ("reinforce", "--env", "Pendulum-v1", "--squash", "--coef", "Plateau(linear(0.1, 0), 5)"),
}


def command(words, out):
    """A run of a case; its flags stand behind those of BASE and win."""
    return python("entreg.cli", "train", words[0], *BASE, *words[1:], "--out", out, "--quiet", "--checkpoint-every", "0")


def equal(left, right, place="state"):
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), place
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), place
    else:
        assert left == right or (np.isnan(left) and np.isnan(right)), place


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    words = CASES[case]
    whole = finish(command(words, tmp_path / "whole"))
    assert whole.code == 0, whole.err
    (expected,) = (tmp_path / "whole").iterdir()
    resume = python("entreg.cli", "train", words[0], "--resume", "latest", "--out", tmp_path / "cut", "--quiet", "--checkpoint-every", "0")
    folder, met = kill_and_resume(command(words, tmp_path / "cut"), resume, tmp_path / "cut", [3.2, 3.4])
    assert met >= 1
    assert lasting(folder) == lasting(expected)
    equal(final_state(folder), final_state(expected))


def test_resuming_a_complete_run_changes_nothing(tmp_path):
    words = ("ppo", "--steps", "256")
    assert finish(command(words, tmp_path)).code == 0
    (folder,) = tmp_path.iterdir()
    before = lasting(folder)
    assert finish(python("entreg.cli", "train", "--resume", folder, "--quiet")).code == 0
    assert lasting(folder) == before
