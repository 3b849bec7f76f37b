"""The learning studies: what they count, and that the pages show what was written."""

import re
from pathlib import Path

import pytest
from bench import common, studies

ROOT = Path(__file__).parent.parent
PAGES = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "recipes").glob("*.md")))


def without_intervals(text):
    """Resampling depends on NumPy's streams, which may change between its versions; means do not."""
    return re.sub(r" \[[^\]]*\]", "", text)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_the_table_of_every_study_stands_on_a_page(name):
    rows = studies.read(ROOT / "bench" / "results" / f"{name}.csv")
    lines = [line for line in studies.table(name, rows).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + sum(len(arm.coefs) for arm in studies.STUDIES[name].values())
    assert without_intervals("\n".join(lines)) in without_intervals(PAGES)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_has_the_seeds_and_coefficients_it_says(name):
    rows = studies.read(ROOT / "bench" / "results" / f"{name}.csv")
    found = {(row["arm"], row["coef"], int(row["seed"])) for row in rows}
    assert found == {(label, coef, seed) for label, arm in studies.STUDIES[name].items() for coef in arm.coefs for seed in range(arm.seeds)}
    assert len(found) == len(rows)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_settings_are_those_of_the_examples_with_the_arms_changes(name):
    for arm in studies.STUDIES[name].values():
        recipe, config = studies.settings(arm, quick=False)
        assert arm.example.startswith(recipe)
        assert (config.seeds, config.coef, config.eval_episodes) == (arm.seeds, arm.coefs, arm.eval_episodes)
        assert studies.settings(arm, quick=True)[1].steps == config.steps // 20


def test_first_step_and_what_is_written_is_read(tmp_path):
    assert studies.first_step([(10, 1.0), (20, 3.0), (30, 2.0)], 2.0) == 20
    assert studies.first_step([(10, 1.0)], 2.0) is None
    row = {"arm": "PPO", "coef": "0", "seed": 0, "eval_return": 1.5, "return": 2.5, "entropy_mean": 0.5, "reached": None}
    common.write(tmp_path / "x.csv", [row, row | {"reached": 20}], common.machine("torch"))
    read = studies.read(tmp_path / "x.csv")
    assert [r["reached"] for r in read] == [None, 20] and read[0]["eval_return"] == 1.5 and int(read[0]["cores"]) >= 1


def test_rows_are_added_under_the_same_columns_only(tmp_path):
    file, where = tmp_path / "x.csv", {"cores": 2}
    assert common.read(file) == []
    common.append(file, [{"seed": 0, "value": 1.23456}], where)
    common.append(file, [{"seed": 1, "value": 2.0}], where)
    assert common.read(file) == [{"seed": "0", "value": "1.2346", "cores": "2"}, {"seed": "1", "value": "2.0", "cores": "2"}]
    with pytest.raises(ValueError, match="has the columns seed, value, cores; these rows have seed, cores"):
        common.append(file, [{"seed": 2}], where)
    common.write(file, [{"seed": 2}], where)
    assert common.read(file) == [{"seed": "2", "cores": "2"}]


def test_a_table_goes_between_its_two_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- x -->\nafter\n")
    common.onto_page(page, "x", common.table(["a", "b"], [["1", "2"]]))
    assert page.read_text() == "before\n<!-- x -->\n| a | b |\n|---|---|\n| 1 | 2 |\n<!-- x -->\nafter\n"
    with pytest.raises(ValueError, match="must have <!-- y --> twice, has it 0 times"):
        common.onto_page(page, "y", "")
