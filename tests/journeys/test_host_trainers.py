"""A user's day with stable-baselines3: a run goes wrong, `entreg diagnose` names it, two lines mend it, measured by the return."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from entreg import cli

pytest.importorskip("sb3_contrib")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def diagnosed(path, capsys, *words):
    """The exit status and the rules that hold, with their severities."""
    capsys.readouterr()
    status = cli.main(["diagnose", str(path), "--json", *words])
    return status, {found["rule"]: found for found in json.loads(capsys.readouterr().out)["findings"]}


def test_ppo_that_settled_for_the_near_reward_finds_the_far_one_with_two_lines(tmp_path, capsys):
    journey = example("journey_sb3_ppo")
    known = ("--best", "1", "--max-entropy", "0.693")
    assert journey.train(tmp_path / "without") == pytest.approx(0.3)
    status, found = diagnosed(tmp_path / "without", capsys, *known)
    assert status == 1 and found["collapsed"]["severity"] == "fail" and "ent_coef" in found["collapsed"]["advice"]
    assert journey.train(tmp_path / "with", journey.EntropyControl(journey.linear(1.0, 0.0))) == pytest.approx(1.0)
    status, found = diagnosed(tmp_path / "with", capsys, *known)
    assert status == 0 and "collapsed" not in found


def test_sac_with_a_target_out_of_reach_recovers_with_one_that_can_be_reached(tmp_path, capsys):
    journey = example("journey_sb3_sac")
    lost = journey.train(tmp_path / "five", target_entropy=5.0)
    status, found = diagnosed(tmp_path / "five", capsys)
    assert status == 1 and found["runaway"]["severity"] == "fail" and "target_entropy" in found["runaway"]["advice"]
    control = journey.EntropyControl(journey.TargetEntropy(journey.action_dim(), lr=3e-3, init_coef=1.0))
    won = journey.train(tmp_path / "minus_one", callback=control)
    status, found = diagnosed(tmp_path / "minus_one", capsys)
    assert status == 0 and not found
    assert lost < -3.0 and won > -1.5  # a uniform choice has -4.3


def test_grpo_that_keeps_one_answer_keeps_several_with_two_lines(tmp_path, capsys):
    pytest.importorskip("trl")
    journey = example("journey_trl_grpo")
    alive = ("--column", "reward=rewards/alive/mean")
    trainer = journey.made(tmp_path / "without")
    trainer.train()
    lost = journey.answers(trainer)
    status, found = diagnosed(tmp_path / f"without/checkpoint-{journey.STEPS}/trainer_state.json", capsys, *alive)
    assert status == 1 and found["collapsed"]["severity"] == "fail" and "attach" in found["collapsed"]["advice"]
    trainer = journey.made(tmp_path / "with")
    journey.attach(trainer, journey.PI(0.35, kp=0.7, ki=0.07, bounds=(-0.2, 2.0)))
    trainer.train()
    kept = journey.answers(trainer)
    status, found = diagnosed(tmp_path / f"with/checkpoint-{journey.STEPS}/trainer_state.json", capsys, *alive)
    assert status == 0 and "collapsed" not in found
    assert lost["distinct"] < 2.2 and kept["distinct"] > 3.0 and kept["pass@1"] > 0.85


def test_a_host_that_is_killed_goes_on_with_its_controller(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "examples" / "journey_resume.py"), str(tmp_path)]
    process = subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE)
    while len(list(tmp_path.glob("*.zip"))) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "rl_model_99999998_steps.zip").write_bytes(b"PK")  # two that a kill tore: at its beginning, and when the networks were in it
    late = tmp_path / "rl_model_99999999_steps.zip"
    late.write_bytes((tmp_path / "rl_model_1024_steps.zip").read_bytes()[:-600])
    assert zipfile.is_zipfile(late)  # by the end of the network inside
    ended = subprocess.run(words, env=environment, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, last = ended.stdout.splitlines()
    step, coef = int(first.split()[4]), float(first.split()[-1])
    assert step >= 4 * 1024 and coef != pytest.approx(0.01, rel=0.05)  # not the coefficient that a new controller begins with
    assert float(last.split()[-1]) != coef
