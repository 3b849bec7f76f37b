"""The report: its sentences against numbers made by hand, curves against the records, hostile and broken input, the page in a browser."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg import disk, report, statistics
from entreg.report import figures, page, verdict
from entreg.report.data import Curve, curve, digest, load
from tests.synthetic import config_of, film, records_of, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Reader(HTMLParser):
    """The page as a browser's parser meets it: text by element, and how often each element begins."""

    def __init__(self, html):
        super().__init__()
        self.count, self.texts, self.attributes, self._open = {}, {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


def plots(html):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)[1])


def rendered(config, records, folder):
    return page.render(digest(config, records), folder, "")


def scores(coefs, values, **more):
    """A run in which each coefficient's seeds end with these returns, half of them before."""
    config = config_of(coefs, len(values[0]))
    flat = [value for row in values for value in row]
    records = [{"step": step, "member": member, "return": value * step / 100_000} for step in (50_000, 100_000) for member, value in enumerate(flat)]
    return digest(config | more, records)


def sentences(data):
    return [line.text for line in verdict.lines(data)]


# ---------------------------------------------------------------- the verdict


def test_a_clear_difference_over_paired_seeds_is_called_better_and_its_reverse_worse():
    high, low = [480.0, 490, 500, 470, 495, 485], [400.0, 420, 390, 410, 405, 395]
    gap = statistics.paired_difference(high, low)
    better = sentences(scores(("linear(0.01, 0.0)", "0"), (high, low)))
    assert better[0].startswith("Return 486.7 (95 % interval ")
    assert better[0].endswith("6 seeds) with coef linear(0.01, 0.0), shannon, the best of 2 settings.")
    assert better[1] == (
        "Against the coefficient-0 twin: better (return 83.33 higher, 95 % interval of the difference "
        f"{float(gap.low):.4g} to {float(gap.high):.4g}, 6 paired seeds)."
    )
    worse = verdict.lines(scores(("linear(0.01, 0.0)", "0"), (low, high)))[1]
    assert worse.tone == "bad"
    assert "worse (return 83.33 lower" in worse.text


def test_an_interval_around_zero_is_undecided():
    line = verdict.lines(scores(("0.01", "constant(0.0)"), ([1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1.1])))[1]
    assert (line.tone, line.text.split(" (")[0]) == ("plain", "Against the coefficient-0 twin: undecided")


@pytest.mark.parametrize(("seeds", "words"), [(1, "one seed each; return 90 higher"), (4, "4 paired seeds are too few; return 90 higher on average")])
def test_few_seeds_have_no_verdict(seeds, words):
    data = scores(("0.01", "0"), ([100.0] * seeds, [10.0] * seeds))
    assert sentences(data)[1] == f"Against the coefficient-0 twin: no verdict ({words})."


def test_pairs_are_those_of_equal_seeds():
    """Shifting who has which seed changes the pairs; with no seed in common there is no verdict, not a wrong one."""
    data = scores(("0.01", "0"), ([1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5]))
    assert verdict.difference(data, *data.groups, {member: float(member % 5) for member in range(10)}).value == 0
    data = data._replace(seeds={member: member for member in range(10)})
    assert "no verdict (no seeds in common)" in sentences(data)[1]


def test_a_lower_loss_is_better():
    config = config_of(("0.01", "0"), 5)
    records = [{"step": step, "member": member, "loss": 2.0 - (member < 5) + 0.01 * (member % 5)} for step in (1, 2) for member in range(10)]
    found = sentences(digest(config, records))
    assert found[0].startswith("Loss 1.02 ")
    assert "the lowest of 2 settings" in found[0]
    assert "better (loss 1 lower" in found[1]


def test_many_comparisons_are_sorted_by_verdict_and_said_to_be_many():
    data = scores(("0", "0.1", "0.2", "0.3", "0.4"), ([10.0] * 5, [20.0] * 5, [30.0] * 5, [5.0] * 5, [1.0, 5, 10, 15, 19]))
    found = sentences(data)
    assert "Against the coefficient-0 twin, better: coef 0.1, shannon; coef 0.2, shannon." in found
    assert "Against the coefficient-0 twin, worse: coef 0.3, shannon." in found
    assert "Against the coefficient-0 twin, undecided: coef 0.4, shannon." in found
    assert any(text.startswith("These are 4 comparisons") for text in found)


def test_the_twin_is_of_the_same_family_where_there_is_one():
    data = digest(config_of(("0.01", "0"), 1, families=("shannon", "renyi(2)")), [])
    names = {group.name: verdict.twin_of(group, data.groups) for group in data.groups}
    assert names["coef 0.01, renyi(2)"].name == "coef 0, renyi(2)"
    assert names["coef 0.01, shannon"].name == "coef 0, shannon"
    assert names["coef 0, shannon"] is None


def test_the_last_evaluation_counts_unless_it_is_stale():
    config = config_of(("0.01",), 1)
    trained = [{"step": step, "return": 100.0 + step / 1000} for step in (50_000, 100_000)]
    fresh = sentences(digest(config, [*trained, {"step": 100_000, "eval/return": 480.0}]))
    assert fresh[0].startswith("Evaluation return 480 (one seed: no interval)")
    assert "with coef" not in fresh[0], "the only setting goes without a name"
    stale = sentences(digest(config, [*trained, {"step": 50_000, "eval/return": 480.0}]))
    assert stale[0].startswith("Return 200 (one seed: no interval)")


@pytest.mark.parametrize(
    ("share", "last", "expected"),
    [
        (0.04, 50.0, "Entropy collapsed: below 5 % of its maximum while the return is below the best of the run."),
        (0.04, 99.0, "Entropy did not collapse: it ended at 4 % of its maximum."),
        (0.06, 50.0, "Entropy did not collapse: it ended at 6 % of its maximum."),
    ],
)
def test_entropy_collapsed_means_low_entropy_and_a_lost_return(share, last, expected):
    records = [{"step": step, "return": value, "entropy/max": share} for step, value in ((0, 0.0), (50_000, 100.0), (100_000, last))]
    assert expected in sentences(digest(config_of(("0.01",), 1), records))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("stopped", "SIGTERM at step 9")], "Stopped early: SIGTERM at step 9."),
        ([("stopped", "stop_at at step 9")], "Stopped when its goal was reached: stop_at at step 9."),
        ([("nonfinite", "logits at step 9: nan")], "Stopped by a value that is not finite: logits at step 9: nan."),
        ([("stopped", "SIGINT at step 3"), ("resumed", "at step 3")], "The records end at step 9 of 100,000: the run was cut off, or is still going on."),
        ([], "The records end at step 9 of 100,000: the run was cut off, or is still going on."),
    ],
)
def test_how_the_run_ended(events, expected):
    records = [{"step": 9, "return": 1.0}, *({"step": 9, "event": name, "message": message} for name, message in events)]
    assert sentences(digest(config_of(("0.01",), 1), records))[-1] == expected


def test_a_run_that_did_all_its_steps_says_so_with_its_time():
    records = [{"step": 50_000, "time": 100.0, "return": 1.0}, {"step": 100_000, "time": 175.5, "return": 1.0}]
    assert sentences(digest(config_of(("0.01",), 1), records))[-1] == "Ran to step 100,000 in 1 min 15 s."


# ---------------------------------------------------------------- curves and figures


def test_long_curves_become_means_over_equal_stretches():
    steps = np.arange(10_000.0)
    thin = curve({0: (steps, np.sin(steps / 700)), 1: (steps[:5000], np.full(5000, 3.0))}, points=400)
    assert len(thin.steps) == 400
    np.testing.assert_allclose(thin.values[0], np.sin(thin.steps / 700), atol=1e-3)
    assert thin.values[0].mean() == pytest.approx(np.sin(steps / 700).mean(), abs=1e-3)
    np.testing.assert_array_equal(thin.values[1, :200], 3.0)
    assert np.isnan(thin.values[1, 200:]).all()


def test_a_group_is_its_mean_its_interval_and_its_members(tmp_path):
    config = config_of(("0.01",), 5)
    values = np.random.default_rng(0).normal(size=(5, 3))
    records = [{"step": 10 * t, "member": m, "kl": float(values[m, t])} for t in range(3) for m in range(5)]
    band, members, mean = plots(rendered(config, records, tmp_path))[0]["data"]
    interval = statistics.mean_interval(values, resamples=figures.RESAMPLES)
    np.testing.assert_allclose(mean["y"], values.mean(0), atol=1e-4)
    np.testing.assert_allclose(band["y"], [*interval.high, *interval.low[::-1]], atol=1e-4)
    assert band["x"] == [0, 10, 20, 20, 10, 0]
    assert members["x"] == [0, 10, 20, None] * 5
    assert mean["name"] == "coef 0.01, shannon"


def test_the_mean_is_drawn_only_where_all_seeds_have_values():
    """A member that ended early would make the mean jump."""
    records = [{"step": t, "member": m, "kl": float(m)} for t in range(10) for m in range(3) if t < 5 or m < 2]
    (band, members, mean) = figures.figure(digest(config_of(("0.01",), 3), records), figures.MAIN[0]._replace(name="kl")).plot["data"]
    assert mean["x"] == [0, 1, 2, 3, 4]
    assert band["x"][:5] == [0, 1, 2, 3, 4]
    assert members["x"].count(9) == 2


def test_entropy_has_its_maximum_and_its_target_and_both_families_have_their_own_place(tmp_path):
    config = config_of(("TargetEntropy(0.35)",), 2)
    data = digest(config, records_of(config, lines=20, target=0.35))
    entropy = next(one for one in figures.figures(data)[0] if one.metric.name == "entropy")
    assert [note["text"] for note in entropy.plot["layout"]["annotations"]] == ["maximum 0.693"]
    assert entropy.plot["layout"]["shapes"][0]["y0"] == pytest.approx(math.log(2))
    assert [trace["y"] for trace in entropy.plot["data"] if trace.get("name") == "target"] == [[0.35] * 20]
    config = config_of(("TargetEntropy(0.35)",), 2, families=("renyi(2)",))
    names = {one.metric.name: one for one in figures.figures(digest(config, records_of(config, lines=20, target=0.35)))[0]}
    assert not any(trace.get("name") == "target" for trace in names["entropy"].plot["data"])
    assert any(trace.get("name") == "target" for trace in names["entropy/family"].plot["data"])


def test_a_maximum_that_moves_with_the_legal_actions_is_a_curve():
    records = [{"step": t, "entropy": 0.5 * math.log(2 + t), "entropy/max": 0.5} for t in range(4)]
    entropy = figures.figure(digest({}, records), next(one for one in figures.MAIN if one.name == "entropy")).plot
    assert entropy["layout"]["shapes"] == []
    np.testing.assert_allclose(entropy["data"][-1]["y"], np.log([2, 3, 4, 5]), rtol=1e-4)


def test_a_coefficient_of_zero_throughout_has_no_figure_and_what_recipes_log_has_a_name():
    names = ("entropy/infeasible", "q", "epsilon", "sigma", "intrinsic/reward", "intrinsic/share", "intrinsic_coef", "clip")
    for coef, shown in ((0.0, []), (0.5, ["coef"])):
        data = digest({}, [{"step": step, "coef": coef, **dict.fromkeys(names, 0.0)} for step in (1, 2)])
        assert [name for name in figures.visible(data) if name not in names] == shown
    assert all(figures.metric_of(name).title != name for name in names)


def test_a_language_models_steps_rewards_and_kl_are_not_those_of_an_environment():
    data = digest({"recipe": "grpo"}, [{"step": step, "return": 0.5, "kl": 0.1, "entropy": 1.0} for step in (1, 2)])
    found = {one.metric.name: one for one in figures.figures(data)[0]}
    assert found["return"].caption == "Mean reward of the answers of the step." and found["kl"].metric.title == "KL to the starting model"
    assert all(one.plot["layout"]["xaxis"]["title"]["text"] == "optimizer steps" for one in found.values())
    plain = {one.metric.name: one for one in figures.figures(data._replace(config={"recipe": "ppo"}))[0]}
    assert plain["kl"].metric.title == "KL to the previous policy"


def test_colours_are_one_a_group_and_grey_for_the_coefficient_zero_beside_others():
    both = digest(config_of(("0.0", "0.1", "0.2"), 1), []).groups
    assert figures.colours(both) == [figures.GREY, *figures.PALETTE[:2]]
    assert figures.colours(digest(config_of(("0.0",), 1), []).groups) == [figures.PALETTE[0]]
    many = figures.styles(digest(config_of([f"0.{n}" for n in range(1, 13)], 1), []).groups)
    assert len({(style.colour, style.dash) for style in many}) == 12


def test_every_colour_can_be_told_from_a_white_and_a_near_black_page():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*figures.PALETTE, figures.GREY):
        for ground in ("#ffffff", "#1b1e22"):
            dark, light = sorted((luminance(colour), luminance(ground)))
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, ground)


def test_plotly_accepts_every_figure():
    graph_objects = pytest.importorskip("plotly.graph_objects")
    config = config_of(("TargetEntropy(0.35)", "0.0"), 2, families=("shannon", "renyi(2)"))
    main, more = figures.figures(digest(config, records_of(config, lines=30, target=0.35)))
    assert len(main) == 8
    for one in [*main, *more]:
        graph_objects.Figure(one.plot)
    assert {one.metric.title for one in more} >= {"Policy loss", "Learning rate", "Speed, all members together"}


def test_a_large_run_has_thin_curves(tmp_path):
    config = config_of(("0", "0.001", "0.003", "0.01", "0.03", "0.1"), 8)
    html = rendered(config, records_of(config, lines=500), tmp_path)
    assert len(html) < 1_800_000
    for one in plots(html):
        assert sum(len(trace["x"]) for trace in one["data"]) < 12_000
        assert max(len(trace["x"]) for trace in one["data"] if "hoverinfo" not in trace) <= 400


# ---------------------------------------------------------------- the page


def test_the_page_has_every_section_of_a_full_run_and_reaches_for_nothing_outside(tmp_path):
    config = config_of(("linear(0.01, 0.0)", "0.0"), 8)
    folder = write_run(tmp_path / "run", config, [*records_of(config), {"step": 100_000, "event": "resumed", "message": "at step 50000"}])
    film(folder / "media" / "episode.gif")
    assert report.write(folder) == folder / "report.html"
    html = (folder / "report.html").read_text(encoding="utf-8")
    own = Reader(re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))
    assert own.texts["h1"] == ["ppo on CartPole-v1"]
    assert own.texts["h2"] == ["Curves", "Members", "More", "Events", "Settings"]
    assert config["command"] in own.texts["pre"]
    assert {"Return", "Entropy", "Perplexity", "Coefficient", "KL to the previous policy", "Bonus's share of the gradient"} <= set(own.texts["h3"])
    assert {"torch", "2.13.0", "hidden", "[64, 64]"} <= set(own.texts["td"])
    assert own.count["svg"] == 16
    assert [value[:22] for tag, name, value in own.attributes if name in ("src", "href")] == ["data:image/gif;base64,"]
    assert "default-src 'none'" in html
    assert html.count("plotly.js v") == 1


PAYLOAD = '</script><script>document.title="stolen"</script><img src=x onerror=alert(1)>"\'&'


def hostile():
    """A run whose every text is a payload."""
    member = {"member": 0, "seed": 0, "coef": PAYLOAD, "family": PAYLOAD, PAYLOAD: PAYLOAD}
    config = {
        "recipe": PAYLOAD,
        "task": PAYLOAD,
        "config": {PAYLOAD: PAYLOAD, "steps": 2},
        "run": {"out": PAYLOAD},
        "members": [member],
        "command": PAYLOAD,
        "versions": {PAYLOAD: PAYLOAD},
        "created": PAYLOAD,
    }
    records = [{"step": step, "return": step, "entropy": 0.5, "entropy/max": 0.5, PAYLOAD: step} for step in (1, 2)]
    events = [{"step": PAYLOAD, "event": PAYLOAD, "message": PAYLOAD}, {"step": 2, "event": "stopped", "message": PAYLOAD}]
    return config, [*records, {"step": 2, f"once {PAYLOAD}": 3.0}, *events]


def test_no_text_of_a_run_becomes_markup(tmp_path):
    config, records = hostile()
    html = rendered(config, records, tmp_path)
    reader, harmless = Reader(html), Reader(rendered(json.loads(json.dumps(config).replace("<", "(").replace("&", "+")), records[:2], tmp_path))
    assert "<img" not in html
    assert reader.count["script"] == harmless.count["script"] == 3
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert PAYLOAD in reader.texts["pre"]
    assert any(PAYLOAD in text for text in reader.texts["li"])
    titles = [one["layout"]["yaxis"]["title"]["text"] for one in plots(html)]
    assert any("&lt;img src=x" in title for title in titles)  # plotly reads HTML in its texts
    assert not any("<" in title for title in titles)


def counting(*names, steps=(1, 2)):
    """Records of these metrics, each equal to its step."""
    return [{"step": step} | dict.fromkeys(names, float(step)) for step in steps]


BROKEN = {  # what stands in the folder; the sections and the number of plots it gives; what the verdict says
    "nothing logged": (config_of(("0.01",), 1), [], ["Settings"], 0, "There are no measurements in this folder"),
    "only an event": (config_of(("0.01",), 1), [{"step": 1, "event": "nonfinite", "message": "loss"}], ["Events", "Settings"], 0, "not finite: loss."),
    "one line": (None, [{"step": 5, "member": 0, "return": 3.5}], ["Measured once"], 0, "Return 3.5 (one seed: no interval)."),
    "no finite value": (None, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}], [], 0, "Values that are not finite, left out: 2."),
    "only evaluations": (None, counting("eval/return", "eval/return_std"), ["Curves"], 1, "Evaluation return 2 (one seed: no interval)."),
    "another recipe's names": (None, counting("accuracy", "loss", "mystery"), ["Curves", "More"], 3, "Accuracy 2 (one seed: no interval)."),
    "no steps, no members": (None, [{"x": 1.0}, {"step": "x", "x": 2.0}, {"step": 1, "member": "y"}], [], 0, "without a usable step or member, left out: 3"),
    "config.json is no JSON": ("{broken", counting("x"), ["More"], 1, "The config.json of the folder cannot be read"),
    "lines are no records": ("[1, 2]", ["", "null", '{"step": 1}', "{torn"], [], 0, "Lines of records.jsonl that are no records, left out: 2."),
    "config.json of other types": ({"recipe": 3, "members": "no", "config": 7, "run": None}, [{"step": 1, "x": [1], "y": "text"}], [], 0, "no measurements"),
    "members of other types": (
        {"members": [1, {"member": "a"}, {"coef": None}]},
        [{"step": t, "x": 10**400, "z": 1} for t in (1, 2)],
        ["More"],
        1,
        "left out: 2",
    ),
    "nested without end": ("[" * 100_000, ["[" * 100_000], [], 0, "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_whatever_stands_in_the_folder_gives_a_clear_page_with_no_empty_section(tmp_path, case):
    config, records, sections, count, says = BROKEN[case]
    folder = write_run(tmp_path, config, records)
    html = page.render(load(folder), folder, "")
    reader = Reader(html)
    assert reader.texts.get("h2", []) == sections
    assert len(plots(html)) == count == reader.count.get("figure", 0)
    assert any(says in text for text in reader.texts["li"]), reader.texts["li"]
    for one in plots(html):
        assert all(trace["x"] and trace["y"] for trace in one["data"])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NAMES = st.sampled_from(
    ["step", "member", "time", "return", "eval/return", "eval/return_std", "entropy", "entropy/max", "entropy/target", "coef", "event", "message", "loss"]
)
NUMBERS = st.floats() | st.integers(-3, 3)


@settings(max_examples=150, deadline=None)
@given(
    config=st.dictionaries(st.sampled_from(["recipe", "task", "config", "run", "members", "command", "versions", "created"]), JUNK, max_size=5),
    records=st.lists(st.dictionaries(NAMES | st.text(max_size=3), NUMBERS | JUNK, max_size=6), max_size=12),
)
def test_no_records_and_no_config_can_break_the_page(tmp_path_factory, config, records):
    html = rendered(config, records, tmp_path_factory.getbasetemp())
    assert html.encode("utf-8", errors="replace")
    plots(html)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder is .* which holds no config.json and no records.jsonl; legal are run folders"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_is_no_reason_to_fail(tmp_path):
    """JSON may hold lone surrogates, UTF-8 may not."""
    folder = write_run(tmp_path, '{"recipe": "\\ud800"}', [{"step": 1, "loss": 1.0}])
    assert "<h1>?</h1>" in report.write(folder).read_text(encoding="utf-8")


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = write_run(tmp_path, None, [{"step": 1, "loss": 1.0}])
    (folder / "report.html").write_text("the old one")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "rename", fails)
    with pytest.raises(OSError, match="No space left"):
        report.write(folder)
    assert (folder / "report.html").read_text() == "the old one"
    assert sorted(path.name for path in folder.iterdir()) == ["records.jsonl", "report.html"]


def test_without_plotly_the_extra_is_named(tmp_path, monkeypatch):
    folder = write_run(tmp_path, None, [{"step": 1, "loss": 1.0}])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"entreg\[run\]"):
        report.write(folder)


def test_only_pictures_of_a_bearable_size_come_into_the_page(tmp_path, monkeypatch):
    film(tmp_path / "media" / "a_first-try.gif")
    (tmp_path / "media" / "b.gif").write_bytes(b"<script>alert(1)</script>")
    (tmp_path / "media" / "c.gif").symlink_to(tmp_path / "media" / "a_first-try.gif")
    (tmp_path / "media" / "folder.gif").mkdir()
    reader = Reader(rendered({}, [], tmp_path))
    assert [value for tag, name, value in reader.attributes if name == "alt"] == ["Animation: a first try"]
    monkeypatch.setattr(page, "MEDIA_BYTES", 100)
    assert "img" not in Reader(rendered({}, [], tmp_path)).count


def test_small_multiples_share_one_scale_and_name_their_seed(tmp_path):
    config = config_of(("0.01",), 3)
    records = [{"step": t, "member": m, "return": 10.0 * m * t} for t in (0, 1) for m in range(3)]
    html = rendered(config, records, tmp_path)
    assert re.findall(r'class="score" points="([^"]*)"', html) == ["0.0,38.0 100.0,38.0", "0.0,38.0 100.0,20.0", "0.0,38.0 100.0,2.0"]
    assert [text for text in Reader(html).texts["span"] if text.startswith("seed")] == ["seed 0", "seed 1", "seed 2"]


def test_curve_of_a_group_keeps_only_its_members():
    data = digest(config_of(("0.01", "0"), 2), [{"step": 1, "member": m, "kl": float(m)} for m in range(4)])
    rows = curve(data.series["kl"]).of(data.groups[1])
    assert isinstance(rows, Curve)
    assert (rows.members, rows.values.tolist()) == ((2, 3), [[2.0], [3.0]])


# ---------------------------------------------------------------- in a browser


def dumped(path, width=1200):
    """The page's DOM after its scripts ran, and what the console said."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},6000", "--virtual-time-budget=10000", "--enable-logging=stderr"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_draws_every_figure_from_the_file_alone(tmp_path, width):
    config = config_of(("linear(0.01, 0.0)", "0.0"), 3)
    folder = write_run(tmp_path / "run", config, records_of(config, lines=60))
    dom, console = dumped(report.write(folder), width)
    reader = Reader(re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL))
    drawn = sum("js-plotly-plot" in (value or "") for _, name, value in reader.attributes if name == "class")
    assert console == []
    assert drawn == len(plots((folder / "report.html").read_text(encoding="utf-8"))) >= 14
    assert dom.count("js-line") >= drawn  # at least a line in each
    assert "maximum 0.693" in dom


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_hostile_text_stays_text(tmp_path):
    folder = write_run(tmp_path / "run", *hostile())
    dom, console = dumped(report.write(folder))
    reader = Reader(re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL))
    assert "stolen" not in reader.texts["title"]
    assert "img" not in reader.count
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert console == []
    assert any("js-plotly-plot" in (value or "") for _, name, value in reader.attributes if name == "class")


def test_lost_classes_are_said_by_the_share_of_the_priors():
    lines = [{"step": 5, "member": member, "accuracy": 0.5, "marginal/share": share} for member, share in enumerate((0.97, 0.31))]
    said = [line for line in verdict.lines(digest({}, lines)) if "lasses" in line.text]
    assert [(line.tone, line.text) for line in said] == [
        ("bad", "Classes collapsed in 1 of 2 members: the mean prediction ended at 31 % of the prior's effective classes, the lowest member.")
    ]
    assert verdict.lines(digest({}, lines[:1]))[1].tone == "good"


def test_a_twin_has_every_coefficient_of_an_entropy_at_zero():
    """Conditional and marginal are two coefficients: what has one of them is no baseline, and sense and prior play no part in one."""
    settings = [("0", "0", "minimize"), ("0.1", "0", "maximize"), ("0", "0.5", "minimize")]
    members = [{"member": i, "seed": 0, "conditional": c, "marginal": m, "sense": s} for i, (c, m, s) in enumerate(settings)]
    groups = digest({"members": members}, [{"step": 1, "member": 0, "accuracy": 1.0}]).groups
    assert [group.baseline for group in groups] == [True, False, False]
    assert [verdict.twin_of(group, groups) for group in groups] == [None, groups[0], groups[0]]


def test_what_the_guard_saw_and_did_is_in_the_verdict():
    told = [("collapse", f"collapse of member {member} at step 60: entropy 0.1; a target") for member in (0, 2)]
    told += [("rescue", "a target controller has taken over the coefficient of member 1"), ("resumed", "from step 40")]
    events = [{"step": 60, "event": event, "message": message} for event, message in told]
    rows = [{"step": step, "member": 0, "accuracy": 0.5} for step in (50, 100)]
    tones = {line.text: line.tone for line in verdict.lines(digest({}, [*rows, *events]))}
    assert tones["The guard spoke twice, first: collapse of member 0 at step 60: entropy 0.1; a target."] == "bad"
    assert tones["Rescued: a target controller has taken over the coefficient of member 1."] == "plain"
    assert not any("guard" in text or "Rescued" in text for text in (line.text for line in verdict.lines(digest({}, rows))))
