"""Run folders of our own recipes: records, and what `config.json` says of members, controllers and the planned steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from entreg import spelling
from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.gather import Gather, Log
from entreg.diagnosis.pages import read_page
from entreg.diagnosis.tables import read_jsonl
from entreg.diagnosis.traces import Facts
from entreg.folder import CONFIG
from entreg.record import FILE

FORMAT = 1  # of config.json; one that states another was written by a later version
LARGEST = 64 << 20  # bytes of config.json
WEIGHTS = {"conditional": "--conditional", "marginal": "--marginal"}


def read_folder(folder: Path, given: Mapping[str, str]) -> Log:
    """The log of a run folder, with what its configuration says.

    Raises: `BadLog`.
    """
    config = _config(folder / CONFIG)
    gather = Gather(folder / FILE, given)
    read_jsonl(folder / FILE, gather, tolerant=True)  # a torn last line of records is dropped by their law
    if config is None:
        return gather.log(Facts())
    settings = config.get("config")
    settings = settings if isinstance(settings, dict) else {}
    planned = _number(settings.get("steps"))
    ends = [event for event in gather.happened if event.get("event") in ("stopped", "nonfinite")]
    setting = {name: WEIGHTS[name] for name in WEIGHTS if name in settings}
    facts = Facts(host="entreg", planned=planned, finished=True if ends else None, setting=setting)
    listed = config.get("members")
    members = {}
    for index, one in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(one, dict):
            members[one.get("member", index)] = _of_member(facts, one)
    return gather.log(facts, members)


def _config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    page = read_page(path, LARGEST)
    if not isinstance(page, dict):
        raise BadLog(f"{path}, line 1: a {type(page).__name__}; legal is an object")
    if page.get("format", FORMAT) != FORMAT:
        raise BadLog(f"{path}: format {page['format']!r:.40}; legal is {FORMAT}: this run was written by a later version")
    return page


def _of_member(facts: Facts, one: Mapping[str, Any]) -> Facts:
    """What the resolved controller of a member says: its spelling and the bounds of its coefficient."""
    text = one.get("controller", one.get("coef"))
    if not isinstance(text, str):
        return facts
    controller = None
    with contextlib.suppress(ValueError):
        controller = spelling.parse_controller(text)
    return Facts(**{**vars(facts), "controller": text, "bounds": _bounds(controller)})


def _bounds(controller: Any) -> tuple[float, float] | None:
    """The bounds of a feedback rule, or of the one inside it."""
    if not is_dataclass(controller):
        return None
    bounds = getattr(controller, "bounds", None)
    if isinstance(bounds, tuple):
        return float(bounds[0]), float(bounds[1])
    inner = [_bounds(getattr(controller, field.name)) for field in fields(controller)]
    return next((one for one in inner if one is not None), None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf else None
