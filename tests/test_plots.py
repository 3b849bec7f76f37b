"""Plots of a recipe's own in the report: what is drawn, that it belongs to its setting, and that what is no plot is counted."""

import json

import pytest

from entreg import report
from entreg.report import data, plots
from entreg.report.figures import styles

CONFIG = {"recipe": "x", "task": "y", "members": [{"member": 0, "seed": 0, "coef": "0.1"}, {"member": 1, "seed": 0, "coef": "0"}]}
LINE = {"name": "coef 0", "group": 1, "x": [0, 1], "y": [2, 3]}


def read(folder, given):
    (folder / "plots.json").write_text(given if isinstance(given, str) else json.dumps(given))
    return plots.read(data.digest(CONFIG, [{"step": 1, "member": member, "loss": 1.0} for member in (0, 1)]), folder)


def test_a_line_has_the_colour_and_the_button_of_its_setting(tmp_path):
    (figure,), notes = read(
        tmp_path, [{"title": "T", "x": "a", "y": "b", "caption": "c", "series": [LINE | {"low": [1, 2], "high": [3, 4], "text": ["p", "<q>"]}]}]
    )
    groups = data.digest(CONFIG, []).groups
    band, line = figure.plot["data"]
    assert notes == [] and figure.caption == "c" and figure.metric.title == "T"
    assert line["legendgroup"] == band["legendgroup"] == "1" and line["marker"]["color"] == styles(groups)[1].colour
    assert (line["x"], line["y"], line["text"], line["mode"]) == ([0, 1], [2, 3], ["p", "&lt;q&gt;"], "lines+markers+text")
    assert band["y"] == [3, 4, 2, 1] and band["x"] == [0, 1, 1, 0]
    assert figure.plot["layout"]["xaxis"]["title"]["text"] == "a" and not figure.plot["layout"]["showlegend"]


def test_a_series_of_no_setting_stands_in_the_plots_own_legend(tmp_path):
    bound = {"name": "log V", "x": [0, 1], "y": [1, 1]}
    (figure,), _ = read(tmp_path, [{"title": "T", "series": [LINE, bound, bound | {"name": "other"}]}])
    assert [trace["showlegend"] for trace in figure.plot["data"]] == [False, True, True] and figure.plot["layout"]["showlegend"]
    assert len({trace["legendgroup"] for trace in figure.plot["data"]}) == 3
    colours = {style.colour for style in styles(data.digest(CONFIG, [{"step": 1, "member": member, "loss": 1.0} for member in (0, 1)]).groups)}
    assert not colours & {trace["marker"]["color"] for trace in figure.plot["data"][1:]}, "nor has it the colour of a setting"


@pytest.mark.parametrize(("kind", "type_", "mode"), [("points", "scatter", "markers"), ("bars", "bar", "group"), ("stack", "bar", "stack")])
def test_kinds(tmp_path, kind, type_, mode):
    (figure,), _ = read(tmp_path, [{"title": "T", "kind": kind, "series": [LINE, {"x": ["a"], "y": [float("nan")]}]}])
    first, second = figure.plot["data"]
    assert first["type"] == type_ and second["x"] == ["a"] and second["y"] == [None]
    pytest.importorskip("plotly.graph_objects").Figure(figure.plot)
    assert (first["mode"] if kind == "points" else figure.plot["layout"]["barmode"]) == mode


def test_what_is_no_plot_is_counted(tmp_path):
    given = [3, {}, {"series": []}, {"series": [{"x": [1], "y": []}]}, {"kind": "pie", "series": [LINE]}, {"series": [{"x": [0] * 20_001, "y": [0] * 20_001}]}]
    found, notes = read(tmp_path, [*given, {"series": [LINE, None]}])
    assert len(found) == 1 and notes == ["Entries of plots.json that are no plots, or too many or too large, left out: 6."]
    assert read(tmp_path, "[" * 10_000)[1] == ["plots.json cannot be read: its plots are missing."]
    (tmp_path / "plots.json").unlink()
    assert plots.read(data.digest({}, []), tmp_path) == ([], [])


def test_the_report_shows_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "records.jsonl").write_text('{"step": 1, "member": 0, "loss": 1.0}\n')
    (tmp_path / "plots.json").write_text(json.dumps([{"title": "A <curve>", "series": [LINE]}]))
    html = report.write(tmp_path).read_text()
    assert "<h2>Plots</h2>" in html and "A &lt;curve&gt;" in html and "plotly" in html.lower()
