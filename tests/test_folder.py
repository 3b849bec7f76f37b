"""Run folders: names that every system takes, none written over, the right one found again."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entreg.folder import describe, find_run, new_folder, plain, read_config, slug
from entreg.run import RunSettings


@given(st.text())
def test_a_slug_is_a_safe_name(text):
    assert re.fullmatch(r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,58}[A-Za-z0-9_])?", slug(text))


def test_folders_of_one_second_do_not_meet(tmp_path):
    made = [new_folder(tmp_path / "a" / "b", "ppo", "ALE/Pong:v5", 3) for _ in range(5)]
    assert len(set(made)) == 5 and all(path.is_dir() for path in made)
    assert re.fullmatch(r"ppo-ALE-Pong-v5-3-\d{8}-\d{6}", made[0].name)


def test_out_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OSError, match="out: cannot make a run folder") as caught:
            new_folder(out, "ppo", "x", 0)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


class Family(NamedTuple):
    order: float


RENYI2 = Family(2.0)


@dataclass(frozen=True)
class Rule:
    target: float


@dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    coef: tuple = (Rule(0.5), 0.01)
    family: Family = RENYI2
    log: Path = Path("a/b")
    extra: tuple = ()


def test_the_config_alone_says_what_was_run(tmp_path):
    page = describe(
        "ppo",
        "CartPole-v1",
        Config(),
        RunSettings(seed=3),
        members=[{"member": 0, "coef": Rule(0.5)}],
        command="entreg train ppo",
        spell=lambda x: f"<{x.__class__.__name__}>",
    )
    (tmp_path / "config.json").write_bytes(page)
    read = read_config(tmp_path)
    assert read["config"] == {"env": "CartPole-v1", "coef": ["<Rule>", 0.01], "family": "<Family>", "log": "a/b", "extra": []}
    assert read["run"]["seed"] == 3 and read["run"]["out"] == "runs" and read["members"] == [{"member": 0, "coef": "<Rule>"}]
    assert read["versions"]["torch"] and read["versions"]["cores"] >= 1 and read["command"] == "entreg train ppo"
    assert RunSettings(**{**read["run"], "out": Path(read["run"]["out"]), "track": tuple(read["run"]["track"])}) == RunSettings(seed=3)


def test_plain_spells_what_is_no_json():
    assert plain({"a": [Rule(1.0)], "b": {"c": Family(1.0)}}, repr) == {"a": ["Rule(target=1.0)"], "b": {"c": "Family(order=1.0)"}}


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"recipe": "ppo"}', '{"recipe": "ppo", "task": "x", "config": {}, "run": 3}'])
def test_what_is_no_run_folder_is_said_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is no run folder") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def make(folder, recipe, used=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "task": "x", "config": {}, "run": {}}))
    if used is not None:
        (folder / "records.jsonl").write_text("")
        os.utime(folder / "records.jsonl", (used, used))
    return folder


def test_latest_is_the_one_last_written_of_the_recipe(tmp_path):
    make(tmp_path / "c", "ppo")  # nothing in it yet
    old, new, other = make(tmp_path / "z", "ppo", 100), make(tmp_path / "a", "ppo", 200), make(tmp_path / "b", "a2c", 300)
    make(tmp_path / ".dry-run-x", "ppo", 900)
    (tmp_path / "file").write_text("")
    assert find_run("latest", tmp_path, "ppo") == new
    assert find_run("latest", tmp_path) == other
    os.utime(old / "records.jsonl", (400, 400))
    assert find_run("latest", tmp_path, "ppo") == old
    assert find_run(new, tmp_path / "elsewhere", "ppo") == new


def test_nothing_to_go_on_with(tmp_path):
    with pytest.raises(ValueError, match=r"resume is 'latest'.*no run of ppo"):
        find_run("latest", tmp_path / "nowhere", "ppo")
    with pytest.raises(ValueError, match="is no run folder"):
        find_run(str(tmp_path), tmp_path, "ppo")
    with pytest.raises(ValueError, match="a run of a2c; legal are runs of ppo"):
        find_run(make(tmp_path / "b", "a2c", 1), tmp_path, "ppo")
