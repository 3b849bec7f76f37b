"""Few labels of many: which training images keep their label, how classes are thinned, and priors over classes.

Shapes: L labelled images of a member, U of its pool (all that it trains on, labelled ones too), V classes. Counts are the same for every seed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from entreg import points

Ints = NDArray[np.int64]
PRIORS = ("uniform", "labels", "estimate")


class Split(NamedTuple):
    """Rows of the training images: with a label `[L]`, and all that are trained on `[U]`."""

    labelled: Ints
    pool: Ints


def counts(label: Ints, classes: int, labels: int, imbalance: float) -> tuple[Ints, Ints]:
    """How many images of each class are kept, and how many keep their label, `[V]` each; `labels` 0: all.

    Class k keeps `imbalance ** (-k / (V - 1))` of its images; labels are shared out in proportion, one a class at least.

    Raises: `ValueError` for more labels than there are, or fewer than classes.

    >>> [count.tolist() for count in counts(np.repeat([0, 1, 2], 90), 3, 12, 9.0)]
    [[90, 30, 10], [8, 3, 1]]
    """
    there = np.bincount(label[label >= 0], minlength=classes)
    kept = np.maximum(1, np.floor(there * imbalance ** (-np.arange(classes) / (classes - 1)) + 1e-9)).astype(np.int64)
    if labels == 0:
        return kept, kept
    if not classes <= labels <= kept.sum():
        raise ValueError(f"labels is {labels}; legal are integers from {classes}, one a class, to {kept.sum()}, or 0 for all")
    even = bool(labels % classes == 0 and imbalance == 1 and kept.min() >= labels // classes)
    share = np.full(classes, labels / classes) if even else kept * labels / kept.sum()
    given = np.clip(np.floor(share), 1, kept).astype(np.int64)
    while given.sum() != labels:  # the largest remainder gets one more, the smallest one less
        room = np.where(given < kept, share - given, -np.inf) if given.sum() < labels else np.where(given > 1, given - share, -np.inf)
        given[room.argmax()] += 1 if given.sum() < labels else -1
    return kept, given


def split(label: Ints, classes: int, labels: int, imbalance: float, rng: np.random.Generator) -> Split:
    """A member's labelled images and pool; images without a label are in every pool."""
    kept, given = counts(label, classes, labels, imbalance)
    labelled, pool = [], [np.flatnonzero(label < 0)]
    for k in range(classes):
        rows = rng.permutation(np.flatnonzero(label == k))[: kept[k]]
        labelled.append(rows[: given[k]])
        pool.append(rows)
    return Split(np.concatenate(labelled), np.concatenate(pool))


def prior(text: str, label: Ints, classes: int) -> NDArray[np.float64]:
    """Class probabilities `[V]`: uniform, the shares among a member's `label [L]` (`estimate` begins there), or a text file with one a line.

    Raises: `ValueError` as `entreg.points.prior` does.
    """
    if text in ("labels", "estimate"):
        shares: NDArray[np.float64] = np.bincount(label, minlength=classes) / len(label)
        return shares
    return points.prior(text, classes)


def estimated(probs: NDArray[np.float64], trained: NDArray[np.float64], steps: int = 50) -> NDArray[np.float64]:
    """Class shares `[V]` of unlabelled images by maximum likelihood, from predictions `[N, V]` of a classifier that was trained under the shares `trained [V]`.

    Expectation maximisation: `pi <- mean_x normalised(p(.|x) pi / trained)`.

    >>> sharp = np.array([[0.999, 0.001]] * 90 + [[0.001, 0.999]] * 10)
    >>> estimated(sharp, np.array([0.5, 0.5])).round(2).tolist()
    [0.9, 0.1]

    Source: Saerens, Latinne and Decaestecker 2002, eq. 2.4 and 2.9.
    """
    shares = trained.copy()
    for _ in range(steps):
        weighted = probs * (shares / trained)
        shares = (weighted / weighted.sum(1, keepdims=True)).mean(0)
    kept: NDArray[np.float64] = np.maximum(shares, 1e-3)
    kept /= kept.sum()
    return kept
