"""Plots that a recipe wrote beside its records: `plots.json`, a list of

    {"title", "x", "y", "caption", "kind", "log", "series": [{"name", "group", "x", "y", "low", "high", "text"}]}

`kind` is lines (default), points (on one scale), scatter, bars or stack (bars on each other); with `log` x is logarithmic; `group` numbers the setting whose
colour a series has and whose button hides it, and a series without one stands in the plot's own legend; `low` and `high` are a band around y, `text` a word at
each point. Only title and series, with x and y, must be there. What is no plot is left out and counted.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from entreg.report.data import Data, finite, text
from entreg.report.figures import PALETTE, Figure, Metric, Style, styles

FILE = "plots.json"
SHOWN, POINTS = 40, 20_000  # plots of a page, and points of one of them
KINDS = ("lines", "points", "scatter", "bars", "stack")


def read(data: Data, folder: Path) -> tuple[list[Figure], list[str]]:
    """The plots of a run folder as figures, and notes on what was left out."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, RecursionError):
        return [], [f"{FILE} cannot be read: its plots are missing."]
    given = found if isinstance(found, list) else [found]
    chosen = styles(data.groups)
    plots = [one for one in (_figure(entry, chosen) for entry in given) if one is not None][:SHOWN]
    lost = len(given) - len(plots)
    return plots, [f"Entries of {FILE} that are no plots, or too many or too large, left out: {lost}."] if lost else []


def _figure(given: Any, chosen: list[Style]) -> Figure | None:
    kind = given.get("kind", "lines") if isinstance(given, dict) else None
    listed = given.get("series") if kind in KINDS else None
    if not isinstance(listed, list):
        return None
    mixed = any(_group(entry, chosen) is not None for entry in listed)  # then no series of its own has the colour of a setting
    series = [one for index, entry in enumerate(listed) if (one := _series(entry, kind, index + (len(chosen) if mixed else 0), chosen)) is not None]
    if not series or sum(len(trace["x"]) for of in series for trace in of) > POINTS:
        return None
    axes: dict[str, dict[str, Any]] = {axis: {"title": {"text": html.escape(text(given.get(axis, "")))}} for axis in ("x", "y")}
    layout: dict[str, Any] = {"xaxis": axes["x"], "yaxis": axes["y"], "hovermode": "closest", "showlegend": False, "shapes": [], "annotations": []}
    if any(trace["showlegend"] for of in series for trace in of):
        layout |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.25}}
    if kind in ("bars", "stack"):
        layout |= {"barmode": "stack" if kind == "stack" else "group"}
    if kind == "points":
        layout["yaxis"] |= {"scaleanchor": "x"}
    if given.get("log") is True:
        layout["xaxis"] |= {"type": "log", "exponentformat": "power"}
    title = text(given.get("title", "Plot"))
    return Figure(Metric(title, title, ""), text(given.get("caption", "")), {"data": [trace for of in series for trace in of], "layout": layout})


def _series(given: Any, kind: Any, index: int, chosen: list[Style]) -> list[dict[str, Any]] | None:
    """One series as traces: a band behind a line, and the line; None for what is none."""
    columns = {name: given.get(name) for name in ("x", "y", "low", "high", "text")} if isinstance(given, dict) else {}
    x, y = columns.get("x"), columns.get("y")
    if not isinstance(x, list) or not isinstance(y, list) or not x or len(x) != len(y):
        return None
    group = _group(given, chosen)
    known = group is not None
    style = Style(PALETTE[index % len(PALETTE)]) if group is None else chosen[group]
    name = html.escape(text(given.get("name", "")))
    shared = {"name": name, "showlegend": False, "legendgroup": str(group) if known else f"own {index}", "x": [_place(value) for value in x]}
    trace = shared | {"showlegend": not known and bool(name), "y": _numbers(y), "hovertemplate": f"{name}<br>%{{x:.4~g}}, %{{y:.4~g}}<extra></extra>"}
    if kind in ("bars", "stack"):
        return [trace | {"type": "bar", "marker": {"color": style.colour}}]
    words = columns["text"] if isinstance(columns["text"], list) and len(columns["text"]) == len(x) else []
    mode = "lines+markers" if kind == "lines" else "markers"
    size = {"points": 4, "scatter": 7}.get(str(kind), 6)
    trace |= {"type": "scatter", "mode": mode, "marker": {"color": style.colour, "size": size}, "line": {"color": style.colour}}
    if words:
        trace |= {"mode": f"{mode}+text", "text": [html.escape(text(word)) for word in words], "textposition": "top center", "textfont": {"size": 10}}
    return [*_band(shared, columns, style), trace]


def _group(given: Any, chosen: list[Style]) -> int | None:
    """The setting whose colour a series has, None for one that stands for itself."""
    group = given.get("group") if isinstance(given, dict) else None
    return group if isinstance(group, int) and 0 <= group < len(chosen) else None


def _band(shared: dict[str, Any], columns: dict[str, Any], style: Style) -> list[dict[str, Any]]:
    low, high = columns["low"], columns["high"]
    if not (isinstance(low, list) and isinstance(high, list) and len(low) == len(high) == len(shared["x"])):
        return []
    outline = {"x": [*shared["x"], *shared["x"][::-1]], "y": [*_numbers(high), *_numbers(low)[::-1]]}
    quiet = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "fill": "toself", "fillcolor": style.pale(0.16), "line": {"width": 0}}
    return [shared | quiet | outline]


def _numbers(values: list[Any]) -> list[float | None]:
    """Five digits of what is a number, nothing in place of what is none."""
    known = [finite(value) for value in values]
    return [None if value is None else float(f"{value:.5g}") for value in known]


def _place(value: Any) -> float | str | None:
    """A place on the x axis: a number, or a word."""
    return html.escape(text(value)) if isinstance(value, str) else finite(value)
