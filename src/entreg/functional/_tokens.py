"""What the functions of `tokens.py` share: the request, checked once; the plain path; rows of the kernels as fields.

Shapes: `*` batch, `N` tokens (the batch, flattened), `V` classes of this process.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg.functional._softmax import FLOOR, softmax_renyi
from entreg.functional.families import Family
from entreg.kernels import truncation
from entreg.kernels.autograd import Task, shown
from entreg.kernels.parallel import is_group
from entreg.kernels.rows import Rows, Spec, capped

Field = Literal["log_prob", "entropy", "shannon", "varentropy", "collision", "lse"]
FIELDS: tuple[Field, ...] = ("log_prob", "entropy", "shannon", "varentropy", "collision", "lse")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TokenStats(NamedTuple):
    """One value a token, `[*]`, float32; None where not asked for.

    `entropy` is that of the family, on the truncated set where there is one; the others are those of all classes: `shannon` `-sum p log p`, `varentropy` the
    variance of `log p`, `collision` `sum p^2`, `lse` the log-sum-exp of the logits.
    """

    log_prob: Tensor | None = None
    entropy: Tensor | None = None
    shannon: Tensor | None = None
    varentropy: Tensor | None = None
    collision: Tensor | None = None
    lse: Tensor | None = None


class Request(NamedTuple):
    """A checked call: what to show of the rows, and the task of the kernels."""

    fields: tuple[str, ...]
    family: Family
    shape: torch.Size
    dtype: torch.dtype
    task: Task


class Options(NamedTuple):
    """The options of a call as they were given."""

    fields: Sequence[str]
    family: Family
    temperature: float | Tensor
    softcap: float | None
    support: Tensor | None
    top_p: float | None
    clamp: float | None
    ignore_index: int
    group: Any = None
    inplace: bool = False


def request(shape: torch.Size, dtype: torch.dtype, device: torch.device, targets: Tensor | None, options: Options) -> Request:
    """The request for logits of a shape `[*, V]`; ValueError for what is not legal."""
    fields = () if options.fields is None or isinstance(options.fields, str) else tuple(options.fields)
    if not fields or any(field not in FIELDS for field in fields):
        raise ValueError(f"fields: got {options.fields!r}, legal is a sequence of some of {', '.join(FIELDS)}")
    if dtype not in FLOATS or len(shape) == 0 or shape[-1] == 0:
        raise ValueError(f"logits: got shape {tuple(shape)} of {dtype}, legal is a floating tensor [*, V] with V >= 1, float16 to float64")
    if not isinstance(options.family, Family):
        raise TypeError(f"family: got {options.family!r}, legal is a Family, such as SHANNON or renyi(2)")
    if options.softcap is not None and not (_number(options.softcap) and 0 < options.softcap < math.inf):
        raise ValueError(f"softcap: got {options.softcap!r}, legal is a finite number > 0, or None")
    truncated = _truncation(options)
    if options.group is not None and not is_group(options.group):
        raise ValueError(f"group: got {options.group!r}, legal is a process group of torch.distributed that this process belongs to, or None")
    order = options.family.order
    order = 0.0 if order < 1e-37 else math.inf if order > 1e37 else order
    entropy, plain_shannon = "entropy" in fields, order == 1 and truncated is None
    spec = Spec(
        order=order if entropy and not plain_shannon else None,
        shannon="shannon" in fields or (entropy and plain_shannon),
        varentropy="varentropy" in fields,
        collision="collision" in fields,
        softcap=None if options.softcap is None else float(options.softcap),
    )
    index, ignored = _targets(shape, targets, "log_prob" in fields, options)
    task = Task(
        spec,
        _scale(shape[:-1], device, options.temperature, torch.promote_types(dtype, torch.float32)),
        index if "log_prob" in fields else None,
        ignored,
        _support(shape, options.support),
        truncated if entropy else None,
        options.group,
        options.inplace,
    )
    return Request(fields, options.family, shape[:-1], torch.promote_types(dtype, torch.float32), task)


def tensors(**given: object) -> None:
    """TypeError for the first that is no tensor."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, legal is a tensor")


def overlaps(tensor: Tensor) -> bool:
    """Whether elements may share memory, as those of expanded tensors and sliding windows do.

    >>> overlaps(torch.zeros(3, 4).T), overlaps(torch.zeros(6).unfold(0, 3, 1)), overlaps(torch.zeros(1, 4).expand(3, 4))
    (False, True, True)
    """
    reach = 0
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step <= reach:
            return True
        reach += step * (size - 1)
    return False


def _number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _truncation(options: Options) -> truncation.Truncation | None:
    if options.top_p is not None and not (_number(options.top_p) and 0 < options.top_p <= 1):
        raise ValueError(f"top_p: got {options.top_p!r}, legal is a number, 0 < top_p <= 1")
    if options.clamp is not None and not (_number(options.clamp) and 0 <= options.clamp < 1):
        raise ValueError(f"clamp: got {options.clamp!r}, legal is a number, 0 <= clamp < 1")
    if options.top_p is None and options.clamp is None:
        return None
    if options.top_p is not None and options.clamp is not None:
        raise ValueError(f"clamp: got {options.clamp} beside top_p {options.top_p}, legal is one of them")
    if options.group is not None:
        raise ValueError(f"group: got {options.group!r} with a truncation, legal is None: the ranks of a class are not known to one shard")
    return truncation.Truncation(options.top_p, options.clamp)


def _targets(shape: torch.Size, targets: Tensor | None, needed: bool, options: Options) -> tuple[Tensor | None, Tensor | None]:
    if targets is None:
        if needed:
            raise ValueError("targets: got None, legal for the field log_prob is an integer tensor; without targets ask for others: fields=['entropy']")
        return None, None
    tensors(targets=targets)
    if not isinstance(options.ignore_index, (int, np.integer)) or isinstance(options.ignore_index, bool):
        raise ValueError(f"ignore_index: got {options.ignore_index!r}, legal is an integer")
    if targets.shape != shape[:-1] or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets: got shape {tuple(targets.shape)} of {targets.dtype}, legal is an integer tensor of shape {tuple(shape[:-1])}")
    index = targets.reshape(-1).long()
    ignored = index == options.ignore_index
    if index.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere nothing waits for the device
        wrong = ~ignored & ((index < 0) | (index >= shape[-1] if options.group is None else torch.zeros_like(ignored)))
        if bool(wrong.any()):
            raise ValueError(f"targets: got {int(index[wrong][0])}, legal is 0 <= target < {shape[-1]}, or ignore_index {options.ignore_index}")
        if not bool(ignored.any()):
            return index, None
    return index, ignored


def _scale(batch: torch.Size, device: torch.device, temperature: float | Tensor, dtype: torch.dtype) -> Tensor:
    legal = f"legal is a number > 0, or a tensor of them that broadcasts to {tuple(batch)}"
    if not isinstance(temperature, Tensor):
        if not (_number(temperature) and 0 < temperature < math.inf and 1 / temperature <= torch.finfo(dtype).max):
            raise ValueError(f"temperature: got {temperature!r}, {legal}")
        return torch.full((batch.numel(),), 1 / temperature, dtype=dtype, device=device)
    if temperature.requires_grad:
        raise ValueError("temperature: got a tensor that requires grad, legal is a constant: no gradient with respect to it is computed")
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(((temperature > 0) & temperature.isfinite()).all()):
        raise ValueError(f"temperature: got {temperature.min().item()} to {temperature.max().item()}, {legal}")
    try:
        return (1 / temperature.to(device, torch.promote_types(dtype, torch.float32))).expand(batch).reshape(-1)
    except RuntimeError:
        raise ValueError(f"temperature: got shape {tuple(temperature.shape)}, {legal}") from None


def _support(shape: torch.Size, support: Tensor | None) -> Tensor | None:
    """`[1, V]` where all tokens share it, otherwise `[N, V]`."""
    if support is None:
        return None
    tensors(support=support)
    if support.dtype != torch.bool:
        raise ValueError(f"support: got {support.dtype}, legal is a boolean tensor, True where the class exists")
    try:
        wide = support.expand(shape)
    except RuntimeError:
        raise ValueError(f"support: got shape {tuple(support.shape)}, legal is one that broadcasts to {tuple(shape)}") from None
    shared = support.numel() == support.shape[-1] if support.ndim else True
    return support.reshape(1, -1).expand(1, shape[-1]) if shared else wide.reshape(-1, shape[-1])


def to_stats(rows: Rows, ask: Request, shape: torch.Size) -> TokenStats:
    """The rows of the kernels as fields."""
    renyi = rows.renyi if ask.task.spec.order is not None else rows.shannon
    entropy = None if renyi is None or "entropy" not in ask.fields else ask.family.from_renyi(renyi)  # 0 for ignored tokens: every family has 0 at 0
    found = {"log_prob": rows.log_prob, "entropy": entropy, "shannon": rows.shannon, "varentropy": rows.varentropy}
    found |= {"collision": rows.collision, "lse": rows.lse}
    return TokenStats(**{name: value.to(ask.dtype).reshape(shape) for name, value in found.items() if value is not None and name in ask.fields})


def plain(logits: Tensor, ask: Request) -> TokenStats:
    """The reference: plain torch, several arrays as large as the logits, differentiable twice."""
    task, spec = ask.task, ask.task.spec
    x = logits.reshape(-1, logits.shape[-1]).to(ask.dtype)
    if task.ignored is not None:
        x = x.masked_fill(task.ignored.unsqueeze(-1), 0)
    z = capped(x, spec.softcap)
    support = None if task.support is None else task.support.expand(x.shape)
    top = (z if support is None else torch.where(support, z, -math.inf)).detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0, top)
    z = (z - top) * task.scale.unsqueeze(-1)
    index = task.targets if task.targets is None or task.ignored is None else task.targets.masked_fill(task.ignored, 0)
    log_prob, renyi, shannon = None, None, None
    if spec.order is not None and task.truncation is None:
        log_prob, renyi = softmax_renyi(z, support, index, spec.order)
    elif spec.order is not None:
        renyi = softmax_renyi(z, _kept(x, support, ask), None, spec.order)[1]
    if spec.shannon or (index is not None and log_prob is None):
        log_prob, shannon = softmax_renyi(z, support, index, 1.0)
    varentropy, collision, lse = None, None, None
    if spec.varentropy or spec.collision:
        log_p = (z if support is None else torch.where(support, z, -math.inf)).log_softmax(-1)
        p, finite = log_p.exp(), log_p.clamp(min=FLOOR)
        mean = (p * finite).sum(-1, keepdim=True)
        varentropy = (p * (finite - mean) ** 2).sum(-1) if spec.varentropy else None
        collision = (p * p).sum(-1) if spec.collision else None
    if "lse" in ask.fields:
        lse = top.squeeze(-1) * task.scale + (z if support is None else torch.where(support, z, -math.inf)).logsumexp(-1)
    rows = Rows(log_prob, shannon if spec.shannon else None, varentropy, collision, renyi, lse)
    return to_stats(shown(rows, task.ignored), ask, ask.shape)


def _kept(x: Tensor, support: Tensor | None, ask: Request) -> Tensor | None:
    if ask.task.truncation is None:
        return support
    with torch.no_grad():
        x = x if support is None else torch.where(support, x, -math.inf)
        limit = truncation.cut(x, ask.task.scale, None, ask.task.spec.softcap, ask.task.truncation)
        kept = truncation.kept(x, torch.arange(x.shape[-1], device=x.device), limit.value.unsqueeze(-1), limit.last.unsqueeze(-1))
    return kept if support is None else kept & support
