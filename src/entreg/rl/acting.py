"""A trained policy on its own: observations in, actions out, with the normalisation it was trained under.

Shapes: B observations of one environment, `(B, *observation) -> (B,)` or `(B, A)`; a single observation gives a single action.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from entreg.rl import episodes, population
from entreg.rl.heads import LOG_STD_MAX, LOG_STD_MIN, Head, Sampled, TanhGaussian, head_for
from entreg.rl.networks import ActorCritic, Architecture, from_weights, shapes
from entreg.rl.normalize import RunningMoments
from entreg.rl.spaces import ActionSpec, MaskReader, observation_codec

EVALUATION_SEED = 1_000_003  # added to a member's seed: episodes that training does not see
_FRAMES = 240  # of an animation, at most
_WIDTH = 320  # of an animation, in pixels
_SLOWEST = 4.0  # frames a second, also of episodes of which few frames are kept: a GIF holds one picture for at most 655 s


class Policy:
    """What `entreg.load(folder)` gives: `act(observation)`. Holds one member, or stacks several that `act_all` asks at once.

    `space` gives the environment's observation space; it is asked for observations that are not yet as the network reads them.
    """

    def __init__(self, network: ActorCritic, head: Head, moments: RunningMoments | None, *, seeds: Sequence[int] = (0,)) -> None:
        self.network = network
        self.head = head
        self.moments = moments
        self.space: Callable[[], spaces.Space[Any]] | None = None
        self._streams = population.Streams(seeds)

    def act(self, observation: Any, mask: Any = None, *, temperature: float = 0.0) -> np.ndarray:
        """Actions for one observation, as the environment gives it or as the network reads it, or for a batch of arrays, as the environment takes them.

        `mask` names the legal classes, as `info["action_mask"]` does. Temperature 0 takes the most probable action, 1 samples.

        Raises: `ValueError` for observations of another shape or not finite, for a mask of another size or without a legal action.
        """
        if not 0 <= temperature < np.inf:
            raise ValueError(f"temperature must be finite and not negative, got {temperature}")
        batch, single = self._batch(observation)
        if batch.dtype.kind == "f" and not np.isfinite(batch).all():
            raise ValueError("observation must be finite, and holds NaN or infinity")
        legal = None if mask is None else self._legal([mask] if single else mask, len(batch))
        actions = taken(self.head.spec, self.act_all(batch, legal, temperature=temperature))
        one: np.ndarray = actions[0] if single else actions
        return one

    def _batch(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Observations `(B, *shape)` as the network reads them, and whether it is a single one."""
        shape = self.network.architecture.observation
        given = np.asarray(observation) if not isinstance(observation, Mapping | tuple) else None
        if given is not None and given.shape[-len(shape) :] == shape and given.ndim <= len(shape) + 1:
            return (given, False) if given.ndim > len(shape) else (given[None], True)
        words = f"observation must have shape {shape} or (B, {', '.join(map(str, shape))})"
        got = type(observation).__name__ if given is None else f"shape {given.shape}"
        if self.space is None:
            raise ValueError(f"{words}, got {got}")
        space = self.space()
        single = given is None or space.shape is None or given.shape == space.shape
        if given is not None and not single and given.shape[1:] != space.shape:
            raise ValueError(f"{words}, or lie in {space}, got {got}")
        codec, rows = observation_codec(space), [observation] if single else list(given if given is not None else ())
        batch = codec.empty(len(rows))
        try:
            for row, one in zip(batch, rows, strict=True):
                codec.write(row, one)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{words}, or lie in {space}, got {got}: {type(error).__name__}: {error}") from error
        return batch, single

    def _legal(self, masks: Any, items: int) -> np.ndarray | None:
        reader = MaskReader(self.head.spec)
        if not reader.possible:
            return None
        if len(masks) != items:
            raise ValueError(f"mask must name the legal classes of {items} observations, got {len(masks)}")
        legal = np.empty((items, reader.size), bool)
        for row, mask in zip(legal, masks, strict=True):
            reader.write(row, {"action_mask": mask})
        reader.check(legal)
        return legal

    def act_all(self, observation: np.ndarray, mask: np.ndarray | None, *, temperature: float = 0.0) -> np.ndarray:
        """Actions `(M n, ...)` for observations `(M n, *shape)` and masks, member-major."""
        members = len(self.network.parameters.data)
        batch = observation.reshape(members, -1, *observation.shape[1:])
        if not self.network.architecture.image:
            batch = batch.astype(np.float32, copy=False)
        if self.moments is not None:
            batch = self.moments.normalise(batch)
        noise = self._streams.noise((batch.shape[1], self.head.actions), self.head.noise)
        if self.network.architecture.noise:
            batch = np.concatenate([batch, np.float32(temperature) * noise], -1)
        with torch.no_grad():
            outputs = self.network.actor(torch.from_numpy(batch)).numpy()
        legal = None if mask is None else np.asarray(mask, dtype=bool).reshape(*batch.shape[:2], -1)
        action = self.head.sample(outputs, noise, legal, temperature)
        return self.head.to_environment(action.reshape(-1, action.shape[-1]))

    def state(self, member: int = 0) -> dict[str, Any]:
        """Specification, weights and normaliser of one member as plain data: what `from_state` reads."""
        return {
            "spec": specification(self.network, self.head),
            "weights": self.network.parameters.member(member),
            "normaliser": None if self.moments is None else self.moments.member(member),
        }


def taken(spec: ActionSpec, actions: Any, array: Callable[[Any], Any] = np.asarray) -> Any:
    """Actions `(B, ...)` of NumPy or torch (`array` makes its constants) counted and shaped as the environment takes them."""
    if spec.start:
        actions = actions + array(spec.start if spec.kind == "multi_discrete" else spec.start[0])
    return actions if spec.shape is None else actions.reshape(actions.shape[0], *spec.shape)


def specification(network: ActorCritic, head: Head) -> dict[str, Any]:
    """What a policy is made of, as JSON values."""
    spec = {"architecture": network.architecture._asdict(), "action": head.spec._asdict(), "squash": isinstance(head, TanhGaussian)}
    return {**spec, "limits": list(head.limits)} if isinstance(head, TanhGaussian) else spec


def from_state(state: Mapping[str, Any]) -> Policy:
    """The policy that `Policy.state` described."""
    spec = state["spec"]
    architecture = Architecture(**_tuples(spec["architecture"]))
    action = ActionSpec(**_tuples(spec["action"]))
    moments = None
    if state["normaliser"] is not None:
        moments = RunningMoments(1, architecture.observation)
        moments.load_state_dict(state["normaliser"])
    limits = tuple(spec.get("limits", (LOG_STD_MIN, LOG_STD_MAX)))
    if architecture.noise:
        return Policy(from_weights(architecture, state["weights"]), Sampled(action), moments)
    head = TanhGaussian(action, limits) if spec["squash"] else head_for(action)
    return Policy(from_weights(architecture, state["weights"]), head, moments)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def from_checkpoint(state: Mapping[str, Any], member: int) -> Policy:
    """One member's policy out of the checkpoint of a population."""
    network: Tensor = state["network"]
    if not 0 <= member < len(network):
        raise ValueError(f"member must be between 0 and {len(network) - 1}, got {member}")
    spec = state["policy"]
    architecture = Architecture(**_tuples(spec["architecture"]))
    named = shapes(architecture)
    parts = network[member].split([math.prod(shape) for shape in named.values()])
    moments = state["collector"]["moments"]
    if moments is not None:
        moments = {name: value if name == "count" else value[member : member + 1] for name, value in moments.items()}
    weights = {name: part.reshape(shape) for (name, shape), part in zip(named.items(), parts, strict=True)}
    return from_state({"spec": spec, "weights": weights, "normaliser": moments})


def film(
    policy: Policy,
    env: str,
    env_kwargs: Mapping[str, Any],
    file: Path,
    *,
    seed: int,
    temperature: float = 0.0,
    stop: Callable[[], object] | None = None,
) -> str:
    """Write one episode of the policy as an animation; the line says what was written, or why nothing was (`stop()` ended it, for one)."""
    import imageio.v3 as imageio

    def act(observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return policy.act_all(observation, mask, temperature=temperature)

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures need no screen, and without one SDL complains
    recording = episodes.record_episode(env, act, seed=seed, env_kwargs=env_kwargs, width=_WIDTH, most=_FRAMES, stop=stop)
    if not recording.frames or (stop is not None and stop()):
        return f"no animation: {recording.reason or ('stopped' if recording.frames else 'the environment only prints text')}"
    frames, speed = np.stack(recording.frames), max(recording.frames_per_second, _SLOWEST)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".gif":
        imageio.imwrite(file, frames, duration=1000 / speed, loop=0)
    else:
        imageio.imwrite(file, frames, fps=speed)
    return f"{file}: an episode of {recording.length} steps, return {recording.episode_return:g}"


def show(policy: Policy, env: str, env_kwargs: Mapping[str, Any], *, seed: int, temperature: float = 0.0) -> str:
    """Play one episode in a window."""

    def act(observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return policy.act_all(observation, mask, temperature=temperature)

    recording = episodes.record_episode(env, act, seed=seed, env_kwargs=env_kwargs, window=True)
    return recording.reason or f"shown: an episode of {recording.length} steps, return {recording.episode_return:g}"
