"""Whole episodes of a given policy: `evaluate` counts them, `record_episode` shows one.

Shapes: n environments; a policy maps observations `[n, *shape]` and masks `[n, A]` (or None) to actions `[n]`, `[n, heads]` or `[n, D]`, here as in training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from entreg.rl import naming
from entreg.rl.environments import Mode, make
from entreg.rl.spaces import MaskReader, action_codec, observation_codec
from entreg.rl.stepping import environment_seed

Policy = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
LONGEST = 27_000  # steps of an episode here where the environment sets no limit: a policy that walks in circles would never end one. Atari's own limit


def evaluate(
    env: str,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    parallel: int = 8,
    mode: Mode = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
    stop: Callable[[], object] | None = None,
) -> list[tuple[float, int]]:
    """Return and length of `episodes` episodes of a policy, as `evaluate_members` with one member.

    >>> right = lambda observation, mask: np.ones(len(observation), int)
    >>> [length for _, length in evaluate("CartPole-v1", right, 4, 0)]
    [9, 10, 10, 9]
    """
    return evaluate_members(env, policy, episodes=episodes, seeds=[seed], parallel=parallel, mode=mode, env_kwargs=env_kwargs, stop=stop)[0]


def evaluate_members(
    env: str,
    policy: Policy,
    *,
    episodes: int,
    seeds: Sequence[int],
    parallel: int = 8,
    mode: Mode = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
    stop: Callable[[], object] | None = None,
) -> list[list[tuple[float, int]]]:
    """Return and length of `episodes` episodes for each member, played in up to `parallel` environments a member.

    How many episodes each environment plays is fixed beforehand: taking the first ones to end would favour short episodes.
    An environment without a limit of its own is cut after `LONGEST` steps.
    The policy sees all members' environments at once, member-major. When `stop()` turns true all lists are empty: an evaluation that is not complete is none.

    Raises:
        ValueError: fewer than one episode or environment; and those of `make`.
    """
    if episodes < 1 or parallel < 1:
        raise ValueError(f"episodes and parallel must be at least 1, got {episodes} and {parallel}")
    per_member = min(parallel, episodes)
    quota = [episodes // per_member + (index < episodes % per_member) for index in range(per_member)] * len(seeds)
    played: list[list[tuple[float, int]]] = [[] for _ in quota]
    environments = make(env, seeds=seeds, per_member=per_member, mode=mode, env_kwargs=_limited(env, env_kwargs))
    try:
        observation, mask = environments.reset()
        missing = sum(quota)
        while missing:
            if stop is not None and stop():
                return [[] for _ in seeds]
            step = environments.step(policy(observation, mask))
            observation, mask = step.observation, step.mask
            for index, total, length in step.episodes:
                if len(played[index]) < quota[index]:
                    played[index].append((total, length))
                    missing -= 1
    finally:
        environments.close()
    members = range(0, len(quota), per_member)
    return [[episode for one in played[first : first + per_member] for episode in one] for first in members]


def _limited(env: str, env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of the environment, with a time limit where it has none."""
    limit = {} if naming.find(env)[0].max_episode_steps is not None else {"max_episode_steps": LONGEST}
    return {**limit, **(env_kwargs or {})}


class Recording(NamedTuple):
    """One episode: its frames `[H, W, 3]` uint8 (or texts, where an environment only prints), return and length; `reason` says why there is nothing to see."""

    frames: list[np.ndarray]
    texts: list[str]
    episode_return: float
    length: int
    frames_per_second: float
    reason: str | None


def record_episode(
    env: str,
    policy: Policy,
    *,
    seed: int,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    width: int | None = None,
    most: int | None = None,
    window: bool = False,
    stop: Callable[[], object] | None = None,
) -> Recording:
    """Play the episode that `evaluate` with this seed plays in its first environment, and look at it.

    The policy gets batches of one. Frames wider than `width` are averaged over whole blocks of pixels; of more than `most` frames every second one goes
    (and again), so that long episodes cost no memory; `window` shows the episode instead of keeping it. It ends early when `stop()` turns true.
    """
    spec, _ = naming.find(env)
    kwargs = _limited(env, env_kwargs)
    plain, _ = naming.build(spec, kwargs)
    modes = plain.metadata.get("render_modes") or []
    plain.close()
    wanted: tuple[Literal["human", "rgb_array", "ansi"], ...] = ("human",) if window else ("rgb_array", "ansi")
    mode = next((name for name in wanted if name in modes), None)
    world, _ = naming.build(spec, kwargs if mode is None else {**kwargs, "render_mode": mode})
    camera = _Camera(world, mode, width, most)
    if mode is None:
        camera.reason = f"{spec.id} renders {', '.join(modes) or 'nothing'}, not {' or '.join(wanted)}"
    try:
        total, length = _play(world, policy, camera, environment_seed(seed, 0), lambda taken: taken == max_steps or bool(stop is not None and stop()))
    finally:
        world.close()
    return Recording(camera.frames, camera.texts, total, length, float(world.metadata.get("render_fps") or 15) / camera.every, camera.reason)


def _play(world: gymnasium.Env[Any, Any], policy: Policy, camera: "_Camera", seed: int, enough: Callable[[int], bool]) -> tuple[float, int]:
    codec, actions = observation_codec(world.observation_space), action_codec(world.action_space)
    reader = MaskReader(actions.spec)
    seen, info = world.reset(seed=seed)
    masked = reader.present(info)
    total, length, over = 0.0, 0, False
    camera.look()
    while not over and not enough(length):
        observation = codec.empty(1)
        codec.write(observation[0], seen)
        mask = np.ones((1, reader.size), bool) if masked else None
        if mask is not None:
            reader.write(mask[0], info)
        seen, reward, terminated, truncated, info = world.step(actions.decode(policy(observation, mask))[0])
        total, length, over = total + float(reward), length + 1, bool(terminated or truncated)
        camera.look()
    return total, length


class _Camera:
    """Collects what an environment renders; a renderer that fails (no display, no OpenGL) ends the recording, not the episode."""

    def __init__(self, world: gymnasium.Env[Any, Any], mode: str | None, width: int | None, most: int | None) -> None:
        self.every = 1  # steps from one frame to the next
        self.frames: list[np.ndarray] = []
        self.texts: list[str] = []
        self.reason: str | None = None
        self._world, self._mode, self._width, self._most, self._steps = world, mode, width, most, 0

    def look(self) -> None:
        due = self._steps % self.every == 0
        self._steps += 1
        if self._mode in (None, "human") or self.reason is not None or not due:
            return
        try:
            frame: Any = self._world.render()
        except Exception as error:  # renderers raise whatever their graphics library has
            self.reason = f"rendering failed: {error}"
            self.frames.clear()
            return
        if self._mode == "ansi":
            self.texts.append(str(frame))
        else:
            self.frames.append(_shrunk(np.asarray(frame, np.uint8), self._width))
            if self._most is not None and len(self.frames) > self._most:
                del self.frames[1::2]
                self.every *= 2


def _shrunk(frame: np.ndarray, width: int | None) -> np.ndarray:
    """The frame `[H, W, 3]` averaged over k x k pixels, with the smallest k that brings it to `width`."""
    k = 1 if width is None else -(-frame.shape[1] // width)
    if k == 1:
        return frame
    high, wide = frame.shape[0] // k, frame.shape[1] // k
    blocks = frame[: high * k, : wide * k].reshape(high, k, wide, k, -1)
    shrunk: np.ndarray = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return shrunk
