"""Weak and strong augmentation, every number of it drawn by the caller: what an image becomes depends on its row of uniforms alone.

Shapes: B images `[B, C, H, W]` in [0, 1]; draws `[B, DRAWS]` uniform in [0, 1). kornia does the work, on all images at once.

Weak: a shift by up to an eighth of the size and, in colour, a mirror image half of the time. Strong: two operations of RandAugment more, and a square cut out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DRAWS = 9  # flip, shift x and y, two operations, their two magnitudes, x and y of the cut
ROTATION, SHEAR, TRANSLATION = 30.0, 0.3, 0.3  # degrees; slope; share of the size
WARPS = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
GRAY = ("brightness", "contrast")
COLOUR = ("autocontrast", "brightness", "colour", "contrast", "equalize", "posterize", "sharpness", "solarize")


class Augmentation:
    """`weak` and `strong` for images of one shape; gray ones come in black from outside, those in colour are continued by their mirror image.

    Source: Cubuk et al. 2020 (arXiv:1909.13719) with the ranges of Sohn et al. 2020 (arXiv:2001.07685); DeVries and Taylor 2017 for the cut.
    There the operations follow each other; here all warps of an image are one, and what concerns colour comes after it.
    """

    def __init__(self, shape: tuple[int, int, int], flip: bool) -> None:
        try:
            import kornia  # noqa: F401
        except ImportError as error:
            raise ImportError("augmentation needs kornia: pip install 'entreg[vision]'") from error
        self.channels, self.height, self.width = shape
        self.flip = flip
        self.colours = GRAY if self.channels == 1 else COLOUR
        self.operations = (*WARPS, *self.colours)

    def weak(self, images: Tensor, draws: Tensor) -> Tensor:
        """Shifted, perhaps mirrored images `[B, C, H, W]`."""
        return self._warped(self._flipped(images, draws), self._shift(draws), torch.zeros(len(images)), torch.zeros(len(images), 2))

    def strong(self, images: Tensor, draws: Tensor) -> Tensor:
        """Weakly augmented images with two operations more and a square, half the size wide, cut out."""
        shift, angle, shear = self._shift(draws), torch.zeros(len(images)), torch.zeros(len(images), 2)
        size = torch.tensor([self.width, self.height])
        chosen = (draws[:, 3:5] * len(self.operations)).long()
        for turn in range(2):
            signed = 2 * draws[:, 5 + turn] - 1
            angle = angle + torch.where(chosen[:, turn] == 1, ROTATION * signed, 0.0)
            for axis in range(2):
                shear[:, axis] += torch.where(chosen[:, turn] == 2 + axis, SHEAR * signed, 0.0)
                shift[:, axis] += torch.where(chosen[:, turn] == 4 + axis, TRANSLATION * size[axis] * signed, 0.0)
        found = self._warped(self._flipped(images, draws), shift, angle, shear)
        for turn in range(2):
            for index, name in enumerate(self.colours):
                rows = (chosen[:, turn] == len(WARPS) + index).nonzero()[:, 0]
                if len(rows):
                    found[rows] = _CHANGES[name](found[rows], draws[rows, 5 + turn]).clamp(0, 1)
        return self._cut(found, draws[:, 7:9])

    def _flipped(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images) if self.flip else images

    def _shift(self, draws: Tensor) -> Tensor:
        """Whole pixels, `[B, 2]`, every number of them equally likely."""
        most = torch.tensor([self.width // 8, self.height // 8])
        return (draws[:, 1:3] * (2 * most + 1)).floor() - most

    def _warped(self, images: Tensor, shift: Tensor, angle: Tensor, shear: Tensor) -> Tensor:
        from kornia.geometry.transform import get_affine_matrix2d, warp_affine

        centre = torch.tensor([[(self.width - 1) / 2, (self.height - 1) / 2]]).expand(len(images), 2)
        slope = shear.atan()
        matrix = get_affine_matrix2d(shift, centre, torch.ones(len(images), 2), angle, slope[:, 0], slope[:, 1])
        padding = "zeros" if self.channels == 1 else "reflection"
        found: Tensor = warp_affine(images, matrix[:, :2], (self.height, self.width), padding_mode=padding, align_corners=True)
        return found

    def _cut(self, images: Tensor, draws: Tensor) -> Tensor:
        """A square around a random pixel becomes black, in colour gray."""
        across, down = draws[:, 0] * self.width, draws[:, 1] * self.height
        columns = (torch.arange(self.width) + 0.5 - across[:, None]).abs() < self.width / 4
        rows = (torch.arange(self.height) + 0.5 - down[:, None]).abs() < self.height / 4
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], 0.0 if self.channels == 1 else 0.5, images)


def _factor(draws: Tensor) -> Tensor:
    """Between .05 and .95: how much of the image is kept."""
    return 0.05 + 0.9 * draws


def _blend(images: Tensor, other: Tensor, draws: Tensor) -> Tensor:
    return other + _factor(draws)[:, None, None, None] * (images - other)


def _brightness(images: Tensor, draws: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), draws)


def _contrast(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    found: Tensor = adjust_contrast_with_mean_subtraction(images, _factor(draws))
    return found


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return _blend(images, rgb_to_grayscale(images).expand_as(images), draws)


def _autocontrast(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.enhance import normalize_min_max

    found: Tensor = normalize_min_max(images)
    return found


def _equalize(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.enhance import equalize

    found: Tensor = equalize(images)
    return found


def _posterize(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.enhance import posterize

    found: Tensor = posterize(images, 4 + (draws * 5).int())
    return found


def _sharpness(images: Tensor, draws: Tensor) -> Tensor:
    from kornia.enhance import sharpness

    found: Tensor = sharpness(images, _factor(draws))
    return found


def _solarize(images: Tensor, draws: Tensor) -> Tensor:
    return torch.where(images < draws[:, None, None, None], images, 1 - images)


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "colour": _colour,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}
