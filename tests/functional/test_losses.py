"""Per-item losses: values, where gradient flows, and that the clipped loss is the policy gradient at the old policy."""

import math

import pytest
import torch

from entreg import functional
from entreg.functional import policy_gradient, ppo_clip


def test_policy_gradient_pushes_by_the_advantage_and_only_the_log_prob():
    log_prob = torch.tensor([-0.5, -1.0], requires_grad=True)
    advantage = torch.tensor([2.0, -3.0], requires_grad=True)
    loss = policy_gradient(log_prob, advantage)
    assert loss.tolist() == [1.0, -3.0]
    loss.sum().backward()
    assert log_prob.grad.tolist() == [-2.0, 3.0] and advantage.grad is None


def test_at_the_old_policy_the_clipped_gradient_is_the_policy_gradient():
    log_prob = torch.randn(20, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(20, dtype=torch.float64)
    clipped = torch.autograd.grad(ppo_clip(log_prob, log_prob.detach(), advantage).sum(), log_prob)[0]
    torch.testing.assert_close(clipped, torch.autograd.grad(policy_gradient(log_prob, advantage).sum(), log_prob)[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.3, 0.0),  # good and already likely: clipped at 1 + clip_high
        (0.5, 1.0, -0.5, -0.5),  # good and made unlikely: never clipped
        (0.5, -1.0, 0.8, 0.0),  # bad and already unlikely: clipped at 1 - clip
        (1.5, -1.0, 1.5, 1.5),  # bad and made likely: never clipped
    ],
)
def test_each_corner_of_the_clip(ratio, advantage, loss, slope):
    log_prob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    old = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    value = ppo_clip(log_prob, old, torch.tensor(advantage, dtype=torch.float64), 0.2, 0.3)
    value.backward()
    assert value.item() == pytest.approx(loss) and log_prob.grad.item() == pytest.approx(slope) and old.grad is None


def test_clip_high_defaults_to_clip_and_is_checked():
    arguments = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0])
    assert ppo_clip(*arguments, 0.2).item() == pytest.approx(-1.2)
    for clip in ((-0.1,), (1.1,), (0.2, -0.1), (math.nan,)):
        with pytest.raises(ValueError, match=r"clip, clip_high: got .*legal"):
            ppo_clip(*arguments, *clip)


def test_smoothed_cross_entropy_is_torchs_and_without_smoothing_minus_the_log_probability():
    logits, label = torch.randn(2, 5, 4, dtype=torch.float64), torch.randint(0, 4, (2, 5))
    for smoothing in (0.0, 0.3):
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(functional.smoothed_cross_entropy(logits, label, smoothing).flatten(), expected)


def test_soft_cross_entropy_has_its_minimum_at_the_wanted_probabilities():
    wanted = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = wanted.log().requires_grad_()
    loss = functional.soft_cross_entropy(logits, wanted)
    assert loss.item() == pytest.approx(-(wanted * wanted.log()).sum().item())
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.abs().max() < 1e-12


def test_pseudo_labels_count_from_the_threshold_on_and_are_constants():
    probs = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.01, 0.99]], dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    loss, used = functional.pseudo_label(logits, probs, 0.95)
    assert used.tolist() == [True, False, True]
    torch.testing.assert_close(loss, torch.stack([-logits.log_softmax(-1)[0, 0], logits.new_zeros(()), -logits.log_softmax(-1)[2, 1]]))
    grad, none = torch.autograd.grad(loss.sum(), [logits, probs], allow_unused=True)
    assert none is None and (grad[1] == 0).all() and (grad[[0, 2]] != 0).all()


def test_squared_consistency_is_a_mean_over_classes_and_moves_the_student_alone():
    logits, probs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    loss = functional.squared_consistency(logits, probs)
    torch.testing.assert_close(loss, ((logits.softmax(-1) - probs) ** 2).sum(-1) / 4)
    assert torch.autograd.grad(loss.sum(), probs, allow_unused=True)[0] is None
