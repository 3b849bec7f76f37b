"""Soft Q-learning: the Bellman equation with the soft value of any family, whose temperature is the coefficient; Munchausen's bonus as an option.

Source: Haarnoja et al. 2017 (arXiv:1702.08165), for discrete actions with the exact soft value, for continuous ones with the paper's sampler;
Vieillard et al. 2020 (arXiv:2007.14430).
Page: docs/recipes/soft_q.md.
"""

from dataclasses import dataclass

import torch
from gymnasium.spaces import Box

from entreg import functional
from entreg.rl import naming
from entreg.rl.config import check_off_policy, require
from entreg.rl.energy import EnergyConfig, EnergyLearner, check_continuous, check_energy
from entreg.rl.exploration import Exploration
from entreg.rl.qlearning import QLearner, check_exploration, warn_of_uniform_targets
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Soft Q-learning"
TEMPERATURE = "TargetEntropy(greedy_probability(0.9))"


@dataclass(frozen=True)
class Config(EnergyConfig):
    """Soft Q-learning on any Gymnasium environment with one discrete action or continuous ones; `coef` is the temperature."""

    exploration: Exploration = "boltzmann"
    """boltzmann: the soft policy itself, the only one for continuous actions. epsilon_greedy: epsilon of the actions are random. noisy_net: noisy weights."""
    munchausen: bool = False
    """Add the scaled log-probability of the taken action to the reward."""
    munchausen_alpha: float = 0.9
    """Weight of that bonus."""
    munchausen_floor: float = -1.0
    """The bonus before its weight is at least this."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    if isinstance(naming.action_space(config.env, config.env_kwargs), Box):
        return train_continuous(config, run)
    with QLearner("soft_q", config, run, soft=True, coef=(TEMPERATURE,)) as learner:
        warn_of_uniform_targets(learner)
        for batch in learner.batches(learner.act):
            q, following = learner.look(batch)
            reward, tau = batch.reward, learner.temperature()
            if config.munchausen:
                with torch.no_grad():
                    now = learner.targets(batch.observation)
                action, alpha, floor = batch.action.squeeze(-1), config.munchausen_alpha, config.munchausen_floor
                reward = reward + functional.munchausen_bonus(now, action, tau, alpha=alpha, floor=floor, support=batch.mask)
            value = learner.soft_value(following, batch.next_mask)
            learner.regress(batch, q, functional.soft_backup(reward, value, config.gamma, batch.terminated))
        return learner.finish()


def train_continuous(config: Config, run: Run | None) -> Summary:
    """The same for continuous actions."""
    check_continuous(config)
    if config.munchausen:
        raise ValueError("munchausen is for discrete actions: of the sampler's actions no log-probability is known; leave it off")
    with EnergyLearner("soft_q", config, run) as learner:
        for batch in learner.batches(learner.act):
            learner.improve(batch)
        return learner.finish()


def check(config: Config) -> None:
    """Raise `ValueError` for the first of soft Q-learning's own settings that cannot be meant."""
    check_off_policy(config)
    check_exploration(config)
    check_energy(config)
    require(config, "munchausen_alpha", lambda value: 0 <= value <= 1, "between 0 and 1")
    require(config, "munchausen_floor", lambda value: value <= 0, "at most 0 and finite")
    if config.munchausen and set(config.family) != {"shannon"}:
        raise ValueError(f"family {config.family}: Munchausen's bonus is a log-probability of the Shannon policy; legal with munchausen is shannon")
