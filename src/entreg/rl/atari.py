"""Atari games: `ale_py`'s vector environment in C++ for training, and one plain environment with the same pictures to look at.

Shapes: N environments; observations `[N, 4, 84, 84]` uint8, the last four grey pictures, oldest first, 0 before an episode's first.
Preprocessing: an action is repeated for 4 frames, the pixelwise maximum of the last two is averaged down to 84 x 84; up to 30 frames of doing nothing begin an
episode; training sees the sign of the reward, and returns are the game's own scores. Losing a life ends nothing, and no game is started by a
button for the agent: with sticky actions (the `-v5` ids), the protocol of Machado et al. 2018 (arXiv:1709.06009). Page: docs/atari.md.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from entreg.rl.spaces import FrameStack, ObservationSpec, action_codec
from entreg.rl.stepping import EpisodeCounter, Step

SIDE = 84
STACK = 4
_LEGAL = {"frameskip", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode", "max_episode_steps", "noop_max", "reward_clipping"}


class Options(NamedTuple):
    """What a game is played by, of its registration and `env_kwargs`; `frames` is the limit of an episode."""

    game: str
    frameskip: int
    repeat_action_probability: float
    full_action_space: bool
    frames: int
    noop_max: int
    reward_clipping: bool


def is_picture(spec: EnvSpec, kwargs: Mapping[str, Any]) -> bool:
    """Whether this is a game of the Arcade Learning Environment whose pictures are asked for (naming an `obs_type` gives it as Gymnasium does)."""
    return spec.entry_point == "ale_py.env:AtariEnv" and spec.id.startswith("ALE/") and "obs_type" not in kwargs


def options(spec: EnvSpec, kwargs: Mapping[str, Any]) -> Options:
    """The options of a game, or a `ValueError` that says which there are."""
    if unknown := sorted(set(kwargs) - _LEGAL):
        raise ValueError(f"env_kwargs: {spec.id} takes {', '.join(sorted(_LEGAL))}, got {', '.join(unknown)}")
    given: dict[str, Any] = {"noop_max": 30, "reward_clipping": True, **spec.kwargs, **kwargs}
    frameskip, frames = given["frameskip"], given["max_num_frames_per_episode"]
    for name, value, least in (("frameskip", frameskip, 1), ("max_num_frames_per_episode", frames, 1), ("noop_max", given["noop_max"], 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"env_kwargs: {name} must be an integer of at least {least}, got {value!r}")
    if not 0 <= given["repeat_action_probability"] < 1:
        raise ValueError(f"env_kwargs: repeat_action_probability must be at least 0 and below 1, got {given['repeat_action_probability']}")
    steps = given.get("max_episode_steps")
    if steps is not None and steps > 0:
        frames = min(frames, steps * frameskip)
    names = {name: given[name] for name in Options._fields if name in given}
    return Options(**names, frames=frames)


class Atari:
    """N copies of one game on the machine's cores; their open episodes cannot be restored."""

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], kwargs: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        from ale_py.vector_env import AtariVectorEnv

        chosen = options(spec, kwargs)
        self.n = len(seeds)
        self._games = AtariVectorEnv(
            chosen.game,
            self.n,
            num_threads=min(self.n, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
            max_num_frames_per_episode=chosen.frames,
            repeat_action_probability=chosen.repeat_action_probability,
            full_action_space=chosen.full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,  # the default makes one transition an episode up
            img_height=SIDE,
            img_width=SIDE,
            stack_num=STACK,
            frameskip=chosen.frameskip,
            noop_max=chosen.noop_max,
            reward_clipping=False,  # the score is lost otherwise
            use_fire_reset=False,
        )
        self.observation_spec: ObservationSpec = FrameStack((STACK, SIDE, SIDE), image=True)
        self.action_spec = action_codec(self._games.single_action_space).spec
        self.notes = notes
        self._clipped = chosen.reward_clipping
        self._seeds = np.array(seeds)
        self._counter = EpisodeCounter(self.n)

    def reset(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self._games.reset(seed=self._seeds)[0], None

    def step(self, actions: np.ndarray) -> Step:
        observation, score, terminated, truncated, info = self._games.step(np.ascontiguousarray(actions, np.int64))
        score = score.astype(np.float64)
        ended = np.flatnonzero(terminated | truncated)
        final = info["final_obs"] if ended.size else None
        episodes = self._counter.update(score, ended)
        return Step(observation, np.sign(score) if self._clipped else score, terminated, truncated & ~terminated, final, None, None, episodes)

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        raise ValueError("the open episodes of Atari games cannot be restored; reset them")

    def close(self) -> None:
        self._games.close()


def plain(spec: EnvSpec, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """One game that can be looked at, with the observations of `Atari` and unchanged rewards."""
    render_mode = kwargs.get("render_mode")
    chosen = options(spec, {name: value for name, value in kwargs.items() if name != "render_mode"})
    game = gymnasium.make(
        spec,
        disable_env_checker=True,
        render_mode=render_mode,
        frameskip=1,
        repeat_action_probability=chosen.repeat_action_probability,
        full_action_space=chosen.full_action_space,
        max_num_frames_per_episode=chosen.frames,
    )
    return Preprocessed(game, chosen.frameskip, chosen.noop_max)


class Preprocessed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The pictures of `Atari`, to one grey level, without OpenCV.

    With sticky actions the same seed plays another game: the vector environment has streams of its own.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], frameskip: int, noop_max: int) -> None:
        super().__init__(env)
        self._game: Any = env.unwrapped
        self._frameskip, self._noop_max = frameskip, noop_max
        assert env.observation_space.shape is not None
        height, width, _ = env.observation_space.shape
        self._rows, self._columns = area_weights(height, SIDE), area_weights(width, SIDE).T
        self._stack = np.zeros((STACK, SIDE, SIDE), np.uint8)
        self.observation_space = spaces.Box(0, 255, self._stack.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        for _ in range(int(self._game.np_random.integers(1, self._noop_max + 1)) if self._noop_max else 0):
            _, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                _, info = self.env.reset()
        self._stack[:] = 0
        self._stack[-1] = self._shrunk(self._game.ale.getScreenGrayscale())
        return self._stack.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        total, before, over = 0.0, None, False
        for _ in range(self._frameskip):
            before = self._game.ale.getScreenGrayscale() if self._frameskip > 1 else None
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            over = terminated or truncated
            if over:
                break
        newest = self._stack[-1]  # an episode that ends within the frames of an action ends in the picture before
        if not over:
            screen = self._game.ale.getScreenGrayscale()
            newest = self._shrunk(screen if before is None else np.maximum(screen, before))
        self._stack = np.concatenate([self._stack[1:], newest[None]])
        return self._stack.copy(), total, terminated, truncated, info

    def _shrunk(self, screen: np.ndarray) -> np.ndarray:
        shrunk: np.ndarray = np.rint(self._rows @ screen @ self._columns).astype(np.uint8)
        return shrunk


def area_weights(size: int, to: int) -> np.ndarray:
    """How much of each of `size` pixels lies in each of `to` equal parts, `[to, size]`, rows adding up to 1: OpenCV's INTER_AREA.

    >>> area_weights(3, 2).round(2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    edges = np.arange(to + 1)[:, None] * size / to
    pixels = np.arange(size)
    overlap: np.ndarray = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    weights: np.ndarray = overlap.clip(0) * to / size
    return weights
