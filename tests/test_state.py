"""A state comes back bit for bit: dtypes, shapes, kinds, big numbers; what cannot is refused by its place."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

from entreg.state import LEAF, pack, unpack
from tests.faults import finish

TORCH_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype) and not re.search(r"q|bits|int[1-7]$|float4|complex32", str(value))]
NUMPY_DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "c8", "c16", "G", ">f4", ">i8", "U3", "S4", "M8[ns]", "V5"]


def there_and_back(state):
    return unpack(*pack(state))


def torch_bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", sorted(set(TORCH_DTYPES), key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)], ids=str)
def test_torch_tensors(dtype, shape):
    n = math.prod(shape) * dtype.itemsize
    raw = torch.arange(n, dtype=torch.int64).mul(37).remainder(2 if dtype == torch.bool else 251).to(torch.uint8)
    tensor = (raw.view(dtype) if n else torch.empty(0, dtype=dtype)).reshape(shape)
    again = there_and_back({"x": tensor})["x"]
    assert (again.dtype, again.shape, torch_bits(again)) == (dtype, tensor.shape, torch_bits(tensor))
    assert not again.numel() or again.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)], ids=str)
def test_numpy_arrays(dtype, shape):
    n = math.prod(shape) * np.dtype(dtype).itemsize
    raw = (np.arange(n) * 37 % (2 if dtype == "?" else 120)).astype(np.uint8)
    array = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    again = there_and_back({"x": array})["x"]
    assert isinstance(again, np.ndarray) and again.flags.writeable
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_views_shared_storage_parameters_and_nan_payloads():
    base = torch.arange(12.0).reshape(3, 4)
    nan = np.array([0x7FF8DEADBEEF0001, 0x7FF0000000000001], np.uint64).view(np.float64)
    state = {
        "transposed": base.t(),
        "row": base[1],
        "broadcast": torch.tensor(2.0).expand(3, 2),
        "conj": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "strided": np.arange(10)[::-3],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "nan": nan,
    }
    again = there_and_back(state)
    for name in ("transposed", "row", "broadcast", "conj"):
        assert torch.equal(again[name], state[name]), name
    assert torch.equal(again["parameter"], torch.ones(2)) and not again["parameter"].requires_grad
    assert again["strided"].tolist() == [9, 6, 3, 0] and again["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again["nan"].tobytes() == nan.tobytes()
    again["row"].zero_()
    assert again["transposed"][0, 1] == 4.0  # a copy of its own


def test_json_values_and_scalars():
    state = {"int": -(2**200), "nan": math.nan, "inf": [math.inf, -math.inf, -0.0, 5e-324], "tuple": (1, "a", None, True), "empty": {}, "": {"": []}}
    again = there_and_back(state)
    assert math.isnan(again.pop("nan")) and math.copysign(1, again["inf"][2]) == -1
    assert again == {**{name: value for name, value in state.items() if name != "nan"}, "tuple": [1, "a", None, True]}
    scalar = there_and_back({"x": np.float32(0.1), "in list": [torch.ones(1), {"y": np.int16(3)}]})
    assert type(scalar["x"]) is np.float32 and scalar["x"] == np.float32(0.1)
    assert torch.equal(scalar["in list"][0], torch.ones(1)) and type(scalar["in list"][1]["y"]) is np.int16


def test_generators_go_on_where_they_were():
    ours, theirs = np.random.default_rng(3), torch.Generator().manual_seed(3)
    ours.random(7), torch.rand(7, generator=theirs)
    again = there_and_back({"numpy": ours.bit_generator.state, "torch": theirs.get_state()})
    other, another = np.random.default_rng(0), torch.Generator()
    other.bit_generator.state = again["numpy"]
    another.set_state(again["torch"])
    assert other.random() == ours.random() and torch.equal(torch.rand(3, generator=another), torch.rand(3, generator=theirs))


def test_names_in_the_file_are_the_places():
    tensors, _ = pack({"net": {"actor.0": torch.ones(2)}, "net.actor.0": np.zeros(3), "list": [torch.ones(1)]})
    assert {name: value.shape for name, value in load_safetensors(tensors).items()} == {"net.actor.0": (2,), "net.actor.0'": (3,), "list.0": (1,)}
    again = there_and_back({"a": {"b": np.ones(1)}, "a.b": np.zeros(2)})
    assert again["a"]["b"].tolist() == [1] and again["a.b"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {"b": object()}}, r"a\.b: a object"),
        ({"a": [0, {1, 2}]}, r"a\.1: a set"),
        ({"a": {3: 1}}, "a: the key 3"),
        ({3: 1}, "state: the key 3"),
        ({"a": {LEAF: 1}}, "a: the key"),
        ({"a": b"x"}, "a: a bytes"),
        ({"a": np.array([object()])}, "a: a ndarray object"),
        ({"a": np.zeros(2, [("x", "f4")])}, "a: a ndarray"),
        ({"a": torch.ones(2).to_sparse()}, "a: a Tensor"),
        ({"a": print}, "a: a builtin"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_place(state, place):
    with pytest.raises(TypeError, match=place):
        pack(state)


@pytest.mark.parametrize(
    "leaf", ['["torch", "x", "load", [2]]', '["numpy", "x", "O", [2]]', '["torch", "x", "float64", [5]]', '["torch", "y", "float32", [2]]', "3"]
)
def test_a_tree_that_lies_is_an_error_and_nothing_else(leaf):
    tensors, _ = pack({"x": torch.ones(2)})
    with pytest.raises((TypeError, ValueError, KeyError, RuntimeError)):
        unpack(tensors, f'{{"x": {{"{LEAF}": {leaf}}}}}'.encode())


def test_a_state_without_tensors_does_not_load_torch():
    code = "import sys, numpy; from entreg.state import pack, unpack; unpack(*pack({'x': numpy.ones(2), 'y': 1})); sys.exit('torch' in sys.modules)"
    ended = finish([sys.executable, "-c", code])
    assert ended.code == 0, ended.err


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.dictionaries(
    st.text(max_size=5), st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3)), max_size=4
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_json_tree(tree):
    assert there_and_back(tree) == tree
