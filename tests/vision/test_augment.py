"""Augmentation is what its draws say, image by image."""

import pytest
import torch

pytest.importorskip("kornia")
from entreg.vision.augment import DRAWS, Augmentation

STILL = 0.5  # a draw that does nothing: no mirror, no shift, no rotation


def draws(count=1, **places):
    names = ["flip", "x", "y", "first", "second", "m1", "m2", "cut_x", "cut_y"]
    found = torch.full((count, DRAWS), STILL)
    for name, value in places.items():
        found[:, names.index(name)] = value
    return found


def test_the_middle_of_the_draws_leaves_an_image_as_it_is():
    x = torch.rand(2, 3, 16, 16)
    augmentation = Augmentation((3, 16, 16), flip=True)
    torch.testing.assert_close(augmentation.weak(x, draws(2)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(augmentation.weak(x, draws(2, flip=0.4)), x.flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(Augmentation((3, 16, 16), flip=False).weak(x, draws(2, flip=0.4)), x, rtol=0, atol=1e-5)


def test_a_weak_shift_is_whole_pixels_with_black_around_digits():
    x = torch.rand(1, 1, 8, 8)
    found = Augmentation((1, 8, 8), flip=False).weak(x, draws(x=0.99, y=0.01))
    torch.testing.assert_close(found[0, 0, :-1, 1:], x[0, 0, 1:, :-1], rtol=0, atol=1e-5)
    assert (found[0, 0, -1].abs() < 1e-5).all() and (found[0, 0, :, 0].abs() < 1e-5).all()


def test_a_cut_is_half_as_wide_as_the_image_and_the_rest_stays():
    x = torch.full((1, 1, 8, 8), 0.7)
    found = Augmentation((1, 8, 8), flip=False).strong(x, draws(first=0.0, second=0.0))
    assert (found == 0).sum() == 16 and (found[0, 0, 2:6, 2:6] == 0).all()
    torch.testing.assert_close(found[found > 0], x.flatten()[:48], rtol=0, atol=1e-5)
    corner = Augmentation((1, 8, 8), flip=False).strong(x, draws(first=0.0, second=0.0, cut_x=0.0, cut_y=0.0))
    assert (corner == 0).sum() == 4


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_strong_images_stay_in_range_differ_and_are_their_own_row_alone(shape):
    generator = torch.Generator().manual_seed(0)
    x, given = torch.rand(120, *shape, generator=generator), torch.rand(120, DRAWS, generator=generator)
    augmentation = Augmentation(shape, flip=shape[0] == 3)
    kept = x.clone()
    found = augmentation.strong(x, given)
    assert torch.equal(x, kept) and torch.isfinite(found).all() and found.min() >= -1e-5 and found.max() <= 1 + 1e-5
    assert ((found - augmentation.weak(x, given)).abs().flatten(1).max(1).values > 0.05).all()  # the cut at least
    torch.testing.assert_close(augmentation.strong(x[7:9], given[7:9]), found[7:9], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["rotate", "shear_x", "translate_y", "brightness", "contrast", "solarize", "posterize", "equalize", "sharpness", "colour", "autocontrast"]
)
def test_every_operation_of_colour_images_changes_them(name):
    augmentation = Augmentation((3, 16, 16), flip=False)
    x = 0.2 + 0.5 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    place = (augmentation.operations.index(name) + 0.5) / len(augmentation.operations)
    plain = augmentation.strong(x, draws(2, first=0.0, second=0.0))
    changed = augmentation.strong(x, draws(2, first=place, second=0.0, m1=0.3))
    assert (changed - plain).abs().max() > 0.01
