"""Entropies of Gaussian and tanh-squashed Gaussian policies, in closed form or by quadrature; no samples.

Shapes: `*` batch, `D` independent dimensions. Values are nats, batch shape kept, nothing reduced or negated. A differential entropy may be negative.
The Rényi entropies of the dimensions are added first and the family's transform comes last: Tsallis is not additive. Orders are in (0, inf].
float16 and bfloat16 are computed, and returned, in float32.

Sides and nodes of the squashed quadrature: every dimension is folded at `u = 0` into the half lines `sign * u = v >= 0` (leading axis of size 2), on which
the Jacobian `-2 v - 2 log1p(exp(-2 v)) + 2 log 2` is smooth and nearly linear; Gauss-Legendre nodes lie on the last axis.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entreg.functional._precision import common_precision, full_precision
from entreg.functional.families import SHANNON, Family

LOG_2 = math.log(2.0)
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
LARGEST_ORDER = 1000.0  # 32 nodes: 2e-9 up to order 200, 5e-6 at 1000, useless far beyond
SHANNON_RULE: tuple[list[float], ...] = tuple(part.tolist() for part in np.polynomial.legendre.leggauss(16))
RENYI_RULE: tuple[list[float], ...] = tuple(part.tolist() for part in np.polynomial.legendre.leggauss(32))
NEWTON_STEPS = 30


def gaussian_entropy(log_std: Float[Tensor, "*batch D"], family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of a diagonal Gaussian, `(*, D) -> (*)` nats: `R_a = sum(log_std) + D/2 log 2 pi + D/2 log(a)/(a - 1)`, the last factor 1 at `a = 1`, 0 at `inf`.

    It does not depend on the mean, and it is not the entropy of a squashed or clipped action (see `tanh_gaussian_entropy`).

    Raises `ValueError` for an order that is not positive, and for a `log_std` without dimensions.

    >>> gaussian_entropy(torch.zeros(2, 3))  # 3/2 log(2 pi e) each
    tensor([4.2568, 4.2568])

    Source: Cover and Thomas, Elements of Information Theory, theorem 8.4.1; Rényi: Nadarajah and Zografos 2003.
    """
    log_std = full_precision(log_std)
    if log_std.ndim == 0:
        raise ValueError("log_std: shape (); legal is (*, D)")
    if not family.order > 0.0:
        raise ValueError(f"family: {family.name} has order {family.order}; legal for a continuous distribution are orders > 0")
    return family.from_renyi(log_std.sum(-1) + log_std.shape[-1] * _gaussian_constant(family.order))


def multivariate_gaussian_entropy(scale_tril: Float[Tensor, "*batch D D"], family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of a full-covariance Gaussian from the Cholesky factor `L` of its covariance, `(*, D, D) -> (*)` nats.

    As `gaussian_entropy` with `sum(log diag L)` in the place of `sum(log_std)`. Only the diagonal is read, and it must be positive.

    Raises `ValueError` for an order that is not positive, and for a `scale_tril` that is not square.

    >>> multivariate_gaussian_entropy(torch.tensor([[1.0, 0.0], [5.0, 2.0]]))  # log(2 pi e) + log 2
    tensor(3.5310)

    Source: Cover and Thomas, Elements of Information Theory, theorem 8.4.1.
    """
    scale_tril = full_precision(scale_tril)
    if scale_tril.ndim < 2 or scale_tril.shape[-1] != scale_tril.shape[-2]:
        raise ValueError(f"scale_tril: shape {tuple(scale_tril.shape)}; legal is (*, D, D)")
    return gaussian_entropy(scale_tril.diagonal(dim1=-2, dim2=-1).log(), family)


def gaussian_kl(
    mean_p: Float[Tensor, "*batch D"], log_std_p: Float[Tensor, "*batch D"], mean_q: Float[Tensor, "*batch D"], log_std_q: Float[Tensor, "*batch D"]
) -> Float[Tensor, "*batch"]:
    """`KL(p || q)` of diagonal Gaussians, `(*, D) -> (*)` nats: `1/2 sum(expm1(2 r) - 2 r + ((mean_p - mean_q)/std_q)^2)` with `r = log_std_p - log_std_q`.

    It is also the KL of the tanh-squashed ones: a common invertible map changes no divergence.

    >>> gaussian_kl(torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    tensor(0.5000)

    Source: Kingma and Welling 2014, appendix B; `expm1` keeps the digits of a small update.
    """
    mean_p, log_std_p, mean_q, log_std_q = common_precision(mean_p, log_std_p, mean_q, log_std_q)
    twice_ratio = 2.0 * (log_std_p - log_std_q)
    distance = (mean_p - mean_q) * torch.exp(-log_std_q)
    return 0.5 * (torch.expm1(twice_ratio) - twice_ratio + distance.square()).sum(-1)


def tanh_log_det(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log |d tanh(u) / du|`, elementwise: `2 (log 2 - |u| - log1p(exp(-2 |u|)))`, exact for every `u`.

    `log(1 - tanh(u)^2 + 1e-6)`, the usual spelling, is off by 2.9 nat at `u = 9`.

    >>> tanh_log_det(torch.tensor([0.0, -20.0]))
    tensor([  0.0000, -38.6137])

    Source: Haarnoja et al. 2018, appendix C, rearranged.
    """
    u = full_precision(u)
    distance = _sign(u) * u
    return 2.0 * (LOG_2 - distance - torch.log1p(torch.exp(-2.0 * distance)))


def tanh_gaussian_entropy(mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "*batch D"], family: Family = SHANNON) -> Float[Tensor, "*batch"]:
    """Entropy of `tanh(u)`, `u` a diagonal Gaussian, `(*, D) -> (*)` nats, with its exact gradient.

    Shannon: `H(u) + E log(1 - tanh(u)^2)`. Order `a`: `log(integral p(u)^a (dy/du)^(1 - a) du) / (1 - a)` per dimension. At every order
    `dR/dmean = -2 E tanh u` and `dR/dlog_std = 1 - 2 E (u - mean) tanh u`, the mean over the escort density of order `a` (the policy itself at `a = 1`).

    Measured for `mean` in [-4, 4] and `std` in [.007, 7.4]: Shannon within 2e-6 a dimension in float32; Rényi, orders .01 to 200, within 1e-6 in float64 and
    the larger of 1e-5 and 3e-7 of the value in float32, also at 1 +- 1e-9; orders 200 to 1000 within 1e-5; `inf` exact. Tsallis exponentiates these errors:
    they are relative there. `std` beyond 12 near order 1 loses digits.

    Raises `ValueError` for an order outside (0, 1000] that is not `inf`.

    >>> tanh_gaussian_entropy(torch.zeros(1), torch.tensor([0.8744]).log())  # its maximum over std at mean 0; log 2 is out of reach
    tensor(0.6836)

    Source: change of variables; gradients by Stein's lemma. Monte-Carlo elsewhere: SAC (Haarnoja et al. 2018) uses one sample.
    """
    return family.from_renyi(squashed_renyi(mean, log_std, family.order).sum(-1))


def squashed_renyi(mean: Float[Tensor, "*shape"], log_std: Float[Tensor, "*shape"], order: float) -> Float[Tensor, "*shape"]:
    """Rényi entropy of `tanh(N(mean, std^2))` elementwise, before any sum over dimensions; see `tanh_gaussian_entropy`.

    >>> squashed_renyi(torch.zeros(2), torch.zeros(2), 1.0)
    tensor([0.6698, 0.6698])
    """
    if not 0.0 < order <= LARGEST_ORDER and order != math.inf:
        raise ValueError(f"order: {order} for a squashed Gaussian; legal are (0, {LARGEST_ORDER:g}] and inf")
    mean, log_std = torch.broadcast_tensors(*common_precision(mean, log_std))
    value: Tensor = _SquashedRenyi.apply(mean, log_std, order)[0]  # type: ignore[no-untyped-call]
    return value


def squashed_mean(mean: Float[Tensor, "*shape"], log_std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`E tanh u`, elementwise, within 1e-6; twice minus it is the Shannon entropy's derivative by the mean.

    >>> squashed_mean(torch.tensor([0.0, 1.0]), torch.zeros(2))
    tensor([0.0000, 0.5504])
    """
    return -0.5 * _squashed_shannon(*common_precision(mean, log_std))[1]


def squashed_mode(mean: Float[Tensor, "*shape"], log_std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`u` at which the density of `tanh(u)` is largest, elementwise: the outermost root of `u = mean + 2 std^2 tanh u` on the side of the mean.

    At `mean = 0` and `std > sqrt(1/2)` there are two, `+-u`; the positive one is returned. No gradient.

    >>> squashed_mode(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 1.0]).log())
    tensor([0.0000, 1.9150])
    """
    with torch.no_grad():
        distance, shift = mean.abs(), 2.0 * torch.exp(2.0 * log_std)
        # Newton from the right of a convex function. Where its slope vanishes (mean 0, std^2 = 1/2) rounding would be thrown far: plain iteration there.
        u = distance + shift
        for _ in range(NEWTON_STEPS):
            tanh = u.tanh()
            slope = 1.0 - shift * (1.0 - tanh.square())
            step = u - distance - shift * tanh
            u = torch.maximum(u - torch.where(slope > 1e-4, step / slope, step), distance)
        return torch.where(mean < 0, -u, u)


class _SquashedRenyi(torch.autograd.Function):
    """Value and both derivatives in one pass over the nodes; what is kept for backward has the shape of the input, not of the nodes.

    Only a backward that is itself differentiated runs over the nodes again, with a graph; the nodes stay constants in it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, log_std: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
        return _squashed(mean, log_std, order)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        mean, log_std, ctx.order = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(mean, log_std, *output[1:])

    @staticmethod
    def backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
        mean, log_std, d_mean, d_log_std = ctx.saved_tensors
        if torch.is_grad_enabled():
            d_mean, d_log_std = _squashed(mean, log_std, ctx.order)[1:]
        return grad * d_mean, grad * d_log_std, None


def _squashed(mean: Tensor, log_std: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    if order == 1.0:
        return _squashed_shannon(mean, log_std)
    if order == math.inf:
        return _squashed_min_entropy(mean, log_std)
    return _squashed_order(mean, log_std, order)


def _squashed_shannon(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`E |u|` and `E sign u` in closed form, what remains decays as `exp(-2 |u|)`: 16 nodes where both it and the density live."""
    sign_mean = _sign(mean)
    std, distance = log_std.exp(), sign_mean * mean
    x, weight = _nodes(SHANNON_RULE, mean)
    low, high = (distance - 5.0 * std).clamp(0.0, 10.0), (distance + 5.0 * std).clamp(max=10.0)
    half = 0.5 * (high - low)
    low, half = low.detach(), half.detach()
    v = low[..., None] + half[..., None] * (x + 1.0)
    near = torch.exp(-0.5 * ((v - distance[..., None]) / std[..., None]).square())
    far = torch.exp(-0.5 * ((v + distance[..., None]) / std[..., None]).square())
    decay = torch.exp(-2.0 * v)
    one_minus_tanh = 2.0 * decay / (1.0 + decay)
    both = (near + far) * weight
    scale = half / (std * math.sqrt(2.0 * math.pi))
    rest = scale * (both * torch.log1p(decay)).sum(-1)
    z = distance / (std * math.sqrt(2.0))
    erf = torch.erf(z)
    mean_abs = distance * erf + std * (math.sqrt(2.0 / math.pi) * torch.exp(-z.square()))
    mean_tanh = erf - scale * ((near - far) * weight * one_minus_tanh).sum(-1)
    mean_sech2 = scale * (both * one_minus_tanh * (2.0 - one_minus_tanh)).sum(-1)
    value = log_std + (HALF_LOG_2PI + 0.5 + 2.0 * LOG_2) - 2.0 * (mean_abs + rest)
    return value, -2.0 * sign_mean * mean_tanh, 1.0 - 2.0 * std.square() * mean_sech2


def _squashed_order(mean: Tensor, log_std: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """Order `a`, not 1 or inf. With `e = 1 - a` the integrand on a side is a Gaussian around `c = sign mean - 2 e std^2 / a`, times a bounded factor.

    The Gaussian's value at its largest point of the half line (`peak`, in units of `e`) is taken out in closed form: nothing large cancels in float32.
    """
    e = 1.0 - order
    x, weight = _nodes(RENYI_RULE, mean)
    variance = torch.exp(2.0 * log_std) / order
    deviation = variance.sqrt()
    side_mean = torch.stack([mean, -mean])
    shift = 2.0 * e * variance
    centre = side_mean - shift
    start, outside = centre.clamp(min=0.0), (-centre).clamp(min=0.0)  # the largest point, and how far the centre is from the half line
    below = 6.5 * deviation
    if order > 1.0:  # where tanh has not saturated the true maximum is left of the centre, by at most this much
        below = below - shift * (1.0 - (centre - 1.0).clamp(min=0.0).tanh())
    low = -torch.minimum(start, below.expand_as(start))
    high = 42.0 * variance / ((outside.square() + 42.0 * variance).sqrt() + outside)
    low, half = low.detach(), (0.5 * (high - low)).detach()
    offset = low[..., None] + half[..., None] * (x + 1.0)
    v = start.detach()[..., None] + offset
    t = offset + (start.detach() - start)[..., None]  # v - start, without its rounding
    rest = torch.log1p(torch.exp(-2.0 * v))
    gaussian = -t * (t + 2.0 * outside[..., None]) / (2.0 * variance[..., None])
    peak = torch.where(centre > 0.0, shift - 2.0 * side_mean, -side_mean.square() / (2.0 * e * variance))
    first = torch.where(mean >= 0.0, peak[0], peak[1])
    log_weight = e * (peak - first)[..., None] + gaussian - 2.0 * e * rest + weight.log() + (half / deviation)[..., None].log() - HALF_LOG_2PI
    log_total = log_weight.logsumexp(-1).logsumexp(0)
    escort = torch.exp(log_weight - log_total[..., None])
    tanh = v.tanh()
    tanh_escort = escort * tanh
    d_mean = -2.0 * (tanh_escort[0] - tanh_escort[1]).sum(-1)
    d_log_std = 1.0 - 2.0 * (tanh_escort * (v - side_mean[..., None])).sum((0, -1))
    if abs(e) >= 0.05:
        squeezed = first + log_total / e
    else:  # log_total / e is 0 / 0 in the limit
        plain = torch.exp(-0.5 * (v - side_mean[..., None]).square() / variance[..., None]) * weight * half[..., None]
        squeezed = _log_mean_power(plain, -2.0 * (v + rest), e)
    return log_std + (_gaussian_constant(order) + 2.0 * LOG_2) + squeezed, d_mean, d_log_std


def _log_mean_power(weight: Tensor, value: Tensor, e: float) -> Tensor:
    """`log(E exp(e value)) / e` for small `e`, the mean over sides and nodes; both integrals on the same nodes, so that their errors cancel as `e -> 0`."""
    weight = weight / weight.sum((0, -1))[..., None]
    centre = (weight * value).sum((0, -1))
    return centre + torch.log1p((weight * torch.expm1(e * (value - centre[..., None]))).sum((0, -1))) / e


def _squashed_min_entropy(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minus the log of the largest density: `(u - mean)^2 / (2 std^2) + log |dy/du|` at the mode, whose own motion drops out of the gradient."""
    sign_mean, shift = _sign(mean), 2.0 * torch.exp(2.0 * log_std)
    mode = squashed_mode(mean, log_std).abs()
    # one more step, so that a second backward sees how the mode moves
    mode = mode - (mode - sign_mean * mean - shift * mode.tanh()) / (1.0 - shift / mode.cosh().square()).clamp(min=1e-4).detach()
    tanh = mode.tanh()
    slack = shift * tanh.square()  # (u - mean) tanh u at the mode
    d_mean = -2.0 * mean.sign() * tanh  # 0 at mean 0: two modes share it, as classes of equal probability do
    return log_std + HALF_LOG_2PI + slack + tanh_log_det(mode), d_mean, 1.0 - 2.0 * slack


def _sign(x: Tensor) -> Tensor:
    """-1 or 1, constant: `x.abs()` and `x.sign()` would lose the second derivative at 0, where untrained policies are."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _gaussian_constant(order: float) -> float:
    """Rényi entropy of one standard normal."""
    if order == math.inf:
        return HALF_LOG_2PI
    return HALF_LOG_2PI + 0.5 * (1.0 if order == 1.0 else math.log1p(order - 1.0) / (order - 1.0))


def _nodes(rule: tuple[list[float], ...], like: Tensor) -> tuple[Tensor, Tensor]:
    return like.new_tensor(rule[0]), like.new_tensor(rule[1])
