"""What a run shows while it goes on: a live table on a terminal, elsewhere a plain line every few seconds, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

EVERY = 5.0  # seconds between plain lines
SHOWN = ("return", "entropy", "coef", "steps_per_second")


class Progress:
    """Shows the last record of each of `members`; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False, members: int = 1) -> None:
        self._quiet, self._members = quiet, members
        self._last: dict[int, dict[str, Any]] = {}
        self._next = time.monotonic()

    def show(self, record: Mapping[str, Any]) -> None:
        """Take in a record and, now and then, show where the run is."""
        if self._quiet or "event" in record:
            return
        self._last.setdefault(record.get("member", 0), {}).update(record)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            first = self._last[min(self._last)]
            print("  ".join(f"{name} {first[name]:g}" for name in ("step", *SHOWN) if name in first), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""
