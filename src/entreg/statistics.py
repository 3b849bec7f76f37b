r"""What a handful of seeds says: means with intervals, the interquartile mean, paired differences. NumPy only, deterministic.

Shape legend: S seeds (or runs), K tasks, * anything (the points of a curve, or nothing), R resamples.

Every interval is a bootstrap over seeds. With few seeds the plain percentile bootstrap is too short: with 5 normal seeds a nominal 95 % interval of a
difference leaves out the truth 17 % of the time. The quantiles are therefore taken further out, by the ratio of Student's t with its small-sample
factor to the normal quantile ("expanded percentile"): measured error rates on normal data 26 % at 3 seeds, 13 % at 4, 8 % at 5, 6 % at 8, 5 % at 20
(4000 data sets each; exponential data 12 % at 5, 10 % at 8). Below five seeds no interval of resampled means can hold its level.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
DECIDABLE = 5  # seeds from which `verdict` speaks: of four fair coins all agree one time in eight


class Interval(NamedTuple):
    """A value with the interval around it, over `n` seeds; with one seed `low` and `high` are NaN."""

    value: Array
    low: Array
    high: Array
    n: int


def mean_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 4000, seed: int = 0) -> Interval:
    r"""The mean over seeds `(S, *) -> (*)` with its bootstrap interval, in the unit of the values.

    All points of a curve share the same resamples of the seeds, as they belong to the same runs.

    Raises: `ValueError` for no values, values that are not finite, a level outside (0, 1) or less than one resample.

    >>> interval = mean_interval([480.0, 500.0, 470.0, 495.0, 490.0])
    >>> float(interval.value), float(interval.low) >= 470, float(interval.high) <= 500, interval.n
    (487.0, True, True, 5)

    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap: the expanded percentile interval, its tail set for a two-sided level.
    """
    scores = _finite("values", values)
    n = len(scores)
    _check(level, resamples)
    mean = scores.mean(axis=0)
    if n == 1:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), 1)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    means = (weights @ scores.reshape(n, -1)).reshape(resamples, *scores.shape[1:])
    return Interval(mean, *_quantiles(means, n, level), n)


def paired_difference(treated: ArrayLike, baseline: ArrayLike, *, level: float = 0.95, resamples: int = 4000, seed: int = 0) -> Interval:
    r"""The mean of `treated - baseline` over paired seeds `(S, *), (S, *) -> (*)` with its bootstrap interval.

    Raises: `ValueError` for shapes that differ, and as `mean_interval` does.

    >>> float(paired_difference([3.0, 5.0], [1.0, 2.0]).value)
    2.5
    """
    one, other = _finite("treated", treated), _finite("baseline", baseline)
    if one.shape != other.shape:
        raise ValueError(f"treated has shape {one.shape}, baseline {other.shape}; legal are equal shapes, one row a seed")
    return mean_interval(one - other, level=level, resamples=resamples, seed=seed)


def verdict(difference: Interval) -> Literal["higher", "lower", "undecided", "too few"]:
    """What an interval of a scalar difference allows to say: its sign when 0 is outside, and nothing below `DECIDABLE` seeds.

    >>> verdict(paired_difference([1.0, 2.0, 3.0, 2.0, 1.5], [0.0] * 5)), verdict(paired_difference([1.0, 2.0], [0.0, 0.0]))
    ('higher', 'too few')
    """
    if difference.n < DECIDABLE:
        return "too few"
    if float(difference.low) > 0:
        return "higher"
    return "lower" if float(difference.high) < 0 else "undecided"


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean of all scores `(...)`: the mean of what is left when a quarter of them (rounded down) is cut at each end.

    Raises: `ValueError` for no scores or scores that are not finite.

    >>> iqm([0.0, 1.0, 2.0, 100.0])
    1.5

    Source: Agarwal et al. 2021, Deep RL at the Edge of the Statistical Precipice.
    """
    return float(_iqm(_finite("scores", scores).reshape(-1)))


def iqm_interval(scores: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    r"""The interquartile mean of `(S, K)` scores, S runs of each of K tasks, with its stratified bootstrap interval.

    Stratified: the runs of each task are resampled on their own, so that every resample has S runs of every task. The expansion for few runs is that
    of `mean_interval`; rliable has none, its intervals are shorter.

    Raises: `ValueError` for another number of dimensions, and as `mean_interval` does.

    >>> interval = iqm_interval([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    >>> round(float(interval.value), 3), bool(interval.low < interval.value < interval.high)
    (0.5, True)

    Source: Agarwal et al. 2021, stratified bootstrap confidence intervals.
    """
    table = _finite("scores", scores)
    if table.ndim != 2:
        raise ValueError(f"scores has shape {table.shape}; legal is (runs, tasks)")
    _check(level, resamples)
    runs, tasks = table.shape
    value = np.asarray(_iqm(table.reshape(-1)))
    if runs == 1:
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan), 1)
    chosen = np.random.default_rng(seed).integers(runs, size=(resamples, runs, tasks))
    resampled = table[chosen, np.arange(tasks)].reshape(resamples, -1)
    return Interval(value, *_quantiles(_iqm(resampled), runs, level), runs)


def tail(n: int, level: float = 0.95) -> float:
    r"""The lower quantile at which a bootstrap over `n >= 2` seeds is read: `Phi(-sqrt(n / (n - 1)) t)`, `t` Student's quantile with n - 1 degrees.

    `t` comes from its expansion around the normal quantile: 1e-3 relative at 4 seeds, 1e-5 at 8; at 2 and 3 the result is below 1e-6 either way.

    >>> round(tail(5), 4), round(tail(8), 4), round(tail(1000), 4)
    (0.001, 0.0057, 0.0248)

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z, v = NormalDist().inv_cdf((1 + level) / 2), n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    t += (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    return NormalDist().cdf(-math.sqrt(n / v) * t)


def _quantiles(resampled: Array, n: int, level: float) -> tuple[Array, Array]:
    low = tail(n, level)
    ends = np.quantile(resampled, [low, 1 - low], axis=0)
    return ends[0], ends[1]


def _iqm(scores: Array) -> Array:
    """`(..., N) -> (...)`."""
    n = scores.shape[-1]
    cut = n // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : n - cut].mean(axis=-1), dtype=np.float64)


def _finite(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; legal are one or more seeds")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}; legal are finite numbers")
    return array


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; legal are numbers between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; legal are integers from 1")
