"""Exact entropy of categorical distributions, with exact gradients, for every family; log-probabilities and divergences beside it.

Shapes: `*` batch, `V` classes. Everything is in nats, one value per distribution, never reduced and never negated; float16 and bfloat16 are computed and
returned in float32. A class whose logit is -inf, or that lies outside `support`, contributes value 0 and gradient 0. A row without any class is a ValueError on
a CPU, and NaN under `torch.compile` and on a device that would have to be waited for. All functions work under `torch.func` (vmap, grad) and can be
differentiated twice.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entreg.functional._divergence import softmax_divergence
from entreg.functional._softmax import FLOOR, softmax_renyi
from entreg.functional.families import SHANNON, Family, renyi


def _prepared(logits: Tensor, support: Tensor | None, name: str = "logits") -> tuple[Tensor, Tensor | None]:
    if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(logits.shape)} of {logits.dtype}, legal is a floating tensor [*, V] with V >= 1")
    if support is not None:
        if support.dtype != torch.bool:
            raise ValueError(f"support: got {support.dtype}, legal is a boolean tensor, True where the class exists")
        if support.shape != logits.shape:
            try:
                support = support.expand(logits.shape)
            except RuntimeError:
                raise ValueError(f"support: got shape {tuple(support.shape)}, legal is one that broadcasts to {tuple(logits.shape)}") from None
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits), support


def categorical_entropy(
    logits: Float[Tensor, "*batch V"], family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy of `softmax(logits)`, `[*, V] -> [*]`, nats.

    Shannon `H = -sum p log p`; other families are `family.from_renyi(R_a)`, `R_a = log(sum p^a) / (1 - a)`. `support` (broadcast to the logits) says which
    classes exist. Raises ValueError for a row with no class left, for logits that are not floating, and for a `support` that does not fit.

    >>> import torch
    >>> from entreg.functional import categorical_entropy, renyi
    >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, -torch.inf, -torch.inf]])
    >>> categorical_entropy(logits)
    tensor([1.3863, 0.3653])
    >>> categorical_entropy(logits, renyi(2))
    tensor([1.3863, 0.2357])

    Source: Shannon 1948, section 6; Rényi 1961, eq. 1.21. Evaluated as `log s - sum(w y)/s` on `y = z - max z`, `w = exp(y)`, `s = sum w`: both terms are >=
    0, nothing cancels.
    """
    z, support = _prepared(logits, support)
    return family.from_renyi(softmax_renyi(z, support, None, family.order)[1]).to(z.dtype)


def categorical_stats(
    logits: Float[Tensor, "*batch V"], index: Int[Tensor, "*batch"], family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Log-probability of the class `index` and entropy of `softmax(logits)`, in one pass: `[*, V], [*] -> [*], [*]`, nats.

    What a policy needs of a minibatch. The log-probability of a class that does not exist is -inf, without gradient. Raises ValueError as
    `categorical_entropy` does, and where `index` is not integer `[*]`.

    >>> import torch
    >>> from entreg.functional import categorical_stats
    >>> categorical_stats(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    (tensor([-0.6931, -2.1269]), tensor([0.6931, 0.3653]))

    Source: as `categorical_entropy`; `log p_i = (z_i - max z) - log s`, kept in two parts because their sum loses the digits of z.
    """
    z, support = _prepared(logits, support)
    if index.shape != z.shape[:-1] or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index: got shape {tuple(index.shape)} of {index.dtype}, legal is an integer tensor of shape {tuple(z.shape[:-1])}")
    log_prob, renyi_entropy = softmax_renyi(z, support, index.long(), family.order)
    return log_prob, family.from_renyi(renyi_entropy).to(z.dtype)


def categorical_entropy_from_probs(probs: Float[Tensor, "*batch V"], family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of `probs / sum(probs)`, `[*, V] -> [*]`, nats; the gradient is that of this normalised function.

    A probability of exactly 0 contributes value 0 and gradient 0 (the derivative there is infinite for orders <= 1: prefer logits). Raises ValueError for a
    row of zeros (on a CPU); a negative probability gives NaN.

    >>> import torch
    >>> from entreg.functional import categorical_entropy_from_probs
    >>> categorical_entropy_from_probs(torch.tensor([0.5, 0.5, 0.0]))
    tensor(0.6931)
    """
    p, _ = _prepared(probs, None, "probs")
    absent = p == 0
    return categorical_entropy(torch.where(absent, 1, p).log(), family, support=~absent)


def bernoulli_entropy(logits: Float[Tensor, "*batch"], family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of a yes with probability `sigmoid(logits)`, both terms of it, `[*] -> [*]`, nats.

    A two-class categorical with logits `(z, 0)`; an infinite logit is a certain outcome, with entropy 0 and gradient 0.

    >>> import torch
    >>> from entreg.functional import bernoulli_entropy
    >>> bernoulli_entropy(torch.tensor([0.0, 2.0, -2.0]))
    tensor([0.6931, 0.3653, 0.3653])
    """
    z, _ = _prepared(logits.unsqueeze(-1), None)
    z = z.clamp(FLOOR, -FLOOR)
    return categorical_entropy(torch.cat((z, torch.zeros_like(z)), -1), family)


def top_p_entropy(
    logits: Float[Tensor, "*batch V"], p: float, family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy of the nucleus: the smallest set of the largest probabilities whose sum reaches `p`, renormalised, `[*, V] -> [*]`, nats.

    The set is a constant: no gradient through membership, and the value jumps where the set changes. Raises ValueError unless `0 < p <= 1`.

    >>> import torch
    >>> from entreg.functional import top_p_entropy
    >>> top_p_entropy(torch.tensor([0.4, 0.4, 0.1, 0.1]).log(), 0.8)
    tensor(0.6931)

    Source: SIREN (regularised entropy over the top-p nucleus); Holtzman et al. 2020, section 3.1 for the set.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p: got {p}, legal is 0 < p <= 1")
    z, support = _prepared(logits, support)
    with torch.no_grad():
        probs, order = _allowed(z, support).softmax(-1).sort(dim=-1, descending=True)
        kept = _in_place(probs.cumsum(-1) - probs < p, order)  # a class is in while the mass before it has not reached p
    return categorical_entropy(z, family, support=kept if support is None else kept & support)


def clamped_entropy(
    logits: Float[Tensor, "*batch V"], fraction: float, family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy without the lowest `fraction` of the allowed classes by rank, renormalised on the others, `[*, V] -> [*]`, nats.

    Drops `floor(fraction * allowed)` classes. The set is a constant, as in `top_p_entropy`. Raises ValueError unless `0 <= fraction < 1`.

    >>> import torch
    >>> from entreg.functional import clamped_entropy
    >>> clamped_entropy(torch.tensor([3.0, 3.0, 1.0, 0.0]), 0.5)
    tensor(0.6931)

    Source: AEnt, the token-space clamp (there .2 to .3).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: got {fraction}, legal is 0 <= fraction < 1")
    z, support = _prepared(logits, support)
    with torch.no_grad():
        values, order = _allowed(z, support).sort(dim=-1, descending=True)
        allowed = (values > -math.inf).sum(-1, keepdim=True)
        rank = torch.arange(z.shape[-1], device=z.device)
        kept = _in_place(rank < allowed - (fraction * allowed).floor(), order)
    return categorical_entropy(z, family, support=kept if support is None else kept & support)


def _allowed(logits: Tensor, support: Tensor | None) -> Tensor:
    return logits if support is None else logits.masked_fill(~support, -math.inf)


def _in_place(kept_by_rank: Tensor, order: Tensor) -> Tensor:
    """A mask over ranks as a mask over classes."""
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, kept_by_rank)


def categorical_kl(
    logits_p: Float[Tensor, "*batch V"], logits_q: Float[Tensor, "*batch V"], *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Kullback-Leibler divergence `KL(p || q) = sum p (log p - log q)` of two softmaxes, `[*, V], [*, V] -> [*]`, nats, with gradients to both.

    Summed as `q - p + p log(p/q)`, whose terms are all >= 0: small divergences keep their digits. Infinite where p has a class that q has not.

    >>> import torch
    >>> from entreg.functional import categorical_kl
    >>> categorical_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    tensor(0.1109)

    Source: Kullback and Leibler 1951, eq. 2.2.
    """
    return renyi_divergence(logits_p, logits_q, 1.0, support=support)


def renyi_divergence(
    logits_p: Float[Tensor, "*batch V"], logits_q: Float[Tensor, "*batch V"], order: float, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Rényi divergence `D_a(p || q) = log(sum p^a q^(1-a)) / (a - 1)` of two softmaxes, `[*, V], [*, V] -> [*]`, nats, with gradients to both.

    Order 1 is KL, 0 is `-log q(p > 0)`, inf is `log max p/q`. Infinite where p has a class that q has not, at orders >= 1. Raises ValueError for a negative or
    NaN order. Against the uniform distribution it is `log V - R_a(p)`.

    >>> import torch
    >>> from entreg.functional import renyi_divergence
    >>> renyi_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), 2)
    tensor(0.1936)

    Source: Rényi 1961, eq. 3.3; van Erven and Harremoës 2014, eq. 1 and definition 3.
    """
    order = renyi(order).order
    if logits_p.shape[-1:] != logits_q.shape[-1:]:
        raise ValueError(f"logits_q: got {logits_q.shape[-1:]} classes, legal is the same as logits_p: {logits_p.shape[-1:]}")
    shape = torch.broadcast_shapes(logits_p.shape, logits_q.shape)
    z_p, support = _prepared(logits_p.expand(shape), support, "logits_p")
    z_q, _ = _prepared(logits_q.expand(shape), None, "logits_q")
    return softmax_divergence(z_p, z_q, support, order)
