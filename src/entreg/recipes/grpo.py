"""Group-relative policy optimisation with controlled entropy, on TRL's GRPOTrainer.

    loss = clipped policy gradient of group-relative advantages  +  beta KL(policy || reference)  -  coef entropy

The KL anchors where the policy is, entropy keeps its spread: `grad_share/kl` and `grad_share` say how strongly each pulls.
Source: Shao et al. 2024 (arXiv:2402.03300), eq. 3 and 4; normalised over all tokens as in DAPO (Yu et al. 2025, arXiv:2503.14476). Page: docs/recipes/grpo.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from entreg.integrations.trl import attach
from entreg.lm import arithmetic, models, running
from entreg.lm.config import LanguageConfig, check, check_group
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Group-relative policy optimisation of a language model, on TRL"


@dataclass(frozen=True)
class Config(LanguageConfig):
    """GRPO of a language model on answers that can be checked; the defaults are for the tiny model that is made on the spot."""

    warm_up: int = 1000
    """Batches of demonstrations that a model made on the spot has seen."""
    batch_size: int = 256
    """Answers of a micro-batch on one device."""
    learning_rate: float = 0.0015
    """Of AdamW, constant."""
    over: Literal["token", "trajectory"] = "token"
    """token: the entropy of each token. trajectory: of whole answers, through the choice of prefixes too."""
    group: int = 16
    """Answers drawn for a prompt, whose rewards are compared."""
    beta: float = 0.0
    """Weight of the KL to the starting model."""
    clip: float = 0.2
    """How far a token's probability ratio may fall below 1."""
    clip_high: float = 0.2
    """How far it may rise above 1; .28 is DAPO's."""
    top_entropy: float = 1.0
    """Share of the tokens, those with the highest entropy, that the policy gradient is restricted to; .2 is "80/20"."""
    iterations: int = 1
    """Optimizer steps on each batch of answers."""
    temperature: float = 1.0
    """Of sampling, and of the policy whose entropy is controlled."""


def check_grpo(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    check_group(config.group, config.batch_size)
    if not 0 <= config.beta < float("inf"):
        raise ValueError(f"beta is {config.beta}; legal are finite numbers from 0")
    for name, most in (("clip", 1.0), ("clip_high", float("inf"))):
        if not 0 <= getattr(config, name) <= most:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are numbers from 0{' to 1' if most == 1 else ''}")
    if not 0 < config.top_entropy <= 1:
        raise ValueError(f"top_entropy is {config.top_entropy}; legal is 0 < top_entropy <= 1")
    if config.iterations < 1:
        raise ValueError(f"iterations is {config.iterations}; legal are integers from 1")
    if not 0 < config.temperature < float("inf"):
        raise ValueError(f"temperature is {config.temperature}; legal are finite numbers above 0")


def train(config: Config, run: Run | None = None) -> Summary:
    """Train one policy; records, checkpoints and the model go to the run's folder."""
    task = check(config, ("reward", "kl") if config.beta else ("reward",))
    check_grpo(config)
    with running.begun("grpo", config, task, run) as begun:
        network, tokenizer = models.load(begun.beginning)
        trainer = GRPOTrainer(
            model=network,
            reward_funcs=arithmetic.reward(task),
            args=GRPOConfig(
                **begun.arguments(),
                num_generations=config.group,
                num_iterations=config.iterations,
                max_completion_length=arithmetic.WIDEST + 1,
                beta=config.beta,
                epsilon=config.clip,
                epsilon_high=config.clip_high,
                top_entropy_quantile=config.top_entropy,
                temperature=config.temperature,
                top_k=0,
            ),
            train_dataset=Dataset.from_list(arithmetic.questions(task, begun.rows)),
            processing_class=tokenizer,
        )
        attached = attach(trainer, begun.controller, begun.family, over=config.over, **begun.how)
        return running.conduct(begun, trainer, attached.record)
