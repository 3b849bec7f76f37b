"""MaxEnt inverse reinforcement learning: feature counts are met, the gradient is that of the likelihood, it beats the hard maximum, and runs are runs."""

import json

import numpy as np
import pytest
import torch

import entreg
from entreg import cli, planning
from entreg.functional import SHANNON, tsallis
from entreg.recipes import maxent_irl
from entreg.recipes.maxent_irl import Config, Member, Rewards
from entreg.record import read_records
from entreg.rl import demonstrations
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same


@pytest.fixture(autouse=True)
def few_lines(monkeypatch):
    monkeypatch.setattr(maxent_irl, "LOG_LINES", 4)


SMALL = {"env_kwargs": {"size": 3, "regions": 4}, "features": "regions"}


def trained(folder, config, **settings):
    summary = maxent_irl.train(config, Run(RunSettings(out=folder, quiet=True, **settings)))
    last = [line for line in read_records(summary.folder).lines if line["step"] == config.steps and "member" in line]
    return summary, last[-config.seeds :]


@pytest.mark.parametrize(
    "change",
    [{}, {"family": "tsallis(2)"}, {"family": "renyi(0.5)"}, {"finite": True, "gamma": 1.0, "horizon": 10}, {"features": "state_actions", "l2": 1e-5}],
    ids=["shannon", "tsallis", "renyi", "finite", "state_actions"],
)
def test_feature_expectations_are_met(tmp_path, change):
    """L1 below 1e-3 of counts that sum to 10, against the exact expectations of the expert; the reward is then as good as the true one."""
    config = Config(**{**SMALL, "demonstrations": 0, "steps": 300, **change})
    summary, (row,) = trained(tmp_path, config, eval_every=300)
    assert row["feature_gap"] < (1e-3 if config.l2 == 0 else 1e-2)
    assert row["eval/value_difference"] < 0.01
    tables = np.load(summary.folder / "solution.npz")
    assert tables["reward"].shape == (1, 9, 4) and tables["occupancy"].sum() == pytest.approx(10)
    assert tables["policy"].shape == ((1, 10, 9, 4) if config.finite else (1, 9, 4))


def log_likelihood(member, reward, config):
    """`sum_t gamma^t log pi(a_t | s_t)`, mean over trajectories, of the soft-optimal policy, by unrolling value iteration under autograd."""
    mdp, transitions = member.world.mdp, torch.from_numpy(member.world.mdp.transitions.toarray())
    value, total = torch.zeros(mdp.states, dtype=torch.float64), 0.0
    for t in range(config.horizon if config.finite else 300):
        action_value = reward + config.gamma * (transitions @ value).view(reward.shape)
        value = config.temperature * torch.logsumexp(action_value / config.temperature, -1)
        value = torch.where(mdp.terminal, 0, value)
        if config.finite:  # t counts from the end
            total = total + (member.counts[config.horizon - 1 - t] * (action_value - value[:, None])).sum() / config.temperature
    return total if config.finite else (member.counts * (action_value - value[:, None])).sum() / config.temperature


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("env", ["gridworld", "FrozenLake-v1"])
def test_the_gradient_is_that_of_the_log_likelihood(finite, env):
    config = Config(env=env, demonstrations=5, horizon=8, finite=finite, temperature=0.7, features="state_actions")
    member = Member(config, 3)
    reward = torch.randn(member.world.mdp.reward.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reward = torch.where(member.world.mdp.terminal[:, None], 0, reward).requires_grad_()
    likelihood = log_likelihood(member, reward, config)
    (expected,) = torch.autograd.grad(likelihood, reward)
    direction, objective, _ = member.gradient(reward.detach())
    live = ~member.world.mdp.terminal
    torch.testing.assert_close(direction[live] / config.temperature, expected[live], rtol=0, atol=1e-8)
    assert objective / config.temperature == pytest.approx(likelihood.item(), abs=1e-8)


@pytest.mark.parametrize("change", [{"family": "tsallis(2)"}, {"family": "renyi(0.5)"}, {"objective": "matching"}, {"finite": True, "objective": "matching"}])
def test_the_gradient_is_that_of_the_objective(change):
    """Central differences of `<counts, r> - <entries, V>`, for every family and for whole trajectories."""
    member = Member(Config(**{**SMALL, "demonstrations": 4, "horizon": 6, **change}), 1)
    rng = np.random.default_rng(0)
    reward, along = (torch.from_numpy(rng.normal(size=(9, 4))) for _ in range(2))
    direction, _, _ = member.gradient(reward)
    up, down = (member.gradient(reward + step * along)[1] for step in (1e-5, -1e-5))
    assert float((direction * along).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-5)


def test_whole_trajectories_and_single_actions_agree_in_expectation():
    """The true reward explains its expert: its gradient is 0 for exact counts, and goes to 0 for many short cut trajectories under both objectives."""
    config = {**SMALL, "horizon": 6, "temperature": 0.5}
    exact = Member(Config(**config, demonstrations=0), 0)
    reward = exact.world.truth
    assert float(exact.gradient(reward)[0].abs().max()) < 1e-9
    for objective in ("matching", "likelihood"):
        sampled = Member(Config(**config, demonstrations=20_000, objective=objective), 0)
        assert float(sampled.gradient(reward)[0].abs().max()) < 0.03


def test_finite_and_infinite_horizons_agree_in_the_limit():
    reward = torch.randn(9, 4, dtype=torch.float64)
    infinite = Member(Config(**SMALL, demonstrations=0, gamma=0.5), 0)
    finite = Member(Config(**SMALL, demonstrations=0, gamma=0.5, finite=True, horizon=60), 0)
    for left, right in zip(infinite.gradient(reward)[:2], finite.gradient(reward)[:2], strict=True):
        torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=0, atol=1e-9)
    short = Member(Config(**SMALL, demonstrations=0, gamma=0.5, finite=True, horizon=3), 0)
    assert float((short.gradient(reward)[0] - infinite.gradient(reward)[0]).abs().max()) > 1e-3


def test_it_loses_less_than_half_of_hard_maximum_feature_matching(tmp_path):
    """The gridworld of the study, three seeds; twelve are in bench/maxent_irl.py."""
    losses = {}
    for name, change in {"soft": {}, "hard": {"temperature": 0.0, "objective": "matching"}}.items():
        _, rows = trained(tmp_path, Config(features="regions", demonstrations=20, seeds=3, steps=100, **change), eval_every=100)
        losses[name] = np.mean([row["eval/value_difference"] for row in rows])
    assert losses["soft"] < losses["hard"] / 2 and losses["soft"] < 0.03, losses


def test_a_network_is_as_likely_as_a_table(tmp_path):
    rows = {}
    for reward, rate in (("linear", "linear(0.2, 0)"), ("neural", "linear(0.03, 0)")):
        config = Config(env_kwargs={"size": 3, "regions": 4}, reward=reward, steps=300, learning_rate=rate, demonstrations=50, hidden=(16,))
        rows[reward] = trained(tmp_path, config)[1][0]["log_likelihood"]
    assert rows["neural"] == pytest.approx(rows["linear"], abs=2e-3)


def test_members_are_the_runs_they_would_be_alone(tmp_path):
    config = {**SMALL, "steps": 20, "demonstrations": 10}
    together, _ = trained(tmp_path, Config(**config, seeds=2), seed=4)
    alone, _ = trained(tmp_path, Config(**config), seed=5)
    left, right = np.load(together.folder / "solution.npz"), np.load(alone.folder / "solution.npz")
    for name in right:
        np.testing.assert_array_equal(left[name][1], right[name][0])
    assert not np.array_equal(left["true_reward"][0], left["true_reward"][1])


@pytest.mark.parametrize("how", ["told", "killed"])
@pytest.mark.parametrize("words", [("--reward", "neural"), ("--finite", "--objective", "matching", "--family", "tsallis(2)")], ids=["neural", "finite"])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, monkeypatch, words, how):
    base = ["train", "maxent_irl", "--env-kwargs", '{"size": 3}', "--steps", "16", "--seeds", "2", "--demonstrations", "9", "--horizon", "9", "--quiet"]
    base += ["--checkpoint-every", "0", *words]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    real, calls = maxent_irl._ascend, []

    def interrupted(config, rewards, optimizer, run, step):
        calls.append(0)
        if len(calls) == 11:
            if how == "killed":
                raise KeyboardInterrupt
            run.stop("SIGINT")
        real(config, rewards, optimizer, run, step)

    monkeypatch.setattr(maxent_irl, "_ascend", interrupted)
    assert cli.main([*base, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(maxent_irl, "_ascend", real)
    assert cli.main(["train", "maxent_irl", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (expected,), (folder,) = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))
    assert (folder / "solution.npz").read_bytes() == (expected / "solution.npz").read_bytes()
    before = lasting(folder)
    assert cli.main(["train", "--resume", str(folder), "--quiet"]) == 0
    assert lasting(folder) == before


def test_a_file_of_demonstrations_is_as_good_as_the_planner(tmp_path):
    base = Config(**SMALL, demonstrations=12, horizon=7, steps=15)
    planned, _ = trained(tmp_path, base)
    member = Member(base, 0)
    policy = maxent_irl.plan(base, member.true, 0.5).policy
    shown = demonstrations.sample(member.world.mdp, policy, 12, 7, np.random.default_rng(np.random.SeedSequence([0, 0xDE40])))
    lines = []
    for first, length, end in zip(shown.start, shown.lengths, shown.end, strict=True):
        part = slice(first, first + length)
        lines.append(json.dumps({"state": [*shown.state[part].tolist(), int(end)], "action": shown.action[part].tolist()}))
    file = tmp_path / "shown.jsonl"
    file.write_text("\n".join(lines))
    given, (row,) = trained(tmp_path, Config(**SMALL, trajectories=str(file), steps=15))
    np.testing.assert_array_equal(*(np.load(run.folder / "solution.npz")["reward"] for run in (planned, given)))
    assert "eval/value_difference" not in row and "true_reward" not in np.load(given.folder / "solution.npz")
    file.write_text(lines[0])
    with pytest.raises(ValueError, match="the file is not the one that this run began with"):
        maxent_irl.train(Config(**SMALL, trajectories=str(file), steps=15), Run(RunSettings(resume=str(given.folder), quiet=True)))


def test_policies_load_play_and_stand_in_the_report(tmp_path, capsys):
    words = ["train", "maxent_irl", "--env", "FrozenLake-v1", "--env-kwargs", '{"is_slippery": false}', "--features", "next_states", "--steps", "60"]
    assert cli.main([*words, "--expert-temperature", "0.02", "--temperature", "0.02", "--out", str(tmp_path), "--quiet"]) == 0
    (folder,) = tmp_path.iterdir()
    policy = entreg.load(folder)
    best = np.load(folder / "solution.npz")["policy"][0].argmax(-1)
    assert [int(policy.act(state)) for state in (0, 4, 8, 14)] == best[[0, 4, 8, 14]].tolist() == [1, 1, 2, 2]
    assert cli.main(["play", str(folder), "--episodes", "1", "--save", str(tmp_path / "x.gif")]) == 0
    assert "episode 1: return 1 in 6 steps" in capsys.readouterr().out
    maps = json.loads((folder / "heatmaps.json").read_bytes())
    assert len(maps) == 6 and np.array(maps[0]["values"]).shape == (4, 4)
    chosen = np.array(maps[-1]["values"])
    assert maps[-1]["title"] == "Entropy of the policy, seed 0" and chosen[3, 3] == chosen[1, 1] == 0 < chosen[0, 0]  # none where an episode has ended
    html = (folder / "report.html").read_text()
    assert "Learnt reward, seed 0" in html and "heatmap" in html
    assert "gradient steps" in html and "environment steps" not in html and "one seed" in html and "no settings known" not in html


def test_a_gridworld_is_played_as_walks_and_a_map(tmp_path, capsys):
    words = ["train", "maxent_irl", "--steps", "30", "--demonstrations", "0", "--env-kwargs", '{"size": 3, "regions": 4}', "--seeds", "2", "--quiet"]
    assert cli.main([*words, "--horizon", "7", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert f"entreg play {folder}" in capsys.readouterr().out
    for member in (0, 1):
        policy, tables = entreg.load(folder, member), np.load(folder / "solution.npz")
        best = tables["policy"][member].argmax(-1)
        assert [int(policy.act(state)) for state in range(9)] == best.tolist()
        assert cli.main(["play", str(folder), "--member", str(member), "--episodes", "400", "--seed", "3"]) == 0
        *episodes, summary, _, top, middle, bottom = capsys.readouterr().out.splitlines()
        assert [*top.split(), *middle.split(), *bottom.split()] == ["<v>^"[action] for action in best]
        # the mean return of seven steps is that of the occupancy of the greedy policy
        mdp = Member(Config(**SMALL, demonstrations=0), member).true
        visits = planning.occupancy(mdp, torch.eye(4, dtype=torch.float64)[torch.from_numpy(best)], gamma=1.0, horizon=7)
        returns = np.array([float(line.split()[3]) for line in episodes])
        assert len(returns) == 400 and all(line.endswith("in 7 steps") for line in episodes)
        assert returns.mean() == pytest.approx(float((visits * mdp.reward).sum()), abs=5 * returns.std() / 20)
        assert summary.startswith(f"return {returns.mean():.3g}"[:9])
    assert cli.main(["play", str(folder), "--save", "x.gif"]) == 2
    assert "gridworld draws no pictures" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"observation must have shape \(9,\)"):
        entreg.load(folder).act(9)


def test_a_gridworld_with_demonstrations_from_a_file_is_played_without_returns(tmp_path, capsys):
    (tmp_path / "f.jsonl").write_text('{"state": [0, 1, 2], "action": [2, 2]}')
    words = ["train", "maxent_irl", "--steps", "3", "--env-kwargs", '{"size": 3}', "--trajectories", str(tmp_path / "f.jsonl"), "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "runs")]) == 0
    assert cli.main(["play", *map(str, (tmp_path / "runs").iterdir())]) == 0
    told = capsys.readouterr().out
    assert "episode" not in told and told.splitlines()[-3].split()[:2] == [">", ">"]


def test_before_it_is_complete_a_run_has_no_policy_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(maxent_irl, "_ascend", lambda config, rewards, optimizer, run, step: run.stop("enough"))
    summary = maxent_irl.train(Config(**SMALL, demonstrations=0), Run(RunSettings(out=tmp_path, quiet=True)))
    assert summary.stopped == "enough"
    with pytest.raises(ValueError, match="recipe maxent_irl trains none, or has none before the run is complete"):
        entreg.load(summary.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.0}, r"gamma is 1\.0; legal is 0 <= gamma < 1, and 1 with --finite"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"family": "renyi(2)"}, "not concave"),
        ({"family": "sparse"}, "sparse"),
        ({"steps": 0}, "steps is 0"),
        ({"horizon": 0}, "horizon is 0"),
        ({"l2": float("nan")}, "l2 is nan"),
        ({"hidden": (0,)}, "hidden is"),
        ({"features": "regions", "env": "FrozenLake-v1"}, "features is 'regions'"),
        ({"features": "absent.npy"}, r"features: absent\.npy is no readable"),
        ({"features": "states.txt"}, "features is 'states.txt'"),
        ({"env": "CartPole-v1"}, "CartPole-v1 has no table of transitions"),
        ({"env": "FrozenLak-v1"}, "close: FrozenLake-v1"),
        ({"env": "gridwrld"}, "gridwrld.*gridworld is a world of our own"),
        ({"env_kwargs": {"sizes": 3}}, "env_kwargs is"),
        ({"env_kwargs": {"size": 2, "regions": 9}}, "regions is 9"),
        ({"learning_rate": "fast"}, "learning_rate must be"),
        ({"trajectories": "absent.npz"}, r"absent\.npz cannot be read"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        maxent_irl.train(Config(**change), Run(RunSettings(out=tmp_path, quiet=True)))
    assert not list(tmp_path.iterdir())


def test_features_of_a_file(tmp_path):
    given = np.random.default_rng(0).normal(size=(9, 4, 3))
    np.save(tmp_path / "f.npy", given)
    config = {"env_kwargs": {"size": 3}, "demonstrations": 5, "features": str(tmp_path / "f.npy")}
    member = Member(Config(**config), 0)
    reward = Rewards(Config(**config), [member])
    with torch.no_grad():
        reward.parameters += 1
    np.testing.assert_allclose(reward.of(0).detach().numpy(), given.sum(-1))
    for wrong in (given[:5], given * np.nan, np.array([None] * 9)):
        np.save(tmp_path / "f.npy", wrong, allow_pickle=True)
        with pytest.raises(ValueError, match=r"features: .*f\.npy is"):
            Member(Config(**config), 0)


def test_a_horizon_shorter_than_a_trajectory_is_refused(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"state": [0, 0, 0], "action": [0, 0, 0]}')
    with pytest.raises(ValueError, match="horizon is 2, and a trajectory has 3 steps"):
        Member(Config(trajectories=str(tmp_path / "f.jsonl"), horizon=2, finite=True), 0)


def test_families_are_those_of_the_planner():
    for family in (SHANNON, tsallis(2)):
        config = Config(**SMALL, family="shannon" if family is SHANNON else "tsallis(2)")
        member = Member(config, 0)
        expected = planning.soft_value_iteration(member.true, gamma=0.9, temperature=0.5, family=family)
        torch.testing.assert_close(maxent_irl.plan(config, member.true, 0.5).policy, expected.policy)
