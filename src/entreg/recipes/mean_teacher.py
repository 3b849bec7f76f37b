"""Mean Teacher: predictions on unlabelled images agree with those of the averaged network on another view of them.

Source: Tarvainen and Valpola 2017 (arXiv:1703.01780). Page: docs/recipes/mean_teacher.md. Shapes: M members, U unlabelled images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from entreg import functional, loop
from entreg.run import Run, Summary
from entreg.vision import study
from entreg.vision.config import SemiConfig, check_semi, require
from entreg.vision.study import Loss, SemiStudy
from entreg.vision.terms import Pair

STATUS = "stable"
SUMMARY = "Mean Teacher, few labels"


@dataclass(frozen=True)
class Config(SemiConfig):
    """Mean Teacher on images of which few have labels."""

    unlabelled_coef: float = 50.0
    """Weight of the squared difference of student and teacher."""
    ramp: float = 0.4
    """Share of the run over which that weight grows, as exp(-5 (1 - t)^2)."""


class MeanTeacher(SemiStudy):
    """Student and teacher see two weak views; the entropies are the student's."""

    config: Config

    def losses(self, progress: float) -> Sequence[Pair]:
        config, rows, labelled = self.config, self.unlabelled(), self.drawn(self.labelled, self.batch)
        known, weak = self.logits(self.view(labelled, strong=False), self.view(rows, strong=False))
        with torch.no_grad():
            probs = self.logits(self.view(rows, strong=False), network=self.teacher)[0].softmax(-1)
        supervised = functional.smoothed_cross_entropy(known, self.images.label[labelled])
        consistency = functional.squared_consistency(weak, probs)
        self.note_guesses(rows, probs.argmax(-1), torch.ones_like(rows, dtype=torch.bool))
        self.note(steps=supervised.new_ones(()), **{"loss/labelled": supervised.mean(1), "loss/unlabelled": consistency.mean(1)})
        left = max(0.0, 1 - progress / config.ramp) if config.ramp else 0.0
        return [Loss(supervised).pair(), Loss(consistency, config.unlabelled_coef * math.exp(-5 * left**2)).pair(), *self.terms(weak)]


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints and plots go to the run's folder."""
    check_semi(config)
    require(config, "ramp", lambda value: 0 <= value <= 1, "numbers from 0 to 1")
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    return study.train("mean_teacher", config, run, MeanTeacher(config, range(run.settings.seed, run.settings.seed + config.seeds), steps))
