"""Heads: what a policy's outputs mean, against enumeration of the joint action and torch's distributions."""

import itertools
import math

import numpy as np
import pytest
import torch

from entreg.distributions import TanhNormal
from entreg.functional import SHANNON, categorical_entropy, min_entropy, renyi, tsallis
from entreg.rl.heads import LOG_STD_MAX, LOG_STD_MIN, head_for
from entreg.rl.spaces import ActionSpec

ONE = head_for(ActionSpec("discrete", (4,)))
TWO = head_for(ActionSpec("multi_discrete", (3, 2)))
BOX = ActionSpec("continuous", (2,), (-1.0, 0.0), (3.0, 0.5))
PLAIN, SQUASHED = head_for(BOX), head_for(BOX, squash=True)
MASK = torch.tensor([True, False, True, True, False])


def outputs(head, items=6, seed=0):
    return torch.randn(1, items, head.outputs + head.log_std, generator=torch.Generator().manual_seed(seed))


def taken(head, given, noise, mask=None, temperature=1.0):
    """Actions of tensors, as a tensor: heads draw in NumPy."""
    return torch.from_numpy(head.sample(given.numpy(), noise.numpy(), None if mask is None else mask.numpy(), temperature))


def joint(logits, mask=None):
    """Log-probabilities of the six actions of `TWO`, `(M, N, 6)`, in the order of `itertools.product`."""
    logits = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    first, second = logits[..., :3].log_softmax(-1), logits[..., 3:].log_softmax(-1)
    return (first[..., :, None] + second[..., None, :]).flatten(-2)


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, True])], ids=["all", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_evenly_spread_noise_gives_every_class_its_share(temperature, mask):
    logits = outputs(ONE, 1).expand(1, 4000, 4)
    noise = (torch.arange(4000) / 4000)[None, :, None]
    legal = None if mask is None else mask.expand(1, 4000, 4)
    share = torch.bincount(taken(ONE, logits, noise, legal, temperature).flatten(), minlength=4) / 4000
    allowed = logits[0, 0] if mask is None else logits[0, 0].masked_fill(~mask, -math.inf)
    torch.testing.assert_close(share, torch.softmax(allowed / temperature, -1), rtol=0, atol=1e-3)


def test_a_temperature_near_zero_is_temperature_zero():
    logits = torch.tensor([[[1.0, 9.0, 2.0, 0.0, 3.0]]])
    assert taken(TWO, logits, torch.full((1, 1, 2), 0.5), None, 1e-60).tolist() == [[[1, 1]]]


def test_temperature_zero_takes_the_most_probable_legal_action():
    logits = torch.tensor([[[1.0, 9.0, 2.0, 0.0, 3.0]]])
    assert taken(TWO, logits, torch.zeros(1, 1, 2), None, 0.0).tolist() == [[[1, 1]]]
    assert taken(TWO, logits, torch.zeros(1, 1, 2), MASK.expand(1, 1, 5), 0.0).tolist() == [[[2, 0]]]
    assert TWO.mode(logits[0]).tolist() == [[1, 1]] and ONE.mode(logits[0, :, :4]).tolist() == [1]
    assert ONE.to_environment(np.array([[2]])).tolist() == [2] and TWO.to_environment(np.array([[2, 1]])).tolist() == [[2, 1]]


def test_noise_at_the_ends_takes_no_class_without_probability():
    logits = torch.full((1, 2, 4), -math.inf)
    logits[..., 1:3] = 0.0
    assert taken(ONE, logits, torch.tensor([[[0.0], [1.0 - 2**-24]]])).flatten().tolist() == [1, 2]


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("family", [SHANNON, renyi(2), tsallis(1.5), min_entropy], ids=lambda family: family.name)
def test_several_heads_are_the_joint_action(family, mask):
    logits, other = outputs(TWO), outputs(TWO, seed=1)
    legal = None if mask is None else mask.expand(1, 6, 5)
    actions = torch.tensor([[action for action in itertools.product(range(3), range(2)) if mask is None or (mask[action[0]] and mask[3 + action[1]])]])
    each = joint(logits, mask)
    every = list(itertools.product(range(3), range(2)))
    for action in actions[0]:
        log_prob, entropy = TWO.stats(logits, action.expand(1, 6, 2), family, legal)
        torch.testing.assert_close(log_prob, each[..., every.index(tuple(action.tolist()))])
        torch.testing.assert_close(entropy, categorical_entropy(each, family))
    torch.testing.assert_close(TWO.entropy(logits, family, legal), categorical_entropy(each, family))
    torch.testing.assert_close(TWO.kl(logits, other, legal), (each.exp() * (each - joint(other, mask)).nan_to_num()).sum(-1))
    uniform = categorical_entropy(joint(torch.zeros(1, 6, 5), mask), family)
    largest = TWO.max_entropy(family, legal)
    torch.testing.assert_close(largest if mask is not None else largest.expand(1, 6), uniform)


def test_one_head_is_its_categorical():
    logits, action, support = outputs(ONE), torch.tensor([[[0], [2], [3], [3], [2], [0]]]), torch.tensor([True, False, True, True]).expand(1, 6, 4)
    log_prob, entropy = ONE.stats(logits, action, SHANNON, support)
    peer = torch.distributions.Categorical(logits=logits.masked_fill(~support, -1e9))
    torch.testing.assert_close(log_prob, peer.log_prob(action[..., 0]))
    torch.testing.assert_close(entropy, peer.entropy())
    torch.testing.assert_close(ONE.entropy(logits, SHANNON, support), peer.entropy())
    assert ONE.max_entropy(SHANNON).item() == pytest.approx(math.log(4))


def test_a_gaussian_is_torchs_and_is_clipped_to_the_bounds():
    given = outputs(PLAIN)
    assert given.shape[-1] == 4
    peer = torch.distributions.Independent(torch.distributions.Normal(given[..., :2], given[..., 2:].exp()), 1)
    action = taken(PLAIN, given, torch.full((1, 6, 2), 0.7))
    torch.testing.assert_close(action, given[..., :2] + 0.7 * given[..., 2:].exp())
    log_prob, entropy = PLAIN.stats(given, action, SHANNON, None)
    torch.testing.assert_close(log_prob, peer.log_prob(action))
    torch.testing.assert_close(entropy, peer.entropy())
    other = outputs(PLAIN, seed=1)
    expected = torch.distributions.kl_divergence(peer, torch.distributions.Independent(torch.distributions.Normal(other[..., :2], other[..., 2:].exp()), 1))
    torch.testing.assert_close(PLAIN.kl(given, other, None), expected)
    assert PLAIN.to_environment(np.array([[9.0, -9.0]])).tolist() == [[3.0, 0.0]]
    assert PLAIN.mode(torch.tensor([[9.0, 0.25, 0.0, 0.0]])).tolist() == [[3.0, 0.25]]
    assert PLAIN.max_entropy(SHANNON) is None


def test_a_squashed_gaussian_is_the_exact_one_and_fills_the_bounds():
    given = outputs(SQUASHED) / 2
    peer = torch.distributions.Independent(TanhNormal(given[..., :2], log_std=given[..., 2:]), 1)
    action = taken(SQUASHED, given, torch.full((1, 6, 2), 0.7))
    log_prob, entropy = SQUASHED.stats(given, action, SHANNON, None)
    torch.testing.assert_close(log_prob, peer.base_dist.log_prob(action.tanh(), pre_tanh=action).sum(-1))
    torch.testing.assert_close(entropy, peer.base_dist.entropy().sum(-1))
    torch.testing.assert_close(SQUASHED.entropy(given, SHANNON, None), entropy)
    np.testing.assert_allclose(SQUASHED.to_environment(np.array([[-99.0, 99.0], [0.0, 0.0]])), [[-1.0, 0.5], [1.0, 0.25]])
    np.testing.assert_allclose(SQUASHED.mode(given[0]), SQUASHED.to_environment(given[0, :, :2].numpy()), rtol=1e-5, atol=1e-6)


def test_a_squashed_scale_stays_within_its_limits():
    for log_std, used in ((-99.0, LOG_STD_MIN), (99.0, LOG_STD_MAX)):
        given, limit = (torch.tensor([[[0.3, -0.2, scale, scale]]]) for scale in (log_std, used))
        noise, action = torch.ones(1, 1, 2), torch.tensor([[[0.3, 0.1]]])
        torch.testing.assert_close(taken(SQUASHED, given, noise), taken(SQUASHED, limit, noise))
        torch.testing.assert_close(SQUASHED.stats(given, action, SHANNON, None), SQUASHED.stats(limit, action, SHANNON, None))
        assert SQUASHED.kl(given, limit, None).item() == 0


def test_squashing_needs_finite_bounds_and_continuous_actions():
    with pytest.raises(ValueError, match="finite action bounds"):
        head_for(ActionSpec("continuous", (1,), (-math.inf,), (1.0,)), squash=True)
    with pytest.raises(ValueError, match="squash is for continuous actions"):
        head_for(ActionSpec("discrete", (3,)), squash=True)
