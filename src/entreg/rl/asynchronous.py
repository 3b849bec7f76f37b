"""Learning by workers that do not wait for each other: what the main process does, and what a worker has.

Shapes: M members, N items of a member in a worker's rollout. Every worker steps its own environments of all members with a local copy of the parameters that
it takes before each rollout, and applies its gradient to the shared ones while others do the same. Everything that must be in one place is in the main
process: controllers, schedules, books, records, evaluation, checkpoints. It answers every rollout; W rollouts, of W workers, are an update, after which the
controllers step on the entropy of these rollouts together. It saves and evaluates only while all workers rest, so that a checkpoint is of one moment.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from entreg.finite import NonFinite, all_finite, where_not_finite
from entreg.rl import naming, population
from entreg.rl.books import Books
from entreg.rl.config import OnPolicyConfig
from entreg.rl.learner import Learner, Rollout
from entreg.rl.part import Part
from entreg.rl.shared import OPTIMIZERS, Rule, Shared, share
from entreg.rl.workers import Crew, Line, WorkerFailed, check_main, sendable
from entreg.run import Run, RunSettings


class News(NamedTuple):
    """What the main process tells a worker for its next gradient step: how far the run is, and the states of controllers and schedules."""

    step: int
    regularizers: list[dict[str, Any]]
    schedules: dict[str, dict[str, Any]]


class Report(NamedTuple):
    """What one rollout and its gradient step gave, one entry a member; `means [3, M]` are the mean policy loss, value loss and entropy.

    Arrays, not tensors: a tensor is sent by moving it into shared memory.
    """

    episodes: Sequence[tuple[int, float, int]]
    means: np.ndarray
    shannon: np.ndarray
    largest: np.ndarray | None
    share: np.ndarray | None
    kl: np.ndarray
    explained_variance: np.ndarray
    novelty: Mapping[str, np.ndarray]


class Job(NamedTuple):
    """All that a worker starts from; `state` is where it was at a checkpoint."""

    recipe: str
    config: OnPolicyConfig
    settings: RunSettings
    part: Part
    spec: EnvSpec
    rule: Rule
    shared: Shared
    state: Mapping[str, Any] | None


class Unrecorded(Run):
    """The run of a worker, which writes nothing: it stops on what is not finite, and the main process records that."""

    def check_finite(self, step: int, **tensors: Any) -> None:
        """Raises: `NonFinite` that names the tensor, the step and the first place."""
        for name, value in tensors.items():
            if not all_finite(value):
                raise NonFinite(f"{name} after step {step}: {where_not_finite(value)}")


class Notes(Books):
    """What a worker notes of one rollout, to be reported."""

    episodes: Sequence[tuple[int, float, int]] = ()

    def begin(self, episodes: Sequence[tuple[int, float, int]], per_member: int, explained_variance: np.ndarray) -> None:
        super().begin(episodes, per_member, explained_variance)
        self.episodes = episodes

    def report(self, kl: np.ndarray, shannon: Tensor, largest: Tensor | None) -> Report:
        """The rollout that began last, after its gradient step."""
        means = torch.stack(self._seen).mean(0).numpy()
        most = None if largest is None else largest.numpy()
        novelty = {name: column for name, column in self.columns.items() if name.startswith("intrinsic/")}
        return Report(self.episodes, means, shannon.numpy(), most, self.share, kl, self.columns["explained_variance"], novelty)


class Worker(Learner):
    """One worker's share of the experience. A context: leaving it closes the environments."""

    def __init__(self, job: Job) -> None:
        gymnasium.registry.setdefault(job.spec.id, job.spec)  # an id that the main script registered
        super().__init__(job.recipe, job.config, Unrecorded(job.settings), part=job.part)
        self.shared, self.reached = job.shared, 0
        self.optimizer = OPTIMIZERS[job.rule](self.network.parameters, job.shared)
        self.books = self.notes = Notes(self.members, self.head, self.regularizers)
        if job.state is not None:
            self.load_state_dict(job.state)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.environments.close()

    @property
    def step(self) -> int:
        """Environment steps of each member when the last answer came."""
        return self.reached

    def rollout(self) -> Rollout:
        """A rollout under the newest parameters."""
        self._refresh()
        return self._collect()

    def _refresh(self) -> None:
        self.network.parameters.data.copy_(self.shared.data)

    def follow(self, news: News) -> None:
        """Take over the coefficients and rates of the main process."""
        self.reached = news.step
        for regularizer, state in zip(self.regularizers, news.regularizers, strict=True):
            regularizer.load_state_dict(state)
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(news.schedules[name])

    @torch.no_grad()
    def report(self, rollout: Rollout) -> Report:
        """What came of a rollout after its gradient step; the divergence is that of the shared policy now, to which others have contributed."""
        self._refresh()
        kl = self.head.kl(rollout.outputs, self.network.actor(rollout.observation), rollout.mask).mean(1).numpy()
        return self.notes.report(kl, *self.notes.measure(rollout.outputs, rollout.mask))

    def state_dict(self) -> dict[str, Any]:
        """Open episodes, random state and what is new to this worker; what is shared is saved by the main process."""
        return {
            "collector": self.collector.state_dict(),
            "streams": self.streams.state_dict(),
            "regularizers": {str(index): regularizer.state_dict() for index, regularizer in enumerate(self.regularizers)},
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
            "intrinsic": None if self.intrinsic is None else self.intrinsic.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.streams.load_state_dict(state["streams"])
        self.collector.load_state_dict(state["collector"])
        for index, regularizer in enumerate(self.regularizers):
            regularizer.load_state_dict(state["regularizers"][str(index)])
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        if self.intrinsic is not None:
            self.intrinsic.load_state_dict(state["intrinsic"])


class Chief(Learner):
    """The main process: the only one that writes. Its own environments, one worker's, only say what their spaces are."""

    def __init__(self, recipe: str, config: OnPolicyConfig, run: Run | None, *, workers: int, rule: Rule) -> None:
        check_main()
        self.spec, _ = naming.find(config.env)
        sendable("env_kwargs", config.env_kwargs)
        sendable(f"env {config.env}", self.spec)
        super().__init__(recipe, config, run, part=Part(0, workers))
        self.intrinsic = None  # what is new, each worker knows for itself
        self.rule, self.shared = rule, share(self.network.parameters.data, rule)
        self.optimizer = OPTIMIZERS[rule](self.network.parameters, self.shared)
        self.states: list[Any] = [None] * workers
        self._begun = 0
        self._goal = 0
        self._window: list[Report] = []
        self._rested = time.monotonic()

    def lead(self, work: Callable[[Job, Line], None]) -> None:
        """Let workers do rollouts until the run is complete or stopped; in between, while they rest, records and checkpoints are written."""
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        if self.update == self.updates or self.stopped is not None:
            return
        try:
            with Crew(work, self._jobs()) as crew:
                while self.update < self.updates and self.going:
                    before = self._stretch(crew)
                    self.states = crew.states
                    self.evaluate_and_save(before)
        except (WorkerFailed, NonFinite) as error:
            self.run.event(self.step, "nonfinite" if isinstance(error, NonFinite) else "worker_failed", str(error))
            raise

    def _jobs(self) -> list[Job]:
        common = (self.spec, self.rule, self.shared)
        return [Job(self.recipe, self.config, self.run.settings, Part(i, self.part.of), *common, state) for i, state in enumerate(self.states)]

    def _stretch(self, crew: Crew) -> int:
        """Whole updates until it is time to rest: exactly W rollouts each, whichever workers make them. Gives the step before the last one."""
        self._begun, self._goal = self.update * self.part.of, self._next_rest() * self.part.of
        self._rested = time.monotonic()
        told = {index: self._send(crew, index, begin=True) for index in range(self.part.of)}
        for index, report in crew.reports(self._watch):
            self._take(report)
            if not told[index]:
                told[index] = self._send(crew, index)
        return self.step - self.steps_per_update

    def _send(self, crew: Crew, index: int, *, begin: bool = False) -> bool:
        """Answer a worker, or let it `begin` where a rollout is left to be made; whether it rests afterwards."""
        if begin and self._begun >= self._goal:
            return True
        self._begun += begin
        pause = self._begun >= self._goal
        self._begun += not pause
        regularizers = [regularizer.state_dict() for regularizer in self.regularizers]
        crew.answer(index, News(self.step, regularizers, {name: schedule.state_dict() for name, schedule in self.schedules.items()}), pause=pause)
        return pause

    def _next_rest(self) -> int:
        """The update after which an evaluation is due, or the last one."""
        every = self.run.settings.eval_every
        return self.updates if every is None else min(-(-(self.step // every + 1) * every // self.steps_per_update), self.updates)

    def _watch(self) -> None:
        """Rest soon when the run should stop or save: when the update that has begun is complete."""
        self.run.hurry()
        saving = time.monotonic() - self._rested >= self.run.settings.checkpoint_every
        if saving or self._reached() or self.run.stopping() is not None:
            self._goal = min(self._goal, -(-self._begun // self.part.of) * self.part.of)

    def _take(self, report: Report) -> None:
        """Count a rollout; with the last one of an update the controllers step."""
        self._window.append(report)
        population.observe(self.regularizers, torch.from_numpy(report.means[2]), self.config.environments * self.config.rollout)
        if len(self._window) < self.part.of:
            return
        window, self._window = self._window, []
        self.books.begin([episode for one in window for episode in one.episodes], self.config.environments, _mean(window, "explained_variance"))
        for one in window:
            self.books.seen(torch.from_numpy(one.means))
        self.books.share = _mean(window, "share")
        self.books.columns |= {name: np.mean([one.novelty[name] for one in window], axis=0) for name in window[0].novelty}
        self.books.end(_mean(window, "kl"))
        self.step_controllers()
        self.update += 1
        if self.recording:
            largest = None if window[0].largest is None else torch.as_tensor(_mean(window, "largest"))
            self.write(self.books.lines(torch.from_numpy(_mean(window, "shannon")), largest, self.step))
        for schedule in self.schedules.values():
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"workers": {str(index): state for index, state in enumerate(self.states)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.states = [state["workers"][str(index)] for index in range(self.part.of)]


def _mean(window: Sequence[Report], name: str) -> np.ndarray:
    """The mean of one of the numbers a member, `[M]`."""
    mean: np.ndarray = np.mean([np.asarray(getattr(report, name)) for report in window], axis=0)
    return mean
