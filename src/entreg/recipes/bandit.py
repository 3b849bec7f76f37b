"""A question with 64 answers of which 8 are right, learnt by REINFORCE with and without an entropy bonus: the smallest demonstration that a decode
temperature cannot bring back what training removed.

Source: Williams 1992 (REINFORCE). Page: docs/recipes/bandit.md. Shapes: M members, B answers of a batch, A arms, T temperatures.

    loss = -(r - b) log p(a) - coef H(p),    b the mean reward of the batch's other answers
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from entreg import collapse, functional, loop, regularizer, spelling
from entreg.collapse import Action
from entreg.guard import Rule
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.stacked import FlatParameters, StackedAdam

STATUS = "stable"
SUMMARY = "64 arms, 8 right answers: what temperature cannot bring back"
TEMPERATURES = np.logspace(-2, 3, 251)
ACCURATE = 0.9  # the share of right answers below which a temperature is no use
DRAWS = 16  # answers drawn for `coverage`


@dataclass(frozen=True)
class Config:
    """A bandit with many right answers; every bonus x coefficient x family x seed is a member."""

    arms: int = 64
    """Answers there are."""
    right: int = 8
    """Answers that earn 1; the others earn 0."""
    coef: Several[str] = ("0.1", "0")
    """Entropy coefficient: a number or a controller; several to compare."""
    family: Several[str] = ("shannon",)
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    bonus: Several[str] = ("exact",)
    """How the bonus is made: exact, sampled (the score function of the drawn answers), naive (-log p of the drawn answers, differentiated)."""
    seeds: int = 10
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    batch: int = 16
    """Answers drawn a step."""
    steps: int = 2000
    """Gradient steps."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd follows the gradient itself; adam divides by its size."""
    learning_rate: str = "1"
    """A number or a schedule over the run."""
    on_collapse: Action = "warn"
    """On collapse (entropy under 5 % of its maximum while the accuracy is below its best): off, warn, stop, or rescue by a target controller."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    for name, least in {"seeds": 1, "arms": 2, "right": 1, "batch": 2, "steps": 1}.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from {least}")
    if config.right >= config.arms:
        raise ValueError(f"right is {config.right} of {config.arms} arms; legal are fewer right answers than arms")
    for kind in config.bonus:
        if kind not in ("exact", "sampled", "naive"):
            raise ValueError(f"bonus is {kind!r}; legal are exact, sampled, naive")
        if kind != "exact" and any(spelling.parse_family(family).order != 1 for family in config.family):
            raise ValueError(f"bonus is {kind} with family {', '.join(config.family)}; legal for estimates from samples is shannon")
    if config.optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer is {config.optimizer!r}; legal are sgd and adam")


class Bandit(loop.Fit):
    """The logits of all members, `[M, A]`; which answers are right is drawn from each member's seed."""

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        self.config, self.steps = config, steps
        self.members = loop.combinations(seeds, family=config.family, coef=config.coef, bonus=config.bonus)
        maximum = float(np.log(config.arms))
        self.rules = (Rule("policy", maximum),)
        rescue = Rule("policy", maximum, **collapse.patience(steps)) if config.on_collapse == "rescue" else None
        families = [spelling.parse_family(str(member["family"])) for member in self.members]
        uniform = torch.zeros(config.arms)
        self.regularizers = [
            loop.regularizer(
                str(member["coef"]),
                steps=steps,
                maximum=float(functional.categorical_entropy(uniform, family)),
                family=str(member["family"]),
                rescue=rescue,
            )
            for member, family in zip(self.members, families, strict=True)
        ]
        self.families = families
        self.parameters = FlatParameters(len(self.members), {"logits": (config.arms,)})
        self.adam = StackedAdam(self.parameters, eps=1e-8)
        self.rate = Schedule("learning_rate", config.learning_rate, steps)
        self.streams = loop.generators([member["seed"] for member in self.members], 0xBA2D)
        order = [stream.permutation(config.arms)[: config.right] for stream in loop.generators([m["seed"] for m in self.members], 0x2164)]
        self.reward = torch.zeros(len(self.members), config.arms).scatter_(1, torch.from_numpy(np.stack(order)), 1.0)

    def update(self, step: int) -> Mapping[str, Any]:
        logits = self.parameters["logits"]
        action = self._drawn(self.parameters.plain["logits"])
        log_prob = logits.log_softmax(-1).gather(1, action)
        reward = self.reward.gather(1, action)
        advantage = reward - (reward.sum(1, keepdim=True) - reward) / (self.config.batch - 1)
        loss = functional.policy_gradient(log_prob, advantage).mean(1)
        entropy = torch.stack([functional.categorical_entropy(row, family) for row, family in zip(logits, self.families, strict=True)])
        bonus = regularizer.stacked(self.regularizers, self._raised(entropy, log_prob)[:, None])
        accuracy = (self.parameters.plain["logits"].softmax(-1) * self.reward).sum(1)
        self.parameters.backward((loss.sum() + bonus.loss, torch.ones(())))
        if self.config.optimizer == "adam":
            self.adam.step(self.rate.value)
        else:
            self.parameters.data.sub_(self.parameters.grad, alpha=self.rate.value)
        self.rate.step()
        for one, value in zip(self.regularizers, accuracy.tolist(), strict=True):
            one.step(reward=value, progress=(step + 1) / self.steps)
        return {"logits": self.parameters.data}

    def _drawn(self, logits: Tensor) -> Tensor:
        """Each member's answers from its own stream, `[M, B]`, by inversion of the distribution function."""
        noise = np.stack([stream.random(self.config.batch) for stream in self.streams])
        cumulated = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(cumulated, torch.from_numpy(noise) * cumulated[:, -1:]).clamp_max(self.config.arms - 1)

    def _raised(self, entropy: Tensor, log_prob: Tensor) -> Tensor:
        """What the bonus raises, `[M]`: the value of the entropy, with the gradient of each member's estimate of it."""
        rows = zip(self.members, entropy, log_prob, strict=True)
        return torch.stack([_estimate(str(member["bonus"]), exact, drawn) for member, exact, drawn in rows])

    @torch.no_grad()
    def decoded(self, temperatures: np.ndarray) -> dict[str, np.ndarray]:
        """What answers at these temperatures are worth, exactly, `[M, T]`: `accuracy`; `answers`, the perplexity of the right ones; `coverage`, the expected
        number of different right ones among DRAWS."""
        logits = self.parameters.plain["logits"].double()[:, None] / torch.from_numpy(temperatures)[:, None]
        probs = logits.softmax(-1)
        right = torch.where(self.reward[:, None] > 0, probs, 0.0)
        accuracy = right.sum(-1)
        entropy = functional.categorical_entropy(logits, support=self.reward[:, None].expand_as(logits) > 0)
        seen = torch.where(self.reward[:, None] > 0, 1 - (1 - probs) ** DRAWS, 0.0).sum(-1)
        return {"accuracy": accuracy.numpy(), "answers": entropy.exp().numpy(), "coverage": seen.numpy()}

    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        now, entropy = self.decoded(np.ones(1)), functional.categorical_entropy(self.parameters.plain["logits"])
        columns = {"answers": now["answers"][:, 0], "accuracy": now["accuracy"][:, 0], "coverage": now["coverage"][:, 0]}
        if evaluate:
            swept = self.decoded(TEMPERATURES)
            useful = np.where(swept["accuracy"] >= ACCURATE, swept["answers"], 0.0)
            columns["answers/best_temperature"], columns["best_temperature"] = useful.max(1), TEMPERATURES[useful.argmax(1)]
            columns["coverage/best_temperature"] = swept["coverage"].max(1)
        columns |= {"entropy": entropy.numpy(), "entropy/perplexity": entropy.exp().numpy(), "entropy/max": entropy.numpy() / np.log(self.config.arms)}
        columns["coef"] = np.array([one.coef for one in self.regularizers])
        if self.config.on_collapse == "rescue":
            columns["rescued"] = np.array(collapse.rescued(self.regularizers))
        return [{name: float(values[index]) for name, values in columns.items()} for index in range(len(self.members))]

    def write(self, run: Run) -> None:
        """The curves over temperature and the answers that are left."""
        swept, right = self.decoded(np.logspace(-1, 2, 40)), self.config.right
        probs = torch.where(self.reward > 0, self.parameters.plain["logits"].softmax(-1), -1.0).numpy()
        left = np.sort(probs, axis=1)[:, : -right - 1 : -1]
        curves: dict[str, list[Any]] = {"answers": [], "coverage": [], "left": []}
        for group, (name, of) in enumerate(loop.settings(self.members).items()):
            for figure in ("answers", "coverage"):
                points = {"x": swept["accuracy"][of].mean(0).tolist(), "y": swept[figure][of].mean(0).tolist()}
                curves[figure].append({"name": name, "group": group, **points})
            curves["left"].append({"name": name, "group": group, "x": list(range(1, right + 1)), "y": left[of].mean(0).tolist()})
        over = "One line a setting, mean over seeds; along it the decode temperature goes from 0.1 to 100."
        shared = {"x": "accuracy", "caption": over}
        plots = [
            {"title": "Right answers kept, over temperature", "y": "perplexity of the right answers", "series": curves["answers"], **shared},
            {"title": f"Right answers seen in {DRAWS} draws", "y": "different right answers", "series": curves["coverage"], **shared},
            {"title": "Their probabilities", "kind": "bars", "x": "right answers, the likeliest first", "y": "probability", "series": curves["left"]},
        ]
        loop.write_plots(run.folder, plots)

    def state_dict(self) -> dict[str, Any]:
        return {
            "logits": self.parameters.data,
            "adam": self.adam.state_dict(),
            "rate": self.rate.state_dict(),
            "regularizers": loop.states(self.regularizers),
            "streams": loop.streams_state(self.streams),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.parameters.data.copy_(state["logits"])
        self.adam.load_state_dict(state["adam"])
        self.rate.load_state_dict(state["rate"])
        loop.load_states(self.regularizers, state["regularizers"])
        loop.load_streams(self.streams, state["streams"])


def _estimate(kind: str, exact: Tensor, log_prob: Tensor) -> Tensor:
    """The value of an entropy with the gradient that this kind of bonus gives it."""
    if kind == "exact":
        return exact
    raised = -(functional.score_function_bonus(log_prob) if kind == "sampled" else log_prob).mean()
    return exact.detach() + raised - raised.detach()


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints and plots go to the run's folder."""
    check(config)
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    fit = Bandit(config, range(run.settings.seed, run.settings.seed + config.seeds), steps)
    return loop.train("bandit", f"{config.right}-of-{config.arms}", config, run, fit, config.on_collapse)
