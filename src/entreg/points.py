"""Points for clustering and generators: handwritten digits, or a `.npz` of the user's; and priors over classes.

Shapes: N items, D numbers of one. What is wrong in a file is refused with the file and the row, before anything is written.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIGITS = "digits"
LARGEST = 1e100  # of which squares can be summed
NEEDS = "scikit-learn is not installed; digits, k-means and scores need it: pip install 'entreg[vision]'"


class Points(NamedTuple):
    """Items `x [N, D]` in float32 and, where they are known, their classes `y [N]`; `picture` is the shape of an item that is one."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64] | None
    picture: tuple[int, int] | None


def load(name: str) -> Points:
    """The points called `digits` (scikit-learn's 1797 of 8 x 8, from 0 to 1), or those of a `.npz`.

    The file holds numbers `x [N, D]` or pictures `x [N, H, W]`, and may hold classes `y [N]`, integers from 0 each of which has an item. Its columns are
    shifted and scaled to mean 0 and deviation 1, those of pictures together.

    Raises: `ValueError` naming file and row, `ImportError` without scikit-learn.
    """
    if name == DIGITS:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(NEEDS) from error
        found = load_digits()
        return Points(name, (found.data / 16).astype(np.float32), found.target.astype(np.int64), (8, 8))
    if not name.endswith(".npz"):
        raise ValueError(f"data is {name!r}; legal are digits, or a .npz file with x and perhaps y")
    arrays = _arrays(Path(name))
    x = _numbers(name, arrays.get("x"))
    picture = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    axes = (0, 1, 2) if picture else (0,)
    spread = x.std(axes, keepdims=True)
    scaled = (x - x.mean(axes, keepdims=True)) / np.where(spread > 0, spread, 1)
    return Points(Path(name).stem, scaled.reshape(len(x), -1).astype(np.float32), _classes(name, arrays.get("y"), len(x)), picture)


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("x", "y") if name in file.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:  # AttributeError: a .npy under another name
        raise ValueError(f"data: {path} cannot be read as .npz with arrays of numbers: {error}") from None


def _numbers(name: str, x: NDArray[np.generic] | None) -> NDArray[np.float64]:
    if x is None or x.ndim not in (2, 3) or x.dtype.kind not in "fiub" or min(x.shape) < 1 or len(x) < 2:
        got = "absent" if x is None else f"{x.dtype} of shape {x.shape}"
        raise ValueError(f"data: {name}: x is {got}; legal are numbers [N, D] or pictures [N, H, W], at least two items")
    found = x.astype(np.float64)
    wrong = np.argwhere(~(np.abs(found.reshape(len(found), -1)) <= LARGEST))  # NaN too
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"data: {name}, row {row}: x[{column}] is {found.reshape(len(found), -1)[row, column]}; legal are finite numbers up to {LARGEST:g}")
    return found


def _classes(name: str, y: NDArray[np.generic] | None, items: int) -> NDArray[np.int64] | None:
    if y is None:
        return None
    if y.shape != (items,) or y.dtype.kind not in "iu":
        raise ValueError(f"data: {name}: y is {y.dtype} of shape {y.shape}; legal are {items} integers")
    found = y.astype(np.int64)
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        raise ValueError(f"data: {name}, row {row}: y is {found[row]}; legal are classes from 0")
    used = set(found.tolist())
    if len(used) <= found.max():
        row, empty = int(found.argmax()), next(kind for kind in range(items) if kind not in used)
        raise ValueError(f"data: {name}: class {empty} has no item, and row {row} has class {found[row]}; legal are classes 0, 1, ... with an item each")
    return found


def prior(text: str, classes: int) -> NDArray[np.float64]:
    """Class probabilities `[K]`: uniform, or those of a text file with one a line.

    Raises: `ValueError` naming file and row for what is no probability, another number of lines, and a sum that is not 1.

    >>> prior("uniform", 4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    if text == "uniform":
        return np.full(classes, 1 / classes)
    try:
        data = Path(text).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"prior: {text} cannot be read: {error}; legal are uniform, or a text file with a probability a line") from None
    try:
        lines = [(row, line.strip()) for row, line in enumerate(data.decode().splitlines(), 1) if line.strip()]
    except UnicodeDecodeError as error:
        row = len(f"{data[: error.start].decode()}.".splitlines())
        raise ValueError(f"prior: {text}, row {row}: byte {data[error.start]:#04x} is not UTF-8; legal are probabilities above 0") from None
    found = []
    for row, line in lines:
        try:
            value = float(line)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise ValueError(f"prior: {text}, row {row}: {line!r:.40}; legal are probabilities above 0")
        found.append(value)
    if len(found) != classes:
        raise ValueError(f"prior: {text} has {len(found)} rows; legal are {classes}, one a class")
    if abs(sum(found) - 1) > 1e-3:
        raise ValueError(f"prior: {text}: the rows sum to {sum(found):.6g}; legal is 1")
    return np.array(found) / sum(found)
