"""Many small networks trained as one: stacked layers, per-member gradient clipping and Adam.

Shapes: M members, N items of a batch, P parameters of one member. Every tensor of a population leads with M and every member's
numbers depend on that member's alone, so that a population of M is M runs at little more than the cost of one.

All parameters live in one flat buffer [M, P]; a named parameter is a leaf tensor that views it, and gradients are gathered into a second
such buffer. Clipping and the optimizer therefore cost a handful of operations whatever the number of layers.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class FlatParameters:
    """Named parameters `[M, *shape]` that view one buffer `data [M, P]`; `backward` fills `grad [M, P]`.

    Each is a leaf by its name, and all of them are one by `whole`, for an operation that reads their `plain` values and writes its gradients out.

    >>> parameters = FlatParameters(2, {"weight": (3, 4), "bias": (4,)})
    >>> parameters["weight"].shape, parameters.data.shape
    (torch.Size([2, 3, 4]), torch.Size([2, 16]))
    """

    def __init__(self, members: int, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.data = torch.zeros(members, size)
        self.grad = torch.zeros(members, size)
        self.whole = self.data.detach().requires_grad_()
        self.plain = self._views()
        self._leaves: dict[str, Tensor] = {}  # those that were asked for: a leaf costs every backward 3 us

    def _views(self) -> dict[str, Tensor]:
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            end = offset + math.prod(shape)
            views[name] = self.data[:, offset:end].unflatten(1, shape) if shape else self.data[:, offset]
            offset = end
        return views

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._leaves:
            self._leaves[name] = self.plain[name].detach().requires_grad_()
        return self._leaves[name]

    @contextmanager
    def traced(self) -> Iterator[None]:
        """While a graph is compiled inside: views and leaves of `data` are made there, so that it alone is an input, and none of them outlives it."""
        kept = self.plain, self.whole
        self.plain, self.whole = self._views(), self.data.detach().requires_grad_()
        self._leaves = {name: view.detach().requires_grad_() for name, view in self.plain.items()}
        yield
        (self.plain, self.whole), self._leaves = kept, {}

    def backward(self, *weighted: tuple[Tensor, Tensor]) -> None:
        """Replace `grad` by the gradient of the sum of all `loss * weight`, pairs of one shape; a parameter that no loss depends on gets 0.

        Weights instead of means and sums of losses spare autograd some fifteen operations: .1 ms of a step of .9 on one small network.
        """
        backward([self], *weighted)

    @property
    def leaves(self) -> list[Tensor]:
        """What autograd differentiates by: all parameters as one, and those that were asked for by name."""
        return [self.whole, *self._leaves.values()]

    def gather(self, whole: Tensor | None, *parts: Tensor | None) -> None:
        """Make `grad` of the gradients of `leaves`."""
        if whole is None or any(part is not None for part in parts):
            named = self.joined(dict(zip(self._leaves, parts, strict=True)))
            whole = named if whole is None else whole + named
        self.grad = whole

    def joined(self, grads: Mapping[str, Tensor | None]) -> Tensor:
        """Gradients by name as one tensor `[M, P]`, 0 where there is none."""
        parts = ((grads.get(name), view) for name, view in self.plain.items())
        return torch.cat([(torch.zeros_like(view) if grad is None else grad).flatten(1) for grad, view in parts], dim=1)

    def member(self, index: int) -> dict[str, Tensor]:
        """A copy of one member's parameters by name, without the member dimension."""
        return {name: view[index].clone() for name, view in self.plain.items()}


def backward(each: Sequence[FlatParameters], *weighted: tuple[Tensor, Tensor]) -> None:
    """`FlatParameters.backward` of networks that share losses, in one pass."""
    losses, weights = zip(*weighted, strict=True)
    counts = [len(one.leaves) for one in each]
    found = iter(torch.autograd.grad(losses, [leaf for one in each for leaf in one.leaves], weights, allow_unused=True))
    for one, count in zip(each, counts, strict=True):
        one.gather(*itertools.islice(found, count))


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

    def rates(self, lr: float) -> Tensor:
        """Count a step of all members; gives what `apply` takes, `[2]`."""
        self.steps += 1
        count = int(self.steps[0])
        scale = math.sqrt(1 - self.betas[1] ** count)
        return torch.tensor([lr / (1 - self.betas[0] ** count) * scale, self.eps * scale])

    def apply(self, rates: Tensor) -> None:
        """The step that `rates` counted, in tensor operations alone: what a compiled graph can hold. Members have taken the same number of steps."""
        self.first.lerp_(self.parameters.grad, 1 - self.betas[0])
        self.second.mul_(self.betas[1]).addcmul_(self.parameters.grad, self.parameters.grad, value=1 - self.betas[1])
        self.parameters.data.addcdiv_(self.first, self.second.sqrt().add_(rates[1]).div_(-rates[0]))

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


class StackedSGD:
    """Gradient descent with Nesterov's momentum over `FlatParameters`, member by member equal to `torch.optim.SGD` with the same settings.

    `weight_decay` is for weights (two dimensions and more), not for biases and scales.
    """

    def __init__(self, parameters: FlatParameters, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.velocity = torch.zeros_like(parameters.data)
        parts = [torch.full((math.prod(shape),), weight_decay if len(shape) > 1 else 0.0) for shape in parameters.shapes.values()]
        self.decay = torch.cat(parts) if weight_decay else None

    def step(self, lr: float) -> None:
        """One step of every member."""
        data, grad = self.parameters.data, self.parameters.grad
        if self.decay is not None:
            grad = torch.addcmul(grad, self.decay, data)
        self.velocity.mul_(self.momentum).add_(grad)
        data.add_(grad, alpha=-lr).add_(self.velocity, alpha=-lr * self.momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.velocity.copy_(state["velocity"])


def clip_grad_norm(parameters: FlatParameters, max_norm: float) -> Float[Tensor, " M"]:
    """Scale each member's gradient to a Euclidean norm of at most `max_norm`; returns the norms before, `[M]`."""
    norm: Tensor = torch.linalg.vector_norm(parameters.grad, dim=1)
    parameters.grad.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0)[:, None])
    return norm


def linear(x: Float[Tensor, "M N I"], weight: Float[Tensor, "M I O"], bias: Float[Tensor, "M O"]) -> Float[Tensor, "M N O"]:
    """Each member's affine map of its own items, `(M, N, I) -> (M, N, O)`."""
    if weight.shape[2] == 1 and len(x) > 1:  # a batched product with one output is slow: 24 us instead of 145 for [2, 256, 256]
        return (x * weight.mT).sum(-1, keepdim=True) + bias[:, None]
    return torch.baddbmm(bias[:, None], x, weight)


Tower: TypeAlias = Sequence[tuple[str, str]]  # the names of every layer's weight and bias


def mlps(
    x: Float[Tensor, "M N I"], parameters: FlatParameters, towers: Sequence[Tower], activation: Literal["tanh", "relu"], *, frozen: bool = False
) -> tuple[Tensor, ...]:
    """Networks that read the same items, `activation` between their affine layers: `(M, N, I)` -> `(M, N, O)` of each. First derivatives only.

    The same as `plain_mlp` of each, where two towers of two layers of 64 on [1, 256] items take 280 us forward and 400 backward, and here 120 and 230:
    activations are applied in place, tanh is NumPy's (6 us on [256, 64], torch's 42), and autograd sees one operation with one leaf.
    `frozen` parameters get no gradient, which spares half of the backward; the items still do.

    >>> parameters = FlatParameters(1, {"weight": (2, 2), "bias": (2,)})
    >>> parameters.data.fill_(1.0)[:, 4:] = 0.0
    >>> mlps(torch.ones(1, 1, 2), parameters, [[("weight", "bias")], [("weight", "bias")] * 2], "tanh")
    (tensor([[[2., 2.]]], grad_fn=<_MLPsBackward>), tensor([[[1.9281, 1.9281]]], grad_fn=<_MLPsBackward>))
    """
    if torch.compiler.is_compiling():  # a tracer does not see what NumPy writes
        return tuple(plain_mlp(x, parameters.plain if frozen else parameters, tower, torch.tanh if activation == "tanh" else torch.relu) for tower in towers)
    if torch.is_grad_enabled():
        whole = parameters.data if frozen else parameters.whole
        result: tuple[Tensor, ...] = _MLPs.apply(x, whole, parameters.plain, towers, activation, parameters.joined)  # type: ignore[no-untyped-call]
        return result
    return tuple(_run(x, parameters.plain, tower, activation)[-1] for tower in towers)


def plain_mlp(x: Tensor, parameters: "FlatParameters | Mapping[str, Tensor]", tower: Tower, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """One network of affine layers with any activation between them, `(M, N, I) -> (M, N, O)`, in torch's own operations."""
    for layer, (weight, bias) in enumerate(tower):
        x = linear(x if layer == 0 else activation(x), parameters[weight], parameters[bias])
    return x


def _run(x: Tensor, values: Mapping[str, Tensor], tower: Tower, activation: str) -> list[Tensor]:
    """What every layer reads, and the outputs."""
    seen = [x]
    for layer, (weight, bias) in enumerate(tower):
        if layer and activation == "tanh" and x.device.type == "cpu":
            array = x.numpy()
            np.tanh(array, out=array)
        elif layer:
            x = x.tanh_() if activation == "tanh" else x.relu_()
        w, b = values[weight], values[bias]
        if 1 < w.shape[2] < 8 and x.shape[1] > 64:  # a few outputs of many items are made as rows: 180 us instead of 410 for two of [48, 128, 64]
            x = torch.baddbmm(b[:, :, None], w.mT, x.mT).mT
        else:
            x = linear(x, w, b)
        seen.append(x)
    return seen


class _MLPs(torch.autograd.Function):
    """`mlps` with its backward written out. `whole` is there for autograd to see; `values` are what is read, `joined` makes one gradient of those by name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, values: Mapping[str, Tensor], towers: Sequence[Tower], activation: str, joined: Any) -> tuple[Tensor, ...]:
        seen = [_run(x, values, tower, activation) for tower in towers]
        outputs = tuple(layers.pop() for layers in seen)
        ctx.values, ctx.towers, ctx.activation, ctx.joined, ctx.seen = values, towers, activation, joined, seen
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("stacked.mlps has first derivatives only")
        of_x, found = None, dict[str, Tensor]() if ctx.needs_input_grad[1] else None
        for grad, tower, seen in zip(grads, ctx.towers, ctx.seen, strict=True):
            of_first = _back(grad, seen, ctx.values, tower, ctx.activation, found)
            if ctx.needs_input_grad[0]:
                part = torch.bmm(of_first, ctx.values[tower[0][0]].mT)
                of_x = part if of_x is None else of_x + part
        return of_x, None if found is None else ctx.joined(found), None, None, None, None


def _back(grad: Tensor, seen: Sequence[Tensor], values: Mapping[str, Tensor], tower: Tower, activation: str, found: dict[str, Tensor] | None) -> Tensor:
    """The gradient of the first layer's outputs from that of the last one's; those of weights and biases go into `found`, unless it is None."""
    for layer in range(len(tower) - 1, -1, -1):
        (weight, bias), read = tower[layer], seen[layer]
        if found is not None:
            found[bias] = grad.sum(1)
            narrow = layer == len(tower) - 1  # the few outputs of a head come first in their product: 5 us instead of 22 on [256, 64] and two outputs
            found[weight] = torch.bmm(grad.mT, read).mT if narrow else torch.bmm(read.mT, grad)
        if layer:
            grad = grad * values[weight].mT if grad.shape[2] == 1 else torch.bmm(grad, values[weight].mT)  # 8 us instead of 115 for [2, 256, 256]
            if activation == "tanh":
                grad = grad.addcmul_(grad * read, read, value=-1)
            else:  # as autograd does relu, in place: 20 us of [2, 256, 256], and 150 as a product with `read > 0`
                torch.ops.aten.threshold_backward.grad_input(grad, read, 0, grad_input=grad)
    return grad


def convolutions(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], strides: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Each member's convolutions of its own images with relu behind each, `(M, N, C, H, W) -> (M, N, O H' W')` in float32; weights are `(M, O, C, K, K)`.

    Member by member and with the channels last in memory: on one core, forward and backward of four members with 64 Atari stacks each take 135 ms,
    as one grouped convolution 210; one member with 256 takes 156 instead of 214, and in bfloat16 77 (AVX512-BF16).
    """
    last = torch.channels_last
    members = []
    unbound = [(weight.to(dtype).unbind(), bias.to(dtype).unbind()) for weight, bias in layers]
    for member, images in enumerate(x.unbind()):
        y = images.contiguous(memory_format=last).to(dtype)
        for (weight, bias), stride in zip(unbound, strides, strict=True):
            y = torch.relu(torch.nn.functional.conv2d(y, weight[member].contiguous(memory_format=last), bias[member], stride))
        members.append(y.flatten(1).float())
    return torch.stack(members)


def perceptrons(seeds: Sequence[int], sizes: Sequence[int], *, last: float = 1.0) -> tuple[FlatParameters, Tower]:
    """One multilayer network a member and its tower, `sizes` from its inputs to its outputs, the weights drawn from the member's seed for relu.

    Weights are normal with variance 2 / inputs, those of the last layer `last` / inputs; biases begin at 0.

    >>> parameters, tower = perceptrons([0, 1], [3, 8, 2])
    >>> parameters["weight0"].shape, tower
    (torch.Size([2, 3, 8]), (('weight0', 'bias0'), ('weight1', 'bias1')))

    Source: He et al. 2015 (arXiv:1502.01852), eq. 10.
    """
    layers = list(itertools.pairwise(sizes))
    tower = tuple((f"weight{index}", f"bias{index}") for index in range(len(layers)))
    shapes = {
        name: shape
        for (weight, bias), (inputs, outputs) in zip(tower, layers, strict=True)
        for name, shape in ((weight, (inputs, outputs)), (bias, (outputs,)))
    }
    parameters = FlatParameters(len(seeds), shapes)
    for member, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for layer, ((weight, _), (inputs, outputs)) in enumerate(zip(tower, layers, strict=True)):
            scale = math.sqrt((last if layer == len(layers) - 1 else 2.0) / inputs)
            parameters.plain[weight][member] = scale * torch.randn(inputs, outputs, generator=generator)
    return parameters, tower
