"""What goes wrong in an environment ends every recipe with a clear message and status; the last checkpoint is intact, and the run can be resumed."""

import json
import re

import pytest

from entreg import cli
from entreg.checkpoint import Checkpoints
from entreg.record import read_records
from tests.rl import broken

OFF_POLICY = ("--environments", "2", "--hidden", "8", "--learning-starts", "20", "--batch-size", "8", "--updates-per-step", "0.25")
ON_POLICY = ("--environments", "2", "--rollout", "8", "--hidden", "8")
ROWS = {
    "ppo": (*ON_POLICY, "--epochs", "1"),
    "a2c": ON_POLICY,
    "reinforce": ON_POLICY,
    "a3c": (*ON_POLICY, "--workers", "2"),
    "dqn": OFF_POLICY,
    "soft_q": OFF_POLICY,
    "soft_q continuous": (*OFF_POLICY, "--env-kwargs", json.dumps({"continuous": True})),
    "sac_discrete": OFF_POLICY,
    "sac": (*OFF_POLICY, "--env-kwargs", json.dumps({"continuous": True})),
}  # what makes a recipe (and a kind of it) write several checkpoints before broken.AFTER steps of an environment
PER_ENVIRONMENT = broken.AFTER + 30


def steps(recipe):
    """Steps of a run in which the environments would break."""
    return PER_ENVIRONMENT * (4 if recipe == "a3c" else 2)


def words(recipe, out):
    given = ROWS[recipe]
    kwargs = () if "--env-kwargs" in given else ("--env-kwargs", json.dumps({}))
    run = ("--steps", str(steps(recipe)), "--no-video", "--eval-episodes", "1", "--checkpoint-every", "0", "--out", str(out), "--quiet")
    return ["train", recipe.partition(" ")[0], "--env", "tests.rl.broken:Faulty-v0", *given, *kwargs, *run]


def saved_step(folder):
    saved = Checkpoints(folder / "checkpoint", pytest.fail).load()
    return saved.facts["step"]


def status(arguments):
    """The exit status of the command line; what it raises ends a process with a traceback and 1."""
    try:
        return cli.main(arguments)
    except RuntimeError as error:
        assert "the robot fell over" in str(error)
        return 1


@pytest.mark.parametrize("recipe", list(ROWS))
@pytest.mark.parametrize("what", ["raise", "reward"])
def test_an_environment_that_breaks_ends_the_run_which_can_be_resumed_from_its_last_checkpoint(recipe, what, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ENTREG_TEST_FAULT", what)
    assert status(words(recipe, tmp_path)) == 1
    said = capfd.readouterr().err
    (folder,) = tmp_path.iterdir()
    if recipe == "a3c":
        assert re.search(r"^entreg: worker [01]: ", said, re.MULTILINE) and str(folder) in said
    if what == "raise":
        assert "RuntimeError: the robot fell over" in said or recipe != "a3c"  # others raise it, and the interpreter prints it
    else:
        assert "reward" in said and "not finite" in said and str(folder) in said
        assert any(line.get("event") == "nonfinite" and "reward" in line["message"] for line in read_records(folder).lines)
    before = saved_step(folder)
    monkeypatch.delenv("ENTREG_TEST_FAULT")
    assert before > 0
    assert cli.main(["train", "--resume", str(folder), "--quiet"]) == 0
    assert saved_step(folder) > before
    logged = [line["step"] for line in read_records(folder).lines if "coef" in line]
    assert logged == sorted(set(logged)) and logged[-1] >= steps(recipe)


@pytest.mark.parametrize("recipe", list(ROWS))
def test_an_observation_space_that_no_network_reads_is_one_line_and_no_folder(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ENTREG_TEST_FAULT", "space")
    assert cli.main(words(recipe, tmp_path / "runs")) == 2
    said = capfd.readouterr().err
    assert said.startswith("entreg: observation space Sequence(") and "is not supported; supported: " in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


TABLE = "tests.rl.broken:FaultyTable-v0"
TABULAR = {
    "alphazero": ("--environments", "2", "--simulations", "2", "--hidden", "8", "--batch-size", "8", "--updates", "1", "--gamma", "0.9"),
    "maxent_irl": ("--features", "next_states", "--demonstrations", "3"),
}  # what plans with the table of an environment sees what is wrong with it before it begins


def tabular(recipe, out, *more):
    return ["train", recipe, "--env", TABLE, *TABULAR[recipe], "--steps", "64", *more, "--checkpoint-every", "0", "--out", str(out), "--quiet"]


@pytest.mark.parametrize("recipe", list(TABULAR))
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reward", "entreg: env: P[2][1] leads to state 3 with probability 1.0 and reward nan; legal are states below 4 and finite rewards"),
        ("probability", "entreg: transitions: row s*A + a = 0 sums to 0.5, legal is 1"),
        ("space", "entreg: env: observation space Sequence(Discrete(2), stack=False) is not supported; supported: Discrete"),
    ],
)
def test_a_table_that_is_no_process_is_one_line_and_no_folder(recipe, what, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ENTREG_TEST_FAULT", what)
    assert cli.main(tabular(recipe, tmp_path / "runs")) == 2
    said = capfd.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    monkeypatch.delenv("ENTREG_TEST_FAULT")
    assert cli.main(tabular(recipe, tmp_path / "runs", "--dry-run")) == 0  # nothing else is wrong


def test_an_environment_that_breaks_while_alphazero_is_evaluated_in_it_leaves_a_run_that_can_be_resumed(tmp_path, monkeypatch):
    words = tabular("alphazero", tmp_path, "--eval-episodes", "1", "--eval-every", "32", "--no-video", "--env-kwargs", json.dumps({"after": 1}))
    monkeypatch.setenv("ENTREG_TEST_FAULT", "raise")
    with pytest.raises(RuntimeError, match="the robot fell over"):
        cli.main(words)
    (folder,) = tmp_path.iterdir()
    assert 0 < saved_step(folder) <= 32
    monkeypatch.delenv("ENTREG_TEST_FAULT")
    assert cli.main(["train", "--resume", str(folder), "--quiet"]) == 0
    assert saved_step(folder) == 64
    logged = [line["step"] for line in read_records(folder).lines if "coef" in line]
    assert logged == sorted(set(logged)) and logged[-1] == 64
