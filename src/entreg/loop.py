"""The loop of recipes that train on data rather than in episodes: records, guard, checkpoints, resume and the end.

A recipe is a `Fit`: M members that take the same steps, seeds varying fastest. `train` runs one to its end.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from entreg import collapse, disk, spelling, targets
from entreg.collapse import Action, Watcher
from entreg.folder import setting_name
from entreg.guard import Rule
from entreg.regularizer import EntropyRegularizer
from entreg.run import Run, Summary

Row: TypeAlias = Mapping[str, float]
LINES = 100  # training records a member and run
REWARDS = ("accuracy", "return")  # what a policy is judged by, the first that a record has


class Fit(ABC):
    """What is trained. `members` say of each its seed and whatever else differs, as config.json and the report name it."""

    members: Sequence[Mapping[str, Any]]
    steps: int
    rules: Sequence[Rule] = ()
    lines: int = LINES
    source: str = ""  # a digest of the data, which a resumed run must find again

    @abstractmethod
    def update(self, step: int) -> Mapping[str, Any]:
        """One step of all members; gives what must be finite."""

    def watched(self, member: int) -> Sequence[Rule]:
        """What the guard looks for in a member's records."""
        return self.rules

    @abstractmethod
    def rows(self, step: int, *, evaluate: bool) -> Sequence[Row]:
        """A record a member; with `evaluate` everything that can be measured."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run goes on from."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""

    @abstractmethod
    def write(self, run: Run) -> None:
        """Files beside the records, once the run is complete."""


def combinations(seeds: Sequence[int], **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination, the first axis varying slowest and seeds fastest: members of one setting stand together.

    >>> combinations([0, 1], coef=["0.1", "0"])[1:3]
    [{'coef': '0.1', 'seed': 1}, {'coef': '0', 'seed': 0}]
    """
    values = [dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())]
    return [{**one, "seed": seed} for one in values for seed in seeds]


def told_apart(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The members without what all of them share, but for coefficient, family and seed.

    >>> told_apart([{"coef": "0", "bonus": "exact", "seed": 0}])
    [{'coef': '0', 'seed': 0}]
    """
    differ = [name for member in members for name in member if len({str(one.get(name)) for one in members}) > 1]
    return [{name: value for name, value in member.items() if name in ("coef", "family", "seed", *differ)} for member in members]


def settings(members: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The settings among members, by the names and in the order of the report's groups: everything but the seed, coefficients and family first.

    >>> settings([{"coef": "0.1", "seed": 0}, {"coef": "0.1", "seed": 1}, {"coef": "0", "seed": 0}])
    {'coef 0.1': [0, 1], 'coef 0': [2]}
    """
    found: dict[str, list[int]] = {}
    for index, member in enumerate(told_apart(members)):
        found.setdefault(setting_name(member), []).append(index)
    return found


def write_plots(folder: Path, plots: Sequence[Mapping[str, Any]]) -> None:
    """`plots.json` for the report, whose format stands in `entreg.report.plots`."""
    disk.replace_file(folder / "plots.json", json.dumps(plots).encode())


def write_maps(folder: Path, maps: Mapping[str, Any], *, pictures: bool = False) -> None:
    """`heatmaps.json` for the report, from arrays by their titles; `pictures` are drawn as such."""
    listed = [{"title": title, "values": np.asarray(rows).tolist(), "picture": pictures} for title, rows in maps.items()]
    disk.replace_file(folder / "heatmaps.json", json.dumps(listed).encode())


def regularizer(
    text: str, *, steps: int, maximum: float | None, family: str = "shannon", sense: Literal["maximize", "minimize"] = "maximize", rescue: Rule | None = None
) -> EntropyRegularizer:
    """The regularizer of a coefficient's spelling, its open fields filled in; with `rescue` a target controller takes over when that rule is raised.

    `maximum` is the largest entropy there is, of the family; None where there is none. ValueError where the spelling makes no sense, or a
    Tsallis entropy cannot be guarded.
    """
    parsed = spelling.parse_family(family)
    controller = targets.resolve(
        spelling.parse_controller(text), steps=steps, max_entropy=maximum, lr=collapse.RATE, init_coef=collapse.START, family=parsed.name
    )
    if rescue is not None:
        controller = collapse.rescuing(controller, rescue, parsed)
    return EntropyRegularizer(controller, sense=sense)


def generators(seeds: Sequence[int], purpose: int) -> list[np.random.Generator]:
    """A stream a member; those of another `purpose` are independent."""
    return [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose]))) for seed in seeds]


def states(each: Sequence[EntropyRegularizer]) -> dict[str, Any]:
    """The state of regularizers for a checkpoint."""
    return {str(index): one.state_dict() for index, one in enumerate(each)}


def load_states(each: Sequence[EntropyRegularizer], state: Mapping[str, Any]) -> None:
    """Take back what `states` gave."""
    for index, one in enumerate(each):
        one.load_state_dict(state[str(index)])


def streams_state(streams: Sequence[np.random.Generator]) -> dict[str, Any]:
    """The state of streams for a checkpoint."""
    return {str(index): stream.bit_generator.state for index, stream in enumerate(streams)}


def load_streams(streams: Sequence[np.random.Generator], state: Mapping[str, Any]) -> None:
    """Take back what `streams_state` gave."""
    for index, stream in enumerate(streams):
        stream.bit_generator.state = state[str(index)]


def digest(*arrays: Any) -> str:
    """A digest of arrays, those that are None left out."""
    found = hashlib.sha256()
    for array in arrays:
        if array is not None:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def prepare(run: Run, steps: int) -> int:
    """Settle torch as the run wants it; the steps that it takes, two of a dry run."""
    torch.set_num_threads(run.settings.threads)
    if run.settings.deterministic:
        torch.use_deterministic_algorithms(True)
    return min(2, steps) if run.settings.dry_run else steps


def train(recipe: str, task: str, config: Any, run: Run, fit: Fit, guard: Action = "warn") -> Summary:
    """Train to the end, or until the run is told to stop; a run that is complete changes nothing."""
    members = [{"member": index, **member} for index, member in enumerate(told_apart(fit.members))]
    run.start(recipe, task, config, members=members, total=fit.steps)
    with run:
        return _Loop(run, fit, guard).go()


class _Loop:
    """A run's place in its steps."""

    def __init__(self, run: Run, fit: Fit, guard: Action) -> None:
        self.run, self.fit = run, fit
        self.watcher = Watcher(run, [fit.watched(member) for member in range(len(fit.members))], guard)
        self.step, self.final = 0, list[dict[str, float]]()
        self.clock = time.perf_counter(), 0
        state = run.restore()
        if state is not None:
            if state["source"] != fit.source:
                raise ValueError("resume: the data are not those that this run began with; legal are those")
            self.step, self.final = int(state["step"]), state["final"]
            self.clock = time.perf_counter(), self.step
            self.watcher.load_state_dict(state["watcher"])
            fit.load_state_dict(state["fit"])

    def state(self) -> dict[str, Any]:
        kept = {"step": self.step, "final": self.final, "source": self.fit.source}
        return {**kept, "watcher": self.watcher.state_dict(), "fit": self.fit.state_dict()}

    def go(self) -> Summary:
        run, fit = self.run, self.fit
        stopped, every = run.stopping(), run.settings.eval_every
        while self.step < fit.steps and stopped is None:
            run.check_finite(self.step, **fit.update(self.step))
            self.step += 1
            due = every is not None and self.step % every == 0
            if self.step < fit.steps and (due or self.step % max(1, fit.steps // fit.lines) == 0):
                self._log(fit.rows(self.step, evaluate=due))
            run.hurry()
            stopped = run.stopping()
            run.checkpoint(self.step, self.state)
        if not self.final and stopped is None:
            rows = fit.rows(self.step, evaluate=True)
            self._log(rows)
            self.final = [{name: float(value) for name, value in row.items()} for row in rows]
            fit.write(run)
        run.checkpoint(self.step, self.state, force=True)
        return run.finish(self.step, self._summary())

    def _log(self, rows: Sequence[Row]) -> None:
        then, before = self.clock
        now = time.perf_counter()
        speed = (self.step - before) * len(rows) / max(now - then, 1e-9)
        self.clock = now, self.step
        for member, row in enumerate(rows):
            self.run.log(self.step, member=member, **row, steps_per_second=speed)
        for member, row in enumerate(rows):
            reward = next((row[name] for name in REWARDS if name in row), None)
            self.watcher.look(self.step, member, row, entropy=row.get("entropy"), reward=reward)

    def _summary(self) -> dict[str, float]:
        """Means over the seeds of each setting of the figure that a recipe puts first; a setting is named where there are several."""
        if not self.final:
            return {}
        first = next(iter(self.final[0]))
        means = {name: float(np.mean([self.final[member][first] for member in of])) for name, of in settings(self.fit.members).items()}
        return {first if len(means) == 1 else f"{first} at {name}": value for name, value in means.items()}
