"""AlphaZero: known answers, populations, resuming, signals, and what stops a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from entreg import cli
from entreg.checkpoint import Checkpoints
from entreg.policy import load
from entreg.recipes import alphazero
from entreg.record import read_records
from entreg.rl import evaluation, games, matches, selfplay
from entreg.rl.search import Options, Result
from entreg.rl.selfplay import Positions, SelfPlay, Window
from entreg.run import NonFinite, Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same, killed_at
from tests.recipes.test_signals import sending

FAST = alphazero.Config(environments=4, rollout=4, simulations=6, hidden=(8,), steps=192, updates=2, batch_size=16, eval_episodes=2, opponent_simulations=5)


def trained(folder, config=FAST, **changes):
    return alphazero.train(config, Run(RunSettings(out=folder, quiet=True, **changes)))


def lines(summary, member=None):
    return [line for line in read_records(summary.folder).lines if member is None or line.get("member") == member]


def network(policy):
    @torch.no_grad()
    def evaluate(observation):
        outputs, value = policy.network.both(torch.from_numpy(observation)[None])
        return outputs[0].numpy(), value[0].numpy()

    return evaluate


@pytest.mark.slow
def test_a_short_training_and_a_small_search_never_lose_to_any_perfect_play(tmp_path):
    summary = trained(tmp_path, alphazero.Config(steps=12_288, simulations=25, eval_episodes=10))
    last = [line for line in lines(summary) if "eval/return" in line][-1]
    assert last["eval/random"] > 0.7
    game, perfect = games.make("tic_tac_toe"), matches.Solver(0)
    player = evaluation.searching(game, network(load(summary.folder)), Options(simulations=600), [0])
    for first in (True, False):
        assert matches.losing_lines(game, player, first, perfect.best)[0] == []


@pytest.mark.slow
def test_the_shortest_safe_way_is_found_on_frozen_lake(tmp_path):
    config = alphazero.Config(
        env="FrozenLake-v1",
        env_kwargs={"is_slippery": False},
        gamma=0.99,
        video=False,
        environments=32,
        rollout=1,
        steps=4_800,
        hidden=(32,),
        window=2_000,
        eval_episodes=1,
    )
    summary = trained(tmp_path, config)
    record = [line for line in lines(summary) if "eval/return" in line][-1]
    assert (record["eval/return"], record["eval/length"]) == (1.0, 6.0)


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_the_policy_learns_the_searchs_target_with_the_bonus(coef, tmp_path, monkeypatch):
    weights = np.array([1.0, 1, 1, 1, 12, 1, 1, 1, 1])

    def fixed(game, states, evaluate, keys, options):
        legal = np.array([state.legal_actions_mask() for state in states])
        policy = weights * legal / (weights * legal).sum(-1, keepdims=True)
        return Result(policy, policy.argmax(-1), np.zeros(len(states)), policy, legal)

    monkeypatch.setattr(selfplay, "search", fixed)
    config = replace(FAST, coef=(str(coef),), steps=4_800, environments=16, hidden=(32,), batch_size=64, updates=8, learning_rate="linear(0.01, 0)")
    policy, game = load(trained(tmp_path, config).folder), games.make("tic_tac_toe")
    observation, legal = np.empty(27, np.float32), np.empty(9, bool)
    game.look(game.start(0.0), observation, legal)
    found = torch.softmax(torch.from_numpy(network(policy)(observation[None])[0]), -1)[0, 4]
    # the best p = P(4), eight others alike, of cross-entropy to the target .6 minus coef x entropy
    p = torch.linspace(0.01, 0.99, 9801, dtype=torch.float64)
    log_p, log_rest = p.log(), ((1 - p) / 8).log()
    loss = -(0.6 * log_p + 0.4 * log_rest) + coef * (p * log_p + (1 - p) * log_rest)
    assert float(found) == pytest.approx(float(p[loss.argmin()]), abs=0.04)


def test_returns_are_the_movers_own_and_a_cut_game_goes_on_with_the_value():
    one = selfplay._Open()
    for reward, turn in ((0.0, 1), (0.0, -1), (1.0, 1)):
        one.observation.append(np.zeros(1))
        one.legal.append(np.ones(1))
        one.target.append(np.ones(1))
        one.reward.append(reward)
        one.turn.append(turn)
    assert one.positions(1.0, 0.0, 1).value.tolist() == [1.0, -1.0, 1.0] and one.total() == 1.0
    one.turn, one.reward = [1, 1, 1], [1.0, 2.0, 4.0]
    assert one.positions(0.5, 8.0, 1).value.tolist() == [4.0, 6.0, 8.0]
    one.turn = [1, -1, 1]
    np.testing.assert_allclose(one.positions(0.5, 8.0, -1).value, [1 - 0.5 * 2.0, 2 - 0.5 * 0.0, 0.0])


def test_the_window_keeps_the_newest_positions_of_each_member():
    window = Window(2, 5, 1, 1)
    for number in range(4):
        rows = np.full(2, number)
        window.add(1, Positions(rows[:, None], np.ones((2, 1)), rows[:, None], rows))
    assert window.added.tolist() == [0, 8] and sorted(window.rows.value[1].tolist()) == [1, 2, 2, 3, 3]
    again = Window(2, 5, 1, 1)
    again.load_state_dict(window.state_dict())
    assert_same(again.state_dict(), window.state_dict())


def test_self_play_is_legal_and_its_games_are_what_open_spiel_says():
    from entreg.rl.population import Streams

    game = games.make("tic_tac_toe")
    play = SelfPlay(game, FAST, Options(simulations=4), lambda o: (np.zeros((len(o), 9)), np.zeros(len(o))), Streams([0, 1]))
    finished = [one for _ in range(60) for one in play.move()]
    assert len(finished) >= 8 * 6 and {one.total for one in finished} >= {1.0, -1.0}
    for one in finished:
        positions = one.positions
        assert len(positions.value) == one.length and 5 <= one.length <= 9
        np.testing.assert_allclose(positions.value, one.total * np.where(np.arange(one.length) % 2 == 0, 1, -1))
        assert (positions.target[~positions.legal] == 0).all() and np.allclose(positions.target.sum(-1), 1)


def test_a_member_is_the_run_it_would_have_been_alone(tmp_path):
    config = replace(FAST, steps=128, rollout=1, batch_size=20, coef=("0.3", "TargetEntropy(fraction_of_max(0.5))"), seeds=2)
    together = trained(tmp_path, config)
    for member, (coef, seed) in enumerate([(coef, seed) for coef in config.coef for seed in (0, 1)]):
        alone = trained(tmp_path, replace(config, coef=(coef,), seeds=1), seed=seed)
        ours, theirs = lines(together, member), lines(alone, 0)
        assert len(ours) == len(theirs) > 3
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"member", "time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key


CASES = {
    "board": ("--environments", "4", "--simulations", "6", "--coef", "linear(0.1, 0)", "--coef", "TargetEntropy(0.4)", "--seeds", "2"),
    "toy-text": ("--env", "FrozenLake-v1", "--environments", "4", "--simulations", "6", "--search", "ments", "--coef", "Plateau(linear(0.1, 0), 5)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    base = ("--hidden", "8", "--steps", "960", "--updates", "2", "--batch-size", "16", "--eval-episodes", "2", "--eval-every", "400", "--window", "200")

    def words(out):
        return ["train", "alphazero", *base, *CASES[case], "--out", str(out), "--quiet", "--checkpoint-every", "0"]

    assert cli.main(words(tmp_path / "whole")) == 0
    (expected,) = (tmp_path / "whole").iterdir()
    killed_at(words(tmp_path / "cut"), tmp_path / "cut", (expected / "records.jsonl").stat().st_size // 3)
    assert cli.main(["train", "alphazero", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))


PHASES = {"self-play": (SelfPlay, "move", 20), "update": (alphazero.AlphaZero, "gradient_step", 5), "evaluation": (evaluation, "evaluate_board", 1)}


@pytest.mark.parametrize("phase", list(PHASES))
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_exactly(phase, tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", eval_every=64)
    owner, name, at = PHASES[phase]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sending(getattr(owner, name), at))
        stopped = trained(tmp_path / "cut", eval_every=64)
    assert stopped.stopped == "SIGTERM" and 0 < stopped.step < 192
    resumed = trained(tmp_path / "cut", eval_every=64, resume=str(stopped.folder))
    assert resumed.stopped is None and lasting(resumed.folder) == lasting(whole.folder)
    assert_same(final_state(resumed.folder), final_state(whole.folder))


def test_a_value_that_is_not_finite_stops_the_run_and_names_it(tmp_path, monkeypatch):
    step = alphazero.AlphaZero.gradient_step

    def poisoned(self, *args):
        step(self, *args)
        if self.update == 5:
            self.network.parameters.data[0, 0] = math.nan

    monkeypatch.setattr(alphazero.AlphaZero, "gradient_step", poisoned)
    with pytest.raises(NonFinite, match="not finite"):
        trained(tmp_path, checkpoint_every=0.0)
    (folder,) = tmp_path.iterdir()
    assert [line["event"] for line in read_records(folder).lines if "event" in line] == ["nonfinite"]
    assert np.isfinite(load(folder).network.parameters.data.numpy()).all()


def test_the_loaded_policy_is_the_networks_and_play_says_how_it_did(tmp_path, capsys):
    summary = trained(tmp_path)
    policy, game = load(summary.folder), games.make("tic_tac_toe")
    state, observation, legal = game.unpack([4, 0]), np.empty(27, np.float32), np.empty(9, bool)
    game.look(state, observation, legal)
    action = policy.act(observation, legal)
    logits, _ = network(policy)(observation[None])
    assert action == np.where(legal, logits[0], -np.inf).argmax()
    assert cli.main(["play", str(summary.folder), "--episodes", "4"]) == 0
    told = capsys.readouterr().out
    assert "against a random player" in told and told.count("game ") == 4 and "x" in told
    assert cli.main(["play", str(summary.folder), "--save", "x.gif"]) == 2
    assert "tic_tac_toe" in capsys.readouterr().err


def test_dry_run_learns_keeps_nothing_and_other_boards_run(tmp_path, monkeypatch):
    learnt = []
    step = alphazero.AlphaZero.gradient_step
    monkeypatch.setattr(alphazero.AlphaZero, "gradient_step", lambda self, *batch: (learnt.append(batch[-1]), step(self, *batch))[1])
    assert (
        cli.main(["train", "alphazero", "--dry-run", "--out", str(tmp_path), "--quiet", "--simulations", "4", "--environments", "2", "--eval-episodes", "2"])
        == 0
    )
    assert list(tmp_path.iterdir()) == []
    assert len(learnt) == 2 * alphazero.Config.updates and all(active.all() for active in learnt)
    summary = trained(tmp_path, replace(FAST, env="connect_four", steps=64, search="gumbel", batch_size=8))
    assert {"eval/return", "eval/random"} <= lines(summary)[-1].keys()
    assert Checkpoints(summary.folder / "checkpoint", print).best_scores().keys() == {0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "chezz"}, "chezz"),
        ({"env": "CartPole-v1"}, "env.P"),
        ({"search": "uct"}, "puct, ments"),
        ({"coef": "0.1"}, "tuple"),
        ({"coef": ("nope(1)",)}, "linear"),
        ({"family": ()}, "family"),
        ({"simulations": 0}, "simulations"),
        ({"search_temperature": -1.0}, "search_temperature"),
        ({"gamma": 2.0}, "gamma"),
        ({"window": 8}, "window"),
        ({"steps": 15}, "steps must be at least batch_size .16."),
        ({"vectorise": "async"}, "vectorise must be auto"),
        ({"opening": -1}, "opening"),
        ({"hidden": ()}, "hidden"),
        ({"learning_rate": "TargetEntropy(0.1)"}, "learning_rate"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"value_coef": math.inf}, "value_coef"),
        ({"activation": "sine"}, "activation"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trained(tmp_path, replace(FAST, **changes))
    assert list(tmp_path.iterdir()) == []
