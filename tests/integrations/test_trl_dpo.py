"""The entropy weight of preference optimisation: exactly TRL's DPO where it equals beta, `functional.preference` elsewhere."""

import pytest

pytest.importorskip("trl")

import torch

from entreg.functional.sequences import preference
from entreg.integrations.trl_dpo import set_entropy_weight
from tests.lm import trainers

BETA = 0.3


def trained(folder, weight, losses=None, **settings):
    one = trainers.trainer("dpo", folder, beta=BETA, **settings)
    with torch.no_grad():
        reference = one.ref_model.get_input_embeddings().weight
        reference.add_(0.1 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)))
    if weight is not None:
        set_entropy_weight(one, weight)
    inner = one.compute_loss

    def compute_loss(model, inputs, **how):
        loss = inner(model, inputs, **how)
        if losses is not None:
            losses.append((dict(inputs), loss.detach(), one.ref_model))
        return loss

    one.compute_loss = compute_loss
    trainers.train(one)
    return trainers.weights(one)


def test_weight_equal_to_beta_is_trls_dpo_bit_for_bit_and_another_is_not(tmp_path):
    plain, same, other = (trained(tmp_path, weight) for weight in (None, BETA, 2 * BETA))
    assert torch.equal(plain, same) and (plain - other).abs().max() > 1e-5


@pytest.mark.parametrize("weight", [0.1, 0.9])
def test_another_weight_is_the_preference_loss_of_plain_log_probs(tmp_path, weight):
    losses = []
    trained(tmp_path, weight, losses, max_steps=1)
    ((inputs, loss, reference),) = losses
    sums = []
    for network in (trainers.model(tmp_path / "start"), reference):
        logits = network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits if network is not reference else None
        if network is reference:
            with torch.no_grad():
                hidden = reference.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
                logits = reference.lm_head(hidden)
        log_prob = logits[:, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        sums.append((log_prob * inputs["completion_mask"][:, 1:]).sum(1))
    (chosen, rejected), (reference_chosen, reference_rejected) = (one.chunk(2) for one in sums)
    expected = preference(chosen, rejected, reference_chosen, reference_rejected, BETA, weight).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "weight", "message"),
    [
        ("sft", {}, 0.1, "trainer: SFTTrainer"),
        ("dpo", {}, 0.0, "coef: got 0.0"),
        ("dpo", {"loss_type": ["ipo"]}, 0.5, "loss_type: ipo"),
        ("dpo", {"precompute_ref_log_probs": True}, 0.5, "ref_model: there is none of its own"),
    ],
)
def test_what_is_refused(tmp_path, kind, settings, weight, message):
    one = trainers.trainer(kind, tmp_path, **settings)
    with pytest.raises(ValueError, match=message + ".*legal"):
        set_entropy_weight(one, weight)
