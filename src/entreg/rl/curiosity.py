"""Intrinsic rewards that networks are trained for: prediction errors of a forward model (icm) and of a random network (rnd).

Shapes: M members, N items of each, F features, A numbers of an action, K outputs that name an action. Networks are small stacked ones, trained on each
rollout after it was rewarded: `PASSES` times in minibatches of `BATCH` items, in orders of each member's own stream.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from entreg import stacked
from entreg.rl.heads import Head
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.normalize import RunningMoments
from entreg.rl.population import Streams, weight_generators
from entreg.rl.spaces import ObservationSpec

FEATURES, HIDDEN = 64, (128,)
BATCH, PASSES = 256, 2
FORWARD = 0.2  # the forward model's part of ICM's loss (Pathak et al. 2017, beta)
CLIP = 5.0  # observations, in standard deviations (Burda et al. 2018)


def _network(inputs: tuple[int, ...], image: bool, outputs: int, hidden: tuple[int, ...], generators: Sequence[torch.Generator]) -> ActorCritic:
    return ActorCritic(Architecture(inputs, image, outputs, hidden, "relu", critic=False), generators, initial="uniform")


class _Trained:
    """What both have: observations in units of their running moments, networks with an Adam each, minibatches."""

    def __init__(self, seeds: Sequence[int], streams: Streams, observation: ObservationSpec, lr: float) -> None:
        self.lr, self.streams = lr, streams
        self.moments = None if observation.image else RunningMoments(len(seeds), observation.shape)
        self.networks: dict[str, ActorCritic] = {}
        self.optimizers: dict[str, stacked.StackedAdam] = {}

    def add(self, name: str, network: ActorCritic, *, trained: bool = True) -> ActorCritic:
        self.networks[name] = network
        if trained:
            self.optimizers[name] = stacked.StackedAdam(network.parameters)
        return network

    def seen(self, observation: np.ndarray, *, learn: bool) -> Tensor:
        if self.moments is None:
            return torch.from_numpy(observation)
        if learn:
            self.moments.update(observation)
        return torch.from_numpy(self.moments.normalise(observation, CLIP))

    def learn(self, parts: Sequence[Tensor], loss: Callable[..., Tensor]) -> None:
        """Minimise `loss(*minibatch)`, `(M, B)` an item, by `PASSES` passes over the items of `parts`, `(M, N, ...)` each."""
        items = parts[0].shape[1]
        with torch.enable_grad():
            for order in torch.from_numpy(self.streams.orders(PASSES, items)).unbind(1):
                for chosen in order.split(BATCH, dim=1):
                    value = loss(*(_taken(part, chosen) for part in parts))
                    stacked.backward([network.parameters for name, network in self.networks.items() if name in self.optimizers], (value, _mean(value)))
                    for optimizer in self.optimizers.values():
                        optimizer.step(self.lr)

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": {name: network.parameters.data for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "moments": None if self.moments is None else self.moments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, network in self.networks.items():
                network.parameters.data.copy_(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])


class RND(_Trained):
    """Mean squared error of a trained network at imitating a random one on the state that was reached: large where states like it were rare.

    Source: Burda et al. 2018 (arXiv:1810.12894), section 2.2; one value function serves both rewards here, and the paper's two discounts are one.
    """

    def __init__(self, seeds: Sequence[int], streams: Streams, observation: ObservationSpec, lr: float) -> None:
        super().__init__(seeds, streams, observation, lr)
        generators, shape = weight_generators(seeds), (observation.shape, observation.image, FEATURES)
        self.target = self.add("target", _network(*shape, HIDDEN, generators), trained=False)
        self.predictor = self.add("predictor", _network(*shape, HIDDEN * 2, generators))

    def reward(self, before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        states = self.seen(after, learn=True)
        with torch.no_grad():
            wanted = self.target.actor(states)
            result: np.ndarray = self.error(states, wanted).numpy()
        self.learn((states, wanted), self.error)
        return result

    def error(self, states: Tensor, wanted: Tensor) -> Tensor:
        """`(M, N)`."""
        return (self.predictor.actor(states) - wanted).square().mean(-1)


class ICM(_Trained):
    """Half the squared error of a forward model in a space of features that serve to tell the action from the states before and after it.

    Loss of an item: (1 - beta) loss of the action + beta forward error, beta .2. Discrete actions are told by cross-entropy, continuous ones by squared error.

    Source: Pathak et al. 2017 (arXiv:1705.05363), eq. 2 to 7.
    """

    def __init__(self, seeds: Sequence[int], streams: Streams, observation: ObservationSpec, head: Head, lr: float) -> None:
        super().__init__(seeds, streams, observation, lr)
        generators = weight_generators(seeds)
        self.sizes = None if head.spec.kind == "continuous" else head.spec.sizes
        width = head.actions if self.sizes is None else sum(self.sizes)
        self.features = self.add("features", _network(observation.shape, observation.image, FEATURES, HIDDEN, generators))
        self.inverse = self.add("inverse", _network((2 * FEATURES,), False, width, HIDDEN, generators))
        self.forward = self.add("forward", _network((FEATURES + width,), False, FEATURES, HIDDEN, generators))

    def reward(self, before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        states, following = self.seen(before, learn=True), self.seen(after, learn=False)
        taken = torch.from_numpy(action)
        with torch.no_grad():
            result: np.ndarray = self.errors(states, taken, following)[1].numpy()
        self.learn((states, taken, following), self.loss)
        return result

    def loss(self, states: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """`(M, N)`."""
        told, predicted = self.errors(states, action, following)
        return (1 - FORWARD) * told + FORWARD * predicted

    def errors(self, states: Tensor, action: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the action and forward error, `(M, N)` each."""
        here, there = self.features.actor(torch.cat([states, following], dim=1)).chunk(2, dim=1)
        outputs = self.inverse.actor(torch.cat([here, there], dim=-1))
        if self.sizes is None:
            code, told = action, (outputs - action).square().sum(-1)
        else:
            heads = zip(outputs.split(self.sizes, dim=-1), action.unbind(-1), strict=True)
            told = torch.stack([-F.log_softmax(logits, -1).gather(-1, one[..., None])[..., 0] for logits, one in heads]).sum(0)
            code = torch.cat([F.one_hot(one, size) for size, one in zip(self.sizes, action.unbind(-1), strict=True)], dim=-1).to(here.dtype)
        predicted = self.forward.actor(torch.cat([here, code], dim=-1))
        return told, 0.5 * (predicted - there).square().sum(-1)


def _taken(values: Tensor, order: Tensor) -> Tensor:
    """The items `order [M, B]` of `values [M, N, ...]`."""
    return values[torch.arange(len(values))[:, None], order]


def _mean(loss: Tensor) -> Tensor:
    return torch.full_like(loss, 1 / loss.shape[1])
