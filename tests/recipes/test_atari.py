"""Recipes on an Atari game: two updates, a policy that acts on what the environment shows, and a run that goes on after its end."""

import json

import numpy as np
import pytest

from entreg import cli, load
from entreg.policy import export
from entreg.record import read_records
from entreg.rl import naming
from entreg.rl.off_policy import OffPolicy
from entreg.run import Run

pytest.importorskip("ale_py")

BASE = ("--env", "ALE/Pong-v5", "--env-kwargs", json.dumps({"max_episode_steps": 24}), "--eval-episodes", "1", "--no-video", "--hidden", "16", "--quiet")
CASES = {
    "ppo": (
        "--environments",
        "2",
        "--rollout",
        "16",
        "--steps",
        "64",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--shared",
        "--activation",
        "relu",
        "--precision",
        "bfloat16",
    ),
    "dqn": ("--steps", "64", "--learning-starts", "32", "--batch-size", "8"),
    "sac_discrete": ("--steps", "64", "--learning-starts", "32", "--batch-size", "8"),
}


def trained(recipe, folder, *more):
    assert cli.main(["train", recipe, *BASE, *CASES[recipe], *more, "--out", str(folder), "--checkpoint-every", "0"]) == 0
    (run,) = folder.iterdir()
    return run


@pytest.mark.parametrize("recipe", CASES)
def test_trains_evaluates_acts_and_goes_on(tmp_path, recipe):
    run = trained(recipe, tmp_path / "runs")
    lines = read_records(run).lines
    assert [line["step"] for line in lines if "loss/value" in line][-1] == 64
    evaluated = [line for line in lines if "eval/return" in line]
    assert evaluated[-1]["eval/length"] == 24
    world, _ = naming.build(naming.find("ALE/Pong-v5")[0], {})
    seen, _ = world.reset(seed=0)
    policy = load(run)
    assert 0 <= int(policy.act(seen)) < 6
    np.testing.assert_array_equal(policy.act(np.stack([seen] * 3)), [policy.act(seen)] * 3)
    world.close()


def test_exported_graph_of_a_bfloat16_policy_is_float32(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert "checked with onnxruntime" in export(trained("ppo", tmp_path))


@pytest.mark.parametrize("recipe", CASES)
def test_stopped_run_goes_on_and_says_that_episodes_began_again(tmp_path, recipe, monkeypatch):
    stop = type("Stop", (), {"seen": 0})()
    plain = Run.stopping

    def stopping(run):
        stop.seen += 1
        return "max_time" if stop.seen == 1 else plain(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stopping", stopping)
        run = trained(recipe, tmp_path)
    assert read_records(run).lines[-1]["step"] < 64
    cuts, finish = [], OffPolicy.finish
    monkeypatch.setattr(OffPolicy, "finish", lambda study: [cuts.extend(study.replay.state_dict()["cuts"]), finish(study)][1])
    assert cli.main(["train", "--resume", str(run), "--quiet"]) == 0
    lines = read_records(run).lines
    assert [line["message"] for line in lines if line.get("event") == "episodes_restarted"]
    assert max(line["step"] for line in lines) == 64
    assert len(cuts) == (recipe != "ppo")  # no transition leads from the lost episode into the new one
