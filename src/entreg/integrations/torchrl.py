"""Entropy control for TorchRL's loss modules: ClipPPOLoss (and PPOLoss, KLPENPPOLoss) and SACLoss.

    control = attach(ClipPPOLoss(actor, critic), TargetEntropy(0.5))      # once, before training
    control.step()                                                       # in the loop, once a controller step

Written is `loss.entropy_coeff`, a buffer, or `loss.log_alpha`; measured is what the loss computes with gradient between two steps: for PPO the exact entropy
(`[B]`, nats) of the actor's distribution in any family, which takes the place of the host's own (where that has no closed form, one sample), for SAC the host's
mean of `-log p`. The state is extra state of the loss module, a tensor of bytes, so that it travels in `loss.state_dict()`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

try:
    import torchrl
    from torchrl.modules import TanhNormal as HostTanhNormal
    from torchrl.objectives import PPOLoss, SACLoss
except ImportError as error:
    raise ImportError(f"integrations.torchrl needs {error.name}: pip install 'entreg[torchrl]'") from None

from entreg import targets
from entreg.bridge import Bridge
from entreg.control import Controller
from entreg.distributions import TanhNormal, renyi_entropy
from entreg.functional import SHANNON, Family

VERSIONS = ("0.14.",)  # whose seams were read and are tested; another version is refused, not guessed at
NAME = "entreg"  # of the module that holds the state
COEF_LR, COEF_INIT = 0.03, 0.01  # of a TargetEntropy that names none, for PPO; the start only where the loss's own coefficient is 0
SAC_LR = 3e-4
LEAST = 1e-30  # SAC's loss multiplies by log alpha, which is -inf at 0


def attach(
    loss: Any,
    controller: Controller[Any] | float,
    family: Family = SHANNON,
    *,
    steps: int | None = None,
    max_entropy: float | None = None,
    action_dim: float | None = None,
) -> Attached:
    """Puts a controller on the entropy coefficient of a loss module; call `step()` of what comes back once a controller step.

    `steps` is the length of the run in controller steps, `max_entropy` the largest entropy of an action, `action_dim` how many dimensions it has: what open
    schedules and targets by name need. A TargetEntropy without `lr` takes .03 (SAC 3e-4), without `init_coef` the loss's own coefficient.

    Raises: `ValueError`, before anything is changed, for another version or class, for a loss that would ignore the coefficient (`entropy_bonus=False`, one
    coefficient a head, SAC's `fixed_alpha=False` or alpha bounds), for a family beside SAC, and for a loss that has a controller.
    """
    _check(loss, family)
    sac = isinstance(loss, SACLoss)
    own = float(loss.log_alpha.detach().exp() if sac else loss.entropy_coeff)
    closed = targets.resolve(
        controller,
        steps=steps,
        max_entropy=max_entropy,
        action_dim=action_dim,
        lr=SAC_LR if sac else COEF_LR,
        init_coef=own if own > 0 else COEF_INIT,
        family=family.name,
    )
    closed.init()
    if max_entropy is not None:
        targets.within(closed, max_entropy)
    return Attached(loss, closed, family)


class Attached:
    """A loss module's controller. `coef` is what the loss uses now, `record()` what the last step measured."""

    def __init__(self, loss: Any, controller: Controller[Any], family: Family) -> None:
        self._loss, self._family, self._sac = loss, family, isinstance(loss, SACLoss)
        self._window: Tensor | None = None  # (3,): total of the family's entropies, of Shannon's, their number, since the last step
        self._record: dict[str, float] = {}
        self._seen = (math.nan, math.nan)
        self.bridge = Bridge(controller, lambda: self._seen[0], self._write)
        setattr(loss, NAME, _State(self.bridge))
        if self._sac:
            self._host = loss._alpha_loss
            loss._alpha_loss = self._alpha_loss
        else:
            loss._get_entropy = self._get_entropy

    @property
    def coef(self) -> float:
        """The coefficient that the loss uses."""
        return self.bridge.coef

    def record(self) -> dict[str, float]:
        """What the last step measured, in the names of records: entropy (Shannon, nats), entropy/family, entropy/target, coef."""
        return dict(self._record)

    def step(self, **signals: float) -> None:
        """One controller step on the mean entropy of all losses since the last one, and the named signals (`reward`, `kl`, `grad_share`, `progress`).

        Raises: `ValueError` where a signal that the controller reads is absent or not finite, the entropy too (no loss was computed); nothing has changed then.
        """
        family, shannon, count = (math.nan, math.nan, 1.0) if self._window is None else self._window.tolist()
        used, self._seen = self.coef, (family / count, shannon / count)
        record = {"entropy": self._seen[1], "coef": used}
        if self._family != SHANNON:
            record["entropy/family"] = self._seen[0]
        if self.bridge.target is not None:
            record["entropy/target"] = self.bridge.target
        self.bridge.step(**signals)
        self._record = record
        self._window = None

    def _write(self, coef: float) -> None:
        if self._sac:
            if coef < 0:
                raise ValueError(f"coef={coef!r} for SACLoss, which has its logarithm; legal is a number >= 0, so give the controller such bounds")
            self._loss.log_alpha.fill_(math.log(max(coef, LEAST)))
        else:
            self._loss.entropy_coeff.fill_(coef)

    def _see(self, family: Tensor, shannon: Tensor) -> None:
        if not torch.is_grad_enabled():  # what an evaluation computes is not training
            return
        with torch.no_grad():
            number = torch.tensor(family.numel(), dtype=torch.float64, device=family.device)
            window = torch.stack([family.sum(dtype=torch.float64), shannon.sum(dtype=torch.float64), number])
            self._window = window if self._window is None else self._window + window

    def _get_entropy(self, dist: Any, adv_shape: Any = None) -> Tensor:
        """In the place of the host's: exact entropies `[B, 1]`."""
        value = policy_entropy(dist, self._family)
        self._see(value, value if self._family == SHANNON else policy_entropy(dist, SHANNON))
        return value.unsqueeze(-1)

    def _alpha_loss(self, log_prob: Tensor) -> Any:
        self._see(-log_prob, -log_prob)
        return self._host(log_prob)


class _State(torch.nn.Module):
    """The controller's state as extra state of the loss module: JSON in a tensor of bytes, which every format of checkpoints can hold."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self._bridge.state_dict()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        self._bridge.load_state_dict(json.loads(bytes(state.tolist())))


def policy_entropy(dist: Any, family: Family = SHANNON) -> Tensor:
    """Exact entropy `[B]`, nats, of an actor's distribution, TorchRL's own ones too; a TanhNormal's is that of the action between its bounds.

    Raises: `TypeError` for a distribution without exact entropy (a CompositeDistribution: give each head a loss of its own).
    """
    if not isinstance(dist, HostTanhNormal):
        return family.from_renyi(renyi_entropy(dist, family.order))
    inner = renyi_entropy(TanhNormal(dist.loc, dist.scale, validate_args=False), family.order)
    width = (torch.as_tensor(dist.high - dist.low, device=inner.device) / 2).log().expand_as(inner)  # from (-1, 1) to the bounds
    value = inner + width
    return family.from_renyi(value.sum(-1) if dist.event_shape else value)


def _check(loss: Any, family: Family) -> None:
    name = type(loss).__name__
    if not torchrl.__version__.startswith(VERSIONS):
        raise ValueError(f"torchrl: version {torchrl.__version__}; legal is {VERSIONS[0]}*, whose seams are known")
    if not isinstance(loss, (PPOLoss, SACLoss)):
        raise ValueError(f"loss: {name}; legal are ClipPPOLoss, PPOLoss, KLPENPPOLoss, SACLoss")
    if isinstance(getattr(loss, NAME, None), _State):
        raise ValueError("loss: a controller is attached already; legal is one")
    if isinstance(loss, PPOLoss):
        if not loss.entropy_bonus:
            raise ValueError("entropy_bonus=False: the loss would ignore the coefficient; legal is True")
        if loss._entropy_coeff_map is not None:
            raise ValueError(f"entropy_coeff={loss._entropy_coeff_map!r}: with one a head the loss ignores what is written; legal is a number")
        return
    if not loss.fixed_alpha:
        raise ValueError("fixed_alpha=False: an optimizer would overwrite the coefficient; legal is SACLoss(..., fixed_alpha=True)")
    if loss.min_log_alpha is not None or loss.max_log_alpha is not None:
        raise ValueError("min_alpha, max_alpha: the loss would move the coefficient; legal is neither, and bounds in the controller")
    if family != SHANNON:
        raise ValueError(f"family={family.name!r} for SACLoss, whose soft value is Shannon's; legal is SHANNON")


__all__ = ["Attached", "attach", "policy_entropy"]
