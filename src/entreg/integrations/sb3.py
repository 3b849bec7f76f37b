"""Entropy control for stable-baselines3 (PPO, A2C, SAC) and sb3-contrib (MaskablePPO, RecurrentPPO): one callback.

    model.learn(100_000, callback=EntropyControl(TargetEntropy(fraction_of_max(0.5))))

On-policy: the coefficient is `model.ent_coef`, the entropy what the update itself averaged (`train/entropy_loss`, sign turned), one controller step a rollout.
SAC: the coefficient is `model.ent_coef_tensor`, the entropy the exact one of the tanh policy, one controller step a gradient step; `ent_coef="auto"` is taken
over at the value it has reached. A coefficient is used first and moved afterwards, so a schedule's first value is that of the first update.

Where the host has no exact entropy (squashed policies, for which it takes `-log p` of old actions: a gradient of mean zero), and for other families than
Shannon's, `policy.evaluate_actions` is wrapped during training and returns the exact one, `[B]` nats. The state lies in `model.entreg`, plain numbers, and so
in the zip of every `model.save`, those of callbacks too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

try:
    import stable_baselines3
    from sb3_contrib import MaskablePPO, RecurrentPPO
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution
    from stable_baselines3 import A2C, PPO, SAC
    from stable_baselines3.common import distributions as sb3
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.type_aliases import TrainFrequencyUnit
    from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped
except ImportError as error:
    raise ImportError(f"integrations.sb3 needs {error.name}: pip install 'entreg[sb3]'") from None

from entreg import targets
from entreg.bridge import Bridge
from entreg.control import Controller, current_target
from entreg.distributions import Joint, TanhNormal, entropy
from entreg.functional import SHANNON, Family, categorical_entropy, renyi

VERSIONS = ("2.9.",)  # whose seams were read and are tested; another version is refused, not guessed at
HOSTS = (PPO, A2C, MaskablePPO, RecurrentPPO, SAC)
COEF_LR, COEF_INIT = 0.03, 0.01  # of a TargetEntropy that names none, on-policy; the start only where the model's own coefficient is 0
SAC_LR = 3e-4


class EntropyControl(BaseCallback):  # type: ignore[misc]
    """Lets a controller set a model's entropy coefficient during `learn`; give it to `learn` itself, alone or in a list.

    `family` (not for SAC): whose entropy is the bonus and what the controller reads. `restart`: forget the controller's state in the model. Logged with the
    host's own values: `entreg/coef` (the one that was used), `entreg/entropy` (Shannon, nats), `entreg/entropy/family`, `entreg/entropy/target`.
    `TargetEntropy` without `lr` takes .03 (SAC 3e-4), without `init_coef` the model's own coefficient; a schedule without `steps` ends with this `learn`.

    Raises: `ValueError` when training starts for another version or class (TRPO, for one, ignores its `ent_coef`), a target out of reach, a controller that
    reads what the model does not measure, a second callback of this kind, a model that holds a state while `learn` counts from 0 and `restart` is not said.
    """

    def __init__(self, controller: Controller[Any] | float, family: Family = SHANNON, *, restart: bool = False, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._given, self._family, self._restart = controller, family, restart
        self.bridge: Bridge | None = None
        self._pending = False  # an update has used the coefficient, and the controller has not been told
        self._entropies: list[float] = []  # Shannon, nats: means of the batches since the last controller step

    # ---------------------------------------------------------------- the host's clock

    def _on_training_start(self) -> None:
        self._check()
        model = self.model
        self._sac, self._pending = isinstance(model, SAC), False
        controller = self._closed()
        self._needs = targets.needs(controller)
        saved = None if self._restart else getattr(model, "entreg", None)
        if saved is not None and model.num_timesteps == 0:
            raise ValueError(
                "learn: the model holds a controller's state, and this call counts its steps from 0; legal is reset_num_timesteps=False, which goes on with it,"
                " or EntropyControl(..., restart=True), which begins anew"
            )
        self._restart = False
        self.bridge = Bridge(controller, self._read, self._write)
        if saved is not None:
            self.bridge.load_state_dict(saved)
        self._keep()
        self._wrap()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._settle()

    def _on_rollout_end(self) -> None:
        self._pending = not self._sac  # SAC: set by the gradient steps themselves, of which there may be none

    def _on_training_end(self) -> None:
        self._settle()
        self._unwrap()

    def _settle(self) -> None:
        """One controller step for an update that has happened."""
        if not self._pending:
            return
        assert self.bridge is not None
        self._pending, signals = False, self._signals()
        measured = self._read()
        record = {"coef": self.bridge.coef}
        if self._family == SHANNON or self._entropies:
            record["entropy"] = measured if self._family == SHANNON else float(np.mean(self._entropies))
        if self._family != SHANNON:
            record["entropy/family"] = measured
        if self.bridge.target is not None:
            record["entropy/target"] = self.bridge.target
        if "reward" not in self._needs or "reward" in signals:  # a controller that reads rewards waits for the first episode to end
            self.bridge.step(**signals)
        self._entropies.clear()
        self._keep()
        for name, value in record.items():
            self.model.logger.record(f"entreg/{name}", value)

    def _keep(self) -> None:
        """The state into the model, whose zip keeps plain numbers as JSON."""
        assert self.bridge is not None
        self.model.entreg = self.bridge.state_dict()

    def _read(self) -> float:
        if self._sac:
            return self._entropies[-1] if self._entropies else math.nan
        loss = self.model.logger.name_to_value.get("train/entropy_loss")
        if loss is None:
            raise RuntimeError(f"{type(self.model).__name__}: train/entropy_loss is not in its logger after an update; something dumped or replaced it")
        return -float(loss)

    def _write(self, coef: float) -> None:
        model = self.model
        model.ent_coef = coef
        if self._sac:
            model.ent_coef_optimizer = model.log_ent_coef = None  # "auto" would overwrite what is written; the zip is then that of a model with a number
            model.ent_coef_tensor = torch.tensor(coef, device=model.device)

    def _signals(self) -> dict[str, float]:
        model = self.model
        signals = {"progress": min(1.0, model.num_timesteps / model._total_timesteps)}
        if model.ep_info_buffer:
            signals["reward"] = float(np.mean([episode["r"] for episode in model.ep_info_buffer]))
        if "train/approx_kl" in model.logger.name_to_value:
            signals["kl"] = float(model.logger.name_to_value["train/approx_kl"])
        return signals

    # ---------------------------------------------------------------- exact entropies

    def _wrap(self) -> None:
        self._unwrap()
        if self._sac:
            self.model.actor.action_log_prob = _Watched(self.model.actor.action_log_prob, self._watch)
        elif self._family != SHANNON or _squashed(self.model.policy.action_dist):
            self.model.policy.evaluate_actions = _Watched(self.model.policy.evaluate_actions, self._exact)

    def _unwrap(self) -> None:
        for module, name in ((self.model.policy, "evaluate_actions"), (getattr(self.model, "actor", None), "action_log_prob")):
            if module is not None and isinstance(vars(module).get(name), _Watched):
                setattr(module, name, vars(module)[name].inner)

    def _exact(self, result: Any) -> Any:
        """The host's `values, log_prob, entropy` with the family's exact entropy `[B]`."""
        values, log_prob, own = result
        dist = self.model.policy.action_dist
        shannon = policy_entropy(dist, SHANNON).detach()
        if own is not None and not torch.allclose(own.detach(), shannon, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"{type(self.model.policy).__name__}: its entropy is not that of policy.action_dist, so no other can be put in its place")
        if not isinstance(self.model, RecurrentPPO):  # whose batches are padded, and only the host knows where
            self._entropies.append(float(shannon.mean()))
        return values, log_prob, policy_entropy(dist, self._family)

    def _watch(self, result: Any) -> Any:
        """A SAC actor's samples: with gradient they are those of a gradient step, which is told apart from the next one's here."""
        if torch.is_grad_enabled():
            self._settle()
            with torch.no_grad():
                self._entropies.append(float(policy_entropy(self.model.actor.action_dist, SHANNON).mean()))
            self._pending = True
        return result

    # ---------------------------------------------------------------- what is refused

    def _check(self) -> None:
        name = type(self.model).__name__
        if not stable_baselines3.__version__.startswith(VERSIONS):
            raise ValueError(f"stable_baselines3: version {stable_baselines3.__version__}; legal is {VERSIONS[0]}*, whose seams are known")
        if not isinstance(self.model, HOSTS):
            raise ValueError(f"model: {name}, whose entropy coefficient is ignored or not known here; legal are {', '.join(kind.__name__ for kind in HOSTS)}")
        if isinstance(self.model, SAC) and self._family != SHANNON:
            raise ValueError(f"family={self._family.name!r} for SAC, whose soft value is Shannon's; legal is SHANNON")
        if self.parent is not None:
            raise ValueError(f"callback: EntropyControl inside {type(self.parent).__name__}, which tells it of no rollout; legal is beside it, in a list")
        if sum(isinstance(one, EntropyControl) for one in _flat(self.locals["callback"])) > 1:
            raise ValueError("callback: two EntropyControl; legal is one")

    def _closed(self) -> Controller[Any]:
        """The controller with open fields filled, its target one that the action space has, its signals ones that the model measures."""
        model, sac = self.model, isinstance(self.model, SAC)
        space = model.action_space
        most, dims = _most(space, model.policy.squash_output, self._family)
        own = float(model.log_ent_coef.detach().exp()) if sac and model.log_ent_coef is not None else float(model.ent_coef)
        controller = targets.resolve(
            self._given,
            steps=_length(model),
            max_entropy=None if dims or isinstance(model, MaskablePPO) else most,
            action_dim=dims or None,
            lr=SAC_LR if sac else COEF_LR,
            init_coef=own if own > 0 else COEF_INIT,
            family=self._family.name,
        )
        try:
            controller.init()
        except ValueError as error:
            why = "with masks the largest entropy differs from state to state" if isinstance(model, MaskablePPO) else f"{type(model).__name__} on {space}"
            raise ValueError(f"{error} ({why})") from None
        if dims == 0:
            targets.within(controller, most)
        elif (wanted := current_target(controller, controller.init())) is not None and wanted >= most:
            raise ValueError(f"controller={controller!r}: its target is {wanted:.6g}; no tanh policy of {dims} dimensions has more than {most:.6g}")
        given = {"progress"} | ({"kl"} if not isinstance(model, (A2C, SAC)) else set())
        given |= {"reward"} if is_vecenv_wrapped(model.env, VecMonitor) or all(model.env.env_is_wrapped(Monitor)) else set()
        if missing := targets.needs(controller) - given:
            raise ValueError(f"controller={controller!r} reads {', '.join(missing)}; this {type(model).__name__} gives {', '.join(sorted(given))}")
        return controller


class _Watched:
    """A host's function whose results are looked at, or replaced."""

    def __init__(self, inner: Callable[..., Any], look: Callable[[Any], Any]) -> None:
        self.inner, self._look = inner, look

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._look(self.inner(*given, **named))


def policy_entropy(dist: Any, family: Family = SHANNON) -> Tensor:
    """Exact entropy `[B]`, nats, of a policy's distribution object in stable-baselines3 or sb3-contrib; of squashed ones that of the action in [-1, 1].

    Raises: `TypeError` for a distribution that is not theirs.
    """
    match dist:
        case MaskableCategoricalDistribution():
            return _masked([dist.distribution], family)
        case MaskableMultiCategoricalDistribution():  # and its Bernoulli: pairs
            return _masked(dist.distributions, family)
        case sb3.MultiCategoricalDistribution():
            return entropy(Joint(tuple(dist.distribution)), family)
        case sb3.BernoulliDistribution():
            return entropy(Independent(Bernoulli(logits=dist.distribution.logits), 1), family)
        case sb3.CategoricalDistribution():
            return entropy(dist.distribution, family)
        case sb3.DiagGaussianDistribution() | sb3.StateDependentNoiseDistribution():
            normal = dist.distribution
            kind: Any = TanhNormal if _squashed(dist) else Normal
            return entropy(Independent(kind(normal.loc, normal.scale, validate_args=False), 1), family)
    raise TypeError(f"dist: {type(dist).__name__}; legal are the distributions of stable-baselines3 and sb3-contrib")


def _masked(heads: list[Any], family: Family) -> Tensor:
    """Independent masked heads: their Rényi entropies are added and the family's transform comes last."""
    order = renyi(family.order)
    return family.from_renyi(torch.stack([categorical_entropy(head.logits, order, support=head.masks) for head in heads]).sum(0))


def _squashed(dist: Any) -> bool:
    return isinstance(dist, sb3.SquashedDiagGaussianDistribution) or getattr(dist, "bijector", None) is not None


def _flat(callback: Any) -> Iterator[Any]:
    yield callback
    for inner in callback.callbacks if isinstance(callback, CallbackList) else ():
        yield from _flat(inner)


def _most(space: Any, squashed: bool, family: Family) -> tuple[float, int]:
    """The largest entropy of the family over an action space, and how many dimensions a continuous one has (0: discrete)."""
    match type(space).__name__:
        case "Discrete":
            sizes = [int(space.n)]
        case "MultiDiscrete":
            sizes = [int(n) for n in space.nvec.flat]
        case "MultiBinary":
            sizes = [2] * int(np.prod(space.shape))
        case _:
            dims = int(np.prod(space.shape))
            return (dims * targets.best_squashed(0.0).entropy if squashed and family == SHANNON else math.inf), dims
    return float(family.from_renyi(torch.tensor(sum(math.log(n) for n in sizes), dtype=torch.float64))), 0


def _length(model: Any) -> int | None:
    """Controller steps from the beginning to the end of this `learn`: rollouts, for SAC gradient steps; None where the host counts episodes."""
    if not isinstance(model, SAC):
        return math.ceil(int(model._total_timesteps) / int(model.n_steps * model.n_envs))
    if model.train_freq.unit != TrainFrequencyUnit.STEP:
        return None
    each = int(model.train_freq.frequency * model.n_envs)
    rollouts = math.ceil(int(model._total_timesteps) / each) - int(model.learning_starts) // each
    return max(1, rollouts * (int(model.gradient_steps) if model.gradient_steps >= 0 else each))


__all__ = ["EntropyControl", "policy_entropy"]
