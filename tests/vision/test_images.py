"""Every kind of data loads, and what is wrong in it is refused with file and row."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from entreg.vision import images

RNG = np.random.default_rng(0)


def arrays(**changes):
    """A sound .npz of twelve gray images of three classes."""
    given = {"images": RNG.integers(0, 256, (12, 8, 8), dtype=np.uint8), "labels": np.arange(12) % 3, **changes}
    return {name: value for name, value in given.items() if value is not None}


def saved(path, **changes):
    np.savez(path, **arrays(**changes))
    return str(path)


def put(array, place, value):
    changed = np.array(array)
    changed[place] = value
    return changed


def test_digits_have_a_test_part_and_all_classes():
    pytest.importorskip("sklearn")
    found = images.load("digits")
    assert (found.train.shape, found.test.shape, found.classes) == ((1198, 1, 8, 8), (599, 1, 8, 8), 10)
    assert found.train.dtype == torch.uint8 and int(found.train.max()) == 255
    assert set(found.label.tolist()) == set(found.test_label.tolist()) == set(range(10))


def test_a_npz_is_split_into_what_is_trained_on_and_what_judges(tmp_path):
    given = arrays(labels=put(np.arange(12) % 3, 5, -1))
    found = images.load(saved(tmp_path / "set.npz", **given))
    assert (len(found.label), len(found.test_label), found.shape, found.classes) == (9, 3, (1, 8, 8), 3)
    assert (found.label == -1).sum() == 1 and (found.test_label >= 0).all()
    together = sorted(int(one.sum()) for one in torch.cat([found.train, found.test]))
    assert together == sorted(int(one.sum()) for one in given["images"])
    again = images.load(saved(tmp_path / "set.npz", **given))
    assert torch.equal(found.test, again.test)


def test_colour_comes_last_in_a_file_and_first_in_a_tensor(tmp_path):
    picture = RNG.uniform(size=(4, 8, 9, 3)).astype(np.float64)
    found = images.load(saved(tmp_path / "x.npz", images=picture, labels=[0, 1, 0, 1], test_images=picture, test_labels=[0, 1, 0, 1]))
    assert found.shape == (3, 8, 9)
    torch.testing.assert_close(images.as_float(found.test)[1, 2], torch.from_numpy(picture[1, :, :, 2]).float())


FLOATS = RNG.uniform(size=(12, 8, 8)).astype(np.float32)
WRONG = {
    "nan": ({"images": put(FLOATS, (7, 1, 1), np.nan)}, "images, row 7 holds nan"),
    "minus infinity": ({"images": put(FLOATS, (3, 0, 0), -np.inf)}, "images, row 3 holds -inf"),
    "not scaled": ({"images": put(FLOATS, (2, 0, 0), 17.0)}, "images, row 2 holds 17"),
    "below": ({"labels": put(np.arange(12) % 3, 4, -2)}, r"row 4: label -2; legal are -1 to 2"),
    "far above": ({"labels": put(np.arange(12) % 3, 8, 10**9)}, r"row 8: label 999999999|row 8: label 1000000000"),
    "empty class": ({"labels": np.where(np.arange(12) % 3 == 1, 0, np.arange(12) % 3)}, "class 1 has no labelled image, and row 2 has label 2"),
    "one class": ({"labels": np.zeros(12, np.int64)}, "has 1 classes"),
    "no labels": ({"labels": None}, "lacks labels"),
    "too few labels": ({"labels": np.arange(5) % 3}, "labels are int64 of shape .5,.; legal are 12 integers"),
    "labels are numbers": ({"labels": np.arange(12) / 3}, "legal are 12 integers"),
    "signed images": ({"images": np.zeros((12, 8, 8), np.int16)}, "images are int16"),
    "two channels": ({"images": np.zeros((12, 8, 8, 2), np.uint8)}, "2 channels"),
    "flat": ({"images": np.zeros((12, 64), np.uint8)}, "shape .12, 64."),
    "objects": ({"images": np.array([{}] * 12)}, "cannot be read"),
    "other size": ({"test_images": np.zeros((3, 9, 8), np.uint8), "test_labels": [0, 1, 2]}, "test_images are .1, 9, 8."),
    "strange test label": ({"test_images": np.zeros((3, 8, 8), np.uint8), "test_labels": [0, 3, 1]}, r"\(test\), row 1: label 3; legal are 0 to 2"),
    "unlabelled test": ({"test_images": np.zeros((3, 8, 8), np.uint8), "test_labels": [0, 1, -1]}, r"\(test\), row 2: label -1"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_in_a_npz_is_said_with_file_and_row(name, tmp_path):
    changes, words = WRONG[name]
    file = saved(tmp_path / "set.npz", **changes)
    with pytest.raises(ValueError, match=words) as said:
        images.load(file)
    assert "set.npz" in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz(content, tmp_path):
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.npz cannot be read as \.npz"):
        images.load(str(tmp_path / "set.npz"))


def folder(root, *, names=("a", "b"), count=3, size=(9, 8), mode="RGB"):
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(root / name / f"{index}.png")


def test_a_folder_with_train_test_and_unlabelled(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", names=("b",), count=2)
    folder(tmp_path / "unlabelled", names=("x",), count=4)
    found = images.load(str(tmp_path))
    assert found.label.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1] and found.test_label.tolist() == [1, 1]
    assert found.shape == (3, 9, 8)
    with Image.open(tmp_path / "train" / "b" / "0.png") as picture:
        assert np.array_equal(found.train[3].permute(1, 2, 0).numpy(), np.asarray(picture))


def test_gray_folders_are_gray_and_lose_a_test_part(tmp_path):
    folder(tmp_path, mode="L", count=5)
    found = images.load(str(tmp_path), holdout=0.4)
    assert found.shape == (1, 9, 8) and len(found.test_label) == 4


def test_what_is_wrong_in_a_folder_is_said_with_the_file(tmp_path):
    folder(tmp_path / "one", count=2)
    (tmp_path / "one" / "b" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / 'one' / 'b' / '0.png'))} is no image"):
        images.load(str(tmp_path / "one"))
    folder(tmp_path / "two", count=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "two" / "b" / "1.png")
    with pytest.raises(ValueError, match=r"b/1\.png has shape .8, 8, 3., .*a/0\.png .9, 8, 3."):
        images.load(str(tmp_path / "two"))
    folder(tmp_path / "three")
    (tmp_path / "three" / "c").mkdir()
    with pytest.raises(ValueError, match=r"class .*three/c has no image"):
        images.load(str(tmp_path / "three"))
    folder(tmp_path / "four" / "train")
    folder(tmp_path / "four" / "test", names=("z",))
    with pytest.raises(ValueError, match=r"test/z is no class"):
        images.load(str(tmp_path / "four"))
    with pytest.raises(ValueError, match="data is 'digitz', and there is no such file or folder; legal are digits, cifar10"):
        images.load("digitz")


def hub(path, column="img", label="label", *, torn=False):
    """A data set with the columns of CIFAR-10, saved as `datasets` saves."""
    datasets = pytest.importorskip("datasets")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture, "png")
    bad = {"bytes": b"no picture", "path": None} if torn else {"bytes": picture.getvalue(), "path": None}
    rows = [{"bytes": picture.getvalue(), "path": None}, bad] * 3
    features = datasets.Features({column: datasets.Image(), label: datasets.ClassLabel(names=["a", "b"])})
    part = datasets.Dataset.from_dict({column: rows, label: [0, 1] * 3}, features=features)
    return datasets.DatasetDict({"train": part, "test": part.select(range(2))}), path


@pytest.mark.parametrize("saving", ["disk", "parquet"])
def test_a_hub_data_set_that_lies_here(saving, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parts, path = hub(tmp_path / "set")
    if saving == "disk":
        parts.save_to_disk(str(path))
    else:
        path.mkdir()
        for name, part in parts.items():
            part.to_parquet(str(path / f"{name}-00000-of-00001.parquet"))
    found = images.load("cifar10", str(path))
    assert (found.train.shape, found.test.shape, found.classes) == ((6, 3, 8, 8), (2, 3, 8, 8), 2)
    assert found.train[0, :, 0, 0].tolist() == [1, 2, 3] and found.label.tolist() == [0, 1] * 3


def test_a_hub_data_set_with_a_torn_picture_other_columns_or_none_at_all(tmp_path):
    parts, path = hub(tmp_path / "torn", torn=True)
    parts.save_to_disk(str(path))
    with pytest.raises(ValueError, match="cifar10 train, row 1 is no image"):
        images.load("cifar10", str(path))
    with pytest.raises(ValueError, match="data svhn train has the columns img, label; legal are image and label"):
        images.load("svhn", str(path))
    with pytest.raises(ValueError, match=r"data cifar100: .*nowhere cannot be loaded by datasets"):
        images.load("cifar100", str(tmp_path / "nowhere"))
