"""Reinforcement learning from human feedback: a reward model from preference pairs, then a policy against it with a KL to the start and controlled entropy.

    1. reward model   -log sigmoid(r(x, chosen) - r(x, rejected))                             TRL's RewardTrainer
    2. policy         clipped policy gradient on r - beta KL(policy || start), plus entropy    TRL's RLOOTrainer or GRPOTrainer

TRL has no PPOTrainer any more: both trainers clip ratios as PPO does and take the mean of a group of answers in the place of a learnt value.
Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1 and 2; Ahmadian et al. 2024 (RLOO, arXiv:2402.14740). Page: docs/recipes/rlhf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from entreg.integrations.trl import attach
from entreg.lm import arithmetic, models, running
from entreg.lm.config import LanguageConfig, check, check_group
from entreg.rl.ranks import here
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Reward model from preferences, then policy optimisation of a language model, on TRL"


@dataclass(frozen=True)
class Config(LanguageConfig):
    """RLHF of a language model: a reward model learnt from pairs, a policy trained against it."""

    algorithm: Literal["rloo", "grpo"] = "rloo"
    """rloo: KL in the reward, whole answers as actions. grpo: KL in the loss, tokens as actions."""
    reward_model: str | None = None
    """Folder of a reward model; none: one is trained from preference pairs first."""
    reward_steps: int = 200
    """Optimizer steps of the reward model."""
    beta: float = 0.5
    """Weight of the KL to the starting policy."""
    group: int = 8
    """Answers drawn for a prompt, whose rewards are compared."""
    clip: float = 0.2
    """How far a probability ratio may leave 1."""


def check_rlhf(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    check_group(config.group, config.batch_size)
    if config.reward_steps < 1:
        raise ValueError(f"reward_steps is {config.reward_steps}; legal are integers from 1")
    if not 0 <= config.beta < float("inf"):
        raise ValueError(f"beta is {config.beta}; legal are finite numbers from 0")
    if not 0 <= config.clip <= 1:
        raise ValueError(f"clip is {config.clip}; legal are numbers from 0 to 1")
    if config.reward_model is not None:
        models.check_scores(config.reward_model)


def train(config: Config, run: Run | None = None) -> Summary:
    """Train reward model and policy; records, checkpoints and both models go to the run's folder."""
    task = check(config, ("reward", "kl") if config.beta else ("reward",))
    check_rlhf(config)
    with running.begun("rlhf", config, task, run) as begun:
        scores = Path(config.reward_model) if config.reward_model is not None else reward_model(begun, config)
        if begun.run.stopping() is not None:
            return begun.run.finish(0, {})
        network, tokenizer = models.load(begun.beginning)
        judge, words = models.load(scores, scores=True)
        cls, kind = (RLOOTrainer, RLOOConfig) if config.algorithm == "rloo" else (GRPOTrainer, GRPOConfig)
        trainer = cls(
            model=network,
            reward_funcs=scored(judge.eval(), words),
            args=kind(
                **begun.arguments(),
                num_generations=config.group,
                max_completion_length=arithmetic.WIDEST + 1,
                beta=config.beta,
                epsilon=config.clip,
                top_k=0,
            ),
            train_dataset=Dataset.from_list(arithmetic.questions(task, begun.rows)),
            processing_class=tokenizer,
        )
        attached = attach(trainer, begun.controller, begun.family, **begun.how)
        return running.conduct(begun, trainer, attached.record)


def reward_model(begun: running.Begun, config: Config) -> Path:
    """A reward model trained from preference pairs on the starting model's body, saved in `reward/` of the run; its accuracy on new pairs is an event.

    Where the run is to stop, training does, and nothing is saved.
    """
    folder = begun.folder / "reward"
    if (folder / "config.json").is_file():  # of this run before it was resumed
        return folder
    network, tokenizer = models.load(begun.beginning, scores=True, seed=begun.seed)
    steps = 2 if begun.run.settings.dry_run else config.reward_steps
    how = {**begun.arguments(), "output_dir": str(begun.folder / "reward-trainer"), "max_steps": steps, "gradient_accumulation_steps": 1}
    rows = arithmetic.pairs(begun.task, config.batch_size * steps * here().part.of, begun.seed)
    trainer = RewardTrainer(model=network, args=RewardConfig(**how), train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(running.Stops(begun.run))
    trainer.train()
    if begun.run.stopping() is not None:
        return folder
    fresh = arithmetic.pairs(begun.task, 256, begun.seed + 1)
    score, prompts = scored(network.eval(), tokenizer), [row["prompt"] for row in fresh]
    better = [one > other for one, other in zip(*(score(prompts, [row[name] for row in fresh]) for name in ("chosen", "rejected")), strict=True)]
    begun.run.event(0, "reward_model", f"the reward model orders {sum(better) / len(better):.1%} of 256 new pairs as they were preferred")
    if here().part.rank == 0:
        models.save_whole(network, tokenizer, folder)
    here().first(None)  # it lies there now
    return folder


def scored(network: Any, tokenizer: Any) -> Callable[..., list[float]]:
    """TRL's reward function of a reward model."""

    @torch.no_grad()
    def score(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        texts = [prompt + completion + tokenizer.eos_token for prompt, completion in zip(prompts, completions, strict=True)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False).to(network.device)
        return [float(value) for value in network(**batch).logits[:, 0]]

    return score
