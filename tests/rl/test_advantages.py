"""Advantages against brute force, and both meanings of `over` against exact enumeration of a small decision process."""

import itertools

import numpy as np
import pytest
import torch

from entreg import functional
from entreg.rl import advantages
from entreg.rl.rollout import Experience, next_values

GAMMA = 0.9


def _random_rollout(seed=0, members=2, steps=6, n=3):
    random = np.random.default_rng(seed)
    terminated = random.random((members, steps, n)) < 0.2
    truncated = (random.random((members, steps, n)) < 0.2) & ~terminated
    shape = (members, steps, n)
    return random, shape, terminated, truncated


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_equals_the_explicit_sum_of_discounted_errors(lam):
    random, shape, terminated, truncated = _random_rollout()
    reward, value, following = (random.normal(size=shape).astype(np.float32) for _ in range(3))
    following[terminated] = 0
    done = terminated | truncated
    found = advantages.gae(reward, value, following, done, GAMMA, lam)
    for m, t, i in np.ndindex(*shape):
        expected, weight = 0.0, 1.0
        for later in range(t, shape[1]):
            expected += weight * (reward[m, later, i] + GAMMA * following[m, later, i] - value[m, later, i])
            if done[m, later, i]:
                break
            weight *= GAMMA * lam
        assert found[m, t, i] == pytest.approx(expected, abs=1e-5)


def test_the_next_value_is_zero_after_termination_and_the_final_states_at_truncation():
    random, shape, terminated, truncated = _random_rollout(1)
    here, last = random.normal(size=shape), random.normal(size=(shape[0], shape[2]))
    at = np.argwhere(truncated)
    final = random.normal(size=len(at))
    empty = np.empty(0)
    experience = Experience(empty, empty, empty, terminated, truncated, None, empty, None, empty, None, at, [])
    found = next_values(experience, here, last, final)
    for m, t, i in np.ndindex(*shape):
        if terminated[m, t, i]:
            expected = 0.0
        elif truncated[m, t, i]:
            expected = final[np.flatnonzero((at == (m, t, i)).all(1))[0]]
        else:
            expected = here[m, t + 1, i] if t + 1 < shape[1] else last[m, i]
        assert found[m, t, i] == expected


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_value():
    returns = np.arange(12.0).reshape(3, 4, 1)
    values = np.stack([returns[0], np.full_like(returns[1], 7), -returns[2]])
    assert advantages.explained_variance(values, returns) == pytest.approx([1, 0, -3])


# A process of two states, two actions and three steps; every trajectory can be listed.
STEPS, COEF = 3, 0.7
TRANSITION = torch.tensor([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.05, 0.95]]])  # state, action, next state
REWARD = torch.tensor([[1.0, -0.5], [0.2, 2.0]])
START = torch.tensor([0.6, 0.4])


def _objective(logits, *, through_prefixes):
    """Exact E[return] + coef E[sum of entropies]; without `through_prefixes` the states' probabilities are constants in the second term."""
    policy = torch.softmax(logits, -1)
    entropy = functional.categorical_entropy(logits)
    state, total = START, torch.zeros(())
    for _ in range(STEPS):
        total = total + (state[:, None] * policy * REWARD).sum()
        weight = state if through_prefixes else state.detach()
        total = total + COEF * (weight * entropy).sum()
        state = torch.einsum("s,sa,sat->t", state, policy, TRANSITION)
    return total


def _estimated(logits, over):
    """The gradient of the recipes' loss, every trajectory weighted by its probability."""
    paths = list(itertools.product(range(2), repeat=2 * STEPS))
    states, actions = torch.tensor(paths)[:, 0::2], torch.tensor(paths)[:, 1::2]
    with torch.no_grad():
        chosen = torch.softmax(logits, -1)[states, actions].prod(1)
        moved = torch.stack([TRANSITION[states[:, t], actions[:, t], states[:, t + 1]] for t in range(STEPS - 1)]).prod(0)
        probability = START[states[:, 0]] * chosen * moved
    shape = (1, STEPS, len(paths))
    terminated = np.zeros(shape, dtype=bool)
    terminated[:, -1] = True
    empty = np.empty(0)
    experience = Experience(empty, empty, empty, terminated, ~terminated & terminated, None, empty, None, empty, None, np.empty((0, 3), int), [])
    reward = REWARD[states, actions].T[None].numpy()
    entropy_here = functional.categorical_entropy(logits.detach())[states].T[None].numpy()
    if over == "trajectory":
        entropies = next_values(experience, entropy_here, np.zeros((1, len(paths))), empty)
        reward = advantages.soft_rewards(reward, entropies, np.array([COEF]), 1.0)
    zero = np.zeros(shape)
    advantage = torch.from_numpy(advantages.gae(reward, zero, zero, terminated, 1.0, 1.0))[0].T
    log_prob, entropy = functional.categorical_stats(logits[states], actions)
    loss = (probability[:, None] * (functional.policy_gradient(log_prob, advantage) - COEF * entropy)).sum()
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("over", ["action", "trajectory"])
def test_both_objectives_equal_exact_enumeration(over):
    logits = torch.tensor([[0.4, -0.3], [-1.0, 0.2]], requires_grad=True)
    (exact,) = torch.autograd.grad(_objective(logits, through_prefixes=over == "trajectory"), logits)
    torch.testing.assert_close(_estimated(logits, over), -exact.to(torch.float64), rtol=1e-5, atol=1e-6, check_dtype=False)


def test_the_two_objectives_differ():
    logits = torch.tensor([[0.4, -0.3], [-1.0, 0.2]], requires_grad=True)
    assert (_estimated(logits, "action") - _estimated(logits, "trajectory")).abs().max() > 0.01


def test_soft_rewards_carry_the_next_entropy_discounted_and_weighed_by_each_members_coefficient():
    rewards, entropy = np.ones((2, 1, 3)), np.full((2, 1, 3), 4.0)
    assert advantages.soft_rewards(rewards, entropy, np.array([0.5, 0.0]), 0.5).tolist() == [[[2.0] * 3], [[1.0] * 3]]
