"""Many small networks trained as one: stacked layers, per-member gradient clipping and Adam.

Shapes: M members, N items of a batch, P parameters of one member. Every tensor of a population leads with M and every member's
numbers depend on that member's alone, so that a population of M is M runs at little more than the cost of one.

All parameters live in one flat buffer [M, P]; a named parameter is a leaf tensor that views it, and gradients are gathered into a second
such buffer. Clipping and the optimizer therefore cost a handful of operations whatever the number of layers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class FlatParameters:
    """Named parameters `[M, *shape]` that view one buffer `data [M, P]`; `backward` fills `grad [M, P]`.

    >>> parameters = FlatParameters(2, {"weight": (3, 4), "bias": (4,)})
    >>> parameters["weight"].shape, parameters.data.shape
    (torch.Size([2, 3, 4]), torch.Size([2, 16]))
    """

    def __init__(self, members: int, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.data = torch.zeros(members, size)
        self.grad = torch.zeros(members, size)
        self._views: dict[str, Tensor] = {}
        offset = 0
        for name, shape in self.shapes.items():
            end = offset + math.prod(shape)
            view = self.data[:, offset:end].unflatten(1, shape) if shape else self.data[:, offset]
            self._views[name] = view.detach().requires_grad_()
            offset = end

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def backward(self, *weighted: tuple[Tensor, Tensor]) -> None:
        """Replace `grad` by the gradient of the sum of all `loss * weight`, pairs of one shape; a parameter that no loss depends on gets 0.

        Weights instead of means and sums of losses spare autograd some fifteen operations: .1 ms of a step of .9 on one small network.
        """
        losses, weights = zip(*weighted, strict=True)
        grads = torch.autograd.grad(losses, list(self._views.values()), weights, materialize_grads=True)
        torch.cat([grad.flatten(1) for grad in grads], dim=1, out=self.grad)

    def member(self, index: int) -> dict[str, Tensor]:
        """A copy of one member's parameters by name, without the member dimension."""
        return {name: view.detach()[index].clone() for name, view in self._views.items()}


class StackedAdam:
    """Adam (Kingma & Ba 2015) over `FlatParameters`, member by member equal to `torch.optim.Adam` on that member alone."""

    def __init__(self, parameters: FlatParameters, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5) -> None:
        self.parameters = parameters
        self.betas = betas
        self.eps = eps
        self.first = torch.zeros_like(parameters.data)
        self.second = torch.zeros_like(parameters.data)
        self.steps = torch.zeros(parameters.data.shape[0], dtype=torch.int64)

    def step(self, lr: float, active: Tensor | None = None) -> None:
        """One step for every member, or for those of the boolean `active [M]`; the others keep parameters and state."""
        data, grad = self.parameters.data, self.parameters.grad
        if active is not None and not bool(active.all()):
            chosen = active.nonzero()[:, 0]
            kept = data[chosen], self.first[chosen], self.second[chosen]
            self.steps[chosen] += 1
            self._apply(kept[0], grad[chosen], kept[1], kept[2], self.steps[chosen], lr)
            for whole, part in zip((data, self.first, self.second), kept, strict=True):
                whole[chosen] = part
            return
        self.steps += 1
        self._apply(data, grad, self.first, self.second, self.steps, lr)

    def _apply(self, data: Tensor, grad: Tensor, first: Tensor, second: Tensor, steps: Tensor, lr: float) -> None:
        beta1, beta2 = self.betas
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        count = steps.tolist()
        scale2 = [math.sqrt(1 - beta2**t) for t in count]
        rate = [lr / (1 - beta1**t) for t in count]
        if len(set(count)) == 1:
            data.addcdiv_(first, second.sqrt().add_(self.eps * scale2[0]), value=-rate[0] * scale2[0])
        else:
            denominator = second.sqrt().div_(data.new_tensor(scale2)[:, None]).add_(self.eps)
            data.sub_(first / denominator * data.new_tensor(rate)[:, None])

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.steps.copy_(state["steps"])


def clip_grad_norm(parameters: FlatParameters, max_norm: float) -> Float[Tensor, " M"]:
    """Scale each member's gradient to a Euclidean norm of at most `max_norm`; returns the norms before, `[M]`."""
    norm: Tensor = torch.linalg.vector_norm(parameters.grad, dim=1)
    parameters.grad.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0)[:, None])
    return norm


def linear(x: Float[Tensor, "M N I"], weight: Float[Tensor, "M I O"], bias: Float[Tensor, "M O"]) -> Float[Tensor, "M N O"]:
    """Each member's affine map of its own items, `(M, N, I) -> (M, N, O)`."""
    return torch.baddbmm(bias[:, None], x, weight)


Tower: TypeAlias = Sequence[tuple[Tensor, Tensor]]  # weight and bias of every layer


def mlps(x: Float[Tensor, "M N I"], towers: Sequence[Tower], activation: Literal["tanh", "relu"]) -> tuple[Tensor, ...]:
    """Networks that read the same items, `activation` between their affine layers: `(M, N, I)` -> `(M, N, O)` of each. First derivatives only.

    The same as `linear` and the activation in turn. For two towers of two layers of 64 on [1, 256] items that takes 280 us forward and 400 backward, this
    150 and 220: activations are applied in place, tanh is NumPy's (6 us on [256, 64], torch's 42), and autograd sees one operation.

    >>> x, layer = torch.ones(1, 1, 2), (torch.ones(1, 2, 2), torch.zeros(1, 2))
    >>> mlps(x, [[layer], [layer, layer]], "tanh")
    (tensor([[[2., 2.]]]), tensor([[[1.9281, 1.9281]]]))
    """
    if torch.compiler.is_compiling():  # a tracer does not see what NumPy writes
        return tuple(plain_mlp(x, tower, torch.tanh if activation == "tanh" else torch.relu) for tower in towers)
    if torch.is_grad_enabled():
        parameters = (part for tower in towers for layer in tower for part in layer)
        result: tuple[Tensor, ...] = _MLPs.apply(x, activation, [len(tower) for tower in towers], *parameters)  # type: ignore[no-untyped-call]
        return result
    return tuple(_run(x, tower, activation)[-1] for tower in towers)


def plain_mlp(x: Tensor, tower: Tower, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """One network of affine layers with any activation between them, `(M, N, I) -> (M, N, O)`, in torch's own operations."""
    for layer, (weight, bias) in enumerate(tower):
        x = linear(x if layer == 0 else activation(x), weight, bias)
    return x


def _run(x: Tensor, tower: Tower, activation: str) -> list[Tensor]:
    """What every layer reads, and the outputs."""
    seen = [x]
    for layer, (weight, bias) in enumerate(tower):
        if layer and activation == "tanh" and x.device.type == "cpu":
            array = x.numpy()
            np.tanh(array, out=array)
        elif layer:
            x = x.tanh_() if activation == "tanh" else x.relu_()
        if 1 < weight.shape[2] < 8 and x.shape[1] > 64:  # a few outputs of many items are made as rows: 180 us instead of 410 for two of [48, 128, 64]
            x = torch.baddbmm(bias[:, :, None], weight.mT, x.mT).mT
        else:
            x = linear(x, weight, bias)
        seen.append(x)
    return seen


class _MLPs(torch.autograd.Function):
    """`mlps` with its backward written out: bias and weight gradients of a layer, then the gradient of what it read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, layers: Sequence[int], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.activation, ctx.layers = activation, layers
        pairs, outputs, saved = iter(zip(parameters[::2], parameters[1::2], strict=True)), [], []
        for count in layers:
            tower = list(islice(pairs, count))
            *seen, last = _run(x, tower, activation)
            outputs.append(last)
            saved += [*seen, *(weight for weight, _ in tower)]
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("stacked.mlps has first derivatives only")
        saved, of_x, result = iter(ctx.saved_tensors), None, []
        for grad, count in zip(grads, ctx.layers, strict=True):
            seen, weights = list(islice(saved, count)), list(islice(saved, count))
            of_first, of_parameters = _back(grad, seen, weights, ctx.activation)
            result += of_parameters
            if ctx.needs_input_grad[0]:
                part = torch.bmm(of_first, weights[0].mT)
                of_x = part if of_x is None else of_x + part
        return of_x, None, None, *result


def _back(grad: Tensor, seen: Sequence[Tensor], weights: Sequence[Tensor], activation: str) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the first layer's outputs, and of every weight and bias, from that of the last outputs, what each layer read and its weights."""
    result = []
    for layer in range(len(seen) - 1, 0, -1):
        read = seen[layer]
        narrow = layer == len(seen) - 1  # the few outputs of a head come first in their product: 5 us instead of 22 on [256, 64] and two outputs
        result += [grad.sum(1), torch.bmm(grad.mT, read).mT if narrow else torch.bmm(read.mT, grad)]
        grad = torch.bmm(grad, weights[layer].mT)
        grad = grad.addcmul_(grad * read, read, value=-1) if activation == "tanh" else grad.mul_(read > 0)
    result += [grad.sum(1), torch.bmm(seen[0].mT, grad)]
    return grad, result[::-1]


def conv2d(x: Float[Tensor, "M N C H W"], weight: Float[Tensor, "M O C K K"], bias: Float[Tensor, "M O"], stride: int) -> Tensor:
    """Each member's convolution of its own images, `(M, N, C, H, W) -> (M, N, O, H', W')`, as one grouped convolution."""
    members, items = x.shape[:2]
    grouped = x.transpose(0, 1).flatten(1, 2)
    out = torch.nn.functional.conv2d(grouped, weight.flatten(0, 1), bias.flatten(), stride=stride, groups=members)
    return out.unflatten(1, (members, -1)).transpose(0, 1) if items else out.new_zeros(members, 0, weight.shape[1], *out.shape[2:])
