"""The language-model recipes from the command line: what they record, that a stopped run resumes as if it had not stopped, what they refuse."""

import importlib
import json
import math
import os
import shutil
import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file

from entreg import cli
from entreg.lm import running
from entreg.record import read_records
from entreg.run import NonFinite, Run, RunSettings
from tests.faults import lasting, python, start, wait

SMALL = {"warm_up": 20, "steps": 6, "batch_size": 8, "eval_samples": 4}
CASES = {
    "sft": {"coef": "linear(0.1, 0)", "warm_up": 0, "accumulation": 2},
    "grpo": {"coef": "TargetEntropy(2.0)", "family": "renyi(2)", "over": "trajectory", "beta": 0.1, "group": 4, "clip_high": 0.28, "top_entropy": 0.5},
    "dpo": {"coef": "PI(2.0, 0.1, 0.01, (-1, 1))", "entropy_weight": 0.2},
    "rlhf": {"coef": "0.01", "group": 4, "reward_steps": 3, "family": "tsallis(2)"},
}


def config(name, **settings):
    recipe = importlib.import_module(f"entreg.recipes.{name}")
    return recipe, recipe.Config(**{**SMALL, **CASES[name], **settings})


def trained(name, out, run=Run, **settings):
    recipe, one = config(name, **settings)
    return recipe.train(one, run(RunSettings(out=out, quiet=True, checkpoint_every=1000)))


class Halting(Run):
    """Stops of itself after the third step."""

    def log(self, step, **values):
        super().log(step, **values)
        if step == 3:
            self.stop("enough")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", list(CASES))
def test_stopped_and_resumed_is_uninterrupted(name, tmp_path):
    whole = trained(name, tmp_path / "whole")
    first = trained(name, tmp_path / "cut", Halting)
    assert (first.stopped, first.step, whole.stopped, whole.step) == ("enough", 4, None, 6)
    recipe, one = config(name)
    if name == "sft":
        refuses_other_ranks(recipe, one, first)
    second = recipe.train(one, Run(RunSettings(resume=str(first.folder), quiet=True)))
    assert second.metrics == whole.metrics and second.stopped is None
    assert lasting(second.folder) == lasting(whole.folder)
    models = [load_file(run.folder / "model" / "model.safetensors") for run in (whole, second)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    again = recipe.train(one, Run(RunSettings(resume=str(first.folder), quiet=True)))
    assert again.metrics == whole.metrics and lasting(again.folder) == lasting(whole.folder)
    check_records(name, read_records(whole.folder).lines)


def refuses_other_ranks(recipe, one, stopped):
    """Two ranks would go through the data of one at twice the speed."""
    two = SimpleNamespace(part=SimpleNamespace(of=2, rank=0), first=lambda value: value, agree=lambda reason, due: (reason, due))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "here", lambda: two)
        with pytest.raises(ValueError, match="resume: the run has 1 ranks, and 2 were started; legal is the same number"):
            recipe.train(one, Run(RunSettings(resume=str(stopped.folder), quiet=True)))


def check_records(name, lines):
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    expected = {"entropy", "entropy/family", "entropy/perplexity", "coef", "grad_share", "loss", "learning_rate"}
    expected |= {"return", "length"} if name in ("grpo", "rlhf") else set()
    expected |= {"kl", "grad_share/kl"} if name == "grpo" else set()
    assert all(line.keys() >= expected for line in steps)
    assert all(line["entropy/perplexity"] == pytest.approx(math.exp(line["entropy"])) for line in steps)
    assert ("entropy/target" in steps[0]) == (name in ("grpo", "dpo"))
    ends = [line for line in lines if "eval/pass@1" in line]
    assert [line["step"] for line in ends] == [0, 6] and ends[0].keys() >= {"eval/pass@4", "eval/distinct", "eval/distinct/max", "eval/entropy"}
    if name == "rlhf":
        assert any(line.get("event") == "reward_model" for line in lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.lm import trainers

    folder = tmp_path_factory.mktemp("model")
    trainers.model(folder)
    return folder


@pytest.fixture
def offline(monkeypatch):
    """No way out of this machine."""

    def refused(*_, **__):
        raise AssertionError("something wants the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.usefixtures("offline")
def test_from_the_command_line_and_then_decoded(model, tmp_path, capsys):
    small = ["--steps", "2", "--batch-size", "8", "--group", "4", "--eval-samples", "4", "--quiet", "--out", str(tmp_path)]
    assert cli.main(["train", "grpo", "--model", str(model), *small, "--coef", "0.01", "--no-shares"]) == 0
    (folder,) = tmp_path.glob("grpo-*")
    assert f"entreg train decode --model {folder / 'model'}" in capsys.readouterr().out and (folder / "report.html").exists()
    assert "grad_share" not in json.dumps(read_records(folder).lines)
    words = ["--against", str(model), "--temperatures", "0", "1", "--samples", "8", "--k", "1", "8", "--quiet", "--out", str(tmp_path)]
    assert cli.main(["train", "decode", "--model", str(folder / "model"), *words]) == 0
    (folder,) = tmp_path.glob("decode-*")
    assert capsys.readouterr().err == ""
    lines = [line for line in read_records(folder).lines if "temperature" in line]
    assert [(line["step"], line["member"], line["temperature"]) for line in lines] == [(1, 0, 0.0), (1, 1, 0.0), (2, 0, 1.0), (2, 1, 1.0)]
    assert all(line["distinct"] <= 1 and line["pass@1"] == line["pass@8"] for line in lines[:2])  # temperature 0 gives one answer
    assert all(line["pass@8"] >= line["pass@1"] for line in lines)
    plots = {plot["title"]: plot["series"] for plot in json.loads((folder / "plots.json").read_text())}
    assert list(plots) == ["Quality and diversity", "Different right answers", "pass@1", "pass@8"]
    for member, series in enumerate(plots["Quality and diversity"]):
        own = [line for line in lines if line["member"] == member]
        assert (series["x"], series["y"]) == ([line["distinct"] for line in own], [line["pass@1"] for line in own]) and series["text"] == ["0", "1"]
    assert cli.main(["train", "--resume", str(folder), "--quiet"]) == 0


def test_a_dry_run_keeps_nothing(model, tmp_path):
    assert cli.main(["train", "dpo", "--model", str(model), "--batch-size", "4", "--eval-samples", "2", "--dry-run", "--quiet", "--out", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def spoilt(model, tmp_path_factory):
    """Folders of the same model without weights, with a tokenizer that cannot pad, and with one whose pad token the model does not have."""
    from entreg.lm import models

    folders = {}
    for name, change in {"PADLESS": lambda one: setattr(one, "pad_token", None), "NEWPAD": lambda one: one.add_special_tokens({"pad_token": "<new>"})}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        shutil.copytree(model, folders[name], dirs_exist_ok=True)
        tokenizer = models.load_tokenizer(model)
        change(tokenizer)
        tokenizer.save_pretrained(folders[name])
    folders["HOLLOW"] = tmp_path_factory.mktemp("HOLLOW")
    shutil.copytree(model, folders["HOLLOW"], dirs_exist_ok=True)
    (folders["HOLLOW"] / "model.safetensors").unlink()
    return folders


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sft --model nowhere", "model: 'nowhere' is no folder on this machine"),
        ("dpo --model nowhere", "model: 'nowhere' is no folder on this machine"),
        ("rlhf --model nowhere", "model: 'nowhere' is no folder on this machine"),
        ("sft --model PADLESS", "has no pad token"),
        ("grpo --model PADLESS", "has no pad token"),
        ("rlhf --model PADLESS", "has no pad token"),
        ("dpo --model PADLESS", "has no pad token"),
        ("decode --model PADLESS", "has no pad token"),
        ("sft --model NEWPAD", "pads with '<new>', token 259, and the model has 258 tokens"),
        ("sft --coef TargetEntropy(6.0)", "its target is 6; legal is 0 <= target < 5.55296"),
        ("dpo --coef PI(6,1,1,(0,1))", "its target is 6; legal is 0 <= target < 5.55296"),
        ("rlhf --coef Thermostat(6,0.1)", "its target is 6; legal is 0 <= target < 5.55296"),
        ("grpo --model nowhere", "model: 'nowhere' is no folder on this machine"),
        ("rlhf --reward-model nowhere", "reward_model: 'nowhere' is no folder"),
        ("rlhf --reward-model MODEL", "holds Qwen2ForCausalLM"),
        ("sft --model HOLLOW", "holds no model.safetensors"),
        ("grpo --model HOLLOW", "holds no model.safetensors"),
        ("grpo --beta inf", "beta is inf; legal are finite numbers from 0"),
        ("decode", "model: '' is no folder"),
        ("decode --model MODEL --k 1 100", "k is (1, 100)"),
        ("decode --model MODEL --temperatures -1", "temperatures is (-1.0,)"),
        ("grpo --task mul", "task is 'mul'"),
        ("grpo --group 5", "group is 5 with batch_size 256"),
        ("grpo --coef lineer(1)", "'lineer' is unknown here"),
        ("grpo --coef TargetEntropy(6.0)", "its target is 6; legal is 0 <= target < 5.55296"),
        ("sft --coef Plateau(0.1,3)", "which reads reward; legal here"),
        ("dpo --entropy-weight 0", "entropy_weight is 0.0"),
        ("dpo --steps 0", "steps is 0"),
        ("grpo --temperature 0", "temperature is 0.0"),
        ("rlhf --beta -1", "beta is -1.0"),
        ("sft --top-p 0", "top_p is 0.0"),
        ("dpo --clamp 1", "clamp is 1.0"),
        ("grpo --clamp 0.9 --coef TargetEntropy(5)", "its target is 5; legal is 0 <= target < 3.2"),
        ("rlhf --group 5", "group is 5 with batch_size 32"),
    ],
)
def test_wrong_words_are_one_line_and_leave_nothing(words, message, model, spoilt, tmp_path, capsys):
    given = [str({"MODEL": model, **spoilt}.get(word, word)) for word in words.split()]
    assert cli.main(["train", *given, "--quiet", "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_evaluations_on_the_way_change_nothing_else(model, tmp_path):
    recipe, one = config("sft", model=str(model), accumulation=1)
    plain, judged = (recipe.train(one, Run(RunSettings(out=tmp_path / name, quiet=True, eval_every=every))) for name, every in (("plain", None), ("judged", 2)))
    steps = [[line["step"] for line in read_records(run.folder).lines if "eval/pass@1" in line] for run in (plain, judged)]
    assert steps == [[0, 6], [0, 2, 4, 6]] and plain.metrics == judged.metrics


def test_a_first_target_is_said_where_nothing_was_controlled(model, tmp_path):
    for coef, said in (("0", True), ("0.1", False)):
        run = trained("sft", tmp_path / coef, model=str(model), coef=coef, steps=10, accumulation=1)
        assert any(line.get("event") == "target" for line in read_records(run.folder).lines) == said


class Caught(Exception):
    """What a trainer would have been told."""


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "told"),
    [
        (
            "grpo",
            "GRPOConfig",
            {"clip": 0.1, "clip_high": 0.28, "top_entropy": 0.2, "iterations": 3, "beta": 0.04, "temperature": 0.7, "accumulation": 5},
            {"epsilon": 0.1, "epsilon_high": 0.28, "top_entropy_quantile": 0.2, "num_iterations": 3, "beta": 0.04, "temperature": 0.7, "num_generations": 4}
            | {"gradient_accumulation_steps": 5, "per_device_train_batch_size": 8, "max_steps": 6, "top_k": 0},
        ),
        ("rlhf", "RLOOConfig", {"clip": 0.1, "beta": 0.7, "reward_model": "REWARD"}, {"epsilon": 0.1, "beta": 0.7, "num_generations": 4, "top_k": 0}),
        ("dpo", "DPOConfig", {"beta": 0.3, "learning_rate": 0.5}, {"beta": 0.3, "learning_rate": 0.5}),
    ],
)
def test_flags_reach_the_trainer(name, arguments, settings, told, model, tmp_path, monkeypatch):
    from entreg.lm import models

    def catch(**given):
        raise Caught(given)

    monkeypatch.setattr(importlib.import_module(f"entreg.recipes.{name}"), arguments, catch)
    if "reward_model" in settings:
        settings = {**settings, "reward_model": str(models.save(*models.load(model, scores=True), tmp_path / "reward"))}
    with pytest.raises(Caught) as caught:
        trained(name, tmp_path / "runs", model=str(model), **settings)
    assert caught.value.args[0].items() >= told.items()


class Impatient(Run):
    """Is to stop before anything has begun."""

    def start(self, *given, **how):
        super().start(*given, **how)
        self.stop("enough")

    def hurry(self):
        raise SystemExit(143)


def test_a_reward_model_in_training_stops_with_the_run(model, tmp_path):
    stopped = trained("rlhf", tmp_path, Impatient, model=str(model))
    assert (stopped.stopped, stopped.step) == ("enough", 0) and not (stopped.folder / "reward").exists()


def test_a_warm_up_ends_with_the_run_while_its_rows_are_made_and_in_each_batch(tmp_path):
    from entreg.lm import arithmetic
    from entreg.lm import start as warm

    with pytest.raises(SystemExit):
        trained("sft", tmp_path, Impatient, warm_up=3)
    asked = []
    warm.beginner(arithmetic.make("split"), 0, steps=33, width=16, pause=lambda: asked.append(1))
    assert len(asked) == 33 + 2


def test_a_reward_model_reads_with_its_own_tokenizer(model, tmp_path, monkeypatch):
    from entreg.lm import arithmetic, models

    words = models.byte_tokenizer(arithmetic.texts(arithmetic.make("split")))
    words.add_tokens(["0+"])
    models.save(models.tiny_model(words, width=16), words, tmp_path / "body")
    models.save(*models.load(tmp_path / "body", scores=True), tmp_path / "reward")
    recipe, seen = importlib.import_module("entreg.recipes.rlhf"), []
    scored = recipe.scored
    monkeypatch.setattr(recipe, "scored", lambda network, tokenizer: seen.append(tokenizer("0+4")["input_ids"]) or scored(network, tokenizer))
    trained("rlhf", tmp_path / "runs", model=str(model), reward_model=str(tmp_path / "reward"), steps=1)
    assert seen == [words("0+4")["input_ids"]] and len(seen[0]) < 3


def test_a_loss_that_is_not_finite_ends_the_run(model, tmp_path):
    with pytest.raises(NonFinite, match="at step"):
        trained("sft", tmp_path, model=str(model), learning_rate=1e30, coef="0", accumulation=1)
    (folder,) = tmp_path.iterdir()
    assert read_records(folder).lines[-1]["event"] == "nonfinite"


@pytest.mark.slow
def test_entropy_collapses_without_control_and_is_held_with_it(tmp_path):
    """bench/grpo.py is the study, with three seeds and 10 %."""
    from bench import grpo

    plain, place = grpo.trained(0, "0", 60, tmp_path)
    target = 0.8 * plain["first"]
    held, _ = grpo.trained(0, grpo.CONTROLLER.format(target=target), 60, tmp_path)
    assert plain["last"] < 0.75 * target
    assert abs(held["last"] / target - 1) < 0.2
    assert held["distinct"] > plain["distinct"]
    assert any(line.get("event") == "target" for line in read_records(place).lines)  # where the first target is said


@pytest.mark.slow
def test_torchrun_trains_one_policy_and_only_the_first_rank_writes(model, tmp_path):
    words = ["--model", model, "--steps", "3", "--batch-size", "8", "--group", "4", "--eval-samples", "4", "--coef", "TargetEntropy(2.0)", "--quiet"]
    process = start(python("torch.distributed.run", "--nproc-per-node", "2", "-m", "entreg", "train", "grpo", *words, "--out", tmp_path / "runs"))
    ended = wait(process, 300)
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    lines = read_records(folder).lines
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3] and len([line for line in lines if "eval/pass@1" in line]) == 2
    assert (folder / "model" / "model.safetensors").exists()
