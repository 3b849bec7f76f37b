"""Games as a search sees them: boards against open_spiel, toy text against Gymnasium's own model."""

import gymnasium
import numpy as np
import pytest
from open_spiel.python.algorithms import minimax

from entreg.rl import games, matches

BOARDS = ("tic_tac_toe", "connect_four")


def view(game, state):
    observation, legal = np.empty(game.size, np.float32), np.empty(game.actions, bool)
    game.look(state, observation, legal)
    return observation, legal


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_follows_open_spiel_and_leaves_states_as_they_were(name):
    game, generator = games.make(name), np.random.default_rng(0)
    ends = set()
    for _ in range(50):
        state, own, terminal = game.start(0.0), game.game.new_initial_state(), False
        while not terminal:
            legal = view(game, state)[1]
            assert np.flatnonzero(legal).tolist() == own.legal_actions()
            mover, before, action = own.current_player(), str(state), int(generator.choice(own.legal_actions()))
            move = game.advance(state, action, 0)
            own.apply_action(action)
            assert str(state) == before and str(move.state) == str(own) and game.pack(move.state) == own.history()
            assert str(game.unpack(game.pack(move.state))) == str(own)
            state, terminal = move.state, move.terminal
            assert terminal == own.is_terminal() and move.same is False and game.mover(state) == own.current_player()
            assert move.reward == (own.returns()[mover] if terminal else 0.0)
        ends.add(move.reward)
    assert 1.0 in ends


@pytest.mark.parametrize("name", BOARDS)
def test_the_mover_sees_its_own_stones_in_the_second_plane(name):
    game = games.make(name)
    shape = game.game.observation_tensor_shape()
    state = game.start(0.0)
    for count, action in enumerate((0, 1, 2, 3, 4)):
        planes = view(game, state)[0].reshape(shape[0], -1)
        assert planes[1].sum() == count // 2 and planes[2].sum() == (count + 1) // 2 and (planes.sum(0) == 1).all()
        assert planes[0].sum() == planes.shape[1] - count
        state = game.advance(state, action, 0).state


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4"])
def test_toy_text_is_the_model_of_gymnasium(name):
    game, model = games.make(name), gymnasium.make(name).unwrapped.P
    assert (game.size, game.actions) == (len(model), len(model[0]))
    for state, actions in model.items():
        for action, rows in actions.items():
            cumulative = game.chance(state)
            chance = np.diff(cumulative[action], prepend=0.0) if cumulative is not None else np.ones(1)
            for outcome, (probability, after, reward, terminal) in enumerate(rows):
                assert chance[outcome] == pytest.approx(probability, abs=1e-12)
                assert game.advance(state, action, outcome) == games.Move(after, reward, terminal, True)
            assert chance[len(rows) :].sum() == 0


def test_draws_follow_the_model_and_its_starts():
    slippery, taxi = games.make("FrozenLake-v1"), games.make("Taxi-v4")
    counts = np.bincount([games.drawn(slippery.chance(6), 1, uniform) for uniform in np.linspace(0, 1, 3001)[:-1]], minlength=3)
    assert np.abs(counts - 1000).max() <= 1
    starts = np.bincount([taxi.start(uniform) for uniform in np.linspace(0, 1, 3001)[:-1]], minlength=500)
    expected = gymnasium.make("Taxi-v4").unwrapped.initial_state_distrib
    assert np.abs(starts - 3000 * expected).max() <= 1


def test_cumulative_probabilities_end_at_one_whatever_the_rounding():
    odd = games._cumulative(np.array([[0.1] * 10 + [0.0], [0.3, 0.7, *[0.0] * 9]]))
    assert odd[0, 9] == odd[0, 10] == odd[1, 1] == 1.0 and np.cumsum([0.1] * 10)[-1] < 1
    assert odd[0, 8] == pytest.approx(0.9)


def test_a_task_without_a_limit_gets_one_and_says_so():
    game = games.make("CliffWalking-v1")
    assert game.limit == games.LONGEST and "no time limit" in game.notes[-1]
    assert games.make("CliffWalking-v1", {"max_episode_steps": 30}).limit == 30
    assert games.make("FrozenLake-v1").limit == 100 and not games.make("FrozenLake-v1").notes


def test_rewards_and_bounds_are_scaled():
    assert games.make("tic_tac_toe", reward_scale=0.5).bounds == (-0.5, 0.5)
    assert games.make("CliffWalking-v1", reward_scale=0.01).advance(36, 1, 0).reward == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("tic_tac_to", {}, "not registered.*tic_tac_toe"),
        ("tic_tac_toe", {"size": 4}, "takes no argument 'size'"),
        ("backgammon", {}, "no chance"),
        ("kuhn_poker", {}, "perfect information"),
        ("matrix_pd", {}, "zero sum"),
        ("CartPole-v1", {}, "env.P"),
        ("Blackjack-v1", {}, "env.P"),
        ("FrozenLake-v1", {"slippery": False}, "slippery"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        games.make(name, kwargs)


def test_the_solver_is_open_spiels_minimax():
    game, generator = games.make("tic_tac_toe"), np.random.default_rng(1)
    solver = matches.Solver(0)
    for _ in range(20):
        state = game.start(0.0)
        for _ in range(int(generator.integers(3, 7))):
            if not state.is_terminal():
                state = state.child(int(generator.choice(state.legal_actions())))
        if not state.is_terminal():
            value, _ = minimax.alpha_beta_search(game.game, state=state, maximizing_player_id=0)
            assert solver.value(state) == value
            for action in state.legal_actions():
                assert (action in solver.best(state)) == (solver.value(state.child(action)) == value)
    assert solver.value(game.start(0.0)) == 0.0
