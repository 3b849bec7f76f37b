"""The storage of a sweep: an Optuna study in a journal file or a database, from which every process takes its next job.

Trials are put in waiting, in order, with their number in the plan as `index`. A process takes a job by making the job's first trial run, which the storage
lets one process do. While it trains it beats: it raises a counter on that trial. Observers time the counter by their own clocks, so that clocks of
machines need not agree; a trial whose counter has stood still for two beats is failed, which again the storage lets one process do, and is put in again.
Journals have no heartbeats in Optuna, and those of its databases end with `Study.optimize`; these are the same for both.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from entreg.sweep.journal import Journal
from entreg.sweep.plan import HOLE, Plan, Setting

ATTEMPTS = 5  # a trial whose process dies so often is not tried again
LATE = 0.5  # seconds that a beat may be late beside its two intervals
RACES = 10  # times that a database is asked again while other processes make the same tables in it
RACED = ("duplicate key", "already exists", "UNIQUE constraint")
CURVE = 10  # points of a trial's learning curve in the storage


class Claim(NamedTuple):
    """A job that this process has taken: its trials by index, the first of them standing for all."""

    trials: dict[int, FrozenTrial]

    @property
    def lead(self) -> int:
        """The id of the trial that beats."""
        return int(next(iter(self.trials.values()))._trial_id)


class Lost(Exception):
    """Others have taken over the trial: this process seemed dead."""


def open_storage(address: str) -> tuple[BaseStorage, Journal | None]:
    """The storage at a URL or in a journal file, and the journal where it is one.

    Raises: `ValueError` in one line where it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in address:
        journal = Journal(Path(address))
        return JournalStorage(journal), journal
    url = address.replace("postgresql://", "postgresql+psycopg://", 1).replace("postgres://", "postgresql+psycopg://", 1)
    for tries in range(RACES, -1, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True}), None
        except Exception as error:  # sqlalchemy, its drivers and alembic have errors of their own
            reason = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())
            if not tries or not any(sign in reason for sign in RACED):
                raise ValueError(f"storage is {_without_password(address)!r}, which cannot be used: {reason:.200}") from None
            time.sleep(0.2)
    raise AssertionError("unreachable")


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"


class Store:
    """The study of one plan. `beat` is the seconds between signs of life of this process."""

    def __init__(self, plan: Plan, address: str, *, beat: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.address, self.beat_every, self.clock = plan, address, beat, clock
        self.storage, self._journal = open_storage(address)
        direction = StudyDirection.MAXIMIZE if plan.sense > 0 else StudyDirection.MINIMIZE
        with contextlib.suppress(DuplicatedStudyError):
            self.storage.create_new_study([direction], plan.name)
        self.study = self.storage.get_study_id_from_name(plan.name)
        self._seen: dict[int, tuple[Any, float]] = {}
        self._owned: dict[int, int] = {}  # trial -> beats
        self._me = uuid.uuid4().hex[:8]  # no two processes beat alike

    # ---------------------------------------------------------------- what stands in the storage

    def current(self) -> dict[int, FrozenTrial]:
        """For each index the trial that counts: one that has ended for good, else the first that has not been given up."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.storage.get_all_trials(self.study, deepcopy=False):
            index = trial.user_attrs.get("index")
            if index is None or (trial.state is TrialState.FAIL and "error" not in trial.user_attrs):
                continue
            if index not in found or (ended(trial) and not ended(found[index])):
                found[index] = trial
        return found

    def complete(self) -> dict[int, FrozenTrial]:
        """Put in the trials that are missing, those of dead processes among them; all trials by index."""
        there = self.current()
        missing = [index for index in range(len(self.plan.trials)) if index not in there]
        if missing:
            before = self._given_up(missing)
            with self.together():
                for index in missing:
                    self.storage.create_new_trial(self.study, self._template(index, before.get(index)))
            there = self.current()
        return there

    def _given_up(self, indices: Sequence[int]) -> dict[int, FrozenTrial]:
        """The last failed trial of each index."""
        every = self.storage.get_all_trials(self.study, deepcopy=False, states=(TrialState.FAIL,))
        return {trial.user_attrs["index"]: trial for trial in every if trial.user_attrs.get("index") in indices}

    def _template(self, index: int, before: FrozenTrial | None) -> FrozenTrial:
        """A waiting trial; one that was begun before keeps the setting that was sampled for it."""
        trial = self.plan.trials[index]
        params, distributions = ({}, {}) if before is None else (before.params, before.distributions)
        if trial.setting is not None:
            distributions = self.distributions(trial.setting.rule)
            params = {name: value for name, value in _params(trial.setting, trial.seeds[0]).items() if name in distributions}
        attempts = 0 if before is None else int(before.user_attrs.get("attempts", 0)) + 1
        attrs = {"index": index, "attempts": attempts}
        return optuna.trial.create_trial(state=TrialState.WAITING, params=params, distributions=distributions, user_attrs=attrs)

    def distributions(self, rule: str) -> dict[str, BaseDistribution]:
        """The parameters of a trial with this rule."""
        plan = self.plan
        found: dict[str, BaseDistribution] = {"rule": CategoricalDistribution(plan.rules), "family": CategoricalDistribution(plan.families)}
        if plan.span is not None and HOLE.search(rule):
            found["coef"] = FloatDistribution(*plan.span, log=True)
        if plan.by_seed:
            found["seed"] = IntDistribution(plan.settings.seed, plan.settings.seed + plan.seeds - 1)
        return found

    # ---------------------------------------------------------------- taking, keeping and ending trials

    def claim(self) -> Claim | None:
        """Take the next job that nobody trains; None where there is none now."""
        there = self.complete()
        for job in self.plan.jobs:
            lead = there[job[0]]
            if lead.state is TrialState.RUNNING and lead._trial_id not in self._owned and self._silent(lead):
                self._give_up([there[index] for index in job])
                there = self.complete()
                lead = there[job[0]]
            if lead.state is TrialState.WAITING and self._take(lead):
                return self._claimed(job)
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        try:
            return bool(self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING))
        except UpdateFinishedTrialError:
            return False

    def _claimed(self, job: Sequence[int]) -> Claim | None:
        there = self.current()
        self._owned[there[job[0]]._trial_id] = 0
        self.beat(there[job[0]]._trial_id)
        with self.together():
            for index in job[1:]:
                if there[index].state is TrialState.WAITING:
                    self._take(there[index])
        return Claim({index: there[index] for index in job if not ended(there[index])})

    def _silent(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's counter has stood still for two of its beats, by the clock of this process."""
        beats, every = trial.user_attrs.get("beat", ("", self.beat_every))
        now, patience = self.clock(), 2 * float(every) + LATE
        if self._seen.get(trial._trial_id, (None, 0.0))[0] != beats:
            self._seen[trial._trial_id] = (beats, now)
            return False
        return now - self._seen[trial._trial_id][1] > patience

    def _give_up(self, job: Sequence[FrozenTrial]) -> None:
        """Fail the first trial of a job whose process is gone, all of them after too many deaths; the first of several observers does."""
        for trial in reversed(job) if int(job[0].user_attrs.get("attempts", 0)) + 1 >= ATTEMPTS else ():
            with contextlib.suppress(UpdateFinishedTrialError):
                self._end(trial._trial_id, {"error": f"its process died {ATTEMPTS} times"})
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(job[0]._trial_id, TrialState.FAIL)

    def beat(self, trial: int) -> None:
        """A sign of life.

        Raises: `Lost` when others have given this trial up.
        """
        self._owned[trial] = self._owned.get(trial, 0) + 1
        try:
            self.storage.set_trial_user_attr(trial, "beat", (f"{self._me}-{self._owned[trial]}", self.beat_every))
        except UpdateFinishedTrialError:
            raise Lost from None

    def setting(self, index: int, trial: FrozenTrial) -> Setting:
        """The setting of a trial, sampled now where the plan leaves it open."""
        given = self.plan.trials[index].setting
        if given is not None:
            return given
        open_trial = self._open(index, trial)
        rule = open_trial.suggest_categorical("rule", self.plan.rules)
        coef = None
        if self.plan.span is not None and HOLE.search(rule):
            coef = float(f"{open_trial.suggest_float('coef', *self.plan.span, log=True):.6g}")
        return Setting(rule, coef, open_trial.suggest_categorical("family", self.plan.families))

    def report(self, index: int, trial: FrozenTrial, step: int, value: float) -> bool:
        """A figure on the way; whether the pruner wants the run to stop."""
        open_trial = self._open(index, trial)
        open_trial.report(value, step)
        return bool(open_trial.should_prune())

    def finish(self, claim: Claim, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Write what came out, by index: `{"value", "curve", "pruned", "error", ...}`; the trial that stands for the job comes last."""
        with self.together():
            for index, result in sorted(results.items(), reverse=True):
                with contextlib.suppress(UpdateFinishedTrialError):
                    self._end(claim.trials[index]._trial_id, result)
        self._owned.pop(claim.lead, None)

    def _end(self, trial: int, result: Mapping[str, Any]) -> None:
        if error := result.get("error"):
            self.storage.set_trial_user_attr(trial, "error", error)
            self.storage.set_trial_state_values(trial, TrialState.FAIL)
            return
        known = self.storage.get_trial(trial).intermediate_values
        for step, value in result["curve"]:
            if step not in known:
                self.storage.set_trial_intermediate_value(trial, step, value)
        for name in ("scores", "entropies", "classes", "folder", "members"):
            self.storage.set_trial_user_attr(trial, name, result[name])
        state = TrialState.PRUNED if result.get("pruned") else TrialState.COMPLETE
        self.storage.set_trial_state_values(trial, state, [result["value"]])

    def release(self, claim: Claim) -> None:
        """Put a job back that was stopped: the next process that asks goes on with it."""
        with self.together(), contextlib.suppress(UpdateFinishedTrialError):
            for trial in reversed(claim.trials.values()):
                self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        self._owned.pop(claim.lead, None)

    def finished(self) -> bool:
        """Whether every trial has ended."""
        there = self.current()
        return all(index in there and ended(there[index]) for index in range(len(self.plan.trials)))

    def close(self) -> None:
        """Let go of the connections to a database."""
        close(self.storage)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Several writes that may reach the disk at once."""
        return contextlib.nullcontext() if self._journal is None else self._journal.together()

    def _open(self, index: int, trial: FrozenTrial) -> optuna.Trial:
        """A trial of this process as Optuna's samplers and pruners take it."""
        study = self._optuna_study(index)
        study.get_trials(deepcopy=False)  # the cache that Optuna puts before a database knows only what was asked for
        return optuna.Trial(study, trial._trial_id)

    def _optuna_study(self, index: int) -> optuna.Study:
        """The study with the plan's sampler, whose randomness is the trial's own, and pruner."""
        seed = (self.plan.settings.seed * 1_000_003 + index) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler: BaseSampler = TPESampler(seed=seed, constant_liar=True) if self.plan.sampler == "tpe" else RandomSampler(seed=seed)
        return optuna.load_study(study_name=self.plan.name, storage=self.storage, sampler=sampler, pruner=self._pruner())

    def _pruner(self) -> BasePruner:
        if self.plan.pruner == "median":
            return MedianPruner()
        if self.plan.pruner == "none":
            return NopPruner()
        runs = 1 if self.plan.several else self.plan.seeds  # one after another
        return HyperbandPruner(min_resource=self.plan.settings.eval_every or 1, max_resource=self.plan.length * runs or "auto")


def close(storage: BaseStorage) -> None:
    """Let go of the connections to a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def ended(trial: FrozenTrial) -> bool:
    """Whether a trial has ended for good, with a result or an error."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (trial.state is TrialState.FAIL and "error" in trial.user_attrs)


def _params(setting: Setting, seed: int) -> dict[str, Any]:
    return {"rule": setting.rule, "family": setting.family, "coef": setting.coef, "seed": seed}
