"""One bug an item, as it was reported, and the healthy twin."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, Normal

from entreg import functional, targets
from entreg.functional import renyi
from entreg.linting import lint
from tests.linting.losses import N, V, batch, evidence, gaussian, masked_mean, rules, sb3, token_entropy, trl


def test_temperature_openrlhf_1319():
    """OpenRLHF PR #1319: the entropy of softmax(z), the policy of softmax(z / T)."""

    def loss(logits, actions, advantages, coef, entropy_at=1.0, acts_at=0.7):
        log_prob = (logits / acts_at).log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
        return -(advantages * log_prob).mean() - coef * Categorical(logits=logits / entropy_at).entropy().mean()

    assert evidence(loss, batch(), coef=0.01) == "temperature: the gradient is that of the entropy at temperature 1; the policy acts at 0.7"
    assert lint(lambda **b: loss(**b, entropy_at=0.7), batch(), coef=0.01) == []
    bonus = {"logits": batch()["logits"]}  # without a policy gradient the caller says the temperature
    assert rules(lambda logits, coef: -coef * Categorical(logits=logits).entropy().mean(), bonus, coef=0.01, temperature=1.5) == ["temperature"]
    assert rules(lambda logits, coef: -coef * Categorical(logits=logits / 1.5).entropy().mean(), bonus, coef=0.01, temperature=1.5) == []


def test_two_classes_have_one_direction_and_are_told_apart_by_length():
    made = {"logits": batch(classes=2)["logits"]}
    bonus = lambda entropy: lambda logits, coef: -coef * entropy(logits).mean()  # noqa: E731
    at = lambda temperature: bonus(lambda z: functional.categorical_entropy(z / temperature))  # noqa: E731
    assert evidence(at(0.7), made, coef=0.01) == "temperature: the gradient is that of the entropy at temperature 0.7; the policy acts at 1"
    assert lint(at(0.7), made, coef=0.01, temperature=0.7) == []
    assert evidence(bonus(lambda z: functional.categorical_entropy(z, renyi(2))), made, coef=0.01).startswith(
        "family: the gradient is that of the entropy renyi"
    )
    assert lint(at(1.0), made, coef=-0.01) == []


def test_mask_ignored_inverted_shifted_or_half_used():
    made = batch(sequences=True, ragged=True)

    def loss(mean):
        return lambda logits, actions, advantages, mask, coef: trl(logits, actions, advantages, mask, 0.0) - coef * mean(token_entropy(logits), mask)

    assert lint(loss(masked_mean), made, coef=0.1) == []
    assert evidence(loss(lambda h, m: h.mean()), made, coef=0.1) == "mask: items count as if there were no mask: padding counts"
    assert evidence(loss(lambda h, m: masked_mean(h, 1 - m)), made, coef=0.1) == "mask: items count as with the mask inverted"
    assert evidence(loss(lambda h, m: masked_mean(h, m.roll(1, -1))), made, coef=0.1) == "mask: items count as with the mask shifted by +1"
    assert (
        evidence(loss(lambda h, m: (h * m).mean()), made, coef=0.1)
        == "mask: the term acts as 0.6389 times coef, which is 23/36: padding is not summed, and counted"
    )
    full = batch(sequences=True)  # a mask of ones hides the bug: lint takes items out of it
    assert rules(loss(lambda h, m: h.mean()), full, coef=0.1) == ["mask"]
    assert rules(loss(masked_mean), full, coef=0.1) == []


def test_mean_of_means_verl_3986():
    """verl #3986: the metric, and the gradient, depend on the aggregation."""

    def loss(logits, actions, advantages, mask, coef):
        means = (token_entropy(logits) * mask).sum(-1) / mask.sum(-1)
        return trl(logits, actions, advantages, mask, 0.0) - coef * means.mean()

    made = batch(sequences=True, ragged=True)
    assert evidence(loss, made, coef=0.1) == "aggregation: items count as in a mean of the sequences' means"
    assert lint(loss, made, coef=0.1, mean="sequences") == []
    assert evidence(trl, made, coef=0.1, mean="sequences") == "aggregation: items count as in a mean over all items"


def test_bonus_multiplied_by_the_micro_batch_rlinf_1564():
    """RLinf #1564: entropies `[B]` times a mask `[B, 1]` are an outer product, so the mean is a sum."""

    def loss(logits, actions, advantages, mask, coef, keepdim=False):
        entropy = Categorical(logits=logits).entropy().sum(dim=-1, keepdim=keepdim)
        return -coef * masked_mean(entropy, mask)

    made = {key: value[:, None] for key, value in batch().items()} | {"mask": torch.ones(N, 1)}
    assert evidence(loss, made, coef=0.01) == "mask: items count as if there were no mask: padding counts, times 12"
    assert lint(lambda **b: loss(**b, keepdim=True), made, coef=0.01) == []
    assert evidence(lambda logits, coef: -coef * Categorical(logits=logits).entropy().sum(), {"logits": batch()["logits"]}, coef=0.01) == (
        "aggregation: the term acts as 12 times coef, which is 12, the number of items that count: a sum, where a mean is wanted"
    )


def test_micro_batches_that_do_not_add_up():
    """transformers' gradient accumulation, 2024: means of micro-batches of unequal length."""
    made = batch(sequences=True, ragged=True)
    count = made["mask"].sum()
    assert rules(trl, made, coef=0.1, micro_batches=2) == ["micro_batches"]

    def summed(logits, actions, advantages, mask, coef):
        return -coef * (token_entropy(logits) * mask).sum() / count

    assert lint(summed, made, coef=0.1, micro_batches=2, denominator=float(count)) == []
    assert rules(trl, made, coef=0.1, micro_batches=2, denominator=float(count)) == ["micro_batches"]
    assert lint(sb3, batch(), coef=0.1, micro_batches=3) == []


@pytest.mark.parametrize("how", ["detach", "no_grad", "probabilities only"])
def test_detached(how):
    """TensorFlow #6717, an entropy whose gradient got lost; and what people do by hand."""

    def loss(logits, actions, advantages, coef):
        with torch.set_grad_enabled(how != "no_grad"):
            log_probs = (logits.detach() if how == "detach" else logits).log_softmax(-1)
            probs = log_probs.exp().detach() if how == "probabilities only" else log_probs.exp()
            entropy = -(probs * log_probs).sum(-1)
        return sb3(logits, actions, advantages, 0.0) - coef * entropy.mean()

    assert rules(loss, batch(), coef=0.01) == ["detached"]


def test_sampled_log_prob_sb3_squashed():
    """stable-baselines3: where a distribution has no entropy (squashed), PPO takes `-mean(-log_prob)`, whose expected gradient is zero."""

    def loss(logits, actions, advantages, coef, right=False):
        log_prob = Categorical(logits=logits).log_prob(actions)
        bonus = -functional.score_function_bonus(log_prob) if right else -log_prob
        return -(advantages * log_prob).mean() - coef * bonus.mean()

    made = batch()
    assert rules(loss, made, coef=0.01) == ["sampled"]
    assert lint(lambda **b: loss(**b, right=True), made, coef=0.01) == []
    flipped = lambda **b: loss(**{**b, "coef": -b["coef"]}, right=True)  # noqa: E731
    assert rules(flipped, made, coef=0.01) == ["sign"]

    def own_samples(logits, coef):
        policy = Categorical(logits=logits)
        return coef * policy.log_prob(policy.sample()).mean()

    assert rules(own_samples, {"logits": made["logits"]}, coef=0.01) == ["sampled"]


def test_squashed_policies_rl_games_153():
    """rl_games #153, and every PPO that squashes: the bonus is that of the Gaussian before the tanh, or of stored actions."""
    made = gaussian()

    def stored(mean, log_std, actions, coef):
        u = actions.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        log_prob = Normal(mean, log_std.exp()).log_prob(u).sum(-1) - functional.tanh_log_det(u).sum(-1)
        return coef * log_prob.mean()

    assert rules(stored, made, coef=0.1, squashed=True) == ["sampled"]
    before = lambda mean, log_std, actions, coef: -coef * functional.gaussian_entropy(log_std).mean()  # noqa: E731
    assert evidence(before, made, coef=0.1, squashed=True) == "squash: the gradient is that of the entropy before the tanh"
    assert lint(before, made, coef=0.1) == []
    exact = lambda mean, log_std, actions, coef: -coef * functional.tanh_gaussian_entropy(mean, log_std).mean()  # noqa: E731
    assert lint(exact, made, coef=0.1, squashed=True) == []

    def reparameterised(mean, log_std, actions, coef):  # SAC: one sample, through which the gradient flows
        u = Normal(mean, log_std.exp()).rsample()
        return coef * (Normal(mean, log_std.exp()).log_prob(u) - functional.tanh_log_det(u)).sum(-1).mean()

    assert lint(reparameterised, made, coef=0.1, squashed=True) == []


def test_wrong_sign_verl_411():
    """verl #411, stable-baselines3 #466: two signs, one name."""
    made = batch()
    flipped = lambda coef, **b: sb3(**b, coef=-coef)  # noqa: E731
    assert rules(flipped, made, coef=0.01) == ["sign"]
    assert lint(flipped, made, coef=0.01, sense="minimize") == []
    assert rules(sb3, made, coef=0.01, sense="minimize") == ["sign"]


def test_wrong_dimension_ml_agents_4538():
    """ml-agents #4538, habitat-lab #816: means over action dimensions; and softmax over the batch."""
    logits = {"logits": batch()["logits"]}

    def over(dim, reduce):
        return lambda logits, coef: -coef * reduce(-(logits.softmax(dim) * logits.log_softmax(dim)))

    assert rules(over(-1, lambda x: x.sum(-1).mean()), logits, coef=0.1) == []
    assert evidence(over(-1, lambda x: x.mean()), logits, coef=0.1) == (
        "dimension: the term acts as 0.1667 times coef, which is 1/6: a mean over the classes, where a sum is wanted"
    )
    assert evidence(over(0, lambda x: x.sum(-1).mean()), logits, coef=0.1) == (
        "dimension: the gradient is that of an entropy over dimension 0 of (12, 6), where classes lie along the last"
    )
    marginal = lambda logits, coef: -coef * functional.marginal_entropy(logits)  # noqa: E731
    assert evidence(marginal, logits, coef=0.1) == "dimension: the gradient is that of the entropy of the mean prediction (the marginal)"
    made = {key: value for key, value in gaussian().items() if key != "actions"}
    mean_over_dims = lambda mean, log_std, coef: -coef * Normal(mean, log_std.exp()).entropy().mean()  # noqa: E731
    summed = lambda mean, log_std, coef: -coef * Normal(mean, log_std.exp()).entropy().sum(-1).mean()  # noqa: E731
    assert rules(mean_over_dims, made, coef=0.1) == ["dimension"]
    assert rules(summed, made, coef=0.1) == []


def test_logits_for_log_probabilities_and_other_entropies():
    logits = {"logits": batch()["logits"]}
    assert rules(lambda logits, coef: coef * (logits.softmax(-1) * logits).sum(-1).mean(), logits, coef=0.1) == ["unnormalised"]
    collision = lambda logits, coef: -coef * functional.categorical_entropy(logits, renyi(2)).mean()  # noqa: E731
    assert evidence(collision, logits, coef=0.1) == "family: the gradient is that of the entropy renyi(2.0) where shannon is wanted"
    assert lint(collision, logits, coef=0.1, family=renyi(2)) == []
    nucleus = lambda logits, coef: -coef * functional.top_p_entropy(logits, 0.8).mean()  # noqa: E731
    assert rules(nucleus, logits, coef=0.1) == ["entropy"]


def test_nan_with_masked_classes_trl_7221():
    """TRL #7221, SkyRL #2259: exp(-inf) * -inf; and the repair that heals the value and not the gradient (TRL PR #7252)."""

    def loss(repair, logits, coef):
        log_probs = logits.log_softmax(-1)
        product = log_probs.exp() * log_probs
        return coef * (product.nan_to_num(nan=0.0) if repair else product).sum(-1).mean()

    made = {"logits": batch()["logits"]}
    (one,) = lint(lambda **b: loss(False, **b), made, coef=0.1)
    assert one.rule == "minus_inf" and one.severity == "info"
    assert "its gradient is NaN" in evidence(lambda **b: loss(True, **b), made, coef=0.1, skip=())
    made["logits"][:, 2] = -math.inf
    (one,) = lint(lambda **b: loss(False, **b), made, coef=0.1)
    assert one.severity == "fail"
    assert lint(lambda logits, coef: -coef * Categorical(logits=logits).entropy().mean(), made, coef=0.1) == []
    assert lint(lambda **b: loss(False, **b), {"logits": batch()["logits"]}, coef=0.1, skip=["minus_inf"]) == []


def test_support_ignored():
    made = {"logits": batch()["logits"], "support": torch.ones(N, V, dtype=torch.bool)}
    made["support"][:, 0] = False
    assert rules(lambda logits, support, coef: -coef * Categorical(logits=logits).entropy().mean(), made, coef=0.1) == ["support"]
    assert rules(lambda logits, support, coef: -coef * functional.categorical_entropy(logits, support=support).mean(), made, coef=0.1) == []


def test_epsilon_in_the_logarithm():
    """tensorforce PR #96, log(p + eps); `log(sum(p**a) + eps)`, as Rényi losses have it; at order 3 over 1000 classes sum p^3 is 1e-6 near uniform."""
    made = {"logits": batch(classes=1000)["logits"]}

    def loss(epsilon):
        return lambda logits, coef: coef * ((logits.softmax(-1) ** 3).sum(-1) + epsilon).log().div(2).mean()

    (one,) = lint(loss(1e-8), made, coef=0.1, family=renyi(3))
    assert one.rule == "epsilon" and "near uniform" in one.evidence
    assert lint(loss(0.0), made, coef=0.1, family=renyi(3)) == []
    shannon = lambda logits, coef: coef * (logits.softmax(-1) * (logits.softmax(-1) + 1e-6).log()).sum(-1).mean()  # noqa: E731
    assert rules(shannon, made, coef=0.1) == ["epsilon"]
    large = lambda logits, coef: coef * ((logits.softmax(-1) ** 2).sum(-1) + 1e-3).log().mean()  # noqa: E731
    assert evidence(large, {"logits": batch()["logits"]}, coef=0.1, family=renyi(2)).startswith("epsilon: items count 0.99")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """optax #1020, a logarithm of a sum that is rounded to bfloat16; miles PR #1554, logits divided by the temperature in bfloat16."""
    made = {"logits": batch(dtype=dtype)["logits"]}
    plain = lambda logits, coef: coef * (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()  # noqa: E731
    assert rules(plain, made, coef=0.1) == ["precision"]
    assert rules(lambda logits, coef: -coef * token_entropy(logits).mean(), made, coef=0.1) == []
    inside = lambda logits, coef: plain(logits.to(dtype), coef).float()  # noqa: E731
    assert rules(inside, {"logits": batch()["logits"]}, coef=0.1) == ["precision"]


def kl_batch():
    made = batch(classes=4)
    reference = torch.randn(N, 4, generator=torch.Generator().manual_seed(5))
    return made | {"reference_log_prob": reference.log_softmax(-1).gather(-1, made["actions"][:, None]).squeeze(-1)}, reference


def kl_loss(estimator, ratio=False):
    def loss(logits, actions, advantages, reference_log_prob, coef, kl_coef):
        log_prob = logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
        kl = estimator(reference_log_prob - log_prob)
        kl = kl * (log_prob - log_prob.detach()).exp() if ratio else kl
        return sb3(logits, actions, advantages, coef) + kl_coef * kl.mean()

    return loss


def test_k1_as_a_loss():
    """open-instruct PR #535, whose k1 forgot the reference. The KL estimators as losses: k1 pulls nowhere, k3 towards the other KL; TRL's GRPO takes k3."""
    made, reference = kl_batch()
    keep = {"coef": 0.01, "kl_coef": 0.1, "reference": reference}
    assert rules(kl_loss(functional.k1), made, **keep) == ["k1"]
    assert rules(kl_loss(functional.k2), made, **keep) == []
    assert rules(kl_loss(functional.k3), made, **keep) == ["kl_direction"]
    assert rules(kl_loss(functional.k1, ratio=True), made, **keep) == []
    assert rules(kl_loss(functional.k3, ratio=True), made, **keep) == []
    assert rules(kl_loss(lambda r: 0 * r), made, **keep) == ["ignored"]
    assert rules(kl_loss(lambda r: -functional.k2(r)), made, **keep) == ["sign"]


def test_targets_out_of_reach():
    """RLlib's default of -2 for Discrete(2), TRL's 5.0 nats, .98 of the maximum for discrete SAC, -dim(A) of a squashed policy at large means."""
    made = batch(classes=2)
    one = lambda target, made=made: [(f.rule, f.severity) for f in lint(sb3, made, coef=0.1, target=target)]  # noqa: E731
    assert one(-2.0) == one(targets.action_dim(-2)) == one(5.0) == [("target", "fail")]
    assert one(targets.fraction_of_max(0.98)) == [("target", "warn")]
    assert one(targets.fraction_of_max(0.5)) == one(0.3) == []
    sharp = batch(classes=258)
    sharp["logits"] = 8 * sharp["logits"]
    assert one(4.0, sharp) == [("target", "warn")]
    wide = gaussian()
    wide["mean"] = wide["mean"] + 3
    loss = lambda mean, log_std, actions, coef: -coef * functional.tanh_gaussian_entropy(mean, log_std).mean()  # noqa: E731
    assert [f.rule for f in lint(loss, wide, coef=0.1, squashed=True, target=targets.action_dim())] == ["target"]
    assert lint(loss, gaussian(), coef=0.1, squashed=True, target=targets.action_dim()) == []


def test_ignored_flags_unsloth_4445():
    """unsloth #4445, RLlib #49363: a value that is set and never read."""
    config = SimpleNamespace(coef=0.01)
    copied = SimpleNamespace(**vars(config))

    def loss(read):
        def called(logits, actions, advantages, coef):
            config.coef = coef
            return sb3(logits, actions, advantages, read().coef)

        return called

    assert rules(loss(lambda: copied), batch(), coef=0.05) == ["ignored"]
    assert rules(loss(lambda: config), batch(), coef=0.05) == []
    latched = lambda coef, **b: sb3(**b, coef=0.01 if coef else 0.0)  # noqa: E731
    assert "0.05 and 0.1" in evidence(latched, batch(), coef=0.05)
    clamped = lambda coef, **b: sb3(**b, coef=min(coef, 0.06))  # noqa: E731
    assert rules(clamped, batch(), coef=0.05) == ["nonlinear"]
    flag = lambda clip, value_coef, **b: sb3(**b) * (1 + clip)  # noqa: E731
    assert evidence(flag, batch(), coef=0.05, flags={"clip": (0.0, 0.2), "value_coef": (0.5, 1.0)}, skip=["aggregation"]) == (
        "ignored: value_coef: 0.5 and 1.0 give the same loss and the same gradient"
    )


def test_log_probs_in_the_place_of_logits_and_a_term_alone():
    log_probs = {"log_probs": batch()["logits"].log_softmax(-1)}
    entropy = lambda log_probs: -(-(log_probs.exp() * log_probs).sum(-1)).mean()  # noqa: E731
    assert lint(entropy, log_probs, coef=None, skip=["minus_inf"]) == []
    assert rules(lambda log_probs: -entropy(log_probs), log_probs, coef=None) == ["sign"]
    assert rules(lambda log_probs: entropy(log_probs.detach()), log_probs, coef=None) == ["detached"]
