"""The batch marginal against plain means of probabilities, and the running marginal against the formula and across ranks."""

import math

import pytest
import torch

from entreg.functional import (
    SHANNON,
    RunningMarginal,
    categorical_entropy,
    categorical_entropy_from_probs,
    log_marginal,
    marginal_entropy,
    marginal_kl,
    min_entropy,
    renyi,
    tsallis,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def label(family) -> str:
    return f"{family.name}({family.order})"


@pytest.mark.parametrize("family", [SHANNON, renyi(0.5), renyi(2), tsallis(2), min_entropy], ids=label)
def test_marginal_entropy_is_that_of_the_mean_probabilities(family):
    logits = 3 * torch.randn(4, 5, 6, dtype=torch.float64)
    mean = logits.softmax(-1).mean((0, 1))
    torch.testing.assert_close(log_marginal(logits).exp(), mean)
    torch.testing.assert_close(marginal_entropy(logits, family), categorical_entropy_from_probs(mean, family))


def test_marginal_entropy_is_at_least_the_conditional_one():
    logits = 4 * torch.randn(20, 6)
    information = marginal_entropy(logits) - categorical_entropy(logits).mean()
    assert 0 < information < math.log(6)
    same = logits[:1].expand(20, 6)
    torch.testing.assert_close(marginal_entropy(same), categorical_entropy(same[0]))


def test_mask_and_weights_count_items():
    logits = torch.randn(6, 3)
    keep = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(log_marginal(logits, keep), log_marginal(logits[keep]))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 0.0])
    torch.testing.assert_close(log_marginal(logits, weight).exp(), (weight[:, None] * logits.softmax(-1)).sum(0) / 3.5)
    for wrong, message in ((torch.zeros(6, dtype=torch.bool), "at least one item"), (torch.ones(5), "batch shape"), (-weight, "smallest weight -2")):
        with pytest.raises(ValueError, match=message):
            log_marginal(logits, wrong)


def test_gradient_with_absent_classes_and_items():
    support = torch.tensor([[True, True, True, False], [True, False, True, False], [True, True, False, False]])
    mask = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)

    def entropy(logits):
        return marginal_entropy(logits.masked_fill(~support, -math.inf), SHANNON, mask)

    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(entropy, (logits,))
    grad = torch.autograd.grad(entropy(logits), logits)[0]
    assert torch.isfinite(grad).all() and (grad[~support] == 0).all() and (grad[2] == 0).all() and grad[0].abs().max() > 0
    assert log_marginal(logits.masked_fill(~support, -math.inf))[3] == -math.inf


def test_far_classes_keep_their_log_probability():
    assert abs(log_marginal(torch.tensor([[0.0, -200.0], [0.0, -300.0]]))[1] - (-200 - math.log(2))) < 1e-4


def test_kl_to_a_prior():
    logits = torch.randn(7, 4, dtype=torch.float64)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    m = logits.softmax(-1).mean(0)
    torch.testing.assert_close(marginal_kl(logits, prior), (m * (m / prior).log()).sum())
    torch.testing.assert_close(marginal_kl(logits), math.log(4) - marginal_entropy(logits))
    assert marginal_kl(logits, m).abs() < 1e-12
    assert marginal_kl(logits, torch.tensor([0.5, 0.5, 0.0, 0.0])) == math.inf
    for wrong in (torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6, -0.1, 0.0])):
        with pytest.raises(ValueError, match="prior"):
            marginal_kl(logits, wrong)


def test_running_marginal_is_the_bias_corrected_average():
    running, batches = RunningMarginal(momentum=0.8), torch.randn(5, 3, 4, dtype=torch.float64)
    for t, batch in enumerate(batches):
        result = running(batch)
        weight = torch.tensor([0.8 ** (t - s) for s in range(t + 1)], dtype=torch.float64)
        mean = (weight[:, None] * batches[: t + 1].softmax(-1).mean(1)).sum(0) / weight.sum()
        torch.testing.assert_close(result.log_probs.exp(), mean)
        torch.testing.assert_close(result.entropy(renyi(2)), categorical_entropy_from_probs(mean, renyi(2)))
        torch.testing.assert_close(result.kl, math.log(4) - result.entropy())


def test_running_gradient_moves_the_running_marginal_with_the_batch():
    running = RunningMarginal(momentum=0.99)
    running(torch.randn(50, 3, dtype=torch.float64))
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    result = running(logits)
    grad = torch.autograd.grad(result.entropy(), logits)[0]
    slope = -(result.log_probs.detach() + 1)  # dH/dm at the running marginal
    by_hand = torch.autograd.grad((slope * logits.softmax(-1).mean(0)).sum(), logits)[0]
    torch.testing.assert_close(grad, by_hand)


def test_without_momentum_it_is_the_batch_marginal():
    prior, logits = torch.tensor([0.2, 0.3, 0.5]), torch.randn(5, 3, requires_grad=True)
    running = RunningMarginal(momentum=0.0, prior=prior)
    running(torch.randn(5, 3))
    result = running(logits)
    torch.testing.assert_close(result.kl, marginal_kl(logits, prior))
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (result.kl, marginal_kl(logits, prior))))


def test_two_ranks_equal_the_whole_batch():
    batches = [torch.randn(8, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mask = torch.tensor([True] * 3 + [False] * 5)  # rank 0 has three items, rank 1 all of its four
    ranks = [(slice(0, 4), mask[:4]), (slice(4, 8), torch.ones(4, dtype=torch.bool))]
    whole_mask = torch.cat([m for _, m in ranks])
    whole, sent = RunningMarginal(0.7), []
    parts = [RunningMarginal(0.7, all_reduce=lambda local: (sent.append(local), sums)[1]) for _ in ranks]
    for batch in batches:
        truth = whole(batch, whole_mask)
        truth_grad = torch.autograd.grad(truth.entropy(), batch)[0]
        sums = sum(torch.cat([(batch[part].softmax(-1) * m[:, None]).sum(0), m.sum()[None].double()]).detach() for part, m in ranks)
        sent.clear()
        grad = torch.zeros_like(batch)
        for running, (part, m) in zip(parts, ranks, strict=True):
            result = running(batch[part], m)
            torch.testing.assert_close(result.log_probs, truth.log_probs)
            grad += torch.autograd.grad(result.entropy(), batch)[0]
        torch.testing.assert_close(grad, truth_grad)
        torch.testing.assert_close(sent[0] + sent[1], sums)
        assert not any(local.requires_grad for local in sent)


def test_a_rank_may_be_empty_but_not_all_of_them():
    sums = torch.tensor([0.5, 1.5, 2.0])
    result = RunningMarginal(all_reduce=lambda local: local + sums)(torch.randn(3, 2), torch.zeros(3))
    torch.testing.assert_close(result.log_probs.exp(), torch.tensor([0.25, 0.75]))
    running = RunningMarginal(all_reduce=lambda local: local)
    with pytest.raises(ValueError, match="at least one item"):
        running(torch.randn(3, 2), torch.zeros(3))
    assert running.weight == 0


def test_saved_and_loaded_goes_on_as_if_uninterrupted():
    batches = torch.randn(4, 6, 3)
    one, other = RunningMarginal(0.9), RunningMarginal(0.9)
    other.load_state_dict(one.state_dict())  # an empty state too
    for batch in batches[:2]:
        one(batch)
    other.load_state_dict(one.state_dict())
    for batch in batches[2:]:
        assert torch.equal(one(batch).log_probs, other(batch).log_probs)
    with pytest.raises(ValueError, match="state"):
        other.load_state_dict({"total": None, "weight": 2.0})
    with pytest.raises(ValueError, match="momentum"):
        RunningMarginal(1.0)


def test_running_marginal_of_a_class_that_never_occurs():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    result = RunningMarginal()(logits)
    grad = torch.autograd.grad(result.entropy() + result.kl, logits)[0]
    assert result.log_probs[2] == -math.inf and torch.isfinite(grad).all() and grad[0, 2] == 0


def test_a_batch_without_items_is_refused_and_leaves_the_running_marginal_alone():
    running = RunningMarginal()
    running(torch.randn(4, 3))
    before = running.state_dict()
    for logits, mask in ((torch.zeros(0, 3), None), (torch.zeros(2, 3), torch.zeros(2))):
        for function in (log_marginal, running):
            with pytest.raises(ValueError, match="at least one item must count"):
                function(logits, mask)
    for prior in (torch.zeros(3), torch.tensor([0.5, 0.6, -0.1]), torch.ones(2) / 2):
        running.prior = prior
        for function in (lambda z: marginal_kl(z, prior), running):  # noqa: B023
            with pytest.raises(ValueError, match="legal are 3 probabilities >= 0, not all 0"):
                function(torch.randn(4, 3))
    after = running.state_dict()
    assert torch.equal(before["total"], after["total"]) and before["weight"] == after["weight"]
    for state in ({}, {"total": None, "weight": 1.0}):
        with pytest.raises(ValueError, match="legal"):
            running.load_state_dict(state)


def test_an_item_that_is_left_out_may_be_anything_and_one_that_counts_may_not_hide_a_nan():
    keep = torch.tensor([True, False, True])
    for wild in (math.nan, math.inf, -math.inf):
        logits = torch.tensor([[0.0, 1.0], [wild, wild], [2.0, 0.0]], requires_grad=True)
        for value in (marginal_entropy(logits, mask=keep), RunningMarginal()(logits, keep).entropy()):
            (slope,) = torch.autograd.grad(value, logits)
            torch.testing.assert_close(value, marginal_entropy(logits[keep]))
            assert bool(slope.isfinite().all()) and (slope[1] == 0).all() and (slope[0] != 0).all()
        assert bool(log_marginal(logits).isnan().all())
