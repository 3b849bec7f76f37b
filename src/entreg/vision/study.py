"""What recipes for image classifiers share: members, their data, networks and averages, gradient steps, measurements, checkpoints.

Shapes: M members, B labelled and U unlabelled images of a step, V classes. A recipe says what is minimised; `entreg.loop` runs it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg import calibration, functional, loop
from entreg.finite import NonFinite, all_finite, where_not_finite
from entreg.guard import Rule
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.stacked import StackedSGD
from entreg.vision import images, networks, split
from entreg.vision.augment import DRAWS, Augmentation
from entreg.vision.config import ClassifierConfig, SemiConfig
from entreg.vision.networks import Architecture, Classifier
from entreg.vision.terms import Pair, Terms

LINES, LOOKED_AT = 25, 2000  # records a run; images that those before the last are measured on
STREAM = 0x5EE1
ESTIMATES = 20  # how often a run estimates a prior


class Study(loop.Fit):
    """A population of classifiers. Subclasses give `members` and `losses`."""

    lines = LINES

    def __init__(self, config: ClassifierConfig, members: Sequence[Mapping[str, Any]], steps: int) -> None:
        self.config, self.members, self.steps = config, members, steps
        self.images = images.load(config.data, config.folder, config.holdout)
        self.checksum, label = self.images.checksum(), self.images.label.numpy()
        seeds = [int(member["seed"]) for member in members]
        parts = [split.split(label, self.images.classes, config.labels, config.imbalance, of) for of in loop.generators(seeds, STREAM + 1)]
        self.labelled = torch.from_numpy(np.stack([part.labelled for part in parts]))
        self.pool = torch.from_numpy(np.stack([part.pool for part in parts]))
        self.architecture = Architecture(config.network, self.images.shape, self.images.classes, config.hidden, config.depth, config.width)
        self.network, self.teacher = (networks.make(self.architecture, seeds) for _ in range(2))
        self.optimizer = StackedSGD(self.network.parameters, config.momentum, config.weight_decay)
        self.rate = Schedule("learning_rate", config.learning_rate, steps)
        self.streams = loop.generators(seeds, STREAM)
        flip = config.flip == "yes" or (config.flip == "auto" and self.images.shape[0] == 3 and config.data != "svhn")
        self.augmentation = Augmentation(self.images.shape, flip)
        pixels = images.as_float(self.images.train[:LOOKED_AT])
        self.mean, self.deviation = (of.view(-1, 1, 1) for of in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)))
        self.books: dict[str, Tensor] = {}  # sums over the steps since the last record, [M] each
        self.born = 0  # the step at which this network began

    @abstractmethod
    def losses(self, progress: float) -> Sequence[Pair]:
        """Losses of one step and what each of them weighs, both `(M, n)`; `progress` is the share of the run that is over."""

    def update(self, step: int) -> Mapping[str, Any]:
        pairs = self.losses(step / self.steps)
        self.network.parameters.backward(*pairs)
        self.optimizer.step(self.rate.value)
        self.rate.step()
        age = step - self.born
        decay = min(self.config.ema, (1 + age) / (10 + age))
        networks.take_over(self.teacher, self.network, decay)
        return {"loss": torch.stack([(values.detach() * weight).sum() for values, weight in pairs]), "parameters": self.network.parameters.data}

    # ---------------------------------------------------------------- data

    def drawn(self, rows: Tensor, count: int) -> Tensor:
        """`count` of each member's `rows [M, n]` without repetition (all of them where there are no more), `[M, count]`."""
        size = rows.shape[1]
        chosen = np.stack([of.permutation(size)[:count] for of in self.streams])
        return rows.gather(1, torch.from_numpy(chosen))

    def uniforms(self, *shape: int) -> Tensor:
        """Uniform numbers `[M, *shape]`, each member's from its own stream."""
        return torch.from_numpy(np.stack([of.random(shape, dtype=np.float32) for of in self.streams]))

    def view(self, rows: Tensor, *, strong: bool) -> Tensor:
        """The images of these rows `[M, n]`, augmented, as the network reads them `[M, n, C, H, W]`."""
        found = images.as_float(self.images.train[rows.flatten()])
        draws = self.uniforms(rows.shape[1], DRAWS).flatten(0, 1)
        changed = self.augmentation.strong(found, draws) if strong else self.augmentation.weak(found, draws)
        return self.scaled(changed).view(*rows.shape, *self.images.shape)

    def scaled(self, found: Tensor) -> Tensor:
        """Images in [0, 1] with mean 0 and deviation 1."""
        return (found - self.mean) / self.deviation

    @property
    def batch(self) -> int:
        """Labelled images of a step."""
        return min(self.config.batch_size, self.labelled.shape[1])

    def logits(self, *views: Tensor, network: Classifier | None = None, noise: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Predictions on these views, normalised as one batch."""
        together = (network or self.network)(torch.cat(views, 1), noise=noise)
        parts: tuple[Tensor, ...] = together.split([view.shape[1] for view in views], dim=1)
        return parts

    # ---------------------------------------------------------------- records

    def note(self, **sums: Tensor) -> None:
        """Add to the books."""
        for name, value in sums.items():
            self.books[name] = self.books.get(name, torch.zeros(len(self.members))) + value.detach().float()

    @torch.no_grad()
    def predicted(self, found: Tensor) -> Tensor:
        """The averaged network's logits on images `[n, C, H, W]` or, each member its own, `[M, n, C, H, W]`; `(M, n, V)`."""
        parts = []
        for part in found.split(500, dim=-4):
            read = self.scaled(images.as_float(part))
            parts.append(self.teacher(read if read.ndim == 5 else read.expand(len(self.members), *read.shape).contiguous(), train=False))
        return torch.cat(parts, 1)

    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        some = slice(None) if evaluate else slice(LOOKED_AT)
        label = self.images.test_label[some].numpy()
        tested = self.predicted(self.images.test[some])
        if not all_finite(tested):
            raise NonFinite(f"logits of the test images at step {step}: {where_not_finite(tested)}")
        found = [{**judged(of.double().numpy(), label, self.images.classes), **self.facts(member)} for member, of in enumerate(tested)]
        self.books = {}
        return with_columns(found, entropies(tested))

    def facts(self, member: int) -> dict[str, float]:
        """What the books say of a member."""
        sums = {name: float(value[member]) for name, value in self.books.items()}
        steps = sums.pop("steps", 0.0)
        return {name: value / steps for name, value in sums.items() if steps} | {"learning_rate": self.rate.value}

    def write(self, run: Run) -> None:
        """Nothing beside the records."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self.checksum,
            "network": networks.state_of(self.network),
            "teacher": networks.state_of(self.teacher),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "streams": loop.streams_state(self.streams),
            "books": self.books,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["data"] != self.checksum:
            raise ValueError(f"data: {self.config.data} does not hold the images that this run began with; legal are those")
        networks.load_state(self.network, state["network"])
        networks.load_state(self.teacher, state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        loop.load_streams(self.streams, state["streams"])
        self.books = dict(state["books"])


class SemiStudy(Study):
    """A population of semi-supervised classifiers with their two entropies."""

    config: SemiConfig

    def __init__(self, config: SemiConfig, seeds: Sequence[int], steps: int) -> None:
        axes = {"family": config.family, "prior": config.prior, "conditional": config.conditional, "sense": config.sense, "marginal": config.marginal}
        super().__init__(config, loop.combinations(seeds, **axes), steps)
        labels = self.images.label[self.labelled].numpy()
        priors = np.stack([split.prior(str(one["prior"]), own, self.images.classes) for one, own in zip(self.members, labels, strict=True)])
        self.terms = Terms(
            self.members, torch.from_numpy(priors).float(), steps=steps, momentum=config.marginal_momentum, rescue=config.on_collapse == "rescue"
        )
        self.of_priors = [-float((prior * np.log(prior)).sum()) for prior in priors]
        self.plane: list[list[list[float]]] = []  # the conditional and the marginal entropy of each member, a row a record

    def watched(self, member: int) -> Sequence[Rule]:
        return Rule("marginal", self.of_priors[member], grace=2), Rule("conditional", math.log(self.images.classes), grace=2)

    def update(self, step: int) -> Mapping[str, Any]:
        found = super().update(step)
        self.terms.step((step + 1) / self.steps)
        if "estimate" in self.config.prior and (step + 1) % max(1, self.steps // ESTIMATES) == 0:
            self._estimate()
        return found

    def _estimate(self) -> None:
        """Priors that are estimated follow the predictions on the pool, which were made under the prior so far."""
        probs = self.predicted(self._seen()).softmax(-1).double().numpy()
        for index, member in enumerate(self.members):
            if member["prior"] == "estimate":
                self.terms.priors[index] = torch.from_numpy(split.estimated(probs[index], self.terms.priors[index].double().numpy())).float()

    def _seen(self) -> Tensor:
        """The first images of each member's pool, `[M, n, C, H, W]`; a pool is in the order of classes, hence the stride."""
        stride = -(-self.pool.shape[1] // LOOKED_AT)
        return self.images.train[self.pool[:, ::stride]]

    def unlabelled(self) -> Tensor:
        """The rows of a step's unlabelled images, `[M, U]`."""
        return self.drawn(self.pool, min(self.config.ratio * self.batch, self.pool.shape[1]))

    def note_guesses(self, rows: Tensor, guess: Tensor, used: Tensor) -> None:
        """Book pseudo-labels `[M, U]`, where they were `used`, and where they are right among those whose label is known (and hidden from training)."""
        truth = self.images.label[rows]
        known = used & (truth >= 0)
        self.note(used=used.float().mean(1), known=known.sum(1), right=(known & (guess == truth)).sum(1))

    @torch.no_grad()
    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        logits = self.predicted(self._seen())
        columns = entropies(logits)
        conditional, marginal = columns.values()
        self.plane.append([[step, *pair] for pair in torch.stack([conditional, marginal], 1).tolist()])
        found = super().rows(step, evaluate=evaluate)
        of_prior = functional.categorical_kl(logits.softmax(-1).mean(1).log(), self.terms.priors.log())
        columns |= {"mutual_information": marginal - conditional, "marginal/kl": of_prior}
        entropy_of_prior = functional.categorical_entropy(self.terms.priors.log())
        columns |= {"marginal/perplexity": marginal.exp(), "marginal/share": (marginal - entropy_of_prior).exp()}
        return with_columns(found, columns)

    def facts(self, member: int) -> dict[str, float]:
        found = super().facts(member)
        used, known, right = (found.pop(name, 0.0) for name in ("used", "known", "right"))
        if "used" in self.books:
            found["pseudo/use"] = used
        if known > 0:
            found["pseudo/accuracy"] = right / known
        return found | self.terms.facts(member)

    def write(self, run: Run) -> None:
        """The phase plane for the report."""
        series = []
        for group, (name, of) in enumerate(loop.settings(self.members).items()):
            path = np.array([[row[member][1:] for member in of] for row in self.plane]).mean(1)
            words = ["start", *[""] * (len(path) - 2), "end"][-len(path) :]
            series.append({"name": name, "group": group, "x": path[:, 0].tolist(), "y": path[:, 1].tolist(), "text": words})
        top = math.log(self.images.classes)
        bounds = (
            {"x": [0.0, top], "y": [0.0, top], "name": "marginal = conditional: nothing is told apart"},
            {"x": [0.0, top], "y": [top, top], "name": "log V"},
        )
        caption = "From the first record to the last, means over seeds, on unlabelled images. Good is top left: sure of each image, all classes in use. "
        caption += "Bottom left is class collapse; the lines are the largest marginal entropy and where all predictions are the same."
        plot = {"title": "Phase plane", "x": "conditional entropy (nats)", "y": "marginal entropy (nats)", "caption": caption, "series": [*bounds, *series]}
        loop.write_plots(run.folder, [plot])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "terms": self.terms.state_dict(), "plane": self.plane}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.terms.load_state_dict(state["terms"])
        self.plane = state["plane"]


class Loss(NamedTuple):
    """Losses `(M, n)` whose mean over n counts `coef` times."""

    values: Tensor
    coef: float = 1.0

    def pair(self) -> Pair:
        """The losses and what each of them weighs."""
        return self.values, torch.full_like(self.values, self.coef / self.values.shape[1])


def entropies(logits: Tensor) -> dict[str, Tensor]:
    """Mean conditional entropy and entropy of the mean prediction of `logits [M, n, V]`, both `[M]`."""
    marginal = functional.categorical_entropy(logits.softmax(-1).mean(1).log())
    return {"conditional": functional.categorical_entropy(logits).mean(1), "marginal": marginal}


def with_columns(rows: Sequence[loop.Row], columns: Mapping[str, Tensor]) -> list[loop.Row]:
    """The members' rows, each with its entry of these columns `[M]`, which stand over its own."""
    return [{**row, **{name: float(values[index]) for name, values in columns.items()}} for index, row in enumerate(rows)]


def judged(logits: np.ndarray, label: np.ndarray, classes: int) -> dict[str, float]:
    """Figures of predictions `[n, V]` on labelled images `[n]`."""
    best = calibration.best_temperature(logits, label)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    guess = logits.argmax(1)
    return {
        "accuracy": float((guess == label).mean()),
        "worst_recall": float(np.nanmin(calibration.recalls(guess, label, classes))),
        "balanced_accuracy": float(np.nanmean(calibration.recalls(guess, label, classes))),
        "calibration_error": calibration.calibration_error(probs.max(1), guess == label),
        "best_temperature": best,
        "nll": calibration.negative_log_likelihood(logits, label),
        "nll/tempered": calibration.negative_log_likelihood(logits, label, best),
    }


def train(recipe: str, config: ClassifierConfig, run: Run, study: Study) -> Summary:
    """Run a study to its end."""
    return loop.train(recipe, study.images.name, config, run, study, config.on_collapse)
