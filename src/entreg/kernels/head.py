"""The LM head: statistics of `hidden @ weight.T + bias` by chunks of tokens, whose logits share one buffer.

Shapes: `N` tokens, `V` classes, `D` hidden size, `C` tokens of a chunk. Two functions: `HeadRows` computes the logits again in its backward (four products of
matrices, any loss), `head_loss` knows the loss and writes the gradient over each chunk's logits at once (three).
"""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph as keeps_graph

from entreg.kernels.autograd import Seen, Task, complete, differentiate, local, once, shown
from entreg.kernels.parallel import summed
from entreg.kernels.rows import Rows

BUFFER = 25 << 20  # bytes for the logits of a chunk on a processor
GPU_BUFFER = 640 << 20  # on a device: 2048 tokens of 151,936 classes in bfloat16; with 86, reading the weight would take longer than multiplying it
ROWS = 1024  # tokens whose logits the backward of `HeadRows` computes at a time, for a block of classes
Objective = Callable[[Rows, slice], Tensor]


def chunks(n: int, weight: Tensor, wanted: int | Sequence[int] | None) -> list[slice]:
    """Tokens of each chunk: equally many, as far as they can be, that fit the buffer; or as `wanted`.

    Raises: `ValueError` for a size below 1, and for sizes that do not add up to the number of tokens.
    """
    if wanted is None or isinstance(wanted, int):
        if wanted is not None and (isinstance(wanted, bool) or wanted < 1):
            raise ValueError(f"chunk: got {wanted}, legal is a number >= 1, or the sizes of all chunks")
        largest = max(1, _room(weight) // (weight.shape[0] * weight.element_size())) if wanted is None else wanted
        count = max(1, -(-n // largest))
        sizes = [n // count + (i < n % count) for i in range(count)] if wanted is None else [min(wanted, n - i) for i in range(0, n, wanted)] or [0]
    else:
        if not isinstance(wanted, Sequence) or not all(isinstance(size, int) for size in wanted):
            raise ValueError(f"chunk: got {wanted!r}, legal is a number >= 1, or the sizes of all chunks")
        sizes = list(wanted)
        if sum(sizes) != n or any(size < 1 for size in sizes):
            raise ValueError(f"chunk: got sizes {sizes}, legal are numbers >= 1 with sum {n}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _room(weight: Tensor) -> int:
    return BUFFER if weight.device.type == "cpu" else GPU_BUFFER


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(hidden, weight.T, out=out) if bias is None else torch.addmm(bias, hidden, weight.T, out=out)


def _buffer(hidden: Tensor, weight: Tensor, sizes: Sequence[slice]) -> Tensor:
    return hidden.new_empty(max(tokens.stop - tokens.start for tokens in sizes), weight.shape[0])


class HeadRows(torch.autograd.Function):
    """`(hidden [N, D], weight [V, D], bias [V] | None, task, backend, chunks) -> Rows` [N]; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: Task, backend: ModuleType, sizes: Sequence[slice]
    ) -> tuple[Tensor | None, ...]:
        buffer = _buffer(hidden, weight, sizes)
        pieces = [local(_product(hidden[c], weight, bias, buffer[: c.stop - c.start]), task.part(c), backend) for c in sizes]
        ctx.seen, ctx.task, ctx.backend, ctx.sizes = complete(pieces, task, weight.shape[0]), task, backend, sizes
        ctx.save_for_backward(hidden, weight, bias)
        ctx.set_materialize_grads(False)
        return tuple(shown(ctx.seen.rows, task.ignored))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        once()
        hidden, weight, bias = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return (None,) * 6
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden = torch.zeros_like(hidden, dtype=wide) if to_hidden else None
        d_weight = torch.empty_like(weight) if to_weight else None
        d_bias = torch.empty_like(bias) if to_bias else None
        # a cut compares logits with its edge: they must be those of the forward to the last bit, so its chunks are taken again
        blocks = _class_blocks(hidden, weight) if ctx.seen.cut is None else [(slice(0, len(weight)), list(ctx.sizes))]
        for classes, some in blocks:
            block = torch.zeros(classes.stop - classes.start, weight.shape[1], dtype=wide, device=weight.device) if to_weight and len(some) != 1 else None
            total = torch.zeros(classes.stop - classes.start, dtype=wide, device=weight.device) if to_bias else None
            for tokens in some:
                z = _product(hidden[tokens], weight[classes], None if bias is None else bias[classes], hidden.new_empty(0))
                task, seen = _within(ctx.task.part(tokens), ctx.seen.part(tokens), classes)
                differentiate(z, seen, Rows(*(None if grad is None else grad[tokens] for grad in grads)), task, ctx.backend, z)
                if d_hidden is not None:
                    d_hidden[tokens] += z @ weight[classes]
                if block is not None:
                    block += z.T @ hidden[tokens]
                elif d_weight is not None:
                    torch.mm(z.T, hidden[tokens], out=d_weight[classes])
                if total is not None:
                    total += z.sum(0, dtype=wide)
            if d_weight is not None and block is not None:
                d_weight[classes] = block.to(d_weight.dtype)
            if d_bias is not None and total is not None:
                d_bias[classes] = total.to(d_bias.dtype)
        d_hidden = None if d_hidden is None else summed(d_hidden, ctx.task.group).to(hidden.dtype)
        return d_hidden, d_weight, d_bias, None, None, None


def _class_blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of classes with the tokens of each: outer classes, so that a row of the weight's gradient is complete before it is rounded."""
    n, classes = len(hidden), weight.shape[0]
    rows = max(1, min(n, ROWS))
    width = min(classes, max(512, _room(weight) // 2 // max(rows * hidden.element_size(), weight.shape[1] * 4) // 512 * 512))
    some = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    yield from ((slice(first, min(first + width, classes)), some) for first in range(0, classes, width))


def _within(task: Task, seen: Seen, classes: slice) -> tuple[Task, Seen]:
    """A task and its sums as seen by a block of classes: numbers of classes count from its first."""
    column = seen.column
    if column is not None:
        inside = (column >= classes.start) & (column < classes.stop)
        column = torch.where(inside, column - classes.start, -1)
    support = None if task.support is None else task.support[:, classes]
    return task._replace(support=support), seen._replace(column=column)


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task: Task,
    backend: ModuleType,
    sizes: Sequence[slice],
    objective: Objective,
    accumulate: torch.dtype | None,
) -> tuple[Tensor, Rows]:
    """The loss, with its gradients computed, and the rows of all tokens, which are constants."""
    needed = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    grads: list[Tensor | None] = [None, None, None]
    losses, pieces = [], []
    with torch.no_grad():
        if needed[0]:
            grads[0] = torch.empty_like(hidden)
        if needed[1]:  # the first chunk writes it: touching a new gradient's pages costs as much as a tenth of the products, once is enough
            grads[1] = (torch.empty_like if len(hidden) else torch.zeros_like)(weight, dtype=accumulate or weight.dtype)
        if needed[2] and bias is not None:
            grads[2] = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        buffer = _buffer(hidden, weight, sizes)
        for tokens in sizes:
            z, part = _product(hidden[tokens], weight, bias, buffer[: tokens.stop - tokens.start]), task.part(tokens)
            seen = complete([local(z, part, backend)], part, weight.shape[0])
            rows, loss, pulls = _pulled(shown(seen.rows, part.ignored), objective, tokens, any(needed))
            losses.append(loss)
            pieces.append(rows)
            if any(needed) and tokens.stop > tokens.start:
                differentiate(z, seen, pulls, part, backend, z)
                _accumulate(grads, z, hidden[tokens], weight, tokens)
        if grads[0] is not None:
            summed(grads[0], task.group)
        rows = Rows(*(None if some[0] is None else torch.cat(some) for some in zip(*pieces, strict=True)))
        total = torch.stack(losses).sum()
    if not any(needed):
        return total, rows
    kept = [None if grad is None or x is None else grad.to(x.dtype) for grad, x in zip(grads, (hidden, weight, bias), strict=True)]
    return HeadLoss.apply(hidden, weight, bias, total, kept), rows  # type: ignore[no-untyped-call]


def _accumulate(grads: list[Tensor | None], z: Tensor, hidden: Tensor, weight: Tensor, tokens: slice) -> None:
    """Both products with the weight, and the sum for the bias, of the gradient of one chunk's logits."""
    d_hidden, d_weight, d_bias = grads
    if d_hidden is not None:
        torch.mm(z, weight, out=d_hidden[tokens])
    if d_weight is not None:
        if d_weight.dtype != z.dtype:
            (d_weight.add_ if tokens.start else d_weight.copy_)(z.T @ hidden)
        elif tokens.start == 0:
            torch.mm(z.T, hidden, out=d_weight)
        else:
            d_weight.addmm_(z.T, hidden)
    if d_bias is not None:
        d_bias += z.sum(0, dtype=d_bias.dtype)


def _pulled(rows: Rows, objective: Objective, tokens: slice, needed: bool) -> tuple[Rows, Tensor, Rows]:
    """The loss of a chunk and its derivatives with respect to the rows."""
    leaves = Rows(*(None if row is None else row.detach().requires_grad_(needed) for row in rows))
    with torch.set_grad_enabled(needed):
        loss = objective(leaves, tokens)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss_fn: got {tuple(loss.shape) if isinstance(loss, Tensor) else loss!r}, legal is a scalar: the sum over the tokens of the chunk")
    detached = Rows(*(None if row is None else row.detach() for row in rows))
    there = [row for row in leaves if row is not None]
    if not needed or not loss.requires_grad:
        return detached, loss.detach().reshape(()), Rows(*(None,) * 6)
    if (foreign := _foreign(loss, there)) is not None:
        raise ValueError(f"loss_fn: got a loss that also needs gradients of a tensor of shape {foreign}, legal is one of the statistics only: detach the rest")
    pulls = iter(torch.autograd.grad(loss, there, allow_unused=True))
    return detached, loss.detach().reshape(()), Rows(*(None if row is None else next(pulls) for row in leaves))


def _foreign(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The shape of a leaf of the loss's graph that is none of these."""
    waiting, done = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in done:
            continue
        done.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and all(leaf is not mine for mine in leaves):
            return tuple(leaf.shape)
        waiting.extend(following for following, _ in node.next_functions)
    return None


class HeadLoss(torch.autograd.Function):
    """`(hidden, weight, bias, total, gradients) -> loss`: the gradients are there already and are scaled."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor, grads: list[Tensor | None]) -> Tensor:
        ctx.grads = grads
        return total.clone()

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """Handed over where the graph ends here, so that a gradient of the weight's size exists once; copied where it is kept."""
        once()
        if ctx.grads is None:
            raise RuntimeError("linear_token_loss: a second backward, legal with retain_graph=True in the first")
        grads = ctx.grads
        if keeps_graph():
            return (*(None if grad is None else grad * pull.to(grad.dtype) for grad in grads), None, None)
        ctx.grads = None
        if pull.device.type != "cpu" or pull.item() != 1:
            for grad in grads:
                if grad is not None:
                    grad.mul_(pull)
        return (*grads, None, None)
