"""Soft actor-critic for one discrete action: everything exact over actions, twin critics, any entropy family that has a soft value.

Source: Christodoulou 2019 (arXiv:1910.07207); Haarnoja et al. 2018 (arXiv:1812.05905). Page: docs/recipes/sac_discrete.md.
Shapes: M members, B transitions of a batch, V actions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg import functional, spelling, stacked
from entreg.rl import population
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.off_policy import OffPolicy
from entreg.rl.qlearning import ValueConfig, check_values, one_head, warn_of_uniform_targets
from entreg.rl.replay import Batch
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "Soft actor-critic for discrete actions"
COEF = ("TargetEntropy(greedy_probability(0.9))",)  # what epsilon-greedy leaves at 10 %, and every number of actions can reach it


@dataclass(frozen=True)
class Config(ValueConfig):
    """Discrete SAC on any Gymnasium environment with one discrete action."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    with SoftActorCritic(config, run) as learner:
        warn_of_uniform_targets(learner)
        for batch in learner.batches(learner.act):
            if learner.share_due:
                learner.measure(batch)
            critics = learner.agent
            logits = learner.network.actor(batch.observation)
            q = critics.learned(batch.observation)
            target = functional.soft_backup(batch.reward, learner.next_value(batch), config.gamma, batch.terminated)
            error = q.gather(-1, batch.action.expand(2, *batch.action.shape)).squeeze(-1) - target
            loss = functional.huber(error, 1.0 if config.loss == "huber" else math.inf)
            probs, entropy = learner.probs(logits, batch.mask), learner.families.entropy(learner.head, logits, batch.mask)
            gain = functional.policy_value(probs, q.detach().amin(0), entropy, learner.coefs())
            learner.descend(loss, -gain)
            value_loss, policy_loss, seen = (part.detach().mean(-1) for part in (loss.mean(0), -gain, entropy))
            learner.seen(policy_loss, value_loss, seen)
        return learner.finish()


def check(config: Config) -> None:
    """Raise `ValueError` for the first setting that cannot be meant, and for families whose policies have zeros, which a softmax does not leave again."""
    check_values(config)
    for text in config.family:
        family = spelling.parse_family(text)
        if family.name == "tsallis" and family.order > 1:
            raise ValueError(
                f"family {text}: above order 1 the best policies have zeros, and a softmax actor that came near one gets no gradient to leave it; "
                "legal are shannon, tsallis and renyi below 1; soft_q has no actor and takes it"
            )


class SoftActorCritic(OffPolicy):
    """The policies, and their critics as `agent`."""

    config: Config
    agent: "Critics"

    def __init__(self, config: Config, run: Run | None) -> None:
        super().__init__("sac_discrete", config, run, head=one_head("sac_discrete"), coef=lambda _: COEF)
        shape, image = self.environments.observation_spec
        architecture = Architecture(shape, image, self.head.outputs, config.hidden, config.activation, critic=False)
        seeds = [member.seed for member in self.members]
        self.network = ActorCritic(architecture, population.weight_generators(seeds))
        self.agent = Critics(architecture, seeds, self.network)

    def probs(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """The policy's probabilities over allowed actions, `(M, N, V)`."""
        return (logits if mask is None else torch.where(mask, logits, -math.inf)).softmax(-1)

    @torch.no_grad()
    def act(self, observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, 1]` drawn from the policies."""
        logits = self.network.actor(torch.from_numpy(observation)).numpy()
        self.check(logits=logits)
        return self.head.sample(logits, self.noise("uniform"), mask)

    @torch.no_grad()
    def next_value(self, batch: Batch) -> Tensor:
        """The soft value of the next observations under the policy, by the lower target critic, `(M, B)`."""
        logits = self.network.actor(batch.next_observation)
        q = self.agent.targets(batch.next_observation).amin(0)
        entropy = self.families.entropy(self.head, logits, batch.next_mask)
        return functional.policy_value(self.probs(logits, batch.next_mask), q, entropy, self.coefs())

    def measure(self, batch: Batch) -> None:
        """The bonus's share of the policies' gradient."""
        logits = self.network.actor(batch.observation)
        entropy, q = self.families.entropy(self.head, logits, batch.mask), self.agent.learned(batch.observation).detach().amin(0)
        value, each = (self.probs(logits, batch.mask) * q).sum(-1), self.each(entropy)
        self.books.share = population.gradient_shares((entropy, self.coefs() * each), (value, each), logits)

    def descend(self, critic_loss: Tensor, actor_loss: Tensor) -> None:
        """One gradient step of critics `[2, M, B]` and actors `[M, B]`, each member's clipped by itself; then the targets move."""
        config, agent = self.config, self.agent
        for network, optimizer, loss in ((agent.learned.network, agent.optimizer, critic_loss), (self.network, agent.actor_optimizer, actor_loss)):
            network.parameters.backward((loss, torch.full_like(loss, 1 / loss.shape[-1])))
            stacked.clip_grad_norm(network.parameters, config.max_grad_norm)
            optimizer.step(self.schedules["learning_rate"].value)
        if (self.update + 1) % config.target_every == 0:
            agent.targets.network.parameters.data.lerp_(agent.learned.network.parameters.data, config.target_rate)

    def record(self, outputs: Tensor, mask: Tensor | None) -> None:
        """A training record of every member; `q` is the lower critic's value of the policy, without entropy."""
        self.books.columns["q"] = self.agent.last.numpy()
        super().record(outputs, mask)

    def _record(self, batch: Batch) -> None:
        with torch.no_grad():
            probs = self.probs(self.network.actor(batch.observation), batch.mask)
            self.agent.last = (probs * self.agent.learned(batch.observation).amin(0)).sum(-1).mean(1)
        super()._record(batch)


class Twins:
    """Two critics of every member as one network of 2 M members."""

    def __init__(self, architecture: Architecture, seeds: list[int]) -> None:
        streams = [int(np.random.SeedSequence([seed, 0xC1, twin]).generate_state(1)[0]) for twin in range(2) for seed in seeds]
        self.network = ActorCritic(architecture, population.weight_generators(streams), initial="uniform")

    def __call__(self, observation: Tensor) -> Tensor:
        """Action values `(M, N, *observation) -> (2, M, N, V)`."""
        both: Tensor = self.network.actor(observation.repeat(2, *[1] * (observation.ndim - 1))).unflatten(0, (2, -1))
        return both


class Critics:
    """What a checkpoint holds beside the policies."""

    def __init__(self, architecture: Architecture, seeds: list[int], actor: ActorCritic) -> None:
        self.learned, self.targets = Twins(architecture, seeds), Twins(architecture, seeds)
        self.optimizer, self.actor_optimizer = stacked.StackedAdam(self.learned.network.parameters), stacked.StackedAdam(actor.parameters)
        self.last = torch.zeros(len(seeds))

    def state_dict(self) -> dict[str, Any]:
        networks = {name: twins.network.parameters.data for name, twins in (("learned", self.learned), ("targets", self.targets))}
        return {**networks, "optimizer": self.optimizer.state_dict(), "actor_optimizer": self.actor_optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learned.network.parameters.data.copy_(state["learned"])
        self.targets.network.parameters.data.copy_(state["targets"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
