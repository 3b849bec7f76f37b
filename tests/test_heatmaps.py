"""Maps in a report: what a recipe wrote is drawn, what is no map is left out and counted, and nothing of it becomes markup."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg import report
from entreg.report import heatmaps

MAP = {"title": "Visits", "values": [[1.0, 2.0, 3.0], [4.0, float("nan"), 6.0]]}


def written(folder, text):
    (folder / "config.json").write_text("{}")
    (folder / "heatmaps.json").write_text(text, errors="surrogatepass")
    return heatmaps.read(folder)


def test_a_map_is_drawn_row_0_on_top_and_blank_where_there_is_no_number(tmp_path):
    (figure,), notes = written(tmp_path, json.dumps([MAP]))
    assert notes == [] and figure.metric.title == "Visits"
    assert figure.plot["data"][0]["z"] == [[1, 2, 3], [4, None, 6]] and figure.plot["layout"]["yaxis"]["autorange"] == "reversed"
    assert all(figure.plot["layout"][axis]["constrain"] == "domain" for axis in ("xaxis", "yaxis"))  # the axes end where the cells do
    graph_objects = pytest.importorskip("plotly.graph_objects")
    graph_objects.Figure(figure.plot)
    html = report.write(tmp_path).read_text()
    assert "<h2>Maps</h2>" in html and "Plotly" in html and "Visits" in html


def test_a_picture_is_ink_on_paper_and_cells_of_a_large_map_touch(tmp_path):
    large = [[0.0] * 54] * 54
    (small, map_, picture), _ = written(tmp_path, json.dumps([MAP, {"values": large}, {"values": large, "picture": True}]))
    assert [figure.plot["data"][0].get("xgap") for figure in (small, map_, picture)] == [1, None, None]
    assert picture.plot["data"][0] | {"colorscale": "Greys", "reversescale": True, "showscale": False} == picture.plot["data"][0]
    assert not picture.plot["layout"]["xaxis"]["visible"] and "visible" not in map_.plot["layout"]["xaxis"]


def test_a_folder_without_maps_has_no_section(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert heatmaps.read(tmp_path) == ([], [])
    assert "Maps" not in report.write(tmp_path).read_text()


@pytest.mark.parametrize(
    "wrong",
    [7, None, {}, {"values": []}, {"values": [[]]}, {"values": [[1], [1, 2]]}, {"values": [[None]]}, {"values": [["a"]]}, {"values": [[0] * 201] * 200}],
    ids=lambda wrong: repr(wrong)[:30],
)
def test_what_is_no_map_is_left_out_and_counted(tmp_path, wrong):
    maps, notes = written(tmp_path, json.dumps([MAP, wrong]))
    assert len(maps) == 1 and notes == ["Entries of heatmaps.json that are no maps, or too many or too large, left out: 1."]
    assert notes[0] in report.write(tmp_path).read_text()


def test_a_file_that_is_none_is_a_note_and_too_many_maps_are_cut(tmp_path):
    assert written(tmp_path, "[1, ") == ([], ["heatmaps.json cannot be read: there are no maps."])
    maps, notes = written(tmp_path, json.dumps([MAP] * 50))
    assert len(maps) == 40 and "left out: 10." in notes[0]


def test_no_title_becomes_markup(tmp_path):
    written(tmp_path, json.dumps([{**MAP, "title": "<script>alert(1)</script>"}]))
    assert "<script>alert(1)" not in report.write(tmp_path).read_text()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["title", "values", "x"]), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(page=JSON)
def test_whatever_stands_there_is_read(tmp_path_factory, page):
    maps, notes = written(tmp_path_factory.getbasetemp(), json.dumps(page))
    json.dumps([one.plot for one in maps], allow_nan=False)
    assert maps or notes or page == []
