"""Generators: the annealed Parzen term covers the ring, what is measured is right, the penalty is the critic's slope, and runs are runs."""

import json
import math

import numpy as np
import pytest
import torch

from entreg import cli
from entreg.functional import parzen, renyi
from entreg.recipes import gan
from entreg.recipes.gan import Config, Gan, real
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same


def trained(folder, config, **settings):
    summary = gan.train(config, Run(RunSettings(out=folder, quiet=True, **settings)))
    return summary, [line for line in read_records(summary.folder).lines if line["step"] == summary.step and "member" in line]


@pytest.mark.slow
def test_the_annealed_parzen_term_covers_the_ring_in_every_seed(tmp_path):
    """All modes, and a share of high-quality samples that is not lower than without the term."""
    summary, rows = trained(tmp_path, Config(seeds=3, steps=1500, hidden=(32, 32)))
    kept, plain = rows[:3], rows[3:]
    assert [row["modes"] for row in kept] == [8, 8, 8], rows
    assert np.mean([row["high_quality"] for row in kept]) > max(0.6, np.mean([row["high_quality"] for row in plain])), rows
    assert {row["coef"] for row in rows} == {0.0}
    plots = json.loads((summary.folder / "plots.json").read_bytes())
    assert [plot["title"] for plot in plots] == ["Samples: coef linear(0.3, 0), renyi(2)", "Samples: coef 0, renyi(2)", "Samples at each mode"]
    assert np.load(summary.folder / "samples.npz")["x"].shape == (6, 500, 2)


def test_places_of_a_ring_and_a_grid():
    ring = real(Config(data="ring", modes=4, std=0.1))
    mode, good = ring.place(torch.tensor([[1.0, 0.0], [0.0, 1.29], [0.0, 1.31], [-0.9, 0.1]]))
    assert mode.tolist() == [0, 1, 1, 2] and good.tolist() == [True, True, False, True]
    assert ring.softness == pytest.approx(math.sqrt(2) / 2)
    grid = real(Config(data="grid", modes=9))
    assert grid.centres.shape == (9, 2) and grid.centres.abs().max() == 1 and grid.softness == 0.5
    drawn = ring.draw([np.random.default_rng(0)], 4000)[0]
    mode, good = ring.place(drawn)
    assert np.bincount(mode.numpy()).min() > 900 and float(good.float().mean()) == pytest.approx(1 - math.exp(-4.5), abs=0.01)  # 3 deviations in two dimensions


def items(folder, **arrays):
    np.savez(folder / "items.npz", **arrays)
    return str(folder / "items.npz")


def test_places_of_items_are_those_of_their_nearest(tmp_path):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 8])
    given = real(Config(data=items(tmp_path, x=x, y=np.arange(100) // 50), bonus=("classifier",)))
    mode, good = given.place(torch.cat([given.items[[3, 70]], given.items[[3]] + 5]))
    assert mode[:2].tolist() == [0, 1] and good.tolist() == [True, True, False]
    apart = np.sort(np.linalg.norm(given.items.numpy()[:, None] - given.items.numpy(), axis=-1), axis=1)[:, 1]
    assert given.near == pytest.approx(np.quantile(apart, 0.95), rel=1e-4)
    np.testing.assert_allclose(given.centres[1].numpy(), given.items[50:].mean(0).numpy(), rtol=1e-5)
    plain = real(Config(data=items(tmp_path, x=x)))
    assert plain.classes is None and len(plain.centres) == 1
    with pytest.raises(ValueError, match=r"items\.npz has no classes y; legal are parzen and knn"):
        real(Config(data=items(tmp_path, x=x), bonus=("classifier",)))


def test_digits_can_be_made(tmp_path):
    pytest.importorskip("sklearn")
    summary, rows = trained(tmp_path, Config(data="digits", seeds=1, steps=2, hidden=(8,), batch=16, coef=("0.1",)))
    assert rows[0]["modes"] == 0 and rows[0]["high_quality"] < 0.1
    (picture,) = json.loads((summary.folder / "heatmaps.json").read_bytes())
    assert picture["picture"] is True
    assert np.array(picture["values"]).shape == (6 * 9, 6 * 9)


def test_each_bonus_is_its_entropy_and_reaches_the_generator():
    for bonus, family in (("parzen", "shannon"), ("knn", "renyi(2)"), ("classifier", "renyi(2)")):
        fit = Gan(Config(bonus=(bonus,), family=(family,), coef=("1",), seeds=1, batch=16, bandwidth=0.3), [0], 10)
        samples = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        value = fit.entropy(0, samples)
        (slope,) = torch.autograd.grad(value, samples)
        assert float(slope.norm()) > 1e-3
        if bonus == "parzen":
            torch.testing.assert_close(value, parzen(samples, 0.3))
        if bonus == "classifier":
            posterior = torch.softmax(-(torch.cdist(samples, fit.real.centres) ** 2) / (2 * fit.real.softness**2), -1).mean(0)
            torch.testing.assert_close(value, -posterior.square().sum().log())
            assert fit.families[0] == renyi(2)


def test_parzen_is_named_by_its_own_entropy_and_trained_once():
    fit = Gan(Config(bonus=("parzen", "knn"), family=("shannon", "renyi(3)"), coef=("0",), seeds=1), [0], 10)
    assert [(one["bonus"], one["family"]) for one in fit.members] == [("parzen", "renyi(2)"), ("knn", "shannon"), ("knn", "renyi(3)")]


def test_the_gradient_penalty_is_that_of_finite_differences():
    """The critic's loss with the penalty against a critic differentiated numerically, at one member."""
    config = Config(loss="wgan_gp", coef=("0",), seeds=1, batch=4, penalty=3.0, hidden=(5,), learning_rate="0")
    fit, twin = Gan(config, [0], 10), Gan(config, [0], 10)
    loss = float(fit.criticise())
    with torch.no_grad():
        samples = twin.noise(4) @ twin.generator.plain["weight0"] + twin.generator.plain["bias0"][:, None]
        samples = torch.relu(samples) @ twin.generator.plain["weight1"] + twin.generator.plain["bias1"][:, None]
    drawn, mixed = twin.real.draw(twin.streams, 4), twin.streams[0].random((4, 1), dtype=np.float32)
    weights = {name: value[0].double() for name, value in twin.critic.plain.items()}

    def critic(x):
        return torch.relu(x @ weights["weight0"] + weights["bias0"]) @ weights["weight1"] + weights["bias1"]

    between = (torch.from_numpy(mixed) * drawn[0] + (1 - torch.from_numpy(mixed)) * samples[0]).double()
    steps = torch.eye(2, dtype=torch.float64) * 1e-6
    slope = torch.stack([(critic(between + step) - critic(between - step))[:, 0] / 2e-6 for step in steps], 1)
    expected = critic(samples[0].double()).mean() - critic(drawn[0].double()).mean() + 3.0 * (slope.norm(dim=1) - 1).square().mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_initial_weights_are_those_of_linear_layers():
    parameters, _ = gan.drawn([0, 1], (4, 300, 1))
    assert float(parameters.plain["weight0"].abs().max()) == pytest.approx(0.5, abs=0.01) and float(parameters.plain["bias0"].abs().min()) > 0
    assert float(parameters.plain["weight1"].std()) == pytest.approx(1 / math.sqrt(3 * 300), rel=0.1)
    assert torch.equal(gan.drawn([1], (4, 300, 1))[0].data[0], parameters.data[1]) and not torch.equal(parameters.data[0], parameters.data[1])


def test_members_are_the_runs_they_would_be_alone(tmp_path):
    config = {"steps": 12, "hidden": (8,), "batch": 16}
    _, both = trained(tmp_path, Config(**config, seeds=2), seed=4)
    _, alone = trained(tmp_path, Config(**config, seeds=1, coef=("0",)), seed=5)
    for name in ("loss/generator", "loss/critic", "high_quality"):
        assert both[3][name] == pytest.approx(alone[0][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "words",
    [("--bonus", "knn"), ("--loss", "wgan_gp", "--critic-steps", "2", "--bonus", "classifier", "--on-collapse", "rescue", "--data", "grid", "--modes", "4")],
)
def test_stopped_and_resumed_is_uninterrupted(tmp_path, monkeypatch, words):
    base = ["train", "gan", "--steps", "30", "--seeds", "2", "--hidden", "8", "--batch", "16", "--quiet", "--checkpoint-every", "0", *words]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    whole = Gan.update

    def interrupted(self, step):
        if step == 17:
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(Gan, "update", interrupted)
    assert cli.main([*base, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(Gan, "update", whole)
    assert cli.main(["train", "gan", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (expected,), (folder,) = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))
    for name in ("plots.json", "samples.npz"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "grid", "modes": 8}, "modes is 8 with data grid; legal are square numbers"),
        ({"std": 0.0}, "std is 0"),
        ({"until": 0.0}, "until is 0"),
        ({"bandwidth": -1.0}, "bandwidth is -1"),
        ({"bonus": ("shannon",)}, "bonus is shannon; legal are parzen, knn, classifier"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"on_collapse": "rescue"}, "on_collapse is rescue with bonus parzen"),
        ({"coef": ("TargetEntropy(fraction_of_max(0.5))",)}, "open"),
        ({"data": "faces"}, r"data is 'faces'; legal are digits, or a \.npz file"),
        ({"penalty": float("nan")}, "penalty is nan"),
        ({"bonus": ("knn",), "batch": 3}, "bonus is knn with batch 3 and family shannon: k: 3 with 3 points"),
        ({"bonus": ("knn",), "family": ("min_entropy",)}, "bonus is knn with batch 128 and family min_entropy: family"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        gan.train(Config(**{"seeds": 1, **change}), Run(RunSettings(out=tmp_path, quiet=True)))
    assert not list(tmp_path.iterdir())
