"""Deep Q-learning: the hard-max baseline, with three ways to explore.

Source: Mnih et al. 2015; double Q-learning: van Hasselt et al. 2016 (arXiv:1509.06461); noisy networks: Fortunato et al. 2018. Page: docs/recipes/dqn.md.
"""

from dataclasses import dataclass

import torch

from entreg import functional
from entreg.rl.qlearning import QConfig, QLearner, check_exploration
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Deep Q-learning (DQN)"
TEMPERATURE = "TargetEntropy(greedy_probability(0.9))"  # of Boltzmann exploration


@dataclass(frozen=True)
class Config(QConfig):
    """DQN on any Gymnasium environment with one discrete action."""

    double: bool = True
    """The learned network chooses the action whose value the target network tells."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    coef = (TEMPERATURE,) if config.exploration == "boltzmann" else ("0.0",)
    with QLearner("dqn", config, run, soft=False, coef=coef) as learner:
        for batch in learner.batches(learner.act):
            q, following = learner.look(batch)
            if config.double:
                with torch.no_grad():
                    choice = learner.values(batch.next_observation)
                value = functional.double_value(choice, following, support=batch.next_mask)
            else:
                value = functional.greedy_value(following, support=batch.next_mask)
            learner.regress(batch, q, functional.soft_backup(batch.reward, value, config.gamma, batch.terminated))
        return learner.finish()


def check(config: Config) -> None:
    """Raise `ValueError` for the first of DQN's own settings that cannot be meant."""
    check_exploration(config)
    if config.exploration != "boltzmann" and (config.coef or config.family != ("shannon",)):
        named = f"coef {config.coef}" if config.coef else f"family {config.family}"
        raise ValueError(f"{named}: DQN has a temperature with exploration boltzmann only, got {config.exploration}; soft_q learns with one")
