"""Intervals against SciPy's bootstrap, Student's quantiles and trimmed mean, and their error rates by simulation."""

import numpy as np
import pytest
from scipy import stats

from entreg.statistics import Interval, iqm, iqm_interval, mean_interval, paired_difference, tail, verdict


@pytest.mark.parametrize(("n", "tolerance"), [(4, 2e-3), (5, 1e-3), (8, 1e-4), (30, 1e-6)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_tail_is_that_of_students_quantile(n, tolerance, level):
    exact = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))
    assert -stats.norm.ppf(tail(n, level)) == pytest.approx(-stats.norm.ppf(exact), rel=tolerance)


@pytest.mark.parametrize("n", [6, 20])
def test_mean_interval_is_scipys_percentile_bootstrap_at_the_expanded_level(n):
    values = np.random.default_rng(n).exponential(size=n)
    interval = mean_interval(values, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, confidence_level=1 - 2 * tail(n), rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert interval.value == pytest.approx(values.mean(), rel=1e-12)
    assert (interval.low - theirs.low) / width == pytest.approx(0, abs=0.04)
    assert (interval.high - theirs.high) / width == pytest.approx(0, abs=0.04)


def test_a_curve_gives_at_every_point_what_the_point_alone_gives():
    curve = np.random.default_rng(0).normal(size=(7, 3, 5))
    whole, alone = mean_interval(curve), mean_interval(curve[:, 2, 4])
    assert whole.value.shape == whole.low.shape == (3, 5)
    np.testing.assert_allclose([whole.value[2, 4], whole.low[2, 4], whole.high[2, 4]], [alone.value, alone.low, alone.high], rtol=1e-12)


def test_one_seed_has_no_interval_and_equal_seeds_have_a_width_of_zero():
    one = mean_interval([3.0])
    assert (float(one.value), one.n) == (3.0, 1)
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert np.isnan(iqm_interval([[1.0, 2.0]]).low)
    equal = mean_interval([2.0] * 6)
    np.testing.assert_allclose([equal.low, equal.high], 2.0, rtol=1e-12)


@pytest.mark.parametrize(("n", "plain", "ours"), [(5, 0.14, 0.10), (8, 0.10, 0.08), (20, 0.05, 0.07)])
def test_error_rates_are_those_the_docstring_gives(n, plain, ours):
    """The share of normal data sets of mean 0 whose interval leaves 0 out; the plain percentile interval leaves it out more often than `plain`."""
    data = np.random.default_rng(3).normal(size=(n, 2000))
    interval = mean_interval(data, resamples=1000)
    assert np.mean((interval.low > 0) | (interval.high < 0)) < ours
    level = 1 - 2 * next(a for a in np.linspace(1e-4, 0.2, 4000) if tail(n, 1 - 2 * a) >= 0.025)  # whose expansion is the plain 95 % interval
    short = mean_interval(data, resamples=1000, level=level)
    assert np.mean((short.low > 0) | (short.high < 0)) > plain


def test_pairing_takes_the_common_part_away():
    rng = np.random.default_rng(0)
    seed_effect, gain = rng.normal(scale=100, size=8), rng.normal(1.0, 0.2, size=8)
    paired = paired_difference(seed_effect + gain, seed_effect)
    assert float(paired.value) == pytest.approx(gain.mean())
    assert verdict(paired) == "higher"
    assert verdict(paired_difference(seed_effect, seed_effect + gain)) == "lower"
    assert verdict(paired_difference(rng.normal(size=8), rng.normal(size=8))) == "undecided"


def test_four_pairs_are_too_few_for_a_verdict_however_clear():
    assert verdict(paired_difference([10.0] * 4, [0.0] * 4)) == "too few"
    assert verdict(paired_difference([10.0] * 5, [0.0] * 5)) == "higher"
    touching = Interval(np.asarray(1.0), np.asarray(0.0), np.asarray(2.0), 8)
    assert verdict(touching) == "undecided"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 101])
def test_iqm_is_scipys_trimmed_mean(n):
    scores = np.random.default_rng(n).standard_cauchy(size=n)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), rel=1e-12)


def test_iqm_interval_is_stratified():
    """Tasks of very different level: resampling runs within tasks keeps the mix of tasks, pooling them would not."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 6), scale=0.01) + np.arange(6)
    interval = iqm_interval(scores)
    assert float(interval.value) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert float(interval.high - interval.low) < 0.05
    pooled = stats.bootstrap(
        (scores.reshape(-1),), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile", n_resamples=500, rng=np.random.default_rng(0)
    ).confidence_interval
    assert pooled.high - pooled.low > 0.5


def test_iqm_interval_of_one_task_is_scipys_bootstrap_of_the_trimmed_mean():
    scores = np.random.default_rng(4).normal(size=(12, 1))
    interval = iqm_interval(scores, resamples=10_000)
    theirs = stats.bootstrap(
        (scores[:, 0],),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=10_000,
        confidence_level=1 - 2 * tail(12),
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (interval.low - theirs.low) / width == pytest.approx(0, abs=0.05)
    assert (interval.high - theirs.high) / width == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: mean_interval([]), r"values has shape \(0,\)"),
        (lambda: mean_interval(3.0), r"values has shape \(\)"),
        (lambda: mean_interval([1.0, np.nan]), "values holds nan"),
        (lambda: mean_interval([1.0, 2.0], level=1.0), "level is 1.0"),
        (lambda: mean_interval([1.0, 2.0], resamples=0), "resamples is 0"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"treated has shape \(2,\), baseline \(1,\)"),
        (lambda: iqm([np.inf]), "scores holds inf"),
        (lambda: iqm_interval([1.0, 2.0]), r"scores has shape \(2,\); legal is \(runs, tasks\)"),
    ],
)
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
