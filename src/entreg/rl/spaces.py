"""Spaces as arrays: what an observation and an action look like to a network, and how one becomes the other.

Shapes: D numbers of a flat observation or action, C H W an image, A = sum of the classes over the heads of a discrete action, N environments.
Observations are float32 vectors, or uint8 images with the channels first. Nothing is scaled here: that is the normaliser's and the network's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary, Box of floats"
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of those"

Write = Callable[[np.ndarray, Any], None]  # (row of the batch, observation as the environment gave it)


class ActionSpec(NamedTuple):
    """What a policy has to produce: one class a head, or D numbers.

    `sizes` are the classes a head, (n,) for one head, or (D,) for continuous actions;
    their bounds `low` and `high` have D entries, infinite where there is no bound.
    The environment counts classes from `start` (0 where that is empty) and takes several numbers in an array of `shape` (None: flat).
    """

    kind: Literal["discrete", "multi_discrete", "continuous"]
    sizes: tuple[int, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None


class ObservationSpec(NamedTuple):
    """What a network sees: a float32 vector `(D,)`, or with `image` uint8 pixels `(C, H, W)`."""

    shape: tuple[int, ...]
    image: bool


class FrameStack(ObservationSpec):
    """An image whose channels are the last frames of an episode, oldest first, 0 before its first: what keeps observations can keep each frame once."""

    __slots__ = ()


class ObservationCodec(NamedTuple):
    """How observations of one space are written into rows of an array; `dropped` names what no network here can read (texts)."""

    spec: ObservationSpec
    write: Write
    dropped: tuple[str, ...]

    def empty(self, n: int) -> np.ndarray:
        """An array for n observations, uninitialised."""
        return np.empty((n, *self.spec.shape), np.uint8 if self.spec.image else np.float32)


class ActionCodec(NamedTuple):
    """How a batch of actions, `[N]`, `[N, heads]` or `[N, D]`, becomes a sequence of N actions of the environment's space."""

    spec: ActionSpec
    decode: Callable[[np.ndarray], Sequence[Any]]


def observation_codec(space: spaces.Space[Any]) -> ObservationCodec:
    """How observations of `space` become float32 vectors `(D,)` or uint8 images `(C, H, W)`.

    A Box is flattened, a Discrete one-hot (also with `start != 0`), Dict and Tuple are joined in their own order, as `gymnasium.spaces.flatten` does.
    A uint8 Box of bounds 0 and 255 with two or three axes is an image; the shorter one of its outer axes is the channels. Texts in a Dict are dropped.

    Raises:
        ValueError: a space that has no such form, naming it and the supported ones.

    >>> observation_codec(spaces.Discrete(3, start=5)).spec
    ObservationSpec(shape=(3,), image=False)
    >>> observation_codec(spaces.Box(0, 255, (96, 96, 3), np.uint8)).spec
    ObservationSpec(shape=(3, 96, 96), image=True)

    Source: the flat form is Gymnasium's `spaces.utils.flatten`, which allocates for every call and refuses MiniGrid's mission.
    """
    if isinstance(space, spaces.Box) and _is_image(space):
        shape, write = _image(space.shape)
        return ObservationCodec(ObservationSpec(shape, image=True), write, ())
    dropped: list[str] = []
    size, write = _flat(space, "observation", dropped)
    if size == 0:
        raise ValueError(f"observation space {space} holds no number; supported: {SUPPORTED_OBSERVATIONS}")
    return ObservationCodec(ObservationSpec((size,), image=False), write, tuple(dropped))


def _is_image(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) in (2, 3) and bool((space.low == 0).all()) and bool((space.high == 255).all())


def _image(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Write]:
    def write_plane(row: np.ndarray, observation: Any) -> None:
        row[0] = observation

    def write_first(row: np.ndarray, observation: Any) -> None:
        row[...] = observation

    def write_last(row: np.ndarray, observation: Any) -> None:
        row[...] = np.moveaxis(np.asarray(observation), -1, 0)

    if len(shape) == 2:
        return (1, *shape), write_plane
    if shape[0] < shape[-1]:
        return shape, write_first
    return (shape[-1], *shape[:-1]), write_last


def _flat(space: spaces.Space[Any], name: str, dropped: list[str]) -> tuple[int, Write]:
    """The number of entries of a space and how to write them; names of dropped parts are appended."""
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return _box(space.shape)
    if isinstance(space, spaces.Discrete):
        return _one_hot((int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(tuple(int(n) for n in space.nvec.ravel()), tuple(int(s) for s in space.start.ravel()))
    if isinstance(space, spaces.Dict):
        return _joined(list(space.spaces.items()), name, dropped)
    if isinstance(space, spaces.Tuple):
        return _joined(list(enumerate(space.spaces)), name, dropped)
    # MiniGrid's missions are texts in spaces of their own
    if name != "observation" and (isinstance(space, spaces.Text) or type(space).__name__.endswith("MissionSpace")):
        dropped.append(name.removeprefix("observation."))
        return 0, lambda row, observation: None
    raise ValueError(f"{name} space {space} is not supported; supported: {SUPPORTED_OBSERVATIONS} (texts beside them are dropped)")


def _box(shape: tuple[int, ...]) -> tuple[int, Write]:
    def write_vector(row: np.ndarray, observation: Any) -> None:
        row[...] = observation

    def write_array(row: np.ndarray, observation: Any) -> None:
        row[...] = np.reshape(observation, -1)

    return int(np.prod(shape)), write_vector if len(shape) == 1 else write_array


def _one_hot(sizes: tuple[int, ...], starts: tuple[int, ...]) -> tuple[int, Write]:
    offsets = np.cumsum([0, *sizes[:-1]]) - np.array(starts)
    offset = int(offsets[0])

    def write_one(row: np.ndarray, observation: Any) -> None:
        row[...] = 0.0
        row[observation + offset] = 1.0

    def write_many(row: np.ndarray, observation: Any) -> None:
        row[...] = 0.0
        row[np.reshape(observation, -1) + offsets] = 1.0

    return sum(sizes), write_one if len(sizes) == 1 else write_many


def _joined(parts: list[tuple[Any, spaces.Space[Any]]], name: str, dropped: list[str]) -> tuple[int, Write]:
    writers: list[tuple[slice, Any, Write]] = []
    total = 0
    for key, space in parts:
        size, write = _flat(space, f"{name}.{key}", dropped)
        if size:
            writers.append((slice(total, total + size), key, write))
        total += size

    def write_all(row: np.ndarray, observation: Any) -> None:
        for part, key, write in writers:
            write(row[part], observation[key])

    return total, write_all


def action_codec(space: spaces.Space[Any]) -> ActionCodec:
    """How a policy's actions become actions of `space`: classes counted from the space's `start`, numbers clipped to its bounds.

    Raises:
        ValueError: a space that is not supported, naming the supported ones.

    >>> codec = action_codec(spaces.MultiDiscrete([3, 2]))
    >>> codec.spec.kind, codec.spec.sizes, codec.decode(np.array([[2, 0]]))[0].tolist()
    ('multi_discrete', (3, 2), [2, 0])
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionCodec(ActionSpec("discrete", (int(space.n),), start=(start,) if start else ()), lambda actions: (actions.reshape(-1) + start).tolist())
    if isinstance(space, spaces.MultiDiscrete):
        return _heads(space.nvec, space.start, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return _heads(np.full(space.shape, 2), np.zeros(space.shape, np.int64), space.dtype)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape):
        return _continuous(space)
    raise ValueError(f"action space {space} is not supported; supported: {SUPPORTED_ACTIONS}")


def _heads(sizes: np.ndarray, start: np.ndarray, dtype: Any) -> ActionCodec:
    shape = sizes.shape

    def decode(actions: np.ndarray) -> Sequence[Any]:
        return list((actions.reshape(-1, *shape) + start).astype(dtype))

    starts = tuple(int(n) for n in start.ravel()) if start.any() else ()
    return ActionCodec(ActionSpec("multi_discrete", tuple(int(n) for n in sizes.ravel()), start=starts, shape=_several(shape)), decode)


def _several(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape if len(shape) != 1 else None


def _continuous(space: spaces.Box) -> ActionCodec:
    low, high, shape, dtype = space.low, space.high, space.shape, space.dtype

    def decode(actions: np.ndarray) -> Sequence[Any]:
        return list(np.clip(actions.reshape(-1, *shape), low, high).astype(dtype))

    bounds = [tuple(float(x) for x in bound.ravel()) for bound in (low, high)]
    return ActionCodec(ActionSpec("continuous", (low.size,), bounds[0], bounds[1], shape=_several(shape)), decode)


class MaskReader:
    """Legal actions from `info["action_mask"]`, one row of A booleans an environment.

    Several heads may give their masks joined or as a tuple.
    An environment that gives masks gives one at its first reset; a later info without one allows everything.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.size = sum(spec.sizes)
        self.possible = spec.kind != "continuous"
        self._starts = np.cumsum([0, *spec.sizes[:-1]])

    def present(self, info: Mapping[str, Any]) -> bool:
        """Whether this info holds a mask that a policy over these actions can use."""
        return self.possible and "action_mask" in info

    def write(self, row: np.ndarray, info: Mapping[str, Any]) -> None:
        """Write the mask of one environment into `row` `[A]`."""
        mask = info.get("action_mask")
        if mask is None:
            row[...] = True
            return
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, (tuple, list)) else np.ravel(mask)
        if flat.size != self.size:
            raise ValueError(f"info['action_mask'] has {flat.size} entries, and the actions have {self.size} classes over all heads")
        row[...] = flat

    def check(self, masks: np.ndarray) -> None:
        """Raise ValueError where an environment that goes on allows no action at all: a policy would turn that into NaN."""
        allowed = np.logical_or.reduceat(masks, self._starts, axis=1)
        if not allowed.all():
            environment, head = np.argwhere(~allowed)[0]
            raise ValueError(f"info['action_mask'] of environment {environment} allows no action in head {head}")

    def open_where_empty(self, masks: np.ndarray) -> None:
        """Allow everything in rows that allow nothing: after the last step of an episode no action is due, and many environments say so."""
        masks[~np.logical_or.reduceat(masks, self._starts, axis=1).all(axis=1)] = True
