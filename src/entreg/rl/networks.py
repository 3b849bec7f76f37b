"""Actor and critic of every member of a population, as one stacked network.

Shapes: M members, N observations, D observation size, K outputs of the policy head. Weights are [M, in, out] (y = x W + b), in the order
actor.0.weight, actor.0.bias, actor.1.weight, ..., critic.0.weight, ...: the layout that the fused update reads. Actor and critic share
nothing, except the convolutions where observations are images (CHW, uint8, scaled to [0, 1]) and, with `shared`, the hidden layers.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from entreg import stacked
from entreg.rl.stacks import Stacks

Activation = Literal["tanh", "relu", "elu", "gelu"]
Precision = Literal["float32", "bfloat16"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
}
_PIECE = 256  # stacks that are looked at together where no gradient is asked for: a rollout's as one tensor would hold each frame several times
_SMALLEST_IMAGE = 36  # the least side that leaves a pixel after the strides of `_LARGE`
_LARGE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride (Mnih et al. 2015)
_SMALL = ((16, 2, 1), (32, 2, 1), (64, 2, 1))  # for the 7 x 7 pictures of grid worlds


class Architecture(NamedTuple):
    """What a policy network is made of: enough to build it again from a checkpoint."""

    observation: tuple[int, ...]
    image: bool
    outputs: int
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    log_std: int = 0  # size of a state-independent log standard deviation (diagonal Gaussian), 0 for none
    critic: bool = True  # whether there is a tower of state values beside the policy's
    shared: bool = False  # whether the hidden layers are both towers', as in Mnih et al. 2016
    precision: Precision = "float32"  # of the convolutions
    noise: int = 0  # numbers of noise that a policy of vectors reads behind its observation; where they are not given they are 0


def convolutions(architecture: Architecture) -> Sequence[tuple[int, int, int]]:
    """Channels, kernel and stride of each convolution, by the size of the image; none for vectors."""
    if not architecture.image:
        return ()
    side = min(architecture.observation[1:])
    if side < 4:
        raise ValueError(f"images must be at least 4 pixels wide and high, got {architecture.observation}")
    return _LARGE if side >= _SMALLEST_IMAGE else _SMALL


def _flat_size(architecture: Architecture) -> int:
    if not architecture.image:
        return architecture.observation[0]
    channels, height, width = architecture.observation
    for out, kernel, stride in convolutions(architecture):
        channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return channels * height * width


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of one member, in storage order."""
    if architecture.activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {architecture.activation!r}")
    if architecture.precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {architecture.precision!r}")
    if architecture.precision != "float32" and not architecture.image:
        raise ValueError(f"precision {architecture.precision} is for the convolutions of images, and observations are vectors here")
    result: dict[str, tuple[int, ...]] = {}
    below = (_flat_size(architecture) + architecture.noise, *architecture.hidden)
    towers: dict[str, tuple[int, ...]] = {"actor": (architecture.outputs,), "critic": (1,)} if architecture.critic else {"actor": (architecture.outputs,)}
    if architecture.shared:
        towers = {"trunk": (), **{name: (below[-1], *outputs) for name, outputs in towers.items()}}
    for tower, outputs in towers.items():
        sizes = outputs if architecture.shared and tower != "trunk" else (*below, *outputs)
        for layer, (size_in, size_out) in enumerate(itertools.pairwise(sizes)):
            result[f"{tower}.{layer}.weight"] = (size_in, size_out)
            result[f"{tower}.{layer}.bias"] = (size_out,)
    if architecture.log_std:
        result["log_std"] = (architecture.log_std,)
    channels = architecture.observation[0]
    for layer, (out, kernel, _) in enumerate(convolutions(architecture)):
        result[f"image.{layer}.weight"] = (out, channels, kernel, kernel)
        result[f"image.{layer}.bias"] = (out,)
        channels = out
    return result


class ActorCritic:
    """The stacked actor and critic of M members; `generators` hold one source of initial weights each.

    Weights begin orthogonal, or (`initial` "uniform") within 1 / sqrt(inputs) of 0 as torch's own layers do.
    """

    def __init__(
        self,
        architecture: Architecture,
        generators: Sequence[torch.Generator],
        *,
        log_std: float = 0.0,
        initial: Literal["orthogonal", "uniform"] = "orthogonal",
    ) -> None:
        self.architecture = architecture
        self.parameters = stacked.FlatParameters(len(generators), shapes(architecture))
        self.shortcut: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        depth = (
            {"actor": 1, "critic": 1, "trunk": len(architecture.hidden)}
            if architecture.shared
            else dict.fromkeys(("actor", "critic"), len(architecture.hidden) + 1)
        )
        self._towers = {tower: [(f"{tower}.{layer}.weight", f"{tower}.{layer}.bias") for layer in range(layers)] for tower, layers in depth.items()}
        with torch.no_grad():
            for name in self.parameters.shapes:
                for member, generator in enumerate(generators):
                    if initial == "uniform":
                        uniform_(self.parameters.plain[name][member], self.parameters.shapes, name, generator)
                    else:
                        _initialise(self.parameters.plain[name][member], name, architecture, generator, log_std)

    def actor(self, observation: Tensor | Stacks) -> Tensor:
        """Policy outputs (logits, or means and log standard deviations), `(M, N, *observation) -> (M, N, K)`."""
        if self.shortcut is not None and isinstance(observation, Tensor) and not torch.is_grad_enabled():
            return self.shortcut(observation)[0]
        (outputs,) = self._run(observation, "actor")
        return self.head(outputs)

    def critic(self, observation: Tensor | Stacks) -> Tensor:
        """State values, `(M, N, *observation) -> (M, N)`."""
        (value,) = self._run(observation, "critic")
        return value.squeeze(-1)

    def both(self, observation: Tensor | Stacks) -> tuple[Tensor, Tensor]:
        """`actor` and `critic` with the convolutions of images run once; without gradients by the shortcut, where there is one."""
        if self.shortcut is not None and isinstance(observation, Tensor) and not torch.is_grad_enabled():
            return self.shortcut(observation)
        outputs, value = self._run(observation, "actor", "critic")
        return self.head(outputs), value.squeeze(-1)

    def features(self, observation: Tensor | Stacks) -> Tensor:
        """What both towers read: the vector itself, or the flattened maps of the convolutions."""
        if isinstance(observation, Stacks):
            observation = observation.tensor()
        if not self.architecture.image:
            missing = self.architecture.noise and observation.shape[-1] == self.architecture.observation[0]
            return torch.nn.functional.pad(observation, (0, self.architecture.noise)) if missing else observation
        names = [(f"image.{layer}.weight", f"image.{layer}.bias") for layer in range(len(convolutions(self.architecture)))]
        weights = [(self.parameters[weight], self.parameters[bias]) for weight, bias in names]
        weights[0] = weights[0][0] / 255, weights[0][1]  # of a few thousand weights instead of millions of pixels
        strides = [stride for _, _, stride in convolutions(self.architecture)]
        return stacked.convolutions(observation, weights, strides, torch.bfloat16 if self.architecture.precision == "bfloat16" else torch.float32)

    def head(self, outputs: Tensor) -> Tensor:
        """Append the state-independent log standard deviation where the architecture has one."""
        if not self.architecture.log_std:
            return outputs
        log_std = self.parameters["log_std"][:, None]
        return torch.cat([outputs, log_std.expand(*outputs.shape[:2], -1)], dim=-1)

    def _run(self, observation: Tensor | Stacks, *towers: Literal["actor", "critic"]) -> tuple[Tensor, ...]:
        if isinstance(observation, Stacks) and not torch.is_grad_enabled() and observation.index.shape[1] > _PIECE:
            pieces = [self._run(Stacks(observation.frames, part), *towers) for part in observation.index.split(_PIECE, 1)]
            return tuple(torch.cat(part, 1) for part in zip(*pieces, strict=True))
        features, names = self.features(observation), [self._towers[tower] for tower in towers]
        name = self.architecture.activation
        if self.architecture.shared:
            features = _ACTIVATIONS[name](stacked.plain_mlp(features, self.parameters, self._towers["trunk"], _ACTIVATIONS[name]))
        if name == "tanh" or name == "relu":  # noqa: PLR1714  in this form it narrows the type
            return stacked.mlps(features, self.parameters, names, name)
        return tuple(stacked.plain_mlp(features, self.parameters, tower, _ACTIVATIONS[name]) for tower in names)


def _initialise(parameter: Tensor, name: str, architecture: Architecture, generator: torch.Generator, log_std: float) -> None:
    """Orthogonal weights: gain sqrt(2) inside, .01 for the policy, 1 for the value (Andrychowicz et al. 2021); biases 0."""
    if name == "log_std":
        parameter.fill_(log_std)
    elif name.endswith("weight"):
        last = name.startswith(("actor", "critic")) and name.split(".")[1] == str(0 if architecture.shared else len(architecture.hidden))
        gain = 2**0.5 if not last else 0.01 if name.startswith("actor") else 1.0
        fresh = torch.empty(parameter.shape if name.startswith("image") else parameter.shape[::-1])  # orthogonal_ expects [out, in]
        torch.nn.init.orthogonal_(fresh, gain=gain, generator=generator)
        parameter.copy_(fresh if name.startswith("image") else fresh.T)


def uniform_(parameter: Tensor, shapes: Mapping[str, tuple[int, ...]], name: str, generator: torch.Generator) -> None:
    """Fill one weight or bias uniformly within 1 / sqrt(inputs of its layer) of 0: what `torch.nn.Linear` and `Conv2d` begin with."""
    shape = shapes[f"{name.rpartition('.')[0]}.weight"]
    inputs = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)


def from_weights(architecture: Architecture, weights: Mapping[str, Tensor]) -> ActorCritic:
    """A population of one with the given weights (names and shapes of `shapes(architecture)`, without the member dimension)."""
    network = ActorCritic(architecture, [torch.Generator()])
    expected = shapes(architecture)
    if {name: tuple(value.shape) for name, value in weights.items()} != expected:
        raise ValueError(f"weights do not fit the architecture: expected {expected}, got { {n: tuple(w.shape) for n, w in weights.items()} }")
    with torch.no_grad():
        for name, value in weights.items():
            network.parameters.plain[name][0].copy_(value)
    return network
