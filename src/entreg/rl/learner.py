"""What every on-policy recipe shares: a population of policies that collects rollouts, takes gradient steps, records, saves and evaluates.

Shapes: M members, T steps, n environments of each, N = T n items of a member in time-major order, K policy outputs.
A recipe is a loop over `learner.rollouts()` that turns each rollout into calls of `learner.gradient_step`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from entreg import spelling, stacked
from entreg.control import Plateau
from entreg.rl import acting, advantages, environments, episodes, population
from entreg.rl.acting import Policy
from entreg.rl.books import Books
from entreg.rl.config import OnPolicyConfig, check
from entreg.rl.heads import head_for
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.normalize import RewardScaler
from entreg.rl.part import ALONE, Part
from entreg.rl.rollout import Act, Collector, Experience, next_values
from entreg.rl.schedule import Schedule
from entreg.run import Run, Summary

_LOG_LINES = 200  # training records a member and run, at most about twice as many


class Rollout(NamedTuple):
    """One rollout, flattened to `[M, N, ...]`: what updates read. `outputs`, `log_prob` and `value` are those of the policy that acted."""

    observation: Tensor
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
        flat = (part if part is None else part.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape) for part in self)
        return Rollout(*flat)  # type: ignore[arg-type]


Own = TypeVar("Own", bound="Learner")


class Optimizer(Protocol):
    """Moves parameters by their gradients."""

    def step(self, lr: float, active: Tensor | None = None) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Learner:
    """The population, its experience and its books. A context: leaving it closes environments and files and restores signal handlers.

    `part` says which part of the experience this process makes, where several work together.
    """

    def __init__(self, recipe: str, config: OnPolicyConfig, run: Run | None, *, schedules: Mapping[str, str] | None = None, part: Part = ALONE) -> None:
        check(config)
        self.recipe, self.config, self.part = recipe, config, part
        self.run = run if run is not None else Run()
        settings = self.run.settings
        torch.set_num_threads(settings.threads)
        if settings.deterministic:
            torch.use_deterministic_algorithms(True)
        seeds = range(settings.seed, settings.seed + config.seeds)
        settings_count = max(1, len(config.coef)) * len(config.family)
        self.environments = environments.make(
            config.env,
            seeds=[*seeds] * settings_count,
            per_member=config.environments,
            first=part.rank * config.environments,
            mode=config.vectorise,
            env_kwargs=config.env_kwargs,
        )
        self.head = head_for(self.environments.action_spec, squash=config.squash)
        coefs = config.coef or (("0.0",) if self.head.noise == "normal" else ("linear(0.01, 0.0)",))
        self.updates = 2 if settings.dry_run else math.ceil(config.steps / self.steps_per_update)
        self.members = population.expand(coefs, config.family, seeds)
        self.regularizers = population.regularizers(self.members, self.head, steps=self.updates, lr=config.coef_lr, init_coef=config.coef_init)
        self.families = population.Families([member.family for member in self.members])
        texts = {"learning_rate": config.learning_rate, **(schedules or {})}
        self.schedules = {name: Schedule(name, text, self.updates) for name, text in texts.items()}
        member_seeds = [member.seed for member in self.members]
        self.streams = population.Streams(member_seeds)
        scaler = RewardScaler(len(self.members), config.environments, config.gamma) if config.normalise_reward else None
        self.collector = Collector(self.environments, len(self.members), self.head, normalise_observation=config.normalise_observation, reward_scaler=scaler)
        shape, image = self.environments.observation_spec
        architecture = Architecture(shape, image, self.head.outputs, config.hidden, config.activation, self.head.log_std)
        self.network = ActorCritic(architecture, population.weight_generators(member_seeds), log_std=config.log_std)
        self.optimizer: Optimizer = stacked.StackedAdam(self.network.parameters)
        self.act: Act = self._act
        self.update = 0
        self.stopped: str | None = None
        self.complete = self.evaluation_due = False
        self.books = Books(self.members, self.head, self.regularizers)

    def __enter__(self: Own) -> Own:
        controllers = [spelling.spell(regularizer.controller) for regularizer in self.regularizers]
        members = [{"member": i, **member._asdict(), "controller": text} for i, (member, text) in enumerate(zip(self.members, controllers, strict=True))]
        self.run.start(self.recipe, self.config.env, self.config, members=members, total=self.updates * self.steps_per_update)
        self.run.__enter__()
        state = self.run.restore()
        if state is not None:
            self.load_state_dict(state)
        else:
            for note in self.environments.notes:
                self.run.event(0, "note", note)
        return self

    def __exit__(self, *error: Any) -> None:
        self.environments.close()
        self.run.__exit__(*error)

    @property
    def steps_per_update(self) -> int:
        """Environment steps that each member takes for an update, over all processes."""
        return self.config.environments * self.config.rollout * self.part.of

    @property
    def step(self) -> int:
        """Environment steps that each member has taken."""
        return self.update * self.steps_per_update

    def rollouts(self) -> Iterator[Rollout]:
        """Rollouts until the run is complete or stopped; after each one controllers step, and records and checkpoints are written."""
        every = self.run.settings.eval_every
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.update < self.updates and self.stopped is None:
            rollout = self._collect()
            yield rollout
            self._end_update(rollout)
            before = self.step
            self.update += 1
            if self.update % self.log_every == 0 or self.update == self.updates:
                self._log(self.books.rows(rollout.outputs, rollout.mask, self.step))
            for schedule in self.schedules.values():
                schedule.step()
            self.stopped = self.run.stopping() or self._reached()
            self.evaluation_due = every is not None and self.step // every > before // every and self.update < self.updates
            if self.evaluation_due and self.stopped is None:
                self.evaluate()
                self.stopped = self.run.stopping()
            self.run.checkpoint(self.step, self.state_dict)

    @property
    def log_every(self) -> int:
        """Updates from one training record to the next."""
        return max(1, self.updates // _LOG_LINES)

    def _log(self, rows: Sequence[Mapping[str, float]]) -> None:
        rate = {name: schedule.value for name, schedule in self.schedules.items()}
        for index, row in enumerate(rows):
            self.run.log(self.step, member=index, **row, **rate)

    @torch.no_grad()
    def _end_update(self, rollout: Rollout) -> None:
        """Measure how far the policies moved, and step every member's controller."""
        outputs = self.network.actor(rollout.observation)
        self.books.end(self.head.kl(rollout.outputs, outputs, rollout.mask).mean(1).numpy())
        self._control()

    def _control(self) -> None:
        for regularizer, signals in zip(self.regularizers, self.books.signals((self.update + 1) / self.updates), strict=True):
            if "reward" in signals or not isinstance(regularizer.controller, Plateau):  # a plateau begins with the first return
                regularizer.step(**signals)

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

    def evaluate(self, stop: Callable[[], object] | None = None) -> bool:
        """Run each member's policy for `eval_episodes` episodes unless `stop()` (by default the run's) ends it; the best so far of each is kept."""
        config, policy = self.config, self._policy()
        every = episodes.evaluate_members(
            config.env,
            lambda observation, mask: policy.act_all(observation, mask, temperature=config.eval_temperature),
            episodes=config.eval_episodes,
            seeds=[member.seed + acting.EVALUATION_SEED for member in self.members],
            mode=config.vectorise,
            env_kwargs=config.env_kwargs,
            stop=stop or self.run.stopping,
        )
        if not every[0]:
            return False
        self.evaluation_due = False
        for index, played in enumerate(every):
            returns = np.array([total for total, _ in played])
            mean, length = float(returns.mean()), float(np.mean([length for _, length in played]))
            values = {"eval/return": mean, "eval/return_std": float(returns.std()), "eval/length": length, "eval/episodes": len(played)}
            self.run.log(self.step, member=index, **values)
            self.books.evaluated[index] = mean
            self.run.save_best(index, mean, policy.state(index), step=self.step)
        return True

    def finish(self) -> Summary:
        """Evaluate and film what was trained unless the run was told to stop, save, and say how it ended."""
        fresh = not self.complete and self.stopped in (None, "stop_at", "max_time") and self.evaluate(self._told)
        if fresh:
            self.complete = self.update == self.updates or self.stopped == "stop_at"
        if self.stopped is not None:
            self.run.stop(self.stopped)
        self.run.checkpoint(self.step, self.state_dict, force=True)
        if self.run.settings.dry_run:
            self.load_state_dict(self.run.reload() or {})
        if fresh and self.config.video:  # after the checkpoint: whatever a renderer does, the run is saved
            self._film()
        return self.run.finish(self.step, self.books.summary())

    def _film(self) -> None:
        best = int(np.nanargmax([*self.books.evaluated, -math.inf])) % len(self.members)
        policy, file = acting.from_checkpoint(self.state_dict(), best), self.run.folder / "media" / "episode.gif"
        seed = self.members[best].seed + acting.EVALUATION_SEED
        acting.film(policy, self.config.env, self.config.env_kwargs, file, seed=seed, stop=self._told)

    def _told(self) -> bool:
        return self.run.stopping() in ("SIGINT", "SIGTERM")

    def _policy(self) -> Policy:
        return Policy(self.network, self.head, self.collector.moments, seeds=[member.seed + acting.EVALUATION_SEED for member in self.members])

    def state_dict(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "complete": self.complete,
            "evaluation_due": self.evaluation_due,
            "network": self.network.parameters.data,
            "optimizer": self.optimizer.state_dict(),
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
            "regularizers": {str(index): regularizer.state_dict() for index, regularizer in enumerate(self.regularizers)},
            "streams": self.streams.state_dict(),
            "collector": self.collector.state_dict(),
            "books": self.books.state_dict(),
            "policy": acting.specification(self.network, self.head),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update, self.complete, self.evaluation_due = state["update"], state["complete"], state["evaluation_due"]
        with torch.no_grad():
            self.network.parameters.data.copy_(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        for index, regularizer in enumerate(self.regularizers):
            regularizer.load_state_dict(state["regularizers"][str(index)])
        self.streams.load_state_dict(state["streams"])
        self.books.load_state_dict(state["books"], self.step)
        if not self.collector.load_state_dict(state["collector"]):
            self.run.event(self.step, "episodes_restarted", "this environment's state cannot be restored: open episodes began again")

    @torch.no_grad()
    def _collect(self) -> Rollout:
        config = self.config
        noise = self.part.cut(self.streams.noise((config.rollout, config.environments * self.part.of, self.head.actions), self.head.noise), axis=2)
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
        flat = [torch.from_numpy(part).flatten(1, 2) for part in (experience.observation, experience.action, value[0], advantage, returns)]
        mask = None if experience.mask is None else torch.from_numpy(experience.mask).flatten(1, 2)
        return Rollout(flat[0], flat[1], mask, outputs, log_prob, flat[2], flat[3], flat[4])

    def _act(self, observation: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, A]` for observations `[M, n, D]` by noise `[M, n, A]`."""
        outputs = self.network.actor(torch.from_numpy(observation)).numpy()
        self.check(logits=outputs)
        return self.head.sample(outputs, noise, mask)

    def check(self, **values: Any) -> None:
        """Stop on what is not finite, and leave a phase that a signal has waited for too long."""
        self.run.hurry()
        self.run.check_finite(self.step, **values)

    def _look(self, experience: Experience) -> tuple[Tensor, Sequence[np.ndarray], Tensor, Sequence[np.ndarray]]:
        """Outputs, values, log-probabilities and entropies of a rollout in one batch: of its items, the last states and the cut ones."""
        batch, mask, split = _batch(experience)
        outputs, value = self.network.both(batch)
        items = experience.reward[0].size
        action = torch.from_numpy(experience.action).flatten(1, 2)
        log_prob, _ = self.families.stats(self.head, outputs[:, :items], action, None if mask is None else mask[:, :items])
        entropy = split(self.families.entropy(self.head, outputs, mask)) if self.config.over == "trajectory" else ()
        return outputs[:, :items], split(value), log_prob, entropy

    def _reached(self) -> str | None:
        target = self.config.stop_at
        return "stop_at" if target is not None and self.books.lowest_return() >= target else None


def _batch(experience: Experience) -> tuple[Tensor, Tensor | None, Any]:
    """Items, last states and final states as one batch `[M, N + n + F, ...]`, and what takes such a result `[M, N + n + F]` apart."""
    members, steps, per_member = experience.reward.shape
    items = steps * per_member
    owner = experience.final_at[:, 0]
    place = np.zeros_like(owner)
    counts = np.zeros(members, dtype=np.int64)
    for index, member in enumerate(owner):
        place[index] = counts[member]
        counts[member] += 1

    def joined(inside: np.ndarray, last: np.ndarray, final: np.ndarray | None) -> Tensor:
        padded = np.zeros((members, counts.max(initial=0), *last.shape[2:]), dtype=last.dtype)
        if last.dtype == np.bool_:
            padded[:] = True  # a state that is only padding has every action
        if final is not None and len(final):
            padded[owner, place] = final
        return torch.from_numpy(np.concatenate([inside.reshape(members, items, *inside.shape[3:]), last, padded], axis=1))

    def split(values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers = values.numpy()
        inside = np.ascontiguousarray(numbers[:, :items]).reshape(members, steps, per_member)
        return inside, numbers[:, items : items + per_member], numbers[:, items + per_member :][owner, place]

    mask = None
    if experience.mask is not None and experience.last_mask is not None:
        mask = joined(experience.mask, experience.last_mask, experience.final_mask)
    return joined(experience.observation, experience.last, experience.final), mask, split
