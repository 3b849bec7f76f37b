"""dqn, soft_q and sac_discrete: the tabular optimum, known values, exploration, populations, resuming, and what is refused."""

import numpy as np
import pytest
import torch

from entreg import cli, functional, reference, spelling
from entreg.policy import load
from entreg.recipes import dqn, sac_discrete, soft_q
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same, killed_at
from tests.rl.worlds import Maze

RECIPES = {"dqn": dqn, "soft_q": soft_q, "sac_discrete": sac_discrete}
FAST = {"hidden": (8,), "video": False, "eval_episodes": 2, "learning_starts": 32, "batch_size": 16, "updates_per_step": 1.0, "steps": 200}
TABLE = {"env": "tests.rl.worlds:Maze-v0", "gamma": 0.9, "hidden": (32,), "environments": 8, "updates_per_step": 0.25, "steps": 6_000, "batch_size": 32,
         "learning_rate": "linear(0.01, 0)", "target_rate": 0.1, "loss": "squared", "learning_starts": 400}  # fmt: skip
TAU = 0.5


def trained(recipe, folder, **config):
    run = Run(RunSettings(out=folder, quiet=True, **config.pop("run", {})))
    summary = recipe.train(recipe.Config(**{**FAST, **config}), run)
    return summary, read_records(summary.folder).lines


def solved(family, tau):
    """Values `[S]` and action values `[S, A]` of the maze by soft value iteration in NumPy (hard at temperature 0)."""
    value = np.zeros(4)
    kind = spelling.parse_family(family)
    for _ in range(400):
        q = Maze.REWARD + 0.9 * value[Maze.NEXT]
        value = q.max(-1) if tau == 0 else reference.soft_value(q, tau, kind.name, kind.order)
        value[3] = 0.0
    return value[:3], q[:3]


def outputs(summary, member):
    with torch.no_grad():
        return load(summary.folder, member).network.actor(torch.eye(4)[None, :3])[0].double()


@pytest.mark.parametrize(
    ("families", "changes"),
    [
        (("shannon",), {}),
        (("tsallis(2)",), {"exploration": "epsilon_greedy", "epsilon": "0.5"}),
        pytest.param(("shannon", "tsallis(2)", "tsallis(0.5)", "renyi(0.5)"), {}, marks=pytest.mark.slow),
    ],
)
def test_soft_q_learns_the_tabular_soft_optimum(families, changes, tmp_path):
    summary, _ = trained(soft_q, tmp_path, **TABLE, family=families, coef=(str(TAU),), **changes)
    for member, family in enumerate(families):
        value, q = solved(family, TAU)
        found = functional.soft_value(outputs(summary, member), TAU, spelling.parse_family(family)).numpy()
        np.testing.assert_allclose(found, value, rtol=0.02, err_msg=family)
        if family != "tsallis(2)" or changes:  # an action that a sparse policy never takes is learned from the random steps alone
            np.testing.assert_allclose(outputs(summary, member), q, atol=0.05, err_msg=family)


@pytest.mark.parametrize("families", [("shannon",), pytest.param(("tsallis(0.5)", "renyi(0.5)"), marks=pytest.mark.slow)])
def test_sac_discrete_learns_the_tabular_soft_optimum(families, tmp_path):
    summary, _ = trained(sac_discrete, tmp_path, **TABLE, family=families, coef=(str(TAU),))
    learned = final_state(summary.folder)["agent"]["learned"]
    for member, name in enumerate(families):
        family = spelling.parse_family(name)
        value, q = solved(name, TAU)
        logits = outputs(summary, member)
        probs = logits.softmax(-1)
        both = []
        for twin in range(2):
            critic = sac_discrete.Twins(load(summary.folder, member).network.architecture, [0])
            critic.network.parameters.data[:] = learned[twin * len(families) + member]
            with torch.no_grad():
                both.append(critic.network.actor(torch.eye(4)[None, :3].repeat(2, 1, 1))[0].double())
        lower = torch.minimum(*both)
        found = functional.policy_value(probs, lower, functional.categorical_entropy(logits, family), TAU)
        np.testing.assert_allclose(found, value, rtol=0.02, err_msg=name)
        best = functional.soft_policy(torch.from_numpy(q), TAU, family)
        np.testing.assert_allclose(probs, best, atol=0.05, err_msg=name)


@pytest.mark.parametrize("changes", [{"double": False, "epsilon": "0.5"}, {"exploration": "noisy_net", "target_every": 10, "target_rate": 1.0, "steps": 9_000}])
def test_dqn_learns_the_tabular_optimum(changes, tmp_path):
    summary, _ = trained(dqn, tmp_path, **{**TABLE, **changes})
    value, q = solved("shannon", 0)
    found = outputs(summary, 0)
    np.testing.assert_allclose(found.amax(-1), value, rtol=0.02)
    np.testing.assert_array_equal(found.argmax(-1), q.argmax(-1))


@pytest.mark.parametrize(("terminates", "value"), [(False, 1 / (1 - 0.9)), (True, 1 / (1 - 0.9 * 3 / 4))])  # it goes on 3 times of 4
def test_truncation_bootstraps_and_termination_does_not(terminates, value, tmp_path):
    config = {"env": "tests.rl.small:Steady-v0", "env_kwargs": {"terminates": terminates}, "gamma": 0.9, "steps": 4000, "epsilon": "0.1"}
    shared = {"learning_rate": "linear(0.01, 0)", "target_rate": 0.1, "loss": "squared", "environments": 4, "updates_per_step": 0.25, "batch_size": 64}
    summary, _ = trained(dqn, tmp_path, **config, **shared)
    with torch.no_grad():
        found = load(summary.folder).network.actor(torch.zeros(1, 1, 1)).max()
    assert float(found) == pytest.approx(value, rel=0.05)


def test_munchausen_without_weight_is_soft_q_and_with_it_is_not(tmp_path):
    def plain(**changes):
        return [{k: v for k, v in r.items() if k not in ("time", "steps_per_second")} for r in trained(soft_q, tmp_path, coef=("0.1",), **changes)[1]]

    without = plain()
    assert plain(munchausen=True, munchausen_alpha=0.0) == without != plain(munchausen=True)


CASES = {
    "dqn": (dqn, {"exploration": "epsilon_greedy"}),
    "dqn-boltzmann": (dqn, {"exploration": "boltzmann", "coef": ("0.3", "TargetEntropy(fraction_of_max(0.5))"), "family": ("shannon", "tsallis(1.5)")}),
    "dqn-noisy": (dqn, {"exploration": "noisy_net"}),
    "soft_q": (soft_q, {"coef": ("0.3", "TargetEntropy(fraction_of_max(0.5))"), "munchausen": True}),
    "sac_discrete": (sac_discrete, {"coef": ("0.3", "TargetEntropy(fraction_of_max(0.5))"), "family": ("shannon", "renyi(0.5)")}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_member_is_the_run_it_would_have_been_alone_and_masks_are_kept(case, tmp_path):
    recipe, changes = CASES[case]
    shared = {"env": "tests.rl.worlds:Masked-v0", "environments": 2}  # raises on an illegal action
    together, _ = trained(recipe, tmp_path, **shared, **changes, seeds=2)
    coefs, families = changes.get("coef", ()) or (None,), changes.get("family", ("shannon",))
    settings = [(family, coef, seed) for family in families for coef in coefs for seed in (0, 1)]
    for member in (1, len(settings) - 1):
        family, coef, seed = settings[member]
        one = {**changes, "family": (family,), **({} if coef is None else {"coef": (coef,)})}
        alone, _ = trained(recipe, tmp_path, **shared, **one, run={"seed": seed})
        ours, theirs = ([r for r in read_records(s.folder).lines if r.get("member") == m] for s, m in ((together, member), (alone, 0)))
        assert len(ours) == len(theirs) > 50
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"member", "time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key


@pytest.mark.parametrize("name", list(RECIPES))
def test_records_hold_what_the_pages_say(name, tmp_path):
    _, records = trained(RECIPES[name], tmp_path, steps=2000, environments=4, updates_per_step=0.25)
    lines = [record for record in records if "coef" in record]
    assert 100 <= len(lines) <= 450
    expected = {"entropy", "entropy/max", "entropy/family", "coef", "loss/value", "q", "steps_per_second", "learning_rate", "return"}
    expected |= {"epsilon"} if name == "dqn" else {"entropy/target"}
    assert expected <= lines[-1].keys() and ("loss/policy" in lines[-1]) == (name == "sac_discrete")
    assert lines[-1]["step"] == 2000


def test_an_almost_uniform_target_is_told_once_and_others_are_not(tmp_path, capsys):
    coefs = ("TargetEntropy(fraction_of_max(0.98))", "TargetEntropy(greedy_probability(0.9))", "0.1")
    _, records = trained(sac_discrete, tmp_path, coef=coefs, seeds=2)
    (event,) = [record for record in records if record.get("event") == "almost_uniform"]
    assert "its best action of 2 may hold 0.583" in event["message"]
    assert capsys.readouterr().err == f"entreg: {event['message']}\n"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("sac_discrete", {"env": "Pendulum-v1"}, "sac_discrete needs one discrete action"),
        ("dqn", {"env": "tests.rl.worlds:MaskedHeads-v0"}, "dqn needs one discrete action"),
        ("soft_q", {"family": ("renyi(2)",)}, "not concave"),
        ("sac_discrete", {"family": ("min_entropy",)}, "not concave"),
        ("sac_discrete", {"family": ("tsallis(1.5)",)}, "zeros"),
        ("soft_q", {"family": ("tsallis(2)",)}, "greedy_probability"),
        ("soft_q", {"family": ("tsallis(2)",), "munchausen": True}, "Munchausen"),
        ("soft_q", {"munchausen_alpha": 2.0}, "munchausen_alpha"),
        ("soft_q", {"coef": ("-0.1",)}, "legal are numbers >= 0"),
        ("dqn", {"coef": ("0.1",)}, "temperature with exploration boltzmann only"),
        ("dqn", {"exploration": "optimism"}, "exploration must be one of epsilon_greedy, boltzmann, noisy_net"),
        ("dqn", {"epsilon": "linear(2, 0)"}, "epsilon must stay at 1 or below"),
        ("dqn", {"sigma": -1.0}, "sigma"),
        ("dqn", {"target_rate": 0.0}, "target_rate"),
        ("sac_discrete", {"target_every": 0}, "target_every"),
        ("dqn", {"loss": "cubic"}, "loss must be huber or squared"),
        ("dqn", {"steps": 10**13, "buffer_size": 10**13}, "lower buffer_size"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(name, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trained(RECIPES[name], tmp_path / "runs", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_temperature_below_zero_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match="legal are numbers >= 0"):
        trained(soft_q, tmp_path, coef=("linear(0.1, -0.1)",))


def test_the_share_of_the_bonus_is_recorded_and_a_controller_holds_it(tmp_path):
    _, records = trained(sac_discrete, tmp_path, coef=("0", "0.01", "GradientShare(0.5, 0.3)"), steps=400)
    shares = [[record["grad_share"] for record in records if "grad_share" in record and record["member"] == member] for member in range(3)]
    assert set(shares[0]) == {0.0} and 0 < np.mean(shares[1]) < 1
    assert abs(np.mean(shares[2][-20:]) - 0.5) < 0.15 < abs(np.mean(shares[1][-20:]) - 0.5)


def test_a_target_above_the_largest_entropy_is_said_to_be_out_of_reach(tmp_path, capsys):
    trained(soft_q, tmp_path, coef=("TargetEntropy(5)",), steps=40)
    assert "a target of 7.21 of the largest entropy is above what there is; no policy reaches it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    recipe, changes = CASES[case]
    name = recipe.__name__.rpartition(".")[2]
    flags = [word for key, value in changes.items() if isinstance(value, tuple) for part in value for word in (f"--{key}", part)]
    flags += ["--exploration", changes["exploration"]] if "exploration" in changes else []
    flags += ["--munchausen"] if changes.get("munchausen") else []
    small = {"steps": 500, "hidden": 8, "eval-episodes": 2, "eval-every": 150, "learning-starts": 50, "environments": 2, "buffer-size": 200, "batch-size": 16}
    sizes = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    base = ["train", name, *sizes, "--updates-per-step", "0.5", "--no-video", *flags, "--quiet", "--checkpoint-every", "0"]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    (expected,) = (tmp_path / "whole").iterdir()
    killed_at([*base, "--out", str(tmp_path / "cut")], tmp_path / "cut", (expected / "records.jsonl").stat().st_size // 2)
    assert cli.main(["train", name, "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert lasting(folder) == lasting(expected)
    left, right = final_state(folder), final_state(expected)
    assert_same(left, right)
