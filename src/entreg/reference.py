"""Entropy regularisation in NumPy float64, straight from the papers: for reading, for people without torch, and as the oracle of the tests.

Shapes: `*` batch, `V` classes, `D` dimensions. Entropies are in nats and one value a distribution; arrays of any float type come in, float64 goes out.
`family` is "shannon" (order 1, the default), "renyi", "tsallis" (both at `order`) or "min_entropy". Nothing here is fast, and nothing is imported from entreg.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FAMILIES = ("shannon", "renyi", "tsallis", "min_entropy")
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def _order(family: str, order: float) -> float:
    if family not in FAMILIES:
        raise ValueError(f"family: got {family!r}, legal are {', '.join(FAMILIES)}")
    if not order >= 0 or (family == "tsallis" and math.isinf(order)):
        raise ValueError(f"order: got {order}, legal is a number >= 0{', finite for tsallis' if family == 'tsallis' else ', or inf'}")
    return {"shannon": 1.0, "min_entropy": math.inf}.get(family, float(order))


def _transform(renyi_entropy: Array, family: str, order: float) -> Array:
    """Tsallis from Rényi, `expm1((1 - q) R_q) / (1 - q)`; the others are Rényi entropies."""
    return np.expm1((1 - order) * renyi_entropy) / (1 - order) if family == "tsallis" and order != 1 else renyi_entropy


def _logsumexp(x: Array) -> Array:
    top = x.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        result: Array = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
    return result


def log_softmax(logits: ArrayLike, support: ArrayLike | None = None) -> Array:
    """`log p`, `[*, V] -> [*, V]`; -inf outside the support. ValueError where a row has no class.

    >>> log_softmax([0.0, 0.0, -np.inf]).round(4).tolist()
    [-0.6931, -0.6931, -inf]
    """
    z = np.asarray(logits, np.float64)
    z = z if support is None else np.where(support, z, -np.inf)
    if (z == -np.inf).all(-1).any():
        raise ValueError("logits: got a row with no class left, legal is at least one class a row")
    z = z - z.max(-1, keepdims=True)
    result: Array = z - _logsumexp(z)[..., None]
    return result


def _expect(p: Array, x: Array) -> Array:
    """`sum p x`, `[*, V] -> [*]`, with `0 * inf = 0`."""
    total: Array = (p * np.where(p == 0, 0, x)).sum(-1)
    return total


def discrete_entropy(logits: ArrayLike, family: str = "shannon", order: float = 1.0, *, support: ArrayLike | None = None) -> Array:
    """Entropy of `softmax(logits)`, `[*, V] -> [*]`, nats.

    Shannon `-sum p log p`; Rényi `log(sum p^a) / (1 - a)`; Tsallis `(1 - sum p^q) / (q - 1)`; min-entropy `-log max p`.

    >>> discrete_entropy([[0.0, 0.0], [2.0, 0.0]]).round(4).tolist()
    [0.6931, 0.3653]
    >>> float(discrete_entropy([2.0, 0.0], "renyi", 2).round(4))
    0.2357

    Source: Shannon 1948, section 6; Rényi 1961, eq. 1.21; Tsallis 1988, eq. 1 with k = 1.
    """
    a, log_p = _order(family, order), log_softmax(logits, support)
    p = np.exp(log_p)
    if a == 0:
        renyi = np.log((log_p > -np.inf).sum(-1))
    elif math.isinf(a):
        renyi = -log_p.max(-1)
    elif abs(a - 1) < 1e-5:  # two terms of the series: the quotient would lose 1e-16 / (a - 1)
        renyi = -_expect(p, log_p) - (a - 1) / 2 * varentropy(logits, support=support)
    else:
        renyi = _logsumexp(a * log_p) / (1 - a)
    return _transform(renyi, family, a)


def discrete_entropy_gradient(logits: ArrayLike, family: str = "shannon", order: float = 1.0, *, support: ArrayLike | None = None) -> Array:
    """Derivative of `discrete_entropy` with respect to the logits, `[*, V] -> [*, V]`.

    Shannon `-p (log p + H)`; Rényi `-a/(a-1) (p^a / sum p^a - p)`; Tsallis is `sum p^q` times Rényi's; min-entropy `p - 1[largest]/ties`.

    >>> discrete_entropy_gradient([2.0, 0.0]).round(4).tolist()
    [-0.21, 0.21]

    Source: the definitions, differentiated through the softmax.
    """
    a, log_p = _order(family, order), log_softmax(logits, support)
    p = np.exp(log_p)
    if a == 0:
        return np.zeros_like(p)
    if math.isinf(a):
        top = log_p == log_p.max(-1, keepdims=True)
        return np.asarray(p - top / top.sum(-1, keepdims=True))
    log_sum = _logsumexp(a * log_p)[..., None]
    if abs(a - 1) < 1e-5:
        surprise = np.where(p > 0, log_p, 0) - _expect(p, log_p)[..., None]  # log p + H
        second = surprise**2 - _expect(p, surprise**2)[..., None]
        gradient = -p * a * (surprise + (a - 1) / 2 * second)
    else:
        gradient = -a / (a - 1) * (np.exp(a * log_p - log_sum) - p)
    return np.exp(log_sum) * gradient if family == "tsallis" else gradient


def varentropy(logits: ArrayLike, *, support: ArrayLike | None = None) -> Array:
    """Variance of the surprise `sum p (log p + H)^2`, `[*, V] -> [*]`, nats squared.

    >>> float(varentropy([2.0, 0.0]).round(4))
    0.42
    """
    log_p = log_softmax(logits, support)
    p = np.exp(log_p)
    shannon = -_expect(p, log_p)[..., None]
    return _expect(p, (np.where(p > 0, log_p, 0) + shannon) ** 2)


def discrete_divergence(logits_p: ArrayLike, logits_q: ArrayLike, order: float = 1.0, *, support: ArrayLike | None = None) -> Array:
    """Rényi divergence `log(sum p^a q^(1-a)) / (a - 1)`, `[*, V], [*, V] -> [*]`, nats: order 1 is KL(p || q), 0 is `-log q(p > 0)`, inf is `log max p/q`.

    >>> float(discrete_divergence([1.0, 0.0], [0.0, 0.0]).round(4))
    0.1109

    Source: van Erven and Harremoës 2014, eq. 1 and definition 3.
    """
    a = _order("renyi", order)
    log_p, log_q = np.broadcast_arrays(log_softmax(logits_p, support), log_softmax(logits_q, support))
    p, present = np.exp(log_p), log_p > -np.inf
    ratio = np.where(present, log_p, 0) - np.where(present, log_q, 0)
    if abs(a - 1) < 1e-5:  # two terms of the series, as in `discrete_entropy`
        kl = _expect(p, ratio)
        variance = 0 if a == 1 else _expect(p, (ratio - kl[..., None]) ** 2)
        return np.asarray(kl + (a - 1) / 2 * variance)
    if math.isinf(a):
        return np.asarray(np.where(present, ratio, -np.inf).max(-1))
    return _logsumexp(np.where(present, log_q if a == 0 else log_q + a * ratio if a < 1 else log_p + (a - 1) * ratio, -np.inf)) / (a - 1)


def bernoulli_entropy(logits: ArrayLike, family: str = "shannon", order: float = 1.0) -> Array:
    """Entropy of a yes with probability `1 / (1 + exp(-logits))`, both terms of it, `[*] -> [*]`, nats.

    >>> bernoulli_entropy([0.0, 2.0]).round(4).tolist()
    [0.6931, 0.3653]
    """
    z = np.asarray(logits, np.float64)
    return discrete_entropy(np.stack((z, np.zeros_like(z)), -1), family, order)


def gaussian_entropy(log_std: ArrayLike, family: str = "shannon", order: float = 1.0) -> Array:
    """Differential entropy of independent Gaussians, `[*, D] -> [*]`, nats: `sum log sigma + D/2 log 2 pi + D/2 log(a)/(a-1)`, the last term D/2 for Shannon.

    Rényi entropies add over dimensions; Tsallis is applied to the sum. Orders > 0, else ValueError.

    >>> float(gaussian_entropy([0.0]).round(4))
    1.4189

    Source: Cover and Thomas, Elements of Information Theory, theorem 8.4.1; Rényi: Nadarajah and Zografos 2003.
    """
    a, log_std = _order(family, order), np.asarray(log_std, np.float64)
    if a == 0:
        raise ValueError("order: got 0, legal is a number > 0 for a continuous distribution")
    d = log_std.shape[-1]
    tail = 1.0 if a == 1 else 0.0 if math.isinf(a) else math.log1p(a - 1) / (a - 1)
    return _transform(log_std.sum(-1) + d / 2 * (math.log(2 * math.pi) + tail), family, a)


def multivariate_gaussian_entropy(scale_tril: ArrayLike, family: str = "shannon", order: float = 1.0) -> Array:
    """Differential entropy of a Gaussian with Cholesky factor `scale_tril`, `[*, D, D] -> [*]`, nats.

    >>> float(multivariate_gaussian_entropy(np.eye(2)).round(4))
    2.8379
    """
    return gaussian_entropy(np.log(np.diagonal(np.asarray(scale_tril, np.float64), axis1=-2, axis2=-1)), family, order)


def gaussian_kl(mean_p: ArrayLike, log_std_p: ArrayLike, mean_q: ArrayLike, log_std_q: ArrayLike) -> Array:
    """KL(p || q) of independent Gaussians, four times `[*, D] -> [*]`, nats.

    >>> float(gaussian_kl([1.0], [0.0], [0.0], [0.0]))
    0.5

    Source: Kingma and Welling 2014, appendix B.
    """
    mean_p, log_std_p, mean_q, log_std_q = (np.asarray(x, np.float64) for x in (mean_p, log_std_p, mean_q, log_std_q))
    difference = log_std_p - log_std_q
    per_dimension = (np.expm1(2 * difference) + ((mean_p - mean_q) * np.exp(-log_std_q)) ** 2) / 2 - difference
    total: Array = per_dimension.sum(-1)
    return total


def _squashed_renyi(mean: float, std: float, a: float) -> float:
    """R_a of `tanh(N(mean, std^2))`, one dimension: panels of Gauss-Legendre on each side of the kink at 0.

    The peak of the integrand lies between the mean and where it would be if log cosh were |u|; twelve widths on either side of both hold everything.
    """
    wide = std / math.sqrt(min(a, 1e3))
    shift = 0.0 if a == 1 else 2 * std**2 * (1 if math.isinf(a) else (a - 1) / a)
    pieces = []
    for side in (1, -1):
        low = max(0.0, side * mean + min(shift, 0) - 12 * wide)
        high = max(0.0, side * mean + max(shift, 0)) + 12 * wide
        edges = np.linspace(low, high, 201)
        half = np.diff(edges)[:, None] / 2
        v = edges[:-1, None] + half * (1 + _NODES)
        log_density = -(((v - side * mean) / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2
        pieces.append((log_density, 2 * (math.log(2) - v - np.log1p(np.exp(-2 * v))), np.log(half * _WEIGHTS)))
    log_density, log_slope, log_weight = (np.concatenate([piece[i].ravel() for piece in pieces]) for i in range(3))
    log_y = log_density - log_slope  # log density of y = tanh(u), at nodes in u
    if abs(a - 1) < 1e-5:  # two terms of the series, as in `discrete_entropy`
        weight = np.exp(log_weight + log_density)
        mean = (weight * log_y).sum()
        return float(-mean - (a - 1) / 2 * (weight * (log_y - mean) ** 2).sum())
    if math.isinf(a):
        return float(-log_y.max())
    return float(_logsumexp(log_weight + a * log_y + log_slope) / (1 - a))


def squashed_gaussian_entropy(mean: ArrayLike, log_std: ArrayLike, family: str = "shannon", order: float = 1.0) -> Array:
    """Differential entropy of `tanh(u)`, `u ~ N(mean, std^2)` with independent dimensions, by quadrature, `[*, D], [*, D] -> [*]`, nats.

    `-E log p(y)` with `log p(y) = log p(u) - log(1 - tanh(u)^2)`. It may be negative, and has a maximum over std. Orders > 0, else ValueError; order infinity
    is found to grid accuracy.

    >>> float(squashed_gaussian_entropy([0.0], np.log([0.8744])).round(4))
    0.6836

    Source: Haarnoja et al. 2018, appendix C, integrated instead of sampled.
    """
    a = _order(family, order)
    if a == 0:
        raise ValueError("order: got 0, legal is a number > 0 for a continuous distribution")
    mean, log_std = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(log_std, np.float64))
    values = [_squashed_renyi(m, math.exp(s), a) for m, s in zip(mean.ravel(), log_std.ravel(), strict=True)]
    return _transform(np.asarray(values).reshape(mean.shape).sum(-1), family, a)


def _multiplier_policy(x: Array, family: str, a: float) -> Array:
    """Maximiser of `<p, x> + entropy(p)`, its multiplier found by bisection: `p` falls as the multiplier rises."""
    top, classes = x.max(-1, keepdims=True), x.shape[-1]
    if family == "renyi":
        low, high = top + a / (1 - a) / classes, top + a / (1 - a)
    elif a > 1:
        low, high = top - a / (a - 1), top
    else:
        low, high = top + a / (1 - a), top + a / (1 - a) * classes ** (1 - a)
    for _ in range(200):
        middle = (low + high) / 2
        u = np.maximum(x - middle if a > 1 else middle - x, 0)
        if family == "renyi":
            p = u ** (-1 / (1 - a))
            p /= p.sum(-1, keepdims=True)
            above = _expect(p, u)[..., None] > a / (1 - a)
        else:
            p = (abs(a - 1) / a * u) ** (1 / (a - 1))
            above = p.sum(-1, keepdims=True) < 1
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    result: Array = p / p.sum(-1, keepdims=True)
    return result


def soft_policy(q: ArrayLike, temperature: ArrayLike, family: str = "shannon", order: float = 1.0, *, support: ArrayLike | None = None) -> Array:
    """Policy that maximises `<p, q> + temperature entropy(p)` over distributions, `[*, V] -> [*, V]`.

    Shannon `softmax(q / tau)`; others by their optimality conditions: Tsallis `q_i - tau a p_i^(a-1) / (a-1) = lambda` where `p_i > 0`, Rényi below 1
    `q_i + tau a p_i^(a-1) / ((1-a) sum p^a) = lambda`. Rényi above 1 is not concave and order 0 has no maximiser: ValueError.

    >>> soft_policy([1.0, 0.7, 0.2, -0.5], 0.6, "tsallis", 2).round(4).tolist()
    [0.625, 0.375, 0.0, 0.0]

    Source: Lee et al. 2018 (Tsallis-2); Blondel et al. 2020, section 4.
    """
    a = _order(family, order)
    if a == 0 or (a > 1 and family != "tsallis"):
        raise ValueError(f"order: got {a} for {family}, legal is an order > 0, and at most 1 for renyi")
    q = np.asarray(q, np.float64)
    x = np.where(True if support is None else support, q, -np.inf) / np.asarray(temperature, np.float64)[..., None]
    return np.exp(log_softmax(x)) if a == 1 else _multiplier_policy(x, family, a)


def soft_value(q: ArrayLike, temperature: ArrayLike, family: str = "shannon", order: float = 1.0, *, support: ArrayLike | None = None) -> Array:
    """Largest `<p, q> + temperature entropy(p)` over distributions, `[*, V] -> [*]`, in the unit of q: `tau logsumexp(q / tau)` for Shannon.

    >>> float(soft_value([1.0, 0.7, 0.2, -0.5], 0.6, "tsallis", 2).round(5))
    1.16875

    Source: as `soft_policy`.
    """
    p = soft_policy(q, temperature, family, order, support=support)
    with np.errstate(divide="ignore"):
        entropy = discrete_entropy(np.log(p), family, order)
    return _expect(p, np.asarray(q, np.float64)) + np.asarray(temperature, np.float64) * entropy


def entropy_regularised_loss(log_probs: ArrayLike, advantages: ArrayLike, entropy: ArrayLike, coef: float = 0.01) -> float:
    """Policy-gradient loss with an entropy bonus, to be minimised: `-mean(log_probs * advantages) - coef * mean(entropy)`, three times `[N] -> one float`.

    The literature writes the coefficient as alpha (SAC, maximum-entropy control: J = E[r + alpha H]) or as beta (A3C: grad log pi A + beta grad H). `entropy`
    is any family's: `discrete_entropy(logits)`, `discrete_entropy(logits, "renyi", 2)`, `discrete_entropy(logits, "tsallis", 2)`, or a Gaussian one.

    >>> entropy_regularised_loss([-0.5, -1.0], [1.0, 2.0], discrete_entropy([[0.0, 0.0], [0.0, 0.0]]), coef=0.1)
    1.1806852819440055

    Source: Williams and Peng 1991; Mnih et al. 2016, section 4 (beta = .01); Haarnoja et al. 2018, eq. 1 (alpha).
    """
    log_probs, advantages, entropy = (np.asarray(x, np.float64) for x in (log_probs, advantages, entropy))
    if log_probs.shape != advantages.shape:
        raise ValueError(f"advantages: got shape {advantages.shape}, legal is that of log_probs: {log_probs.shape}")
    return float(-(log_probs * advantages).mean() - coef * entropy.mean())
