"""What somebody who compared runs says of them: `summary.json`, an object with `lines`, a list of {"tone": good | bad | plain, "text"}, and `command`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

from entreg.report.data import text
from entreg.report.verdict import Line, Tone

FILE = "summary.json"


class Summary(NamedTuple):
    """Sentences that stand before the report's own, and the command that follows from them."""

    lines: list[Line]
    command: str | None


def read(folder: Path) -> tuple[Summary, list[str]]:
    """The summary of a folder, empty where there is none, and notes on what cannot be read."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        given, command = found["lines"], found.get("command")
        return Summary([_line(one) for one in given], command if isinstance(command, str) else None), []
    except FileNotFoundError:
        return Summary([], None), []
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return Summary([], None), [f"{FILE} cannot be read: its sentences are missing."]


def _line(given: Any) -> Line:
    tone = given["tone"]
    return Line(tone if tone in get_args(Tone) else "plain", text(given["text"]))
