"""How good the probabilities of a classifier are: calibration error, best temperature, recall of each class. NumPy in, floats out.

Shapes: N items, V classes; logits are unnormalised log-probabilities, confidences the largest probability of an item.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are looked at; where every item is right, ever lower ones are better


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    r"""Expected calibration error of confidences `[N]` in [0, 1] and whether each item is right `[N]`: `sum_b n_b / N |accuracy_b - confidence_b|`.

    Bins are of equal width; a confidence on an edge belongs to the bin below.

    Raises: `ValueError` for no items, other shapes, or confidences outside [0, 1].

    >>> round(calibration_error([0.9, 0.9, 0.9, 0.9], [1, 1, 0, 0]), 6)
    0.4

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != right.shape or not len(p):
        raise ValueError(f"confidence has shape {p.shape}, correct {right.shape}; legal are two equally long rows")
    if not ((p >= 0) & (p <= 1 + 1e-6)).all():
        raise ValueError(f"confidence goes from {p.min()} to {p.max()}; legal are numbers from 0 to 1")
    bin_of = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, right - p, bins)
    return float(np.abs(gap).sum() / len(p))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of `-log softmax(logits / temperature)[label]`, nats, of logits `[N, V]` and labels `[N]`.

    >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 4)
    0.6931
    """
    z = np.asarray(logits, np.float64) / temperature
    z = z - z.max(-1, keepdims=True)
    return float((np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), np.asarray(labels)]).mean())


def best_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature in [.05, 20] with the least negative log-likelihood of logits `[N, V]` and labels `[N]`; above 1: the classifier is overconfident.

    >>> logits = np.log([[0.9, 0.1]] * 10)
    >>> round(best_temperature(logits, [0] * 9 + [1]), 3), round(best_temperature(3 * logits, [0] * 9 + [1]), 3)
    (1.0, 3.0)

    Source: Guo et al. 2017, section 4.2, temperature scaling (there on a validation set).
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: negative_log_likelihood(logits, labels, float(np.exp(log))),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(np.exp(found.x))


def recalls(predicted: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.float64]:
    """The share of each class's items that is found, `[V]`; NaN for a class without items.

    >>> recalls([0, 1, 1, 1], [0, 0, 1, 1], 3).tolist()
    [0.5, 1.0, nan]
    """
    guess, truth = np.asarray(predicted), np.asarray(labels)
    count = np.bincount(truth, minlength=classes).astype(np.float64)
    hits = np.bincount(truth[guess == truth], minlength=classes)
    found: NDArray[np.float64] = np.divide(hits, count, out=np.full(classes, np.nan), where=count > 0)
    return found
