"""The two entropies of unlabelled data, for all members at once, against the same one by one."""

import pytest
import torch

from entreg import functional
from entreg.regularizer import EntropyRegularizer
from entreg.vision.terms import RunningMarginals, Terms, aligned

MEMBER = {"conditional": "0", "sense": "minimize", "marginal": "0", "family": "shannon", "prior": "uniform", "seed": 0}
EVEN = torch.full((1, 3), 1 / 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_running_marginals_are_those_of_each_member(momentum):
    together, alone = RunningMarginals(2, 3, momentum), [functional.RunningMarginal(momentum) for _ in range(2)]
    for _ in range(3):
        logits = torch.randn(2, 5, 3, requires_grad=True)
        found = together(logits)
        expected = torch.stack([of(part).log_probs for of, part in zip(alone, logits, strict=True)])
        torch.testing.assert_close(found, expected)
        (one,) = torch.autograd.grad(functional.categorical_entropy(found).sum(), logits, retain_graph=True)
        (other,) = torch.autograd.grad(functional.categorical_entropy(expected).sum(), logits)
        torch.testing.assert_close(one, other)
    again = RunningMarginals(2, 3, momentum)
    again.load_state_dict(together.state_dict())
    torch.testing.assert_close(again(logits), together(logits))


MEMBERS = [
    {"conditional": "0.3", "marginal": "0.5"},
    {"conditional": "0.3", "marginal": "0.5", "seed": 1},
    {"conditional": "0.2", "sense": "maximize"},
    {"marginal": "0.7", "prior": "labels"},
    {"conditional": "0.1", "marginal": "0.4", "family": "renyi(2)"},
    {"marginal": "0.4", "family": "renyi(2)", "prior": "labels"},
    {"conditional": "0.1", "marginal": "0.4", "family": "tsallis(2)"},
]
PRIORS = torch.stack([torch.tensor([0.6, 0.3, 0.1]) if one.get("prior") else EVEN[0] for one in MEMBERS])


def test_the_gradient_is_that_of_each_members_loss_alone():
    """conditional: +- coef mean H; marginal: - coef H(mean p), or + coef D(mean p || prior)."""
    members = [{**MEMBER, **one} for one in MEMBERS]
    logits = torch.randn(len(members), 6, 3, requires_grad=True)
    terms = Terms(members, PRIORS, steps=10, momentum=0.0)
    values, weights = zip(*terms(logits), strict=True)
    (found,) = torch.autograd.grad(values, logits, weights, retain_graph=True)
    families = {"shannon": functional.SHANNON, "renyi(2)": functional.renyi(2), "tsallis(2)": functional.tsallis(2)}
    loss = 0
    for member, of, prior in zip(members, logits, PRIORS, strict=True):
        family, sign = families[member["family"]], 1 if member["sense"] == "minimize" else -1
        loss = loss + sign * float(member["conditional"]) * functional.categorical_entropy(of, family).mean()
        mean = of.softmax(-1).mean(0).log()
        towards = (
            functional.categorical_entropy(mean, family) if member["prior"] == "uniform" else -functional.renyi_divergence(mean, prior.log(), family.order)
        )
        loss = loss - float(member["marginal"]) * towards
    torch.testing.assert_close(found, torch.autograd.grad(loss, logits)[0], rtol=1e-4, atol=1e-6)


def test_controllers_see_the_entropies_and_a_saved_state_goes_on():
    member = {**MEMBER, "conditional": "TargetEntropy(0.5, 0.1, 0.2)", "marginal": "TargetEntropy(1.0, 0.1, 0.2)"}
    terms = Terms([member], EVEN.clone(), steps=10, momentum=0.9)
    alone = EntropyRegularizer(terms.conditional[0].controller, sense="minimize")
    logits = torch.randn(1, 8, 3)
    terms(logits)
    alone(functional.categorical_entropy(logits))
    terms.step(0.1), alone.step(progress=0.1)
    assert terms.facts(0)["coef/conditional"] == pytest.approx(alone.coef) and terms.facts(0)["target/marginal"] == 1.0
    again = Terms([member], EVEN.clone(), steps=10, momentum=0.9)
    again.load_state_dict(terms.state_dict())
    for one in (terms, again):
        one(logits), one.step(0.2)
    assert again.state_dict()["conditional"] == terms.state_dict()["conditional"] and again.state_dict()["marginal"] == terms.state_dict()["marginal"]


def test_coefficients_of_zero_cost_nothing_and_tsallis_with_a_prior_is_refused():
    assert Terms([MEMBER], EVEN, steps=10, momentum=0.0)(torch.randn(1, 4, 3)) == []
    with pytest.raises(ValueError, match=r"prior is 'labels' with family tsallis\(2\)"):
        Terms([{**MEMBER, "family": "tsallis(2)", "prior": "labels"}], EVEN, steps=10, momentum=0.0)


def test_alignment_moves_the_mean_prediction_to_the_prior():
    """A mean of .8, .2 and a prior of .5, .5: predictions equal to the mean become the prior, and every one stays a distribution."""
    running = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()
    probs = torch.tensor([[[0.8, 0.2], [0.9, 0.1]], [[0.7, 0.3], [0.2, 0.8]]])
    found = aligned(probs, running, torch.full((2, 2), 0.5))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found[0, 1], torch.tensor([0.9 / 0.8, 0.1 / 0.2]) / (0.9 / 0.8 + 0.1 / 0.2))
    torch.testing.assert_close(found[1], probs[1])
