"""Images and their labels: scikit-learn's digits, CIFAR and SVHN through `datasets`, a folder of images, a `.npz`.

Shapes: N images `[N, C, H, W]`, uint8, or float32 from 0 to 1; labels `[N]`, -1 where there is none. What is wrong in a file is refused with file and row,
before anything is written.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NEEDS = "pip install 'entreg[vision]'"
HELD_OUT = 0xDA7A  # the seed of what is held out: the same for every run, so that they are judged by the same images


class Hosted(NamedTuple):
    """A data set of the `datasets` hub: its name there, configuration, and columns."""

    path: str
    name: str | None
    image: str
    label: str


HOSTED = {
    "cifar10": Hosted("uoft-cs/cifar10", None, "img", "label"),
    "cifar100": Hosted("uoft-cs/cifar100", None, "img", "fine_label"),
    "svhn": Hosted("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
}
LEGAL = f"digits, {', '.join(HOSTED)}, a folder of images or a .npz file"


class Images(NamedTuple):
    """Training images `[N, C, H, W]` with labels `[N]` (-1: none), test images with labels, and how many classes there are."""

    name: str
    train: Tensor
    label: Tensor
    test: Tensor
    test_label: Tensor
    classes: int

    def checksum(self) -> str:
        """What tells these images and labels from others."""
        digest = hashlib.sha256()
        for part in (self.train, self.label, self.test, self.test_label):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width


def load(data: str, folder: str | None = None, holdout: float = 0.3) -> Images:
    """The images called `data`; see `LEGAL`. `folder` holds a hub data set on this machine (parquet files, or what `save_to_disk` wrote).

    Where there is no test part, a share `holdout` of the labelled images becomes one. Every class has a labelled image.

    Raises: `ValueError` naming file and row, `ImportError` naming the extra.
    """
    if data == "digits":
        return _digits()
    if data in HOSTED:
        return _hosted(data, HOSTED[data], folder)
    if folder is not None:
        raise ValueError(f"folder is {folder!r} beside data {data!r}; legal is a folder with {', '.join(HOSTED)}")
    path = Path(data)
    if path.suffix == ".npz" and path.is_file():
        return _whole(path.stem, *_npz(path), holdout=holdout, source=str(path))
    if path.is_dir():
        return _whole(path.name, *_pictures(path), holdout=holdout, source=str(path))
    raise ValueError(f"data is {data!r}, and there is no such file or folder; legal are {LEGAL}")


def as_float(images: Tensor) -> Tensor:
    """Images as float32 from 0 to 1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"digits need scikit-learn: {NEEDS}") from error
    found = load_digits()
    images = torch.from_numpy((found.images * 255 / 16).round().astype(np.uint8))[:, None]
    label = torch.from_numpy(found.target.astype(np.int64))
    test = torch.arange(len(images)) % 3 == 2  # 599 of 1797
    return Images("digits", images[~test], label[~test], images[test], label[test], 10)


# ---------------------------------------------------------------- datasets


def _hosted(name: str, hosted: Hosted, folder: str | None) -> Images:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name} needs datasets: {NEEDS}") from error
    try:
        if folder is not None and (Path(folder) / "dataset_dict.json").exists():
            parts = datasets.load_from_disk(folder)
        elif folder is not None:
            parts = datasets.load_dataset(folder)
        else:
            parts = datasets.load_dataset(hosted.path, hosted.name)
    except Exception as error:  # whatever the hub, its cache and its readers raise
        where = hosted.path if folder is None else folder
        raise ValueError(f"data {name}: {where} cannot be loaded by datasets: {str(error).partition(chr(10))[0]}") from error
    if not {"train", "test"} <= set(parts):
        raise ValueError(f"data {name} has the parts {', '.join(parts)}; legal are train and test")
    for part in ("train", "test"):
        if not {hosted.image, hosted.label} <= set(parts[part].column_names):
            raise ValueError(f"data {name} {part} has the columns {', '.join(parts[part].column_names)}; legal are {hosted.image} and {hosted.label}")
    train, test = (_columns(parts[part].cast_column(hosted.image, datasets.Image(decode=False)), hosted, f"{name} {part}") for part in ("train", "test"))
    classes = int(train[1].max()) + 1
    _check_labels(train[1], classes, f"{name} train", empty=True)
    _check_labels(test[1], classes, f"{name} test")
    return Images(name, *train, *test, classes)


def _columns(part: Any, hosted: Hosted, source: str) -> tuple[Tensor, Tensor]:
    labels = part[hosted.label]
    if empty := [row for row, label in enumerate(labels) if label is None]:
        raise ValueError(f"data {source}, row {empty[0]} has no label; legal are integers")
    images = _stacked((f"{source}, row {row}", _picture(one)) for row, one in enumerate(part[hosted.image]))
    return images, torch.tensor(labels, dtype=torch.int64)


def _picture(stored: Any) -> Any:
    """What PIL opens of an image that `datasets` has not decoded: its bytes, or the file it lies in; nothing is no image either."""
    if stored is None or stored["bytes"] is not None:
        return io.BytesIO(b"" if stored is None else stored["bytes"])
    return stored["path"]


# ---------------------------------------------------------------- files


def _stacked(pictures: Iterable[tuple[str, Any]]) -> Tensor:
    """Pictures (a name for messages, and what PIL opens) as `[N, C, H, W]`; gray where all of them are."""
    from PIL import Image

    found: list[np.ndarray] = []
    first = ""
    for name, given in pictures:
        try:
            with Image.open(given) as picture:
                if picture.mode not in EIGHT_BITS:
                    raise ValueError(f"its mode is {picture.mode}, legal are {', '.join(EIGHT_BITS)}")
                one = np.asarray(picture.convert("L" if picture.mode in GRAY else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"data: {name} is no image that can be decoded: {str(error) or type(error).__name__}") from None
        if found and one.shape != found[0].shape:
            raise ValueError(f"data: {name} has shape {one.shape}, {first} {found[0].shape}; legal are images of one size, all gray or all in colour")
        first = first or name
        found.append(one)
    if not found:
        raise ValueError("data: there are no images")
    images = np.stack(found)
    return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2).copy())


Part = tuple[Tensor, Tensor]  # images and labels
GRAY = ("1", "L", "LA")  # modes of PIL; those of more than eight bits would be clipped
EIGHT_BITS = (*GRAY, "P", "RGB", "RGBA", "CMYK", "YCbCr")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def _pictures(folder: Path) -> tuple[Part, Part | None]:
    """`folder/CLASS/*`, or `folder/{train,test}/CLASS/*` and perhaps images without a class in `folder/unlabelled/`."""
    split = (folder / "train").is_dir()
    train = folder / "train" if split else folder
    names = sorted(path.name for path in train.iterdir() if path.is_dir())
    if len(names) < 2:
        raise ValueError(f"data: {train} has {len(names)} folders; legal are two or more, one a class")
    chosen = _listed(train, names)
    if split and (folder / "unlabelled").is_dir():
        chosen += [(path, -1) for path in sorted((folder / "unlabelled").rglob("*")) if path.suffix.lower() in ENDINGS]
    test = None
    if split and (folder / "test").is_dir():
        if strange := sorted({path.name for path in (folder / "test").iterdir() if path.is_dir()} - set(names)):
            raise ValueError(f"data: {folder / 'test' / strange[0]} is no class of {train}; legal are {', '.join(names)}")
        test = _opened(_listed(folder / "test", names, empty=True))
    return _opened(chosen), test


def _listed(folder: Path, names: Sequence[str], *, empty: bool = False) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(names):
        paths = [path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in ENDINGS]
        if not paths and not empty:
            raise ValueError(f"data: class {folder / name} has no image; legal are classes with an image each, ending in {', '.join(sorted(ENDINGS))}")
        found += [(path, label) for path in paths]
    return found


def _opened(chosen: Sequence[tuple[Path, int]]) -> Part:
    return _stacked((str(path), path) for path, _ in chosen), torch.tensor([label for _, label in chosen], dtype=torch.int64)


def _npz(path: Path) -> tuple[Part, Part | None]:
    """`images` with `labels`, and perhaps `test_images` with `test_labels`."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:  # numpy leaves a torn file open
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib, numpy and the system each have their own
        raise ValueError(f"data: {path} cannot be read as .npz with arrays of numbers: {error}") from None
    if missing := sorted({"images", "labels"} - set(arrays)):
        raise ValueError(f"data: {path} lacks {', '.join(missing)}; legal are images and labels, and test_images and test_labels")
    train = _array(f"{path}, images", arrays["images"]), _integers(f"{path}, labels", arrays["labels"], len(arrays["images"]))
    if "test_images" not in arrays:
        return train, None
    if "test_labels" not in arrays:
        raise ValueError(f"data: {path} has test_images and no test_labels; legal are both or none")
    test = _array(f"{path}, test_images", arrays["test_images"])
    if test.shape[1:] != train[0].shape[1:] or test.dtype != train[0].dtype:
        raise ValueError(
            f"data: {path}: test_images are {list(test.shape[1:])} in {test.dtype}, images {list(train[0].shape[1:])} in {train[0].dtype}; legal are equal ones"
        )
    return train, (test, _integers(f"{path}, test_labels", arrays["test_labels"], len(test)))


def _array(source: str, array: np.ndarray) -> Tensor:
    if array.ndim not in (3, 4) or array.dtype.kind not in "fu" or (array.dtype.kind == "u" and array.dtype != np.uint8) or not array.size:
        raise ValueError(f"data: {source} are {array.dtype} of shape {array.shape}; legal are uint8, or floats from 0 to 1, [N, H, W] or [N, H, W, C]")
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        raise ValueError(f"data: {source} have {array.shape[3]} channels (shape {array.shape}); legal are 1 and 3, the last dimension")
    images = array[..., None] if array.ndim == 3 else array
    if images.dtype != np.uint8:
        flat = images.reshape(len(images), -1)
        wrong = ~((flat >= 0) & (flat <= 1))  # NaN too
        if wrong.any():
            row = int(wrong.any(1).argmax())
            raise ValueError(f"data: {source}, row {row} holds {flat[row][wrong[row]][0]}; legal are finite numbers from 0 to 1")
        images = images.astype(np.float32)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _integers(source: str, array: np.ndarray, count: int) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise ValueError(f"data: {source} are {array.dtype} of shape {array.shape}; legal are {count} integers")
    return torch.from_numpy(array.astype(np.int64))


# ---------------------------------------------------------------- what holds for all


def _whole(name: str, train: Part, test: Part | None, *, holdout: float, source: str) -> Images:
    """Checked, and with a test part."""
    classes = int(train[1].max()) + 1
    _check_labels(train[1], classes, source, empty=True)
    if test is not None:
        if test[0].shape[1:] != train[0].shape[1:]:
            raise ValueError(f"data: {source}: test images are {list(test[0].shape[1:])}, training images {list(train[0].shape[1:])}; legal are equal ones")
        _check_labels(test[1], classes, f"{source} (test)")
        return Images(name, *train, *test, classes)
    known = (train[1] >= 0).nonzero()[:, 0]
    order = known[torch.from_numpy(np.random.default_rng(HELD_OUT).permutation(len(known)))]
    held = order[: int(holdout * len(known))]
    kept = torch.ones(len(train[1]), dtype=torch.bool)
    kept[held] = False
    if not len(held):
        raise ValueError(f"holdout is {holdout} of {len(known)} labelled images of {source}, which is none; legal is a share that leaves a test image")
    _check_labels(train[1][kept], classes, f"{source} without the share {holdout} held out", empty=True, rows=False)
    return Images(name, train[0][kept], train[1][kept], train[0][held], train[1][held], classes)


def _check_labels(label: Tensor, classes: int, source: str, *, empty: bool = False, rows: bool = True) -> None:
    """Labels from -1 (only where `empty` classes are looked for: in training) to below `classes`; every class has one. `rows`: those of the file."""
    least = -1 if empty else 0
    wrong = (label < least) | (label >= classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"data: {source}, row {row}: label {int(label[row])}; legal are {least} to {classes - 1}{' (-1: none)' if empty else ''}")
    if classes < 2:
        raise ValueError(f"data: {source} has {classes} classes; legal are two or more")
    if empty and classes > len(label):
        raise ValueError(
            f"data: {source}, row {int(label.argmax())}: label {classes - 1} of {len(label)} images; legal are classes 0, 1, ... with an image each"
        )
    if empty and bool((missing := torch.bincount(label[label >= 0], minlength=classes) == 0).any()):
        where = f", and row {int(label.argmax())} has label {classes - 1}" if rows else ""
        raise ValueError(f"data: {source}: class {int(missing.nonzero()[0])} has no labelled image{where}; legal are classes 0, 1, ... with one each")
    if not len(label):
        raise ValueError(f"data: {source} has no images")
