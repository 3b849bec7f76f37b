"""Asynchronous advantage actor-critic: workers that share parameters and optimizer statistics, and do not wait for each other.

Source: Mnih et al. 2016 (arXiv:1602.01783), algorithm S3 and supplementary 4. Page: docs/recipes/a3c.md.
"""

from dataclasses import dataclass
from functools import partial

from entreg import functional
from entreg.rl.asynchronous import Chief, Job, News, Report, Worker
from entreg.rl.config import OnPolicyConfig, require
from entreg.rl.learner import Rollout
from entreg.rl.ranks import alone
from entreg.rl.shared import OPTIMIZERS, Rule
from entreg.rl.workers import Line
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Asynchronous advantage actor-critic (A3C)"
MOST = 256  # workers; each is a process with a copy of torch


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """A3C on any Gymnasium environment."""

    workers: int = 2
    """Processes that learn; each has environments and random numbers of its own."""
    optimizer: Rule = "rmsprop"
    """rmsprop (the paper's) or adam; workers share its statistics."""
    environments: int = 4
    """Environments of each member in each worker."""
    rollout: int = 8
    """Steps of each environment in a worker's rollout (t_max)."""
    lam: float = 1.0
    """GAE's lambda; 1 is the return to go minus the value."""
    learning_rate: str = "linear(0.003, 0)"
    """A number or a schedule over the run."""
    normalise_advantage: bool = False
    """Shift and scale the advantages of a rollout."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    with Chief("a3c", config, run, workers=config.workers, rule=config.optimizer) as chief:
        chief.lead(work)
        return chief.finish()


def work(job: Job, line: Line) -> None:
    """What each worker's process does."""
    with Worker(job) as worker:
        line.rounds(worker.rollout, partial(update, worker), worker.state_dict)


def update(worker: Worker, rollout: Rollout, news: News) -> Report:
    """Apply the gradient of one rollout to the shared parameters."""
    worker.follow(news)
    outputs, value = worker.network.both(rollout.observation)
    log_prob, entropy = worker.families.stats(worker.head, outputs, rollout.action, rollout.mask)
    policy_loss = functional.policy_gradient(log_prob, worker.advantage(rollout))
    worker.gradient_step(outputs, policy_loss, (value - rollout.returns).square(), entropy)
    return worker.report(rollout)


def check(config: Config) -> None:
    """Raise `ValueError` for the first of A3C's own settings that cannot be meant."""
    alone("a3c", "it starts workers of its own: --workers")
    require(config, "workers", lambda value: 1 <= value <= MOST, f"between 1 and {MOST}")
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {config.optimizer!r}")
    for name in ("normalise_observation", "normalise_reward"):
        if getattr(config, name):
            raise ValueError(f"{name} is not for asynchronous workers: each would have moments of its own; use a2c with it")
    if config.vectorise == "async":
        raise ValueError("vectorise must be auto or sync, got 'async': workers are processes already")
