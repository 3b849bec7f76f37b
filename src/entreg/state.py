"""A nested state as the bytes of one safetensors file and one JSON tree, and back, bit for bit; nothing in them can execute.

A state is a nested dict with text keys. Its leaves are torch tensors, NumPy arrays and scalars, and JSON values: integers of any size, floats
(nan and infinities too), text, bool, None, lists. What was torch comes back as torch (on the CPU, detached), what was NumPy as NumPy; tuples
come back as lists, tensors that shared memory as copies of their own. A state without tensors is packed and unpacked without torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

State = dict[str, Any]
# the dtypes that are stored as they are; the others (bfloat16, float8, complex, text) as their bytes
NATIVE = frozenset(["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"])
LEAF = "__entreg__"  # the key that marks an array's place in the tree: {LEAF: [kind, name, dtype, shape]}


def pack(state: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The state as the bytes of `state.safetensors` and of `state.json`.

    Raises: `TypeError` naming the place of a key that is no text or a leaf that is none of the legal kinds.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, "", arrays)
    return require_safetensors().save(arrays), json.dumps(tree).encode()


def require_safetensors() -> Any:
    """safetensors' NumPy functions.

    Raises: `ImportError` naming the extra that brings them.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'entreg[run]'") from error
    return safetensors.numpy


def unpack(tensors: bytes, tree: bytes) -> State:
    """The state whose bytes these are.

    >>> state = {"net": {"weight": np.eye(2)}, "rng": {"state": 2**127 + 1}, "best": float("-inf")}
    >>> again = unpack(*pack(state))
    >>> again["net"]["weight"].tolist(), again["rng"]["state"] == 2**127 + 1, again["best"]
    ([[1.0, 0.0], [0.0, 1.0]], True, -inf)
    """
    state: State = _decode(json.loads(tree), require_safetensors().load(tensors))
    return state


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not (value.dtype.hasobject or value.dtype.fields):
        kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
        return _store(kind, np.asarray(value), place, arrays)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == LEAF:
                raise TypeError(f"{place or 'state'}: the key {key!r} must be text other than {LEAF!r}")
        return {key: _encode(item, f"{place}.{key}".lstrip("."), arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}.{i}", arrays) for i, item in enumerate(value)]
    torch = sys.modules.get("torch")  # no tensor without torch loaded
    if torch is not None and isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return _encode_tensor(value, place, arrays)
    kind = f"{type(value).__name__} {getattr(value, 'dtype', '')}".strip()
    raise TypeError(f"{place or 'state'}: a {kind} cannot be saved; legal are tensors, arrays, numbers, text, None, lists and dicts of these")


def _encode_tensor(tensor: torch.Tensor, place: str, arrays: dict[str, np.ndarray]) -> Any:
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    native = name in NATIVE
    array = flat.numpy().reshape(tensor.shape) if native else flat.view(torch.uint8).numpy()
    leaf = _store("torch", array, place, arrays)
    leaf[LEAF][2:] = [name, list(tensor.shape)]
    return leaf


def _store(kind: str, array: np.ndarray, place: str, arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    while place in arrays:  # {"a.b": ..., "a": {"b": ...}}
        place += "'"
    whole = array.dtype.name in NATIVE and array.dtype.isnative
    arrays[place] = np.ascontiguousarray(array).reshape(array.shape) if whole else np.frombuffer(array.tobytes(), np.uint8)
    return {LEAF: [kind, place, array.dtype.str, list(array.shape)]}


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if LEAF not in value:
        return {key: _decode(item, arrays) for key, item in value.items()}
    kind, key, dtype, shape = value[LEAF]
    data = bytearray(arrays[key].tobytes())  # a copy that is writable and belongs to nobody else
    if kind == "torch":
        import torch

        of = getattr(torch, dtype)
        if not isinstance(of, torch.dtype):
            raise TypeError(f"{key}: {dtype!r} is no dtype")
        flat = torch.frombuffer(data, dtype=torch.uint8).view(of) if data else torch.empty(0, dtype=of)
        return flat.reshape(shape)
    array = np.frombuffer(data, np.dtype(dtype)).reshape(shape) if data else np.empty(shape, np.dtype(dtype))
    return array[()] if kind == "scalar" else array
