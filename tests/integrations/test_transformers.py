"""Our term in Hugging Face's Trainer for classification: gradients against plain torch, accumulation, resumed training, and what is refused."""

import math

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
import transformers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertLMHeadModel, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from entreg.control import GradientShare, TargetEntropy, linear
from entreg.functional import SHANNON, categorical_entropy, renyi
from entreg.integrations import transformers as ours
from entreg.integrations.transformers import attach
from entreg.targets import fraction_of_max
from tests.lm.terms import spied

logging.set_verbosity_error()
logging.disable_progress_bar()
COEF, CLASSES = 0.3, 3
TINY = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 8}
TINY |= {"initializer_range": 0.5, "num_labels": CLASSES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KINDS = {"sequence": BertForSequenceClassification, "token": BertForTokenClassification, "language": BertLMHeadModel}


def network(kind, **config):
    set_seed(0)
    return KINDS[kind](BertConfig(**TINY, is_decoder=kind == "language", **config))


def rows(kind, count=32):
    made = torch.Generator().manual_seed(2)
    ids = torch.randint(11, (count, 6), generator=made)
    labels = torch.randint(CLASSES, ids.shape if kind == "token" else (count,), generator=made)
    if kind == "token":
        labels[torch.arange(6)[None] >= torch.randint(1, 6, (count, 1), generator=made)] = -100  # micro-batches of unequal length
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def make(folder, kind="sequence", model=None, **how):
    how = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
           "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 0, **how}  # fmt: skip
    return Trainer(model or network(kind), TrainingArguments(str(folder), **how), train_dataset=rows(kind))


def train(trainer, **how):
    trainer.train(**how)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("kind", "family", "sense"),
    [("sequence", SHANNON, "maximize"), ("token", SHANNON, "minimize"), ("token", renyi(2), "maximize")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_update_differs_by_the_gradient_of_the_mean_entropy_of_the_window(tmp_path, kind, family, sense):
    batches, how = [], {"max_steps": 1, "gradient_accumulation_steps": 2}
    plain = train(spied(make(tmp_path, kind, **how), batches))
    controlled = make(tmp_path, kind, **how)
    attached = attach(controlled, COEF, family, sense=sense)
    moved = (plain - train(controlled)) / 0.1
    model = network(kind)
    logits = torch.cat([model(input_ids=batch["input_ids"]).logits[batch["labels"] != -100] for batch in batches])
    loss = (-COEF if sense == "maximize" else COEF) * categorical_entropy(logits, family).mean()
    loss.backward()
    expected = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()])
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    record = attached.record()
    assert record["entropy"] == pytest.approx(float(categorical_entropy(logits).mean().detach()), rel=1e-5) and record["coef"] == COEF
    assert record.get("entropy/family", record["entropy"]) == pytest.approx(float(categorical_entropy(logits, family).mean().detach()), rel=1e-5)
    assert len({int((batch["labels"] != -100).sum()) for batch in batches}) == (2 if kind == "token" else 1)


def test_the_marginal_is_that_of_the_micro_batches(tmp_path):
    batches = []
    plain = train(spied(make(tmp_path, max_steps=1, gradient_accumulation_steps=2), batches))
    controlled = make(tmp_path, max_steps=1, gradient_accumulation_steps=2)
    attached = attach(controlled, COEF, of="marginal")
    moved = (plain - train(controlled)) / 0.1
    model = network("sequence")
    means = [model(input_ids=batch["input_ids"]).logits.softmax(-1).mean(0) for batch in batches]
    entropy = -sum((p * p.log()).sum() for p in means) / 2
    (-COEF * entropy).backward()
    expected = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()])
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    assert attached.record()["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-5)


def test_a_schedule_by_step_and_its_lines_in_the_log(tmp_path):
    trainer = make(tmp_path, max_steps=4)
    trainer.evaluate(rows("sequence", 8))
    attach(trainer, linear(1.0, 0.0))
    train(trainer)
    trainer.evaluate(rows("sequence", 8))
    lines = trainer.state.log_history
    assert [line["entreg/coef"] for line in lines if "loss" in line] == [1.0, 0.75, 0.5, 0.25]
    assert all(0 < line["entreg/entropy"] < math.log(CLASSES) for line in lines if "loss" in line)
    assert not any("entreg/coef" in line for line in lines if "loss" not in line)


def test_a_target_by_name_and_its_direction(tmp_path):
    trainer = make(tmp_path)
    attached = attach(trainer, TargetEntropy(fraction_of_max(0.1), init_coef=0.1))
    train(trainer)
    assert attached.regularizer.coef < 0.1 and attached.record()["entropy/target"] == pytest.approx(0.1 * math.log(CLASSES))


def test_resumed_training_is_uninterrupted(tmp_path):
    rule, how = TargetEntropy(0.5, lr=0.3, init_coef=0.01), {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path, **how)
    expected = attach(whole, rule)
    weights = train(whole)
    again = make(tmp_path, **how)
    attached = attach(again, rule)
    assert torch.equal(weights, train(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2")))
    assert attached.regularizer.state_dict() == expected.regularizer.state_dict() and attached.regularizer.coef != 0.01


def test_a_checkpoint_without_a_controller_is_no_place_to_go_on_from(tmp_path):
    train(make(tmp_path, save_strategy="steps", save_steps=2))
    trainer = make(tmp_path, max_steps=4)
    attach(trainer, 0.1)
    with pytest.raises(ValueError, match="checkpoint of step 2 holds no controller"):
        train(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_evaluation_is_left_alone(tmp_path):
    trainer = make(tmp_path)
    before = trainer.evaluate(rows("sequence"))["eval_loss"]
    attached = attach(trainer, COEF)
    assert trainer.evaluate(rows("sequence"))["eval_loss"] == before and attached.record() == {}


class Mute(nn.Module):
    """Gives a loss, and logits that are cut off."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, input_ids, labels=None):
        logits = self.layer(input_ids.float())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits.detach()}


def test_logits_without_gradient_are_an_error_in_the_first_step(tmp_path):
    trainer = make(tmp_path, model=Mute())
    attach(trainer, COEF)
    with pytest.raises(RuntimeError, match="without which the term would be ignored"):
        train(trainer)


@pytest.mark.parametrize(
    ("kind", "config", "how", "message"),
    [
        ("language", {}, {}, "predicts next tokens; legal are classifiers"),
        ("sequence", {"problem_type": "regression"}, {}, "problem_type='regression'; legal is one label of several classes"),
        ("sequence", {"problem_type": "multi_label_classification"}, {}, "legal is one label of several classes"),
        ("sequence", {}, {"of": "joint"}, "of='joint'; legal: 'conditional' or 'marginal'"),
        ("sequence", {}, {"controller": TargetEntropy(1.2)}, r"its target is 1.2; legal is 0 <= target < 1.0986"),
        ("sequence", {}, {"controller": GradientShare(0.1)}, "reads grad_share; Trainer gives progress"),
    ],
)  # fmt: skip
def test_refused_before_training(tmp_path, kind, config, how, message):
    trainer = make(tmp_path, kind, network(kind, **config))
    compute_loss = trainer.compute_loss
    with pytest.raises(ValueError, match=message):
        attach(trainer, **{"controller": 0.1, **how})
    assert trainer.compute_loss == compute_loss


def test_open_schedules_another_class_version_and_a_second_controller(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="where max_steps is set"):
        attach(make(tmp_path, max_steps=-1), linear(0.1, 0.0))
    with pytest.raises(ValueError, match="trainer: object; legal is transformers' Trainer"):
        attach(object(), 0.1)
    trainer = make(tmp_path)
    attach(trainer, 0.1)
    with pytest.raises(ValueError, match="attached already"):
        attach(trainer, 0.1)
    monkeypatch.setattr(ours, "VERSIONS", ("6.0.",))
    with pytest.raises(ValueError, match=rf"transformers: version {transformers.__version__}; legal is 6.0.\*"):
        attach(make(tmp_path), 0.1)
