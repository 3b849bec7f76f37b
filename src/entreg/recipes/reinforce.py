"""REINFORCE: returns to go times grad log-probability, with a choice of baseline.

Source: Williams 1992, eq. 4 and 11 (doi:10.1007/BF00992696); the entropy bonus of Williams & Peng 1991. Page: docs/recipes/reinforce.md.
"""

from dataclasses import dataclass
from typing import Literal

from entreg import functional
from entreg.rl.config import OnPolicyConfig
from entreg.rl.learner import Learner, Rollout
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "REINFORCE, the plain policy gradient"


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """REINFORCE on any Gymnasium environment."""

    lam: float = 1.0
    """1: returns to go. An episode that the rollout cuts is continued by the value of the state it stopped in."""
    baseline: Literal["value", "mean", "none"] = "value"
    """What is subtracted from the return: the learned value, the mean return of the rollout, or nothing."""
    normalise_advantage: bool = False
    """Shift and scale the advantages of a rollout."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    with Learner("reinforce", config, run) as learner:
        for rollout in learner.rollouts():
            outputs, value = learner.network.both(rollout.observation)
            log_prob, entropy = learner.families.stats(learner.head, outputs, rollout.action, rollout.mask)
            policy_loss = functional.policy_gradient(log_prob, learner.advantage(with_baseline(learner, rollout, config.baseline)))
            learner.gradient_step(outputs, policy_loss, (value - rollout.returns).square(), entropy)
        return learner.finish()


def with_baseline(learner: Learner, rollout: Rollout, baseline: str) -> Rollout:
    """The rollout with its advantages measured against `baseline` instead of the value."""
    if baseline == "none":
        return rollout._replace(advantage=rollout.returns)
    if baseline == "mean":
        return rollout._replace(advantage=rollout.returns - learner.ranks.mean(rollout.returns)[:, None])
    return rollout
