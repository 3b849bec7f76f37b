"""Entropy estimated from samples: where log-probabilities are known (`sampled`, `score_function_bonus`) and where only points are (`parzen`, `knn_entropy`).

Shapes: `*` batch, `S` samples of one distribution, `n` points in `d` dimensions. Values are nats, batch shape kept, never negated (`score_function_bonus` is a
loss). Prefer a closed form where there is one: these have variance, and at orders other than 1 a bias of order 1/S.
float16 and bfloat16 are computed, and returned, in float32.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from entreg.functional._precision import full_precision
from entreg.functional.families import SHANNON, Family


def sampled(log_prob: Float[Tensor, "*samples"], family: Family = SHANNON, *, dim: int = 0) -> Float[Tensor, "*batch"]:
    """Entropy from log-probabilities of the distribution's own samples, `(S, *) -> (*)` nats; the samples lie along `dim`.

    Shannon: `-mean log p`, unbiased. Order `a`: `-log(mean p^(a-1)) / (a - 1)`, biased upwards for a > 1 and downwards for a < 1 as S is finite.
    Differentiate it only through reparameterised samples; sampled actions with a constant value have an expected gradient of ZERO here, see
    `score_function_bonus`.

    Raises `ValueError` at order `inf` (the largest density is not a mean over samples) and without samples.

    >>> sampled(torch.tensor([0.5, 0.25]).log())
    tensor(1.0397)

    Source: law of large numbers; SAC's entropy term is S = 1.
    """
    log_prob = full_precision(log_prob)
    if family.order == math.inf:
        raise ValueError(f"family: {family.name} has order inf; legal for an estimate from samples are finite orders")
    if log_prob.shape[dim] == 0:
        raise ValueError(f"log_prob: no samples along dim {dim} of shape {tuple(log_prob.shape)}; legal is at least one")
    return family.from_renyi(_renyi_of_mean(log_prob, family.order, dim))


def score_function_bonus(log_prob: Float[Tensor, "*samples"], baseline: Float[Tensor, "..."] | float | None = None, *, dim: int = 0) -> Tensor:
    """A loss, per item, whose gradient is that of MINUS the Shannon entropy; MINIMISE it: `stop_grad(log p - b) * log p`, `(S, *) -> (S, *)`.

    For actions whose value is a constant (sampled discrete actions, stored actions of a squashed policy) and trainers that give nothing but log-probs.
    `-log p` itself, differentiated, pushes nowhere on average. Only the gradient means something; report `sampled(log_prob)` as the value.
    `b` estimates `E log p = -H`: give minus an exact or running entropy, or leave it out for the mean of the OTHER items along `dim` (a mean that includes the
    item shrinks the gradient by 1 - 1/S). Off-policy, multiply by the importance ratio.

    Raises `ValueError` for the leave-one-out baseline of fewer than two items.

    >>> log_prob = torch.tensor([0.5, 0.25]).log().requires_grad_()
    >>> torch.autograd.grad(score_function_bonus(log_prob).sum(), log_prob)[0]
    tensor([ 0.6931, -0.6931])

    Source: Williams 1992, with reward `-log p`; leave-one-out: Kool et al. 2019.
    """
    log_prob = full_precision(log_prob)
    constant = log_prob.detach()
    if baseline is None:
        count = log_prob.shape[dim]
        if count < 2:
            raise ValueError(f"log_prob: {count} items along dim {dim}; the leave-one-out baseline needs at least 2, or give a baseline")
        baseline = (constant.sum(dim, keepdim=True) - constant) / (count - 1)
    elif isinstance(baseline, Tensor):
        baseline = baseline.detach()
    return (constant - baseline) * log_prob


def parzen(x: Float[Tensor, "*batch n d"], bandwidth: float) -> Float[Tensor, "*batch"]:
    """Rényi-2 entropy of the points' Gaussian kernel density, `(*, n, d) -> (*)` nats, differentiable in the points.

    `-log mean_{i != j} N(x_i - x_j; 0, 2 h^2 I)`, h the bandwidth in the units of x: the information potential, closed because two Gaussians overlap in a
    Gaussian. It is at least that of one kernel, `d/2 log(4 pi h^2)`. Memory is n^2 a batch item.

    Raises `ValueError` for fewer than two points, or a bandwidth that is not positive and finite.

    >>> parzen(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)  # 1/2 log(4 pi) + 1/4
    tensor(1.5155)

    Source: Principe 2010, Information Theoretic Learning, chapter 2; there the i = j terms are included, which biases small samples low.
    """
    x = _points(x)
    if not 0.0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth: {bandwidth}; legal is a positive finite number")
    n, d = x.shape[-2:]
    log_kernel = _distances(x).square() * (-0.25 / bandwidth**2)
    constant = math.log(n * (n - 1)) + 0.5 * d * math.log(4.0 * math.pi * bandwidth**2)
    return constant - _off_diagonal(log_kernel, -math.inf).flatten(-2).logsumexp(-1)


def knn_entropy(x: Float[Tensor, "*batch n d"], k: int = 3, family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of the density behind points, from the distance `rho` to the k-th neighbour of each, `(*, n, d) -> (*)` nats, differentiable in the points.

    Shannon (Kozachenko-Leonenko): `psi(n) - psi(k) + log c_d + d mean log rho`, `c_d` the volume of the unit ball. Order `a` (Leonenko-Pronzato):
    `log(mean(((n-1) C_k c_d rho^d)^(1-a))) / (1-a)`, `C_k = (Gamma(k) / Gamma(k+1-a))^(1/(1-a))`. For a -> 1 it is Shannon's with `log(n-1)` for `psi(n)`.
    Memory is n^2 a batch item. Few dimensions only: the bias decays as n^(-2/d).

    Raises `ValueError` for k outside [1, n - 1], orders outside (0, k + 1), and a k-th neighbour at distance 0 (repeated points have no density).

    >>> knn_entropy(torch.tensor([[0.0], [1.0], [3.0]]), k=1)  # 3/2 + log 2 + 1/3 log(1 * 1 * 2), the harmonic sum psi(3) - psi(1) first
    tensor(2.4242)

    Source: Kozachenko and Leonenko 1987; Leonenko, Pronzato and Savani 2008.
    """
    x, order = _points(x), family.order
    n, d = x.shape[-2:]
    if not 1 <= k < n:
        raise ValueError(f"k: {k} with {n} points; legal is 1 to {n - 1}")
    if not 0.0 < order < k + 1:
        raise ValueError(f"family: {family.name} has order {order}; legal with k = {k} are orders in (0, {k + 1})")
    radius = _off_diagonal(_distances(x), -math.inf).kthvalue(k + 1, dim=-1).values  # the point itself comes first, so that a NaN comes last and is seen
    if bool((radius == 0.0).any()):
        raise ValueError(f"x: a point and its {k} nearest neighbours coincide; legal are points of a density (raise k, or add noise)")
    log_ball = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1.0)
    log_volume = d * radius.log() + log_ball
    if order == 1.0:
        return family.from_renyi(log_volume.mean(-1) + _digamma(n) - _digamma(k))
    log_inverse_density = log_volume + (math.log(n - 1) + _log_constant(k, 1.0 - order))
    return family.from_renyi(_renyi_of_mean(-log_inverse_density, order, -1))


def _renyi_of_mean(log_density: Tensor, order: float, dim: int) -> Tensor:
    """`-log(mean exp(e log_density)) / e`, `e = order - 1`, along `dim`; the mean itself at order 1. Right for any `e`, also of 1e-9."""
    e = order - 1.0
    if e == 0.0:
        return -log_density.mean(dim)
    largest = (log_density.amax(dim, keepdim=True) if e > 0 else log_density.amin(dim, keepdim=True)).detach()
    exponent = e * (log_density - largest)  # <= 0
    shortfall = torch.expm1(exponent).mean(dim)
    log_mean = torch.where(shortfall > -0.5, torch.log1p(shortfall.clamp(min=-0.5)), exponent.exp().mean(dim).log())
    return -largest.squeeze(dim) - log_mean / e


def _log_constant(k: int, e: float) -> float:
    """`log C_k`, which tends to `-psi(k)`: a difference quotient of lgamma, in its limit form where that would cancel."""
    return (math.lgamma(k) - math.lgamma(k + e)) / e if abs(e) > 1e-4 else -_digamma(k + 0.5 * e)


def _digamma(x: float) -> float:
    return float(torch.special.digamma(torch.tensor(x, dtype=torch.float64)))


def _distances(x: Tensor) -> Tensor:
    """`(*, n, d) -> (*, n, n)`. The usual matrix-product form loses half the digits of the small distances that matter here."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _off_diagonal(square: Tensor, value: float) -> Tensor:
    return square.masked_fill(torch.eye(square.shape[-1], dtype=torch.bool, device=square.device), value)


def _points(x: Tensor) -> Tensor:
    if x.ndim < 2 or x.shape[-2] < 2 or x.shape[-1] < 1:
        raise ValueError(f"x: shape {tuple(x.shape)}; legal is (*, n, d) with at least 2 points of at least 1 dimension")
    return full_precision(x)
