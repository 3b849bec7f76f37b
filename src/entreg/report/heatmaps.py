"""Maps that a recipe wrote beside its records: `heatmaps.json`, a list of {"title": text, "values": rows of numbers, "picture": bool}, drawn row 0 on top.

A picture is drawn in ink on paper, the largest number black, without axes.

Like everything in a report they are read as far as they can be: what is no map is left out and counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entreg.report.data import finite, text
from entreg.report.figures import Figure, Metric

FILE = "heatmaps.json"
SHOWN, CELLS = 40, 40_000  # maps of a page, and cells of one of them
APART = 24  # rows and columns up to which cells are set apart; of more one would see the gaps alone


def read(folder: Path) -> tuple[list[Figure], list[str]]:
    """The maps of a run folder as figures, and notes on what was left out."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, RecursionError):
        return [], [f"{FILE} cannot be read: there are no maps."]
    given = found if isinstance(found, list) else [found]
    maps = [one for one in map(_figure, given) if one is not None][:SHOWN]
    return maps, [f"Entries of {FILE} that are no maps, or too many or too large, left out: {len(given) - len(maps)}."] if len(maps) < len(given) else []


def _figure(given: Any) -> Figure | None:
    """One map, None for what is none: equally long rows of numbers, of which those that are not finite stay blank."""
    values = given.get("values") if isinstance(given, dict) else None
    if not isinstance(values, list) or not all(isinstance(row, list) and row for row in values):
        return None
    if len({len(row) for row in values}) != 1 or len(values) * len(values[0]) > CELLS:
        return None
    cells = [[finite(value) for value in row] for row in values]
    if all(value is None for row in cells for value in row):
        return None
    cells = [[value if value is None else float(f"{value:.5g}") for value in row] for row in cells]
    trace: dict[str, Any] = {"type": "heatmap", "z": cells, "colorscale": "Viridis", "colorbar": {"thickness": 10}}
    if max(len(cells), len(cells[0])) <= APART:
        trace |= {"xgap": 1, "ygap": 1}
    trace["hovertemplate"] = "row %{y}, column %{x}: %{z:.4~g}<extra></extra>"
    tight: dict[str, Any] = {"title": {"text": ""}, "showgrid": False, "zeroline": False, "constrain": "domain"}  # no axis beyond the cells
    tight |= {"tick0": 0, "dtick": max(1, len(cells[0]) // 8)}
    if given.get("picture") is True:
        trace |= {"colorscale": "Greys", "reversescale": True, "showscale": False}
        tight |= {"visible": False}
    axes = {"xaxis": tight, "yaxis": tight | {"autorange": "reversed", "scaleanchor": "x"}}
    title = text(given.get("title", "Map"))
    return Figure(Metric(title, title, ""), "", {"data": [trace], "layout": {**axes, "showlegend": False, "shapes": [], "annotations": []}})
