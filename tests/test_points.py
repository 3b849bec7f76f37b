"""Points and priors: what is read, and that what is wrong is refused with the file and the row."""

import numpy as np
import pytest

from entreg import points


def saved(folder, **arrays):
    np.savez(folder / "given.npz", **arrays)
    return str(folder / "given.npz")


def test_a_file_is_read_and_scaled(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) * [1, 10, 0] + [5, -2, 7]
    found = points.load(saved(tmp_path, x=x, y=np.arange(50) % 4))
    assert found.name == "given" and found.picture is None and found.x.dtype == np.float32 and found.y.tolist()[:5] == [0, 1, 2, 3, 0]
    np.testing.assert_allclose(found.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.x.std(0), [1, 1, 0], atol=1e-6)
    pictures = points.load(saved(tmp_path, x=rng.integers(0, 256, size=(9, 4, 5), dtype=np.uint8)))
    assert pictures.x.shape == (9, 20) and pictures.picture == (4, 5) and pictures.y is None
    assert float(pictures.x.mean()) == pytest.approx(0, abs=1e-6) and float(pictures.x.std()) == pytest.approx(1, abs=1e-5)


def test_digits_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    found = points.load("digits")
    assert found.x.shape == (1797, 64) and found.picture == (8, 8) and (found.x.min(), found.x.max()) == (0, 1) and np.bincount(found.y).min() == 174


def with_nan():
    x = np.ones((5, 2))
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": with_nan()}, r"given\.npz, row 3: x\[1\] is nan; legal are finite numbers"),
        ({"x": np.array([[1.0], [-np.inf]])}, r"given\.npz, row 1: x\[0\] is -inf"),
        ({"x": np.array([[1.0], [1e300]])}, r"given\.npz, row 1: x\[0\] is 1e\+300; legal are finite numbers up to 1e\+100"),
        ({"x": np.ones((4, 2)), "y": np.array([0, 1, -1, 0])}, r"given\.npz, row 2: y is -1; legal are classes from 0"),
        ({"x": np.ones((4, 2)), "y": np.array([0, 3, 1, 0])}, r"given\.npz: class 2 has no item, and row 1 has class 3"),
        ({"x": np.ones((4, 2)), "y": np.array([0, 10**9, 1, 0])}, r"given\.npz: class 2 has no item, and row 1 has class 1000000000"),
        ({"x": np.ones((4, 2)), "y": np.zeros(3, int)}, r"y is int64 of shape \(3,\); legal are 4 integers"),
        ({"x": np.ones((4, 2)), "y": np.zeros(4)}, "y is float64"),
        ({"x": np.ones(4)}, r"x is float64 of shape \(4,\)"),
        ({"x": np.array([np.ones(2), np.ones(3)], dtype=object)}, r"given\.npz cannot be read as \.npz with arrays of numbers"),
        ({"z": np.ones((4, 2))}, "x is absent"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, arrays, message):
    file = saved(tmp_path, **arrays)
    if arrays.get("y") is not None and arrays["y"].max() == 10**9:
        message = r"row 1 has class 1000000000"
    with pytest.raises(ValueError, match=message):
        points.load(file)


def test_what_is_no_file_of_points_is_named(tmp_path):
    for name, words in {"absent.npz": "cannot be read", "points.csv": "legal are digits, or a .npz file"}.items():
        with pytest.raises(ValueError, match=words):
            points.load(name)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz cannot be read"):
        points.load(str(tmp_path / "text.npz"))


def test_priors(tmp_path):
    assert points.prior("uniform", 4).tolist() == [0.25] * 4
    file = tmp_path / "prior.txt"
    file.write_text("0.5\n\n0.3\n 0.2\n")
    np.testing.assert_allclose(points.prior(str(file), 3), [0.5, 0.3, 0.2])
    for text, message in {
        "0.5\nhalf\n": r"prior\.txt, row 2: 'half'; legal are probabilities above 0",
        "0.5\n-0.5\n1.0": r"prior\.txt, row 2: '-0.5'",
        "0.5\n\nnan\n0.5": r"prior\.txt, row 3: 'nan'",
        "0.5\n0.5": r"prior\.txt has 2 rows; legal are 3",
        "0.5\n0.3\n0.1": r"prior\.txt: the rows sum to 0\.9; legal is 1",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            points.prior(str(file), 3)
    with pytest.raises(ValueError, match=r"absent\.txt cannot be read"):
        points.prior("absent.txt", 3)
    for data, row in {b"\xff\xfe0.5": 1, b"0.5\n0.2\xe9\n0.3": 2, b"0.5\r\n\r\n\xe9\r\n0.3": 3}.items():
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"prior\.txt, row {row}: byte 0x(ff|e9) is not UTF-8"):
            points.prior(str(file), 3)
