"""Every settings file of `examples/` says what a recipe can run, and the command line reads it; every script for a host trainer runs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from entreg import cli, flags
from entreg.record import read_records
from entreg.rl.config import OffPolicyConfig, OnPolicyConfig, check, check_off_policy
from entreg.rl.naming import find

ROOT = Path(__file__).parent.parent
PUBLISHED = ("Hopper-v4", "HalfCheetah-v4")  # version 5 has other defaults than the published figures
FILES = sorted((ROOT / "examples").glob("*.json"))


def test_there_are_examples_for_every_recipe():
    assert {path.name.partition("-")[0] for path in FILES} == set(cli.recipe_names())


LANGUAGE = ("sft", "grpo", "dpo", "rlhf", "decode")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_example_is_read_whole(file, capsys):
    page = json.loads(file.read_text())
    if page["recipe"] in LANGUAGE:
        pytest.importorskip("trl")
    config, settings, said = flags.parse(["--config", str(file), "--seed", "3"], cli._recipe)
    assert said.recipe == page["recipe"] == file.name.partition("-")[0]
    assert settings.seed == 3
    for name, value in page["config"].items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), name
    if isinstance(config, OnPolicyConfig):
        check(config)
    if isinstance(config, OffPolicyConfig):
        check_off_policy(config)
    if "env" in page["config"]:
        assert find(config.env)[1] == () or config.env in PUBLISHED  # the id is the current one
    assert cli.main(["train", "--config", str(file), "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["recipe"] == page["recipe"] and printed["config"].items() >= page["config"].items()


def test_flags_stand_over_an_example():
    config, _, _ = flags.parse(["ppo", "--config", str(ROOT / "examples" / "ppo-cartpole.json"), "--steps", "512", "--coef", "0"], cli._recipe)
    assert (config.steps, config.coef, config.epochs) == (512, ("0",), 20)


# the script, and what it needs
HOSTS = {"sb3_ppo": "sb3_contrib", "torchrl_ppo": "torchrl", "lightning_classifier": "lightning", "transformers_classifier": "accelerate"}


@pytest.mark.slow
@pytest.mark.parametrize("script", HOSTS)
def test_a_hosts_example_holds_the_entropy(script, tmp_path):
    """Each prints the entropy without and with the controller."""
    pytest.importorskip(HOSTS[script])
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", ROOT / "examples" / f"{script}.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, check=True, text=True, capture_output=True)
    without, controlled = (float(text) for text in re.findall(r"entropy (\d\.\d+)", ended.stdout))
    assert controlled > without + 0.03, ended.stdout


@pytest.mark.parametrize("seed", [0, 1])
def test_the_score_function_bonus_keeps_all_right_answers_alive_where_without_it_half_die(seed, capsys):
    spec = importlib.util.spec_from_file_location("score_function", ROOT / "examples" / "score_function.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (right, kept), (right_with, kept_with) = (example.train(controlled, seed) for controlled in (False, True))
    assert right > 0.98 and kept <= 5
    assert right_with > 0.95 and kept_with == 8
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" the bonus")[0] for line in said] == ["without", "with"] and "8 of the 8 right answers are alive" in said[1]


@pytest.mark.slow
def test_the_single_file_loop_holds_its_target_learns_and_can_be_read(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", ROOT / "examples" / "cleanrl_ppo.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, text=True, capture_output=True)
    folder = tmp_path / "runs" / "cleanrl-CartPole-v1"
    lines = read_records(folder).lines
    assert len(lines) == 30 and lines[-1]["step"] == 30_720
    assert max(line["return"] for line in lines) > 150 and max(line["coef"] for line in lines) > 0
    assert abs(sum(line["entropy"] for line in lines[-10:]) / 10 - lines[-1]["entropy/target"]) < 0.05
    assert cli.main(["report", str(folder)]) == 0 and (folder / "report.html").stat().st_size > 10_000
