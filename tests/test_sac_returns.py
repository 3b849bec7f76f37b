"""The bench beside stable-baselines3: what it still has to train, what its table counts, and that the page shows what was written."""

import re

import numpy as np
import pytest
from bench import common, sac_returns

ROW = {"task": "Pendulum-v1", "side": sac_returns.PEER, "seed": 1, "steps": 20000, "eval_return": -150.0, "eval_std": 1.0, "eval_episodes": 20}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sac_returns, "FILE", tmp_path / "returns.csv")
    common.append(sac_returns.FILE, [ROW, ROW | {"seed": 3, "eval_return": -170.0}, ROW | {"side": "exact", "seed": 3, "eval_return": -165.5}], {"cores": 2})
    return sac_returns.FILE


def test_what_is_there_is_not_trained_again(file):
    assert sac_returns.missing("Pendulum-v1", sac_returns.PEER) == [0, 2, 4]
    assert sac_returns.missing("Pendulum-v1", "exact") == [0, 1, 2, 4]
    assert sac_returns.missing("Pendulum-v1", "exact", 2) == [0, 1]
    assert sac_returns.missing("HalfCheetah-v4", sac_returns.PEER) == [0, 1]


def test_the_difference_is_to_the_same_seeds(file):
    peer, ours = (line.split(" | ") for line in sac_returns.page().splitlines()[2:])
    assert peer[3] == "2" and peer[4].startswith("-160 [") and peer[5] == ""
    assert ours[2:4] == ["entreg, `--estimator exact`", "1"] and ours[4:6] == ["-165.5", "4.5"]


def test_both_sides_play_the_same_episodes_and_other_seeds_others():
    def still(observation):
        return np.zeros(1, np.float32)

    first = sac_returns.evaluate("Pendulum-v1", 0, still)
    assert first == sac_returns.evaluate("Pendulum-v1", 0, still) != sac_returns.evaluate("Pendulum-v1", 1, still)
    assert first["eval_return"] < -600 and first["eval_episodes"] == 20


def test_the_page_shows_what_was_written():
    def means(text):
        return re.sub(r" \[[^\]]*\]", "", text)

    assert means(sac_returns.page()) in means((common.PAGES / "sac.md").read_text(encoding="utf-8"))
