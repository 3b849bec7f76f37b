"""Entropy control for verl's actors: a plugin (entry point group `verl.plugins`), switched on by one environment variable.

    ENTREG_VERL='TargetEntropy(0.3, lr=0.03, init_coef=0.001)'  python -m verl.trainer.main_ppo actor_rollout_ref.actor.calculate_entropy=True ...

verl loads entry points in every process that imports it, its Ray workers too; without the variable nothing happens. With it the actor's worker becomes a
`ControlledWorker`, whose loss is verl's plus `-coef * (mean entropy a token)` from `model_output["entropy"]`, normalised over the whole mini-batch and all
data-parallel ranks; the controller steps once an optimizer step, and its state lies beside verl's checkpoints. verl's own `entropy_coeff` is frozen in the
config and must be 0. Shannon entropy only: it is what verl computes.

Shapes: B sequences of T response tokens.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from entreg import spelling, targets
from entreg.control import Controller
from entreg.regularizer import EntropyRegularizer

VARIABLE = "ENTREG_VERL"
VERSIONS = ("0.9.",)
FILE = "entreg.json"


class ControlledLoss:
    """verl's loss of an actor with a controlled entropy term; called once a micro-batch, `step()` once an optimizer step.

    Raises: `ValueError` where verl would not compute the entropy, or adds a bonus of its own.
    """

    def __init__(self, loss_fn: Any, controller: Controller[Any] | float, group: Any = None) -> None:
        config = loss_fn.keywords["config"]
        if config.entropy_coeff != 0:
            raise ValueError(f"actor.entropy_coeff is {config.entropy_coeff}: verl's own bonus is on beside this one; legal is 0")
        if not config.calculate_entropy:
            raise ValueError("actor.calculate_entropy is False: verl would not compute the entropy, and the bonus be ignored; legal is True")
        self._loss_fn = loss_fn
        self.regularizer = EntropyRegularizer(controller, all_reduce=_sum_over(group))

    def __call__(self, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        from verl.workers.utils.padding import no_padding_2_padding

        loss, metrics = self._loss_fn(model_output=model_output, data=data, dp_group=dp_group)
        if not torch.is_grad_enabled():
            return loss, metrics
        if model_output.get("entropy") is None or not model_output["entropy"].requires_grad:
            raise RuntimeError(
                "model_output['entropy'] is absent or has no gradient, so that the bonus would be ignored; legal is actor.calculate_entropy=True"
            )
        entropy = no_padding_2_padding(model_output["entropy"], data)
        mask = data.select("response_mask").to_padded_tensor()["response_mask"].bool()
        tokens = data["batch_num_tokens"]
        denominator = None if tokens is None else torch.as_tensor(tokens, dtype=torch.float32, device=entropy.device) / data["dp_size"]
        term = self.regularizer(entropy, mask, denominator=denominator)
        return loss + term.loss, {**metrics, "entreg/coef": term.coef, "entreg/entropy": float(term.entropy)}

    def step(self) -> None:
        """One step of the controller, after the optimizer's."""
        self.regularizer.step()


def controlled_worker(base: type, controller: Controller[Any] | float) -> type:
    """A subclass of verl's TrainingWorker that controls the entropy of its PPO loss.

    Raises: `ValueError` where the bonus would be ignored: for a loss that is another one (distillation), and where pipeline stages do not see the loss.
    """
    from verl.workers.utils.losses import ppo_loss

    class ControlledWorker(base):  # type: ignore[misc]
        @functools.wraps(base.set_loss_fn)  # type: ignore[attr-defined]
        def set_loss_fn(self, loss_fn: Any) -> None:
            if getattr(loss_fn, "func", None) is not ppo_loss:
                raise ValueError(
                    f"loss: got {getattr(loss_fn, 'func', loss_fn)!r}, which would ignore {VARIABLE}; legal is verl's ppo_loss, without distillation"
                )
            stages = self.engine_config.get("pipeline_model_parallel_size", 1)
            if stages != 1:
                raise ValueError(f"pipeline_model_parallel_size: got {stages}, legal is 1: other stages than the last see no loss, and would not control it")
            base.set_loss_fn(self, ControlledLoss(loss_fn, controller, self.engine.get_data_parallel_group()))  # type: ignore[attr-defined]

        @functools.wraps(base.train_batch)  # type: ignore[attr-defined]
        def train_batch(self, data: Any) -> Any:
            output = base.train_batch(self, data)  # type: ignore[attr-defined]
            self.loss_fn.step()
            return output

        @functools.wraps(base.save_checkpoint)  # type: ignore[attr-defined]
        def save_checkpoint(self, local_path: Any, *how: Any, **named: Any) -> Any:
            result = base.save_checkpoint(self, local_path, *how, **named)  # type: ignore[attr-defined]
            part = Path(local_path, f"{FILE}.{self.rank}")  # every rank has the same state, and perhaps a disk of its own
            part.write_text(json.dumps(self.loss_fn.regularizer.state_dict()), encoding="ascii")
            part.replace(Path(local_path, FILE))
            return result

        @functools.wraps(base.load_checkpoint)  # type: ignore[attr-defined]
        def load_checkpoint(self, local_path: Any, *how: Any, **named: Any) -> Any:
            if local_path is not None:
                file = Path(local_path, FILE)
                if not file.is_file():
                    raise ValueError(f"checkpoint: {local_path} holds no {FILE}; legal is a checkpoint of a run with {VARIABLE}")
                self.loss_fn.regularizer.load_state_dict(json.loads(file.read_text(encoding="ascii")))
            return base.load_checkpoint(self, local_path, *how, **named)  # type: ignore[attr-defined]

    return ControlledWorker


def controller_of(text: str) -> Controller[Any]:
    """The controller that a text spells.

    Raises: `ValueError` for what is none, leaves something open, or reads what an actor of verl does not measure.
    """
    controller = spelling.parse_controller(text)
    controller.init()
    if missing := targets.needs(controller):
        raise ValueError(f"{text} reads {', '.join(missing)}, which a loss of verl does not see; legal are schedules and rules of entropy")
    return controller


def plugin() -> None:
    """Puts the controller that the environment variable spells into verl's actor worker; called when verl is imported.

    Raises: `ValueError` for a version of verl whose seams are not known and for a text that is no controller. verl keeps errors of plugins to itself, so the
    process ends.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    try:
        import verl
        from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

        if not verl.__version__.startswith(VERSIONS):
            raise ValueError(f"verl: version {verl.__version__}; legal is {VERSIONS[0]}*, whose seams are known")
        controller = controller_of(text)
        ActorRolloutRefWorker.actor_worker_cls = controlled_worker(TrainingWorker, controller)
    except Exception as error:
        print(f"entreg: {VARIABLE}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _sum_over(group: Any) -> Any:
    def total(tensor: Tensor) -> Tensor:
        if group is not None and dist.is_initialized():
            dist.all_reduce(tensor, group=group)
        return tensor

    return total


plugin()
