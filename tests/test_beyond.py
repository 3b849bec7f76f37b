"""The studies beyond policies: their tables stand on the pages, and differences are paired by seed."""

import re
from pathlib import Path

import pytest
from bench import beyond, common, ssl

ROOT = Path(__file__).parent.parent


def without_intervals(text):
    return re.sub(r" \[[^\]]*\]", "", text)


@pytest.mark.parametrize("name", [name for name in beyond.STUDIES if (common.RESULTS / f"{name}.csv").exists()])
def test_the_table_of_every_study_stands_on_its_page(name):
    table = beyond.table(name, common.read(common.RESULTS / f"{name}.csv"))
    assert without_intervals(table) in without_intervals((ROOT / "docs" / "recipes" / f"{beyond.recipe_of(name)}.md").read_text())
    assert len(table.splitlines()) >= 4


def test_the_curves_of_texts_stand_on_their_page():
    table = beyond.curves(common.read(beyond.curves_of("textgen")))
    assert table in (common.PAGES / "textgen.md").read_text()
    assert len(table.splitlines()) == 2 + 4 * len(beyond.STUDIES["textgen"].arms)


def test_differences_are_paired_and_arms_without_rows_left_out():
    figures = beyond.STUDIES["clustering"].figures
    rows = [{"arm": arm, "seed": str(seed), **dict.fromkeys(figures, str(value))} for arm, seed, value in
            [("marginal 1.5", 0, 1.0), ("marginal 1.5", 1, 2.0), ("k-means", 1, 1.5), ("k-means", 0, 0.5), ("k-means", 2, 9.0)]]  # fmt: skip
    lines = beyond.table("clustering", rows).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| marginal 1.5 | 2 |") and lines[2].endswith("|  |")
    assert "| -0.5 [-0.5, -0.5] |" in lines[3] and lines[3].startswith("| k-means | 3 |")


@pytest.mark.parametrize("name", beyond.STUDIES)
def test_arms_are_settings_of_the_recipe(name):
    import importlib

    recipe = importlib.import_module(f"entreg.recipes.{beyond.recipe_of(name)}")
    for changes in beyond.STUDIES[name].arms.values():
        recipe.check(recipe.Config(**changes))


@pytest.mark.parametrize("name", ssl.STUDIES)
def test_the_table_of_every_study_of_images_stands_on_its_page(name):
    study, rows = ssl.STUDIES[name], [row for row in common.read(ssl.FILE) if row["study"] == name]
    assert without_intervals(ssl.table(study, rows)) in without_intervals((common.PAGES / f"{study.page}.md").read_text())
    assert {row["arm"] for row in rows} == set(study.arms) and {int(row["seed"]) for row in rows} == set(range(10))
