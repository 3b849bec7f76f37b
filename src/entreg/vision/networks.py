"""Classifiers of all members as one: stacked multilayer networks, and wide residual networks one behind the other.

Shapes: M members, N images of each, V classes. Parameters and running statistics lie in flat buffers `[M, P]`, so that optimizers, averages and checkpoints do
not know which network it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from entreg.stacked import FlatParameters, linear, mlps, perceptrons

SLOPE, BN_MOMENTUM, BN_EPS = 0.1, 0.001, 0.001  # Sohn et al. 2020's, after Oliver et al. 2018


class Architecture(NamedTuple):
    """What a classifier is made of: enough to build it again."""

    network: str
    shape: tuple[int, int, int]
    classes: int
    hidden: tuple[int, ...] = (256,)
    depth: int = 28
    width: int = 2


class Classifier(Protocol):
    """Images to logits; `statistics` are the running means and variances of its normalisation, None where there is none."""

    parameters: FlatParameters
    statistics: FlatParameters | None

    def __call__(self, images: Tensor, *, train: bool = True, noise: Sequence[Tensor] = ()) -> Tensor:
        """`(M, N, C, H, W) -> (M, N, V)`; `train` normalises by the batch and moves the statistics, `noise` multiplies hidden units (dropout)."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The sizes of the hidden units that noise multiplies."""


def make(architecture: Architecture, seeds: Sequence[int]) -> Classifier:
    """A classifier a seed.

    Raises: `ValueError` for an architecture that does not fit the images.
    """
    return MLP(architecture, seeds) if architecture.network == "mlp" else WideResNet(architecture, seeds)


class MLP:
    """relu layers on the flattened image."""

    statistics: FlatParameters | None = None

    def __init__(self, architecture: Architecture, seeds: Sequence[int]) -> None:
        self.widths = architecture.hidden
        self.parameters, self.tower = perceptrons(seeds, (math.prod(architecture.shape), *architecture.hidden, architecture.classes))

    def __call__(self, images: Tensor, *, train: bool = True, noise: Sequence[Tensor] = ()) -> Tensor:
        x = images.flatten(2)
        if not noise:
            return mlps(x, self.parameters, [self.tower], "relu")[0]
        for layer, (weight, bias) in enumerate(self.tower):
            x = linear(x if layer == 0 else torch.relu(x) * noise[layer - 1], self.parameters[weight], self.parameters[bias])
        return x


class WideResNet:
    """Wide residual network WRN-depth-width with leaky relu; members run one behind the other.

    Source: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), in the form of Oliver et al. 2018 (arXiv:1804.09170) that semi-supervised learning compares by.
    """

    def __init__(self, architecture: Architecture, seeds: Sequence[int]) -> None:
        channels, height, width = architecture.shape
        if architecture.depth < 10 or (architecture.depth - 4) % 6:
            raise ValueError(f"depth is {architecture.depth}; legal are 10, 16, 22, 28, ...: 4 and a multiple of 6")
        if min(height, width) < 8:
            raise ValueError(f"network is wrn with images of {height} x {width}; legal are 8 x 8 and larger")
        self.blocks: list[tuple[str, int, int, int]] = []  # name, channels in and out, stride
        inside = 16
        for group, out in enumerate(16 * architecture.width * 2**k for k in range(3)):
            for block in range((architecture.depth - 4) // 6):
                self.blocks.append((f"{group}.{block}", inside, out, 2 if group and not block else 1))
                inside = out
        self.widths = (inside,)
        shapes, statistics = self._shapes(channels, architecture.classes)
        self.parameters = FlatParameters(len(seeds), shapes)
        self.statistics: FlatParameters | None = FlatParameters(len(seeds), statistics)
        self._begin(seeds)

    def _shapes(self, channels: int, classes: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        shapes: dict[str, tuple[int, ...]] = {"first.weight": (16, channels, 3, 3)}
        norms = {"last": self.widths[0]}
        for name, inside, out, _ in self.blocks:
            norms |= {f"{name}.norm1": inside, f"{name}.norm2": out}
            shapes |= {f"{name}.conv1.weight": (out, inside, 3, 3), f"{name}.conv2.weight": (out, out, 3, 3)}
            if inside != out:
                shapes[f"{name}.shortcut.weight"] = (out, inside, 1, 1)
        shapes |= {f"{norm}.{part}": (size,) for norm, size in norms.items() for part in ("scale", "shift")}
        shapes |= {"head.weight": (classes, self.widths[0]), "head.bias": (classes,)}
        return shapes, {f"{norm}.{part}": (size,) for norm, size in norms.items() for part in ("mean", "var")}

    def _begin(self, seeds: Sequence[int]) -> None:
        """Convolutions normal with variance 2 / (outputs x area), the head with 2 / (inputs + outputs); scales 1, biases 0."""
        assert self.statistics is not None
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for name, shape in self.parameters.shapes.items():
                if len(shape) > 1:
                    fan = sum(shape) if len(shape) == 2 else shape[0] * shape[2] * shape[3]
                    self.parameters.plain[name][member] = math.sqrt(2 / fan) * torch.randn(shape, generator=generator)
                elif name.endswith("scale"):
                    self.parameters.plain[name][member] = 1.0
        for name in self.statistics.shapes:
            self.statistics.plain[name].fill_(1.0 if name.endswith("var") else 0.0)

    def __call__(self, images: Tensor, *, train: bool = True, noise: Sequence[Tensor] = ()) -> Tensor:
        values: Any = self.parameters if torch.is_grad_enabled() else self.parameters.plain
        each = []
        for member, of in enumerate(images):
            x = self._features({name: values[name][member] for name in self.parameters.shapes}, member, of, train)
            if noise:
                x = x * noise[0][member]
            each.append(F.linear(x, values["head.weight"][member], values["head.bias"][member]))
        return torch.stack(each)

    def _features(self, values: Mapping[str, Tensor], member: int, x: Tensor, train: bool) -> Tensor:
        """What the head reads, `(N, C, H, W) -> (N, F)`."""
        assert self.statistics is not None
        statistics = self.statistics.plain

        def norm(y: Tensor, name: str) -> Tensor:
            mean, var = statistics[f"{name}.mean"][member], statistics[f"{name}.var"][member]
            y = F.batch_norm(y, mean, var, values[f"{name}.scale"], values[f"{name}.shift"], train, BN_MOMENTUM, BN_EPS)
            return F.leaky_relu(y, SLOPE, inplace=True)

        x = F.conv2d(x.contiguous(memory_format=torch.channels_last), values["first.weight"], padding=1)
        for index, (name, inside, out, stride) in enumerate(self.blocks):
            y = norm(x, f"{name}.norm1")
            if index == 0:  # the first block's activation is its shortcut's too
                x = y
            short = x if inside == out else F.conv2d(x, values[f"{name}.shortcut.weight"], stride=stride)
            y = norm(F.conv2d(y, values[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.norm2")
            x = short + F.conv2d(y, values[f"{name}.conv2.weight"], padding=1)
        return norm(x, "last").mean((2, 3))


def take_over(teacher: Classifier, student: Classifier, decay: float) -> None:
    """Move the teacher's parameters towards the student's, `t <- decay t + (1 - decay) s`; running statistics are the student's."""
    teacher.parameters.data.lerp_(student.parameters.data, 1 - decay)
    if teacher.statistics is not None and student.statistics is not None:
        teacher.statistics.data.copy_(student.statistics.data)


def state_of(network: Classifier) -> dict[str, Any]:
    """Parameters and statistics for a checkpoint."""
    return {"parameters": network.parameters.data} | ({} if network.statistics is None else {"statistics": network.statistics.data})


def load_state(network: Classifier, state: Mapping[str, Any]) -> None:
    """Take back what `state_of` gave."""
    network.parameters.data.copy_(state["parameters"])
    if network.statistics is not None:
        network.statistics.data.copy_(state["statistics"])
