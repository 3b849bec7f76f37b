"""Settings that the language-model recipes share, and what is wrong with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from entreg import spelling, targets
from entreg.control import Controller
from entreg.lm import arithmetic, models
from entreg.lm.arithmetic import Task


@dataclass(frozen=True)
class LanguageConfig:
    """One language model on one verifiable task."""

    task: str = "split"
    """split ("9=" to "4+5": n + 1 right answers) or add ("7+5=" to "12": one)."""
    largest: int = 9
    """The largest number in the task's prompts."""
    model: str | None = None
    """Folder of a model with its tokenizer; without one a tiny model is made on the spot."""
    warm_up: int = 600
    """Batches of demonstrations that a model made on the spot has seen."""
    coef: str = "0"
    """Entropy coefficient: a number (negative: a ceiling) or a controller such as TargetEntropy(0.6)."""
    coef_lr: float = 0.03
    """Learning rate of a learned coefficient that names none, an optimizer step."""
    coef_init: float = 0.001
    """Start of a learned coefficient that names none."""
    family: str = "shannon"
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy."""
    top_p: float | None = None
    """Entropy over the nucleus only: the likeliest tokens whose probabilities reach this."""
    clamp: float | None = None
    """Entropy without this share of the tokens, the least likely ones (AEnt)."""
    steps: int = 60
    """Optimizer steps."""
    batch_size: int = 32
    """Sequences of a micro-batch on one device."""
    accumulation: int = 1
    """Micro-batches an optimizer step."""
    learning_rate: float = 0.001
    """Of AdamW, constant."""
    shares: bool = True
    """Record which share of the gradient entropy (and KL) have; one more product of the LM head a step."""
    eval_samples: int = 16
    """Samples of each prompt in an evaluation, at temperature 1."""


POSITIVE = ("steps", "batch_size", "accumulation", "eval_samples")
ABOVE_ZERO = ("learning_rate", "coef_lr", "coef_init")


def check(config: LanguageConfig, gives: tuple[str, ...]) -> Task:
    """The task; ValueError for settings that make no sense, naming the flag. `gives` are the signals that the recipe's trainer has for controllers."""
    task = arithmetic.make(config.task, config.largest)
    for name in POSITIVE:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from 1")
    for name in ABOVE_ZERO:
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(config, name)}; legal are finite numbers above 0")
    if config.warm_up < 0:
        raise ValueError(f"warm_up is {config.warm_up}; legal are integers from 0")
    if config.model is not None:
        models.check_path(config.model)
        models.check_texts(config.model, arithmetic.texts(task))
    closed = controller(config, config.steps)
    if missing := targets.needs(closed) - {"grad_share", "progress", *gives}:
        raise ValueError(
            f"coef is {config.coef!r}, which reads {', '.join(missing)}; legal here are rules of entropy, {', '.join(('grad_share', 'progress', *gives))}"
        )
    return task


def controller(config: LanguageConfig, steps: int) -> Controller[Any]:
    """The controller that the settings spell, over a run of `steps`; ValueError for a target that no distribution over the model's tokens has."""
    family = spelling.parse_family(config.family)
    most = float(family.from_renyi(torch.tensor(math.log(targets.classes_left(models.classes(config.model), config.top_p, config.clamp)), dtype=torch.float64)))
    parsed = spelling.parse_controller(config.coef)
    closed = targets.resolve(parsed, steps=steps, max_entropy=most, lr=config.coef_lr, init_coef=config.coef_init, family=family.name)
    targets.within(closed, most)
    return closed


def check_group(group: int, batch_size: int) -> None:
    """ValueError unless groups of at least two answers fill a batch."""
    if group < 2 or batch_size % group:
        raise ValueError(f"group is {group} with batch_size {batch_size}; legal are divisors of batch_size from 2")
