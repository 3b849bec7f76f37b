"""Pseudo-labels, and entropy minimisation: two ways to be sure about images without a label, which collapse without the marginal.

Source: Lee 2013 (pseudo-labels); Grandvalet and Bengio 2005 (entropy minimisation). Page: docs/recipes/pseudo_label.md. Shapes: M members, U unlabelled images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from entreg import functional, loop
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.vision import study
from entreg.vision.config import SemiConfig, check_semi, one_of, require
from entreg.vision.study import Loss, SemiStudy
from entreg.vision.terms import Pair

STATUS = "stable"
SUMMARY = "Pseudo-labels or entropy minimisation, few labels"
ENTROPY = ("0.5",)  # the conditional's coefficient where entropy minimisation is the method


@dataclass(frozen=True)
class Config(SemiConfig):
    """Pseudo-labels, or entropy minimisation, on images of which few have labels."""

    method: Literal["pseudo", "entropy"] = "pseudo"
    """pseudo: the likeliest class of an unlabelled image becomes its label. entropy: only the conditional entropy is minimised."""
    threshold: float = 0.95
    """Probability from which a pseudo-label counts."""
    ramp: float = 0.4
    """Share of the run over which the weight of the pseudo-labels grows to unlabelled_coef."""
    conditional: Several[str] = ()
    """Weight of the conditional entropy, of each prediction on unlabelled images; several to compare. Default: 0, with method entropy 0.5."""


class PseudoLabel(SemiStudy):
    """The same weakly augmented view gives the pseudo-label and learns from it."""

    config: Config

    def losses(self, progress: float) -> Sequence[Pair]:
        config, rows, labelled = self.config, self.unlabelled(), self.drawn(self.labelled, self.batch)
        known, weak = self.logits(self.view(labelled, strong=False), self.view(rows, strong=False))
        supervised = functional.smoothed_cross_entropy(known, self.images.label[labelled])
        pairs = [Loss(supervised).pair(), *self.terms(weak)]
        self.note(steps=supervised.new_ones(()), **{"loss/labelled": supervised.mean(1)})
        if config.method == "pseudo":
            pairs.append(Loss(self._pseudo(rows, weak), config.unlabelled_coef * min(1.0, progress / config.ramp if config.ramp else 1.0)).pair())
        return pairs

    def _pseudo(self, rows: Tensor, weak: Tensor) -> Tensor:
        loss, used = functional.pseudo_label(weak, weak.softmax(-1), self.config.threshold)
        self.note_guesses(rows, weak.argmax(-1), used)
        self.note(**{"loss/unlabelled": loss.mean(1)})
        return loss


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints and plots go to the run's folder."""
    one_of(config, "method", ("pseudo", "entropy"))
    given = replace(config, conditional=config.conditional or (ENTROPY if config.method == "entropy" else ("0",)))
    check_semi(given)
    require(given, "threshold", lambda value: 0 <= value <= 1, "numbers from 0 to 1")
    require(given, "ramp", lambda value: 0 <= value <= 1, "numbers from 0 to 1")
    run = run if run is not None else Run()
    steps = loop.prepare(run, given.steps)
    seeds = range(run.settings.seed, run.settings.seed + given.seeds)
    return study.train("pseudo_label", given, run, PseudoLabel(given, seeds, steps))
