"""What one of several processes holds of a population's environments."""

from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """Process `rank` of `of` that are alike: of n x `of` environments of each member it holds n, counted from n x `rank`."""

    rank: int = 0
    of: int = 1

    def cut(self, whole: np.ndarray, axis: int) -> np.ndarray:
        """The part of an array over all environments along `axis`.

        >>> Part(1, 3).cut(np.arange(6), axis=0).tolist()
        [2, 3]
        """
        each = whole.shape[axis] // self.of
        return whole if self.of == 1 else np.take(whole, range(self.rank * each, (self.rank + 1) * each), axis)


ALONE = Part()
