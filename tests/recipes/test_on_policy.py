"""The on-policy recipes: known answers, populations, determinism, and what stops a run."""

import importlib
import json
import math

import numpy as np
import pytest
import torch

from entreg import functional, spelling
from entreg.checkpoint import Checkpoints
from entreg.recipes import a2c, ppo, reinforce
from entreg.record import read_records
from entreg.run import NonFinite, Run, RunSettings
from tests.rl.small import REWARDS

RECIPES = {"ppo": ppo, "a2c": a2c, "reinforce": reinforce}
FAST = {"environments": 4, "rollout": 16, "hidden": (8,), "video": False, "eval_episodes": 2}


def settings(folder, **changes):
    return RunSettings(out=folder, quiet=True, **changes)


def trained(recipe, folder, **config):
    run_changes = config.pop("run", {})
    summary = recipe.train(recipe.Config(**{**FAST, **config}), Run(settings(folder, **run_changes)))
    return summary, read_records(summary.folder).lines


def probabilities(summary):
    from entreg.policy import load

    policy = load(summary.folder, 0)
    with torch.no_grad():
        return torch.softmax(policy.network.actor(torch.zeros(1, 1, 1)), -1)[0, 0]


def best_policy(family, coef):
    """The maximiser of expected reward + coef x entropy on the bandit, by a long gradient ascent in float64."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        p = torch.softmax(logits, -1)
        loss = -(p * torch.tensor(REWARDS)).sum() - coef * functional.categorical_entropy(logits, spelling.parse_family(family))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.softmax(logits, -1).detach().float()


@pytest.mark.parametrize(
    ("name", "family", "changes"),
    [
        ("ppo", "shannon", {"batch_size": 256, "epochs": 2}),
        ("ppo", "renyi(0.5)", {"batch_size": 256, "epochs": 2}),
        ("a2c", "shannon", {}),
        ("a2c", "tsallis(2)", {}),
        ("reinforce", "shannon", {"baseline": "mean"}),
        ("reinforce", "min_entropy", {"baseline": "none"}),
    ],
)
def test_the_bandits_policy_is_the_known_optimum_of_reward_plus_entropy(name, family, changes, tmp_path):
    coef = 0.5
    config = {"env": "tests.rl.small:Bandit-v0", "coef": (str(coef),), "family": (family,), "steps": 24_000, "environments": 16, "rollout": 16,
              "normalise_advantage": False, "learning_rate": "linear(0.03, 0)", "gamma": 0.0}  # fmt: skip
    summary, _ = trained(RECIPES[name], tmp_path, **config, **changes)
    expected = best_policy(family, coef)
    if family == "shannon":
        torch.testing.assert_close(expected, torch.softmax(torch.tensor(REWARDS) / coef, -1), atol=1e-3, rtol=0)
    torch.testing.assert_close(probabilities(summary), expected, atol=0.06, rtol=0)


@pytest.mark.parametrize(("terminates", "value"), [(False, 10.0), (True, np.mean([(1 - 0.9**k) / 0.1 for k in (1, 2, 3, 4)]))])
def test_truncation_bootstraps_and_termination_does_not(terminates, value, tmp_path):
    config = {"env": "tests.rl.small:Steady-v0", "env_kwargs": {"terminates": terminates}, "steps": 8_000, "gamma": 0.9, "lam": 0.9, "coef": ("0",),
              "learning_rate": "linear(0.05, 0)", "epochs": 4, "max_grad_norm": 10.0}  # fmt: skip
    summary, _ = trained(ppo, tmp_path, **config)
    from entreg.policy import load

    with torch.no_grad():
        found = load(summary.folder).network.critic(torch.zeros(1, 1, 1))
    assert float(found) == pytest.approx(value, abs=0.35)


@pytest.mark.parametrize("squash", [False, True])
def test_continuous_actions_find_the_best_one(squash, tmp_path):
    config = {"env": "tests.rl.small:Turn-v0", "squash": squash, "steps": 12_000, "learning_rate": "linear(0.01, 0)", "gamma": 0.0, "rollout": 64, "epochs": 8}
    summary, records = trained(ppo, tmp_path, **config)
    from entreg.policy import load

    action = load(summary.folder).act(np.zeros(1, dtype=np.float32))
    assert action == pytest.approx([1.0], abs=0.15)
    last = [record for record in records if "entropy" in record][-1]
    assert math.isfinite(last["entropy"]) and "entropy/max" not in last and last["coef"] == 0


def test_images_go_through_the_convolutions(tmp_path):
    config = {"env": "tests.rl.small:Picture-v0", "steps": 2_000, "learning_rate": "0.003", "gamma": 0.0, "coef": ("0",), "epochs": 4}
    _, records = trained(ppo, tmp_path, **config)
    assert [record for record in records if "eval/return" in record][-1]["eval/return"] == 1.0


def test_a_mask_keeps_illegal_actions_out(tmp_path):
    # the environment raises on an illegal action
    _, records = trained(ppo, tmp_path, env="tests.rl.worlds:Masked-v0", steps=512)
    shannon = [record["entropy/max"] for record in records if "entropy/max" in record]
    assert shannon and all(0 < value <= 1 + 1e-6 for value in shannon)


@pytest.mark.parametrize("over", ["action", "trajectory"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_a_member_is_the_run_it_would_have_been_alone(name, over, tmp_path):
    shared = {"steps": 3 * 64, "over": over, "normalise_observation": True, "normalise_reward": True}
    coefs = ("0.3", "TargetEntropy(fraction_of_max(0.5))")
    together, _ = trained(RECIPES[name], tmp_path, coef=coefs, seeds=2, **shared)
    for member, (coef, seed) in enumerate([(coef, seed) for coef in coefs for seed in (0, 1)]):
        alone, _ = trained(RECIPES[name], tmp_path, coef=(coef,), run={"seed": seed}, **shared)
        ours, theirs = _lines(together, member), _lines(alone, 0)
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"member", "time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key


def _lines(summary, member):
    return [record for record in read_records(summary.folder).lines if record.get("member") == member]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    config = {"steps": 256, "coef": ("0.01",)}
    first, second, other = (trained(ppo, tmp_path, **config, run={"seed": seed})[1] for seed in (3, 3, 4))

    def plain(records):
        return [{key: value for key, value in record.items() if key not in ("time", "steps_per_second")} for record in records]

    assert plain(first) == plain(second) != plain(other)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_value_that_is_not_finite_stops_the_run_and_names_it(what, tmp_path):
    with pytest.raises(NonFinite, match=what):
        trained(ppo, tmp_path, env="tests.rl.small:Poisoned-v0", env_kwargs={"what": what}, steps=8_000, run={"checkpoint_every": 0.0})
    (folder,) = tmp_path.iterdir()
    events = [record for record in read_records(folder).lines if record.get("event") == "nonfinite"]
    assert len(events) == 1 and what in events[0]["message"]
    from entreg.policy import load

    assert np.isfinite(load(folder).network.parameters.data.numpy()).all()


def test_target_kl_stops_the_epochs_and_the_penalty_keeps_the_policy_near(tmp_path):
    def final_kl(**changes):
        return trained(ppo, tmp_path, steps=64, learning_rate="0.01", epochs=40, batch_size=64, coef=("0",), **changes)[1][0]["kl"]

    free = final_kl()
    assert final_kl(target_kl=0.002) < free / 2
    assert final_kl(kl_coef=100.0) < free / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "NoSuch-v0"}, "NoSuch-v0"),
        ({"coef": ("nope(1)",)}, "linear"),
        ({"coef": "0.01"}, "tuple"),
        ({"family": ("shanon",)}, "renyi"),
        ({"gamma": 1.5}, "gamma"),
        ({"steps": 0}, "steps"),
        ({"squash": True}, "squash"),
        ({"learning_rate": "TargetEntropy(0.1)"}, "learning_rate"),
        ({"clip": "PI(0.1, 1, 1, (0, 1))"}, "clip"),
        ({"epochs": 0}, "epochs"),
        ({"clip": "linear(0.2, -0.1)"}, "clip must stay at 0 or above"),
        ({"clip": "1.5", "update": "fused"}, "clip must stay at 1 or below"),
        ({"learning_rate": "piecewise([(0, 0.1), (1, -0.1), (2, 0.1)])"}, "learning_rate must stay at 0 or above"),
        ({"kl_coef": math.nan}, "kl_coef"),
        ({"target_kl": math.nan}, "target_kl"),
        ({"log_std": math.inf}, "log_std"),
        ({"stop_at": math.nan}, "stop_at"),
        ({"family": ("renyi(0)",), "env": "tests.rl.small:Turn-v0"}, "orders > 0"),
        ({"normalise_observation": True, "env": "tests.rl.small:Picture-v0"}, "normalise_observation"),
        ({"coef": ("TargetEntropy(fraction_of_max(0.5))",), "env": "tests.rl.small:Turn-v0"}, "fraction_of_max"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trained(ppo, tmp_path / "runs", **changes)
    assert list(tmp_path.iterdir()) == []


def test_config_json_is_enough_to_run_it_again(tmp_path):
    from entreg import flags

    summary, records = trained(ppo, tmp_path, steps=128, coef=("linear(0.01, 0)",))
    page = json.loads((summary.folder / "config.json").read_text())
    again = ppo.train(flags.build(ppo.Config, page["config"]), Run(settings(tmp_path, seed=page["run"]["seed"])))
    assert [r["entropy"] for r in read_records(again.folder).lines if "entropy" in r] == [r["entropy"] for r in records if "entropy" in r]


def test_every_recipe_file_has_what_the_command_line_needs():
    from entreg import cli

    assert set(RECIPES) <= set(cli.recipe_names())
    for name in cli.recipe_names():
        module = importlib.import_module(f"entreg.recipes.{name}")
        assert module.STATUS in ("stable", "experimental") and module.SUMMARY and callable(module.train)


def test_the_fused_update_is_the_eager_one_and_members_do_not_meet(tmp_path):
    pytest.importorskip("numba")
    shared = {"steps": 4 * 64, "coef": ("0.05", "linear(0.1, 0)"), "normalise_observation": True, "epochs": 3, "batch_size": 24}
    eager, _ = trained(ppo, tmp_path, **shared)
    fused, _ = trained(ppo, tmp_path, **shared, update="fused")
    alone, _ = trained(ppo, tmp_path, **{**shared, "coef": ("linear(0.1, 0)",)}, update="fused")
    for member in (0, 1):
        ours, theirs = _lines(fused, member), _lines(eager, member)
        assert len(ours) == len(theirs) == 5
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key

    def plain(records):
        return [{key: value for key, value in record.items() if key not in ("time", "steps_per_second", "member")} for record in records]

    assert plain(_lines(fused, 1)) == plain(_lines(alone, 0))


def test_the_fused_update_keeps_to_masks_and_says_what_it_cannot_do(tmp_path):
    pytest.importorskip("numba")
    shared = {"env": "tests.rl.worlds:Masked-v0", "steps": 256, "coef": ("0.1",)}  # the environment raises on an illegal action
    fused, eager = (trained(ppo, tmp_path / update, **shared, update=update)[1] for update in ("fused", "eager"))
    for name in ("entropy", "entropy/family", "loss/policy", "loss/value", "kl"):
        left, right = ([record[name] for record in records if name in record] for records in (fused, eager))
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5, err_msg=name)
    cases = {"family": {"family": ("renyi(2)",)}, "discrete": {"env": "tests.rl.small:Turn-v0"}, "vectors": {"env": "tests.rl.small:Picture-v0"},
             "tanh": {"activation": "gelu"}, "kl_coef": {"kl_coef": 1.0}}  # fmt: skip
    for words, changes in cases.items():
        with pytest.raises(ValueError, match=words):
            trained(ppo, tmp_path / "refused", **changes, update="fused")
    assert not (tmp_path / "refused").exists()


def test_a_run_whose_time_is_up_is_evaluated_and_can_go_on(tmp_path):
    stopped, records = trained(ppo, tmp_path, steps=10**9, run={"max_time": 1e-3})
    assert stopped.stopped == "max_time" and [r["eval/episodes"] for r in records if "eval/return" in r] == [2]
    again = ppo.train(ppo.Config(**FAST, steps=10**9), Run(settings(tmp_path, resume=str(stopped.folder), max_time=1e-3)))
    assert again.stopped == "max_time" and again.step > stopped.step


def test_a_renderer_that_fails_costs_no_training(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("no room for pictures")

    monkeypatch.setattr("entreg.rl.acting.film", broken)
    run = Run(settings(tmp_path))
    with pytest.raises(OSError, match="no room"):
        ppo.train(ppo.Config(**{**FAST, "video": True}, steps=64), run)
    assert Checkpoints(run.folder / "checkpoint").load().state["complete"] is True
