"""Entropy control for any LightningModule: a callback that reads a logged entropy and writes an attribute.

    def training_step(self, batch, index):                     # the module's own, with two conventions
        ...
        self.log("entropy", entropy.mean())                    # nats
        return task_loss - self.entropy_coef * entropy.mean()
    Trainer(callbacks=[EntropyControl(TargetEntropy(0.5))])

One controller step an optimizer step, on the mean over its micro-batches and ranks. The state is the callback's own, which Lightning keeps in its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

try:
    import lightning
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(f"integrations.lightning needs {error.name}: pip install 'entreg[lightning]'") from None

from entreg import targets
from entreg.bridge import Bridge
from entreg.control import Controller

VERSIONS = ("2.6.",)  # whose seams were read and are tested; another version is refused, not guessed at
COEF_LR, COEF_INIT = 0.03, 0.01  # of a TargetEntropy that names none; the start only where the module's own coefficient is 0


class EntropyControl(Callback):  # type: ignore[misc]
    """Lets a controller set the attribute `coef` of a LightningModule from the entropy that it logs as `entropy`, nats, in every training step.

    `coef` may lead into a submodule ("policy.entropy_coef"); a number or a buffer of one element. `signals` names what else the controller reads, by the names
    under which it is logged: {"reward": "val/return"}; `progress` is known. `max_entropy` and `action_dim` are what targets by name need, a schedule without
    `steps` ends with the run, TargetEntropy takes .03 for a missing `lr` and the module's own coefficient for a missing `init_coef`. `sense` "minimize" where
    the module ADDS coef times entropy. Logged: `entreg/coef` (the one that was used), `entreg/entropy/target`.

    Raises: `ValueError` when training starts for another version, a module without that attribute, a target out of reach, a checkpoint without a controller;
    `RuntimeError` in the first training step where the module does not log the entropy, or never reads the attribute: it would ignore the controller.
    """

    def __init__(
        self,
        controller: Controller[Any] | float,
        *,
        entropy: str = "entropy",
        coef: str = "entropy_coef",
        sense: Literal["maximize", "minimize"] = "maximize",
        signals: Mapping[str, str] | None = None,
        max_entropy: float | None = None,
        action_dim: float | None = None,
    ) -> None:
        self._given, self._entropy, self._coef, self._sense = controller, entropy, coef, sense
        self._signals, self._max_entropy, self._action_dim = dict(signals or {}), max_entropy, action_dim
        self.bridge: Bridge | None = None
        self._saved: dict[str, Any] | None = None
        self._values: list[float] = []  # entropies of the micro-batches since the last optimizer step
        self._steps_seen = 0
        self._probe: _Probe | None = None

    # ---------------------------------------------------------------- the host's clock

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not lightning.__version__.startswith(VERSIONS):
            raise ValueError(f"lightning: version {lightning.__version__}; legal is {VERSIONS[0]}*, whose seams are known")
        holder, name = _find(pl_module, self._coef)
        controller = self._closed(float(getattr(holder, name)), trainer.estimated_stepping_batches)
        saved = self._saved if self._saved is not None or self.bridge is None else self.bridge.state_dict()
        if saved is None and trainer.global_step > 0:
            raise ValueError(f"ckpt_path: the checkpoint of step {trainer.global_step} holds no controller; legal is one of a run with this callback")
        self.bridge = Bridge(controller, self._read, lambda value: _put(holder, name, value), sense=self._sense)
        if saved is not None:
            self.bridge.load_state_dict(saved)
        self._saved, self._steps_seen, self._probe = None, trainer.global_step, _Probe(holder, name)
        self._values.clear()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._probe is not None and getattr(pl_module, "_compiler_ctx", None) is None:  # torch.compile would look into the probe
            self._probe.set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._looked(type(pl_module).__name__)
        self._values.append(_logged(trainer, self._entropy, type(pl_module).__name__))
        if trainer.global_step == self._steps_seen:
            return
        assert self.bridge is not None
        self._steps_seen = trainer.global_step
        self._values = [_mean_over_ranks(trainer, sum(self._values) / len(self._values))]
        signals = {name: _logged(trainer, key, type(pl_module).__name__) for name, key in self._signals.items() if key in trainer.callback_metrics}
        signals.setdefault("progress", min(1.0, trainer.global_step / trainer.estimated_stepping_batches))
        pl_module.log("entreg/coef", self.bridge.coef, on_step=True, on_epoch=False)
        if self.bridge.target is not None:
            pl_module.log("entreg/entropy/target", self.bridge.target, on_step=True, on_epoch=False)
        if not (targets.needs(self.bridge.controller) & set(self._signals)) - set(signals):  # a signal of validation comes with the first one
            self.bridge.step(**signals)
        self._values.clear()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._probe is not None:
            self._probe.unset()

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, which Lightning keeps in its checkpoints."""
        return self.bridge.state_dict() if self.bridge is not None else dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there when training starts."""
        self._saved = dict(state_dict) or None

    # ---------------------------------------------------------------- parts

    def _read(self) -> float:
        return self._values[0] if self._values else math.nan

    def _looked(self, module: str) -> None:
        """After the first training step: whether the module has read its coefficient."""
        probe, self._probe = self._probe, None
        if probe is not None and probe.unset() is False:
            raise RuntimeError(f"{module}: training_step did not read self.{self._coef}, so that the controller would be ignored; legal is a loss with it")

    def _closed(self, own: float, steps: float) -> Controller[Any]:
        controller = targets.resolve(
            self._given,
            steps=int(steps) if math.isfinite(steps) else None,
            max_entropy=self._max_entropy,
            action_dim=self._action_dim,
            lr=COEF_LR,
            init_coef=own if own > 0 else COEF_INIT,
        )
        controller.init()
        if self._max_entropy is not None:
            targets.within(controller, self._max_entropy)
        if missing := targets.needs(controller) - {"progress"} - set(self._signals):
            raise ValueError(f"controller={controller!r} reads {', '.join(sorted(missing))}; legal: signals={{{sorted(missing)[0]!r}: its logged name}}")
        return controller


class _Probe:
    """Stands on a module's class for one training step, and knows whether an attribute of the module was read there."""

    def __init__(self, holder: nn.Module, name: str) -> None:
        self._holder, self._name, self._on, self._read = holder, name, False, False

    def set(self) -> None:
        setattr(type(self._holder), self._name, self)
        self._on = True

    def unset(self) -> bool | None:
        """None: it was never set."""
        if not self._on:
            return None
        self._on = False
        delattr(type(self._holder), self._name)
        return self._read

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        self._read |= instance is self._holder
        own = vars(instance)
        return own[self._name] if self._name in own else nn.Module.__getattr__(instance, self._name)  # others of this class have what they have

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


def _find(module: Any, path: str) -> tuple[nn.Module, str]:
    """The (sub)module that has the attribute, and its name there."""
    *way, name = path.split(".")
    try:
        holder = module.get_submodule(".".join(way))
    except AttributeError:
        holder = None
    value = None if holder is None else vars(holder).get(name, holder._buffers.get(name))
    if isinstance(value, bool) or not (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
        raise ValueError(f"coef={path!r}: {type(module).__name__} has there {value!r}; legal is the name of an attribute that is a number or a buffer of one")
    assert holder is not None
    return holder, name


def _put(holder: nn.Module, name: str, value: float) -> None:
    if name in holder._buffers:
        buffer = holder._buffers[name]
        assert buffer is not None
        buffer.fill_(value)
    else:
        setattr(holder, name, value)


def _logged(trainer: Any, name: str, module: str) -> float:
    """The value of this step, or of the last validation."""
    value = trainer.callback_metrics.get(name)
    if value is None:
        raise RuntimeError(f"{module}: {name!r} is not logged in this training step; legal is self.log({name!r}, value), with on_step=True")
    return float(value)


def _mean_over_ranks(trainer: Any, value: float) -> float:
    if trainer.world_size == 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="mean"))


__all__ = ["EntropyControl"]
