"""Advantage actor-critic, synchronous: one gradient step a rollout.

Source: Mnih et al. 2016 (arXiv:1602.01783), without the asynchronous workers. Page: docs/recipes/a2c.md.
"""

from dataclasses import dataclass

from entreg import functional
from entreg.rl.config import OnPolicyConfig
from entreg.rl.learner import Learner
from entreg.run import Run, Summary

STATUS = "stable"
SUMMARY = "Advantage actor-critic (A2C)"


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """A2C on any Gymnasium environment."""

    rollout: int = 8
    """Steps of each environment in a rollout."""
    lam: float = 1.0
    """GAE's lambda; 1 is the return to go minus the value."""
    learning_rate: str = "linear(0.003, 0)"
    """A number or a schedule over the run."""
    normalise_advantage: bool = False
    """Shift and scale the advantages of a rollout."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    with Learner("a2c", config, run) as learner:
        for rollout in learner.rollouts():
            outputs, value = learner.network.both(rollout.observation)
            log_prob, entropy = learner.families.stats(learner.head, outputs, rollout.action, rollout.mask)
            policy_loss = functional.policy_gradient(log_prob, learner.advantage(rollout))
            learner.gradient_step(outputs, policy_loss, (value - rollout.returns).square(), entropy)
        return learner.finish()
