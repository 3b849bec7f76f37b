"""What is wrong in data is one line that names file and row, from the command line, and nothing is written."""

import numpy as np
import pytest

from entreg import cli

RNG = np.random.default_rng(0)
LABELS = np.arange(12) % 3


def npz(path, **arrays):
    np.savez(path / "given.npz", **arrays)
    return str(path / "given.npz")


def spoilt(value):
    x = RNG.uniform(size=(12, 8, 8))
    x[5, 2, 3] = value
    return x


def pictures(value):
    return lambda path: ("--data", npz(path, images=spoilt(value).astype(np.float32), labels=LABELS))


def labels(of):
    return lambda path: ("--data", npz(path, images=spoilt(0.5), labels=np.array(of)))


def points(value):
    return lambda path: ("--data", npz(path, x=spoilt(value)))


def classes(of):
    return lambda path: ("--data", npz(path, x=spoilt(0.5), y=np.array(of)))


def prior(text, *more):
    def words(path):
        (path / "prior.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "--data", npz(path, images=spoilt(0.5), x=spoilt(0.5), labels=LABELS, y=LABELS), "--prior", str(path / "prior.txt"), *more

    return words


def folder(size=(8, 8), torn=False):
    def words(path):
        from PIL import Image

        for kind in "ab":
            (path / "set" / kind).mkdir(parents=True)
            for name in range(3):
                Image.new("L", (8, 8)).save(path / "set" / kind / f"{name}.png")
        Image.new("L", size).save(path / "set" / "b" / "1.png")
        if torn:
            (path / "set" / "b" / "1.png").write_bytes(b"\x89PNG torn")
        return "--data", str(path / "set")

    return words


def book(path):
    (path / "book.txt").write_bytes(b"a line\n" * 7 + b"caf\xe9\n")
    return "--text", str(path / "book.txt")


OFF = [0, 1, 2] * 3 + [0, 1, -7]
EMPTY = [0, 2, 2] * 4
CASES = {
    "an infinite pixel": ("fixmatch", pictures(-np.inf), ("given.npz", "row 5", "-inf")),
    "a pixel that is none": ("classifier", pictures(np.nan), ("given.npz", "row 5", "nan")),
    "an infinite point": ("gan", points(-np.inf), ("given.npz", "row 5", "-inf")),
    "a point that is none": ("clustering", points(np.nan), ("given.npz", "row 5", "nan")),
    "a label out of range": ("mean_teacher", labels(OFF), ("given.npz", "row 11", "-7")),
    "a class out of range": ("clustering", classes(OFF), ("given.npz", "row 11", "-7")),
    "a class without an image": ("noisy_student", labels(EMPTY), ("given.npz", "class 1", "row 1")),
    "a class without a point": ("gan", classes(EMPTY), ("given.npz", "class 1", "row 1")),
    "images of two sizes": ("pseudo_label", folder(size=(9, 8)), ("b/1.png", "a/0.png")),
    "bytes that are no image": ("pseudo_label", folder(torn=True), ("b/1.png", "no image")),
    "bytes that are no text": ("textgen", book, ("book.txt", "row 8", "0xe9")),
    "a prior of sum 1.2": ("fixmatch", prior("0.4\n0.4\n0.4\n", "--labels", "6"), ("prior.txt", "sum")),
    "another of sum .9": ("clustering", prior("0.3\n0.3\n0.3\n"), ("prior.txt", "sum to 0.9")),
    "a prior below 0": ("clustering", prior("0.5\n-0.1\n0.6\n"), ("prior.txt", "row 2")),
    "a prior of other bytes": ("mean_teacher", prior(b"0.5\n0.3\n\xff0.2", "--labels", "6"), ("prior.txt", "row 3", "0xff")),
    "equal points": ("gan", lambda path: ("--data", npz(path, x=np.ones((9, 2)))), ("given.npz", "equal", "bandwidth")),
    "points too large": ("gan", points(1e300), ("given.npz", "row 5", "1e+300")),
    "a prior that is none": ("fixmatch", prior("0.5\n0.5\nnan\n", "--labels", "6"), ("prior.txt", "row 3")),
}


@pytest.mark.parametrize("name", list(CASES))
def test_bad_data_is_one_line_with_file_and_row_and_nothing_is_written(name, tmp_path, capsys):
    recipe, words, said = CASES[name]
    assert cli.main(["train", recipe, *words(tmp_path), "--out", str(tmp_path / "runs")]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and all(word in line for word in said), line
    assert not (tmp_path / "runs").exists()
