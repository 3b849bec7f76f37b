"""soft_q with continuous actions: soft values by quadrature, Stein's direction by hand, a bandit's energy policy, members, resuming, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from entreg import cli
from entreg.policy import Exported, load
from entreg.recipes import soft_q
from entreg.record import read_records
from entreg.rl import energy
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same, killed_at

FAST = {"env": "Pendulum-v1", "hidden": (8,), "video": False, "eval_episodes": 1, "learning_starts": 20, "batch_size": 8, "updates_per_step": 1.0, "steps": 60,
        "particles": 4, "value_samples": 16}  # fmt: skip


def trained(folder, *, run=None, **config):
    summary = soft_q.train(soft_q.Config(**{**FAST, **config}), Run(RunSettings(out=folder, quiet=True, **(run or {}))))
    return summary, read_records(summary.folder).lines


@pytest.mark.parametrize("coef", [0.3, 2.0])
def test_soft_value_and_entropy_of_uniform_samples_are_those_of_quadrature(coef):
    def q(x, y):
        return math.cos(3 * x) + 0.7 * x * y - y**2

    total = integrate.dblquad(lambda y, x: math.exp(q(x, y) / coef), -1, 1, -1, 1)[0]
    mean = integrate.dblquad(lambda y, x: q(x, y) * math.exp(q(x, y) / coef), -1, 1, -1, 1)[0] / total
    x, y = 2 * torch.rand(2, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    values, tau = (torch.cos(3 * x) + 0.7 * x * y - y**2)[None, None], torch.tensor([[coef]], dtype=torch.float64)
    value = coef * math.log(total)
    assert energy.sampled_value(values, tau, 2).item() == pytest.approx(value, abs=0.005)
    assert energy.sampled_entropy(values, tau, 2).item() == pytest.approx((value - mean) / coef, abs=0.01)
    far = energy.sampled_value(values + 1e4, tau, 2).item()  # no overflow
    assert far == pytest.approx(value + 1e4, abs=0.005)


@pytest.mark.parametrize("count", [2, 5])
def test_steins_direction_is_that_of_the_sums(count):
    u, score = np.random.default_rng(count).normal(size=(2, 2, count, 3))
    expected = np.zeros_like(u)
    for state in range(2):
        pairs = sorted(((u[state, i] - u[state, j]) ** 2).sum() for i in range(count) for j in range(i))
        h = pairs[(len(pairs) - 1) // 2] / math.log(count)
        for i in range(count):
            for j in set(range(count)) - {i}:
                kernel = math.exp(-((u[state, i] - u[state, j]) ** 2).sum() / h)
                expected[state, i] += (kernel * score[state, j] + 2 / h * (u[state, i] - u[state, j]) * kernel) / (count - 1)
    np.testing.assert_allclose(energy.stein(torch.from_numpy(u), torch.from_numpy(score)).numpy(), expected, rtol=1e-10)
    assert torch.isfinite(energy.stein(torch.zeros(4, 2), torch.ones(4, 2))).all()  # particles on each other


def test_a_bandits_energy_policy_is_met_and_its_entropy_moves_a_coefficient(tmp_path):
    config = {
        "env": "tests.rl.small:Turn-v0",
        "steps": 700,
        "hidden": (32,),
        "batch_size": 32,
        "learning_rate": "0.005",
        "learning_starts": 100,
        "coef_lr": 0.02,
    }
    coef = 0.2  # a normal distribution around 1 with variance coef / 2, of which the box cuts .1 %
    summary, lines = trained(tmp_path, **config, coef=(str(coef), "TargetEntropy(-0.5)"), particles=16, value_samples=32)
    policy = load(summary.folder, 0)
    actions = policy.act(np.zeros((2000, 1), np.float32), temperature=1.0)[:, 0]
    assert actions.mean() == pytest.approx(1.0, abs=0.1)
    assert actions.std() == pytest.approx(math.sqrt(coef / 2), rel=0.25)
    assert policy.act(np.zeros(1, np.float32)) == pytest.approx([1.0], abs=0.2)
    records = [line for line in lines if "entropy" in line]
    fixed, learned = (np.mean([line["entropy"] for line in records if line["member"] == member][-50:]) for member in (0, 1))
    exact = 0.5 * math.log(2 * math.pi * math.e * coef / 2) - math.log(2)  # in units of half the box
    assert fixed == pytest.approx(exact, abs=0.1) and learned == pytest.approx(-0.5, abs=0.1)
    assert "loss/policy" not in records[-1] and {"q", "coef", "loss/value", "steps_per_second"} <= records[-1].keys()


def test_a_member_is_the_run_it_would_have_been_alone(tmp_path):
    coefs, shared = ("0.3", "TargetEntropy(-0.5)"), {"environments": 2}
    _, together = trained(tmp_path, coef=coefs, seeds=2, **shared)
    for member, coef, seed in ((1, coefs[0], 1), (2, coefs[1], 0)):
        _, alone = trained(tmp_path, coef=(coef,), run={"seed": seed}, **shared)
        ours, theirs = ([line for line in lines if line.get("member") == at] for lines, at in ((together, member), (alone, 0)))
        assert len(ours) == len(theirs) > 10
        for a, b in zip(ours, theirs, strict=True):
            for key in a.keys() & b.keys() - {"member", "time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key


def test_a_sampler_is_loaded_and_exported_with_its_bounds_and_draws_by_temperature(tmp_path):
    summary, _ = trained(tmp_path, env="tests.rl.continuous:Ruler-v0")
    policy = load(summary.folder)
    one = np.zeros((50, 1), np.float32)
    assert np.ptp(policy.act(one), 0) == pytest.approx([0, 0], abs=1e-6) and (np.ptp(policy.act(one, temperature=1.0), 0) > 0.01).all()
    policy.network.parameters.data[:, -2:] = torch.tensor([50.0, -50.0])
    assert policy.act(np.zeros(1, np.float32)).tolist() == [2.0, -2.0]
    assert Exported(policy)(torch.zeros(3, 1))[1].tolist() == [[2.0, -2.0]] * 3  # what is exported reads no noise


def command(out):
    words = ("--hidden", "8", "--steps", "200", "--learning-starts", "50", "--batch-size", "8", "--updates-per-step", "1", "--particles", "4")
    more = ("--no-video", "--eval-episodes", "1", "--eval-every", "100", "--environments", "2", "--seeds", "2", "--out", str(out), "--quiet")
    return ["train", "soft_q", "--env", "Pendulum-v1", *words, *more, "--checkpoint-every", "0"]


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(tmp_path):
    assert cli.main(command(tmp_path / "whole")) == 0
    (expected,) = (tmp_path / "whole").iterdir()
    killed_at(command(tmp_path / "cut"), tmp_path / "cut", (expected / "records.jsonl").stat().st_size // 3)
    assert cli.main(["train", "soft_q", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exploration": "noisy_net"}, "exploration noisy_net is for discrete actions"),
        ({"family": ("tsallis(2)",), "coef": ("0.1",)}, "those of shannon alone"),
        ({"munchausen": True}, "munchausen is for discrete actions"),
        ({"particles": 1}, "particles must be at least 2"),
        ({"value_samples": 1}, "value_samples must be at least 2"),
        ({"coef": ("-0.1",)}, "legal are numbers >= 0"),
        ({"coef": ("TargetEntropy(-2.5)",)}, "between -2.079, the least that 16 value_samples"),
        ({"coef": ("GradientShare(0.2)",)}, "values have no such bonus"),
        ({"coef": ("TargetEntropy(0.7)",)}, "0.6931, the uniform one"),
        ({"env": "tests.rl.continuous:Ruler-v0", "env_kwargs": {"bound": math.inf}}, "soft_q has no other kind"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "runs", **changes)
    assert list(tmp_path.iterdir()) == []
