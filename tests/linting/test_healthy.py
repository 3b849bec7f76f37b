"""Where `lint` must be silent: losses of the field, our own over random batches, the hosts themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from entreg import functional
from entreg.functional import SHANNON, min_entropy, renyi, sequences, tsallis
from entreg.linting import lint
from tests.linting.losses import V, batch, cleanrl, evidence, gaussian, masked_mean, ours, rules, sb3, trl


def tokens(logits, actions, advantages, mask, coef):
    """The blocked kernels, which compute in float32."""
    stats = functional.token_stats(logits.flatten(0, 1), actions.flatten())
    log_prob, entropy = (part.view(actions.shape) for part in (stats.log_prob, stats.entropy))
    return masked_mean(-advantages * log_prob, mask) - coef * masked_mean(entropy, mask)


def trajectories(logits, actions, advantages, mask, coef):
    """The entropy of whole sequences: its second term is one of samples, and zero on average where logits do not depend on prefixes."""
    log_prob, entropy = functional.categorical_stats(logits, actions)
    baseline = sequences.others_mean(sequences.entropy_to_go(entropy, mask), mask)
    bonus = sequences.sequence_entropy_loss(log_prob, entropy, mask, baseline=baseline)
    return masked_mean(-advantages * log_prob, mask) + coef * masked_mean(bonus, mask)


@pytest.mark.parametrize("loss", [sb3, cleanrl, ours])
def test_losses_of_steps_are_healthy(loss):
    assert lint(loss, batch(), coef=0.01) == []


@pytest.mark.parametrize("loss", [trl, ours, tokens, trajectories])
@pytest.mark.parametrize("ragged", [True, False])
def test_losses_of_tokens_are_healthy(loss, ragged):
    assert lint(loss, batch(sequences=True, ragged=ragged), coef=0.01) == []


FAMILIES = [SHANNON, renyi(0.5), renyi(2), tsallis(0.5), tsallis(2), min_entropy]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(FAMILIES),
    st.sampled_from(["maximize", "minimize"]),
    st.floats(1e-4, 10),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_our_own_losses_give_no_finding(seed, family, sense, coef, sequences, dtype):
    made = batch(seed, sequences=sequences, ragged=seed % 2 == 0, dtype=dtype)
    made["support"] = torch.rand(made["logits"].shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    made["support"].scatter_(-1, made["actions"][..., None], True)
    made["support"][..., :2] = True

    def loss(logits, coef, **others):
        return ours(logits, coef=coef, family=family, sense=sense, **others)

    assert lint(loss, made, coef=coef, family=family, sense=sense, seed=seed) == []


def test_nothing_of_the_callers_changes_and_the_same_seed_gives_the_same_findings():
    made, state = batch(), torch.get_rng_state()
    before = {key: value.clone() for key, value in made.items()}
    loss = lambda logits, coef, **_: coef * Categorical(logits=logits).log_prob(Categorical(logits=logits).sample()).mean()  # noqa: E731
    assert lint(loss, made, coef=0.1) == lint(loss, made, coef=0.1)
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(made[key], before[key]) for key in made)


def test_a_loss_that_is_float32_inside_is_probed_in_float32():
    network = torch.nn.Linear(V, V)
    torch.nn.init.eye_(network.weight)
    torch.nn.init.zeros_(network.bias)
    logits = {"logits": batch()["logits"]}
    at = lambda temperature: lambda logits, coef: -coef * Categorical(logits=network(logits) / temperature).entropy().mean()  # noqa: E731
    assert rules(at(1), logits, coef=0.1) == []
    assert rules(at(2), logits, coef=0.1) == ["temperature"]
    # torch's own validation raises; where somebody has turned it off, as some hosts do, the loss is NaN
    assert evidence(at(1), logits, coef=0.1, skip=()).startswith("minus_inf: with one class at -inf in each item the loss ")


@pytest.mark.slow
def test_trl_in_person():
    """TRL #7221 in 1.16."""
    trl_utils = pytest.importorskip("trl.trainer.utils")
    of_trl = lambda logits, coef: -coef * trl_utils.entropy_from_logits(logits).mean()  # noqa: E731
    assert rules(of_trl, {"logits": batch()["logits"]}, coef=0.01, skip=()) == ["minus_inf"]


def test_stable_baselines3_in_person():
    """Categorical and Gaussian distributions are right, PPO on the squashed one pushes nowhere."""
    hosts = pytest.importorskip("stable_baselines3.common.distributions")
    wide, categorical = gaussian(), hosts.CategoricalDistribution(V)
    diagonal, squashed = hosts.DiagGaussianDistribution(3), hosts.SquashedDiagGaussianDistribution(3)
    entropy = lambda logits, coef: -coef * categorical.proba_distribution(logits).entropy().mean()  # noqa: E731
    assert lint(entropy, {"logits": batch()["logits"]}, coef=0.01) == []
    plain = lambda mean, log_std, actions, coef: -coef * diagonal.proba_distribution(mean, log_std).entropy().mean()  # noqa: E731
    assert lint(plain, wide, coef=0.01) == []
    assert squashed.proba_distribution(wide["mean"], wide["log_std"]).entropy() is None
    fallback = lambda mean, log_std, actions, coef: coef * squashed.proba_distribution(mean, log_std).log_prob(actions).mean()  # noqa: E731
    assert rules(fallback, wide, coef=0.01, squashed=True) == ["sampled"]
