"""A run of ours around a Hugging Face trainer: a model to begin with, records in entreg's names, checkpoints that resume, evaluation before and after, signals,
NaN stops; with torchrun on every rank, of which only rank 0 writes.

The trainer's own checkpoints (`trainer/checkpoint-N`, with the controller in `trainer_state.json`) hold the weights, the optimizer and the random states; a
checkpoint of the run says which one belongs to which byte of the records.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from entreg import spelling
from entreg.control import Controller
from entreg.functional import Family
from entreg.lm import sampling, start
from entreg.lm.arithmetic import Task
from entreg.lm.config import LanguageConfig, controller
from entreg.rl.ranks import here, run_for
from entreg.run import Run, Summary

START = 0.8  # of the mean entropy of the first FIRST steps: the documented first target
FIRST = 10
NAMES = {"loss": "loss", "reward": "return", "kl": "kl", "grad_norm": "grad_norm", "learning_rate": "learning_rate", "reward_std": "return/std"}
NAMES |= {"completions/mean_length": "length", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "accuracy": "accuracy"}
NAMES |= {"clip_ratio/region_mean": "clip_fraction", "frac_reward_zero_std": "groups_without_signal"}

Record = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Begun:
    """A run that has started, and what its trainer is made from."""

    run: Run
    config: LanguageConfig
    task: Task
    steps: int
    folder: Path
    """Of the run, on all ranks."""
    beginning: Path
    """The model to begin with."""
    controller: Controller[Any]
    family: Family

    @property
    def seed(self) -> int:
        return self.run.settings.seed

    @property
    def rows(self) -> int:
        """Sequences that the run takes, over all ranks: one epoch, because TRL's order of a second one does not survive a resumption."""
        return self.steps * self.config.batch_size * self.config.accumulation * here().part.of

    @property
    def how(self) -> dict[str, Any]:
        """What `attach` is told beside controller and family."""
        return {"top_p": self.config.top_p, "clamp": self.config.clamp, "shares": self.config.shares}

    def arguments(self) -> dict[str, Any]:
        """What every trainer of a recipe is told: the run's seed and steps, records each step, checkpoints when the run says so, nothing from outside."""
        return {
            "output_dir": str(self.folder / "trainer"),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.config.batch_size,
            "gradient_accumulation_steps": self.config.accumulation,
            "learning_rate": self.config.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "seed": self.seed % 2**32,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "save_total_limit": 3,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
        }


@contextmanager
def begun(recipe: str, config: LanguageConfig, task: Task, run: Run | None) -> Iterator[Begun]:
    """Starts the run of a recipe whose settings have been checked; while open, libraries are quiet and signals are the run's."""
    run = run_for(run)
    torch.set_num_threads(run.settings.threads)
    steps = 2 if run.settings.dry_run else config.steps
    rule = controller(config, steps)
    members = [{"seed": run.settings.seed, "coef": config.coef, "family": config.family, "controller": spelling.spell(rule)}]
    run.start(recipe, config.task, config, members=members, total=steps)
    with run, quiet():
        folder = Path(here().first(str(run.folder.absolute())))
        beginning = folder / "start" if config.model is None else Path(config.model)
        if here().part.rank == 0:
            start.prepared(config.model, task, run.settings.seed, folder / "start", steps=config.warm_up, pause=run.hurry)
        here().first(None)  # it lies there now
        yield Begun(run, config, task, steps, folder, beginning, rule, spelling.parse_family(config.family))


@contextmanager
def quiet() -> Iterator[None]:
    """While open, transformers and datasets draw no bars and say nothing but errors; what they deprecate of themselves is not the user's."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    level = logging.getLogger("accelerate").level
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
        datasets.enable_progress_bars()
        logging.getLogger("accelerate").setLevel(level)


class Stops(TrainerCallback):  # type: ignore[misc]
    """Ends a trainer where the run is to end."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        reason = here().agree(self._run.stopping(), False)[0]
        if reason is not None:
            self._run.stop(reason)
            control.should_training_stop = True


class Books(TrainerCallback):  # type: ignore[misc]
    """Writes what a trainer logs and what `evaluate` finds as records, and takes checkpoints and stops from the run."""

    def __init__(self, run: Run, record: Record, evaluate: Record) -> None:
        self._run, self._record, self._evaluate = run, record, evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "train_runtime" in logs:  # the trainer's own summary
            return
        values = {name: float(logs[key]) for key, name in NAMES.items() if logs.get(key) is not None} | dict(self._record())
        if "entropy" in values:
            values["entropy/perplexity"] = math.exp(values["entropy"])
        self._run.check_finite(state.global_step, **{name: torch.tensor(values[name]) for name in ("loss", "grad_norm") if name in values})
        self._run.log(state.global_step, **values)
        seen = [float(line["entreg/entropy"]) for line in state.log_history if "entreg/entropy" in line]  # it survives a resumption
        free = not any(float(line["entreg/coef"]) for line in state.log_history if "entreg/coef" in line)  # what control has changed says nothing of a target
        if state.global_step == FIRST == len(seen) and free:
            mean = sum(seen) / FIRST
            say = f"mean entropy of the first {FIRST} steps: {mean:.4g} nats a token; to hold {START} of it: --coef 'TargetEntropy({START * mean:.3g})'"
            self._run.event(FIRST, "target", say)
        every = self._run.settings.eval_every
        if every is not None and state.global_step % every == 0 and state.global_step < state.max_steps:
            self._run.log(state.global_step, **self._evaluate())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        reason, due = here().agree(self._run.stopping(), self._run.due())
        if reason is not None:
            self._run.stop(reason)
            control.should_training_stop = True
        if control.should_training_stop or due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        name, step = f"checkpoint-{state.global_step}", state.global_step
        self._run.checkpoint(step, lambda: {"step": step, "trainer": name, "complete": False, "ranks": here().part.of}, force=True)


def conduct(begun: Begun, trainer: Any, record: Record) -> Summary:
    """Trains a trainer that is ready from where the run stands to its end: evaluation, training, evaluation, the model in `model/` of the run's folder.

    Raises: `NonFinite` when the loss is not finite, the checkpoints are left alone; `ValueError` for a run of another number of ranks.
    """
    run, folder = begun.run, begun.folder
    judge = sampling.judging(begun.task, trainer.processing_class, begun.config.eval_samples, begun.seed)

    def judged() -> dict[str, float]:
        return {f"eval/{name}": value for name, value in judge(trainer.model).items()}

    state, following = here().first(run.restore()), f"entreg train decode --model {folder / 'model'}"
    if state is not None and not state["complete"] and state["ranks"] != here().part.of:
        raise ValueError(f"resume: the run has {state['ranks']} ranks, and {here().part.of} were started; legal is the same number")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Books(run, record, judged))
    if state is None:
        run.log(0, **judged())
    if state is None or not state["complete"]:
        trainer.train(resume_from_checkpoint=None if state is None else str(folder / "trainer" / state["trainer"]))
    else:
        return run.finish(state["step"], state["metrics"], following)
    step = int(trainer.state.global_step)
    if run.stopping() is not None:
        return run.finish(step, {})
    found = judged()
    metrics = {name.removeprefix("eval/"): value for name, value in found.items()}
    run.log(step, **found)
    if trainer.accelerator.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder / "model")
        trainer.processing_class.save_pretrained(folder / "model")
    run.checkpoint(step, lambda: {"step": step, "trainer": "", "complete": True, "metrics": metrics}, force=True)
    return run.finish(step, metrics, following)
