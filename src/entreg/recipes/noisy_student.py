"""Noisy Student: a teacher labels all images, a student learns from them under noise and becomes the next teacher.

Source: Xie et al. 2020 (arXiv:1911.04252). Page: docs/recipes/noisy_student.md. Shapes: M members, U unlabelled images of a step, P of the pool, V classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entreg import functional, loop
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.vision import networks, study
from entreg.vision.config import SemiConfig, check_semi, require
from entreg.vision.study import Loss, SemiStudy
from entreg.vision.terms import Pair

STATUS = "experimental"
SUMMARY = "Noisy Student self-training, few labels"


@dataclass(frozen=True)
class Config(SemiConfig):
    """Noisy Student on images of which few have labels; the run is divided evenly among the teacher and its students."""

    steps: int = 2000
    """Gradient steps of all generations together."""
    students: int = 3
    """Generations after the first teacher."""
    threshold: float = 0.3
    """Probability from which a teacher's label counts."""
    balance: bool = True
    """Weigh unlabelled images so that every class that the teacher finds counts the same."""
    hard: bool = False
    """Learn the teacher's likeliest class, in place of its probabilities."""
    dropout: float = 0.5
    """Share of hidden units that are left out of a student's step."""


class NoisyStudent(SemiStudy):
    """`targets [M, P, V]` are what the teacher of this generation says of each image of the pool."""

    config: Config

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        super().__init__(config, seeds, steps)
        self.generation = 0
        self.targets = torch.zeros(*self.pool.shape, self.images.classes)
        self.rate = self._rate()

    def update(self, step: int) -> Mapping[str, Any]:
        due = step * (self.config.students + 1) // self.steps
        if due > self.generation:
            self._succeed(due, step)
        return super().update(step)

    def _rate(self) -> Schedule:
        """The learning rate of one generation."""
        return Schedule("learning_rate", self.config.learning_rate, -(-self.steps // (self.config.students + 1)))

    def _succeed(self, generation: int, step: int) -> None:
        """The averaged network labels the pool; a new student begins, from weights of its own and at the first learning rate."""
        self.generation, self.born, self.rate = generation, step, self._rate()
        self.targets = torch.cat([self.predicted(self.images.train[rows]).softmax(-1) for rows in self.pool.split(2000, dim=1)], 1)
        fresh = networks.make(self.architecture, [int(member["seed"]) + 7919 * generation for member in self.members])
        for network in (self.network, self.teacher):
            networks.load_state(network, networks.state_of(fresh))
        self.optimizer.velocity.zero_()

    def losses(self, progress: float) -> Sequence[Pair]:
        config, labelled = self.config, self.drawn(self.labelled, self.batch)
        places = self.drawn(torch.arange(self.pool.shape[1]).expand(len(self.members), -1), min(config.ratio * self.batch, self.pool.shape[1]))
        rows = self.pool.gather(1, places)
        known, strong = self.logits(self.view(labelled, strong=True), self.view(rows, strong=True), noise=self._noise(labelled.shape[1] + rows.shape[1]))
        supervised = functional.smoothed_cross_entropy(known, self.images.label[labelled])
        self.note(steps=supervised.new_ones(()), **{"loss/labelled": supervised.mean(1)})
        pairs = [Loss(supervised).pair(), *self.terms(strong)]
        if self.generation:
            pairs.append(Loss(self._taught(rows, places, strong), config.unlabelled_coef).pair())
        return pairs

    def _taught(self, rows: Tensor, places: Tensor, strong: Tensor) -> Tensor:
        """The loss on unlabelled images, 0 where the teacher was unsure."""
        probs = self.targets.gather(1, places[..., None].expand(*places.shape, self.images.classes))
        confidence, guess = probs.max(-1)
        used = confidence >= self.config.threshold
        loss = functional.smoothed_cross_entropy(strong, guess) if self.config.hard else functional.soft_cross_entropy(strong, probs)
        self.note_guesses(rows, guess, used)
        weight = used.float()
        if self.config.balance:
            found = torch.nn.functional.one_hot(guess, self.images.classes) * weight[..., None]
            count = found.sum(1)
            share = (found * (1 / count.clamp_min(1))[:, None]).sum(-1)
            weight = share * (weight.sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp_min(1e-12))
        loss = loss * weight
        self.note(**{"loss/unlabelled": loss.mean(1)})
        return loss

    def _noise(self, count: int) -> list[Tensor]:
        """Dropout of each layer of hidden units, what is left scaled up."""
        if not self.config.dropout:
            return []
        return [(self.uniforms(count, width) >= self.config.dropout).float() / (1 - self.config.dropout) for width in self.network.widths]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generation": self.generation, "born": self.born, "targets": self.targets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generation, self.born, self.targets = int(state["generation"]), int(state["born"]), state["targets"].clone()


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints and plots go to the run's folder."""
    check_semi(config)
    require(config, "students", lambda value: value >= 0, "integers from 0")
    require(config, "threshold", lambda value: 0 <= value <= 1, "numbers from 0 to 1")
    require(config, "dropout", lambda value: 0 <= value < 1, "numbers from 0, below 1")
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    return study.train("noisy_student", config, run, NoisyStudent(config, range(run.settings.seed, run.settings.seed + config.seeds), steps))
