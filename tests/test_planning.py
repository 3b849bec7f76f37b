"""Planning against solvers that share nothing with it: loops in long double over `env.P`, SciPy's root finder, linear programming; and the theorems."""

import math
import re

import gymnasium
import numpy as np
import pytest
import torch
from scipy import optimize, sparse

from entreg import planning, reference
from entreg.functional import SHANNON, categorical_entropy, min_entropy, renyi, tsallis
from entreg.planning import (
    MDP,
    from_gymnasium,
    gridworld,
    max_occupancy_entropy,
    occupancy,
    soft_policy_evaluation,
    soft_policy_iteration,
    soft_value_iteration,
)

TOY = ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4")
ALL_TOY = (*TOY, "FrozenLake8x8-v1", "CliffWalkingSlippery-v1")  # all toy-text tasks with a table; Blackjack has none
FAMILIES = {"shannon": SHANNON, "tsallis(2)": tsallis(2), "tsallis(1.5)": tsallis(1.5), "renyi(0.5)": renyi(0.5)}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def toy(name):
    return from_gymnasium(gymnasium.make(name))


def random_mdp(states=5, actions=3, seed=0, ends=1):
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(states), size=states * actions)
    terminal = np.arange(states) >= states - ends
    transitions[np.repeat(terminal, actions)] = np.repeat(np.eye(states)[terminal], actions, axis=0)
    reward = np.where(terminal[:, None], 0, rng.normal(size=(states, actions)))
    return MDP(transitions, reward, terminal, np.full(states, 1 / states))


def loops(env, gamma, temperature, sweeps, horizon=None):
    """Soft value iteration as Ziebart writes it, in long double, straight from the table of the environment."""
    table = env.unwrapped.P
    states, actions = env.observation_space.n, env.action_space.n
    value = np.zeros(states, np.longdouble)
    for _ in range(horizon or sweeps):
        new = np.zeros_like(value)
        for s in range(states):
            q = [sum(np.longdouble(p) * (r + (0 if end else gamma * value[to])) for p, to, r, end in table[s][a]) for a in range(actions)]
            best = max(q)
            new[s] = best if temperature == 0 else best + temperature * np.log(sum(np.exp((x - best) / temperature) for x in q))
        value = new
    return value.astype(np.float64)


@pytest.mark.parametrize("name", TOY[:2])
@pytest.mark.parametrize("temperature", [0, 0.05, 1.0])
def test_value_iteration_is_that_of_the_paper_in_long_double(name, temperature):
    env, mdp = gymnasium.make(name), toy(name)
    live = ~mdp.terminal.numpy()
    solution = soft_value_iteration(mdp, gamma=0.7, temperature=temperature)
    np.testing.assert_allclose(solution.value.numpy()[live], loops(env, 0.7, temperature, 100)[live], atol=1e-9)
    assert bool((solution.value[mdp.terminal] == 0).all())
    finite = soft_value_iteration(mdp, gamma=1.0, temperature=temperature, horizon=12)
    assert finite.value.shape == (12, mdp.states) and finite.policy.shape == (12, mdp.states, mdp.actions)
    np.testing.assert_allclose(finite.value[0].numpy()[live], loops(env, 1.0, temperature, 0, horizon=12)[live], atol=1e-12)
    np.testing.assert_allclose(finite.value[-1].numpy()[live], loops(env, 1.0, temperature, 0, horizon=1)[live], atol=1e-12)


@pytest.mark.parametrize("name", TOY[:2])
@pytest.mark.parametrize(("kind", "order"), [("shannon", 1), ("tsallis", 2), ("renyi", 0.5)])
def test_value_iteration_is_what_scipy_finds(name, kind, order):
    """The Bellman equation of the NumPy reference, solved by a root finder; at temperature 0 the linear program."""
    mdp, gamma = toy(name), 0.9
    reward, transitions, live = mdp.reward.numpy(), mdp.transitions.toarray(), ~mdp.terminal.numpy()

    def residual(value):
        action_value = reward + gamma * (transitions @ value).reshape(reward.shape)
        return np.where(live, reference.soft_value(action_value, 0.3, kind, order), 0) - value

    found = optimize.root(residual, np.zeros(mdp.states), method="krylov", options={"fatol": 1e-11})
    assert found.success
    family = {"shannon": SHANNON, "tsallis": tsallis(order), "renyi": renyi(order)}[kind]
    for solve in (soft_value_iteration, soft_policy_iteration):
        np.testing.assert_allclose(solve(mdp, gamma=gamma, temperature=0.3, family=family).value.numpy(), found.x, atol=1e-9)


@pytest.mark.parametrize("name", TOY)
def test_temperature_0_is_the_linear_program(name):
    mdp, gamma = toy(name), 0.95
    upper = np.repeat(np.eye(mdp.states), mdp.actions, axis=0) - gamma * mdp.transitions.toarray()
    live = np.repeat(~mdp.terminal.numpy(), mdp.actions)
    bounds = [(0, 0) if end else (None, None) for end in mdp.terminal]
    found = optimize.linprog(np.ones(mdp.states), A_ub=-upper[live], b_ub=-mdp.reward.numpy().reshape(-1)[live], bounds=bounds)
    for solve in (soft_value_iteration, soft_policy_iteration):
        solution = solve(mdp, gamma=gamma, temperature=0)
        np.testing.assert_allclose(solution.value.numpy(), found.x, atol=1e-7)
        assert set(solution.policy.unique().tolist()) == {0.0, 1.0}


@each_family
def test_a_backup_contracts_by_gamma_and_shifts_by_it(family):
    mdp, rng = random_mdp(ends=0), np.random.default_rng(1)
    for gamma in (0.3, 0.9, 1.0):
        first, second = (torch.from_numpy(rng.normal(size=5) * 10) for _ in range(2))
        backups = [planning.soft_backup(mdp, value, gamma=gamma, temperature=0.7, family=family) for value in (first, second, first + 2)]
        assert float((backups[0] - backups[1]).abs().max()) <= gamma * float((first - second).abs().max()) + 1e-12
        torch.testing.assert_close(backups[2], backups[0] + 2 * gamma)


def test_no_toy_text_task_is_left_out():
    assert {name for name, spec in gymnasium.registry.items() if ".toy_text." in str(spec.entry_point)} == {*ALL_TOY, "Blackjack-v1"}


@pytest.mark.parametrize("name", ALL_TOY)
@each_family
def test_the_bound_on_the_soft_value(name, family):
    """`V* <= V_soft <= V* + tau max(entropy) / (1 - gamma)`."""
    mdp, gamma, temperature = toy(name), 0.95, 0.2
    hard = soft_value_iteration(mdp, gamma=gamma, temperature=0).value
    soft = soft_value_iteration(mdp, gamma=gamma, temperature=temperature, family=family).value
    largest = float(categorical_entropy(torch.zeros(mdp.actions, dtype=torch.float64), family))
    assert bool((hard <= soft + 1e-9).all() and (soft <= hard + temperature * largest / (1 - gamma) + 1e-9).all())


@each_family
def test_the_bound_is_an_equality_without_reward_and_ends(family):
    mdp = gridworld(3)
    solution = soft_value_iteration(mdp, gamma=0.9, temperature=0.5, family=family)
    largest = float(categorical_entropy(torch.zeros(4, dtype=torch.float64), family))
    torch.testing.assert_close(solution.value, torch.full((9,), 0.5 * largest / 0.1, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.policy, torch.full((9, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("name", TOY[:2])
def test_the_boltzmann_policy_is_optimal_to_1e_8(name):
    """KKT: `Q - tau (log pi + 1)` is one number in each state; and the value is that of the policy, evaluated on its own."""
    mdp = toy(name)
    for gamma, temperature in ((0.99, 0.1), (0.9, 1.0)):
        solution = soft_value_iteration(mdp, gamma=gamma, temperature=temperature)
        held = solution.policy > 1e-300  # below, exp underflows
        pull = torch.where(held, solution.action_value - temperature * (solution.policy.log() + 1), -torch.inf)
        assert float(torch.where(held, (pull - pull.amax(-1, keepdim=True)).abs(), 0).max()) < 1e-8
        own = soft_policy_evaluation(mdp, solution.policy, gamma=gamma, temperature=temperature)
        torch.testing.assert_close(own.value, solution.value, rtol=0, atol=1e-8)
        assert solution.error <= 1e-10


@each_family
def test_the_error_is_a_bound_and_iterations_agree(family):
    mdp = random_mdp(20, 4, seed=2)
    exact = soft_policy_iteration(mdp, gamma=0.95, temperature=0.4, family=family)
    rough = soft_value_iteration(mdp, gamma=0.95, temperature=0.4, family=family, tolerance=1e-3)
    assert float((rough.value - exact.value).abs().max()) <= rough.error + 1e-12 <= 1e-3
    torch.testing.assert_close(soft_value_iteration(mdp, gamma=0.95, temperature=0.4, family=family).value, exact.value, rtol=0, atol=1e-9)
    again = soft_policy_iteration(mdp, gamma=0.95, temperature=0.4, family=family, start=exact.value)
    assert again.rounds == 1 < exact.rounds


def test_gamma_1_where_every_state_ends():
    mdp = toy("CliffWalking-v1")
    for temperature in (0, 0.1):
        undiscounted = soft_value_iteration(mdp, gamma=1.0, temperature=temperature)
        nearly = soft_policy_iteration(mdp, gamma=1 - 1e-7, temperature=temperature)
        torch.testing.assert_close(undiscounted.value, nearly.value, rtol=0, atol=1e-4)
    assert float(soft_value_iteration(mdp, gamma=1.0, temperature=0).value[36]) == -13
    with pytest.raises(ValueError, match="rounds: 300 backups did not converge"):
        soft_value_iteration(mdp, gamma=1.0, temperature=10.0, rounds=300)  # walking about earns more entropy than it costs
    with pytest.raises(ValueError, match="never ends"):
        soft_policy_evaluation(mdp, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(48, 4), gamma=1.0, temperature=0)


def test_finite_horizons_reach_the_infinite_one():
    mdp = random_mdp()
    infinite = soft_value_iteration(mdp, gamma=0.8, temperature=0.5)
    finite = soft_value_iteration(mdp, gamma=0.8, temperature=0.5, horizon=120)
    torch.testing.assert_close(finite.value[0], infinite.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(finite.policy[0], infinite.policy, rtol=0, atol=1e-9)
    own = soft_policy_evaluation(mdp, finite.policy, gamma=0.8, temperature=0.5, horizon=120)
    torch.testing.assert_close(own.value, finite.value)
    torch.testing.assert_close(own.action_value, finite.action_value)


def test_occupancies_by_simulated_matrices_and_their_sums():
    for ends in (0, 1):
        mdp = random_mdp(ends=ends)
        policy = soft_value_iteration(mdp, gamma=0.9, temperature=0.5).policy
        visits = occupancy(mdp, policy, gamma=0.9)
        expected, state = np.zeros(mdp.reward.shape), mdp.initial.numpy()
        for t in range(400):
            taken = np.where(mdp.terminal[:, None], 0, state[:, None] * policy.numpy())
            expected += 0.9**t * taken
            state = mdp.transitions.toarray().T @ taken.reshape(-1)
        np.testing.assert_allclose(visits.numpy(), expected, atol=1e-12)
        if not ends:
            assert float(visits.sum()) == pytest.approx(10)
        value = soft_policy_evaluation(mdp, policy, gamma=0.9, temperature=0).value
        assert float((visits * mdp.reward).sum()) == pytest.approx(float((mdp.initial * value).sum()))
        slices = occupancy(mdp, policy, gamma=0.9, horizon=400)
        torch.testing.assert_close(slices.sum(0), visits)
        again = occupancy(mdp, policy, gamma=0.9, horizon=400, initial=torch.cat([mdp.initial[None], torch.zeros(399, mdp.states)]))
        assert torch.equal(again, slices)


def test_large_systems_are_solved_as_small_ones(monkeypatch):
    mdp = gridworld(5).with_reward(torch.randn(25, 4))
    policy = torch.full((25, 4), 0.25)
    dense = occupancy(mdp, policy, gamma=0.9), soft_policy_evaluation(mdp, policy, gamma=0.9, temperature=1).value
    for limits in ((0, 100), (0, 0)):  # sparse LU, sweeps
        monkeypatch.setattr("entreg.planning.soft.DENSE", limits[0])
        monkeypatch.setattr("entreg.planning.soft.DIRECT", limits[1])
        torch.testing.assert_close(occupancy(mdp, policy, gamma=0.9), dense[0])
        torch.testing.assert_close(soft_policy_evaluation(mdp, policy, gamma=0.9, temperature=1).value, dense[1])


@pytest.mark.parametrize(("order", "over"), [(1.0, "state_action"), (1.0, "state"), (2.0, "state"), (0.5, "state_action")])
def test_frank_wolfe_finds_what_scipy_finds(order, over):
    mdp, gamma = random_mdp(4, 2, seed=3, ends=0), 0.9
    flow = np.repeat(np.eye(4), 2, axis=0).T - gamma * mdp.transitions.toarray().T

    def loss(visits):
        p = np.maximum(visits.reshape(4, 2).sum(1) if over == "state" else visits, 1e-12)
        return -float(reference.discrete_entropy(np.log(p / p.sum()), "renyi", order))

    start = (1 - gamma) * occupancy(mdp, torch.full((4, 2), 0.5), gamma=gamma).numpy().reshape(-1)
    balance = {"type": "eq", "fun": lambda visits: flow @ visits - (1 - gamma) * mdp.initial.numpy()}
    found = optimize.minimize(loss, start, method="SLSQP", bounds=[(0, 1)] * 8, constraints=balance, options={"ftol": 1e-12, "maxiter": 500})
    result = max_occupancy_entropy(mdp, order, gamma, over=over, tolerance=2e-4)
    assert result.entropy <= -found.fun + 1e-8 <= result.bound + 2e-8
    assert result.entropy == pytest.approx(-found.fun, abs=1e-3) and result.gap <= 2e-4
    torch.testing.assert_close((1 - gamma) * occupancy(mdp, result.policy, gamma=gamma), result.occupancy)


def test_exploration_goes_on_where_an_episode_ends():
    result = max_occupancy_entropy(toy("FrozenLake-v1"), gamma=0.9, tolerance=0.03)
    assert float(result.occupancy.sum()) == pytest.approx(1) and result.entropy < result.bound <= result.entropy + 0.03
    assert torch.equal(result.occupancy.sum(-1) > 0, ~toy("FrozenLake-v1").terminal)
    with pytest.raises(ValueError, match="rounds: 1 did not close the gap"):
        max_occupancy_entropy(toy("FrozenLake-v1"), gamma=0.9, rounds=1)
    for bad in ({"order": 0}, {"order": math.inf}, {"gamma": 1.0}):
        with pytest.raises(ValueError, match="order, gamma: got"):
            max_occupancy_entropy(gridworld(2), **bad)
    with pytest.raises(ValueError, match="over: got 'action'"):
        max_occupancy_entropy(gridworld(2), over="action")


def test_toy_text_tables():
    lake, cliff, taxi = map(toy, TOY)
    assert (lake.states, int(lake.terminal.sum()), float(lake.initial[0])) == (16, 5, 1.0)
    assert (cliff.states, cliff.terminal.nonzero().tolist(), float(cliff.initial[36])) == (48, [[47]], 1.0)
    assert (taxi.states, taxi.actions, taxi.terminal.nonzero().tolist()) == (501, 6, [[500]])  # what an ending drop-off enters, other moves enter too
    assert lake.reward[14].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert lake.transitions[[14 * 4 + 2]].toarray()[0, [10, 14, 15]].tolist() == pytest.approx([1 / 3] * 3)
    assert float(cliff.reward.min()) == -100
    with pytest.raises(ValueError, match="env: Blackjack-v1 has no table of transitions P"):
        toy("Blackjack-v1")


def test_the_gridworld_slips_into_the_other_three_moves():
    mdp = gridworld(6, 0.1)
    assert (mdp.states, mdp.actions, bool(mdp.terminal.any())) == (36, 4, False)
    row = mdp.transitions[[(2 * 6 + 3) * 4 + 1]].toarray()[0]  # down, from the middle
    assert row[[3 * 6 + 3, 2 * 6 + 2, 2 * 6 + 4, 6 + 3]].tolist() == pytest.approx([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transitions": np.eye(3)}, "transitions: got shape (3, 3)"),
        ({"transitions": np.full((4, 2), 0.6)}, "transitions: row s*A + a = 0 sums to 1.2"),
        ({"transitions": np.array([[2.0, -1], [0, 1], [0, 1], [0, 1]])}, "transitions: got a negative"),
        ({"transitions": np.array([[np.nan, 1], [0, 1], [0, 1], [0, 1]])}, "transitions: got a negative or not finite"),
        ({"transitions": np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])}, "a terminal state, 1, that is left"),
        ({"reward": [1.0, 2.0]}, "reward: got shape (2,)"),
        ({"reward": [[1.0, math.inf], [0, 0]]}, "reward: got a value that is not finite"),
        ({"reward": [[1.0, 1.0], [0, 1]]}, "reward: got one that is not 0 in a terminal state"),
        ({"terminal": [0, 1]}, "terminal: got shape (2,) of torch.int64"),
        ({"initial": [0.5, 0.6]}, "initial: sums to 1.1"),
        ({"initial": [1.5, -0.5]}, "initial: got -0.5"),
        ({"initial": [1.0]}, "initial: got shape (1,)"),
    ],
)
def test_tables_that_are_no_process_are_refused(change, message):
    good = {"transitions": np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]]), "reward": [[1.0, 1.0], [0, 0]], "terminal": [False, True], "initial": [1.0, 0.0]}
    assert MDP(**good).expected(torch.tensor([1.0, 3.0], dtype=torch.float64)).tolist() == [[1.0, 3.0], [3.0, 3.0]]
    assert MDP(**good | {"transitions": sparse.csr_array(good["transitions"])}).ends().tolist() == [True, True]
    with pytest.raises(ValueError, match=re.escape(message)):
        MDP(**good | change)


def test_problems_without_a_solution_are_refused():
    mdp = gridworld(2)
    for solve in (soft_value_iteration, soft_policy_iteration):
        for bad, message in (
            ({"gamma": 1.0}, "gamma: got 1, legal is less, or a finite horizon: from state 0"),
            ({"gamma": 1.1}, r"gamma: got 1\.1"),
            ({"temperature": -1.0}, "temperature: got -1"),
            ({"temperature": math.nan}, "temperature: got nan"),
            ({"family": renyi(2)}, "not concave"),
            ({"family": min_entropy}, "not concave"),
        ):
            with pytest.raises(ValueError, match=message):
                solve(mdp, **{"gamma": 0.9, "temperature": 1.0} | bad)
    for horizon in (0, 2.5, True):
        with pytest.raises(ValueError, match="horizon: got"):
            soft_value_iteration(mdp, gamma=0.9, temperature=1.0, horizon=horizon)
    for policy in (torch.ones(4, 3) / 3, torch.ones(4, 4), torch.ones(2, 4, 4) / 4):
        with pytest.raises(ValueError, match="policy: got"):
            soft_policy_evaluation(mdp, policy, gamma=0.9, temperature=1.0)
    with pytest.raises(ValueError, match="initial: got shape"):
        occupancy(mdp, torch.ones(4, 4) / 4, gamma=0.9, initial=torch.ones(3))
