"""What every on-policy recipe shares: a population of policies that collects rollouts and takes gradient steps on them.

Shapes: M members, T steps, n environments of each, N = T n items of a member in time-major order, K policy outputs.
A recipe is a loop over `learner.rollouts()` that turns each rollout into calls of `learner.gradient_step`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg import stacked
from entreg.rl import advantages, population
from entreg.rl.config import OnPolicyConfig, check
from entreg.rl.frames import Stacks
from entreg.rl.heads import Head, head_for
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.normalize import RewardScaler, RunningMoments
from entreg.rl.rollout import Act, Collector, Experience, next_values
from entreg.rl.study import LOG_LINES, Study
from entreg.run import Run


class Rollout(NamedTuple):
    """One rollout, flattened to `[M, N, ...]`: what updates read. `outputs`, `log_prob` and `value` are those of the policy that acted."""

    observation: Tensor | Stacks
    action: Tensor
    mask: Tensor | None
    outputs: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor

    def take(self, order: Tensor) -> "Rollout":
        """The items `order [M, B]` of each member."""
        members, items = self.advantage.shape
        rows = (order + torch.arange(members)[:, None] * items).flatten()
        observation, *others = self
        observation = observation.take(order) if isinstance(observation, Stacks) else observation.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape)
        flat = (part if part is None else part.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape) for part in others)
        return Rollout(observation, *flat)  # type: ignore[arg-type]


class Learner(Study):
    """The population, its experience and its books."""

    config: OnPolicyConfig

    def __init__(self, recipe: str, config: OnPolicyConfig, run: Run | None, *, schedules: Mapping[str, str] | None = None) -> None:
        check(config)
        run = run if run is not None else Run()
        updates = 2 if run.settings.dry_run else math.ceil(config.steps / (config.environments * config.rollout))
        super().__init__(recipe, config, run, head=lambda spec: head_for(spec, squash=config.squash), coef=_default_coef, updates=updates, schedules=schedules)
        scaler = RewardScaler(len(self.members), config.environments, config.gamma) if config.normalise_reward else None
        self.collector = Collector(self.environments, len(self.members), self.head, normalise_observation=config.normalise_observation, reward_scaler=scaler)
        shape, image = self.environments.observation_spec
        architecture = Architecture(shape, image, self.head.outputs, config.hidden, config.activation, self.head.log_std)
        architecture = architecture._replace(shared=config.shared, precision=config.precision)
        generators = population.weight_generators([member.seed for member in self.members])
        self.network = ActorCritic(architecture, generators, log_std=config.log_std)
        self.optimizer = stacked.StackedAdam(self.network.parameters)
        self.act: Act = self._act

    @property
    def step(self) -> int:
        """Environment steps that each member has taken."""
        return self.update * self.config.environments * self.config.rollout

    @property
    def steps(self) -> int:
        """Environment steps that each member takes in the whole run."""
        return self.updates * self.config.environments * self.config.rollout

    @property
    def moments(self) -> RunningMoments | None:
        """What observations are normalised by."""
        return self.collector.moments

    def rollouts(self) -> Iterator[Rollout]:
        """Rollouts until the run is complete or stopped; after each one controllers step, and records and checkpoints are written."""
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.update < self.updates and self.stopped is None:
            rollout = self._collect()
            yield rollout
            self._end_update(rollout)
            before = self.step
            self.update += 1
            if self.update % max(1, self.updates // LOG_LINES) == 0 or self.update == self.updates:
                self.record(rollout.outputs, rollout.mask)
            for schedule in self.schedules.values():
                schedule.step()
            self.evaluate_and_save(before)

    @torch.no_grad()
    def _end_update(self, rollout: Rollout) -> None:
        """Measure how far the policies moved, and step every member's controller."""
        outputs = self.network.actor(rollout.observation)
        self.books.end(self.head.kl(rollout.outputs, outputs, rollout.mask).mean(1).numpy())
        self.step_controllers()

    def gradient_step(self, outputs: Tensor, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, active: Tensor | None = None) -> None:
        """One Adam step on mean policy loss + value_coef x mean value loss + bonus, each member by itself.

        All losses and entropies are `(M, B)`; `outputs (M, B, K)` are the policy's, of whose gradient the bonus's share is measured once a
        rollout. Members outside the boolean `active [M]` stay as they are.
        """
        items = policy_loss.shape[1]
        means = torch.stack([part.detach() for part in (policy_loss, value_loss, entropy)]).mean(2)
        self.check(loss=means)
        signed = population.observe(self.regularizers, means[2], items)
        policy = policy_loss, torch.full_like(policy_loss, 1 / items)
        value = value_loss, torch.full_like(value_loss, self.config.value_coef / items)
        bonus = entropy, (signed / items).expand_as(entropy)
        if self.books.share is None:
            self.books.share = population.gradient_shares(bonus, policy, outputs)
        self.network.parameters.backward(policy, value, bonus)
        stacked.clip_grad_norm(self.network.parameters, self.config.max_grad_norm)
        self.optimizer.step(self.schedules["learning_rate"].value, active)
        self.books.seen(means)

    def advantage(self, rollout: Rollout) -> Tensor:
        """The advantages `(M, N)` of `rollout`, normalised member by member where the configuration says so; a single item stays as it is."""
        if not self.config.normalise_advantage or rollout.advantage.shape[1] < 2:
            return rollout.advantage
        return (rollout.advantage - rollout.advantage.mean(1, keepdim=True)) / (rollout.advantage.std(1, keepdim=True) + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict(), "collector": self.collector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if not self.collector.load_state_dict(state["collector"]):
            self.episodes_restarted()

    @torch.no_grad()
    def _collect(self) -> Rollout:
        config = self.config
        noise = self.streams.noise((config.rollout, config.environments, self.head.actions), self.head.noise)
        experience = self.collector.collect(self.act, noise, self.check)
        outputs, value, log_prob, entropy = self._look(experience)
        reward = experience.reward
        following = next_values(experience, *value)
        if config.over == "trajectory":
            coef = np.array([regularizer.coef for regularizer in self.regularizers], dtype=np.float32)
            reward = advantages.soft_rewards(reward, next_values(experience, *entropy), coef, config.gamma)
        done = experience.terminated | experience.truncated
        advantage = advantages.gae(reward, value[0], following, done, config.gamma, config.lam)
        returns = advantage + value[0]
        self.books.begin(experience.episodes, config.environments, advantages.explained_variance(value[0], returns))
        flat = [torch.from_numpy(part).flatten(1, 2) for part in (experience.action, value[0], advantage, returns)]
        seen = experience.observation
        observation = seen if isinstance(seen, Stacks) else torch.from_numpy(seen).flatten(1, 2)
        mask = None if experience.mask is None else torch.from_numpy(experience.mask).flatten(1, 2)
        return Rollout(observation, flat[0], mask, outputs, log_prob, flat[1], flat[2], flat[3])

    def _act(self, observation: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, A]` for observations `[M, n, D]` by noise `[M, n, A]`."""
        outputs = self.network.actor(torch.from_numpy(observation)).numpy()
        self.check(logits=outputs)
        return self.head.sample(outputs, noise, mask)

    def _look(self, experience: Experience) -> tuple[Tensor, Sequence[np.ndarray], Tensor, Sequence[np.ndarray]]:
        """Outputs, values, log-probabilities and entropies of a rollout in one batch: of its items, the last states and the cut ones."""
        batch, mask, split = _batch(experience)
        outputs, value = self.network.both(batch)
        if isinstance(experience.observation, Stacks):
            inside = self.network.both(experience.observation)
            outputs, value = torch.cat([inside[0], outputs], 1), torch.cat([inside[1], value], 1)
        items = experience.reward[0].size
        action = torch.from_numpy(experience.action).flatten(1, 2)
        log_prob, _ = self.families.stats(self.head, outputs[:, :items], action, None if mask is None else mask[:, :items])
        entropy = split(self.families.entropy(self.head, outputs, mask)) if self.config.over == "trajectory" else ()
        return outputs[:, :items], split(value), log_prob, entropy


def _default_coef(head: Head) -> tuple[str, ...]:
    return ("0.0",) if head.noise == "normal" else ("linear(0.01, 0.0)",)


def _batch(experience: Experience) -> tuple[Tensor, Tensor | None, Any]:
    """Items, last states and final states as one batch `[M, N + n + F, ...]`, and what takes such a result `[M, N + n + F]` apart.

    Items that are stacks of frames are left out of the batch.
    """
    members, steps, per_member = experience.reward.shape
    items = steps * per_member
    owner = experience.final_at[:, 0]
    place = np.zeros_like(owner)
    counts = np.zeros(members, dtype=np.int64)
    for index, member in enumerate(owner):
        place[index] = counts[member]
        counts[member] += 1

    def joined(inside: np.ndarray | Stacks, last: np.ndarray, final: np.ndarray | None) -> Tensor:
        padded = np.zeros((members, counts.max(initial=0), *last.shape[2:]), dtype=last.dtype)
        if last.dtype == np.bool_:
            padded[:] = True  # a state that is only padding has every action
        if final is not None and len(final):
            padded[owner, place] = final
        first = [] if isinstance(inside, Stacks) else [inside.reshape(members, items, *inside.shape[3:])]
        return torch.from_numpy(np.concatenate([*first, last, padded], axis=1))

    def split(values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers = values.numpy()
        inside = np.ascontiguousarray(numbers[:, :items]).reshape(members, steps, per_member)
        return inside, numbers[:, items : items + per_member], numbers[:, items + per_member :][owner, place]

    mask = None
    if experience.mask is not None and experience.last_mask is not None:
        mask = joined(experience.mask, experience.last_mask, experience.final_mask)
    return joined(experience.observation, experience.last, experience.final), mask, split
