"""What broke in trainers of language models, one test each: it must not break here."""

import math

import pytest
import torch

from entreg.functional import linear_token_loss, linear_token_stats, token_stats

both = pytest.mark.parametrize("backend", ["reference", "blocks"])


def case(n=6, classes=900):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


@both
def test_minus_infinity_among_the_logits_is_no_nan(backend):
    """TRL issue 7221, SkyRL issue 2259: `p * log p` of a masked class."""
    logits, targets = case()
    logits[:, 1::2] = -math.inf
    logits[0, 1:] = -math.inf  # one class left
    logits.requires_grad_()
    stats = token_stats(logits, targets // 2 * 2, fields=["log_prob", "entropy", "varentropy"], backend=backend)
    (stats.entropy + stats.varentropy + stats.log_prob.nan_to_num(neginf=0)).sum().backward()
    assert bool(stats.entropy.isfinite().all()) and stats.entropy[0] == 0
    assert bool(logits.grad.isfinite().all()) and logits.grad[:, 1::2].count_nonzero() == 0


@both
def test_the_entropy_is_that_of_the_temperature_that_sampled(backend):
    """OpenRLHF pull request 1319: log-probabilities at one temperature, entropy at another."""
    logits, targets = case()
    stats = token_stats(logits, targets, temperature=0.6, backend=backend)
    policy = torch.distributions.Categorical(logits=logits / 0.6)
    torch.testing.assert_close(stats.entropy, policy.entropy())
    torch.testing.assert_close(stats.log_prob, policy.log_prob(targets))


@both
def test_a_token_has_the_same_entropy_in_every_batch(backend):
    """verl issue 3986: the metric changed with how tokens were gathered into batches; here nothing is reduced."""
    logits, targets = case()
    whole = token_stats(logits, targets, backend=backend)
    parts = [token_stats(logits[rows], targets[rows], backend=backend) for rows in (slice(0, 1), slice(1, 6))]
    assert torch.equal(torch.cat([part.entropy for part in parts]), whole.entropy)


def test_the_bonus_does_not_grow_with_the_number_of_chunks():
    """RLinf issue 1564: a bonus counted once a micro-batch."""
    hidden, weight = torch.randn(6, 4).requires_grad_(), torch.randn(700, 4).requires_grad_()
    losses = [linear_token_loss(hidden, weight, None, lambda stats, _: 0.01 * stats.entropy.sum() / 6, fields=["entropy"], chunk=chunk) for chunk in (1, 2, 6)]
    torch.testing.assert_close(torch.stack([loss for loss, _ in losses]), losses[0][0].expand(3).detach(), check_stride=False)
    gradients = [torch.autograd.grad(loss, weight)[0] for loss, _ in losses]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


def test_the_backward_works_with_more_than_one_chunk():
    """verl: `vocab_parallel_entropy_with_chunking` raised there. (Shards: `test_token_ranks.py`, chunks of two tokens.)"""
    hidden, weight = torch.randn(6, 4).requires_grad_(), torch.randn(700, 4).requires_grad_()
    linear_token_stats(hidden, weight, fields=["entropy"], chunk=2).entropy.sum().backward()
    chunked = weight.grad.clone()
    weight.grad = None
    token_stats(hidden @ weight.T, fields=["entropy"], backend="reference").entropy.sum().backward()
    torch.testing.assert_close(chunked, weight.grad)


def test_no_second_array_of_the_size_of_the_logits_is_made_in_place():
    """slime issues 1523 and 1951, SkyRL issues 1648 and 1650: out of memory; the gradient lies where the logits were."""
    logits, targets = case()
    z = logits.requires_grad_() * 1
    where = z.data_ptr()
    (gradient,) = torch.autograd.grad(token_stats(z, targets, inplace=True).entropy.sum(), z)
    assert gradient.data_ptr() == where
