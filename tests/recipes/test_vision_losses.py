"""What image recipes minimise, against plain counting: a twin with the same streams makes the same views, and the loss is computed from them by hand."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
from entreg.recipes import classifier, fixmatch, mean_teacher, noisy_student, pseudo_label

RECIPES = {
    mean_teacher: mean_teacher.MeanTeacher,
    fixmatch: fixmatch.FixMatch,
    noisy_student: noisy_student.NoisyStudent,
    pseudo_label: pseudo_label.PseudoLabel,
    classifier: classifier.Penalised,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(file, images=rng.uniform(size=(90, 8, 8)).astype(np.float32), labels=np.where(np.arange(90) % 5 == 4, -1, np.arange(90) % 3))
    return str(file)


def twins(recipe, data, **changes):
    """Two studies alike, whose network is sure enough of something and whose averaged network is another one."""
    given = {"data": data, "labels": 9, "hidden": (8,), "batch_size": 6, "seeds": 2, "steps": 10, "ratio": 3, **changes}
    config = recipe.Config(**{name: value for name, value in given.items() if value is not None})
    found = [RECIPES[recipe](config, [0, 1], config.steps) for _ in range(2)]
    for study in found:
        study.network.parameters.data.mul_(2)
        study.teacher.parameters.data.mul_(-1)
    return found


def weighed(pair):
    """A member's loss from values and weights, `[M]`."""
    values, weights = pair
    return (values * weights).sum(1).detach()


def cross_entropy(logits, label):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view(label.shape)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, math.exp(-5)), (0.2, math.exp(-1.25)), (0.4, 1.0), (0.9, 1.0)])
def test_mean_teacher_agrees_with_the_averaged_network_on_another_view(data, progress, weight):
    study, twin = twins(mean_teacher, data, ramp=0.4, unlabelled_coef=7.0)
    labelled, unlabelled = study.losses(progress)
    rows, known = twin.unlabelled(), twin.drawn(twin.labelled, twin.batch)
    first, own, other = twin.view(known, strong=False), twin.view(rows, strong=False), twin.view(rows, strong=False)
    assert not torch.equal(own, other)
    student, teacher = twin.network(own).softmax(-1), twin.teacher(other).softmax(-1)
    torch.testing.assert_close(weighed(labelled), cross_entropy(twin.network(first), twin.images.label[known]).mean(1).detach())
    torch.testing.assert_close(weighed(unlabelled), 7 * weight * (student - teacher).square().mean((1, 2)).detach())


@pytest.mark.parametrize("align", [False, True])
def test_fixmatch_learns_the_label_of_the_weak_view_on_the_strong_one(data, align):
    study, twin = twins(fixmatch, data, threshold=0.7, align=align, align_momentum=0.0, unlabelled_coef=2.0)
    labelled, unlabelled = study.losses(0.0)
    rows, known = twin.unlabelled(), twin.drawn(twin.labelled, twin.batch)
    first, strong, weak = twin.view(known, strong=False), twin.view(rows, strong=True), twin.view(rows, strong=False)
    probs = twin.network(weak).softmax(-1).detach()
    if align:
        probs = probs / probs.mean(1, keepdim=True)
        probs = probs / probs.sum(-1, keepdim=True)
    confidence, label = probs.max(-1)
    assert 0 < (confidence >= 0.7).sum() < confidence.numel()
    expected = torch.where(confidence >= 0.7, cross_entropy(twin.network(strong), label), 0.0)
    torch.testing.assert_close(weighed(labelled), cross_entropy(twin.network(first), twin.images.label[known]).mean(1).detach())
    torch.testing.assert_close(weighed(unlabelled), 2 * expected.mean(1).detach())
    truth = twin.images.label[rows]
    counted = (confidence >= 0.7) & (truth >= 0)
    study.note(steps=torch.zeros(()))
    for member in range(2):
        assert study.facts(member)["pseudo/use"] == pytest.approx(float((confidence[member] >= 0.7).float().mean()))
        assert study.facts(member)["pseudo/accuracy"] == pytest.approx(float((label[member] == truth[member])[counted[member]].float().mean()))
    assert ((label == truth) & ~counted).any(), "some of those that do not count would be right"


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.1, 0.5), (0.3, 1.0)])
def test_pseudo_labels_gain_weight_and_are_learnt_where_they_were_made(data, progress, weight):
    study, twin = twins(pseudo_label, data, threshold=0.5, ramp=0.2, unlabelled_coef=3.0, conditional=("0",))
    _, unlabelled = study.losses(progress)
    rows, known = twin.unlabelled(), twin.drawn(twin.labelled, twin.batch)
    _, weak = twin.view(known, strong=False), twin.view(rows, strong=False)
    confidence, label = twin.network(weak).softmax(-1).max(-1)
    expected = torch.where(confidence >= 0.5, cross_entropy(twin.network(weak), label), 0.0)
    torch.testing.assert_close(weighed(unlabelled), 3 * weight * expected.mean(1).detach())


def test_the_entropy_method_is_the_conditional_entropy_alone(data, tmp_path):
    from entreg.record import read_records
    from entreg.run import Run, RunSettings

    config = pseudo_label.Config(method="entropy", data=data, labels=9, hidden=(4,), batch_size=6, steps=2)
    summary = pseudo_label.train(config, Run(RunSettings(out=tmp_path, quiet=True)))
    last = read_records(summary.folder).lines[-1]
    assert last["coef/conditional"] == 0.5 and "loss/unlabelled" not in last and "pseudo/use" not in last


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("balance", [False, True])
def test_a_student_learns_what_its_teacher_is_sure_of(data, hard, balance):
    """Balance: every class found weighs the same, and all weights together as many as there are labels."""
    study, twin = twins(noisy_student, data, hard=hard, balance=balance, dropout=0.0, threshold=0.5)
    for one in (study, twin):
        one.generation = 1
        one.targets = (3 * torch.randn(one.targets.shape, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 0.5, 0.2])).softmax(-1)
    _, unlabelled = study.losses(0.9)
    known = twin.drawn(twin.labelled, twin.batch)
    places = twin.drawn(torch.arange(twin.pool.shape[1]).expand(2, -1), twin.config.ratio * twin.batch)
    _, strong = twin.view(known, strong=True), twin.view(twin.pool.gather(1, places), strong=True)
    log_probs = twin.network(strong).log_softmax(-1).detach()
    for member in range(2):
        wanted = twin.targets[member][places[member]]
        label, sure = wanted.argmax(-1), wanted.max(-1).values >= 0.5
        count = torch.bincount(label[sure], minlength=3)
        assert 0 < sure.sum() < len(sure) and len(set(count.tolist())) > 1
        weight = sure.float()
        if balance:
            weight = torch.where(sure, sure.sum() / (count > 0).sum() / count[label].clamp_min(1), 0.0)
        loss = -log_probs[member].gather(-1, label[:, None])[:, 0] if hard else -(wanted * log_probs[member]).sum(-1)
        assert float(weighed(unlabelled)[member]) == pytest.approx(float((weight * loss).mean()), rel=1e-4)


def test_a_new_student_begins_anew_and_its_teacher_has_labelled_the_pool(data):
    study, twin = twins(noisy_student, data, students=1, dropout=0.0, learning_rate="linear(0.1, 0)")
    fresh = noisy_student.NoisyStudent(study.config, [0, 1], 10).network.parameters.data
    for step in range(5):
        study.update(step)
    twin.load_state_dict(study.state_dict())
    expected = twin.predicted(twin.images.train[twin.pool]).softmax(-1)
    assert study.generation == 0 and study.rate.value < 0.03
    study._succeed(1, 5)
    torch.testing.assert_close(study.targets, expected)
    assert study.rate.value == 0.1 and not study.optimizer.velocity.any()
    assert torch.equal(study.network.parameters.data, study.teacher.parameters.data)
    for other in (fresh, twin.network.parameters.data):
        assert (study.network.parameters.data != other).any(1).all()


def test_dropout_leaves_hidden_units_out_and_scales_the_rest(data):
    study, _ = twins(noisy_student, data, dropout=0.25, hidden=(400,))
    (noise,) = study._noise(20)
    assert noise.shape == (2, 20, 400) and noise.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((noise == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_smoothing_and_penalty_are_those_of_torch(data):
    settings = {"coef": ("0", "0.3"), "smoothing": (0.0, 0.2), "ratio": None}
    study, twin = twins(classifier, data, **settings)
    supervised, penalty = study.losses(0.0)
    rows = twin.drawn(twin.labelled, twin.batch)
    logits = twin.network(twin.plain(rows)).detach()
    for member, one in enumerate(twin.members):
        of, label = logits[member], twin.images.label[rows[member]]
        expected = torch.nn.functional.cross_entropy(of, label, label_smoothing=one["smoothing"])
        assert float(weighed(supervised)[member]) == pytest.approx(float(expected), rel=1e-5)
        entropy = torch.distributions.Categorical(logits=of).entropy().mean()
        assert float(weighed(penalty)[member]) == pytest.approx(-float(one["coef"]) * float(entropy), rel=1e-5, abs=1e-9)


def test_the_average_begins_low_and_what_is_judged_is_the_average(data):
    study, _ = twins(classifier, data, ratio=None, coef=("0",), ema=0.5)
    for step, decay in ((0, 0.1), (1, 2 / 11), (100, 0.5)):
        before = study.teacher.parameters.data.clone()
        study.update(step)
        torch.testing.assert_close(study.teacher.parameters.data, decay * before + (1 - decay) * study.network.parameters.data)
    found, test = study.predicted(study.images.test), study.scaled(study.images.test).expand(2, *study.images.test.shape).contiguous()
    torch.testing.assert_close(found, study.teacher(test, train=False))


def test_figures_of_predictions():
    from entreg.vision.study import judged

    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]))
    found = judged(logits, np.array([0, 0, 1, 1]), 3)
    assert (found["accuracy"], found["worst_recall"], found["balanced_accuracy"]) == (0.75, 0.5, 0.75)
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.6, 0.7, 0.4]).mean()) and found["nll/tempered"] <= found["nll"]


def test_an_estimated_prior_follows_the_predictions_and_the_others_stay(data):
    study, _ = twins(fixmatch, data, prior=("estimate", "uniform"), marginal=("0.5",), steps=20)
    before = study.terms.priors.clone()
    study.update(0)
    after = study.terms.priors
    assert (after[:2] != before[:2]).any(1).all() and torch.equal(after[2:], before[2:])
    torch.testing.assert_close(after.sum(1), torch.ones(4))
