"""Direct preference optimisation with one entropy weight: DPO, H-DPO and SPL, and an optional bonus on the entropy of tokens, on TRL's DPOTrainer.

    loss = -log sigmoid( c (log p_w - log p_l) - beta (log p_ref,w - log p_ref,l) )        optimum  p ~ p_ref^(beta/c) exp(reward / c)

`--entropy-weight` c is that of the whole answers' entropy in the objective; c = beta is DPO, which is the default. `--coef` weighs the tokens' entropies along
the answers of the pairs, through the fused head. Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; Omura et al. 2024 (H-DPO, arXiv:2411.07595), eq. 9.
Page: docs/recipes/dpo.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from entreg.integrations.trl import attach
from entreg.integrations.trl_dpo import set_entropy_weight
from entreg.lm import arithmetic, models, running
from entreg.lm.config import LanguageConfig, check
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Direct preference optimisation, H-DPO and SPL of a language model, on TRL"


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Direct preference optimisation of a language model."""

    beta: float = 0.1
    """Weight of the reference (the starting model)."""
    entropy_weight: float | None = None
    """Weight of the answers' entropy; none: beta, which is DPO. Below beta H-DPO (sharper), above it SPL (more spread)."""
    steps: int = 100
    """Optimizer steps."""
    learning_rate: float = 0.0003
    """Of AdamW, constant."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train one policy on preference pairs; records, checkpoints and the model go to the run's folder."""
    task = check(config, ())
    weight = config.beta if config.entropy_weight is None else config.entropy_weight
    for name, value in (("beta", config.beta), ("entropy_weight", weight)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; legal are finite numbers above 0")
    with running.begun("dpo", config, task, run) as begun:
        network, tokenizer = models.load(begun.beginning)
        trainer = DPOTrainer(
            model=network,
            args=DPOConfig(**begun.arguments(), beta=config.beta),
            train_dataset=Dataset.from_list(arithmetic.pairs(task, begun.rows, begun.seed)),
            processing_class=tokenizer,
        )
        set_entropy_weight(trainer, weight)
        attached = attach(trainer, begun.controller, begun.family, **begun.how)
        return running.conduct(begun, trainer, attached.record)
