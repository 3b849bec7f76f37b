"""Entropy control for TRL's trainers (GRPO, RLOO, DPO, KTO, SFT), in two lines:

    attached = attach(trainer, TargetEntropy(0.6), family=SHANNON)
    trainer.train()

Shapes: B sequences of T tokens. Three seams, checked at `attach` and on the first step: the fused LM head that TRL puts into `model.forward` (its outputs have
differentiable log-probs and entropies), `trainer.compute_loss` (to which the term is added), and a callback (one controller step an optimizer step; the state
goes into `trainer_state.json`). TRL's own `entropy_coef` is not used and must be 0: there is nothing that could be latched off.

The term is `-coef * (mean entropy a token)` over the completions of the WHOLE accumulation window and of all ranks, so that micro-batches and ranks of unequal
length add up to the full batch. A negative coefficient is an entropy ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

try:
    import trl
    from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTTrainer
except ImportError as error:
    raise ImportError(f"integrations.trl needs {error.name}: pip install 'entreg[llm]'") from None

from entreg import targets
from entreg.control import Controller
from entreg.functional import SHANNON, Family, k3
from entreg.functional.sequences import entropy_to_go, others_mean, sequence_entropy_loss
from entreg.functional.shares import Pull, share
from entreg.integrations.trainer import Clock, clocked, divisor, sum_over
from entreg.integrations.trl_drivers import Drive, drive
from entreg.integrations.trl_head import Head, Measure, Seen
from entreg.regularizer import EntropyRegularizer, Term

VERSIONS = ("1.16.",)  # whose seams were read and are tested; another version is refused, not guessed at
COEF_LR, COEF_INIT = 0.03, 1e-3  # of a TargetEntropy that names none


class Share(NamedTuple):
    """Norms of the parts of the loss's gradient with respect to the logits of one micro-batch, and what share the terms have of it."""

    entropy: float
    kl: float | None


def attach(
    trainer: Any,
    controller: Controller[Any] | float,
    family: Family = SHANNON,
    *,
    over: Literal["token", "trajectory"] = "token",
    top_p: float | None = None,
    clamp: float | None = None,
    shares: bool = False,
    lag: int = 0,
) -> Attached:
    """Puts a controlled entropy term into a trainer of TRL; call it before `trainer.train()`.

    `over` "trajectory" (GRPO): also the gradient through which prefixes are chosen, see `functional.sequence_entropy_loss`. `top_p` or `clamp`: a truncated
    entropy, over the nucleus or without the lowest share of the classes (`functional.top_p_entropy`, `clamped_entropy`). `shares`: measure each optimizer step,
    on its first micro-batch, which share of the gradient the term has (`grad_share`), and for GRPO the KL to the reference (`grad_share/kl`); one more product
    of the LM head a step. With Shannon's entropy and rewards also who drives entropy (`entropy/covariance`, `entropy/drift`; `attached.drive` names the tokens
    and completions that pull it down most). `lag` as of EntropyRegularizer.

    Raises: `ValueError`, before anything is changed, for another version or class, a trainer patched by Unsloth, one whose loss does not come from the fused
    LM head, a second bonus (`entropy_coef`), several GPUs in one process, a target that no distribution over the vocabulary has, a controller that reads what
    this trainer cannot give.
    """
    _check(trainer, over)
    measure = Measure(family, top_p, clamp)
    controller = _closed(controller, trainer, measure)
    shares = shares or "grad_share" in targets.needs(controller)
    return Attached(trainer, EntropyRegularizer(controller, all_reduce=sum_over(trainer), lag=lag), measure, over, shares)


class Attached:
    """A trainer's controlled term. `regularizer` has the coefficient and the controller; `record()` what the last step measured."""

    def __init__(self, trainer: Any, regularizer: EntropyRegularizer, measure: Measure, over: str, shares: bool) -> None:
        self.trainer, self.regularizer, self.measure, self.over, self.shares = trainer, regularizer, measure, over, shares
        self._rollouts = isinstance(trainer, (GRPOTrainer, RLOOTrainer))
        self._head = Head(_plain(trainer), measure)
        self._compute_loss, self._get_batch_samples = trainer.compute_loss, trainer.get_batch_samples
        self._count: Tensor | None = None  # tokens of the window, over all ranks
        self._seen = torch.zeros(2, dtype=torch.float64)  # sum of Shannon entropies and tokens of the window
        self._share: Share | None = None
        self.drive: Drive | None = None  # who drove entropy in the last step, where shares are measured
        self._record: dict[str, float] = {}
        self._signals: dict[str, float] = {}
        trainer.compute_loss, trainer.get_batch_samples = self._loss, self._batches
        trainer.add_callback(Clock(self))

    def record(self) -> dict[str, float]:
        """What the last optimizer step measured, in the names of records: entropy (Shannon, nats a token), entropy/family, entropy/target, coef, grad_share."""
        return dict(self._record)

    # ---------------------------------------------------------------- the loss

    def _batches(self, iterator: Any, count: int, device: Any) -> Any:
        batches, items = self._get_batch_samples(iterator, count, device)
        if not self._rollouts:
            self._count = self._all(sum(_tokens(batch).sum() for batch in batches))
        return batches, items

    def _loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        trainer = self.trainer
        if not trainer.model.training:
            return self._compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        mask = _window_mask(inputs) if self._rollouts else _tokens(inputs)
        if self._rollouts:
            self._count_rollouts()
        with self._head.watching(shares=self.shares and self._share is None) as seen:
            loss = self._compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if len(seen) != 1:
            raise RuntimeError(
                f"{type(trainer).__name__}: its loss took {len(seen)} differentiable passes of the fused LM head; legal is one, to which the term belongs"
            )
        one = seen[0].last(mask.shape[1])
        scale = divisor(trainer, num_items_in_batch)
        term, slopes = self._term(one, mask, inputs, scale)
        if one.pull is not None:
            (task,) = torch.autograd.grad(loss, seen[0].log_prob, retain_graph=True)
            self._share = self._measure(one.pull, task[:, -mask.shape[1] :], slopes, _kl_slope(trainer, one.log_prob.detach(), mask, inputs))
            self.drive = drive(one, mask, inputs) if self._rollouts and self.measure == Measure() else None
        keep = mask.bool()
        self._seen += torch.stack([one.entropy.detach()[keep].double().sum(), keep.sum().double()]).cpu()
        return loss + term

    def _term(self, one: Seen, mask: Tensor, inputs: Mapping[str, Any], scale: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The term of a micro-batch, and its slopes in log-probabilities and entropies `[B, T]`."""
        assert self._count is not None
        denominator = self._count.clamp(min=1) / (self.trainer.accelerator.num_processes * scale)
        term: Term = self.regularizer(one.family, mask, denominator=denominator.to(one.family))
        weight = term.coef / float(denominator)
        entropy_slope, log_prob_slope = -weight * mask.to(one.family), torch.zeros_like(one.log_prob)
        if self.over == "token":
            return term.loss, (log_prob_slope, entropy_slope)
        old = inputs.get("old_per_token_logps")
        ahead = others_mean(entropy_to_go(one.family, mask), mask)
        loss = sequence_entropy_loss(one.log_prob, one.family, mask, old_log_prob=one.log_prob if old is None else old, baseline=ahead).sum() * weight
        if one.pull is not None:
            (log_prob_slope,) = torch.autograd.grad(loss, one.log_prob, retain_graph=True)
        return loss, (log_prob_slope, entropy_slope)

    def _count_rollouts(self) -> None:
        """The tokens of the accumulation window, which lies in the buffer of generated micro-batches."""
        trainer = self.trainer
        place, length = trainer._step % trainer.args.steps_per_generation, trainer.current_gradient_accumulation_steps
        if place % length == 0:
            self._count = self._all(sum(_window_mask(batch).sum() for batch in trainer._buffered_inputs[place : place + length]))

    def _all(self, count: Any) -> Tensor:
        total = torch.as_tensor(count, dtype=torch.float32, device=self.trainer.accelerator.device)
        return torch.as_tensor(self.trainer.accelerator.reduce(total, reduction="sum"))

    # ---------------------------------------------------------------- measuring

    @staticmethod
    def _measure(pull: Pull, task: Tensor, slopes: tuple[Tensor, Tensor], kl: Tensor | None) -> Share:
        """Shares of the term and of the KL against the rest of the loss, from slopes in the log-probabilities `[B, T]`."""
        norm = pull.norm((task if kl is None else task - kl).flatten())
        entropy = pull.norm(slopes[0].flatten(), slopes[1].flatten())
        return Share(share(entropy, norm), None if kl is None else share(pull.norm(kl.flatten()), norm))

    def step(self, state: Any) -> None:
        """One controller step at the end of an optimizer step."""
        self._signals = signals = _signals(self.trainer, state, self._signals)
        if self._share is not None:
            signals["grad_share"] = self._share.entropy
        used = self.regularizer.coef
        self.regularizer.step(**signals)
        total, weight = (float(part) for part in sum_over(self.trainer)(self._seen.float().to(self.trainer.accelerator.device)))
        self._record = {"entropy": total / max(weight, 1.0), "entropy/family": self.regularizer.entropy, "coef": used}
        if self.regularizer.target is not None:
            self._record["entropy/target"] = self.regularizer.target
        if self._share is not None:
            self._record |= {"grad_share": self._share.entropy} | ({} if self._share.kl is None else {"grad_share/kl": self._share.kl})
        if self._share is not None and self.drive is not None:
            self._record |= {"entropy/covariance": self.drive.covariance, "entropy/drift": self.drive.drift}
        self._seen, self._share = torch.zeros(2, dtype=torch.float64), None
        for name, value in self._record.items():
            self.trainer._metrics["train"][f"entreg/{name}"].append(value)


# -------------------------------------------------------------------- what a batch says


def _tokens(batch: Mapping[str, Any]) -> Tensor:
    """Which next-token predictions of an SFT, DPO or KTO batch count, `[B, T-1]`."""
    if "completion_mask" in batch:
        return torch.as_tensor(batch["completion_mask"][:, 1:] != 0)
    return torch.as_tensor(batch["labels"][:, 1:] != -100)


def _window_mask(inputs: Mapping[str, Any]) -> Tensor:
    """Which completion tokens of a GRPO or RLOO batch the policy has written, `[B, T]`."""
    mask = inputs["completion_mask"] * inputs["tool_mask"] if "tool_mask" in inputs else inputs["completion_mask"]
    return torch.as_tensor(mask != 0)


def _signals(trainer: Any, state: Any, before: Mapping[str, float]) -> dict[str, float]:
    """What controllers may read of this step; rewards of answers that are trained on again (`num_iterations`) are those of the step that drew them.

    TRL measures rewards, and RLOO's KL, once a generation, the KL of the others once a micro-batch: its mean over the window.
    """
    metrics, signals = trainer._metrics["train"], {"progress": state.global_step / max(1, state.max_steps)}
    window = {"kl": 1 if isinstance(trainer, RLOOTrainer) else trainer.args.gradient_accumulation_steps}
    for name in ("reward", "kl"):
        latest = metrics.get(name, [])[-window.get(name, 1) :]
        value = sum(latest) / len(latest) if latest else before.get(name, math.nan)
        if math.isfinite(value):
            signals[name] = float(value)
    return signals


def _kl_slope(trainer: Any, log_prob: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor | None:
    """Slope `[B, T]` of GRPO's KL term in the log-probabilities, where there is one; None also for the loss types whose weights are not known here."""
    if not isinstance(trainer, GRPOTrainer) or trainer.beta == 0.0 or trainer.importance_sampling_level != "token":
        return None
    keep, window = mask.to(log_prob), trainer.current_gradient_accumulation_steps
    if trainer.loss_type == "grpo":
        weight = keep / keep.sum(-1, keepdim=True).clamp(min=1) / len(keep) / window
    elif trainer.loss_type == "bnpo":
        weight = keep / keep.sum().clamp(min=1) / window
    elif trainer.loss_type == "dr_grpo":
        weight = keep / (len(keep) * trainer.max_completion_length) / window
    elif trainer.loss_type == "dapo":
        weight = keep / (inputs["num_items_in_batch"].clamp(min=1) / trainer.accelerator.num_processes * window / trainer.args.steps_per_generation)
    else:
        return None
    with torch.enable_grad():
        leaf = log_prob.detach().requires_grad_()
        kl = k3(inputs["ref_per_token_logps"] - leaf)
        if trainer.args.use_bias_correction_kl:
            old = inputs.get("old_per_token_logps")
            kl = kl * (leaf - (leaf.detach() if old is None else old)).exp()
        (slope,) = torch.autograd.grad((trainer.beta * weight * kl).sum(), leaf)
    return slope


# -------------------------------------------------------------------- what is refused


def _check(trainer: Any, over: str) -> None:
    kinds = (GRPOTrainer, RLOOTrainer, DPOTrainer, KTOTrainer, SFTTrainer)
    name = type(trainer).__name__
    if not trl.__version__.startswith(VERSIONS):
        raise ValueError(f"trl: version {trl.__version__}; legal is {VERSIONS[0]}*, whose seams are known: pip install 'trl~={VERSIONS[0]}0'")
    if any("unsloth" in f"{kind.__module__}.{kind.__name__}".lower() for kind in type(trainer).__mro__):
        raise ValueError(
            f"trainer: {name} is patched by Unsloth, whose loss ignores what is added; legal is TRL's own class (import trl before unsloth, or not at all)"
        )
    if not isinstance(trainer, kinds):
        raise ValueError(f"trainer: {name}; legal are TRL's {', '.join(kind.__name__ for kind in kinds)}")
    if over not in ("token", "trajectory") or (over == "trajectory" and not isinstance(trainer, GRPOTrainer)):
        raise ValueError(f"over={over!r} for {name}; legal is 'token', for GRPOTrainer also 'trajectory'")
    if isinstance(trainer, GRPOTrainer) and (trainer.entropy_coef != 0.0 or trainer.use_adaptive_entropy):
        raise ValueError("entropy_coef, use_adaptive_entropy: TRL's own bonus is on beside this one; legal is entropy_coef=0 and use_adaptive_entropy=False")
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"trainer: {trainer.args.n_gpu} GPUs in one process (DataParallel); legal is one a process: accelerate launch, torchrun, or CUDA_VISIBLE_DEVICES"
        )
    if trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        raise ValueError(
            "compute_loss_func, label_smoothing_factor: the loss would not come from the fused LM head, and the term be without gradient; legal is neither"
        )
    if clocked(trainer):
        raise ValueError("trainer: a controller is attached already; legal is one")
    if isinstance(trainer, (GRPOTrainer, RLOOTrainer)) and trainer.args.steps_per_generation % trainer.args.gradient_accumulation_steps:
        wrong = f"{trainer.args.steps_per_generation} with gradient_accumulation_steps={trainer.args.gradient_accumulation_steps}"
        raise ValueError(f"steps_per_generation={wrong}; legal is a multiple, so that an optimizer step's tokens can be counted before it begins")
    if not Head.is_fused(_plain(trainer)):
        raise ValueError(
            f"trainer: the forward of {type(_plain(trainer)).__name__} is not TRL's fused LM head: it has been patched; legal is the model as TRL leaves it"
        )


def _plain(trainer: Any) -> Any:
    """The causal language model, without PEFT's wrapper."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if "PeftModel" in (kind.__name__ for kind in type(model).__mro__) else model


def _closed(controller: Controller[Any] | float, trainer: Any, measure: Measure) -> Controller[Any]:
    """The controller with open fields filled, its target one that the vocabulary's distributions have, its signals ones that the trainer gives."""
    classes = targets.classes_left(trainer.model.get_output_embeddings().weight.shape[0], measure.top_p, measure.clamp)
    most = float(measure.family.from_renyi(torch.tensor(math.log(classes), dtype=torch.float64)))
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else None
    closed = targets.resolve(controller, steps=steps, max_entropy=most, lr=COEF_LR, init_coef=COEF_INIT, family=measure.family.name)
    try:
        targets.within(closed, most)
    except ValueError as error:
        raise ValueError(f"{error} (a length in steps is that of the run where max_steps is set)" if steps is None else error) from None
    given = {"grad_share", "progress"}
    given |= {"reward"} if isinstance(trainer, (GRPOTrainer, RLOOTrainer)) else set()
    given |= {"kl"} if isinstance(trainer, (GRPOTrainer, RLOOTrainer, KTOTrainer)) and trainer.beta else set()
    if missing := targets.needs(closed) - given:
        raise ValueError(f"controller={closed!r} reads {', '.join(missing)}; {type(trainer).__name__} gives {', '.join(sorted(given))}")
    return closed
