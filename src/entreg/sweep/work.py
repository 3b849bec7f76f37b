"""What one process does: take a job, train it, look at what it records, write the result, take the next.

<sweep folder>/runs/<first trial of the job>/<run folder>      a run begun by a process that died is gone on with from its checkpoint
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entreg import statistics
from entreg.folder import find_run, hold, warn
from entreg.record import Record, read_records
from entreg.run import NonFinite, Run, RunSettings, Summary
from entreg.sweep.plan import Plan, Setting
from entreg.sweep.store import CURVE, Claim, Lost, Store

STOPS = {"SIGINT": 130, "SIGTERM": 143}
PAUSE = 0.5  # seconds between looks at a storage that has nothing to do at the moment


class Watched(Run):
    """A run that shows each step's figures to `look`, `(step, by member)`, and stops for the reason that it gives; `orphaned` where the parent is gone."""

    def __init__(self, settings: RunSettings, metric: str, members: int, look: Callable[[int, Mapping[int, float]], str | None], **how: Any) -> None:
        super().__init__(settings, **how)
        self._metric, self._members, self._look = metric, members, look
        self._figures: tuple[int, dict[int, float]] = (0, {})

    def log(self, step: int, **values: Any) -> None:
        """As a run does, and show the figures of a step once all members have theirs."""
        super().log(step, **values)
        value = values.get(self._metric)
        if value is None:
            return
        if self._figures[0] != step:
            self._figures = (step, {})
        self._figures[1][int(values.get("member", 0))] = float(value)
        if len(self._figures[1]) == self._members and (reason := self._look(step, self._figures[1])):
            self.stop(reason)


class Worker:
    """Trains jobs of one sweep until there are none left. `parent` is the process without which it stops."""

    def __init__(self, plan: Plan, store: Store, folder: Path, *, say: Callable[[str], None], parent: int | None = None, progress: bool = False) -> None:
        self.plan, self.store, self.folder, self.say, self.parent, self.progress = plan, store, folder, say, parent, progress
        self._earlier: list[float] = []  # scores of the trial's seeds whose runs have ended
        self.recipe = importlib.import_module(f"entreg.recipes.{plan.recipe}")
        self.run: Run | None = None

    def work(self) -> int:
        """The exit status: 0 when the sweep is done, 130 or 143 after a signal."""
        while not self.store.finished():
            claim = self.store.claim()
            if claim is None:
                if self.orphaned():
                    return 143
                time.sleep(PAUSE)
            elif (reason := self._job(claim)) is not None:
                return STOPS.get(reason, 143)
        return 0

    def orphaned(self) -> bool:
        """Whether the process that started this one is gone."""
        return self.parent is not None and os.getppid() != self.parent

    def _job(self, claim: Claim) -> str | None:
        """Train a job that was taken; the signal that ended it, or None."""
        try:
            with self._beating(claim):
                stopped, results = self._train(claim)
        except BaseException:
            self.store.release(claim)
            raise
        if stopped == "lost":
            return None
        if stopped is not None:
            self.store.release(claim)
            if stopped == "busy":
                time.sleep(PAUSE)
                return None
            return stopped
        self.store.finish(claim, results)
        bad = [result["error"] for result in results.values() if "error" in result]
        if bad:
            self.say(f"trials {', '.join(map(str, sorted(results)))} failed: {bad[0]}")
        return None

    @contextlib.contextmanager
    def _beating(self, claim: Claim) -> Iterator[None]:
        """Signs of life while a job is trained; where others have taken it over, or the parent is gone, its run is stopped."""
        over = threading.Event()

        def beat() -> None:
            try:
                signs()
            finally:
                self.store.storage.remove_session()  # a thread has a database session of its own

        def signs() -> None:
            while not over.wait(self.store.beat_every):
                try:
                    self.store.beat(claim.lead)
                except Lost:
                    if self.run is not None:
                        self.run.stop("lost")
                    return
                except Exception as error:  # a database that is away for a moment must not end the training
                    warn(f"sign of life not written: {str(error).splitlines()[0]:.200}")
                if self.orphaned() and self.run is not None:
                    self.run.stop("SIGTERM")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _train(self, claim: Claim) -> tuple[str | None, dict[int, dict[str, Any]]]:
        """Run all that a job consists of; the reason it was stopped for, or results by index."""
        indices = sorted(claim.trials)
        settings = {index: self.store.setting(index, claim.trials[index]) for index in indices}
        job = next(job for job in self.plan.jobs if indices[0] in job)
        parts = _parts(self.plan, {index: self.plan.trials[index].setting or settings[index] for index in job})
        found: dict[int, list[dict[str, Any]]] = {index: [] for index in job}
        for config, seed, members in parts:
            self._earlier = [row["score"] for row in found[indices[0]] if "score" in row]
            stopped, rows = self._run(claim, job, config, seed, len(members))
            if stopped in ("lost", "busy", *STOPS):
                return stopped, {}
            for (index, each), row in zip(members, rows, strict=True):
                found[index].append(row | {"seed": each, "stopped": stopped})
            if stopped == "pruned":
                break
        return None, {index: result_of(found[index]) for index in indices}

    def _run(self, claim: Claim, job: Sequence[int], config: Any, seed: int, members: int) -> tuple[str | None, list[dict[str, Any]]]:
        """One run of the recipe, begun or gone on with; a row a member."""
        out = self.folder / "runs" / f"{job[0]:05d}" / f"seed-{seed}"
        begun = _begun(out, self.plan.recipe)
        if begun is not None and not _free(begun):
            return "busy", []
        settings = replace(self.plan.settings, seed=seed, out=out, resume=None if begun is None else str(begun), quiet=not self.progress)
        self.run = Watched(settings, self.plan.metric, members, lambda step, values: self._look(claim, step, values))
        try:
            summary = self.recipe.train(config, self.run)
        except (ValueError, NonFinite, OSError, MemoryError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise  # a full disk is no fault of the setting
            return "error", [{"error": " ".join(str(error).split()) or type(error).__name__}] * members
        finally:
            self.run = None
        rows = measured(self.plan, summary, members)
        return summary.stopped, [row | {"folder": os.path.relpath(summary.folder, self.folder)} for row in rows]

    def _look(self, claim: Claim, step: int, values: Mapping[int, float]) -> str | None:
        """What the pruner says to the figures of a step; where a recipe trains one model a run, the seeds of a trial follow each other like one long run."""
        if self.plan.pruner == "none":
            return None
        index, trial = next(iter(claim.trials.items()))
        value = statistics.iqm([*self._earlier, *values.values()])
        at = step + (0 if self.plan.several else len(self._earlier) * self.plan.length)
        return "pruned" if math.isfinite(value) and self.store.report(index, trial, at, value) else None


def _begun(out: Path, recipe: str) -> Path | None:
    """The run of a process that died or was stopped, None where there is none."""
    with contextlib.suppress(ValueError):
        return find_run("latest", out, recipe)
    return None


def _free(folder: Path) -> bool:
    """Whether no process writes this run: one that was suspended may wake up."""
    try:
        descriptor = hold(folder)
    except ValueError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return True


def _parts(plan: Plan, settings: Mapping[int, Setting]) -> list[tuple[Any, int, list[tuple[int, int]]]]:
    """The runs that a job's trials need: `(config, first seed, (index, seed) of every member)`."""
    distinct = list(dict.fromkeys(settings.values()))
    seeds = sorted({seed for index in settings for seed in plan.trials[index].seeds})
    place = {(setting, seed): index for index, setting in settings.items() for seed in plan.trials[index].seeds}
    return [(config, seed, [(place[distinct[at], each], each) for at, each in members]) for config, seed, members in plan.runs(distinct, seeds)]


def measured(plan: Plan, summary: Summary, members: int) -> list[dict[str, Any]]:
    """What each member of a run came to: its score, its last entropy, its curve and the number of its choices.

    Raises: `ValueError` where a run that ended as planned has no such figure: no other run will have it.
    """
    lines = read_records(summary.folder).lines
    found: list[dict[str, Any]] = []
    for member in range(members):
        mine = [line for line in lines if line.get("member", 0) == member]
        scores = _series(mine, plan.metric)
        if not scores:
            names = sorted({name for line in mine for name, value in line.items() if isinstance(value, float)})
            said = f"{plan.metric!r}, and there is no such figure among the records, which have {', '.join(names) or 'none'}"
            if summary.stopped is None:
                raise ValueError(f"select is {said}")
            found.append({"error": said})
            continue
        if not math.isfinite(scores[-1][1]):
            found.append({"error": f"{plan.metric} is {scores[-1][1]} at the end"})
            continue
        entropy = _series(mine, "entropy") or _series(mine, "conditional")
        curve = scores if len(scores) > 2 else _series(mine, plan.metric.removeprefix("eval/")) or scores
        found.append(
            {"score": scores[-1][1], "entropy": entropy[-1][1] if entropy else None, "curve": thinned(curve), "classes": _classes(mine), "member": member}
        )
    return found


def _series(lines: Sequence[Record], name: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]


def thinned(curve: Sequence[tuple[int, float]], points: int = CURVE) -> list[tuple[int, float]]:
    """At most `points` finite points of a curve, the last among them.

    >>> thinned([(step, 1.0) for step in range(1, 101)], 4)
    [(1, 1.0), (34, 1.0), (67, 1.0), (100, 1.0)]
    """
    known = [(step, value) for step, value in curve if math.isfinite(value)]
    return [known[int(at)] for at in np.unique(np.linspace(0, len(known) - 1, min(points, len(known))).round())] if known else []


def _classes(lines: Sequence[Record]) -> int | None:
    """How many equally likely choices the largest entropy is that of."""
    for line in reversed(lines):
        share, entropy = line.get("entropy/max"), line.get("entropy")
        if isinstance(share, float) and isinstance(entropy, float) and share > 1e-3:
            return max(1, round(math.exp(entropy / share)))
    return None


def result_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A trial's result from its members': the interquartile mean of their scores, one of one member."""
    if errors := [row["error"] for row in rows if "error" in row]:
        return {"error": errors[0]}
    if odd := [row["stopped"] for row in rows if row["stopped"] not in (None, "stop_at", "pruned")]:
        return {"error": f"stopped: {odd[0]}"}
    curves = [row["curve"] for row in rows]
    common = set.intersection(*({step for step, _ in curve} for curve in curves))
    of_step = {step: [dict(curve)[step] for curve in curves] for step in sorted(common)}
    return {
        "value": statistics.iqm([row["score"] for row in rows]),
        "curve": [(step, statistics.iqm(values)) for step, values in of_step.items()],
        "scores": {str(row["seed"]): row["score"] for row in rows},
        "entropies": {str(row["seed"]): row["entropy"] for row in rows},
        "classes": rows[0]["classes"],
        "folder": rows[0]["folder"] if len({row["folder"] for row in rows}) == 1 else os.path.commonpath([row["folder"] for row in rows]),
        "members": {str(row["seed"]): [row["folder"], row["member"]] for row in rows},
        "pruned": any(row["stopped"] == "pruned" for row in rows),
    }
