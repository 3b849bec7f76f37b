"""What the integrations into transformers and TRL share: the clock, the state in `trainer_state.json`, sums over ranks, the divisor of the loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import TrainerCallback

from entreg.regularizer import EntropyRegularizer

STATE = "entreg"  # the key under stateful_callbacks in trainer_state.json


class Clocked(Protocol):
    """A controlled term that steps with the optimizer."""

    regularizer: EntropyRegularizer

    def step(self, state: Any) -> None: ...


class Clock(TrainerCallback):  # type: ignore[misc]
    """Steps the controller with the optimizer, keeps its state in the host's, and restores it when training resumes."""

    def __init__(self, attached: Clocked) -> None:
        self._attached = attached

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            return
        if STATE not in state.stateful_callbacks:
            raise ValueError(f"resume_from_checkpoint: the checkpoint of step {state.global_step} holds no controller; legal is one of a run with attach()")
        self._attached.regularizer.load_state_dict(json.loads(json.dumps(state.stateful_callbacks[STATE]["attributes"])))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._attached.step(state)
        state.stateful_callbacks[STATE] = {"args": {}, "attributes": self._attached.regularizer.state_dict()}


def clocked(trainer: Any) -> bool:
    """Whether a controller is attached already."""
    return any(isinstance(callback, Clock) for callback in trainer.callback_handler.callbacks)


def divisor(trainer: Any, items: Any) -> float:
    """What `training_step` will divide the loss by."""
    scaled = trainer.loss_is_scaled_for_ga
    if scaled is None:
        scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
    return 1.0 if scaled else float(trainer.current_gradient_accumulation_steps)


def sum_over(trainer: Any) -> Callable[[Tensor], Tensor]:
    """The sum of a tensor over the trainer's ranks."""

    def total(tensor: Tensor) -> Tensor:
        return torch.as_tensor(trainer.accelerator.reduce(tensor, reduction="sum"))

    return total
