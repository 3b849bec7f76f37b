"""Log-probability and entropy of tokens over large vocabularies, from logits or from hidden states and the weight of the LM head.

Shapes: `*` batch of tokens, `V` classes, `D` hidden size. Values are nats, one a token, float32 (float64 for float64 logits), never reduced and never negated;
each field that is asked for has its exact gradient, one that is not costs nothing. A class whose logit is -inf, or that lies outside `support`, contributes
value 0 and gradient 0. A token whose target is `ignore_index` has value 0 and gradient 0 in every field, whatever its logits are. Where no class is left:
ValueError on the plain path, NaN on the others. Soft-cap first, then mask, then temperature: `z = softcap tanh(x / softcap) / temperature`.

Backends: `reference` is plain torch, differentiable twice, on any device; `blocks` streams over the logits and keeps none of [*, V] but one gradient; `triton`
does the same in two kernels for NVIDIA and AMD GPUs (`pip install "entreg[kernels]"`) and works under `torch.compile(fullgraph=True)`.
"""

import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entreg.functional import _tokens
from entreg.functional._tokens import Options, Request, TokenStats
from entreg.functional.families import SHANNON, Family
from entreg.kernels import blocks, head
from entreg.kernels.autograd import token_rows
from entreg.kernels.parallel import Group
from entreg.kernels.rows import Rows

__all__ = ["Backend", "TokenStats", "linear_token_loss", "linear_token_stats", "token_backend", "token_stats"]
BackendName = Literal["auto", "reference", "blocks", "triton"]
LossFn = Callable[[TokenStats, slice], Tensor]
SMALL_VOCABULARY = 64  # classes up to which the plain path is the fastest
SMALL = 1 << 17  # logits up to which calls cost more than what they compute


class Backend(NamedTuple):
    """What `backend="auto"` chose, and why."""

    name: str
    why: str


def token_backend(logits: Float[Tensor, "*batch V"], *, inplace: bool = False, group: Group = None) -> Backend:
    """What `backend="auto"` chooses for these logits, with the reason.

    >>> import torch
    >>> from entreg.functional import token_backend
    >>> token_backend(torch.zeros(8, 32))
    Backend(name='reference', why='32 classes: the plain path is the fastest up to 64')
    """
    _tokens.tensors(logits=logits)
    n, classes = logits.numel(), logits.shape[-1]
    if inplace or group is not None:
        return _streaming(logits, f"{'inplace' if inplace else 'group'}: not in plain torch; ")
    if torch.compiler.is_compiling():
        return Backend("reference", "under torch.compile, which fuses plain torch itself")
    if classes <= SMALL_VOCABULARY:
        return Backend("reference", f"{classes} classes: the plain path is the fastest up to {SMALL_VOCABULARY}")
    if n <= SMALL:
        return Backend("reference", f"{n} logits: calls cost more than arithmetic up to {SMALL}")
    kernels = _streaming(logits, "")
    if kernels.name == "blocks" and logits.device.type != "cpu" and blocks.why_eager(logits.device.type) is not None and 8 * 4 * n < _free(logits.device):
        return Backend("reference", f"{blocks.why_eager(logits.device.type)}, and eight float32 copies of the logits fit the free memory")
    return kernels


def _streaming(logits: Tensor, reason: str) -> Backend:
    """The kernels for these logits: triton's on a GPU where it is installed."""
    if logits.device.type == "cuda" and logits.dtype != torch.float64 and importlib.util.find_spec("triton") is not None:
        return Backend("triton", f"{reason}one kernel a pass on {logits.device}")
    return Backend("blocks", reason + _manner(logits))


def _kernels(logits: Tensor, backend: str | None = None) -> ModuleType:
    """The module of a backend, of the best one where none is named; an ImportError names what to install, a ValueError what it cannot do."""
    if (backend or _streaming(logits, "").name) == "blocks":
        return blocks
    try:
        from entreg.kernels import triton
    except ImportError as error:
        raise ImportError('backend triton needs triton, which is not installed: pip install "entreg[kernels]"') from error
    why = triton.why_not(logits)
    if why is not None:
        raise ValueError(f"backend: got 'triton' for {why}; legal is blocks or auto")
    return triton


def _manner(logits: Tensor) -> str:
    if blocks.compiles(logits):
        return f"{logits.numel()} logits, compiled by inductor"
    return f"eager ({blocks.why_eager(logits.device.type) or f'below {blocks.COMPILED} logits, or one row, compiling does not pay'})"


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def token_stats(
    logits: Float[Tensor, "*batch V"],
    targets: Int[Tensor, "*batch"] | None = None,
    *,
    fields: Sequence[str] = ("log_prob", "entropy"),
    family: Family = SHANNON,
    temperature: float | Float[Tensor, "*batch"] = 1.0,
    softcap: float | None = None,
    support: Bool[Tensor, "*batch V"] | None = None,
    top_p: float | None = None,
    clamp: float | None = None,
    ignore_index: int = -100,
    group: Group = None,
    inplace: bool = False,
    backend: BackendName = "auto",
) -> TokenStats:
    """Log-probability of the targets and entropy of each token in one pass: `[*, V], [*] -> TokenStats` of `[*]`, nats.

    `fields` are those of `TokenStats`. `temperature` is a number or one a token. `top_p` (the smallest set of the largest probabilities that reaches it) or
    `clamp` (all but this share of the allowed classes, by rank) restrict `entropy` only, the set is a constant. With `inplace` the backward writes the gradient
    over the logits, which must not be used again (whoever saved them for its own backward raises). With `group`, a process group, the logits are this rank's
    shard of equally many consecutive classes, targets are numbers in the whole vocabulary, and all ranks get the same result. Raises ValueError for what is not
    legal.

    >>> import torch
    >>> from entreg.functional import token_stats
    >>> stats = token_stats(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, -100]), fields=["log_prob", "entropy", "varentropy"])
    >>> stats.log_prob, stats.entropy
    (tensor([-0.6931,  0.0000]), tensor([0.6931, 0.0000]))

    Source: Shannon 1948, section 6, and Rényi 1961, eq. 1.21, by partial sums that are merged as in Milakov and Gimelshein 2018, "Online normalizer calculation
    for softmax".
    """
    _tokens.tensors(logits=logits)
    options = Options(fields, family, temperature, softcap, support, top_p, clamp, ignore_index, group, inplace)
    ask = _tokens.request(logits.shape, logits.dtype, logits.device, targets, options)
    chosen = _chosen(logits, backend, group, inplace)
    if chosen == "reference":
        return _tokens.plain(logits, ask)
    if inplace and torch.is_grad_enabled() and logits.requires_grad and (logits.is_leaf or _tokens.overlaps(logits)):
        raise ValueError(f"inplace: got {'a leaf' if logits.is_leaf else 'expanded logits'}, legal is the result of an operation, in memory of its own")
    return _tokens.to_stats(token_rows(logits, ask.task, _kernels(logits, chosen)), ask, ask.shape)


def _chosen(logits: Tensor, backend: str, group: Group, inplace: bool) -> str:
    if backend not in get_args(BackendName):
        raise ValueError(f"backend: got {backend!r}, legal are {', '.join(get_args(BackendName))}")
    if backend == "reference" and (inplace or group is not None):
        raise ValueError(f"backend: got 'reference' with {'inplace' if inplace else 'group'}, legal is blocks or auto")
    return token_backend(logits, inplace=inplace, group=group).name if backend == "auto" else backend


def linear_token_stats(
    hidden: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "*batch"] | None = None,
    *,
    bias: Float[Tensor, " V"] | None = None,
    fields: Sequence[str] = ("log_prob", "entropy"),
    family: Family = SHANNON,
    temperature: float | Float[Tensor, "*batch"] = 1.0,
    softcap: float | None = None,
    support: Bool[Tensor, "*batch V"] | None = None,
    top_p: float | None = None,
    clamp: float | None = None,
    ignore_index: int = -100,
    group: Group = None,
    chunk: int | None = None,
) -> TokenStats:
    """`token_stats` of the logits `hidden @ weight.T + bias`, which never exist as a whole: `[*, D], [V, D] -> TokenStats` of `[*]`, nats.

    The forward holds the logits of `chunk` tokens (default: what fits 25 MB, 640 MB on a GPU), the backward computes them again by blocks of classes: four
    products of matrices. Where the loss is a sum over tokens, `linear_token_loss` takes three. Gradients go to hidden, weight and bias; with `group` (weight is
    this rank's rows) that of hidden is summed over ranks. The weight is cast to hidden's dtype. Raises as `token_stats` does.

    >>> import torch
    >>> from entreg.functional import linear_token_stats
    >>> linear_token_stats(torch.ones(1, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([1])).log_prob
    tensor([-2.1269])

    Source: as `token_stats`; Wijmans et al. 2024, "Cut your losses in large-vocabulary language models", for the recomputation.
    """
    options = Options(fields, family, temperature, softcap, support, top_p, clamp, ignore_index, group)
    ask, states, weight, bias = _head(hidden, weight, bias, targets, options)
    sizes = head.chunks(len(states), weight, chunk)
    rows = head.HeadRows.apply(states, weight, bias, ask.task, _kernels(states), sizes)  # type: ignore[no-untyped-call]
    return _tokens.to_stats(Rows(*rows), ask, ask.shape)


def linear_token_loss(
    hidden: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "*batch"] | None,
    loss_fn: LossFn,
    *,
    bias: Float[Tensor, " V"] | None = None,
    fields: Sequence[str] = ("log_prob", "entropy"),
    family: Family = SHANNON,
    temperature: float | Float[Tensor, "*batch"] = 1.0,
    softcap: float | None = None,
    support: Bool[Tensor, "*batch V"] | None = None,
    top_p: float | None = None,
    clamp: float | None = None,
    ignore_index: int = -100,
    group: Group = None,
    chunk: int | Sequence[int] | None = None,
    accumulate: torch.dtype | None = None,
    debug: bool = False,
) -> tuple[Float[Tensor, ""], TokenStats]:
    """A loss over the statistics of `hidden @ weight.T + bias`, and the statistics: three products of matrices and the logits of one chunk.

    `loss_fn(stats, tokens)` gets the statistics `[n]` of the tokens `tokens` (a slice of the flattened batch) and returns a scalar: a plain SUM over these
    tokens, divided at most by a number known beforehand, which needs gradients through `stats` only. `chunk` is the number of tokens at a time, or one number
    for each chunk, so that what belongs together (the sequences of a DPO pair) stays together; default: what fits 25 MB, 640 MB on a GPU. The loss is
    differentiable once; its gradients are computed now, and kept. The weight's gradient is summed over chunks in its own dtype unless `accumulate` names a
    wider one. The returned statistics are constants. `debug` compares loss and gradients with those of one chunk in plain torch. Raises as
    `token_stats` does; ValueError for a loss that is no scalar or needs gradients elsewhere, and where `debug` finds a difference.

    >>> import torch
    >>> from entreg.functional import linear_token_loss
    >>> hidden, weight = torch.ones(3, 2, requires_grad=True), torch.eye(2, requires_grad=True)
    >>> loss, stats = linear_token_loss(hidden, weight, torch.tensor([0, 1, 0]), lambda stats, tokens: -(stats.log_prob + 0.01 * stats.entropy).sum() / 3)
    >>> loss.backward(); loss, weight.grad
    (tensor(0.6862, grad_fn=<HeadLossBackward>), tensor([[-0.1667, -0.1667],
            [ 0.1667,  0.1667]]))

    Source: the gradient inside the forward as in Hsu et al. 2024, "Liger kernel", there for cross-entropy.
    """
    options = Options(fields, family, temperature, softcap, support, top_p, clamp, ignore_index, group)
    ask, states, weight, bias = _head(hidden, weight, bias, targets, options)
    sizes = head.chunks(len(states), weight, chunk)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: got {loss_fn!r}, legal is a function (stats, tokens) -> scalar")
    if accumulate is not None and not (accumulate in _tokens.FLOATS and torch.finfo(accumulate).bits >= torch.finfo(weight.dtype).bits):
        raise ValueError(f"accumulate: got {accumulate!r}, legal is a floating dtype at least as wide as {weight.dtype}")

    def objective(rows: Rows, tokens: slice) -> Tensor:
        return loss_fn(_tokens.to_stats(rows, ask, torch.Size([tokens.stop - tokens.start])), tokens)

    if debug:
        _compare(states, weight, bias, ask, objective, loss_fn, sizes)
    loss, rows = head.head_loss(states, weight, bias, ask.task, _kernels(states), sizes, objective, accumulate)
    return loss, _tokens.to_stats(rows, ask, ask.shape)


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, options: Options) -> tuple[Request, Tensor, Tensor, Tensor | None]:
    """The request, hidden states [N, D], weight and bias in their dtype."""
    _tokens.tensors(hidden=hidden, weight=weight, **({} if bias is None else {"bias": bias}))
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if tensor.dtype not in _tokens.FLOATS:
            raise ValueError(f"{name}: got {tensor.dtype}, legal is a floating dtype, float16 to float64")
    if hidden.ndim == 0 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)} for hidden {tuple(hidden.shape)}, legal is [V, D] for [*, D]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, legal is {tuple(weight.shape[:1])}")
    ask = _tokens.request(torch.Size([*hidden.shape[:-1], weight.shape[0]]), hidden.dtype, hidden.device, targets, options)
    return ask, hidden.reshape(-1, hidden.shape[-1]), weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def _compare(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Request, objective: Callable[[Rows, slice], Tensor], loss_fn: LossFn, sizes: Sequence[slice]
) -> None:
    """ValueError where chunks and the whole disagree by more than rounding: the loss is no plain sum over tokens."""
    if ask.task.group is not None:
        raise ValueError("debug: got True with group, legal is False: one process does not have the whole")
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    with torch.enable_grad():
        chunked, _ = head.head_loss(inputs[0], inputs[1], inputs[2] if bias is not None else None, ask.task, _kernels(inputs[0]), sizes, objective, None)
        flat = ask._replace(shape=hidden.shape[:1])
        whole = loss_fn(_tokens.plain(torch.nn.functional.linear(*inputs), flat), slice(0, len(hidden)))
    if not whole.requires_grad:
        raise ValueError("loss_fn: got a loss without a gradient, legal is one of the statistics, which are not to be detached")
    tolerance = 1e-4 if torch.finfo(hidden.dtype).bits >= 32 else 3e-2
    pairs = [(chunked.detach(), whole.detach()), *zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(whole, inputs), strict=True)]
    for name, (mine, theirs) in zip(("loss", "gradient of hidden", "gradient of weight", "gradient of bias"), pairs, strict=False):
        error, size = (mine.double() - theirs.double()).norm().item(), theirs.double().norm().item()
        if not error <= tolerance * max(size, 1e-30):
            raise ValueError(f"loss_fn: the {name} by chunks differs from that of the whole by {error:.3g} of {size:.3g}, legal is a plain sum over tokens")
