"""Supervised fine-tuning on demonstrations with a confidence penalty: maximum likelihood plus a controlled entropy bonus, on TRL's SFTTrainer.

Source: Pereyra et al. 2017 (arXiv:1701.06548), eq. 3, there with a constant coefficient of .1. Page: docs/recipes/sft.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from entreg import spelling
from entreg.integrations.trl import attach
from entreg.lm import arithmetic, models, running, sampling, start
from entreg.lm.config import LanguageConfig, check, controller
from entreg.rl.ranks import here
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Supervised fine-tuning with a confidence penalty, on TRL"


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Supervised fine-tuning of a language model."""

    warm_up: int = 0
    """Batches of demonstrations that a model made on the spot has seen before."""
    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 32
    """Sequences of a micro-batch on one device."""
    learning_rate: float = 0.01
    """Of AdamW, constant."""
    eval_samples: int = 16
    """Samples of each prompt in an evaluation, at temperature 1."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Fine-tune one model; records, checkpoints and the model go to the run's folder."""
    task = check(config, ())
    run = run if run is not None else Run()
    settings = run.settings
    torch.set_num_threads(settings.threads)
    steps = 2 if settings.dry_run else config.steps
    members = [{"seed": settings.seed, "coef": config.coef, "family": config.family, "controller": spelling.spell(controller(config, steps))}]
    run.start("sft", config.task, config, members=members, total=steps)
    with run, running.quiet():
        folder = Path(here().first(str(run.folder.absolute())))
        network, tokenizer = models.load(start.prepared(config.model, task, run.settings.seed, folder / "start", steps=config.warm_up))
        rows = arithmetic.demonstrations(task, config.batch_size * config.accumulation * steps, run.settings.seed)
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(**running.arguments(folder, run, steps, config), completion_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        attached = attach(trainer, controller(config, steps), spelling.parse_family(config.family), shares=config.shares)
        judge = sampling.judging(task, tokenizer, config.eval_samples, settings.seed)
        return running.conduct(run, trainer, attached.record, judge, folder)
