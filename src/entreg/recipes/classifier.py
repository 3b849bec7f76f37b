"""A supervised classifier with confidence penalty (plain, hinge, annealed by its schedule) and label smoothing.

Source: Pereyra et al. 2017 (arXiv:1701.06548); label smoothing: Szegedy et al. 2016. Page: docs/recipes/classifier.md. Shapes: M members, B images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entreg import collapse, functional, loop, spelling
from entreg.guard import Rule
from entreg.regularizer import EntropyRegularizer
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.vision import images, study
from entreg.vision.config import ClassifierConfig, check, require, several
from entreg.vision.study import Loss, Study
from entreg.vision.terms import Pair

STATUS = "stable"
SUMMARY = "Supervised classifier: confidence penalty, label smoothing"


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """A supervised classifier; every coef x family x smoothing x hinge x seed is a member."""

    coef: Several[str] = ("0.1", "0")
    """Confidence penalty, the weight of the entropy of each prediction, which is maximised: a number or a controller; several to compare."""
    family: Several[str] = ("shannon",)
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    smoothing: Several[float] = (0.0,)
    """Share of a label's mass that is spread over all classes; several to compare."""
    hinge: Several[float] = (1.0,)
    """Share of the largest entropy above which there is no penalty; 1: none is free; several to compare."""
    augment: bool = False
    """Augment the images weakly."""


class Penalised(Study):
    """Cross-entropy minus coef x entropy, both on labelled images."""

    config: Config

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        axes = {"family": config.family, "smoothing": config.smoothing, "hinge": config.hinge, "coef": config.coef}
        super().__init__(config, loop.combinations(seeds, **axes), steps)
        self.families = [spelling.parse_family(str(member["family"])) for member in self.members]
        self.highest = [float(functional.categorical_entropy(torch.zeros(self.images.classes), family)) for family in self.families]
        self.regularizers = [self._regularizer(member, highest) for member, highest in zip(self.members, self.highest, strict=True)]
        shares = torch.bincount(self.images.test_label, minlength=self.images.classes) / len(self.images.test_label)
        of_labels = float(functional.categorical_entropy(shares.log()))
        self.rules = (Rule("marginal", of_labels, grace=2), Rule("conditional", math.log(self.images.classes), grace=2))

    def _regularizer(self, member: Mapping[str, Any], highest: float) -> EntropyRegularizer:
        rescue = Rule("conditional", highest, **collapse.patience(self.steps)) if self.config.on_collapse == "rescue" else None
        return loop.regularizer(str(member["coef"]), steps=self.steps, maximum=highest, family=str(member["family"]), rescue=rescue)

    def losses(self, progress: float) -> Sequence[Pair]:
        rows = self.drawn(self.labelled, self.batch)
        (known,) = self.logits(self.view(rows, strong=False) if self.config.augment else self.plain(rows))
        label = self.images.label[rows]
        smoothing = torch.tensor([[float(member["smoothing"])] for member in self.members])
        hard, even = functional.smoothed_cross_entropy(known, label), -known.log_softmax(-1).mean(-1)
        supervised = (1 - smoothing) * hard + smoothing * even
        entropy = torch.stack([functional.categorical_entropy(of, family) for of, family in zip(known, self.families, strict=True)])
        bound = torch.tensor([[float(member["hinge"]) * highest] for member, highest in zip(self.members, self.highest, strict=True)])
        for one, mean in zip(self.regularizers, entropy.detach().mean(1).tolist(), strict=True):
            one.observe(mean, entropy.shape[1])
        weight = torch.tensor([[-one.coef / entropy.shape[1]] for one in self.regularizers]).expand_as(entropy)
        shannon = functional.categorical_entropy(known.detach()).mean(1)
        self.note(steps=hard.new_ones(()), entropy=shannon, **{"entropy/family": entropy.mean(1), "loss": hard.mean(1)})
        return [Loss(supervised).pair(), (torch.minimum(entropy, bound), weight)]

    def plain(self, rows: Tensor) -> Tensor:
        """The images of these rows as they are."""
        return self.scaled(images.as_float(self.images.train[rows]))

    def update(self, step: int) -> Mapping[str, Any]:
        found = super().update(step)
        for one in self.regularizers:
            one.step(progress=(step + 1) / self.steps)
        return found

    def facts(self, member: int) -> dict[str, float]:
        target = self.regularizers[member].target
        found = {**super().facts(member), "coef": self.regularizers[member].coef} | ({} if target is None else {"entropy/target": target})
        return found | ({"rescued": collapse.rescued(self.regularizers)[member]} if self.config.on_collapse == "rescue" else {})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "regularizers": loop.states(self.regularizers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        loop.load_states(self.regularizers, state["regularizers"])


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records and checkpoints go to the run's folder."""
    check(config)
    for name in ("coef", "family"):
        several(config, name)
    for name in ("smoothing", "hinge"):
        if not getattr(config, name) or not all(0 <= value <= 1 for value in getattr(config, name)):
            raise ValueError(f"{name} is {getattr(config, name)}; legal are numbers from 0 to 1")
    require(config, "labels", lambda value: value >= 0, "integers from 0")
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    return study.train("classifier", config, run, Penalised(config, range(run.settings.seed, run.settings.seed + config.seeds), steps))
