"""The search: exact values of small trees, laws of its rules, and G games together are G games one by one."""

import numpy as np
import pytest
import torch

from entreg import functional
from entreg.rl import games, matches
from entreg.rl import search_rules as rules
from entreg.rl.search import _GUMBEL, _NOISE, Options, _per_action, _Walk, choose, search, uniforms
from entreg.rl.search_rules import KINDS, SOFT
from entreg.rl.search_trees import Trees
from tests.rl.trees import Tree, exact, soft

GENERATOR = np.random.default_rng(7)


def blind(actions):
    return lambda observation: (np.zeros((len(observation), actions)), np.zeros(len(observation)))


def keys(count, first=0):
    return np.arange(first, first + count, dtype=np.uint64)


def dirichlet(rows, actions):
    return GENERATOR.dirichlet(np.ones(actions), rows)


# -------------------------------------------------- rules


@pytest.mark.parametrize("kind", SOFT)
def test_soft_values_and_policies_are_those_of_plain_optimisation(kind):
    q, prior, tau = GENERATOR.normal(size=(40, 5)), dirichlet(40, 5), 0.3
    legal = GENERATOR.random((40, 5)) < 0.7
    legal[:, 0] = True
    prior = np.where(legal, prior, 0)
    prior /= prior.sum(-1, keepdims=True)
    value = rules.backed_up(kind, q, np.ones_like(q), prior, legal, q[:, 0], tau)
    policy = rules.soft_policy(kind, q, prior, legal, tau)
    for row in range(40):
        expected, best = soft(kind, q[row, legal[row]], prior[row, legal[row]], tau)
        assert value[row] == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(policy[row, legal[row]], best, atol=1e-12)
        assert (policy[row, ~legal[row]] == 0).all()


@pytest.mark.parametrize(("kind", "family"), [("ments", functional.SHANNON), ("tents", functional.tsallis(2))], ids=["ments", "tents"])
def test_the_rules_are_those_of_functional_soft(kind, family):
    q, legal = GENERATOR.normal(size=(50, 6)), GENERATOR.random((50, 6)) < 0.6
    legal[:, 3] = True
    support = torch.from_numpy(legal)
    value = functional.soft_value(torch.from_numpy(q), 0.25, family, support=support)
    policy = functional.soft_policy(torch.from_numpy(q), 0.25, family, support=support)
    np.testing.assert_allclose(rules.backed_up(kind, q, q, q, legal, q[:, 0], 0.25), value.numpy(), atol=1e-12)
    np.testing.assert_allclose(rules.soft_policy(kind, q, q, legal, 0.25), policy.numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_before_any_visit_a_node_is_what_the_network_says(kind):
    value, prior, legal = GENERATOR.normal(size=30), dirichlet(30, 4), np.ones((30, 4), bool)
    q = rules.start_values(kind, value, prior, 0.2)
    none = np.zeros((30, 4), int)
    np.testing.assert_allclose(rules.backed_up(kind, q, none, prior, legal, value, 0.2), value, atol=1e-12)
    if kind in SOFT:
        np.testing.assert_allclose(rules.soft_policy(kind, q, prior, legal, 0.2), prior, atol=1e-9)


def test_the_exploration_share_is_the_papers():
    policy, legal = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[True, True, True, False]])
    mixed = rules.explored(policy, legal, np.array([[6, 2, 0, 0]]), 0.1)
    share = 0.1 * 3 / np.log(8 + 1 + 1)
    np.testing.assert_allclose(mixed, [[1 - share + share / 3, share / 3, share / 3, 0.0]])
    np.testing.assert_allclose(rules.explored(policy, legal, np.zeros((1, 4), int), 5.0), [[1 / 3, 1 / 3, 1 / 3, 0.0]])


@pytest.mark.parametrize(("considered", "simulations"), [(2, 8), (4, 16), (8, 50), (9, 32), (16, 7), (5, 200)])
def test_sequential_halving_visits_phase_by_phase_and_halves(considered, simulations):
    plan = rules.halving(considered, simulations)
    assert len(plan) == simulations
    visits = np.zeros(considered, int)
    for due in plan:  # play it: always the first action that has been visited so often
        candidates = np.flatnonzero(visits == due)
        assert len(candidates)
        visits[candidates[0]] += 1
    ordered = -np.sort(-visits)
    assert ordered[0] - ordered[1] <= 1  # the two finalists stay level
    phases, left = int(np.ceil(np.log2(considered))), considered
    if simulations >= phases * considered:  # everyone who leaves at the first cut got the first phase's budget
        assert (ordered[left // 2 :] >= simulations // (phases * considered)).all()


def test_the_improved_policy_is_worth_at_least_the_prior():
    prior, q = dirichlet(500, 6), GENERATOR.random((500, 6))
    visits = GENERATOR.integers(0, 9, (500, 6))
    full = rules.completed(q, visits, prior, GENERATOR.random(500))
    improved = rules.softmax(rules.improved_logits(full, visits, prior), np.ones_like(prior, dtype=bool))
    gain = (improved * full).sum(-1) - (prior * full).sum(-1)
    assert (gain >= -1e-12).all() and gain.mean() > 0.05


def test_completed_values_keep_what_was_seen_and_mix_the_rest():
    q, prior = np.array([[0.5, 0.9, 0.0]]), np.array([[0.2, 0.3, 0.5]])
    full = rules.completed(q, np.array([[3, 1, 0]]), prior, np.array([0.1]))
    mixed = (0.1 + 4 * (0.2 * 0.5 + 0.3 * 0.9) / 0.5) / 5
    np.testing.assert_allclose(full, [[0.5, 0.9, mixed]])


# -------------------------------------------------- randomness


def test_uniforms_are_uniform_and_do_not_repeat():
    many = np.concatenate([uniforms(keys(2000), purpose, simulation, place) for purpose in (0, 3) for simulation in (0, 7) for place in (0, 1, 5)])
    assert len(np.unique(many)) == len(many) and many.min() >= 0 and many.max() < 1
    counts = np.histogram(many, 20, (0, 1))[0]
    assert ((counts - 1200) ** 2 / 1200).sum() < 45  # chi-squared with 19 degrees: 1 in 1500
    a, b = uniforms(keys(20_000), 0, 0, 0), uniforms(keys(20_000), 0, 0, 1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03 and abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


def test_choose_never_takes_what_has_no_probability():
    policy = np.array([[0.0, 0.25, 0.0, 0.75, 0.0]] * 4)
    assert choose(policy, np.array([0.0, 0.2499, 0.2501, 1 - 2**-53])).tolist() == [1, 1, 3, 3]


def test_root_noise_is_dirichlet_over_the_legal_actions_and_at_the_root_only(monkeypatch):
    game, trees = games.make("tic_tac_toe"), []

    def kept(*args, **kwargs):
        trees.append(Trees(*args, **kwargs))
        return trees[-1]

    monkeypatch.setattr("entreg.rl.search.Trees", kept)
    roots, options = [game.unpack([0, 4, 8])] * 4000, Options(simulations=2, dirichlet_alpha=0.7, dirichlet_fraction=0.25)
    search(game, roots, blind(9), keys(4000), options)
    legal = trees[0].legal[:, 0]
    noise = (trees[0].prior[:, 0] - 0.75 * legal / 6) / 0.25
    assert (noise[~legal] == 0).all() and np.allclose(noise.sum(-1), 1)
    drawn = noise[:, legal[0]]
    np.testing.assert_allclose(drawn.mean(0), 1 / 6, atol=0.02)
    np.testing.assert_allclose(drawn.var(0), (1 / 6) * (5 / 6) / (6 * 0.7 + 1), rtol=0.1)
    assert np.array_equal(trees[0].prior[:, 1], trees[0].legal[:, 1] / trees[0].legal[:, 1].sum(-1, keepdims=True))
    search(game, roots[:3], blind(9), keys(3), options, explore=False)
    assert np.array_equal(trees[1].prior[:, 0], trees[1].legal[:, 0] / 6)


def test_gumbel_noise_is_gumbel():
    noise = -np.log(-np.log(_per_action(keys(20_000), 2, _GUMBEL)))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.03) and noise.var() == pytest.approx(np.pi**2 / 6, rel=0.05)
    assert _NOISE != _GUMBEL


# -------------------------------------------------- exact values


@pytest.mark.parametrize("players", [1, 2])
@pytest.mark.parametrize("kind", SOFT)
def test_soft_searches_end_at_the_exact_soft_values_of_a_tree(kind, players):
    tree = Tree(players, seed=3)
    found = search(tree, [()], blind(3), keys(1), Options(kind, 400, gamma=0.9, temperature=0.3, epsilon=1.0))
    value, q = exact(tree, kind, 0.9, 0.3)
    np.testing.assert_allclose(found.q[0], q, atol=1e-10)
    assert found.value[0] == pytest.approx(value, abs=1e-10)
    _, policy = soft(kind, q, np.full(3, 1 / 3), 0.3)
    np.testing.assert_allclose(found.policy[0], policy, atol=1e-9)


@pytest.mark.parametrize("kind", ["puct", "gumbel"])
def test_averages_are_those_of_all_simulations(kind):
    # one move to the end: every action's value is its reward, and the root's the mean of the network's word and of all visits
    tree = Tree(1, depth=1, seed=2)
    found = search(tree, [()], lambda o: (np.zeros((len(o), 3)), np.full(len(o), 0.4)), keys(1), Options(kind, 40))
    rewards = np.array([tree.advance((), action, 0).reward for action in range(3)])
    np.testing.assert_allclose(found.q[0], rewards)
    assert found.visits.sum() == 40 and found.value[0] == pytest.approx((0.4 + (found.visits[0] * rewards).sum()) / 41)


@pytest.mark.parametrize("players", [1, 2])
@pytest.mark.parametrize("kind", ["puct", "gumbel"])
def test_averaging_searches_approach_the_hard_values(kind, players):
    for seed in range(2):
        tree = Tree(players, seed=seed)
        found = search(tree, [()], blind(3), keys(1), Options(kind, 1500, gamma=0.9), explore=False)
        value, q = exact(tree, kind, 0.9, 0.0)
        assert found.action[0] == q.argmax() and found.q[0, found.action[0]] == pytest.approx(value, abs=0.12)


@pytest.mark.parametrize("kind", SOFT)
def test_with_chance_the_soft_values_are_the_expectations(kind):
    tree = Tree(1, depth=2, chances=((0.7, 0.3), (0.5, 0.5)), seed=1)
    found = search(tree, [()] * 8, blind(3), keys(8), Options(kind, 1500, gamma=0.9, temperature=0.3, epsilon=1.0))
    value, q = exact(tree, kind, 0.9, 0.3)
    assert np.abs(found.q - q).max() < 0.02
    assert found.value.mean() == pytest.approx(value, abs=0.01)


def test_chance_is_met_as_the_model_says():
    game = games.make("FrozenLake-v1")
    probability = np.array([0.1, 0.6, 0.3])
    game._cumulative[:] = np.array([0.1, 0.7, 1.0])
    walked = [_visits(game, count) for count in (1, 2, 5)]
    for count, outcomes in zip((1, 2, 5), walked, strict=True):
        mean = outcomes.mean(0)
        error = 4 * np.sqrt(probability * (1 - probability) / len(outcomes))
        assert (np.abs(mean / count - probability) < error).all(), count  # any number of visits is unbiased
    assert (np.abs(_visits(game, 100)[:50] - 100 * probability) < 3).all()  # and far more even than independent draws, whose deviation is 4


def _visits(game, count):
    """How often each outcome of the first action was met when it was visited `count` times, `[6000, 3]`."""
    g = 6000 if count < 100 else 50
    trees = Trees(game, [0] * g, 1, "puct", gamma=1.0, tau=1.0)
    trees.fill(trees.games, 0, np.zeros((g, 4)), np.zeros(g))
    walk, met = _Walk(trees, keys(g), Options(), False), np.zeros((g, 3), int)
    node, action = np.zeros(g, int), np.zeros(g, int)
    for _ in range(count):
        met[trees.games, walk._outcome(trees.games, node, action)] += 1
        trees.visits[:, 0, 0] += 1
    return met


# -------------------------------------------------- games


@pytest.mark.parametrize("name", ["tic_tac_toe", "FrozenLake-v1"])
@pytest.mark.parametrize("kind", KINDS)
def test_games_together_are_the_games_one_by_one_bit_for_bit(kind, name):
    game = games.make(name)
    roots = [0, 1, 4, 14, 9] if name == "FrozenLake-v1" else [game.unpack(moves) for moves in ([], [4], [0, 4, 8], [0, 1, 2, 3, 4, 5], [0, 3, 1, 4])]
    weights = np.random.default_rng(0).normal(size=(game.size, game.actions + 1))

    def network(observation):
        every = np.stack([(row[:, None] * weights).sum(0) for row in observation.astype(float)])  # row by row: no rounding that depends on the batch
        return every[:, :-1], np.tanh(every[:, -1])

    options = Options(kind, 40, gamma=0.95)
    together = search(game, roots, network, keys(5), options)
    for index, root in enumerate(roots):
        alone = search(game, [root], network, keys(1, index), options)
        for whole, part in zip(together, alone, strict=True):
            assert np.array_equal(whole[index : index + 1], part)


@pytest.mark.parametrize("kind", KINDS)
def test_only_legal_actions_are_looked_at_and_recommended(kind):
    game, generator, states = games.make("connect_four"), np.random.default_rng(3), []
    while len(states) < 40:
        state = game.start(0.0)
        for _ in range(int(generator.integers(0, 36))):
            if not state.is_terminal():
                state = state.child(int(generator.choice(state.legal_actions())))
        if not state.is_terminal():
            states.append(state)
    found = search(game, states, lambda o: (generator.normal(size=(len(o), 7)), generator.normal(size=len(o))), keys(40), Options(kind, 30))
    legal = np.array([state.legal_actions_mask() for state in states], bool)
    assert (~legal).any() and (found.policy[~legal] == 0).all() and (found.visits[~legal] == 0).all()
    assert legal[np.arange(40), found.action].all()
    np.testing.assert_allclose(found.policy.sum(-1), 1)
    assert (found.visits.sum(-1) == 30).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_win_in_one_is_found_and_a_loss_in_two_is_stopped(kind):
    game = games.make("tic_tac_toe")
    options = Options(kind, 300, temperature=0.05)
    states = [game.unpack([0, 3, 1, 4]), game.unpack([0, 4, 8, 2]), game.unpack([4, 0, 2])]  # win at 2; stop 6; stop 6
    found = search(game, states, blind(9), keys(3), options, explore=False)
    assert found.action.tolist() == [2, 6, 6]
    assert found.q[0, 2] == 1.0


@pytest.mark.slow
def test_search_alone_never_loses_tic_tac_toe_to_any_line_of_play():
    game = games.make("tic_tac_toe")
    options = Options(simulations=1600)

    def player(states):
        return search(game, states, blind(9), keys(len(states)), options, explore=False).action

    for first in (True, False):
        lost, asked = matches.losing_lines(game, player, first)
        assert lost == [] and asked > 50
    assert matches.losing_lines(game, lambda states: np.array([state.legal_actions()[0] for state in states]), False)[0]  # this can fail


def test_a_match_against_the_solver_is_drawn_by_the_solver_and_lost_by_a_beginner():
    game = games.make("tic_tac_toe")
    solver, first = matches.Solver(0), np.arange(20) % 2 == 0
    perfect = matches.play(game, lambda states: np.array([solver.best(state)[0] for state in states]), [matches.Solver(seed) for seed in range(20)], first)
    assert (perfect.result == 0).all() and (perfect.length == 9).all()
    random = matches.play(game, lambda states: np.array([state.legal_actions()[-1] for state in states]), [matches.Solver(seed) for seed in range(20)], first)
    assert random.result.mean() < -0.5 and random.result.max() <= 0
    assert matches.play(game, lambda states: np.zeros(len(states), int), [solver], first[:1], stop=lambda: True) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "uct"}, "puct, ments"),
        ({"simulations": 0}, "simulations"),
        ({"temperature": 0.0}, "search_temperature"),
        ({"temperature": float("nan")}, "search_temperature"),
        ({"gamma": 1.1}, "gamma"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"dirichlet_fraction": 2.0}, "dirichlet_fraction"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Options(**changes)
