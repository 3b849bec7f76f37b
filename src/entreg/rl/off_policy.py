"""What every off-policy recipe shares: environments that fill a replay memory, and gradient steps on batches drawn from it.

Shapes: M members, n environments of each, B transitions of a batch, A numbers of an action. A recipe is a loop over `learner.batches(act)` that
turns each batch into one gradient step; it reads `learner.coefs()` and tells `learner.seen(...)` what it measured. Controllers step after every batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from entreg.control import GradientShare, Plateau
from entreg.guard import Guarded
from entreg.rl.config import OffPolicyConfig, check_off_policy
from entreg.rl.environments import ActionSpec
from entreg.rl.frames import FrameReplay
from entreg.rl.heads import Head, TanhGaussian
from entreg.rl.ranks import here, run_for
from entreg.rl.replay import Batch, Replay
from entreg.rl.spaces import FrameStack
from entreg.rl.study import LOG_LINES, Study
from entreg.run import Run, Summary

Act = Callable[[np.ndarray, np.ndarray | None], np.ndarray]  # observations [M, n, *shape], masks [M, n, K] -> actions [M, n, A] as the replay keeps them


_OffPolicy = TypeVar("_OffPolicy", bound="OffPolicy")


class Part(Protocol):
    """What a recipe adds to a checkpoint: its critics, target networks and optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class OffPolicy(Study):
    """The population, its environments and its replay. The recipe gives `network` and `agent` before it enters.

    Actions are kept as networks read them: class indices, or squashed numbers in [-1, 1].
    """

    config: OffPolicyConfig
    agent: Part
    OWN = ("collector", "replay")

    def __init__(
        self,
        recipe: str,
        config: OffPolicyConfig,
        run: Run | None,
        *,
        head: Callable[[ActionSpec], Head],
        coef: Callable[[Head], Sequence[str]],
        schedules: Mapping[str, str] | None = None,
        over_ranks: bool = False,
    ) -> None:
        check_off_policy(config)
        run = run_for(run)
        self.per_round = config.environments * here().part.of
        self.learning_starts, self.rounds = config.learning_starts, math.ceil(config.steps / self.per_round)
        self._per_step = config.updates_per_step
        if run.settings.dry_run:
            self.learning_starts, self.rounds = 0, math.ceil(2 / self.per_round)
            self._per_step = 2 / (self.rounds * self.per_round)
        self.round = self._recorded = 0
        self._close_replay: Callable[[], None] = lambda: None
        self._places: Tensor | None = None
        super().__init__(recipe, config, run, head=head, coef=coef, updates=max(1, self._due(self.rounds)), schedules=schedules, over_ranks=over_ranks)
        self.observation, self.mask = self.environments.reset()
        continuous = self.head.spec.kind == "continuous"
        self._mask_size = None if self.mask is None else self.mask.shape[-1]
        self._action = (self.head.actions,), np.dtype(np.float32 if continuous else np.int64)
        self.reads_share = any(_innermost(regularizer.controller) is GradientShare for regularizer in self.regularizers)

    @property
    def step(self) -> int:
        """Environment steps that each member has taken."""
        return self.round * self.per_round

    @property
    def steps(self) -> int:
        """Environment steps that each member takes in the whole run."""
        return self.rounds * self.per_round

    def _due(self, rounds: int) -> int:
        """Gradient steps that should have been taken after so many steps of every environment."""
        return math.floor(max(0, rounds * self.per_round - self.learning_starts) * self._per_step + 1e-9)

    def __enter__(self: _OffPolicy) -> _OffPolicy:
        folder, (members, per_member, capacity, observation, shape, dtype, mask_size) = Path(self.run.settings.out), self._replay_shape()
        if isinstance(observation, FrameStack):
            if self.part.of > 1:  # the ranks' games end at different steps, and then their rings hold different ones
                raise ValueError(f"ranks is {self.part.of}; legal with stacks of frames and a replay is one process")
            FrameReplay.check_room(members, per_member, capacity, observation, shape, dtype, observation.shape[0], folder=folder)
        else:
            Replay.check_room(members, per_member, capacity, observation, shape, dtype, mask_size, folder=folder)
        return super().__enter__()

    def _replay_shape(self) -> tuple[Any, ...]:
        config = self.config
        return len(self.members), config.environments, self._capacity, self.environments.observation_spec, *self._action, self._mask_size

    @property
    def _capacity(self) -> int:
        """Transitions that a member's replay has to hold on this rank: never more than the run has steps."""
        return min(self.config.buffer_size, self.steps) // self.part.of

    def _begin(self) -> None:
        members, per_member, capacity, observation, shape, dtype, mask_size = self._replay_shape()
        folder = self.run.folder if self.part.rank == 0 else self.run.folder / f"rank-{self.part.rank}"
        self.replay: Replay | FrameReplay
        if isinstance(observation, FrameStack):
            self.replay = FrameReplay(members, per_member, capacity, observation, (shape, dtype), folder=folder, stack=observation.shape[0])
        else:
            self.replay = Replay(members, per_member, capacity, observation, (shape, dtype), folder=folder, mask_size=mask_size)
        self._close_replay = self.replay.close
        super()._begin()

    def __exit__(self, *error: Any) -> None:
        self._close_replay()
        super().__exit__(*error)

    def batches(self, act: Act) -> Iterator[Batch]:
        """Batches until the run is complete or stopped. `act` gives the actions; they are random before `learning_starts`.

        Controllers step after every batch; records, evaluations and checkpoints come after a step of all environments.
        """
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.round < self.rounds and self.going:
            before = self.step
            self._advance(self._random if before < self.learning_starts else act)
            self.round += 1
            batch: Batch | None = None
            while self.update < self._due(self.round):
                self.check()
                batch = self._sample()
                yield batch
                self._end_update()
            if batch is not None and self.recording:
                self._record(batch)
            self.evaluate_and_save(before)

    def due(self) -> bool:
        """Whether a checkpoint is due: by the clock, or because the replay's files wait for one."""
        return super().due() or self.replay.crowded

    def finish(self) -> Summary:
        """As every study; a complete run needs its replay no more, and its files go."""
        summary = super().finish()
        if self.complete and not self.run.settings.dry_run:
            self.replay.remove()
        return summary

    def _sample(self) -> Batch:
        """The next batch: of the transitions that one process would draw, those that this rank holds."""
        if self.part.of == 1:
            return self.replay.sample(self.streams.generators, self.config.batch_size)
        assert isinstance(self.replay, Replay)
        drawn = self.replay.draw(self.streams.generators, self.config.batch_size, self.part.of)
        items, self.weight, self._places = self.ranks.take(torch.from_numpy(drawn), self.config.environments)
        return self.replay.take(items.numpy())

    def noise(self, kind: str) -> np.ndarray:
        """Noise `[M, n, A]` for the actions of all environments, each rank's part of what one process would draw."""
        return self.part.cut(self.streams.noise((self.per_round, self.head.actions), kind), axis=1)

    def batch_noise(self, draws: int) -> Tensor:
        """Standard normals `[M, draws, B, A]` for the last batch."""
        noise = torch.from_numpy(self.streams.noise((draws, self.config.batch_size, self.head.actions), "normal"))
        return noise if self._places is None else noise.take_along_dim(self._places[:, None, :, None], 2)

    def each(self, values: Tensor) -> Tensor:
        """What an item of the last batch weighs in a mean over the items of all ranks, in the shape of `values (M, *, B)`."""
        every = torch.full_like(values, 1 / (values.shape[-1] if self.weight is None else self.config.batch_size))
        return every if self.weight is None else every * self.weight.reshape(len(values), *[1] * (values.ndim - 2), -1)

    def mean(self, values: Tensor) -> Tensor:
        """Means `(M,)` over the items of the last batch on all ranks, of values `(M, B)`."""
        return self.ranks.mean(values, self.weight)

    @property
    def recording(self) -> bool:
        """Whether a training record is written after this step of the environments, if it brings a gradient step."""
        every = max(1, self.rounds // LOG_LINES)
        return self.round // every > self._recorded // every or self.round == self.rounds

    @property
    def record_next(self) -> bool:
        """Whether this is the last batch before a training record: the one to measure on what is only written down."""
        return self.recording and self.update + 1 == self._due(self.round)

    @property
    def share_due(self) -> bool:
        """Whether a controller or the next record reads the bonus's share of the gradient of this batch."""
        return self.reads_share or self.record_next

    def coefs(self) -> Tensor:
        """The coefficients by which entropy is maximised, `[M, 1]`."""
        return torch.tensor([[regularizer.sense * regularizer.coef] for regularizer in self.regularizers])

    def seen(self, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor) -> None:
        """The means of a gradient step, `[M]` each: the entropy is what the controllers see. Stops on what is not finite."""
        means = torch.stack([policy_loss, value_loss, entropy])
        self.check(loss=means)
        self._used = np.array([regularizer.coef for regularizer in self.regularizers])
        for regularizer, mean in zip(self.regularizers, means[2].tolist(), strict=True):
            regularizer.observe(mean, self.config.batch_size)
        self.books.seen(means)

    def _end_update(self) -> None:
        self.step_controllers()
        for schedule in self.schedules.values():
            schedule.step()
        self.update += 1

    @torch.no_grad()
    def _record(self, batch: Batch) -> None:
        """A training record of every member, of the policy's outputs at the observations of its last batch."""
        outputs = self.network.actor(batch.observation)
        self.books.average(coef=self._used)
        self.record(outputs, batch.mask)
        self.books.forget()
        self._recorded = self.round

    def _random(self, observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions uniform over the legal ones, `[M, n, A]`."""
        uniform = self.noise("uniform")
        if self.head.spec.kind == "continuous":
            return 2 * uniform - 1
        return self.head.sample(np.zeros((*observation.shape[:2], self.head.outputs), np.float32), uniform, mask)

    def _advance(self, act: Act) -> None:
        """One step of all environments, into the replay."""
        observation, mask = self._by_member(self.observation), None if self.mask is None else self._by_member(self.mask)
        action = act(observation, mask)
        flat = action.reshape(-1, action.shape[-1])
        step = self.environments.step(self.head.scale(flat) if isinstance(self.head, TanhGaussian) else self.head.to_environment(flat))
        self.check(observation=step.observation, reward=step.reward)
        after, after_mask = step.reached, step.mask
        ended = step.terminated | step.truncated
        if step.final_observation is not None:
            self.check(final_observation=step.final_observation[ended])
            if after_mask is not None and step.final_mask is not None:
                after_mask = np.where(ended[:, None], step.final_mask, after_mask)
        self.replay.add(
            observation,
            action,
            self._by_member(step.reward.astype(np.float32)),
            self._by_member(step.terminated),
            self._by_member(step.truncated & ~step.terminated),
            self._by_member(after),
            mask,
            None if after_mask is None else self._by_member(after_mask),
        )
        self.books.ended(self._ended(step.episodes), self.config.environments)
        self.observation, self.mask = step.observation, step.mask

    def _ended(self, episodes: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
        """The episodes that ended on any rank, in the order of one process."""
        if self.part.of == 1 or not int(self.ranks.sum(torch.tensor(len(episodes)))):
            return episodes
        n = self.config.environments
        ordered = sorted((one[0] // n, rank, one) for rank, own in enumerate(self.ranks.gather(episodes)) for one in own)
        return [one for _, _, one in ordered]

    def _by_member(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(self.members), -1, *values.shape[1:])

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "round": self.round,
            "recorded": self._recorded,
            "seen": self.books.unread(),
            "agent": self.agent.state_dict(),
            "replay": None if self.complete and not self.run.settings.dry_run else self.replay.state_dict(),
            "collector": {"environments": self.environments.state_dict(), "moments": None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round, self._recorded = state["round"], state["recorded"]
        super().load_state_dict(state)
        self.books.read_again(state["seen"])
        self.agent.load_state_dict(state["agent"])
        if state["replay"] is not None:  # None where the run is complete
            self.replay.load_state_dict(state["replay"])
        open_episodes = state["collector"]["environments"]
        if open_episodes is not None:
            self.observation, self.mask = self.environments.load_state_dict(open_episodes)
        elif not self.complete:
            self.replay.restarted()
            self.episodes_restarted()


def _innermost(controller: Any) -> type:
    return _innermost(controller.controller) if isinstance(controller, (Guarded, Plateau)) else type(controller)
