"""Few labels of many: counts, thinning, priors."""

import numpy as np
import pytest

from entreg.vision import split

LABEL = np.repeat(np.arange(5), 100)


def test_labels_are_even_over_classes_and_members_draw_their_own():
    one, other = (split.split(LABEL, 5, 20, 1.0, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.bincount(LABEL[one.labelled]).tolist() == [4] * 5
    assert sorted(one.pool.tolist()) == list(range(500))
    assert set(one.labelled) != set(other.labelled) and set(one.labelled) <= set(one.pool)


def test_thinning_is_exponential_and_keeps_every_class_labelled():
    found = split.split(LABEL, 5, 20, 50.0, np.random.default_rng(0))
    kept, given = np.bincount(LABEL[found.pool]), np.bincount(LABEL[found.labelled])
    assert kept.tolist() == [100, 37, 14, 5, 2] and given.sum() == 20 and given.min() >= 1 and given.tolist() == sorted(given, reverse=True)


def test_images_without_a_label_are_in_every_pool_and_never_labelled():
    label = np.where(np.arange(500) % 2, LABEL, -1)
    found = split.split(label, 5, 0, 1.0, np.random.default_rng(0))
    assert len(found.labelled) == 250 and len(found.pool) == 500 and (label[found.labelled] >= 0).all()


@pytest.mark.parametrize("labels", [4, 501])
def test_too_few_and_too_many_labels_are_refused(labels):
    with pytest.raises(ValueError, match=f"labels is {labels}; legal are integers from 5, one a class, to 500"):
        split.counts(LABEL, 5, labels, 1.0)


def test_priors_by_name_and_from_a_file(tmp_path):
    label = np.array([0, 0, 0, 1])
    assert split.prior("uniform", label, 2).tolist() == [0.5, 0.5]
    assert split.prior("labels", label, 2).tolist() == split.prior("estimate", label, 2).tolist() == [0.75, 0.25]
    file = tmp_path / "prior.txt"
    file.write_text("0.9\n0.1\n")
    assert split.prior(str(file), label, 2).tolist() == [0.9, 0.1]
    file.write_text("0.9\n0.2\n")
    with pytest.raises(ValueError, match=r"prior: .*prior\.txt"):
        split.prior(str(file), label, 2)


def test_shares_are_estimated_from_a_classifier_trained_under_others():
    """Predictions of a Bayes classifier for two Gaussians, trained where 30 % are of the first, on data of which 80 % are."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000) + np.where(rng.uniform(size=4000) < 0.8, -1.0, 1.0)
    first = 1 / (1 + 0.7 / 0.3 * np.exp(2 * x))
    found = split.estimated(np.stack([first, 1 - first], 1), np.array([0.3, 0.7]))
    assert found[0] == pytest.approx(0.8, abs=0.03)
    assert first.mean() < 0.76  # the mean prediction alone is biased to the shares it was trained under
