"""Entropy terms for classification with Hugging Face's `Trainer`: sequences, tokens, images, whatever gives logits and integer labels.

    attached = attach(trainer, 0.1)                            # a confidence penalty of .1
    trainer.train()

Shapes: N items (sequences, images, tokens) of V classes. The term is `-coef * mean entropy` over what has a label (-100 has none), of the WHOLE accumulation
window and of all ranks, so that unequal micro-batches add up; it is added in `trainer.compute_loss`, in training only. One controller step an optimizer step;
the state goes into `trainer_state.json`. For language models use `integrations.trl`, whose entropies fit into memory.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

try:
    import transformers
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ImportError as error:
    raise ImportError(f"integrations.transformers needs {error.name}: pip install 'entreg[llm]'") from None

from entreg import targets
from entreg.control import Controller
from entreg.functional import SHANNON, Family, categorical_entropy, marginal_entropy
from entreg.integrations.trainer import Clock, clocked, divisor, sum_over
from entreg.regularizer import EntropyRegularizer

VERSIONS = ("5.23.",)  # whose seams were read and are tested; another version is refused, not guessed at
COEF_LR, COEF_INIT = 0.03, 0.01  # of a TargetEntropy that names none
IGNORED = -100


def attach(
    trainer: Any,
    controller: Controller[Any] | float,
    family: Family = SHANNON,
    *,
    of: Literal["conditional", "marginal"] = "conditional",
    sense: Literal["maximize", "minimize"] = "maximize",
) -> Attached:
    """Puts a controlled entropy term into a Trainer for classification; call it before `trainer.train()`.

    `of` "conditional": the mean entropy of the predictions (maximised: a confidence penalty; minimised: confident predictions); "marginal": the entropy of
    a micro-batch's mean prediction (maximised: against class collapse), of which the window's mean is taken.

    Raises: `ValueError`, before anything is changed, for another version or class, a language model, regression and multi-label problems, several GPUs in one
    process, a target that no prediction has, a controller that reads what a Trainer does not measure; `RuntimeError` in the first step where the model's logits
    are absent, without gradient, or not one row a label.
    """
    _check(trainer, of)
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else None
    classes = getattr(getattr(trainer.model, "config", None), "num_labels", None)
    most = None if classes is None else float(family.from_renyi(torch.tensor(math.log(classes), dtype=torch.float64)))
    closed = targets.resolve(controller, steps=steps, max_entropy=most, lr=COEF_LR, init_coef=COEF_INIT, family=family.name)
    try:
        closed.init()
        if most is not None:
            targets.within(closed, most)
    except ValueError as error:
        raise ValueError(f"{error} (a length in steps is that of the run where max_steps is set)" if steps is None else error) from None
    if missing := targets.needs(closed) - {"progress"}:
        raise ValueError(f"controller={closed!r} reads {', '.join(sorted(missing))}; Trainer gives progress")
    return Attached(trainer, EntropyRegularizer(closed, sense=sense, all_reduce=sum_over(trainer)), family, of)


class Attached:
    """A trainer's controlled term. `regularizer` has the coefficient and the controller; `record()` what the last step measured."""

    def __init__(self, trainer: Any, regularizer: EntropyRegularizer, family: Family, of: str) -> None:
        self.trainer, self.regularizer, self.family, self.of = trainer, regularizer, family, of
        self._compute_loss, self._get_batch_samples, self._log = trainer.compute_loss, trainer.get_batch_samples, trainer.log
        self._count = torch.zeros(())  # labels of the window over all ranks; for the marginal: micro-batches
        self._shannon = torch.zeros(2)  # total and number of the window
        self._record: dict[str, float] = {}
        trainer.compute_loss, trainer.get_batch_samples, trainer.log = self._loss, self._batches, self._logs
        trainer.add_callback(Clock(self))

    def record(self) -> dict[str, float]:
        """What the last optimizer step measured, in the names of records: entropy (Shannon, nats), entropy/family, entropy/target, coef."""
        return dict(self._record)

    def _batches(self, iterator: Any, count: int, device: Any) -> Any:
        batches, items = self._get_batch_samples(iterator, count, device)
        own = len(batches) if self.of == "marginal" else sum(int((batch["labels"] != IGNORED).sum()) for batch in batches if "labels" in batch)
        total = torch.tensor(float(own), device=self.trainer.accelerator.device)
        self._count = torch.as_tensor(self.trainer.accelerator.reduce(total, reduction="sum")).clamp(min=1)
        return batches, items

    def _loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if not self.trainer.model.training:
            return self._compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        labels = inputs.get("labels")
        loss, outputs = self._compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if logits is None or not logits.requires_grad or labels is None or logits.shape[:-1] != labels.shape:
            said = f"logits {None if logits is None else tuple(logits.shape)}, labels {None if labels is None else tuple(labels.shape)}"
            raise RuntimeError(f"{type(model).__name__}: {said}; legal is one differentiable row of logits a label, without which the term would be ignored")
        loss = loss + self._term(logits, labels != IGNORED, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _term(self, logits: Tensor, mask: Tensor, items: Any) -> Tensor:
        denominator = self._count / (self.trainer.accelerator.num_processes * divisor(self.trainer, items))
        value = self._measure(logits, mask, self.family)
        with torch.no_grad():
            shannon = value if self.family == SHANNON else self._measure(logits, mask, SHANNON)
            self._shannon = self._shannon.to(shannon) + torch.stack([shannon.sum(), shannon.new_tensor(len(shannon))])
        return self.regularizer(value, denominator=denominator.to(value)).loss

    def _measure(self, logits: Tensor, mask: Tensor, family: Family) -> Tensor:
        """Entropies of the items that have a label `[N]`; of the mean prediction `[1]`."""
        if self.of == "marginal":
            return marginal_entropy(logits, family, mask)[None]
        return categorical_entropy(logits[mask], family)

    def step(self, state: Any) -> None:
        """One controller step at the end of an optimizer step."""
        used = self.regularizer.coef
        self.regularizer.step(progress=min(1.0, state.global_step / max(1, state.max_steps)))
        total, count = sum_over(self.trainer)(self._shannon).tolist()
        self._record = {"entropy": total / max(count, 1.0), "coef": used}
        if self.family != SHANNON:
            self._record["entropy/family"] = self.regularizer.entropy
        if self.regularizer.target is not None:
            self._record["entropy/target"] = self.regularizer.target
        self._shannon = torch.zeros(2, device=self._shannon.device)

    def _logs(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """The trainer's own lines of training get ours; those of evaluations and of the end do not."""
        ours = {f"entreg/{name}": value for name, value in self._record.items()} if "loss" in logs else {}
        self._log({**logs, **ours}, *rest, **named)


def _check(trainer: Any, of: str) -> None:
    name = type(trainer).__name__
    if not transformers.__version__.startswith(VERSIONS):
        raise ValueError(f"transformers: version {transformers.__version__}; legal is {VERSIONS[0]}*, whose seams are known")
    if not isinstance(trainer, Trainer):
        raise ValueError(f"trainer: {name}; legal is transformers' Trainer")
    if of not in ("conditional", "marginal"):
        raise ValueError(f"of={of!r}; legal: 'conditional' or 'marginal'")
    if clocked(trainer):
        raise ValueError("trainer: a controller is attached already; legal is one")
    if trainer.args.n_gpu > 1:
        raise ValueError(f"trainer: {trainer.args.n_gpu} GPUs in one process (DataParallel); legal is one a process: torchrun, or CUDA_VISIBLE_DEVICES")
    if trainer._loss_shifts_labels or type(trainer.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(f"model: {type(trainer.model).__name__} predicts next tokens; legal are classifiers; for language models integrations.trl.attach")
    kind = getattr(getattr(trainer.model, "config", None), "problem_type", None)
    if kind in ("regression", "multi_label_classification") or getattr(getattr(trainer.model, "config", None), "num_labels", 2) == 1:
        raise ValueError(f"model: {type(trainer.model).__name__} with problem_type={kind!r}; legal is one label of several classes")


__all__ = ["Attached", "attach"]
