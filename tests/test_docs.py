"""The words around the code: the example loop runs, links lead somewhere, and every recipe has its page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from entreg import cli
from entreg.record import read_records

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "bench" / "README.md"]


def test_the_example_loop_runs_and_its_records_make_a_report(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "training_loop.py"], cwd=tmp_path, env=environment, check=True, text=True, capture_output=True
    )
    best, taken = re.findall(r": (\d+)", ended.stdout)
    assert best == taken
    records = read_records(tmp_path / "runs" / "bandit").lines
    assert len(records) == 200 and records[-1]["entropy"] < records[0]["entropy"]
    assert cli.main(["report", str(tmp_path / "runs" / "bandit")]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_recipe_has_a_page_and_the_readme_names_stable_ones_only():
    readme = (ROOT / "README.md").read_text()
    for name in cli.recipe_names():
        assert (ROOT / "docs" / "recipes" / f"{name}.md").exists(), name
        stable = cli._facts(name)["STATUS"] == "stable"
        assert (f"docs/recipes/{name}.md" in readme) == stable, name
