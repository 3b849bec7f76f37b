"""Image recipes: a killed run resumed is the uninterrupted one, bad input writes nothing, and the claims of the pages hold in small."""

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
from entreg import cli
from entreg.recipes import classifier, fixmatch, mean_teacher, noisy_student, pseudo_label
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same

RECIPES = {"pseudo_label": pseudo_label, "fixmatch": fixmatch, "mean_teacher": mean_teacher, "noisy_student": noisy_student, "classifier": classifier}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of gray 8 x 8 images: a bright bar at another place each, and noise; a few without a label."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pictures = 0.3 * rng.uniform(size=(120, 8, 8))
    for picture, label in zip(pictures, labels, strict=True):
        picture[2 * label + 1 : 2 * label + 3, 1:7] += 0.6
    file = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(file, images=pictures.astype(np.float32), labels=np.where(np.arange(120) % 10 == 9, -1, labels))
    return str(file)


SMALL = {"steps": 12, "hidden": (8,), "batch_size": 9, "ratio": 2, "labels": 9, "seeds": 2}
BOTH = {"conditional": ("0.1",), "marginal": ("TargetEntropy(1.0)", "0"), "prior": ("estimate", "uniform")}
CASES = {
    "pseudo_label": {"threshold": 0.4, "ramp": 0.2, **BOTH},
    "fixmatch": {"threshold": 0.4, "align": True, "family": ("shannon", "renyi(2)"), "on_collapse": "rescue", **BOTH},
    "mean_teacher": BOTH,
    "noisy_student": {"students": 2, **BOTH},
    "wrn": {"network": "wrn", "depth": 10, "width": 1, "threshold": 0.4, "seeds": 1, "steps": 4},
    "classifier": {"coef": ("linear(0.2, 0)", "0"), "smoothing": (0.0, 0.1), "hinge": (0.5,), "augment": True, "ratio": None},
}


def config(case, data, **changes):
    given = {name: value for name, value in {**SMALL, **CASES[case], **changes, "data": data}.items() if value is not None}
    return RECIPES.get(case, fixmatch).Config(**given)


def trained(case, data, folder, run=None, **changes):
    return RECIPES.get(case, fixmatch).train(config(case, data, **changes), run or Run(RunSettings(out=folder, quiet=True, eval_every=5)))


class Cut(Run):
    """A run that is told to stop after a few steps."""

    def check_finite(self, step, **tensors):
        super().check_finite(step, **tensors)
        if step == 5 - 3 * ("wrn" in str(self.settings.out)):
            self.stop("enough")


@pytest.mark.parametrize("case", list(CASES))
def test_a_run_that_was_cut_goes_on_bit_for_bit(case, data, tmp_path):
    whole = trained(case, data, tmp_path / "whole")
    first = trained(case, data, None, Cut(RunSettings(out=tmp_path / f"cut-{case}", quiet=True, eval_every=5)))
    assert first.stopped == "enough" and 0 < first.step < whole.step
    again = trained(case, data, None, Run(RunSettings(out=tmp_path / f"cut-{case}", quiet=True, resume=str(first.folder))))
    assert again.folder == first.folder and again.stopped is None
    assert lasting(again.folder) == lasting(whole.folder)
    assert_same(final_state(again.folder), final_state(whole.folder))
    last = read_records(whole.folder).lines[-1]
    assert {"accuracy", "worst_recall", "calibration_error", "best_temperature", "nll"} <= last.keys()
    if case != "classifier":
        assert {"conditional", "marginal", "pseudo/use", "pseudo/accuracy", "coef/marginal"} <= last.keys()
        (plane,) = json.loads((whole.folder / "plots.json").read_text())
        assert (
            plane["title"] == "Phase plane"
            and len(plane["series"]) == len(config(case, data).marginal) * len(config(case, data).prior) * len(config(case, data).family) + 2
        )


def test_the_guard_holds_each_member_to_its_own_prior(data, tmp_path):
    (tmp_path / "prior.txt").write_text("0.9\n0.05\n0.05\n")
    given = config("fixmatch", data, prior=("uniform", str(tmp_path / "prior.txt")), marginal=("0.5",), family=("shannon",), seeds=1)
    study = fixmatch.FixMatch(given, [0], 10)
    marginals = [next(rule for rule in study.watched(member) if rule.kind == "marginal") for member in range(2)]
    assert [rule.maximum for rule in marginals] == pytest.approx([np.log(3), -0.9 * np.log(0.9) - 0.1 * np.log(0.05)], rel=1e-4)


def test_a_run_goes_on_with_its_own_images_only(data, tmp_path):
    file = tmp_path / "mine.npz"
    with np.load(data) as given:
        np.savez(file, images=given["images"], labels=given["labels"])
        first = trained("classifier", str(file), None, Cut(RunSettings(out=tmp_path / "runs", quiet=True)))
        np.savez(file, images=1 - given["images"], labels=given["labels"])
    with pytest.raises(ValueError, match=r"mine\.npz does not hold the images that this run began with"):
        trained("classifier", str(file), None, Run(RunSettings(out=tmp_path / "runs", quiet=True, resume=str(first.folder))))


def test_a_member_is_the_run_it_would_be_alone(data, tmp_path):
    together = trained("fixmatch", data, tmp_path / "two", align=False, prior=("uniform",), family=("shannon",))
    (alone,) = (
        trained(
            "fixmatch",
            data,
            tmp_path / "one",
            Run(RunSettings(out=tmp_path, quiet=True, seed=1)),
            align=False,
            prior=("uniform",),
            family=("shannon",),
            marginal=("TargetEntropy(1.0)",),
            seeds=1,
        ),
    )
    one = [line for line in lasting(alone.folder) if line["step"] == 12][-1]
    other = next(line for line in lasting(together.folder) if line["step"] == 12 and line["member"] == 1)
    assert one["conditional"] == pytest.approx(other["conditional"], rel=1e-4)
    assert one["coef/marginal"] == pytest.approx(other["coef/marginal"], rel=1e-5) and one["loss/labelled"] == pytest.approx(other["loss/labelled"], rel=1e-4)


def test_the_command_line_trains_reports_and_prints_its_settings(data, tmp_path, capfd):
    words = [
        "--data",
        data,
        "--labels",
        "9",
        "--hidden",
        "8",
        "--steps",
        "6",
        "--marginal",
        "0",
        "--marginal",
        "0.5",
        "--seeds",
        "2",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    assert cli.main(["train", "pseudo_label", *words]) == 0
    said = capfd.readouterr().out
    assert "accuracy at marginal 0" in said
    (folder,) = tmp_path.iterdir()
    page = (folder / "report.html").read_text()
    for title in ("Phase plane", "Recall of the worst class", "Expected calibration error", "Best temperature", "Pseudo-labels that are used"):
        assert title in page
    assert ("against the coefficient-0 twin" in page.lower() and "Classes did not collapse" in page) or "Classes collapsed" in page
    assert cli.main(["train", "fixmatch", "--print-config"]) == 0
    assert json.loads(capfd.readouterr().out)["task"] == "digits"


BAD = {
    "labels 2": ({"labels": 2}, "labels is 2; legal are integers from 3"),
    "prior": ({"prior": ("PRIOR",)}, r"prior: .*prior\.txt.*sum"),
    "sense": ({"sense": ("both",)}, "sense is 'both'; legal are minimize and maximize"),
    "coefficient": ({"marginal": ("lineer(1, 0)",)}, "lineer"),
    "threshold": ({"threshold": 1.5}, "threshold is 1.5; legal are numbers from 0 to 1"),
    "momentum": ({"marginal_momentum": 1.0}, "marginal_momentum is 1.0"),
    "nothing": ({"family": ()}, "family is ()"),
    "rate": ({"learning_rate": "-1"}, "learning_rate must"),
    "wrn": ({"network": "wrn", "depth": 11}, "depth is 11"),
    "data": ({"data": "nothing.npz"}, "data is 'nothing.npz'"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_error_and_nothing_is_written(name, data, tmp_path):
    changes, words = BAD[name]
    if name == "prior":
        (tmp_path / "prior.txt").write_text("0.5\n0.5\n0.5\n")
        changes = {"prior": (str(tmp_path / "prior.txt"),)}
    given = {**SMALL, "data": data, **changes}
    with pytest.raises(ValueError, match=words if name == "prior" else re.escape(words)) as said:
        fixmatch.train(fixmatch.Config(**given), Run(RunSettings(out=tmp_path / "runs", quiet=True)))
    assert "\n" not in str(said.value) and not (tmp_path / "runs").exists()


def test_images_that_are_not_finite_write_nothing(tmp_path):
    pictures = np.zeros((12, 8, 8), np.float32)
    pictures[4, 0, 0] = -np.inf
    np.savez(tmp_path / "x.npz", images=pictures, labels=np.arange(12) % 3)
    assert cli.main(["train", "classifier", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "runs")]) == 2
    assert not (tmp_path / "runs").exists()


def test_a_classifier_that_a_penalty_keeps_undecided_is_seen_and_rescued(data, tmp_path):
    strong = {"coef": ("3", "0"), "smoothing": (0.0,), "hinge": (1.0,), "augment": False, "steps": 150, "hidden": (16,), "seeds": 1}
    stopped = trained("classifier", data, tmp_path / "stop", on_collapse="stop", **strong)
    (alarm,) = [line for line in read_records(stopped.folder).lines if line.get("event") == "collapse"]
    assert stopped.stopped == "collapse" and "collapse of member 0" in alarm["message"] and "conditional entropy" in alarm["message"]
    rescued = trained("classifier", data, tmp_path / "rescue", on_collapse="rescue", **strong)
    last = {line["member"]: line for line in read_records(rescued.folder).lines if line.get("step") == 150 and "coef" in line}
    assert last[0]["rescued"] == 1 and last[1]["rescued"] == 0 and last[0]["coef"] < 1.5 and last[1]["coef"] == 0


def test_a_network_that_diverges_is_stopped(data, tmp_path):
    from entreg.run import NonFinite

    with pytest.raises(NonFinite, match=r"(loss|parameters|logits of the test images) at step"):
        trained("classifier", data, tmp_path, learning_rate="1e30")


def test_the_hinge_leaves_undecided_predictions_alone_and_smoothing_is_torchs():
    """At the start of training (entropy near its maximum) a hinge of .5 gives no penalty: the gradient is that of the coefficient 0."""
    pytest.importorskip("sklearn")
    grads = []
    for coef, hinge in (("0", 1.0), ("0.3", 0.5), ("0.3", 1.0)):
        study = classifier.Penalised(classifier.Config(coef=(coef,), hinge=(hinge,), hidden=(4,), smoothing=(0.1,), batch_size=32), [0], 10)
        study.network.parameters.data.mul_(0.5)
        study.network.parameters.backward(*study.losses(0.0))
        grads.append(study.network.parameters.grad)
    torch.testing.assert_close(grads[0], grads[1])
    assert not torch.allclose(grads[0], grads[2], rtol=1e-3)


def digits(recipe, folder, **changes):
    """Accuracy, worst recall and effective classes at the end, means over the seeds of each setting in turn."""
    pytest.importorskip("sklearn")
    config = recipe.Config(**{"seeds": 3, "steps": 300, **changes})
    summary = recipe.train(config, Run(RunSettings(out=folder, quiet=True)))
    last = [line for line in read_records(summary.folder).lines if line["step"] == config.steps and "member" in line]
    rows = np.array([[line["balanced_accuracy"], line["worst_recall"], line["marginal/perplexity"]] for line in last])
    return rows.reshape(-1, config.seeds, 3).mean(1)


@pytest.mark.slow
def test_digits_entropy_minimisation_loses_classes_without_the_marginal(tmp_path):
    """Twenty labels; bench/ssl.py has ten seeds. A strong term makes the collapse visible in 300 steps."""
    without, with_marginal = digits(pseudo_label, tmp_path, method="entropy", conditional=("1",), marginal=("0", "1"))
    assert with_marginal[0] > without[0] + 0.01 and with_marginal[1] > without[1] + 0.05 and with_marginal[2] > without[2], (without, with_marginal)


@pytest.mark.slow
def test_digits_a_bonus_on_the_conditional_entropy_of_unlabelled_images_hurts(tmp_path):
    plain, bonus = (digits(fixmatch, tmp_path, seeds=2, sense=("maximize",), conditional=(coef,))[0] for coef in ("0", "0.5"))
    assert bonus[0] < plain[0] - 0.03, (plain, bonus)


@pytest.mark.slow
def test_digits_thinned_fifty_to_one_the_true_prior_beats_the_uniform_one(tmp_path):
    from entreg.vision import images, split

    found = images.load("digits")
    kept, _ = split.counts(found.label.numpy(), 10, 20, 50.0)
    (tmp_path / "prior.txt").write_text("\n".join(map(str, kept / kept.sum())))
    uniform, true = digits(fixmatch, tmp_path, imbalance=50.0, marginal=("0.5",), prior=("uniform", str(tmp_path / "prior.txt")))
    assert true[0] > uniform[0] and true[2] < uniform[2] - 1, (uniform, true)
