"""Any Gymnasium environments stepped together: one after the other in this process, or each in a process of its own.

Shapes: N environments; observations `[N, *shape]`, masks `[N, A]`. Both ways give the same numbers.
"""

import multiprocessing
import signal
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from entreg.rl import naming, restore
from entreg.rl.spaces import MaskReader, action_codec, observation_codec
from entreg.rl.stepping import EpisodeCounter, Step, checked_state


def dropped_note(dropped: tuple[str, ...]) -> tuple[str, ...]:
    """What to tell the user about parts of an observation that are left out."""
    return (f"the observation's text {', '.join(dropped)} is not given to the policy",) if dropped else ()


class SyncEnvironments:
    """Environments stepped in a plain loop: 1.5 us an environment and step above their own time, where Gymnasium's takes 2 to 4."""

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], kwargs: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        built = [naming.build(spec, kwargs) for _ in seeds]
        self._envs = [env for env, _ in built]
        self._codec, self._actions = observation_codec(self._envs[0].observation_space), action_codec(self._envs[0].action_space)
        self.n = len(seeds)
        self.observation_spec, self.action_spec = self._codec.spec, self._actions.spec
        self.notes = tuple(dict.fromkeys([*notes, *(remark for _, remarks in built for remark in remarks), *dropped_note(self._codec.dropped)]))
        self._seeds: list[int | None] = list(seeds)
        self._masks = MaskReader(self.action_spec)
        self._masked = False
        self._counter = EpisodeCounter(self.n)
        self._last: tuple[np.ndarray, np.ndarray | None] | None = None

    def reset(self) -> tuple[np.ndarray, np.ndarray | None]:
        results = [env.reset(seed=seed) for env, seed in zip(self._envs, self._seeds, strict=True)]
        self._seeds = [None] * self.n
        self._masked = any(self._masks.present(info) for _, info in results)
        observation, mask = self._codec.empty(self.n), self._empty_mask()
        for i, (seen, info) in enumerate(results):
            self._codec.write(observation[i], seen)
            if mask is not None:
                self._masks.write(mask[i], info)
        return self._checked(observation, mask)

    def _empty_mask(self) -> np.ndarray | None:
        return np.ones((self.n, self._masks.size), bool) if self._masked else None

    def _checked(self, observation: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        if mask is not None:
            self._masks.check(mask)
        self._last = (observation.copy(), None if mask is None else mask.copy())  # the caller may write into what it was given
        return observation, mask

    def step(self, actions: np.ndarray) -> Step:
        write, masked = self._codec.write, self._masked
        observation, mask = self._codec.empty(self.n), self._empty_mask()
        reward = np.empty(self.n)
        terminated, truncated = np.zeros(self.n, bool), np.zeros(self.n, bool)
        ended: list[int] = []
        final: np.ndarray | None = None
        final_mask: np.ndarray | None = None
        for i, (env, action) in enumerate(zip(self._envs, self._actions.decode(actions), strict=True)):
            seen, reward[i], stop, cut, info = env.step(action)
            if stop or cut:
                terminated[i], truncated[i] = stop, cut
                ended.append(i)
                if final is None:
                    final, final_mask = np.zeros_like(observation), self._empty_mask()
                write(final[i], seen)
                if final_mask is not None:
                    self._masks.write(final_mask[i], info)
                seen, info = env.reset()
            write(observation[i], seen)
            if masked:
                self._masks.write(mask[i], info)  # type: ignore[index]
        if final_mask is not None:
            self._masks.open_where_empty(final_mask)
        self._checked(observation, mask)
        return Step(observation, reward, terminated, truncated, final, mask, final_mask, self._counter.update(reward, np.array(ended, np.int64)))

    def state_dict(self) -> dict[str, Any] | None:
        states = [restore.capture(env) for env in self._envs]
        if self._last is None or any(state is None for state in states):
            return None
        observation, mask = self._last
        state = {"kind": "sync", "n": self.n, "environments": states, "counter": self._counter.state_dict(), "observation": observation.copy()}
        return state if mask is None else {**state, "mask": mask.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        checked_state(state, "sync", self.n)
        for env, entry in zip(self._envs, state["environments"], strict=True):
            restore.restore(env, entry)
        self._counter.load_state_dict(state["counter"])
        self._seeds = [None] * self.n
        self._masked = "mask" in state
        mask = np.array(state["mask"], bool) if self._masked else None
        return self._checked(np.array(state["observation"], self._codec.empty(0).dtype), mask)

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _Encoded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that speaks arrays, so that a worker process sends no more than these."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._codec = observation_codec(env.observation_space)
        self._masks = MaskReader(action_codec(env.action_space).spec)
        shape = self._codec.spec.shape
        self.observation_space = spaces.Box(0, 255, shape, np.uint8) if self._codec.spec.image else spaces.Box(-np.inf, np.inf, shape, np.float32)

    def _encode(self, seen: Any, info: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        row = self._codec.empty(1)[0]
        self._codec.write(row, seen)
        if not self._masks.present(info):
            return row, {}
        mask = np.ones(self._masks.size, bool)
        self._masks.write(mask, info)
        return row, {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self._encode(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        row, kept = self._encode(seen, info)
        return row, float(reward), terminated, truncated, kept


def _worker_env(spec: EnvSpec, kwargs: Mapping[str, Any]) -> _Encoded:
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches every process of a terminal, and only the main one saves and ends the others; a handler inherited from it must not keep them alive
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _Encoded(naming.build(spec, kwargs)[0])


class AsyncEnvironments:
    """Environments in processes of their own, for slow simulators; their open episodes cannot be restored."""

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], kwargs: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        env, remarks = naming.build(spec, kwargs)
        self._codec, self._actions = observation_codec(env.observation_space), action_codec(env.action_space)
        env.close()
        self.n = len(seeds)
        self.observation_spec, self.action_spec = self._codec.spec, self._actions.spec
        self.notes = (*notes, *remarks, *dropped_note(self._codec.dropped))
        self._seeds: list[int | None] = list(seeds)
        self._masks = MaskReader(self.action_spec)
        self._masked = False
        self._counter = EpisodeCounter(self.n)
        with warnings.catch_warnings():
            # the workers touch neither torch nor our threads, which is what Python 3.12 warns about
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            self._vector = AsyncVectorEnv([partial(_worker_env, spec, kwargs)] * self.n, autoreset_mode=AutoresetMode.SAME_STEP)
        self._open = True

    def reset(self) -> tuple[np.ndarray, np.ndarray | None]:
        observation, info = self._vector.reset(seed=self._seeds)
        self._seeds = [None] * self.n
        self._masked = "action_mask" in info
        mask = self._mask(info)
        if mask is not None:
            self._masks.check(mask)
        return observation, mask

    def _mask(self, info: Mapping[str, Any]) -> np.ndarray | None:
        if not self._masked:
            return None
        mask = np.ones((self.n, self._masks.size), bool)
        if "action_mask" in info:
            given = info["_action_mask"]
            mask[given] = info["action_mask"][given]
        return mask

    def step(self, actions: np.ndarray) -> Step:
        observation, reward, terminated, truncated, info = self._vector.step(np.asarray(self._actions.decode(actions)))
        mask = self._mask(info)
        if mask is not None:
            self._masks.check(mask)
        ended = np.flatnonzero(terminated | truncated)
        final, final_mask = None, None
        if ended.size:
            final = np.zeros_like(observation)
            final[ended] = np.stack(list(info["final_obs"][ended]))
            final_mask = self._mask(info["final_info"])
        if final_mask is not None:
            self._masks.open_where_empty(final_mask)
        reward = np.asarray(reward, np.float64)
        return Step(observation, reward, terminated, truncated, final, mask, final_mask, self._counter.update(reward, ended))

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        raise ValueError("mode 'async': environments in other processes cannot be restored; reset them")

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                self._vector.close(timeout=5)
            except (OSError, EOFError):  # a worker is dead
                for process in self._vector.processes:
                    process.terminate()
