"""Clustering by mutual information of input and cluster, with any entropy family; Sinkhorn assignments and k-means for comparison.

Source: Bridle, Heading and MacKay 1991; Krause, Perona and Gomes 2010 (RIM); Hu et al. 2017 (IMSAT, arXiv:1702.08720: consistency under perturbation);
Asano et al. 2020 (arXiv:1911.05371: Sinkhorn). Page: docs/recipes/clustering.md. Shapes: M members, B items of a batch, N of the data, K clusters.

    loss = consistency KL(p(x) || p(x'))  +  conditional mean_x H(p(.|x))  -  marginal H(mean_x p(.|x)),      x' a perturbed x
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg import collapse, disk, functional, loop, points, spelling
from entreg.collapse import Action
from entreg.functional import RunningMarginal
from entreg.guard import Rule
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.stacked import StackedAdam, mlps, perceptrons

STATUS = "stable"
SUMMARY = "Clustering by mutual information, any entropy family; k-means, Sinkhorn"
METHODS = ("mutual_information", "sinkhorn", "kmeans")
FIRST = "Of the first seed."
LINES, LOOKED_AT = 25, 500  # records a run, and items of the data that those before the last are measured on


@dataclass(frozen=True)
class Config:
    """Clustering; every method x marginal x family x match x seed is a member (k-means and Sinkhorn have seeds only)."""

    data: str = points.DIGITS
    """digits, or a .npz file with numbers x [N, D] or pictures x [N, H, W], and perhaps classes y [N] to judge by."""
    clusters: int = 0
    """How many; 0: as many as there are classes."""
    method: Several[str] = ("mutual_information", "kmeans")
    """mutual_information, sinkhorn (equal shares by optimal transport) or kmeans; several to compare."""
    marginal: Several[str] = ("1.5", "0")
    """Weight of the entropy of the mean prediction, which is maximised: a number or a controller; several to compare."""
    conditional: str = "0.3"
    """Weight of the mean entropy of each prediction, which is minimised: a number or a controller."""
    consistency: float = 1.0
    """Weight of KL(p(x) || p(x')) between an item and its perturbation."""
    family: Several[str] = ("shannon",)
    """Entropy family of both terms: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    match: Several[str] = ("curvature",)
    """curvature: both weights as strong near uniform as Shannon's. none: as they are given. Both to compare."""
    prior: str = "uniform"
    """What the mean prediction should look like: uniform, or a text file with a probability a line (then it minimises the divergence from that)."""
    momentum: float = 0.0
    """Of a running mean prediction; 0: that of the batch alone."""
    noise: float = 0.3
    """Standard deviation of the perturbation's noise, in units of the data as the network sees it."""
    shift: int = 1
    """Pixels by which a perturbation moves pictures at most."""
    epsilon: float = 0.05
    """Regularisation of Sinkhorn's transport."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    batch: int = 256
    """Items of a step."""
    steps: int = 600
    """Gradient steps."""
    learning_rate: str = "0.001"
    """A number or a schedule over the run."""
    seeds: int = 5
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    on_collapse: Action = "warn"
    """On collapse (fewer than half of the clusters, or predictions that stay undecided): off, warn, stop, or rescue by a target controller."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    for name, least in {"seeds": 1, "clusters": 0, "batch": 2, "steps": 1, "shift": 0}.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from {least}")
    for name in ("consistency", "noise"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are finite numbers from 0")
    if not 0 < config.epsilon < math.inf:
        raise ValueError(f"epsilon is {config.epsilon}; legal are finite numbers above 0")
    for name, legal in {"method": METHODS, "match": ("curvature", "none")}.items():
        if not getattr(config, name) or set(getattr(config, name)) - set(legal):
            raise ValueError(f"{name} is {', '.join(getattr(config, name))}; legal are {', '.join(legal)}")
    if any(width < 1 for width in config.hidden):
        raise ValueError(f"hidden is {config.hidden}; legal are widths from 1")


class Clustering(loop.Fit):
    """Stacked networks of all members but those of k-means, which come last and are fitted at once."""

    lines = LINES

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        self.config, self.steps, self.data = config, steps, points.load(config.data)
        self.clusters = config.clusters or (0 if self.data.y is None else int(self.data.y.max()) + 1)
        if not 2 <= self.clusters <= len(self.data.x):
            none = f", and {config.data} has no classes to count" if not config.clusters and self.data.y is None else ""
            raise ValueError(f"clusters is {config.clusters}{none}; legal are integers from 2 to {len(self.data.x)}")
        self.source = loop.digest(self.data.x, self.data.y)
        self.prior = points.prior(config.prior, self.clusters)
        plain = [{"method": method, "seed": seed} for method in METHODS[1:] if method in config.method for seed in seeds]
        several = {"match": config.match} if len(config.match) > 1 else {}
        matched = loop.combinations(seeds, marginal=config.marginal, family=config.family, **several)
        self.members = [*(matched if METHODS[0] in config.method else ()), *plain]
        self.x = torch.from_numpy(self.data.x)
        own = [member for member in self.members if member.get("method") != "kmeans"]
        self.by_kmeans = [kmeans(self.data.x, self.clusters, member["seed"]) for member in self.members[len(own) :]]
        self.terms = [Terms(member, self) for member in own]
        self.parameters, self.tower = perceptrons([member["seed"] for member in own], (self.x.shape[1], *config.hidden, self.clusters))
        self.adam = StackedAdam(self.parameters, eps=1e-8)
        self.rate = Schedule("learning_rate", config.learning_rate, steps)
        self.streams = loop.generators([member["seed"] for member in own], 0xC105)
        self.shares: list[list[list[float]]] = []
        target = -float((self.prior * np.log(self.prior)).sum())
        self.rules = (Rule("marginal", target, grace=2), Rule("conditional", math.log(self.clusters), grace=2))

    def outputs(self, x: Tensor) -> Tensor:
        """Logits `[M, N, K]` of each member's items."""
        return mlps(x, self.parameters, [self.tower], "relu")[0]

    def update(self, step: int) -> Mapping[str, Any]:
        if not self.terms:
            return {}
        index = np.stack([stream.integers(len(self.x), size=min(self.config.batch, len(self.x))) for stream in self.streams])
        x = self.x[torch.from_numpy(index)]
        own, other = self.outputs(x), self.outputs(self.perturbed(x))
        loss = torch.stack([terms.loss(*pair) for terms, pair in zip(self.terms, zip(own, other, strict=True), strict=True)])
        self.parameters.backward((loss, torch.ones_like(loss)))
        self.adam.step(self.rate.value)
        self.rate.step()
        for terms in self.terms:
            terms.step((step + 1) / self.steps)
        return {"loss": loss.detach(), "parameters": self.parameters.data}

    def perturbed(self, x: Tensor) -> Tensor:
        """Items `[M, B, D]` with noise, pictures also moved by some pixels."""
        if self.data.picture is not None and self.config.shift:
            by = np.stack([stream.integers(2 * self.config.shift + 1, size=(2, x.shape[1])) for stream in self.streams])
            x = shifted(x, torch.from_numpy(by), self.data.picture, self.config.shift)
        noise = np.stack([stream.standard_normal(x.shape[1:], dtype=np.float32) for stream in self.streams])
        return x + self.config.noise * torch.from_numpy(noise)

    @torch.no_grad()
    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        chosen = np.arange(len(self.x)) if evaluate else np.linspace(0, len(self.x) - 1, min(LOOKED_AT, len(self.x))).astype(int)
        x = self.x[torch.from_numpy(chosen)]
        logits = self.outputs(x.expand(len(self.terms), -1, -1).contiguous()) if self.terms else torch.zeros(0, len(chosen), self.clusters)
        found = []
        for terms, of in zip(self.terms, logits, strict=True):
            conditional, marginal = float(functional.categorical_entropy(of).mean()), float(functional.marginal_entropy(of))
            facts = {"conditional": conditional, "marginal": marginal, "mutual_information": marginal - conditional, **terms.facts}
            facts["marginal/share"] = math.exp(marginal - self.rules[0].maximum)
            found.append({**self.judged(of.argmax(-1).numpy(), chosen), **facts})
        found += [self.judged(labels[chosen], chosen) for labels in self.by_kmeans]
        self.shares.append([[float(share) for share in self.share(of.argmax(-1).numpy())] for of in logits] + [[step]])
        return found

    def share(self, labels: np.ndarray) -> np.ndarray:
        """The share of each cluster, `[K]`."""
        shares: np.ndarray = np.bincount(labels, minlength=self.clusters) / len(labels)
        return shares

    def judged(self, labels: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        """Scores of an assignment: against the classes where they are known, and how many clusters it amounts to."""
        scores = {} if self.data.y is None else agreement(labels, self.data.y[chosen])
        share = self.share(labels)
        return {**scores, "clusters": float(np.exp(-(share * np.log(np.where(share > 0, share, 1))).sum()))}

    def write(self, run: Run) -> None:
        """`clusters.npz` (the cluster of every item, a row a member), and plots and maps for the report."""
        with torch.no_grad():
            labels = [self.outputs(self.x.expand(len(self.terms), -1, -1).contiguous()).argmax(-1).numpy()] if self.terms else []
        every = np.concatenate([*labels, *(one[None] for one in self.by_kmeans)])
        file = io.BytesIO()
        np.savez_compressed(file, cluster=every)
        disk.replace_file(run.folder / "clusters.npz", file.getvalue())
        plots, maps = [], {}
        for name, of in loop.settings(self.members).items():
            first = of[0]
            if first < len(self.terms):
                at = [int(rows[-1][0]) for rows in self.shares]
                bars = [{"name": f"cluster {k}", "x": list(map(str, at)), "y": [rows[first][k] for rows in self.shares]} for k in range(self.clusters)]
                plots.append({"title": f"Shares of the clusters: {name}", "kind": "stack", "x": "step", "y": "share", "caption": FIRST, "series": bars})
            if self.data.y is not None:
                table = np.zeros((int(self.data.y.max()) + 1, self.clusters))
                np.add.at(table, (self.data.y, every[first]), 1)
                maps[f"Classes (rows) in clusters (columns): {name}"] = table
        loop.write_plots(run.folder, plots)
        loop.write_maps(run.folder, maps)

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters.data,
            "adam": self.adam.state_dict(),
            "rate": self.rate.state_dict(),
            "streams": loop.streams_state(self.streams),
            "terms": {str(index): terms.state_dict() for index, terms in enumerate(self.terms)},
            "shares": self.shares,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.parameters.data.copy_(state["parameters"])
        self.adam.load_state_dict(state["adam"])
        self.rate.load_state_dict(state["rate"])
        loop.load_streams(self.streams, state["streams"])
        for index, terms in enumerate(self.terms):
            terms.load_state_dict(state["terms"][str(index)])
        self.shares = state["shares"]


class Terms:
    """The loss of one member, its two regularizers and its running marginal."""

    def __init__(self, member: Mapping[str, Any], fit: Clustering) -> None:
        config, family = fit.config, str(member.get("family", "shannon"))
        self.config, self.sinkhorn, self.family = config, member.get("method") == "sinkhorn", spelling.parse_family(family)
        self.prior = torch.from_numpy(fit.prior).float()
        self.even = config.prior == "uniform"
        if not self.even and self.family.name == "tsallis":
            raise ValueError(f"prior is {config.prior!r} with family {family}; legal with a prior are shannon, renyi(order) and min_entropy")
        matched = member.get("match", config.match[0]) == "curvature" and self.family.name != "shannon"
        self.strength = 0.5 / functional.curvature(self.family, fit.clusters) if matched else 1.0
        largest = float(functional.categorical_entropy(torch.zeros(fit.clusters), self.family))
        self.best = float(functional.categorical_entropy(self.prior.log(), self.family))
        waits = collapse.patience(fit.steps)
        rescue = config.on_collapse == "rescue"
        rules = (Rule("marginal", self.best, **waits), Rule("conditional", largest, **waits)) if rescue else (None, None)
        text = str(member.get("marginal", "0")), "0" if self.sinkhorn else config.conditional
        self.marginal = loop.regularizer(text[0], steps=fit.steps, maximum=largest, family=family, rescue=rules[0])
        self.conditional = loop.regularizer(text[1], steps=fit.steps, maximum=largest, family=family, sense="minimize", rescue=rules[1])
        self.running = RunningMarginal(config.momentum)

    def loss(self, own: Tensor, other: Tensor) -> Tensor:
        """The loss of a batch from the logits `[B, K]` of its items and of their perturbations."""
        if self.sinkhorn:
            wanted = transported(own.detach(), self.prior, self.config.epsilon)
            return -(wanted * other.log_softmax(-1)).sum(-1).mean()
        marginal = self.running(own)
        towards = marginal.entropy(self.family)
        if not self.even:
            towards = self.best - functional.renyi_divergence(marginal.log_probs, self.prior.log(), self.family.order)
        kl = functional.categorical_kl(own.detach(), other).mean()
        terms = self.marginal(towards[None]).loss + self.conditional(functional.categorical_entropy(own, self.family)).loss
        return self.config.consistency * kl + self.strength * terms

    def step(self, progress: float) -> None:
        if not self.sinkhorn:
            self.marginal.step(progress=progress)
            self.conditional.step(progress=progress)

    @property
    def facts(self) -> dict[str, float]:
        """What a record says of the coefficients."""
        both = [self.marginal, self.conditional]
        rescue = {"rescued": max(collapse.rescued(both))} if self.config.on_collapse == "rescue" else {}
        return {} if self.sinkhorn else {"coef/marginal": self.marginal.coef, "coef/conditional": self.conditional.coef, **rescue}

    def state_dict(self) -> dict[str, Any]:
        return {"each": loop.states([self.marginal, self.conditional]), "running": self.running.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        loop.load_states([self.marginal, self.conditional], state["each"])
        self.running.load_state_dict(state["running"])


def shifted(x: Tensor, by: Tensor, picture: tuple[int, int], most: int) -> Tensor:
    """Pictures `[M, B, H W]` moved by `by [M, 2, B]` (0 to 2 `most`: up to `most` pixels each way), zeros coming in at the edges."""
    height, width = picture
    padded = torch.nn.functional.pad(x.unflatten(-1, picture), (most,) * 4).flatten(-2)
    rows = by[:, 0, :, None, None] + torch.arange(height)[:, None]
    columns = by[:, 1, :, None, None] + torch.arange(width)
    return padded.gather(-1, (rows * (width + 2 * most) + columns).flatten(-2))


def transported(logits: Tensor, prior: Tensor, epsilon: float) -> Tensor:
    """The assignment `[B, K]` of items to clusters with shares `prior` at the least cost -log p, entropically regularised (POT, log domain); rows sum to 1."""
    try:
        from ot.bregman import sinkhorn_log
    except ImportError as error:
        raise ImportError("POT is not installed; method sinkhorn needs it: pip install 'entreg[vision]'") from error
    cost = -logits.double().log_softmax(-1).numpy()
    rows = np.full(len(cost), 1 / len(cost))
    columns = prior.double().numpy()
    plan = sinkhorn_log(rows, columns / columns.sum(), cost, epsilon, numItermax=100, stopThr=1e-4, warn=False)
    return torch.from_numpy(plan / plan.sum(1, keepdims=True)).float()


def kmeans(x: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The cluster of every item `[N]` by k-means, the best of ten starts."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError(points.NEEDS) from error
    labels: np.ndarray = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit_predict(x)
    return labels


def agreement(labels: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """`accuracy` (the best one-to-one match of clusters to classes), normalised mutual information and adjusted Rand index of an assignment."""
    try:
        from scipy.optimize import linear_sum_assignment
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    except ImportError as error:
        raise ImportError(points.NEEDS) from error
    size = int(max(labels.max(), classes.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (labels, classes), 1)
    rows, columns = linear_sum_assignment(-table)
    scores = {"nmi": normalized_mutual_info_score(classes, labels), "ari": adjusted_rand_score(classes, labels)}
    return {"accuracy": float(table[rows, columns].sum() / len(labels)), **{name: float(value) for name, value in scores.items()}}


def train(config: Config, run: Run | None = None) -> Summary:
    """Fit every member; records, checkpoints, `clusters.npz` and plots go to the run's folder."""
    check(config)
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    fit = Clustering(config, range(run.settings.seed, run.settings.seed + config.seeds), steps)
    return loop.train("clustering", fit.data.name, config, run, fit, config.on_collapse)
