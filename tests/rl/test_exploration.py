"""Exploration of agents that learn action values: probabilities, and the laws of noisy weights."""

import math

import numpy as np
import pytest
import torch

from entreg.rl.exploration import NoisyNetwork, epsilon_greedy
from entreg.rl.networks import Architecture

ARCHITECTURE = Architecture((3,), False, 2, (4,), "relu", critic=False)


def noisy(members=2, sigma=0.5):
    return NoisyNetwork(ARCHITECTURE, [torch.Generator().manual_seed(seed) for seed in range(members)], sigma)


def streams(members=2, seed=0):
    return [np.random.default_rng([seed, member]) for member in range(members)]


def test_epsilon_greedy_gives_the_best_legal_action_the_rest():
    q = torch.tensor([[[3.0, 1.0, 2.0]]])
    torch.testing.assert_close(epsilon_greedy(q, 0.3), torch.tensor([[[0.8, 0.1, 0.1]]]))
    torch.testing.assert_close(epsilon_greedy(q, 0.3, torch.tensor([[[False, True, True]]])), torch.tensor([[[0.0, 0.15, 0.85]]]))
    assert epsilon_greedy(q, 0.0).tolist() == [[[1.0, 0.0, 0.0]]]


def test_noise_is_factorised_centred_and_of_the_variance_that_sigma_says():
    network = noisy()
    seen = []
    generators = streams()
    for _ in range(4000):
        network.draw(generators)
        seen.append((network.drawn.parameters.data - network.mean.parameters.data).clone())
    noise = torch.stack(seen)
    mean, deviation = noise.mean(0), noise.std(0)
    spread = dict(zip(network.spread.shapes, network.spread.plain.values(), strict=True))
    for name, expected in (("actor.0.weight", 0.5 / 3**0.5), ("actor.1.bias", 0.5 / 4**0.5)):
        assert spread[name].unique().tolist() == pytest.approx([expected])
    # E f(e)^2 = E |e| = sqrt(2 / pi) for a bias, its square for a weight
    biases = torch.cat([torch.full(shape, float(name.endswith("bias"))).flatten() for name, shape in network.spread.shapes.items()]) == 1
    ratio = deviation / network.spread.data
    torch.testing.assert_close(ratio[:, biases], torch.full_like(ratio[:, biases], (2 / math.pi) ** 0.25), atol=0.05, rtol=0)
    torch.testing.assert_close(ratio[:, ~biases], torch.full_like(ratio[:, ~biases], (2 / math.pi) ** 0.5), atol=0.05, rtol=0)
    assert (mean.abs() / network.spread.data).max() < 0.08
    first = (network.drawn.parameters.plain["actor.0.weight"] - network.mean.parameters.plain["actor.0.weight"])[0]
    assert torch.linalg.matrix_rank(first, atol=1e-5) == 1  # an outer product


def test_gradients_of_mean_and_sigma_are_autograds_and_clipped_together():
    network = noisy()
    network.draw(streams())
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mean, spread = network.mean.parameters.data.clone().requires_grad_(), network.spread.data.clone().requires_grad_()
    eps = (network.drawn.parameters.data - mean.detach()) / spread.detach()
    weights, start = mean + spread * eps, 0
    values = []
    for shape in network.spread.shapes.values():
        size = math.prod(shape)
        values.append(weights[:, start : start + size].unflatten(1, shape))
        start += size
    hidden = torch.relu(torch.baddbmm(values[1][:, None], x, values[0]))
    loss = torch.baddbmm(values[3][:, None], hidden, values[2]).square().sum(-1)
    expected = torch.autograd.grad(loss.mean(1).sum(), [mean, spread])
    ours = network(x).square().sum(-1)
    torch.testing.assert_close(ours, loss)
    network.backward(ours, torch.full_like(ours, 1 / 5), 1e9)
    for part, grad in zip(network.parts(), expected, strict=True):
        torch.testing.assert_close(part.grad, grad, rtol=1e-4, atol=1e-5)
    network.backward(network(x).square().sum(-1), torch.full_like(ours, 1 / 5), 0.1)
    norms = torch.cat([part.grad for part in network.parts()], 1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2,), 0.1), rtol=1e-4, atol=0)


def test_a_members_noise_is_its_own_and_a_state_brings_it_back():
    together, alone = noisy(), NoisyNetwork(ARCHITECTURE, [torch.Generator().manual_seed(1)], 0.5)
    together.draw(streams())
    alone.draw(streams()[1:])
    assert torch.equal(together.drawn.parameters.data[1:], alone.drawn.parameters.data)
    other = noisy(sigma=0.1)
    other.load_state_dict(together.state_dict())
    x = torch.ones(2, 1, 3)
    assert torch.equal(other(x), together(x)) and not torch.equal(other(x), other.mean.actor(x))
    follower = noisy(sigma=0.1)
    follower.follow(together, 1.0)
    assert all(torch.equal(a.data, b.data) for a, b in zip(follower.parts(), together.parts(), strict=True))


def test_without_sigma_a_network_is_its_mean_and_draws_nothing():
    network = noisy(sigma=None)
    generators = streams()
    network.draw(generators)
    assert network.drawn is network.mean and generators[0].random() == streams()[0].random()
