"""Clustering: the marginal prevents collapse, matched families agree, scores are right, runs are runs; digits with scikit-learn."""

import itertools
import json

import numpy as np
import pytest
import torch

from entreg import cli, functional
from entreg.functional import renyi, tsallis
from entreg.recipes import clustering
from entreg.recipes.clustering import Clustering, Config
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same

pytest.importorskip("sklearn")


@pytest.fixture
def blobs(tmp_path_factory):
    """Four blobs of pictures, 5 x 4, whose squares stand in four corners."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    x = 0.3 * rng.normal(size=(120, 5, 4))
    for index, label in enumerate(y):
        x[index, 3 * (label // 2) : 3 * (label // 2) + 2, 2 * (label % 2) : 2 * (label % 2) + 2] += 1
    file = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(file, x=x, y=y)
    return str(file)


SMALL = {"hidden": (32,), "batch": 64, "steps": 120, "learning_rate": "0.01", "seeds": 2, "shift": 0}


def trained(folder, config, **settings):
    summary = clustering.train(config, Run(RunSettings(out=folder, quiet=True, **settings)))
    return summary, [line for line in read_records(summary.folder).lines if line["step"] == summary.step and "member" in line]


def test_clusters_are_lost_without_the_marginal_and_found_with_it(tmp_path, blobs):
    methods = ("mutual_information", "sinkhorn", "kmeans")
    try:
        import ot  # noqa: F401
    except ImportError:
        methods = ("mutual_information", "kmeans")
    summary, rows = trained(tmp_path, Config(data=blobs, method=methods, **SMALL))
    found, none, *others = (rows[index : index + 2] for index in range(0, len(rows), 2))
    assert all(row["clusters"] > 3.9 and row["accuracy"] > 0.95 and row["nmi"] > 0.9 and row["ari"] > 0.9 for row in found), found
    assert all(row["clusters"] < 3.2 and row["accuracy"] < 0.8 for row in none), none
    assert all(row["accuracy"] > 0.95 for row in others[-1]) and all(row["accuracy"] > 0.7 for row in others[0]), others
    assert np.load(summary.folder / "clusters.npz")["cluster"].shape == (len(rows), 120)
    plots = json.loads((summary.folder / "plots.json").read_bytes())
    assert [plot["title"] for plot in plots][:2] == ["Shares of the clusters: marginal 1.5, shannon", "Shares of the clusters: marginal 0, shannon"]
    assert {"coef/marginal", "coef/conditional"} <= found[0].keys() and "coef" not in found[0], "which of the two entropies is weighed is said"
    assert np.sum([series["y"] for series in plots[0]["series"]], axis=0) == pytest.approx(1)


@pytest.mark.slow
def test_digits_end_in_more_clusters_than_nine_and_above_kmeans(tmp_path):
    _, rows = trained(tmp_path, Config(seeds=3, steps=400))
    found, none, rival = rows[:3], rows[3:6], rows[6:]
    assert all(row["clusters"] > 9.5 for row in found) and all(row["clusters"] < 1.5 for row in none)
    assert np.mean([row["accuracy"] for row in found]) > np.mean([row["accuracy"] for row in rival]) - 0.02, rows
    assert np.mean([row["accuracy"] for row in none]) < 0.2


@pytest.mark.parametrize("family", [renyi(2), tsallis(2), tsallis(3)], ids=str)
def test_matched_families_pull_as_strongly_near_uniform_and_unmatched_ones_do_not(blobs, family):
    """Gradients of both terms at logits close to 0, against Shannon's."""
    text = f"{family.name}({family.order})"
    logits = 0.01 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    gradients = {}
    for name, match in (("shannon", "curvature"), (text, "curvature"), (text, "none")):
        config = Config(data=blobs, family=(name,), match=(match,), method=("mutual_information",), marginal=("1.5",), consistency=0.0, **SMALL | {"seeds": 1})
        leaf = logits.clone().requires_grad_()
        Clustering(config, [0], 10).terms[0].loss(leaf, leaf.detach()).backward()
        gradients[name, match] = leaf.grad
    expected = gradients["shannon", "curvature"]
    assert float((gradients[text, "curvature"] - expected).norm() / expected.norm()) < 0.05
    ratio = float(gradients[text, "none"].norm() / expected.norm())
    assert ratio == pytest.approx(2 * functional.curvature(family, 4), rel=0.05) and abs(ratio - 1) > 0.3


def test_a_loss_is_that_of_plain_counting(blobs):
    """Agreement with the perturbed copy, sureness, and equal shares, each by its weight; a Sinkhorn target is that of the item itself."""
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(16, 4, generator=generator) for _ in range(2))
    config = Config(data=blobs, method=("mutual_information", "sinkhorn"), marginal=("1.5",), conditional="0.3", consistency=0.7, **SMALL | {"seeds": 1})
    plain, sinkhorn = Clustering(config, [0], 10).terms
    p, log_q = own.softmax(-1), other.log_softmax(-1)
    agreement = (p * (p.log() - log_q)).sum(-1).mean()
    mean = p.mean(0)
    expected = 0.7 * agreement - 0.3 * (p * p.log()).sum(-1).mean() + 1.5 * (mean * mean.log()).sum()
    torch.testing.assert_close(plain.loss(own, other), expected)
    pytest.importorskip("ot")
    target = clustering.transported(own, torch.full((4,), 0.25), config.epsilon)
    torch.testing.assert_close(sinkhorn.loss(own, other), -(target * log_q).sum(-1).mean())


def test_the_true_prior_is_matched(tmp_path, blobs):
    """Blobs of 3:1:1:1, the prior of which is known."""
    with np.load(blobs) as file:
        keep = np.concatenate([np.flatnonzero(file["y"] == 0), *(np.flatnonzero(file["y"] == k)[:10] for k in (1, 2, 3))])
        np.savez(tmp_path / "some.npz", x=file["x"][keep], y=file["y"][keep])
    (tmp_path / "prior.txt").write_text("0.5\n0.1667\n0.1667\n0.1666\n")
    config = {**SMALL, "data": str(tmp_path / "some.npz"), "method": ("mutual_information",), "marginal": ("1.5",), "batch": 60}
    known = trained(tmp_path / "runs", Config(**config, prior=str(tmp_path / "prior.txt")))[1]
    even = trained(tmp_path / "runs", Config(**config))[1]
    assert all(row["marginal"] == pytest.approx(1.242, abs=0.06) for row in known), known
    assert all(row["marginal"] == pytest.approx(np.log(4), abs=0.06) for row in even), even


def test_scores_are_those_of_enumeration():
    rng = np.random.default_rng(1)
    labels, classes = rng.integers(4, size=60), rng.integers(3, size=60)
    best = max(np.mean(np.array(order)[labels] == classes) for order in itertools.permutations(range(4)))
    assert clustering.agreement(labels, classes)["accuracy"] == pytest.approx(best)
    same = clustering.agreement((classes + 1) % 3, classes)
    assert same == pytest.approx({"accuracy": 1.0, "nmi": 1.0, "ari": 1.0})


def test_pictures_move_and_zeros_come_in():
    x = torch.arange(1.0, 7).view(1, 1, 6).expand(1, 3, 6)
    by = torch.tensor([[[1, 2, 0], [1, 1, 2]]])
    moved = clustering.shifted(x, by, (2, 3), 1)[0].view(3, 2, 3)
    assert moved.tolist() == [[[1, 2, 3], [4, 5, 6]], [[4, 5, 6], [0, 0, 0]], [[0, 0, 0], [2, 3, 0]]]


def test_sinkhorn_gives_the_shares_of_the_prior():
    pytest.importorskip("ot")
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(2)) + torch.tensor([3.0, 0.0, 0.0])
    plan = clustering.transported(logits, torch.tensor([0.2, 0.3, 0.5]), 0.5)
    torch.testing.assert_close(plan.sum(1), torch.ones(200))
    torch.testing.assert_close(plan.mean(0), torch.tensor([0.2, 0.3, 0.5]), atol=1e-2, rtol=0)
    assert float(logits.softmax(-1).mean(0)[0]) > 0.7


def test_members_are_the_runs_they_would_be_alone(tmp_path, blobs):
    config = SMALL | {"data": blobs, "steps": 10, "shift": 1, "momentum": 0.9}
    _, both = trained(tmp_path, Config(**config), seed=4)
    _, alone = trained(tmp_path, Config(**config | {"seeds": 1, "marginal": ("0",)}), seed=5)
    for name in ("conditional", "marginal", "accuracy", "clusters"):
        assert both[3][name] == pytest.approx(alone[0][name], rel=1e-4), name
    assert both[5]["accuracy"] == alone[1]["accuracy"]


@pytest.mark.parametrize(
    "words", [("--momentum", "0.9", "--on-collapse", "rescue", "--shift", "1"), ("--method", "mutual_information", "--family", "renyi(2)")]
)
def test_stopped_and_resumed_is_uninterrupted(tmp_path, monkeypatch, blobs, words):
    base = ["train", "clustering", "--data", blobs, "--steps", "40", "--seeds", "2", "--hidden", "8", "--quiet", "--checkpoint-every", "0", *words]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    real = Clustering.update

    def interrupted(self, step):
        if step == 23:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(Clustering, "update", interrupted)
    assert cli.main([*base, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(Clustering, "update", real)
    assert cli.main(["train", "clustering", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (expected,), (folder,) = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))
    for name in ("plots.json", "heatmaps.json", "clusters.npz"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "absent.npz"}, r"absent\.npz cannot be read"),
        ({"clusters": 1}, "clusters is 1; legal are integers from 2 to 120"),
        ({"method": ("dbscan",)}, "method is dbscan; legal are mutual_information, sinkhorn, kmeans"),
        ({"match": ("slope",)}, "match is slope"),
        ({"conditional": "much"}, "'much'"),
        ({"family": ("min_entropy",)}, "no curvature exists"),
        ({"prior": "absent.txt"}, r"prior: absent\.txt cannot be read"),
        ({"noise": -1.0}, "noise is -1"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"hidden": (0,)}, "hidden is"),
        ({"momentum": 1.0}, "momentum"),
        ({"learning_rate": "fast"}, "learning_rate must be"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(tmp_path, blobs, change, message):
    with pytest.raises(ValueError, match=message):
        clustering.train(Config(**{"data": blobs, "seeds": 1, **change}), Run(RunSettings(out=tmp_path / "runs", quiet=True)))
    assert not (tmp_path / "runs").exists()
