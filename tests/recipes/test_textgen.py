"""Language models: they learn, the penalty raises entropy, what is measured is right, and runs are runs."""

import json
import math

import numpy as np
import pytest
import torch

from entreg import cli
from entreg.recipes import textgen
from entreg.recipes.textgen import Config, TextGen
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.lm.test_text import paragraphs
from tests.recipes.test_resume import assert_same

SMALL = {"vocabulary": 48, "width": 16, "layers": 1, "context": 16, "batch": 8, "samples": 4, "seeds": 1}


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    monkeypatch.setattr(textgen, "JUDGED", 8)


@pytest.fixture
def book(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "book.txt"
    file.write_text("\n\n".join(paragraphs(80)))
    return str(file)


def trained(folder, config, **settings):
    summary = textgen.train(config, Run(RunSettings(out=folder, quiet=True, **settings)))
    return summary, [line for line in read_records(summary.folder).lines if line["step"] == summary.step and "member" in line]


def test_it_learns_the_penalty_raises_entropy_and_the_report_shows_curves(tmp_path, book):
    """Eight words and numbers: 3 bits a word of 5.4 characters are to be had, characters drawn evenly cost 4 bits each."""
    config = Config(text=book, coef=("0.5", "0"), steps=200, learning_rate="0.01", **SMALL)
    summary, (raised, plain) = trained(tmp_path, config)
    assert plain["bits_per_character"] < 1.3, plain
    assert raised["entropy"] > plain["entropy"] + 0.1
    for row in (raised, plain):
        assert 0.6 <= row["best_temperature"] <= 1.6
    assert raised["best_temperature"] < plain["best_temperature"], "what training flattened is sharpened again"
    curves = json.loads((summary.folder / "curves.json").read_bytes())
    assert [way["temperature"] for way in curves[0]] == [0.0, *textgen.TEMPERATURES, 1.0] and curves[0][-1]["top_p"] == 0.9
    plots = json.loads((summary.folder / "plots.json").read_bytes())
    assert [plot["title"] for plot in plots] == ["Quality and diversity", "Quality and repetition", "Different bigrams"]
    assert [len(series["x"]) for series in plots[0]["series"]] == [8, 1, 8, 1]


def fitted(book, **changes):
    config = Config(**{"text": book, **SMALL, "coef": ("0",), **changes})
    return TextGen(config, range(config.seeds), config.steps)


def test_bits_per_character_are_those_of_plain_counting(book):
    fit = fitted(book)
    fit.model.parameters.data.add_(0.2 * torch.randn(fit.model.parameters.data.shape, generator=torch.Generator().manual_seed(1)))
    found, entropy = fit.bits(fit.test, np.array([1.0, 0.7]), 3)
    starts = np.linspace(0, len(fit.test) - 17, 3).astype(int)
    total, characters, entropies = 0.0, 0, []
    for start in starts:
        row = fit.test[start : start + 17]
        with torch.no_grad():
            logits = fit.model(torch.from_numpy(row[None, None, :16]))[0, 0].double()
        log_probs = (logits / 0.7).log_softmax(-1)
        total -= sum(float(log_probs[place, row[place + 1]]) for place in range(16))
        characters += len(fit.words.decode(row[1:]))
        plain = logits.softmax(-1)
        entropies.append(float(-(plain * plain.log()).sum(-1).mean()))
    assert found[0, 1] == pytest.approx(total / characters / math.log(2), rel=1e-5)
    assert entropy[0] == pytest.approx(np.mean(entropies), rel=1e-5)


def test_the_temperature_is_chosen_on_the_validation_text_and_judged_on_the_test_text(book, monkeypatch):
    fit = fitted(book)
    grid = np.arange(len(textgen.SCALES), dtype=float)
    courses = {id(fit.valid): (grid - 3) ** 2, id(fit.test): (grid - 9) ** 2}
    monkeypatch.setattr(fit, "bits", lambda tokens, scales, count: (courses[id(tokens)][None], np.ones(1)))
    (row,) = fit.rows(0, evaluate=True)
    assert row["best_temperature"] == textgen.SCALES[3] and row["bits_per_character"] == 36.0


def test_quality_is_against_held_out_text_and_self_bleu_against_the_other_samples(book, monkeypatch):
    fit = fitted(book)
    monkeypatch.setattr(textgen.text, "bleu", lambda samples, references=None: 2.0 if references is None else float(references is fit.references))
    assert {(way["quality"], way["self_bleu"]) for way in fit.judged()[0]} == {(1.0, 2.0)}
    assert fit.references == [part.split() for part in textgen.text.load(book).test]


def test_unlikelihood_is_that_of_plain_counting():
    logits = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    seen, following = torch.tensor([[[1, 2, 1, 3]]]), torch.tensor([[[2, 1, 3, 0]]])
    probs = logits.softmax(-1)[0, 0]
    before = [{1}, {1, 2} - {1}, {1, 2} - {3}, {1, 2, 3}]
    expected = [-sum(math.log(1 - float(probs[place, token])) for token in of) for place, of in enumerate(before)]
    assert textgen.unlikelihood(logits, seen, following)[0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_unlikelihood_lowers_what_stood_before(tmp_path, book):
    _, (plain, pushed) = trained(tmp_path, Config(text=book, coef=("0",), unlikelihood=(0.0, 1.0), steps=60, learning_rate="0.01", **SMALL))
    assert pushed["greedy/repetition"] < plain["greedy/repetition"] - 0.1


def test_members_are_the_runs_they_would_be_alone(tmp_path, book):
    config = {**SMALL, "text": book, "steps": 6}
    _, both = trained(tmp_path, Config(**config | {"seeds": 2}), seed=4)
    _, alone = trained(tmp_path, Config(**config, coef=("0",)), seed=5)
    for name in ("loss", "bits_per_character", "entropy"):
        assert both[3][name] == pytest.approx(alone[0][name], rel=1e-4), name


@pytest.mark.parametrize(
    "words", [("--family", "tsallis(2)", "--unlikelihood", "0.5"), ("--coef", "TargetEntropy(fraction_of_max(0.5))", "--on-collapse", "rescue")]
)
def test_stopped_and_resumed_is_uninterrupted(tmp_path, monkeypatch, book, words):
    base = ["train", "textgen", "--text", book, "--steps", "16", "--seeds", "2", "--vocabulary", "48", "--width", "8", "--context", "16", "--samples", "3"]
    base += ["--quiet", "--checkpoint-every", "0", *words]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    real = TextGen.update

    def interrupted(self, step):
        if step == 9:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(TextGen, "update", interrupted)
    assert cli.main([*base, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(TextGen, "update", real)
    assert cli.main(["train", "textgen", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (expected,), (folder,) = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))
    assert (folder / "curves.json").read_bytes() == (expected / "curves.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "absent.txt"}, r"text: absent\.txt cannot be read"),
        ({"heads": 3}, "heads is 3; legal are divisors of width 16"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"unlikelihood": (-1.0,)}, "unlikelihood is"),
        ({"max_grad_norm": math.inf}, "max_grad_norm is inf"),
        ({"vocabulary": 5}, "vocabulary is 5, and the text has"),
        ({"context": 4}, "context is 4"),
        ({"context": 5000}, "context is 5000, and the text to judge by"),
        ({"family": ("tsallis(2)",), "on_collapse": "rescue"}, "on_collapse is rescue with family"),
        ({"coef": ("TargetEntropy(greedy_probability(0.001))",)}, "greedy_probability"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, book, change, message):
    with pytest.raises(ValueError, match=message):
        textgen.train(Config(**{"text": book, **SMALL, **change}), Run(RunSettings(out=tmp_path, quiet=True)))
    assert not list(tmp_path.iterdir())
