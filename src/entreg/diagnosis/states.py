"""`trainer_state.json` of transformers' Trainer, and so of TRL: one JSON object with a `log_history`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.gather import Gather
from entreg.diagnosis.pages import read_page
from entreg.diagnosis.tables import as_floats
from entreg.diagnosis.traces import Facts

LARGEST = 256 << 20  # bytes: it is read at once


def read_state(path: Path, gather: Gather) -> Facts:
    """Fill `gather` from the history, and return the plan that the file states.

    Raises: `BadLog` for what is no such file.
    """
    page = read_page(path, LARGEST)
    history = page.get("log_history") if isinstance(page, dict) else None
    if not isinstance(history, list) or not all(isinstance(one, dict) for one in history):
        raise BadLog(f"{path}: log_history is missing or no list of objects; legal is the trainer_state.json of a transformers Trainer")
    if not history:
        raise BadLog(f"{path} holds no records")
    columns = {}
    for name in gather.wanted(dict.fromkeys(name for one in history for name in one)):
        values = [one.get(name) for one in history]
        columns[name] = as_floats(values, lambda at, name=name: f"{path}, entry {at} of log_history: {name}")  # type: ignore[misc]
    entries = range(len(history))
    gather.rows(columns, entries, {name: np.array([one.get(name) is None for one in history]) for name in columns})
    planned, done = page.get("max_steps"), page.get("global_step")
    known = isinstance(planned, int) and not isinstance(planned, bool) and planned > 0
    return Facts(planned=float(planned) if known else None, finished=isinstance(done, int) and known and done >= planned)
