"""FixMatch: the confident prediction on a weakly augmented image is the label of the strongly augmented one; with alignment and both entropies.

Source: Sohn et al. 2020 (arXiv:2001.07685); distribution alignment: Berthelot et al. 2020 (arXiv:1911.09785). Page: docs/recipes/fixmatch.md.
Shapes: M members, U unlabelled images, V classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entreg import functional, loop
from entreg.run import Run, Summary
from entreg.vision import study
from entreg.vision.config import SemiConfig, check_semi, require
from entreg.vision.study import Loss, SemiStudy
from entreg.vision.terms import Pair, RunningMarginals, aligned

STATUS = "stable"
SUMMARY = "FixMatch, few labels, with distribution alignment"


@dataclass(frozen=True)
class Config(SemiConfig):
    """FixMatch on images of which few have labels."""

    threshold: float = 0.95
    """Probability from which a pseudo-label counts."""
    align: bool = False
    """Scale predictions so that their running mean is the prior before they become pseudo-labels (distribution alignment)."""
    align_momentum: float = 0.999
    """Of that running mean, whose start is corrected for its bias."""


class FixMatch(SemiStudy):
    """Labels from the weak view, learnt on the strong one; the entropies are those of the weak view."""

    config: Config

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        super().__init__(config, seeds, steps)
        self.means = RunningMarginals(len(self.members), self.images.classes, config.align_momentum)

    def losses(self, progress: float) -> Sequence[Pair]:
        config, rows, labelled = self.config, self.unlabelled(), self.drawn(self.labelled, self.batch)
        views = [self.view(labelled, strong=False), self.view(rows, strong=True), self.view(rows, strong=False)]
        if self.terms.active:
            known, strong, weak = self.logits(*views)
        else:  # nothing is asked of the weak view but labels
            with torch.no_grad():
                (weak,) = self.logits(views[2])
            known, strong = self.logits(*views[:2])
        probs = weak.detach().softmax(-1)
        if config.align:
            probs = aligned(probs, self.means(weak.detach()), self.terms.priors)
        supervised = functional.smoothed_cross_entropy(known, self.images.label[labelled])
        unlabelled, used = functional.pseudo_label(strong, probs, config.threshold)
        self.note_guesses(rows, probs.argmax(-1), used)
        self.note(steps=supervised.new_ones(()), **{"loss/labelled": supervised.mean(1), "loss/unlabelled": unlabelled.mean(1)})
        return [Loss(supervised).pair(), Loss(unlabelled, config.unlabelled_coef).pair(), *self.terms(weak)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "means": self.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.means.load_state_dict(state["means"])


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints and plots go to the run's folder."""
    check_semi(config)
    require(config, "threshold", lambda value: 0 <= value <= 1, "numbers from 0 to 1")
    require(config, "align_momentum", lambda value: 0 <= value < 1, "numbers from 0, below 1")
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    return study.train("fixmatch", config, run, FixMatch(config, range(run.settings.seed, run.settings.seed + config.seeds), steps))
