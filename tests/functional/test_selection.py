"""Token-level methods against a transcription of their reference implementations, token by token."""

import math

import pytest
import torch

from entreg.functional.losses import ppo_clip
from entreg.functional.selection import clip_cov, entropy_advantage, high_entropy, kl_cov, token_covariance

GENERATOR = torch.Generator().manual_seed(0)
SHAPE = (6, 9)
LOG_PROB = torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64) - 3
OLD = LOG_PROB + 0.3 * torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64)
ADVANTAGE = torch.randn(SHAPE[0], 1, generator=GENERATOR, dtype=torch.float64).expand(SHAPE) * 2
MASK = torch.arange(SHAPE[1]) < torch.tensor([9, 3, 7, 1, 5, 9])[:, None]


def covariance_by_hand(log_prob=LOG_PROB, advantage=ADVANTAGE):
    kept = [(row, place) for row in range(SHAPE[0]) for place in range(SHAPE[1]) if MASK[row, place]]
    mean_log_prob = sum(log_prob[at].item() for at in kept) / len(kept)
    mean_advantage = sum(advantage[at].item() for at in kept) / len(kept)
    return {at: (log_prob[at].item() - mean_log_prob) * (advantage[at].item() - mean_advantage) for at in kept}


def slopes(loss, log_prob):
    return torch.autograd.grad(loss.sum(), log_prob)[0]


def test_covariance_sums_to_that_of_the_tokens_that_count():
    covariance = token_covariance(LOG_PROB, ADVANTAGE, MASK)
    by_hand = covariance_by_hand()
    assert all(covariance[at].item() == pytest.approx(value) for at, value in by_hand.items())
    assert bool((covariance[~MASK] == 0).all())
    stacked = torch.stack([LOG_PROB[MASK], ADVANTAGE[MASK]])
    assert covariance.sum().item() / int(MASK.sum()) == pytest.approx(torch.cov(stacked, correction=0)[0, 1].item())


def test_clip_cov_drops_some_tokens_inside_the_bounds_and_is_ppo_on_the_others():
    log_prob = LOG_PROB.clone().requires_grad_()
    low, high = 0.2, 3.0
    plain, loss = (
        fn(log_prob, OLD, ADVANTAGE)
        for fn in (ppo_clip, lambda *a: clip_cov(*a, MASK, fraction=0.1, bounds=(low, high), generator=torch.Generator().manual_seed(3)))
    )
    held = covariance_by_hand()
    dropped = [at for at in held if loss[at].item() == 0.0]
    assert len(dropped) == int(0.1 * int(MASK.sum()))
    for at, value in held.items():
        ratio, advantage = math.exp(LOG_PROB[at] - OLD[at]), ADVANTAGE[at].item()
        clipped = -advantage * min(max(ratio, 0.8), 1.2) > -advantage * ratio
        if at in dropped:
            assert low < value < high and not clipped
        else:
            assert loss[at].item() == pytest.approx(plain[at].item())
    gradient = slopes(loss, log_prob)
    assert all(gradient[at].item() == 0.0 for at in dropped) and bool((gradient[~MASK] == 0).all())


def test_clip_cov_draws_at_random_and_every_token_inside_the_bounds_can_be_dropped():
    seen = set()
    for seed in range(40):
        loss = clip_cov(LOG_PROB, LOG_PROB, ADVANTAGE, MASK, fraction=1e-9, bounds=(0.2, 3.0), generator=torch.Generator().manual_seed(seed))
        dropped = [tuple(at) for at in ((loss == 0) & MASK).nonzero().tolist()]
        assert len(dropped) == 1  # at least one
        seen |= set(dropped)
    candidates = {at for at, value in covariance_by_hand().items() if 0.2 < value < 3.0}
    assert len(seen) > 5 and seen <= candidates


def test_nothing_to_drop_is_ppo():
    assert torch.equal(clip_cov(LOG_PROB, OLD, ADVANTAGE, bounds=(1e6, 1e7)), ppo_clip(LOG_PROB, OLD, ADVANTAGE))


def test_kl_cov_penalises_the_tokens_with_the_largest_covariance():
    log_prob = LOG_PROB.clone().requires_grad_()
    loss = kl_cov(log_prob, OLD, ADVANTAGE, MASK, fraction=0.1, coef=0.7)
    by_hand = covariance_by_hand()
    largest = sorted(by_hand, key=by_hand.get, reverse=True)[: int(0.1 * len(by_hand))]
    for at in by_hand:
        ratio = math.exp(LOG_PROB[at] - OLD[at])
        expected = -ADVANTAGE[at].item() * ratio + (0.7 * abs(LOG_PROB[at].item() - OLD[at].item()) if at in largest else 0.0)
        assert loss[at].item() == pytest.approx(expected)
    gradient = slopes(loss, log_prob)
    at = largest[0]
    ratio, sign = math.exp(LOG_PROB[at] - OLD[at]), math.copysign(1.0, LOG_PROB[at] - OLD[at])
    assert gradient[at].item() == pytest.approx(-ADVANTAGE[at].item() * ratio + 0.7 * sign)
    assert bool((loss[~MASK] == 0).all()) and bool((gradient[~MASK] == 0).all())


def test_advantages_are_constants():
    advantage = ADVANTAGE.clone().requires_grad_()
    for method in (clip_cov, kl_cov):
        assert not method(LOG_PROB, OLD, advantage, MASK).requires_grad


def test_high_entropy_keeps_a_fifth_of_the_whole_batch():
    entropy = torch.rand(SHAPE, generator=GENERATOR)
    kept = high_entropy(entropy, MASK, 0.2)
    assert int(kept.sum()) == math.ceil(0.2 * int(MASK.sum())) and not bool((kept & ~MASK).any())
    assert entropy[kept].min() > entropy[MASK & ~kept].max()
    assert not bool(high_entropy(entropy, MASK, 0.0).any()) and torch.equal(high_entropy(entropy, MASK, 1.0), MASK)


def test_entropy_advantage_is_bounded_and_has_no_gradient():
    entropy = torch.tensor([0.0, 0.5, 4.0, 4.0], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -3.0], requires_grad=True)
    shaped = entropy_advantage(advantage, entropy, alpha=0.4, kappa=2.0)
    assert shaped.tolist() == pytest.approx([1.0, 1.2, 1.5, -1.5]) and not shaped.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_cov(LOG_PROB, OLD, ADVANTAGE, bounds=(5.0, 1.0)), r"bounds: got \(5.0, 1.0\)"),
        (lambda: clip_cov(LOG_PROB, OLD, ADVANTAGE, fraction=1.5), "fraction: got 1.5"),
        (lambda: kl_cov(LOG_PROB, OLD, ADVANTAGE, coef=-1.0), "coef: got -1.0"),
        (lambda: kl_cov(LOG_PROB, OLD, ADVANTAGE, fraction=math.nan), "fraction: got nan"),
        (lambda: high_entropy(LOG_PROB, fraction=-0.1), "fraction: got -0.1"),
        (lambda: high_entropy(LOG_PROB, MASK[:2]), "mask: shape"),
        (lambda: entropy_advantage(ADVANTAGE, LOG_PROB, kappa=1.0), "alpha, kappa: got 0.4, 1.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message + ".*legal"):
        call()


def test_a_token_that_the_clip_holds_is_not_dropped():
    """Two tokens inside the bounds, one of them beyond the clip: only the other can be drawn."""
    log_prob = torch.tensor([-0.1, -0.1, -4.0, -4.0], dtype=torch.float64)
    old, advantage = log_prob - torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    inside = token_covariance(log_prob, advantage) > 0.9
    assert inside.tolist() == [True, True, True, False]
    for seed in range(12):
        loss = clip_cov(log_prob, old, advantage, fraction=0.5, bounds=(0.9, 9.0), generator=torch.Generator().manual_seed(seed))
        assert loss[0].item() == pytest.approx(-1.2) and loss[1:3].tolist() == [0.0, 0.0]
