"""Experience of a population under its current policies.

Shapes: M members, T steps, n environments of each, N = T n items of a member in time-major order; D observation, K policy outputs,
A numbers of an action. The loop runs only what the next action needs; values, log-probabilities and entropies of the whole rollout are
computed afterwards in one batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from entreg.rl.environments import Environments
from entreg.rl.heads import Head
from entreg.rl.normalize import RewardScaler, RunningMoments
from entreg.rl.ranks import Ranks
from entreg.rl.spaces import FrameStack
from entreg.rl.stacks import Frames, Stacks

Act = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]  # observations [M, n, D], noise [M, n, A], masks -> actions [M, n, A]


class Experience(NamedTuple):
    """What happened, `[M, T, n, ...]`; `final` holds the last states of truncated episodes and `final_at` their (member, step, n).

    `before` and `after` are the states around each step as the environment gave them, where they are kept.
    Stacks of frames are `Stacks [M, T n]`.
    """

    observation: np.ndarray | Stacks
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray | None
    last: np.ndarray
    last_mask: np.ndarray | None
    final: np.ndarray
    final_mask: np.ndarray | None
    final_at: np.ndarray
    episodes: list[tuple[int, float, int]]
    before: np.ndarray | None = None
    after: np.ndarray | None = None


class Collector:
    """Steps all environments with all members' policies; owns the current observations and the normalisers."""

    def __init__(
        self,
        environments: Environments,
        members: int,
        head: Head,
        *,
        normalise_observation: bool,
        reward_scaler: RewardScaler | None,
        ranks: Ranks | None = None,
        keep: bool = False,
    ) -> None:
        self.environments = environments
        self.members = members
        self.per_member = environments.n // members
        self.head, self.keep = head, keep
        shape = environments.observation_spec.shape
        if normalise_observation and environments.observation_spec.image:
            raise ValueError("normalise_observation is for vectors: images are scaled to [0, 1] by the network")
        self.moments = RunningMoments(members, shape, ranks) if normalise_observation else None
        self.reward_scaler = reward_scaler
        self.observation, self.mask = environments.reset()

    def collect(self, act: Act, noise: np.ndarray, check: Callable[..., None]) -> Experience:
        """T steps, T being the second size of `noise [M, T, n, A]`; `act` is the policies; `check(name=array)` stops on what is not finite."""
        shape = noise.shape[:3]
        spec = self.environments.observation_spec
        frames = Frames(shape[0], shape[1], shape[2], spec) if isinstance(spec, FrameStack) else None
        observation = np.empty((*shape, *spec.shape) if frames is None else (0, *spec.shape), dtype=np.uint8 if spec.image else np.float32)
        action = np.empty(noise.shape, dtype=np.float32 if self.head.noise == "normal" else np.int64)
        reward = np.empty(shape, dtype=np.float32)
        terminated, truncated = np.empty(shape, dtype=bool), np.empty(shape, dtype=bool)
        mask = None if self.mask is None else np.empty((*shape, self.mask.shape[-1]), dtype=bool)
        before, after = (np.empty_like(observation), np.empty_like(observation)) if self.keep else (None, None)
        finals: list[np.ndarray] = []
        final_masks: list[np.ndarray] = []
        final_at: list[np.ndarray] = []
        episodes: list[tuple[int, float, int]] = []
        for t in range(shape[1]):
            here = self._normalised(self.observation, learn=True)
            if frames is None:
                observation[:, t] = here
            else:
                frames.write(t, here, terminated[:, t - 1] | truncated[:, t - 1])
            if mask is not None and self.mask is not None:
                mask[:, t] = self._by_member(self.mask)
            action[:, t] = chosen = act(here, noise[:, t], None if mask is None else mask[:, t])
            step = self.environments.step(self.head.to_environment(chosen.reshape(-1, chosen.shape[-1])))
            check(observation=step.observation, reward=step.reward)
            if before is not None and after is not None:
                before[:, t], after[:, t] = self._by_member(self.observation), self._by_member(step.reached)
            rewards, ended = self._by_member(step.reward), self._by_member(step.terminated | step.truncated)
            reward[:, t] = rewards if self.reward_scaler is None else self.reward_scaler(rewards, ended)
            terminated[:, t], truncated[:, t] = self._by_member(step.terminated), self._by_member(step.truncated & ~step.terminated)
            if step.final_observation is not None:
                check(final_observation=step.final_observation[step.terminated | step.truncated])
            if step.final_observation is not None and truncated[:, t].any():
                cut = truncated[:, t]
                finals.append(self._normalised(step.final_observation)[cut])
                if step.final_mask is not None:
                    final_masks.append(self._by_member(step.final_mask)[cut])
                member, index = np.nonzero(cut)
                final_at.append(np.stack([member, np.full_like(member, t), index], axis=1))
            episodes.extend(step.episodes)
            self.observation, self.mask = step.observation, step.mask
        return Experience(
            observation if frames is None else frames.stacks(), action, reward, terminated, truncated, mask,
            last=self._normalised(self.observation),
            last_mask=None if self.mask is None else self._by_member(self.mask),
            final=np.concatenate(finals) if finals else np.empty((0, *spec.shape), dtype=observation.dtype),
            final_mask=np.concatenate(final_masks) if final_masks else None,
            final_at=np.concatenate(final_at) if final_at else np.empty((0, 3), dtype=np.int64),
            episodes=episodes,
            before=before,
            after=after,
        )  # fmt: skip

    def _by_member(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.members, self.per_member, *values.shape[1:])

    def _normalised(self, observation: np.ndarray, *, learn: bool = False) -> np.ndarray:
        batch = self._by_member(observation)
        if self.moments is None:
            return batch
        if learn:
            self.moments.update(batch)
        return self.moments.normalise(batch)

    def state_dict(self) -> dict[str, Any]:
        return {
            "environments": self.environments.state_dict(),
            "moments": None if self.moments is None else self.moments.state_dict(),
            "reward_scaler": None if self.reward_scaler is None else self.reward_scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Returns False where the open episodes could not be restored and were begun again."""
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
        if self.reward_scaler is not None:
            self.reward_scaler.load_state_dict(state["reward_scaler"])
        if state["environments"] is None:
            return False
        self.observation, self.mask = self.environments.load_state_dict(state["environments"])
        return True


def next_values(experience: Experience, here: np.ndarray, last: np.ndarray, final: np.ndarray) -> np.ndarray:
    """The value of the state each step led to, `[M, T, n]`: 0 after termination, that of the final state at a truncation.

    `here [M, T, n]` are the values of the observations, `last [M, n]` those after the last step, `final` those of the final states.
    """
    result = np.concatenate([here[:, 1:], last[:, None]], axis=1)
    result[tuple(experience.final_at.T)] = final
    result[experience.terminated] = 0.0
    return result
