"""Optional sinks of a run's records: TensorBoard, trackio and W&B, chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Sinks:
    """The sinks of one run; one that fails is dropped."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], *, members: int = 1) -> None:
        if names:
            raise ValueError(f"track is {list(names)}; legal are none yet")

    def log(self, record: Mapping[str, Any]) -> None:
        """Give every sink a record."""

    def close(self) -> None:
        """Close every sink."""
