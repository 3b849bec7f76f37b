"""Checkpoints: a nested state as safetensors and JSON in a folder that appears whole or not at all.

A state is a nested dict with text keys. Its leaves are torch tensors, NumPy arrays and scalars, and JSON values: integers of any size, floats
(nan and infinities too), text, bool, None, lists. What was torch comes back as torch (on the CPU, detached), what was NumPy as NumPy, bit for
bit; tuples come back as lists; tensors that shared memory come back as copies. Nothing in the files can execute.

    checkpoint/state-00000007/   state.safetensors  state.json  manifest.json (sizes and sha256 of both, step, byte offset of the records)
    checkpoint/best-0/           the same for the best policy of member 0, with its score

Order of a save: temporary folder, files synced, folder synced, read back, renamed, parent synced; only then the older ones go. So at every
moment, whatever call failed last, the newest folder that verifies is a complete state.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from entreg import disk

if TYPE_CHECKING:
    import torch

State = dict[str, Any]
TENSORS, TREE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
# the dtypes that are stored as they are; the others (bfloat16, float8, complex) as their bytes
NATIVE = frozenset(["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"])
LEAF = "__entreg__"  # the key that marks an array's place in state.json: {LEAF: [kind, name, dtype, shape]}
SERIAL = re.compile(r"state-(\d{8,})")
BEST = re.compile(r"(?:tmp-old-)?best-(\d+)")


class Damaged(ValueError):
    """A checkpoint folder that is not what its manifest says."""


class Saved(NamedTuple):
    """A loaded checkpoint: the state, and the facts that were saved beside it (`step`, `offset` or `member`, `score`)."""

    state: State
    facts: dict[str, Any]
    folder: Path


# ---------------------------------------------------------------- a state and its bytes


def pack(state: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The state as the bytes of `state.safetensors` and of `state.json`.

    Raises: `TypeError` naming the place of a key that is no text or a leaf that is none of the legal kinds.
    """
    from safetensors.numpy import save  # the [run] extra

    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, "state", arrays)
    return save(arrays), json.dumps(tree).encode()


def unpack(tensors: bytes, tree: bytes) -> State:
    """The state whose bytes these are.

    >>> state = {"net": {"weight": np.eye(2)}, "rng": {"state": 2**127 + 1}, "best": float("-inf")}
    >>> again = unpack(*pack(state))
    >>> again["net"]["weight"].tolist(), again["rng"]["state"] == 2**127 + 1, again["best"]
    ([[1.0, 0.0], [0.0, 1.0]], True, -inf)
    """
    from safetensors.numpy import load

    state: State = _decode(json.loads(tree), load(tensors))
    return state


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
        if value.dtype.hasobject or value.dtype.fields is not None:
            raise TypeError(f"{place}: arrays of dtype {value.dtype} cannot be saved; legal are numbers, bool and fixed-width text")
        return _store(kind, np.asarray(value), value.dtype.str, value.dtype.name, arrays)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == LEAF:
                raise TypeError(f"{place}: the key {key!r} must be text other than {LEAF!r}")
        return {key: _encode(item, f"{place}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):  # no tensor without torch loaded
        return _encode_tensor(value, arrays)
    raise TypeError(f"{place}: a {type(value).__name__} cannot be saved; legal are tensors, arrays, numbers, text, None, lists and dicts of these")


def _encode_tensor(tensor: torch.Tensor, arrays: dict[str, np.ndarray]) -> Any:
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    array = flat.numpy() if name in NATIVE else flat.view(torch.uint8).numpy()
    leaf = _store("torch", array, name, array.dtype.name, arrays)
    leaf[LEAF][3] = list(tensor.shape)
    return leaf


def _store(kind: str, array: np.ndarray, dtype: str, name: str, arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    key = f"t{len(arrays)}"
    if name in NATIVE and array.dtype.isnative:
        arrays[key] = np.ascontiguousarray(array)
    else:
        arrays[key] = np.frombuffer(array.tobytes(), np.uint8)
    return {LEAF: [kind, key, dtype, list(array.shape)]}


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
        flat = torch.frombuffer(data, dtype=torch.uint8).view(of) if data else torch.empty(0, dtype=of)
        return flat.reshape(shape)
    array = np.frombuffer(data, np.dtype(dtype)).reshape(shape) if data else np.empty(shape, np.dtype(dtype))
    return array[()] if kind == "scalar" else array


# ---------------------------------------------------------------- one folder


def write_folder(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `state` with `facts` into the new folder `folder` and wait until it is on the disk."""
    disk.make_folder(folder)
    sums: dict[str, Any] = {}
    for name, data in zip((TENSORS, TREE), pack(state), strict=True):
        disk.write_file(folder / name, data)
        sums[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    disk.write_file(folder / MANIFEST, json.dumps({"facts": dict(facts), "files": sums}).encode())
    disk.sync_folder(folder)


def read_folder(folder: Path) -> Saved:
    """Read a checkpoint folder and check it against its manifest.

    Raises: `Damaged` when it is not whole, `OSError` when it cannot be read.
    """
    manifest, data = _verified(folder)
    try:
        return Saved(unpack(data[TENSORS], data[TREE]), manifest["facts"], folder)
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise Damaged(f"{folder}: {error}") from error


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        manifest = json.loads(disk.read(folder / MANIFEST))
        data = {name: disk.read(folder / name) for name in (TENSORS, TREE)}
        sums = {name: {"size": len(data[name]), "sha256": hashlib.sha256(data[name]).hexdigest()} for name in data}
        if manifest["files"] != sums:
            raise Damaged(f"{folder}: the files are not the ones that were saved")
    except FileNotFoundError as error:
        raise Damaged(f"{folder}: {Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{folder}: {error}") from error
    return manifest, data


# ---------------------------------------------------------------- the checkpoints of a run


class Checkpoints:
    """The folder `checkpoint/` of a run: the last two states, and the best policy of each member."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.say = say
        self._damaged: set[Path] = set()

    def save(self, state: Mapping[str, Any], *, step: int, offset: int) -> Path:
        """Save `state`; the two newest stay.

        Raises: `TypeError` for what cannot be saved, `OSError` of the system, `Damaged` when what was written does not read back; the older
        checkpoints are then still there.
        """
        serials = [serial for serial, _ in self._states()]
        target = self.folder / f"state-{max(serials, default=0) + 1:08d}"
        self._place(target, state, {"step": step, "offset": offset})
        good = [path for _, path in self._states() if path not in self._damaged]
        for path in {path for _, path in self._states()} - set(good[:2]):
            self._drop(path)
        return target

    def load(self) -> Saved | None:
        """The newest checkpoint that verifies, None where there is none; says which ones were passed over."""
        for _, path in self._states():
            try:
                return read_folder(path)
            except (Damaged, OSError) as error:
                self._damaged.add(path)
                self.say(f"checkpoint passed over: {error}")
        return None

    def save_best(self, member: int, score: float, policy: Mapping[str, Any], *, step: int) -> None:
        """Save `policy` as the best of `member`; the one before goes when it has been read back."""
        target = self.folder / f"best-{member}"
        self._place(target, policy, {"step": step, "member": member, "score": float(score)})

    def best_scores(self) -> dict[int, float]:
        """The score of every member that has a best policy."""
        members = {int(match[1]) for path in self._children() if (match := BEST.fullmatch(path.name))}
        scores = {}
        for member in sorted(members):
            try:
                scores[member] = load_best(self.folder, member).facts["score"]
            except (Damaged, OSError) as error:
                self.say(f"best policy passed over: {error}")
        return scores

    def _states(self) -> list[tuple[int, Path]]:
        """The states, newest first."""
        found = [(int(match[1]), path) for path in self._children() if (match := SERIAL.fullmatch(path.name))]
        return sorted(found, reverse=True)

    def _children(self) -> Iterator[Path]:
        return self.folder.iterdir() if self.folder.is_dir() else iter(())

    def _place(self, target: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        if not self.folder.is_dir():
            disk.make_folder(self.folder)
        for path in self._children():
            if path.name.startswith(("tmp-new-", "tmp-gone-")):  # what a crash left
                disk.remove(path)
        new, old = (self.folder / f"tmp-{what}-{target.name}" for what in ("new", "old"))
        write_folder(new, state, facts)
        _verified(new)
        if target.exists():  # only best-<member>: a folder cannot be renamed over another, so load_best knows the name in between
            disk.remove(old)
            disk.rename(target, old)
        disk.rename(new, target)
        disk.sync_folder(self.folder)
        disk.remove(old)

    def _drop(self, path: Path) -> None:
        gone = self.folder / f"tmp-gone-{path.name}"  # half a removal must not look like a checkpoint
        disk.rename(path, gone)
        disk.remove(gone)


def load_best(folder: Path, member: int) -> Saved:
    """The best policy of `member` in the folder `checkpoint/` of a run.

    Raises: `FileNotFoundError` where there is none, `Damaged` where it is not whole.
    """
    damage: Damaged | None = None
    for path in (folder / f"best-{member}", folder / f"tmp-old-best-{member}"):
        if path.is_dir():
            try:
                return read_folder(path)
            except Damaged as error:
                damage = damage or error
    raise damage or FileNotFoundError(f"{folder}: no best policy of member {member}")
