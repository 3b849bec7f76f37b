"""Statistics of tokens as one autograd function, whatever backend does the sums.

Shapes: `N` tokens, `V` classes of this process. Nothing of [N, V] is saved but the logits themselves; the backward writes one gradient, over the logits where
`inplace`.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entreg.kernels import rows as row
from entreg.kernels.blocks import entries
from entreg.kernels.parallel import Group, merged, offset
from entreg.kernels.rows import Cut, Operands, Parts, Rows, Spec
from entreg.kernels.truncation import Truncation, cut


class Task(NamedTuple):
    """What is asked of the tokens: the same for a from-logits call, for chunks of an LM head, and for every backend."""

    spec: Spec
    scale: Tensor  # [N], 1 / temperature
    targets: Tensor | None = None  # [N] int64, numbers in the whole vocabulary
    ignored: Tensor | None = None  # [N] bool: value 0 and gradient 0, whatever the logits are
    support: Tensor | None = None  # [N, V] or [1, V]
    truncation: Truncation | None = None
    group: Group = None
    inplace: bool = False

    def part(self, rows: slice) -> "Task":
        """The task of some tokens."""
        support = self.support if self.support is None or self.support.shape[0] == 1 else self.support[rows]
        targets, ignored = (None if x is None else x[rows] for x in (self.targets, self.ignored))
        return self._replace(scale=self.scale[rows], targets=targets, ignored=ignored, support=support)


class Seen(NamedTuple):
    """What the forward leaves for the backward beside the logits, all of it [N] or [N, 1]."""

    parts: Parts
    rows: Rows
    cut: Cut | None
    column: Tensor | None  # the target's column here, -1 where it is elsewhere

    def part(self, rows: slice) -> "Seen":
        """That of some tokens."""

        def some(fields: Any) -> Any:
            return (None if x is None else x[rows] for x in fields)

        cut = None if self.cut is None else Cut(*some(self.cut))
        return Seen(Parts(*some(self.parts)), Rows(*some(self.rows)), cut, None if self.column is None else self.column[rows])


def local(logits: Tensor, task: Task, backend: ModuleType) -> Seen:
    """Sums of this process's classes, logits [N, V]; no statistics yet."""
    limit = None if task.truncation is None else cut(logits, task.scale, task.support, task.spec.softcap, task.truncation)
    parts: Parts = backend.sums(Operands(logits, task.scale, task.support, limit), task.spec)
    column = None
    if task.targets is not None:
        column = task.targets - offset(task.group, logits.shape[1])
        here = (column >= 0) & (column < logits.shape[1])
        here = here if task.ignored is None else here & ~task.ignored
        column = torch.where(here, column, -1)
        exists = here if task.support is None else here & at(task.support.expand(logits.shape), column)
        picked = torch.where(exists, row.capped(at(logits, column), task.spec.softcap), -torch.inf)
        parts = parts._replace(picked=row.wide(picked).unsqueeze(-1))
    return Seen(parts, Rows(None, None, None, None, None, None), limit, column)


def at(tensor: Tensor, column: Tensor) -> Tensor:
    """One entry a row, the first for column -1; numbers in at least float32."""
    entry = tensor.gather(-1, column.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return entry if entry.dtype == torch.bool else entry.to(torch.promote_types(entry.dtype, torch.float32))


def complete(pieces: Sequence[Seen], task: Task, classes: int) -> Seen:
    """All tokens' statistics from the sums of pieces of them: one all-gather where there is a group."""

    def joined(fields: Any) -> Any:
        return (None if some[0] is None else torch.cat(some) for some in zip(*fields, strict=True))

    parts = merged(Parts(*joined(piece.parts for piece in pieces)), task.spec, task.scale, task.group, classes)
    limit = None if pieces[0].cut is None else Cut(*joined(piece.cut for piece in pieces))
    (column,) = joined([piece.column] for piece in pieces)
    return Seen(parts, row.finish(parts, task.spec, task.scale), limit, column)


def shown(rows: Rows, ignored: Tensor | None) -> Rows:
    """The statistics with 0 for ignored tokens."""
    return rows if ignored is None else Rows(*(None if x is None else x.masked_fill(ignored, 0) for x in rows))


def differentiate(logits: Tensor, seen: Seen, grads: Rows, task: Task, backend: ModuleType, out: Tensor) -> None:
    """Writes the derivative of `sum(grads * rows)` with respect to the logits [N, V] to `out`, which may be the logits."""
    grads = Rows(*(None if x is None else row.wide(x) for x in grads))
    if grads.log_prob is not None and seen.rows.log_prob is not None:
        grads = grads._replace(log_prob=grads.log_prob.masked_fill(seen.rows.log_prob == -torch.inf, 0))  # a class that does not exist has no gradient
    slopes = row.slopes(seen.parts, seen.rows, grads, task.spec, row.compute_dtype(logits), task.ignored)
    operands, entry = Operands(logits, task.scale, task.support, seen.cut), None
    if grads.log_prob is not None and seen.column is not None:  # the target's entry: rounded once, read before the logits are overwritten
        entry = entries(operands, task.spec, slopes, seen.column) + row.target_slope(at(logits, seen.column), grads.log_prob, task.scale, task.spec.softcap)
    backend.gradient(operands, task.spec, slopes, out)
    if entry is not None and seen.column is not None:
        there = torch.arange(len(out), device=out.device), seen.column.clamp(min=0)  # not scatter_, which copies all of a bfloat16 tensor
        out[there] = torch.where(seen.column >= 0, entry.to(out.dtype), out[there])
    if task.ignored is not None:
        if out.device.type == "cpu":
            out.index_fill_(0, task.ignored.nonzero().squeeze(-1), 0)
        else:  # nothing waits for the device
            out.masked_fill_(task.ignored.unsqueeze(-1), 0)


def flat(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`[*, V]` tensors as views [n, V], in order: one where memory allows, one a leading index where `logits[:, :-1]` and the like would have to be copied."""
    try:
        yield tuple(tensor.view(-1, tensor.shape[-1]) for tensor in tensors)
    except RuntimeError:
        for some in zip(*tensors, strict=True):
            yield from flat(*some)


def once() -> None:
    """RuntimeError where a backward is itself to be differentiated: its result would silently count as a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph: got True, legal is False: kernels are differentiable once, token_stats(..., backend='reference') twice")


class TokenRows(torch.autograd.Function):
    """`(logits [*, V], task, backend) -> the statistics that are asked for`, [N] each, in the order of `Rows`; differentiable once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, task: Task, backend: ModuleType) -> tuple[Tensor | None, ...]:
        start, pieces = 0, []
        for (piece,) in flat(logits.detach()):  # a compiler that looks at it must find no graph
            pieces.append(local(piece, task.part(slice(start, start + len(piece))), backend))
            start += len(piece)
        ctx.seen, ctx.task, ctx.backend = complete(pieces, task, logits.shape[-1]), task, backend
        ctx.save_for_backward(logits)
        ctx.set_materialize_grads(False)
        return tuple(x for x in shown(ctx.seen.rows, task.ignored) if x is not None)  # `torch.compile` cannot differentiate past an output that is None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        once()
        (logits,) = ctx.saved_tensors  # raises where they have been overwritten
        if all(grad is None for grad in grads):
            return None, None, None
        logits = logits.detach()
        out = logits if ctx.task.inplace else torch.empty_like(logits)
        start = 0
        for piece, there in flat(logits, out):
            rows = slice(start, start + len(piece))
            start = rows.stop
            found = iter(grads)
            asked = Rows(*(None if x is None or (grad := next(found)) is None else grad[rows] for x in ctx.seen.rows))
            differentiate(piece, ctx.seen.part(rows), asked, ctx.task.part(rows), ctx.backend, piece if ctx.task.inplace else there)
        if ctx.task.inplace:
            torch.autograd.graph.increment_version(logits)
        return out, None, None


def token_rows(logits: Tensor, task: Task, backend: ModuleType) -> Rows:
    """The statistics of all tokens, [N], with their gradient."""
    spec = task.spec
    asked = (task.targets is not None, spec.shannon, spec.varentropy, spec.collision, spec.order is not None, True)
    found = iter(TokenRows.apply(logits, task, backend))  # type: ignore[no-untyped-call]
    return Rows(*(next(found) if there else None for there in asked))
