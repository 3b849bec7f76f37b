"""Calibration figures against brute force and known answers."""

import numpy as np
import pytest

from entreg import calibration

RNG = np.random.default_rng(0)


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    p, right = RNG.uniform(size=200), RNG.uniform(size=200) < 0.6
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (p > low) & (p <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    assert calibration.calibration_error(p, right) == pytest.approx(expected, abs=1e-12)
    assert calibration.calibration_error([1.0, 0.0], [True, False]) == 0


@pytest.mark.parametrize(("confidence", "correct"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([float("nan")], [1])])
def test_what_is_no_confidence_is_refused(confidence, correct):
    with pytest.raises(ValueError, match="confidence"):
        calibration.calibration_error(confidence, correct)


def test_the_best_temperature_is_the_best_of_a_fine_grid_and_undoes_scaling():
    logits = RNG.normal(size=(500, 4))
    labels = np.array([RNG.choice(4, p=np.exp(z) / np.exp(z).sum()) for z in logits])
    found = calibration.best_temperature(2.5 * logits, labels)
    grid = np.exp(np.linspace(-1, 3, 2000))
    losses = [calibration.negative_log_likelihood(2.5 * logits, labels, t) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=3e-3)
    assert 2.0 < found < 3.1
    assert calibration.best_temperature(logits, logits.argmax(1)) == pytest.approx(calibration.COLDEST, rel=0.01)


def test_recall_is_of_each_class():
    assert calibration.recalls([0, 2, 2], [0, 2, 0], 3).tolist() == pytest.approx([0.5, float("nan"), 1.0], nan_ok=True)
