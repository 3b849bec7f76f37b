"""A user's day with our recipes: a sweep chooses a coefficient, everything is killed on the way, the winner is trained, and nothing is lost."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entreg.record import read_records

pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

LAKE = ["--env", "FrozenLake-v1", "--env-kwargs", '{"is_slippery": false}', "--environments", "4", "--rollout", "32", "--steps", "8192", "--hidden", "32"]
SWEEP = ["sweep", "ppo", *LAKE, "--coef-range", "0.01", "1", "--points", "2", "--coef", "linear(coef, 0)", "--seeds", "5", "--workers", "1"]
ALWAYS = ["--quiet", "--json", "--checkpoint-every", "0"]


def start(cwd, words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "entreg", *words], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed(cwd, words, records):
    """Start a command and SIGKILL it once a run below `records` has 40 lines."""
    process = start(cwd, words)
    while not any(len(read_records(path.parent).lines) > 40 for path in cwd.glob(records)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def ended(cwd, words):
    out, err = (process := start(cwd, words)).communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_choose_a_coefficient_by_a_sweep_and_train_the_winner_killed_on_the_way(tmp_path):
    killed(tmp_path, [*SWEEP, *ALWAYS], "runs/*/runs/*/*/*/records.jsonl")
    said = json.loads(ended(tmp_path, [*SWEEP, *ALWAYS]))  # the same command goes on
    assert said["failed"] == {} and len(said["table"]) == 2
    winner = shlex.split(said["command"])[1:]
    assert winner[:2] == ["train", "ppo"]
    killed(tmp_path, [*winner, *ALWAYS], "runs/ppo-*/records.jsonl")
    summary = json.loads(ended(tmp_path, ["train", "--resume", "latest", *ALWAYS]))
    folder = tmp_path / summary["folder"] if "folder" in summary else next(tmp_path.glob("runs/ppo-*"))
    events = [line["event"] for line in read_records(folder).lines if "event" in line]
    assert "resumed" in events
    looked = start(tmp_path, ["diagnose", str(folder), "--json"])
    out, err = looked.communicate(timeout=120)
    assert looked.returncode in (0, 1), err  # a finding is an answer
    assert json.loads(out)["logs"]
    assert "return" in ended(tmp_path, ["play", str(folder), "--episodes", "2"])
