"""Entropy of whole sequences by enumeration of a tiny autoregressive model: V = 4 tokens, length 4, 256 sequences, every prefix with logits of its own."""

import itertools

import pytest
import torch

from entreg.functional import categorical_entropy, k1, k2, k3
from entreg.functional.sequences import entropy_to_go, others_mean, preference, sequence_entropy_loss

V, LENGTH = 4, 4
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))  # [256, 4]
PREFIX = torch.stack(
    [sum((SEQUENCES[:, s] + 1) * (V + 1) ** s for s in range(t)) if t else torch.zeros(len(SEQUENCES), dtype=torch.long) for t in range(LENGTH)], 1
)
ROWS = (V + 1) ** LENGTH
END = 0  # a token after which nothing counts, in the models with an end


def table(seed):
    return torch.randn(ROWS, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(ends):
    """Tokens that count: all, or those up to the first END."""
    if not ends:
        return torch.ones_like(SEQUENCES)
    return ((SEQUENCES == END).cumsum(1) - (SEQUENCES == END).long() == 0).long()


def model(theta):
    """Log-probabilities and logits of all sequences' tokens under the table `theta`."""
    logits = theta[PREFIX]
    return logits.log_softmax(-1).gather(-1, SEQUENCES[..., None])[..., 0], logits


def distinct(ends):
    """Weight of each of the 256 rows so that a sequence that ends early is counted once."""
    mask = mask_of(ends)
    return (torch.where(mask > 0, SEQUENCES, END) == SEQUENCES).all(1).double()


def probabilities(theta, ends):
    log_prob, _ = model(theta)
    return (log_prob * mask_of(ends)).sum(1).exp() * distinct(ends)


def exact(theta, ends):
    """-sum p log p over sequences."""
    p = probabilities(theta, ends)
    return -(p * torch.where(p > 0, p, 1).log()).sum()


def slope(function, seed=0):
    theta = table(seed).requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def expected_loss(theta, ends, baseline=None):
    """E over sequences of the summed per-token loss, gradient through the tokens' log-probabilities and entropies only."""
    log_prob, logits = model(theta)
    loss = sequence_entropy_loss(log_prob, categorical_entropy(logits), mask_of(ends), baseline=baseline)
    return (probabilities(theta, ends).detach() * loss.sum(1)).sum()


@pytest.mark.parametrize("ends", [False, True])
def test_sequence_entropy_is_the_expected_sum_of_token_entropies_and_the_probabilities_are_right(ends):
    theta = table(0)
    assert probabilities(theta, ends).sum().item() == pytest.approx(1.0)
    entropy = categorical_entropy(model(theta)[1]) * mask_of(ends)
    assert (probabilities(theta, ends) * entropy.sum(1)).sum().item() == pytest.approx(exact(theta, ends).item())


@pytest.mark.parametrize("ends", [False, True])
def test_trajectory_loss_has_the_gradient_of_minus_the_sequence_entropy(ends):
    full = slope(lambda theta: exact(theta, ends))
    torch.testing.assert_close(slope(lambda theta: expected_loss(theta, ends)), -full, rtol=0, atol=1e-12)
    anything = torch.randn(len(SEQUENCES), 1, dtype=torch.float64).expand(-1, LENGTH)[0].expand(len(SEQUENCES), LENGTH)  # a constant a position
    torch.testing.assert_close(slope(lambda theta: expected_loss(theta, ends, anything)), -full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ends", [False, True])
def test_token_loss_is_another_objective(ends):
    """The direct term alone: the entropy of each step under prefixes held fixed."""

    def token(theta):
        return (probabilities(theta, ends).detach() * (categorical_entropy(model(theta)[1]) * mask_of(ends)).sum(1)).sum()

    full, direct = slope(lambda theta: exact(theta, ends)), slope(token)
    assert (full - direct).norm() > 0.1 * full.norm()


def test_old_log_probs_make_it_the_gradient_at_the_old_policy():
    def reweighted(theta):
        log_prob, logits = model(theta)
        loss = sequence_entropy_loss(log_prob, categorical_entropy(logits), old_log_prob=log_prob.detach())
        return (probabilities(theta, False).detach() * loss.sum(1)).sum()

    torch.testing.assert_close(slope(reweighted), -slope(lambda theta: exact(theta, False)), rtol=0, atol=1e-12)


def test_the_mean_of_the_others_adds_no_bias():
    """Pairs of independent sequences, all 81 x 81 of a smaller model: the expected gradient is the same, the variance smaller."""
    keep = (SEQUENCES[:, 3] == 0) & (SEQUENCES < 3).all(1)
    rows, prefix = SEQUENCES[keep][:, :3], PREFIX[keep][:, :3]
    theta = table(1).requires_grad_()
    logits = theta[prefix][..., :3]
    log_prob = logits.log_softmax(-1).gather(-1, rows[..., None])[..., 0]
    entropy, p = categorical_entropy(logits), log_prob.sum(1).exp().detach()
    pair = torch.cartesian_prod(torch.arange(27), torch.arange(27))
    ahead = entropy_to_go(entropy)
    plain = sequence_entropy_loss(log_prob, entropy)
    baseline = torch.stack([others_mean(ahead[both])[0] for both in pair])
    with_it = sequence_entropy_loss(log_prob[pair[:, 0]], entropy[pair[:, 0]], baseline=baseline)
    weight = p[pair[:, 0]] * p[pair[:, 1]]
    expected = [torch.autograd.grad((w * loss.sum(1)).sum(), theta, retain_graph=True)[0] for w, loss in ((p, plain), (weight, with_it))]
    torch.testing.assert_close(*expected, rtol=0, atol=1e-12)
    assert (weight * (ahead[pair[:, 0]] - baseline).square().sum(1)).sum() < 0.6 * (p * ahead.square().sum(1)).sum()


def test_a_baseline_is_a_constant():
    values, baseline = torch.rand(2, 3), torch.rand(2, 3, requires_grad=True)
    assert not sequence_entropy_loss(values, values, baseline=baseline).requires_grad


def test_others_mean_counts_the_sequences_that_have_the_position():
    values, mask = torch.tensor([[1.0, 9.0], [3.0, 7.0], [5.0, 5.0]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    assert others_mean(values, mask).tolist() == [[4.0, 5.0], [3.0, 7.0], [2.0, 9.0]]
    assert others_mean(values[:1]).tolist() == [[0.0, 0.0]]


# -------------------------------------------------------------------- KL to a reference, over sequences


def test_kl_estimators_on_sequences_against_the_closed_form():
    """k1 in the reward and k2 as a loss descend KL(p||q) of sequences; token-wise k3 as a loss descends KL(q||p) of tokens along own prefixes."""
    reference, _ = model(table(7))

    def closed(theta):
        log_prob, _ = model(theta)
        p = log_prob.sum(1).exp()
        return (p * (log_prob - reference).sum(1)).sum()

    def in_the_reward(theta):
        log_prob, _ = model(theta)
        cost = k1(reference.sum(1) - log_prob.sum(1)).detach()
        return (log_prob.sum(1).exp().detach() * cost * log_prob.sum(1)).sum()

    def as_a_loss(theta):
        log_prob, _ = model(theta)
        return (log_prob.sum(1).exp().detach() * k2(reference.sum(1) - log_prob.sum(1))).sum()

    def token_wise(theta):
        log_prob, _ = model(theta)
        return (log_prob.sum(1).exp().detach() * k3(reference - log_prob).sum(1)).sum()

    def reverse_along_own_prefixes(theta):
        log_prob, logits = model(theta)
        p, q = logits.log_softmax(-1), table(7)[PREFIX].log_softmax(-1)
        return (log_prob.sum(1).exp().detach() * (q.exp() * (q - p)).sum(-1).sum(1)).sum()

    for estimate in (in_the_reward, as_a_loss):
        torch.testing.assert_close(slope(estimate), slope(closed), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope(token_wise), slope(reverse_along_own_prefixes), rtol=0, atol=1e-12)
    assert (slope(token_wise) - slope(closed)).norm() > 0.1 * slope(closed).norm()


# -------------------------------------------------------------------- preferences


def test_preference_optimum_is_the_reference_to_the_power_beta_over_c_times_the_exponent_of_the_reward():
    """With pairs as Bradley-Terry draws them for a reward, the loss is least at p ~ q^(beta/c) exp(r/c): here its gradient is 0 there, for all three kinds."""
    reward, reference = table(3)[0], table(4)[0].log_softmax(-1)
    first, second = (part.flatten() for part in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij"))
    beta = 0.7
    entropies = []
    for c in (0.35, 0.7, 1.4):
        z = ((beta * reference + reward) / c).requires_grad_()
        log_p = z.log_softmax(-1)
        wins = torch.sigmoid(reward[first] - reward[second])
        loss = wins * preference(log_p[first], log_p[second], reference[first], reference[second], beta, c)
        assert torch.autograd.grad(loss.sum(), z)[0].abs().max() < 1e-12
        entropies.append(categorical_entropy(z.detach()).item())
    assert entropies == sorted(entropies)  # H-DPO, DPO, SPL


def test_preference_at_c_equal_to_beta_is_dpo_and_others_are_refused():
    values = torch.randn(4, 6, dtype=torch.float64)
    chosen, rejected, reference_chosen, reference_rejected = values
    dpo = -torch.nn.functional.logsigmoid(0.3 * ((chosen - reference_chosen) - (rejected - reference_rejected)))
    for c in (None, 0.3):
        torch.testing.assert_close(preference(*values, beta=0.3, coef=c), dpo)
    for beta, c in ((-0.1, 1.0), (0.1, 0.0), (0.1, float("nan"))):
        with pytest.raises(ValueError, match=r"beta, coef: got .* legal"):
            preference(*values, beta=beta, coef=c)
