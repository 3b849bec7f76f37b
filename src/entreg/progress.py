"""What a run shows while it goes on, on stderr: a live table on a terminal, elsewhere a plain line every few seconds.

One row a member up to `ROWS` of them; above that the lowest, mean and highest over the members. Entropy is in nats, `of max` its share of the
largest entropy there is, speed in steps of all members a second. `NO_COLOR` is obeyed (by rich).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from entreg.run import Summary

ROWS = 8
LINE_EVERY, TABLE_EVERY = 5.0, 0.25  # seconds
COLUMNS = {"return": "return", "answers": "answers", "modes": "modes", "accuracy": "accuracy", "entropy": "entropy", "entropy/max": "of max", "coef": "coef"}
SHOW_CURSOR = "\x1b[?25h"


def number(value: Any) -> str:
    """A value in at most eight characters.

    >>> number(487.25), number(0.0123), number(None), number(12), number(1e-6)
    ('487.2', '0.0123', '', '12', '1e-06')
    """
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


class Progress:
    """Shows the last values of each of `members`; `total` steps, where known, give the share that is done.

    `quiet` shows nothing. `stream` and `terminal` are stderr and whether it is one; `clock` gives seconds.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        members: int = 1,
        total: int | None = None,
        title: str = "",
        stream: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._quiet, self._members, self._title, self._clock = quiet, members, title, clock
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb" if terminal is None else terminal
        self._last: dict[int, dict[str, Any]] = {}
        self._step, self._speed = 0, None
        self._start = self._next = clock()
        self._behind = False  # whether something came in that was not shown
        self._live: Live | None = None

    def show(self, record: Mapping[str, Any]) -> None:
        """Take in a record and, now and then, show where the run is; a stream that is gone ends the showing."""
        if self._quiet or "event" in record:
            return
        self._last.setdefault(record.get("member", 0), {}).update(record)
        self._step, self._speed = record["step"], record.get("steps_per_second", self._speed)
        self._behind = True
        if self._clock() >= self._next:
            self._next = self._clock() + (TABLE_EVERY if self._terminal else LINE_EVERY)
            self._draw()

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""
        if self._behind:
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def abandon(self) -> None:
        """Give the cursor back, from inside a signal handler: nothing that could wait for a lock."""
        if self._live is not None:
            os.write(2, SHOW_CURSOR.encode())

    def line(self) -> str:
        """Where the run is, in one line."""
        parts = [self.where()]
        for name, shown in COLUMNS.items():
            values = self._values(name)
            if values and len(values) == 1:
                parts.append(f"{shown} {number(values[0])}")
            elif values:
                parts.append(f"{shown} {number(sum(values) / len(values))} ({number(min(values))} to {number(max(values))})")
        return "  ".join(parts)

    def where(self) -> str:
        """Step, share of the total and speed."""
        share = f" of {self.total} ({self._step / self.total:.0%})" if self.total else ""
        speed = f"  {number(float(self._speed))} steps/s" if self._speed is not None else ""
        return f"step {self._step}{share}{speed}"

    def view(self) -> Group:
        """What a terminal shows: a head line and a table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        shown = [name for name in COLUMNS if self._values(name)]
        table.add_column("member" if self._members > 1 else "")
        for name in shown:
            table.add_column(COLUMNS[name], justify="right")
        if len(self._last) > ROWS:
            for label, reduce in (("lowest", min), ("mean", lambda values: sum(values) / len(values)), ("highest", max)):
                table.add_row(label, *(number(reduce(self._values(name))) for name in shown))
        else:
            for member, record in sorted(self._last.items()):
                table.add_row(str(member) if self._members > 1 else "", *(number(record.get(name)) for name in shown))
        return Group(Text(f"{self._title}  {self.where()}  {self._clock() - self._start:.0f} s".strip()), table)

    def _values(self, name: str) -> list[float]:
        return [record[name] for record in self._last.values() if isinstance(record.get(name), int | float)]

    def _draw(self) -> None:
        self._behind = False
        try:
            if self._terminal and self._start_live() is not None:
                self._live.update(self.view(), refresh=True)  # type: ignore[union-attr]  # just started
            else:
                print(self.line(), file=self._stream, flush=True)
        except (OSError, ValueError):  # a closed terminal or pipe
            self._quiet = True

    def _start_live(self) -> Live | None:
        if self._live is None:
            try:
                from rich.console import Console
                from rich.live import Live
            except ImportError:
                self._terminal = False
                return None
            console = Console(file=self._stream, force_terminal=True)
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        return self._live


def closing(summary: Summary, recipe: str, *, as_json: bool = False, report: Path | None = None) -> str:
    """What a command prints on stdout at the end: results, the folder, the next command; with `as_json` one JSON object.

    >>> from entreg.run import Summary
    >>> print(closing(Summary(Path("runs/x"), 100, None, {"return": 487.2}), "ppo"))
    finished at step 100: return 487.2
    runs/x: entreg play runs/x
    """
    if as_json:
        numbers = {name: value if math.isfinite(value) else None for name, value in summary.metrics.items()}  # JSON has no NaN
        page = {"folder": str(summary.folder), "step": summary.step, "stopped": summary.stopped, "metrics": numbers}
        return json.dumps({**page, "report": None if report is None else str(report)})
    how = "finished" if summary.stopped is None else f"stopped ({summary.stopped})"
    metrics = "; ".join(f"{name} {number(value)}" for name, value in summary.metrics.items())
    going_on = summary.stopped in ("SIGINT", "SIGTERM", "max_time")
    plays = any(summary.folder.glob("checkpoint/best-*")) or not summary.folder.is_dir()
    ended = summary.following or f"entreg {'play' if plays else 'report'} {summary.folder}"
    following = f"entreg train {recipe} --resume {summary.folder}" if going_on else ended
    lines = [f"{how} at step {summary.step}" + (f": {metrics}" if metrics else ""), *([f"report: {report}"] if report else [])]
    return "\n".join([*lines, f"{summary.folder}: {following}"])
