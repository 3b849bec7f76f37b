"""The command line as a newcomer types it: in processes of their own, from a folder of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entreg import cli
from entreg.record import read_records

ROOT = Path(__file__).parent.parent
SMALL = ("--steps", "512", "--environments", "4", "--rollout", "32", "--hidden", "8", "--eval-episodes", "2", "--quiet")


def start(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-W", "error", "-m", "entreg.cli", *words]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def entreg(*words, cwd):
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, made by the command line."""
    cwd = tmp_path_factory.mktemp("cli")
    code, out, err = entreg("train", "ppo", *SMALL, "--coef", "linear(0.01, 0)", "--coef", "0", "--json", cwd=cwd)
    assert code == 0, err
    return cwd, json.loads(out)


@pytest.mark.slow
def test_train_leaves_a_complete_folder_and_says_where(run):
    cwd, said = run
    folder = cwd / said["folder"]
    assert {path.name for path in folder.iterdir()} >= {"config.json", "records.jsonl", "checkpoint", "report.html", "media"}
    page = json.loads((folder / "config.json").read_text())
    assert page["command"].startswith("entreg train ppo") and [m["coef"] for m in page["members"]] == ["linear(0.01, 0)", "0"]
    lines = read_records(folder).lines
    assert {line.get("member") for line in lines if "entropy" in line} == {0, 1}
    assert said["step"] == 512 and said["stopped"] is None


@pytest.mark.slow
def test_play_export_report_and_load_use_it(run):
    from entreg import load

    cwd, said = run
    code, out, err = entreg("play", said["folder"], "--episodes", "2", "--save", "play.gif", cwd=cwd)
    assert code == 0, err
    assert out.startswith("episode 1: return ") and (cwd / "play.gif").stat().st_size > 1000
    code, out, err = entreg("report", "latest", cwd=cwd)
    assert code == 0 and out.strip().endswith("report.html"), err
    import numpy as np

    assert load(cwd / said["folder"]).act(np.zeros(4, dtype=np.float32)) in (0, 1)


@pytest.mark.slow
def test_export_writes_a_checked_onnx_file(run):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import numpy as np

    from entreg import load, policy

    cwd, said = run
    assert "checked with onnxruntime" in policy.export(cwd / said["folder"], output=cwd / "policy.onnx")
    observation = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    _, action = onnxruntime.InferenceSession(cwd / "policy.onnx").run(None, {"observation": observation})
    assert (action == load(cwd / said["folder"]).act(observation)).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "pppo"], "ppo"),
        (["train", "ppo", "--env", "CartPol-v1"], "CartPole-v1"),
        (["train", "ppo", "--coef", "linaer(1, 0)"], "linear(start, end"),
        (["train", "ppo", "--coef", "linear(1)"], "linear(start, end"),
        (["train", "ppo", "--family", "renyi(-1)"], "order"),
        (["train", "ppo", "--steps", "0"], "steps"),
        (["train", "ppo", "--steps", "many"], "many"),
        (["train", "ppo", "--stepz", "3"], "--steps"),
        (["train", "ppo", "--threads", "0"], "threads"),
        (["train", "ppo", "--config", "missing.json"], "missing.json"),
        (["train", "ppo", "--resume", "latest"], "runs"),
        (["train", "ppo", "--env-kwargs", "[1]"], "JSON object"),
        (["train", "ppo", "--track", "nothing"], "tensorboard"),
        (["train"], "ppo"),
        (["play", "nowhere"], "nowhere"),
        (["export", "latest"], "runs"),
        (["fly"], "train"),
    ],
)
def test_wrong_words_get_one_clear_message_and_status_2_and_write_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert says in (out if words == ["train"] else err) and "Traceback" not in err
    assert code == (0 if words == ["train"] else 2)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["train", "ppo", "--out", "file", *SMALL]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_print_config_and_config_files_with_flags_over_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.json").write_text(json.dumps({"steps": 333, "coef": ["0.5", "0.1"], "gamma": 0.5}))
    assert cli.main(["train", "ppo", "--config", "some.json", "--gamma", "0.75", "--print-config"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["config"]["steps"], page["config"]["coef"], page["config"]["gamma"]) == (333, ["0.5", "0.1"], 0.75)
    (tmp_path / "page.json").write_text(json.dumps(page))
    assert cli.main(["train", "--config", "page.json", "--coef", "0.2", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["coef"] == ["0.2"]
    for wrong, says in (
        ({"stepz": 1}, "stepz"),
        ({"steps": "many"}, 'steps is "many"; legal is int'),
        ({"hidden": [8, "x"]}, "hidden is"),
        ({"hidden": 8}, "legal is a list"),
        ({"squash": 1}, "legal is bool"),
        ({"env_kwargs": 3}, "legal is an object"),
        ({"over": "both"}, "'action', 'trajectory'"),
        ({"stop_at": "never"}, "legal is float or null"),
        ({"recipe": "ppo", "config": [1]}, "no JSON object"),
        ({"recipe": "ppo", "config": {}, "run": {"seed": "0"}}, 'seed is "0"'),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(wrong))
        assert cli.main(["train", "ppo", "--config", "bad.json", "--print-config"]) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "good.json").write_text(json.dumps({"gamma": 1, "stop_at": 5, "hidden": [8, 8], "env_kwargs": {"a": 1}, "target_kl": None}))
    assert cli.main(["train", "ppo", "--config", "good.json", "--print-config"]) == 0


def test_memory_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "ppo", *SMALL, "--rollout", "1000000000000", "--no-video"]) == 1
    assert "Unable to allocate" in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_a_reader_that_has_seen_enough_hears_nothing_more(tmp_path):
    process = start("recipes", cwd=tmp_path)
    process.stdout.close()
    with process.stderr as said:
        assert said.read() == "" and process.wait(60) == 141


def test_a_resumed_run_refuses_other_settings_and_another_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "a2c", *SMALL, "--steps", "64", "--no-video"]) == 0
    (folder,) = tmp_path.glob("runs/*")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for words, says in (
        (["--gamma", "0.5"], "gamma would change"),
        (["--coef", "0.3"], "coef would change"),
        (["--seed", "7", "--threads", "2"], "seed, threads would change"),
        (["--config", "x"], "config 'x'"),
    ):
        assert cli.main(["train", "--resume", "latest", *words]) == 2
        assert says in capsys.readouterr().err
    assert cli.main(["train", "ppo", "--resume", str(folder)]) == 2
    assert "a run of a2c; legal are runs of ppo" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert cli.main(["train", "a2c", "--resume", "latest", "--quiet", "--gamma", "0.99"]) == 0  # what it has already may be said again


def test_a_dry_run_tries_everything_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "ppo", "--dry-run", *SMALL[2:]]) == 0
    captured = capsys.readouterr()
    assert "dry run" in captured.err + captured.out
    assert list(tmp_path.iterdir()) == []


def test_recipes_lists_each_with_its_status(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == cli.recipe_names()
    assert all(line.split()[1] in ("stable", "experimental") for line in lines)


def test_help_needs_no_torch():
    code = "import sys; from entreg import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules or 'tyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_later(number, tmp_path):
    words = [word for word in SMALL if word != "--quiet"]
    process = start("train", "ppo", *words, "--steps", "200000", "--no-video", cwd=tmp_path)
    while not list(tmp_path.glob("runs/*/records.jsonl")) or not next(iter(tmp_path.glob("runs/*/records.jsonl"))).stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "--resume" in out and "Traceback" not in err
    (folder,) = tmp_path.glob("runs/*")
    reached = read_records(folder).lines[-1]["step"]
    code, out, err = entreg("train", "--resume", str(folder), "--max-time", "0.5", cwd=tmp_path)
    assert code == 0, err
    lines = read_records(folder).lines
    assert max(line["step"] for line in lines) > reached
    steps = [line["step"] for line in lines if "entropy" in line]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("missing", ["tyro", "gymnasium", "safetensors"])
def test_without_its_extra_the_command_says_what_to_install(missing, tmp_path, monkeypatch, capsys):
    code = f"import sys; sys.modules[{missing!r}] = None; from entreg import cli; sys.exit(cli.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run([sys.executable, "-c", code, "train", "ppo"], cwd=tmp_path, env=environment, check=False, text=True, capture_output=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "entreg[run]" in ended.stderr, ended.stderr
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert cli.main([]) == 0 and "entreg[run]" in capsys.readouterr().out
