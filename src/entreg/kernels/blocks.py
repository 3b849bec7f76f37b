"""The backend for any device: rows in blocks of columns, in slabs that stay in the cache where they run eagerly, in loops where they are compiled.

Shapes: `n` tokens, `b` blocks, `BLOCK` columns; rows are [n, 1, 1] inside. The two bodies are plain torch, which inductor makes loops of where it finds a
compiler (one thread, [256, 151936]: sums 30 ms in float32 and bfloat16, gradient 21 and 26 ms; reading these logits once takes 6 and 8 ms, copying them 11
and 8). Sums inside a block are float32, across blocks float64. The last, incomplete block runs eagerly: its length would be one more thing to compile for.

Two exponentials an entry are most of the time. Tried and not kept: a polynomial in bits instead of `exp` (float32 47 to 37 ms for both, but bfloat16 57 to 121:
inductor does not vectorise the cast, and a NaN loses its bits); fused multiply-add (1 to 5 %); blocks of 4736 columns (sums 35 ms for 29 in bfloat16);
compiled slabs that fit the third cache, so that sums find there what the maxima, a loop of their own, have read (37 ms for 34: a call a slab costs more).
"""

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from entreg.kernels.rows import FLOOR, Operands, Parts, Slopes, Spec, capped, compute_dtype, kind, merge
from entreg.kernels.truncation import kept

BLOCK = 512
SLAB = 1 << 17  # entries of an eager slab: half a megabyte of float32, with its temporaries in a 1 MB cache
FAST_SLAB = 1 << 26  # entries of a compiled slab, which has no temporaries, and of one on a device where a call costs more than what it computes
COMPILED = 1 << 21  # entries from which compiled code is asked for: below, its seconds of compiling are not earned back soon

Body = Callable[..., Any]


def _sums_body(spec: Spec, dtype: torch.dtype, masked: bool, cut: bool) -> Body:
    """`(x [n, b, BLOCK], scale, support, number, value, last) -> Parts` of [n, b]."""
    far = -100.0 if dtype == torch.float32 else -800.0  # where w = 0, and expm1(e y) must not be infinite
    how, order = kind(spec.order), spec.order

    def body(x: Tensor, scale: Tensor, support: Tensor, number: Tensor, value: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:
        x = x.to(dtype)
        if masked:
            x = torch.where(support, x, -math.inf)
        z = capped(x, spec.softcap)
        m = z.amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).min)
        y = (z - m) * scale
        w, top, finite = y.exp(), y == 0, y.clamp(min=FLOOR)
        below = torch.where(top, 0, w)
        t = (w * finite).sum(-1) if spec.shannon or spec.varentropy else None
        u = (w * finite * finite).sum(-1) if spec.varentropy else None
        q = (w * w).sum(-1) if spec.collision else None
        kept_rest, kept_ties, kept_sum = None, None, None
        inside = kept(x, number, value, last) if cut else None
        if inside is not None:
            kept_rest, kept_ties = torch.where(inside, below, 0).sum(-1), (inside & top).to(dtype).sum(-1)
        if order is not None and how != "infinite":
            if how == "zero":
                term = (y > -math.inf).to(dtype)
            elif how == "one":
                term = w * finite
            elif how == "near one":
                term = w * torch.expm1((order - 1) * y.clamp(min=far))
            else:
                term = (order * y).exp()
            kept_sum = (term if inside is None else torch.where(inside, term, 0)).sum(-1)
        return m.squeeze(-1), below.sum(-1), top.to(dtype).sum(-1), t, u, q, kept_rest, kept_ties, kept_sum

    return body


def _gradient_body(spec: Spec, dtype: torch.dtype, masked: bool, cut: bool, *_: bool) -> Body:
    """`(x, out, scale, support, number, value, last, *slopes)`: writes the gradient of `x` [n, b, BLOCK] to `out`, which may be `x`."""
    far = -100.0 if dtype == torch.float32 else -800.0
    how, order = kind(spec.order), spec.order

    def order_term(y: Tensor, l: Tensor, p: Tensor, E: Tensor, F: Tensor, G: Tensor | None) -> Tensor:
        assert order is not None
        if how == "infinite":
            return p * E - torch.where(y == 0, F, 0)
        if how == "one":
            return p * (E + F * l.clamp(min=FLOOR))
        if how == "near one":
            return p * torch.expm1((order - 1) * (l.clamp(min=far) + E)) * F
        assert G is not None
        return p * E - (order * l + G).exp() * F

    def body(x: Tensor, out: Tensor, scale: Tensor, support: Tensor, number: Tensor, value: Tensor, last: Tensor, *slopes: Any) -> None:
        m, log_s, A, B, C, D, E, F, G = slopes
        x = x.to(dtype)
        if masked:
            x = torch.where(support, x, -math.inf)
        z = capped(x, spec.softcap)
        y = (z - m) * scale
        l = y - log_s
        p, g = l.exp(), A
        if B is not None:
            finite = l.clamp(min=FLOOR)
            g = g + (B if C is None else B + C * finite) * finite
        if D is not None:
            g = g + D * p
        g = g * p
        if E is not None:
            term = order_term(y, l, p, E, F, G)
            g = g + (torch.where(kept(x, number, value, last), term, 0) if cut else term)
        g = g * scale
        if spec.softcap is not None:
            g = torch.where(x == -math.inf, 0, g * (1 - (z / spec.softcap) ** 2))
        out.copy_(g)

    return body


@functools.cache
def compiler() -> str | None:
    """The C++ compiler that inductor will find, None without one."""
    return next((name for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl") if name and shutil.which(name)), None)


_failure: list[str] = []  # why inductor failed; asked once, then everything runs eagerly


def compiles(tensor: Tensor) -> bool:
    """Whether bodies are compiled for this tensor."""
    return tensor.numel() >= COMPILED and tensor.shape[0] > 1 and why_eager(tensor.device.type) is None


def why_eager(device: str) -> str | None:
    """Why nothing is compiled on a device, None where it is."""
    if _failure:
        return _failure[0]
    if device == "cpu":
        return None if compiler() else "no C++ compiler"
    return None if device == "cuda" else f"no compiled code on {device}"


@functools.cache
def _fast(maker: Callable[..., Body], *key: Any) -> Body:
    """A compiled body. Torch counts recompilations by code object, and closures share one: each gets its own."""
    body = maker(*key)
    assert isinstance(body, FunctionType)
    own = FunctionType(body.__code__.replace(), body.__globals__, body.__name__, body.__defaults__, body.__closure__)
    return torch.compile(own, fullgraph=True)


def _run(maker: Callable[..., Body], key: tuple[Any, ...], compiled: bool, *tensors: Any) -> Any:
    if compiled and not _failure:
        from torch._dynamo import maybe_mark_dynamic
        from torch._dynamo.exc import TorchDynamoException

        for tensor in tensors:
            if tensor is not None and tensor.ndim == 3 and tensor.shape[0] > 1:
                maybe_mark_dynamic(tensor, 0)  # any number of tokens; the vocabulary is that of a model and stays a constant of the code
        try:
            return _fast(maker, *key)(*tensors)
        except (TorchDynamoException, ImportError) as failure:  # raised before anything is computed
            _failure.append(f"inductor failed: {type(failure).__name__}")
    return maker(*key)(*tensors)


def _slabs(logits: Tensor) -> Iterator[slice]:
    """Rows that are handled together."""
    n, classes = logits.shape
    slab = FAST_SLAB if compiles(logits) or logits.device.type != "cpu" else SLAB
    rows = max(1, slab // max(classes, 1))
    yield from (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _pieces(logits: Tensor, rows: slice) -> Iterator[tuple[slice, int, bool]]:
    """Columns, length of a block, whether compiled: the whole blocks in one piece or in slabs, then what is left of each row."""
    classes, fast = logits.shape[1], compiles(logits) and rows.stop - rows.start > 1
    whole = classes - classes % BLOCK
    wide = whole if fast or logits.device.type != "cpu" else min(whole, SLAB)
    yield from ((slice(first, min(first + wide, whole)), BLOCK, fast) for first in range(0, whole, max(wide, 1)))
    if whole < classes:
        yield slice(whole, classes), classes - whole, False


def _blocked(tensor: Tensor, block: int) -> Tensor:
    blocked: Tensor = tensor.unflatten(-1, (-1, block))
    return blocked


def _arguments(operands: Operands, rows: slice, columns: slice, block: int) -> tuple[Any, ...]:
    """Scale, support, number, value and last of a piece, as the bodies take them."""
    logits, scale, support, cut = operands
    there = None if support is None else _blocked((support if support.shape[0] == 1 else support[rows])[:, columns], block)
    if cut is None:
        number, value, last = None, None, None
    else:
        number = _blocked(torch.arange(columns.start, columns.stop, dtype=torch.int32, device=logits.device), block)
        value, last = (row[rows, None, None] for row in cut)
    return scale[rows, None, None].to(compute_dtype(logits)), there, number, value, last


def _key(operands: Operands, spec: Spec) -> tuple[Any, ...]:
    return spec, compute_dtype(operands.logits), operands.support is not None, operands.cut is not None


def sums(operands: Operands, spec: Spec) -> Parts:
    """Sums of each row, [N, 1]: see the package."""
    logits, key = operands.logits, _key(operands, spec)
    slabs = []
    with torch.no_grad():
        for rows in _slabs(logits):
            pieces = []
            for columns, block, fast in _pieces(logits, rows):
                pieces.append(_run(_sums_body, key, fast, _blocked(logits[rows, columns], block), *_arguments(operands, rows, columns, block)))
            slabs.append(merge(_joined(pieces), spec, operands.scale[rows]))
        if not slabs:
            slabs = [Parts(*_run(_sums_body, key, False, logits[:, None, :1], *_arguments(operands, slice(0, 0), slice(0, 1), 1)))]
        return _joined(slabs, 0)


def _joined(parts: Sequence[tuple[Tensor | None, ...]], dim: int = -1) -> Parts:
    return Parts(*(None if same[0] is None else torch.cat(same, dim) for same in zip(*parts, strict=True)))  # type: ignore[arg-type]


def gradient(operands: Operands, spec: Spec, slopes: Slopes, out: Tensor) -> None:
    """Writes the derivative with respect to the logits to `out` [N, V], which may be the logits: see the package."""
    logits, key = operands.logits, (*_key(operands, spec), *(row is not None for row in slopes))
    with torch.no_grad():
        for rows in _slabs(logits):
            some = tuple(None if row is None else row[rows] for row in slopes)
            for columns, block, fast in _pieces(logits, rows):
                there = _blocked(logits[rows, columns], block)
                result = there if out is logits else _blocked(out[rows, columns], block)
                _run(_gradient_body, key, fast, there, result, *_arguments(operands, rows, columns, block), *some)


def entries(operands: Operands, spec: Spec, slopes: Slopes, column: Tensor) -> Tensor:
    """The gradient of one column a row, [N], in the precision of the computation; the first column for -1. Any backend: these are N numbers."""
    logits, scale, support, cut = operands
    column = column.clamp(min=0).unsqueeze(-1)
    x = logits.gather(-1, column).unsqueeze(-1).to(compute_dtype(logits))
    there = None if support is None else support.expand(logits.shape).gather(-1, column).unsqueeze(-1)
    value, last = (None, None) if cut is None else (cut.value[:, None, None], cut.last[:, None, None])
    body = _gradient_body(spec, x.dtype, support is not None, cut is not None)
    body(x, x, scale[:, None, None].to(x.dtype), there, column.unsqueeze(-1), value, last, *slopes)
    return x[:, 0, 0]
