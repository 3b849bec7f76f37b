"""Supervised fine-tuning on demonstrations with a confidence penalty: maximum likelihood plus a controlled entropy bonus, on TRL's SFTTrainer.

Source: Pereyra et al. 2017 (arXiv:1701.06548), eq. 3, there with a constant coefficient of .1. Page: docs/recipes/sft.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from entreg.integrations.trl import attach
from entreg.lm import arithmetic, models, running
from entreg.lm.config import LanguageConfig, check
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Supervised fine-tuning with a confidence penalty, on TRL"


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Supervised fine-tuning of a language model."""

    warm_up: int = 0
    """Batches of demonstrations that a model made on the spot has seen before."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 32
    """Sequences of a micro-batch on one device."""
    learning_rate: float = 0.005
    """Of AdamW, constant."""
    eval_samples: int = 16
    """Samples of each prompt in an evaluation, at temperature 1."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Fine-tune one model; records, checkpoints and the model go to the run's folder."""
    task = check(config, ())
    with running.begun("sft", config, task, run) as begun:
        network, tokenizer = models.load(begun.beginning)
        rows = arithmetic.demonstrations(task, begun.rows, begun.seed)
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(**begun.arguments(), completion_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        attached = attach(trainer, begun.controller, begun.family, **begun.how)
        return running.conduct(begun, trainer, attached.record)
