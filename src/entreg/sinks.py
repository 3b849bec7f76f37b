"""Optional sinks of a run's records: TensorBoard, trackio and W&B (offline unless WANDB_MODE says otherwise).

The records in `records.jsonl` are the source of truth; a sink that fails says so once on stderr and is dropped, and the run goes on.
Every number of a record becomes a scalar at its step; in a population its name ends in `/member-<m>`. Text goes to no sink.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from entreg.folder import warn


class Sink(Protocol):
    """Where scalars of a step go."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of one record."""

    def close(self) -> None:
        """Write out what is pending."""


class TensorBoard:
    """Event files under `<run>/tensorboard`."""

    def __init__(self, folder: Path, page: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one scalar a name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Tracker:
    """trackio or W&B: modules that share `init`, `log` and `finish`."""

    def __init__(self, module: str, **options: Any) -> None:
        self._module: Any = importlib.import_module(module)
        self._run = self._module.init(project="entreg", **options)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars at `step`; lines of one step (the members, an evaluation) add up."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """End the run, by the module: trackio would else end it again at exit, on stdout."""
        self._module.finish()


def trackio(folder: Path, page: Mapping[str, Any]) -> Tracker:
    """A run named like the folder in trackio's local database."""
    return Tracker("trackio", name=folder.name, config=dict(page))


def wandb(folder: Path, page: Mapping[str, Any]) -> Tracker:
    """An offline W&B run in the folder (`wandb sync` uploads it)."""
    return Tracker("wandb", name=folder.name, config=dict(page), dir=str(folder), mode=os.environ.get("WANDB_MODE", "offline"))


OPENERS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any]], Sink]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "trackio": ("trackio", trackio),
    "wandb": ("wandb", wandb),
}


def check(names: Sequence[str]) -> None:
    """Whether these sinks can be had, before a run makes anything.

    Raises: `ValueError` for a name that is none, `ImportError` naming the extra that is missing.

    >>> check(["tensorbord"])
    Traceback (most recent call last):
    ValueError: track is 'tensorbord'; legal are tensorboard, trackio, wandb
    """
    for name in names:
        if name not in OPENERS:
            raise ValueError(f"track is {name!r}; legal are {', '.join(OPENERS)}")
        if importlib.util.find_spec(OPENERS[name][0]) is None:
            raise ImportError(f"track {name} needs {OPENERS[name][0]}: pip install 'entreg[track]'")


class Sinks:
    """The sinks of one run. What they print goes to stderr: stdout is for results."""

    def __init__(self, names: Sequence[str], folder: Path, page: Mapping[str, Any], *, members: int = 1) -> None:
        self._members = members
        self._open: dict[str, Sink] = {}
        for name in dict.fromkeys(names):
            with self._guard(name):
                self._open[name] = OPENERS[name][1](folder, page)

    def log(self, record: Mapping[str, Any]) -> None:
        """Give every sink the numbers of a record."""
        if not self._open:
            return
        end = f"/member-{record['member']}" if self._members > 1 and "member" in record else ""
        skip = ("step", "time", "member")
        scalars = {name + end: float(value) for name, value in record.items() if isinstance(value, int | float) and name not in skip}
        for name, sink in list(self._open.items()) if scalars else ():
            with self._guard(name):
                sink.log(int(record["step"]), scalars)

    def close(self) -> None:
        """Close every sink."""
        for name, sink in list(self._open.items()):
            with self._guard(name):
                sink.close()
        self._open.clear()

    @contextlib.contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # a tracker may raise anything, and none of it may end a run
            self._open.pop(name, None)
            warn(f"{name} is dropped, the run goes on: {type(error).__name__}: {' '.join(str(error).split())}")
