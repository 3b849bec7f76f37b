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
from entreg.rl import advantages, attribution, intrinsic, population
from entreg.rl.actor_critic import ActorCriticStudy
from entreg.rl.config import OnPolicyConfig, check
from entreg.rl.environments import ActionSpec
from entreg.rl.heads import Head, head_for
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.normalize import RewardScaler, RunningMoments
from entreg.rl.part import Part
from entreg.rl.ranks import here, run_for
from entreg.rl.rollout import Act, Collector, Experience, next_values
from entreg.rl.stacks import Stacks
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
    weight: Tensor | None = None  # [M, B], 1 where an item counts; None: all do

    def take(self, order: Tensor) -> "Rollout":
        """The items `order [M, B]` of each member."""
        members, items = self.advantage.shape
        rows = (order + torch.arange(members)[:, None] * items).flatten()
        observation, *others = self
        observation = observation.take(order) if isinstance(observation, Stacks) else observation.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape)
        flat = (part if part is None else part.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape) for part in others)
        return Rollout(observation, *flat)  # type: ignore[arg-type]


class Learner(ActorCriticStudy):
    """The population, its experience and its books. `part` says which part of the experience this process makes, where several work together."""

    config: OnPolicyConfig

    def __init__(self, recipe: str, config: OnPolicyConfig, run: Run | None, *, schedules: Mapping[str, str] | None = None, part: Part | None = None) -> None:
        check(config)
        run = run_for(run) if part is None else run if run is not None else Run()
        updates = 2 if run.settings.dry_run else math.ceil(config.steps / (config.environments * config.rollout * (part or here().part).of))
        self.intrinsic: intrinsic.Intrinsic | None = None
        novel = intrinsic.Settings(config.intrinsic, config.intrinsic_order, config.intrinsic_k, config.intrinsic_lr)
        novel.check(here().part.of)
        if novel.kind != "none":
            schedules = {**(schedules or {}), "intrinsic_coef": config.intrinsic_coef}

        def head(spec: ActionSpec) -> Head:
            return head_for(spec, squash=config.squash)

        super().__init__(recipe, config, run, head=head, coef=_default_coef, updates=updates, schedules=schedules, part=part, over_ranks=True)
        seeds = [member.seed for member in self.members]
        self.collector = Collector(
            self.environments,
            len(seeds),
            self.head,
            normalise_observation=config.normalise_observation,
            reward_scaler=RewardScaler(len(seeds), config.environments, config.gamma, self.ranks) if config.normalise_reward else None,
            ranks=self.ranks,
            keep=novel.kind != "none",
        )
        if novel.kind != "none":
            self.intrinsic = intrinsic.Intrinsic(novel, seeds, config.environments, self.environments.observation_spec, self.head, config.gamma)
        shape, image = self.environments.observation_spec
        architecture = Architecture(shape, image, self.head.outputs, config.hidden, config.activation, self.head.log_std)
        architecture = architecture._replace(shared=config.shared, precision=config.precision)
        generators = population.weight_generators(seeds)
        self.network = ActorCritic(architecture, generators, log_std=config.log_std)
        self.optimizer = stacked.StackedAdam(self.network.parameters)
        self.act: Act = self._act

    @property
    def moments(self) -> RunningMoments | None:
        """What observations are normalised by."""
        return self.collector.moments

    def rollouts(self) -> Iterator[Rollout]:
        """Rollouts until the run is complete or stopped; after each one controllers step, and records and checkpoints are written."""
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.update < self.updates and self.going:
            rollout = self._collect()
            yield rollout
            self._end_update(rollout)
            before = self.step
            self.update += 1
            if self.recording:
                acted = rollout.outputs, rollout.action, rollout.log_prob, self.advantage(rollout), rollout.mask
                self.books.columns |= attribution.columns(self.ranks, self.head, *acted)
                self.record(rollout.outputs, rollout.mask)
            for schedule in self.schedules.values():
                schedule.step()
            self.evaluate_and_save(before)

    @torch.no_grad()
    def _end_update(self, rollout: Rollout) -> None:
        """Measure how far the policies moved, and step every member's controller."""
        outputs = self.network.actor(rollout.observation)
        self.books.end(self.ranks.mean(self.head.kl(rollout.outputs, outputs, rollout.mask)).numpy())
        self.step_controllers()

    def advantage(self, rollout: Rollout) -> Tensor:
        """The advantages `(M, N)` of `rollout`, normalised member by member where the configuration says so; a single item stays as it is."""
        if not self.config.normalise_advantage or rollout.advantage.shape[1] * self.ranks.part.of < 2:
            return rollout.advantage
        return self.ranks.standardised(rollout.advantage, rollout.weight)

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "collector": self.collector.state_dict()}
        return state if self.intrinsic is None else {**state, "intrinsic": self.intrinsic.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.intrinsic is not None:
            self.intrinsic.load_state_dict(state["intrinsic"])
        if not self.collector.load_state_dict(state["collector"]):
            self.episodes_restarted()

    @torch.no_grad()
    def _collect(self) -> Rollout:
        config = self.config
        noise = self.part.cut(self.streams.noise((config.rollout, config.environments * self.part.of, self.head.actions), self.head.noise), axis=2)
        experience = self.collector.collect(self.act, noise, self.check)
        outputs, value, log_prob, entropy = self._look(experience)
        reward, novelty = self._rewarded(experience)
        following = next_values(experience, *value)
        if config.over == "trajectory":
            coef = np.array([regularizer.coef for regularizer in self.regularizers], dtype=np.float32)
            reward = advantages.soft_rewards(reward, next_values(experience, *entropy), coef, config.gamma)
        done = experience.terminated | experience.truncated
        advantage = advantages.gae(reward, value[0], following, done, config.gamma, config.lam)
        returns = advantage + value[0]
        self.books.begin(self._episodes(experience), config.environments, self._explained(value[0], returns))
        self.books.columns |= novelty
        flat = [torch.from_numpy(part).flatten(1, 2) for part in (experience.action, value[0], advantage, returns)]
        seen = experience.observation
        observation = seen if isinstance(seen, Stacks) else torch.from_numpy(seen).flatten(1, 2)
        mask = None if experience.mask is None else torch.from_numpy(experience.mask).flatten(1, 2)
        return Rollout(observation, flat[0], mask, outputs, log_prob, flat[1], flat[2], flat[3])

    def _rewarded(self, experience: Experience) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards `[M, T, n]` with the intrinsic ones added, and what the books say of those."""
        if self.intrinsic is None:
            return experience.reward, {}
        scaled, raw = self.intrinsic.reward(experience)
        self.check(intrinsic_reward=scaled)
        bonus = np.float32(self.schedules["intrinsic_coef"].value) * scaled
        return experience.reward + bonus, {"intrinsic/reward": raw, "intrinsic/share": intrinsic.share(experience.reward, bonus)}

    def _episodes(self, experience: Experience) -> Sequence[tuple[int, float, int]]:
        """The episodes that ended on any rank, in the order in which one process would have seen them."""
        if self.ranks.part.of == 1:
            return experience.episodes
        when = np.nonzero((experience.terminated | experience.truncated).swapaxes(0, 1))[0].tolist()
        every = self.ranks.gather(list(zip(when, experience.episodes, strict=True)))
        n = self.config.environments
        ordered = sorted((t, index // n, rank, index, *rest) for rank, own in enumerate(every) for t, (index, *rest) in own)
        return [(index, total, length) for _, _, _, index, total, length in ordered]

    def _explained(self, value: np.ndarray, returns: np.ndarray) -> np.ndarray:
        if self.ranks.part.of == 1:
            return advantages.explained_variance(value, returns)
        pairs = [np.concatenate(both, axis=2) for both in zip(*self.ranks.gather((value, returns)), strict=True)]
        return advantages.explained_variance(*pairs)

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
