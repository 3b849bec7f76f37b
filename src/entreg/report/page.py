"""The page: sections from data, each only where there is something to show, and the skeleton they stand in."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from entreg import statistics
from entreg.report import heatmaps, members, plots, summary, verdict
from entreg.report.data import Data, text
from entreg.report.figures import Figure, colours, figures, measured_once, metric_of, visible
from entreg.report.markup import Markup, duration, embedded, join, number, table, tag

MEDIA_BYTES = 8 * 2**20  # of all animations together
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>$style</style></head>
<body><main>$body</main>
<script type="application/json" id="figures">$figures</script>
<script>$plotly</script>
<script>$script</script></body></html>
""")


def render(data: Data, folder: Path, plotly: str) -> str:
    """The whole page as HTML; `plotly` is the source of plotly.js, left out where nothing is plotted."""
    main, more = figures(data)
    maps, notes = heatmaps.read(folder)
    own, more_notes = plots.read(data, folder)
    said, said_notes = summary.read(folder)
    data = data._replace(notes=[*data.notes, *notes, *more_notes, *said_notes])
    title = _title(data, folder)
    curves, pictures = _curves(data, main), _pictures("Plots", own, start=len(main) + len(more) + len(maps))
    sections = [
        _header(data, title, folder),
        tag("section.first", _verdict(data, said), *_media(folder)),
        _results(data),
        *(pictures + curves if said.lines else curves + pictures),  # of a comparison the pictures say more
        *_members(data),
        *_pictures("Maps", maps, start=len(main) + len(more)),
        *_further(more, start=len(main)),
        *_once(data),
        *_events(data),
        *_settings(data),
        _footer(),
    ]
    return PAGE.substitute(
        title=join([title]),
        style=_file("page.css"),
        body=join(sections),
        figures=embedded([one.plot for one in [*main, *more, *maps, *own]]),
        plotly=plotly if main or more or maps or own else "",
        script=_file("page.js"),
    )


def _file(name: str) -> str:
    return resources.files("entreg.report").joinpath(name).read_text(encoding="utf-8")


def _title(data: Data, folder: Path) -> str:
    recipe, task = data.config.get("recipe"), data.config.get("task")
    return " on ".join(text(part) for part in (recipe, task) if part) or folder.name


def _header(data: Data, title: str, folder: Path) -> Markup:
    count = sum(len(group.members) for group in data.groups)
    facts = [f"{count} members in {len(data.groups)} settings" if len(data.groups) > 1 else f"{count} members" if count > 1 else ""]
    facts.append("" if data.last_step is None else f"{number(data.last_step)} steps{' each' if count > 1 else ''}")
    facts.append("" if data.seconds is None else duration(data.seconds))
    facts.append(text(data.config["created"])[:16].replace("T", " ") if data.config.get("created") else "")
    line = " · ".join(fact for fact in [*facts, folder.name] if fact)
    command = data.config.get("command")
    return tag("header", tag("h1", title), tag("p.facts", line), *([tag("pre.command", text(command))] if command else []))


def _verdict(data: Data, said: summary.Summary) -> Markup:
    lines = verdict.lines(data)
    if said.lines:  # they name the best setting, by what it was chosen by
        lines = [*said.lines, *lines[verdict.score(data) is not None :]]
    if not data.series:
        lines.insert(0, verdict.Line("plain", "There are no measurements in this folder: nothing to plot yet."))
    items = [tag(f"li.{line.tone}", line.text.replace(" %", "\N{NO-BREAK SPACE}%")) for line in lines] + [tag("li.plain", note) for note in data.notes]
    command = [tag("p.note", "Train the winner:"), tag("pre.command", said.command)] if said.command else []
    return tag("div", tag("ul.verdict", *items), *command)


def _media(folder: Path) -> list[Markup]:
    """Animations of `media/`, inside the page; what is no picture or too large stays out."""
    found: list[Markup] = []
    room = MEDIA_BYTES
    for path in sorted((folder / "media").glob("*")) if (folder / "media").is_dir() else []:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > room:
            continue
        content = path.read_bytes()
        kind = _kind(content)
        if kind is None:
            continue
        room -= len(content)
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        name = "an evaluated episode" if path.stem == "episode" else path.stem.replace("-", " ").replace("_", " ")
        found.append(tag("figure.film", tag("img", attributes={"src": source, "alt": f"Animation: {name}"}), tag("figcaption", name)))
    return found


def _kind(content: bytes) -> str | None:
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content.startswith(b"\x89PNG\r\n"):
        return "image/png"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _chip(name: str, colour: str) -> Markup:
    return tag("span.chip", tag("i", attributes={"style": f"background:{colour}"}), name)


def _results(data: Data) -> Markup:
    """One row a setting; a column only where a setting has the number."""
    judged = verdict.score(data)
    if judged is None:
        return Markup("")
    columns: dict[str, list[str]] = {"members": [str(len(group.members)) for group in data.groups]}
    columns[judged.words] = [_mean(verdict.interval_of(group, judged.last)) for group in data.groups]
    gaps = [_gap(data, index, judged.last) for index in range(len(data.groups))]
    columns["against coefficient 0"] = gaps
    for name, title in (("entropy", "entropy at the end"), ("entropy/max", "of its maximum"), ("coef", "coef at the end")):
        last = {member: float(values[-1]) for member, (_, values) in data.series.get(name, {}).items()}
        means = [interval.value if (interval := verdict.interval_of(group, last)) is not None else None for group in data.groups]
        unit = {"entropy": " nats", "entropy/max": " %"}.get(name, "")
        factor = 100 if name == "entropy/max" else 1
        columns[title] = ["" if mean is None else f"{number(float(f'{factor * float(mean):.3g}'))}{unit}" for mean in means]
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    unnamed = "no settings known" if not data.seeds else "all seeds" if len(data.seeds) > 1 else "one seed"
    rows = [
        [_chip(group.name or unnamed, colour), *(cells[index] for cells in shown.values())]
        for index, (group, colour) in enumerate(zip(data.groups, colours(data.groups), strict=True))
    ]
    return tag("section.results", table(["setting", *shown], rows, numbers=True))


def _mean(interval: statistics.Interval | None) -> str:
    if interval is None:
        return ""
    value = number(float(interval.value))
    return value if interval.n == 1 else f"{value} [{number(float(interval.low))}, {number(float(interval.high))}]"


def _gap(data: Data, index: int, last: dict[int, float]) -> str:
    group = data.groups[index]
    twin = verdict.twin_of(group, data.groups)
    gap = None if twin is None else verdict.difference(data, group, twin, last)
    return "" if gap is None else f"{'+' if gap.value > 0 else ''}{_mean(gap)}"


def _curves(data: Data, shown: list[Figure]) -> list[Markup]:
    if not shown:
        return []
    buttons = [
        tag(
            "button.chip",
            tag("i", attributes={"style": f"background:{colour}"}),
            group.name or "others",
            attributes={"type": "button", "data-group": str(index), "aria-pressed": "true"},
        )
        for index, (group, colour) in enumerate(zip(data.groups, colours(data.groups), strict=True))
    ]
    several = any(len(group.members) > 1 for group in data.groups)
    words = (
        "Lines: mean over seeds. Bands: 95 % bootstrap interval of that mean, widened for few seeds. Faint lines: single members."
        if several
        else "One seed each, so there are no intervals."
    )
    named = any(group.name for group in data.groups)
    legend = [tag("div.legend", *buttons, attributes={"role": "group", "aria-label": "settings shown"})] if named else []
    return [tag("section", tag("h2", "Curves"), tag("p.note", words), *legend, tag("div.plots", *(_plot(one, index) for index, one in enumerate(shown))))]


def _plot(one: Figure, index: int) -> Markup:
    frame = tag("div.plot", attributes={"data-figure": str(index), "role": "img", "aria-label": one.metric.title})
    caption = [tag("figcaption", one.caption)] if one.caption else []
    return tag("figure", tag("h3", one.metric.title), frame, *caption)


def _once(data: Data) -> list[Markup]:
    """What was measured at one step only, as numbers."""
    rows = []
    for name in sorted(name for name in visible(data) if measured_once(data, name)):
        values = {member: float(last[-1]) for member, (_, last) in data.series[name].items()}
        rows.append([metric_of(name).title, *(_mean(verdict.interval_of(group, values)) for group in data.groups)])
    head = ["", *(group.name or "value" for group in data.groups)]
    return [tag("section.results", tag("h2", "Measured once"), table(head, rows, numbers=True))] if rows else []


def _members(data: Data) -> list[Markup]:
    judged = verdict.score(data)
    if judged is None or sum(len(group.members) for group in data.groups) < 3:
        return []
    chosen = colours(data.groups)
    blocks = [
        tag(
            "div.block",
            tag("h3", _chip(data.groups[index].name, chosen[index])),
            tag("div.cards", *cards),
            attributes={"data-group": str(index), "style": f"--colour:{chosen[index]}"},
        )
        for index, cards in members.small_multiples(data, judged)
    ]
    grey = ", grey: entropy as a share of its maximum" if "entropy/max" in data.series else ""
    first = f" The first {members.SHOWN} are shown." if len(judged.series) > members.SHOWN else ""
    words = f"Coloured: {judged.name}, all on one scale, with its last value{grey}.{first}"
    return [tag("section", tag("h2", "Members"), tag("p.note", words), *blocks)]


def _pictures(title: str, shown: list[Figure], start: int) -> list[Markup]:
    found = [_plot(one, start + index) for index, one in enumerate(shown)]
    return [tag("section", tag("h2", title), tag("div.plots.small" if title == "Maps" else "div.plots", *found))] if found else []


def _further(shown: list[Figure], start: int) -> list[Markup]:
    plots = [_plot(one, start + index) for index, one in enumerate(shown)]
    return [tag("section", tag("h2", "More"), tag("div.plots.small", *plots))] if plots else []


def _events(data: Data) -> list[Markup]:
    rows = [[text(event.get("step", "")), text(event.get("event", "")), text(event.get("message", ""))] for event in data.events[-200:]]
    return [tag("section", tag("h2", "Events"), table(["step", "event", "message"], rows))] if rows else []


def _settings(data: Data) -> list[Markup]:
    parts = [("Configuration", "config"), ("Run", "run"), ("Versions", "versions")]
    shown = [(title, data.config[name]) for title, name in parts if isinstance(data.config.get(name), dict) and data.config[name]]
    tables = [tag("div", tag("h3", title), table([], flat(values))) for title, values in shown]
    return [tag("section.settings", tag("h2", "Settings"), *tables)] if tables else []


def flat(values: dict[str, Any], prefix: str = "", depth: int = 3) -> list[list[str]]:
    """Nested settings as rows of a dotted name and a value.

    >>> flat({"steps": 10, "env": {"id": "X", "kwargs": {}}})
    [['steps', '10'], ['env.id', 'X'], ['env.kwargs', '{}']]
    """
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value and depth > 0:
            rows += flat(value, f"{prefix}{name}.", depth - 1)
        else:
            rows.append([f"{prefix}{name}", text(value)])
    return rows


def _footer() -> Markup:
    words = (
        "Entropy is in nats. Intervals are bootstrapped over seeds at 95 %, their quantiles moved outwards by Student's t for few seeds; "
        "below five seeds they are the lowest and the highest one. Differences are paired by seed; a verdict needs five seeds and an interval without 0."
    )
    return tag("footer", tag("p", words))
