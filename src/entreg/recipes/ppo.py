"""Proximal policy optimisation with an entropy bonus of any family and controller.

Source: Schulman et al. 2017 (arXiv:1707.06347); generalised advantage estimates of Schulman et al. 2016. Page: docs/recipes/ppo.md.
Shapes: M members, N items of a rollout, B of a minibatch, E epochs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from entreg import functional
from entreg.rl.config import OnPolicyConfig, require
from entreg.rl.learner import Learner, Rollout
from entreg.run import Run, Summary

if TYPE_CHECKING:
    from entreg.rl.fused_ppo import FusedPPO

STATUS = "stable"
SUMMARY = "Proximal policy optimisation (PPO)"


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """PPO on any Gymnasium environment."""

    epochs: int = 10
    """Passes over each rollout."""
    batch_size: int = 256
    """Items of a minibatch."""
    clip: str = "0.2"
    """Clip range of the probability ratio: a number or a schedule over the run."""
    kl_coef: float = 0.0
    """Weight of the exact KL(old || new), beside the bonus."""
    target_kl: float | None = None
    """Stop the epochs of a member when a minibatch's KL passes 1.5 times this."""
    update: Literal["eager", "fused"] = "eager"
    """fused: acting and updates in compiled code, several times faster for small tanh or relu networks with one discrete head and Shannon
    entropy; the first use on a machine compiles for some seconds (pip install 'entreg[fused]')."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    learner = Learner("ppo", config, run, schedules={"clip": config.clip})
    fused = fused_for(learner, config) if config.update == "fused" else None
    with learner:
        for rollout in learner.rollouts():
            clip = learner.schedules["clip"].value
            if fused is not None:
                fused.update(rollout, clip)
            else:
                update(learner, config, rollout, clip)
        return learner.finish()


def update(learner: Learner, config: Config, rollout: Rollout, clip: float) -> None:
    """Several epochs of clipped gradient steps on one rollout."""
    active = torch.ones(len(rollout.advantage), dtype=torch.bool)
    for batch in minibatches(learner, config, rollout):
        outputs, value = learner.network.both(batch.observation)
        log_prob, entropy = learner.families.stats(learner.head, outputs, batch.action, batch.mask)
        policy_loss = functional.ppo_clip(log_prob, batch.log_prob, batch.advantage, clip)
        if config.kl_coef or config.target_kl is not None:
            kl = learner.head.kl(batch.outputs, outputs, batch.mask)
            policy_loss = policy_loss + config.kl_coef * kl
            if config.target_kl is not None:
                active &= learner.ranks.mean(kl.detach(), batch.weight) <= 1.5 * config.target_kl
                if not active.any():
                    return
        learner.gradient_step(outputs, policy_loss, (value - batch.returns).square(), entropy, active, batch.weight)


def minibatches(learner: Learner, config: Config, rollout: Rollout) -> Iterator[Rollout]:
    """The minibatches of all epochs, with advantages as the loss takes them."""
    items = rollout.advantage.shape[1] * learner.ranks.part.of
    whole = rollout._replace(advantage=learner.advantage(rollout))
    for order in torch.from_numpy(learner.streams.orders(config.epochs, items)).unbind(1):
        if config.batch_size >= items:  # one minibatch that holds everything needs no order
            yield whole
            continue
        for part in order.split(config.batch_size, dim=1):
            taken = learner.ranks.take(part, config.environments)
            batch = rollout.take(taken.items)._replace(weight=taken.weight)
            yield batch._replace(advantage=learner.advantage(batch))


def fused_for(learner: Learner, config: Config) -> "FusedPPO":
    """The compiled update of this learner; `ImportError` without numba, `ValueError` where it does not fit."""
    from entreg.rl.fused_ppo import FusedPPO

    return FusedPPO(learner, batch_size=config.batch_size, epochs=config.epochs)


def check(config: Config) -> None:
    """Raise `ValueError` for the first of PPO's own settings that cannot be meant."""
    for name in ("epochs", "batch_size"):
        require(config, name, lambda value: value >= 1, "at least 1")
    if config.update not in ("eager", "fused"):
        raise ValueError(f"update must be eager or fused, got {config.update!r}")
    if config.update == "fused" and (config.kl_coef or config.target_kl is not None):
        raise ValueError("update fused knows neither kl_coef nor target_kl; use update eager with them")
    require(config, "kl_coef", lambda value: value >= 0, "finite and not negative")
    if config.target_kl is not None:
        require(config, "target_kl", lambda value: value > 0, "positive and finite, or None")
