"""Our term in TRL's trainers against independent arithmetic on plain logits, against TRL's own bonus, and what is refused."""

import functools
from pathlib import Path

import pytest

pytest.importorskip("trl")  # which needs Python 3.11, as tomllib does

import tomllib
import torch
from packaging.requirements import Requirement

from entreg.control import PI, GradientShare, Plateau, TargetEntropy, constant, linear
from entreg.functional import SHANNON, categorical_entropy, clamped_entropy, renyi, top_p_entropy
from entreg.integrations import trl, trl_head
from entreg.integrations.trl import attach
from tests.lm import trainers
from tests.lm.terms import plain_term, predictions, spied

COEF = 0.3
KINDS = ("grpo", "rloo", "dpo", "kto", "sft")


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beginning")
    trainers.model(folder)
    return folder


@pytest.fixture
def make(beginning, tmp_path):
    def made(kind, **settings):
        return trainers.trainer(kind, tmp_path, beginning=beginning, **settings)

    return made


@pytest.mark.parametrize(
    ("kind", "family", "over"),
    [(kind, SHANNON, "token") for kind in KINDS]
    + [("grpo", renyi(2), "token"), ("sft", renyi(0.5), "token"), ("grpo", SHANNON, "trajectory"), ("grpo", renyi(2), "trajectory")],
    ids=lambda value: value if isinstance(value, str) else f"{value.name}({value.order})",
)
def test_the_update_differs_by_the_gradient_of_the_mean_entropy_of_the_window(make, beginning, kind, family, over):
    how = {"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}  # two micro-batches of unequal length
    plain, batches = make(kind, **how), []
    trainers.train(spied(plain, batches))
    controlled = make(kind, **how)
    attached = attach(controlled, COEF, family, over=over)
    trainers.train(controlled)
    lengths = [int(predictions(kind, batch)[2].sum()) for batch in batches]
    assert len(lengths) == 2
    moved = (trainers.weights(plain) - trainers.weights(controlled)).double() / plain.args.learning_rate
    expected = plain_term(kind, trainers.model(beginning), batches, family, over, COEF).double()
    assert (moved - expected).norm() < 2e-4 * expected.norm()
    record = attached.record()
    network = trainers.model(beginning)
    entropies = []
    for batch in batches:
        ids, attention, counted = predictions(kind, batch)
        entropies.append(categorical_entropy(network(input_ids=ids, attention_mask=attention).logits[:, :-1].detach(), SHANNON)[counted])
    assert record["entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5) and record["coef"] == COEF
    assert (record["entropy/family"] == pytest.approx(record["entropy"], rel=1e-5)) == (family == SHANNON)


def test_lengths_of_micro_batches_do_differ(make):
    batches = []
    trainers.train(spied(make("grpo", max_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=4), batches))
    assert batches[0]["completion_mask"].sum() != batches[1]["completion_mask"].sum()


@pytest.mark.parametrize("coef", [0.3, -0.2])
def test_grpo_equals_trls_own_static_bonus(make, coef):
    own, ours = make("grpo", entropy_coef=coef, max_steps=3), make("grpo", max_steps=3)
    attach(ours, coef)
    for one in (own, ours):
        trainers.train(one)
    assert (trainers.weights(own) - trainers.weights(ours)).abs().max() < 1e-6
    plain = make("grpo", max_steps=3)
    trainers.train(plain)
    assert (trainers.weights(own) - trainers.weights(plain)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["grpo", "sft", "dpo"])
def test_accumulated_micro_batches_are_the_full_batch(make, kind):
    whole, parts = make(kind), make(kind, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    results = []
    for one in (whole, parts):
        attached = attach(one, TargetEntropy(1.0, lr=0.5, init_coef=0.3))
        trainers.train(one)
        results.append((trainers.weights(one), attached.regularizer.coef))
    assert (results[0][0] - results[1][0]).abs().max() < 2e-6
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6) and results[0][1] != 0.3


def test_a_coefficient_that_starts_at_zero_is_not_latched_off(make):
    """TRL decides once, at the start, whether entropy gets a gradient."""
    plain, rising = make("grpo"), make("grpo")
    attached = attach(rising, linear(0.0, 0.5, steps=1))
    for one in (plain, rising):
        trainers.train(one)
    coefs = [line["entreg/coef"] for line in rising.state.log_history if "entreg/coef" in line]
    assert coefs == [0.0, 0.5] == [0.0, attached.record()["coef"]]
    assert (trainers.weights(plain) - trainers.weights(rising)).norm() > 1e-4


def test_a_coefficient_of_zero_changes_nothing(make):
    plain, zero = make("grpo"), make("grpo")
    attach(zero, 0.0)
    for one in (plain, zero):
        trainers.train(one)
    assert torch.equal(trainers.weights(plain), trainers.weights(zero))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(("loss_type", "corrected"), [("grpo", True), ("bnpo", False), ("dr_grpo", True), ("dapo", False)])
def test_shares_are_those_of_the_gradients_of_the_logits(make, beginning, loss_type, corrected, window):
    how = {"per_device_train_batch_size": 8 // window, "gradient_accumulation_steps": window}
    one, batches = make("grpo", max_steps=1, beta=0.5, loss_type=loss_type, use_bias_correction_kl=corrected, **how), []
    reference = one.ref_model.get_input_embeddings().weight
    with torch.no_grad():  # a policy that is not the reference
        reference.add_(0.1 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)))
    attached = attach(one, COEF, renyi(2), shares=True)
    trainers.train(spied(one, batches))
    total, batch = sum(int(predictions("grpo", one)[2].sum()) for one in batches), batches[0]  # measured on the window's first micro-batch
    ids, attention, counted = predictions("grpo", batch)
    logits = trainers.model(beginning)(input_ids=ids, attention_mask=attention).logits[:, :-1]
    z = logits.detach().double()[counted].requires_grad_()
    log_prob = z.log_softmax(-1).gather(-1, ids[:, 1:][counted][:, None])[:, 0]
    rows = counted.nonzero()[:, 0]
    weights = {"grpo": 1 / counted.sum(1)[rows] / len(ids), "bnpo": 1 / len(rows), "dr_grpo": 1 / (len(ids) * one.max_completion_length)}
    weight = 1 / total if loss_type == "dapo" else weights[loss_type] / window
    r = batch["ref_per_token_logps"][batch["completion_mask"].bool()].double() - log_prob
    ratio = (log_prob - log_prob.detach()).exp()
    parts = {
        "task": -(ratio * batch["advantages"][rows] * weight).sum(),
        "kl": 0.5 * ((ratio if corrected else 1) * (r.exp() - r - 1) * weight).sum(),
        "entropy": -COEF * categorical_entropy(z, renyi(2)).sum() / total,
    }
    norms = {name: torch.autograd.grad(loss, z, retain_graph=True)[0].norm().item() for name, loss in parts.items()}
    record = attached.record()
    assert record["grad_share"] == pytest.approx(norms["entropy"] / (norms["entropy"] + norms["task"]), rel=1e-4)
    assert record["grad_share/kl"] == pytest.approx(norms["kl"] / (norms["kl"] + norms["task"]), rel=1e-4)
    assert 0.01 < record["grad_share/kl"] < 0.99


def test_who_drives_entropy_is_its_slope_along_each_tokens_own_policy_gradient(make, beginning):
    one, batches = make("grpo", max_steps=1), []
    attached = attach(one, COEF, shares=True)
    trainers.train(spied(one, batches))
    (batch,) = batches
    ids, attention, counted = predictions("grpo", batch)
    z = trainers.model(beginning)(input_ids=ids, attention_mask=attention).logits[:, :-1].detach().double()[counted]
    rows, tokens = counted.nonzero()[:, 0], ids[:, 1:][counted]
    advantage, log_p = batch["advantages"][rows].double(), z.log_softmax(-1)
    step = 1e-4 * advantage[:, None] * (torch.nn.functional.one_hot(tokens, z.shape[1]) - log_p.exp())
    drift = (categorical_entropy(z + step) - categorical_entropy(z - step)) / 2e-4
    record, drive = attached.record(), attached.drive
    assert record["entropy/drift"] == pytest.approx(drift.mean().item(), rel=1e-3)
    pairs = torch.stack([advantage, log_p.gather(-1, tokens[:, None])[:, 0]])
    assert record["entropy/covariance"] == pytest.approx(torch.cov(pairs, correction=0)[0, 1].item(), rel=1e-3)
    for found, groups in ((drive.tokens, tokens), (drive.completions, rows)):
        totals = {group: drift[groups == group].sum().item() for group in groups.unique().tolist()}
        assert found[0].group == min(totals, key=totals.get) and found[0].total == pytest.approx(min(totals.values()), rel=1e-3)
        assert found[0].items == int((groups == found[0].group).sum())


def test_a_controller_that_reads_the_share_gets_it(make):
    one = make("sft")
    attached = attach(one, GradientShare(0.2, lr=1.0, start=0.01))
    trainers.train(one)
    shares = [line["entreg/grad_share"] for line in one.state.log_history if "entreg/grad_share" in line]
    assert abs(shares[1] - 0.2) < 0.02 < abs(shares[0] - 0.2) and attached.shares


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_answers_that_are_trained_on_again_keep_their_reward(make, kind):
    """TRL logs a reward only in the step that draws answers, and forgets it with that step's log."""
    one, seen = make(kind, num_iterations=2, max_steps=4, beta=0.1 if kind == "rloo" else 0.0), []
    attached = attach(one, Plateau(constant(0.1), 100))
    inner = attached.regularizer.step
    attached.regularizer.step = lambda **signals: seen.append(signals) or inner(**signals)
    trainers.train(one)
    rewards = [line["reward"] for line in one.state.log_history if "reward" in line]
    assert len(rewards) == 2 and [step["reward"] for step in seen] == pytest.approx([rewards[0]] * 2 + [rewards[1]] * 2, rel=1e-3)
    assert kind == "grpo" or all("kl" in step for step in seen)


def test_controllers_see_the_kl_of_the_whole_window(make):
    one, seen = make("grpo", max_steps=2, beta=0.1, learning_rate=0.1, gradient_accumulation_steps=2, per_device_train_batch_size=4), []
    attached = attach(one, Plateau(constant(0.1), 100))
    inner = attached.regularizer.step
    attached.regularizer.step = lambda **signals: seen.append((signals["kl"], list(one._metrics["train"]["kl"]))) or inner(**signals)
    trainers.train(one)
    kl, measured = seen[-1]
    assert len(measured) == 2 and measured[0] != measured[1] and kl == pytest.approx(sum(measured) / 2)


def test_resumed_training_is_uninterrupted(make, tmp_path):
    controller = TargetEntropy(2.0, lr=0.3, init_coef=0.01)
    how = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make("grpo", **how)
    expected = attach(whole, controller)
    trainers.train(whole)
    again = make("grpo", **how)
    attached = attach(again, controller)
    trainers.train(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert attached.regularizer.state_dict() == expected.regularizer.state_dict()
    assert torch.equal(trainers.weights(whole), trainers.weights(again))


def test_a_checkpoint_without_a_controller_is_no_place_to_go_on_from(make, tmp_path):
    trainers.train(make("sft", save_strategy="steps", save_steps=1))
    one = make("sft", max_steps=4)
    attach(one, 0.1)
    with pytest.raises(ValueError, match="checkpoint of step 2 holds no controller"):
        trainers.train(one, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("measure", "entropy"),
    [
        (trl_head.Measure(renyi(2)), lambda z: categorical_entropy(z, renyi(2))),
        (trl_head.Measure(top_p=0.8), lambda z: top_p_entropy(z, 0.8)),
        (trl_head.Measure(renyi(2), clamp=0.3), lambda z: clamped_entropy(z, 0.3, renyi(2))),
    ],
)
@pytest.mark.parametrize(("scale", "softcap", "biased"), [(1.0, None, False), (0.5, 3.0, True), (2.0, None, True)])
def test_entropies_of_a_family_are_those_of_the_scaled_capped_and_cooled_logits(scale, softcap, biased, measure, entropy):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 5), (11, 5), (11,)))
    given, how = bias if biased else None, {"temperature": 0.7, "softcap": softcap, "scale": scale}
    ours = trl_head.entropies(hidden, weight, given, measure, how)
    plain = entropy(trl_head.logits_of(hidden, weight, given, how))
    torch.testing.assert_close(ours, plain)
    inputs, upstream = [hidden, weight, *([bias] if biased else [])], torch.randn(7, generator=generator)
    torch.testing.assert_close(*(torch.autograd.grad(one, inputs, upstream) for one in (ours, plain)))


def test_a_truncated_entropy_is_what_the_controller_sees_and_its_gradient_what_the_share_is_of(make, beginning):
    one, batches = make("sft", max_steps=1), []
    attached = attach(one, COEF, clamp=0.9, shares=True)
    trainers.train(spied(one, batches))
    ids, attention, counted = predictions("sft", batches[0])
    z = trainers.model(beginning)(input_ids=ids, attention_mask=attention).logits[:, :-1][counted].detach().double().requires_grad_()
    record, entropy = attached.record(), clamped_entropy(z, 0.9)
    assert record["entropy/family"] == pytest.approx(entropy.mean().item(), rel=1e-5) and record["entropy/family"] < record["entropy"] - 0.1
    parts = (-COEF * entropy.mean(), -z.log_softmax(-1).gather(-1, ids[:, 1:][counted][:, None]).mean())
    bonus, task = (torch.autograd.grad(part, z, retain_graph=True)[0].norm().item() for part in parts)
    assert record["grad_share"] == pytest.approx(bonus / (bonus + task), rel=1e-3)


def test_evaluation_is_left_alone(make):
    one = make("sft", max_steps=1)
    before = one.evaluate(one.train_dataset)["eval_loss"]
    attached = attach(one, 0.3)
    assert one.evaluate(one.train_dataset)["eval_loss"] == before and attached.record() == {}


# -------------------------------------------------------------------- refused before training


def unsloth(one):
    one.__class__ = type("UnslothSFTTrainer", (type(one),), {})


def patched_forward(one):
    one.model.forward = functools.partial(one.model.forward)


def two_gpus(one):
    one.args._n_gpu = 2


def smoothed(one):
    one.label_smoother = object()


@pytest.mark.parametrize(
    ("kind", "settings", "change", "how", "message"),
    [
        ("sft", {}, unsloth, {}, "patched by Unsloth"),
        ("sft", {}, patched_forward, {}, "not TRL's fused LM head"),
        ("sft", {}, smoothed, {}, "label_smoothing_factor"),
        ("sft", {}, two_gpus, {}, "2 GPUs in one process"),
        ("sft", {}, None, {"over": "trajectory"}, "legal is 'token'"),
        ("sft", {}, None, {"controller": TargetEntropy(5.6)}, r"its target is 5.6; legal is 0 <= target < 5.55"),
        ("sft", {}, None, {"controller": Plateau(constant(0.1), 3)}, "reads reward; SFTTrainer gives grad_share, progress"),
        ("sft", {}, None, {"top_p": 0.5, "clamp": 0.5}, "clamp is 0.5 beside top_p 0.5"),
        ("sft", {}, None, {"controller": TargetEntropy(5.0), "top_p": 0.5}, r"its target is 5; legal is 0 <= target < 4.859"),
        ("sft", {"max_steps": -1}, None, {"controller": linear(0.1, 0.0)}, "where max_steps is set"),
        ("grpo", {"entropy_coef": 0.01}, None, {}, "TRL's own bonus is on"),
        ("grpo", {"use_adaptive_entropy": True}, None, {}, "TRL's own bonus is on"),
        ("grpo", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1}, None, {}, "steps_per_generation=1"),
    ],
)  # fmt: skip
def test_refused_before_training(make, kind, settings, change, how, message):
    one = make(kind, **settings)
    if change is not None:
        change(one)
    compute_loss = one.compute_loss
    how = dict(how)
    with pytest.raises(ValueError, match=message):
        attach(one, how.pop("controller", 0.1), **how)
    assert one.compute_loss == compute_loss and len(one.callback_handler.callbacks) == len(make(kind, **settings).callback_handler.callbacks)


def test_what_a_tool_has_written_does_not_count():
    completion, tool = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 0, 1, 1]])
    assert trl._window_mask({"completion_mask": completion}).tolist() == [[True, True, True, False]]
    assert trl._window_mask({"completion_mask": completion, "tool_mask": tool}).tolist() == [[True, False, True, False]]


def test_only_one_controller(make):
    one = make("sft")
    attach(one, PI(1.0, 0.1, 0.01, (-1.0, 1.0)))
    with pytest.raises(ValueError, match="attached already"):
        attach(one, 0.1)


def test_another_version_and_another_class_are_refused(make, monkeypatch):
    with pytest.raises(ValueError, match="trainer: object; legal are TRL's GRPOTrainer"):
        attach(object(), 0.1)
    monkeypatch.setattr(trl.trl, "__version__", "1.17.0")
    with pytest.raises(ValueError, match=r"trl: version 1.17.0; legal is 1.16"):
        attach(make("sft"), 0.1)


def test_the_extra_installs_a_version_that_is_not_refused():
    """Of what `pip install 'entreg[llm]'` may choose, nothing is beyond the seams that are known."""
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (wanted,) = (one for one in map(Requirement, extras["llm"]) if one.name == "trl")
    versions = ["1.15.0", "1.15.9", "1.16.0", "1.16.9", "1.17.0", "2.0.0"]
    assert list(wanted.specifier.filter(versions)) == [one for one in versions if one.startswith(trl.VERSIONS)] == ["1.16.0", "1.16.9"]


def test_a_loss_without_the_fused_head_is_an_error_in_the_first_step(make):
    one = make("sft")
    attached = attach(one, 0.1)
    attached._compute_loss = lambda model, inputs, **how: model(**inputs).loss
    with pytest.raises(RuntimeError, match="took 0 differentiable passes"):
        trainers.train(one)
