"""A trained policy on its own: observations in, actions out, with the normalisation it was trained under.

Shapes: B observations of one environment, `(B, *observation) -> (B,)` or `(B, A)`; a single observation gives a single action.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg.rl import environments
from entreg.rl.config import OnPolicyConfig
from entreg.rl.environments import ActionSpec
from entreg.rl.heads import Head, head_for
from entreg.rl.networks import ActorCritic, Architecture, from_weights, shapes
from entreg.rl.normalize import RunningMoments

EVALUATION_SEED = 1_000_003  # added to a member's seed: episodes that training does not see


class Policy:
    """What `entreg.load(folder)` gives: `act(observation)`; temperature 0 takes the most probable action, 1 samples."""

    def __init__(self, network: ActorCritic, head: Head, moments: RunningMoments | None, *, seed: int = 0) -> None:
        self.network = network
        self.head = head
        self.moments = moments
        self._random = np.random.Generator(np.random.PCG64(seed))

    def act(self, observation: np.ndarray, mask: np.ndarray | None = None, *, temperature: float = 0.0) -> np.ndarray:
        """Actions for one observation or a batch, as the environment takes them; `mask` names the legal ones."""
        observation = np.asarray(observation)
        shape = self.network.architecture.observation
        if observation.shape[-len(shape) :] != shape or observation.ndim > len(shape) + 1:
            raise ValueError(f"observation must have shape {shape} or (B, {', '.join(map(str, shape))}), got {observation.shape}")
        single = observation.ndim == len(shape)
        if single:
            observation, mask = observation[None], None if mask is None else np.asarray(mask)[None]
        with torch.inference_mode():
            outputs = self.network.actor(torch.from_numpy(self.normalised(observation))[None])
            noise = self._noise((1, len(observation), self.head.actions))
            legal = None if mask is None else torch.from_numpy(np.asarray(mask, dtype=bool))[None]
            action = self.head.sample(outputs, noise, legal, temperature).numpy()[0]
        result = self.head.to_environment(action)
        return result[0] if single else result

    def normalised(self, observation: np.ndarray) -> np.ndarray:
        """What the network reads."""
        if self.network.architecture.image:
            return np.ascontiguousarray(observation)
        plain = np.asarray(observation, dtype=np.float32)
        return plain if self.moments is None else self.moments.normalise(plain[None])[0]

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        draw = self._random.random if self.head.noise == "uniform" else self._random.standard_normal
        return torch.from_numpy(draw(shape, dtype=np.float32))

    def state(self) -> dict[str, Any]:
        """Specification, weights and normaliser as plain data: what `from_state` reads."""
        return {
            "spec": {
                "architecture": self.network.architecture._asdict(),
                "action": self.head.spec._asdict(),
                "squash": self.head.spec.kind == "continuous" and not self.head.log_std,
            },
            "weights": self.network.parameters.member(0),
            "normaliser": None if self.moments is None else self.moments.state_dict(),
        }


def from_state(state: Mapping[str, Any]) -> Policy:
    """The policy that `Policy.state` described."""
    spec = state["spec"]
    architecture = Architecture(**{key: tuple(value) if isinstance(value, list) else value for key, value in spec["architecture"].items()})
    action = ActionSpec(**{key: tuple(value) if isinstance(value, list) else value for key, value in spec["action"].items()})
    moments = None
    if state["normaliser"] is not None:
        moments = RunningMoments(1, architecture.observation)
        moments.load_state_dict(state["normaliser"])
    return Policy(from_weights(architecture, state["weights"]), head_for(action, squash=spec["squash"]), moments)


def member_policy(network: ActorCritic, head: Head, moments: RunningMoments | None, member: int) -> Policy:
    """One member's policy, copied out of the population."""
    own = None
    if moments is not None:
        own = RunningMoments(1, network.architecture.observation)
        own.load_state_dict({"mean": moments.mean[member : member + 1], "var": moments.var[member : member + 1], "count": moments.count})
    return Policy(from_weights(network.architecture, network.parameters.member(member)), head, own, seed=member)


def evaluate(policy: Policy, config: OnPolicyConfig, *, seed: int) -> list[tuple[float, int]]:
    """Return and length of `config.eval_episodes` episodes; their environments are seeded apart from those of training."""

    def act(observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        return policy.act(observation, mask, temperature=config.eval_temperature)

    return environments.evaluate(config.env, act, episodes=config.eval_episodes, seed=seed + EVALUATION_SEED, env_kwargs=config.env_kwargs)


def from_checkpoint(state: Mapping[str, Any], member: int) -> Policy:
    """One member's policy out of the checkpoint of a population."""
    network: Tensor = state["network"]
    if not 0 <= member < len(network):
        raise ValueError(f"member must be between 0 and {len(network) - 1}, got {member}")
    spec = state["policy"]
    architecture = Architecture(**{key: tuple(value) if isinstance(value, list) else value for key, value in spec["architecture"].items()})
    named = shapes(architecture)
    parts = network[member].split([math.prod(shape) for shape in named.values()])
    moments = state["collector"]["moments"]
    if moments is not None:
        moments = {"mean": moments["mean"][member : member + 1], "var": moments["var"][member : member + 1], "count": moments["count"]}
    weights = {name: part.reshape(shape) for (name, shape), part in zip(named.items(), parts, strict=True)}
    return from_state({"spec": spec, "weights": weights, "normaliser": moments})
