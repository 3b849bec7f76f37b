"""Small multiples: one little picture for each member, all on one scale. SVG, so that many of them cost little.

A card shows the score (in its group's colour) over entropy as a share of its maximum (grey, from 0 to 1), where these were logged.
"""

from __future__ import annotations

import numpy as np

from entreg.report.data import Curve, Data, curve
from entreg.report.markup import Markup, number, tag
from entreg.report.verdict import Score

SHOWN = 96  # cards of a page; more are nothing to look at


def small_multiples(data: Data, judged: Score) -> list[tuple[int, list[Markup]]]:
    """For each group its index and one card a member, the first `SHOWN` of the run."""
    scores = curve(judged.series, points=100)
    live = scores.values[np.isfinite(scores.values)]
    shares = curve(data.series["entropy/max"], points=100) if "entropy/max" in data.series else None
    found: list[tuple[int, list[Markup]]] = []
    left = SHOWN
    for index, group in enumerate(data.groups):
        cards = []
        for member in [member for member in group.members if member in scores.members][:left]:
            lines = [] if shares is None or member not in shares.members else [polyline("share", shares, member, 0.0, 1.0)]
            lines.append(polyline("score", scores, member, float(live.min()), float(live.max())))
            cards.append(_card(member, data.seeds.get(member), float(judged.series[member][1][-1]), lines))
        left -= len(cards)
        if cards:
            found.append((index, cards))
    return found


def _card(member: int, seed: int | None, last: float, lines: list[Markup]) -> Markup:
    picture = tag("svg", *lines, attributes={"viewBox": "0 0 100 40", "preserveAspectRatio": "none", "aria-hidden": "true"})
    name = f"member {member}" if seed is None else f"seed {seed}"
    return tag("div.card", tag("div.row", tag("span", name), tag("b", number(last))), picture, attributes={"title": f"member {member}"})


def polyline(kind: str, members: Curve, member: int, low: float, high: float) -> Markup:
    """One member's curve in a box of 100 x 40 whose y axis runs from `low` (bottom) to `high`.

    >>> polyline("score", Curve(np.array([0.0, 8.0]), np.array([[0.0, 1.0]]), (0,)), 0, 0.0, 1.0)
    '<polyline class="score" points="0.0,38.0 100.0,2.0"></polyline>'
    """
    row = members.values[members.members.index(member)]
    known = np.isfinite(row)
    first, last = members.steps[0], members.steps[-1]
    x = 100 * (members.steps[known] - first) / ((last - first) or 1.0)
    y = 38 - 36 * (row[known] - low) / ((high - low) or 1.0)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return tag(f"polyline.{kind}", attributes={"points": points})
