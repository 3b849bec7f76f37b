"""The bandit: what an entropy bonus keeps, that temperature does not bring it back, and what decoding is worth, by enumeration."""

import itertools
import json

import numpy as np
import pytest
import torch

from entreg import cli
from entreg.recipes import bandit
from entreg.recipes.bandit import Bandit, Config
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same


def last(folder, steps):
    return [line for line in read_records(folder).lines if line["step"] == steps and "member" in line]


def test_entropy_keeps_answers_that_temperature_cannot_bring_back(tmp_path):
    """8 right answers of 64: with the bonus more than 6 are kept, without it fewer than 1.5, and no temperature gives half of them back."""
    summary = bandit.train(Config(seeds=3, steps=800, learning_rate="3"), Run(RunSettings(out=tmp_path, quiet=True)))
    rows = last(summary.folder, 800)
    kept, lost = rows[:3], rows[3:]
    assert all(row["answers"] > 6 and row["accuracy"] > 0.9 for row in kept), kept
    assert np.mean([row["answers"] for row in lost]) < 1.5 and all(row["accuracy"] > 0.9 for row in lost), lost
    for name in ("answers/best_temperature", "coverage/best_temperature"):
        assert np.mean([row[name] for row in lost]) < 3 and min(row[name] for row in kept) > 6, name
    assert summary.metrics["answers at coef 0.1, shannon"] > 6
    plots = json.loads((summary.folder / "plots.json").read_bytes())
    assert [len(plot["series"]) for plot in plots] == [2, 2, 2] and len(plots[0]["series"][0]["x"]) == 40


def fitted(**changes):
    config = Config(**{"seeds": 2, "arms": 6, "right": 2, **changes})
    return Bandit(config, range(config.seeds), config.steps)


def test_decoding_is_that_of_enumeration(monkeypatch):
    monkeypatch.setattr(bandit, "DRAWS", 3)
    fit = fitted(coef=("0",))
    fit.parameters.data.normal_(generator=torch.Generator().manual_seed(1))
    found = fit.decoded(np.array([0.7, 2.0]))
    for member, (index, temperature) in itertools.product(range(2), enumerate([0.7, 2.0])):
        weights = np.exp(fit.parameters.data[member].numpy().astype(float) / temperature)
        p, right = weights / weights.sum(), np.flatnonzero(fit.reward[member].numpy())
        q = p[right] / p[right].sum()
        seen = sum(np.prod(p[list(draw)]) * len(set(draw) & set(right)) for draw in itertools.product(range(6), repeat=3))
        expected = {"accuracy": p[right].sum(), "answers": np.exp(-(q * np.log(q)).sum()), "coverage": seen}
        for name, value in expected.items():
            assert found[name][member, index] == pytest.approx(value, rel=1e-6), name


def test_the_naive_bonus_pushes_nowhere_and_the_sampled_one_as_the_exact():
    """Mean gradient of the bonus over many batches, at logits where the entropy has one."""
    expected, found = None, {}
    for kind in ("exact", "sampled", "naive"):
        fit = fitted(seeds=1, coef=("1",), bonus=(kind,), batch=4000, learning_rate="0")
        fit.parameters.data.copy_(torch.tensor([[1.0, 0.5, 0.0, 0.0, -0.5, -1.0]]))
        fit.reward.zero_()  # nothing but the bonus
        total = torch.zeros(1, 6)
        for step in range(1 if kind == "exact" else 40):
            fit.update(step)
            total += fit.parameters.grad
        found[kind] = total / (1 if kind == "exact" else 40)
        expected = found["exact"] if expected is None else expected
    size = float(expected.norm())
    assert size > 0.2
    assert float((found["sampled"] - expected).norm()) < 0.05 * size
    assert float(found["naive"].norm()) < 0.05 * size


@pytest.mark.parametrize("words", [("--optimizer", "adam", "--coef", "TargetEntropy(1.0)"), ("--on-collapse", "rescue", "--bonus", "sampled", "--coef", "0")])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, monkeypatch, words):
    base = ["train", "bandit", "--steps", "60", "--seeds", "2", "--quiet", "--checkpoint-every", "0", *words]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    real = Bandit.update

    def interrupted(self, step):
        if step == 37:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(Bandit, "update", interrupted)
    assert cli.main([*base, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(Bandit, "update", real)
    for _ in range(2):  # the second time there is nothing left to do
        assert cli.main(["train", "bandit", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (expected,), (folder,) = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))


def test_members_are_the_runs_they_would_be_alone(tmp_path):
    both = bandit.train(Config(seeds=2, steps=30), Run(RunSettings(out=tmp_path, quiet=True, seed=4)))
    alone = bandit.train(Config(seeds=1, coef=("0",), steps=30), Run(RunSettings(out=tmp_path, quiet=True, seed=5)))
    assert last(both.folder, 30)[3]["answers"] == last(alone.folder, 30)[0]["answers"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": 64}, "right is 64 of 64 arms"),
        ({"batch": 1}, "batch is 1; legal are integers from 2"),
        ({"bonus": ("guess",)}, "bonus is 'guess'; legal are exact, sampled, naive"),
        ({"bonus": ("naive",), "family": ("renyi(2)",)}, r"bonus is naive with family renyi\(2\)"),
        ({"coef": ("much",)}, "'much'"),
        ({"family": ("sparse",)}, "sparse"),
        ({"family": ("tsallis(2)",), "on_collapse": "rescue"}, r"on_collapse is rescue with family tsallis\(2\)"),
        ({"learning_rate": "-1"}, "learning_rate must stay"),
        ({"learning_rate": "1e300"}, "learning_rate must stay"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        bandit.train(Config(**change), Run(RunSettings(out=tmp_path, quiet=True)))
    assert not list(tmp_path.iterdir())
