"""The words around the code: examples run, pages show nothing but them, links lead somewhere, and every recipe has its page."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from entreg import cli
from entreg.record import read_records

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SECTION = re.compile(r" *# --8<-- \[start:(\w+)\]\n(.*?) *# --8<-- \[end:\1\]\n", re.DOTALL)
HOSTS = {"trl", "datasets", "transformers", "stable_baselines3", "sb3_contrib", "torchrl", "tensordict", "lightning"}  # slow to import
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


def imported(example):
    """The packages that an example stands on."""
    nodes = list(ast.walk(ast.parse(example.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in [*names, *(node.module for node in nodes if isinstance(node, ast.ImportFrom))]}


# in test_examples.py and above
OWN_TESTS = {"training_loop", "score_function", "sb3_ppo", "torchrl_ppo", "lightning_classifier", "transformers_classifier", "cleanrl_ppo"}
CASES = [
    pytest.param(example, marks=[pytest.mark.slow] if imported(example) & HOSTS else [], id=example.name)
    for example in EXAMPLES
    if example.stem not in OWN_TESTS and not example.stem.startswith("journey_")  # tests/journeys
]


@pytest.mark.parametrize("example", CASES)
def test_every_example_runs(example, tmp_path, monkeypatch, capsys):
    if missing := [name for name in imported(example) if find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if imported(example) & HOSTS:  # they change the process that they are in
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([sys.executable, example], cwd=tmp_path, env=environment, check=False, text=True, capture_output=True)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    if example.name == "lint_losses.py":
        found = re.findall(r"^(\S.*?):(?: (nothing) found)?$|^  (\w+ \w+):", capsys.readouterr().out, re.MULTILINE)
        assert [next(filter(None, (rule, nothing, title))) for title, nothing, rule in found] == [
            *("nothing", "sampled", "fail sampled", "nothing", "by hand", "warn dimension", "info minus_inf"),
            *("nothing", "entropy of the raw logits", "fail temperature", "accumulated", "fail target", "warn micro_batches"),
        ]


def shown(page):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_an_example_that_the_tests_run(page):
    sections = {(example.name, name): textwrap.dedent(text) for example in EXAMPLES for name, text in SECTION.findall(example.read_text())}
    whole = {(example.name, ""): example.read_text() for example in EXAMPLES}
    for block in shown(page):
        if included := re.fullmatch(r'--8<-- "examples/(\w+\.py)(?::(\w+))?"\n', block):
            assert (included[1], included[2] or "") in sections | whole, block
        else:
            assert block in (sections | whole).values(), f"{page.name}: not a part of examples/*.py between `# --8<-- [start:name]` and `[end:name]`:\n{block}"


def commands(page):
    """The lines of `entreg ...` in the blocks of a page, as words; those with `...` are patterns, not commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.partition(";")[0], comments=True)[1:] for line in lines if line.startswith("entreg ")]
    return [one for one in words if "..." not in one]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page, monkeypatch, capsys):
    """Nothing is trained: recipes say what they would run, of other verbs the words are read."""
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[0] not in ("train", "sweep"):
            cli._parser().parse_args(words)
        elif len(words) > 1 and "--help" not in words and "--resume" not in words:
            if find_spec("trl") is None and words[1] in ("sft", "grpo", "dpo", "rlhf", "decode"):
                continue
            assert cli.main([*words, "--print-config"]) == 0, (words, capsys.readouterr().err)


def test_every_page_is_on_the_site():
    named = re.findall(r"^ +- .*?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages), "every page of docs/ stands once in the nav of mkdocs.yml"


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
