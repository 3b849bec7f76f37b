"""What a sweep consists of: settings (coefficient rule x coefficient x family), each with the same seeds, as trials and as the jobs that train them.

A trial is what the storage knows: of a grid one setting with one seed, of a sampled sweep one setting with all its seeds. A job is what one
process trains in one go: where the recipe trains populations, the trials of neighbouring coefficients of one family together.
Everything follows from the command alone, so that the same command on another machine means the same sweep.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from entreg import spelling
from entreg.folder import COEFS, plain, slug
from entreg.run import KEPT, RunSettings
from entreg.sweep.options import Options

HOLE = re.compile(r"\bcoef\b")  # where the coefficient of the range stands in a rule
METRICS = {"bandit": "answers", "textgen": "bits_per_character", "gan": "modes", "clustering": "accuracy", "maxent_irl": "eval/value_difference"}
LESS = ("nll", "nll/tempered", "bits_per_character", "loss", "eval/loss", "eval/value_difference", "calibration_error")  # less is better
SEEDS, TRIALS = 5, 20  # by default: the fewest seeds that allow a verdict
MOST = 100_000  # trials


class Setting(NamedTuple):
    """One point of a sweep: a rule such as `linear(coef, 0)`, the number that stands for `coef` (None where the rule has none), and a family."""

    rule: str
    coef: float | None
    family: str

    @property
    def text(self) -> str:
        """The coefficient as recipes spell it.

        >>> Setting("linear(coef, 0)", 0.01, "shannon").text, Setting("0", None, "shannon").text
        ('linear(0.01, 0)', '0')
        """
        return self.rule if self.coef is None else HOLE.sub(repr(self.coef), self.rule)

    @property
    def without(self) -> bool:
        """Whether there is no bonus, so that the family plays no part.

        >>> Setting("0.0", None, "shannon").without, Setting("linear(coef, 0)", 0.01, "shannon").without
        (True, False)
        """
        try:
            return float(self.text) == 0
        except ValueError:
            return False

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"coef {self.text}, {self.family}"


class Trial(NamedTuple):
    """One entry of the storage; the setting is None until a sampler has chosen it."""

    setting: Setting | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """One sweep. `config` is the recipe's, `settings` the run's; `axis` names the field of `config` that the coefficient is."""

    recipe: str
    task: str
    config: Any
    settings: RunSettings
    axis: str
    rules: tuple[str, ...]
    families: tuple[str, ...]
    span: tuple[float, float] | None
    points: int
    seeds: int
    sampler: str
    trials_wanted: int
    pruner: str
    metric: str
    sense: int
    members: int

    @property
    def name(self) -> str:
        """The name of study and folder: the same for the same command, another where anything that shapes the results differs."""
        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("settings", "config")}
        kept = {name: getattr(self.settings, name) for name in KEPT}
        text = json.dumps([facts, kept, plain(self.config, repr)], sort_keys=True)
        return f"sweep-{slug(self.recipe)}-{slug(self.task)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def several(self) -> bool:
        """Whether one run of the recipe trains several seeds and coefficients at once."""
        return trains_populations(self.config, self.axis)

    @property
    def length(self) -> int:
        """Steps of one run, 0 where the recipe does not say."""
        return int(getattr(self.config, "steps", 0))

    @property
    def by_seed(self) -> bool:
        """Whether a trial is a setting with one seed; samplers and pruners judge a setting by all its seeds, not by its luck with one."""
        return self.sampler == "grid" and self.pruner == "none"

    @cached_property
    def coefs(self) -> tuple[float, ...]:
        """The grid over the range, evenly spaced in its logarithm, ends exactly."""
        if self.span is None:
            return ()
        low, high = self.span
        inner = [float(f"{value:.6g}") for value in np.geomspace(low, high, self.points)]
        return (low, *inner[1:-1], high) if self.points > 1 else (low,)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All trials in order: families slowest, then rules and coefficients, seeds fastest."""
        every = tuple(range(self.settings.seed, self.settings.seed + self.seeds))
        if self.sampler != "grid":
            return (Trial(None, every),) * self.trials_wanted
        settings = [setting for family in self.families for setting in self._settings(family)]
        return tuple(Trial(setting, seeds) for setting in settings for seeds in ([(seed,) for seed in every] if self.by_seed else [every]))

    def _settings(self, family: str) -> list[Setting]:
        with_hole = [Setting(rule, coef, family) for rule in self.rules if HOLE.search(rule) for coef in self.coefs]
        fixed = [Setting(rule, None, family) for rule in self.rules if not HOLE.search(rule)]
        return with_hole + [setting for setting in fixed if family == self.families[0] or not setting.without]

    @cached_property
    def jobs(self) -> tuple[tuple[int, ...], ...]:
        """The trials (by number) that are trained together."""
        if not self.by_seed or not self.several:
            return tuple((index,) for index in range(len(self.trials)))
        found, first = [], 0
        for family in self.families:
            settings = len(self._settings(family))
            parts = math.ceil(settings / max(1, self.members // self.seeds))
            for part in np.array_split(np.arange(settings) + first, parts):
                found.append(tuple(range(int(part[0]) * self.seeds, (int(part[-1]) + 1) * self.seeds)))
            first += settings
        return tuple(found)

    def runs(self, settings: Sequence[Setting], seeds: Sequence[int]) -> list[tuple[Any, int, list[tuple[int, int]]]]:
        """What trains these settings of one family with these seeds: `(config, first seed, the (setting, seed) of every member)` a run."""
        if self.several:
            config = self._with(tuple(setting.text for setting in settings), settings[0].family, seeds=len(seeds))
            return [(config, seeds[0], [(index, seed) for index in range(len(settings)) for seed in seeds])]
        return [(self._with(setting.text, setting.family), seed, [(index, seed)]) for index, setting in enumerate(settings) for seed in seeds]

    def _with(self, coef: str | tuple[str, ...], family: str, **changes: Any) -> Any:
        as_tuple = isinstance(getattr(self.config, self.axis), tuple)
        changes[self.axis] = (coef,) if as_tuple and isinstance(coef, str) else coef
        if hasattr(self.config, "family"):
            changes["family"] = (family,) if isinstance(self.config.family, tuple) else family
        return replace(self.config, **changes)


def trains_populations(config: Any, axis: str) -> bool:
    """Whether a recipe with this config trains members with several seeds and coefficients in one run."""
    return isinstance(getattr(config, axis), tuple) and hasattr(config, "seeds")


def make(recipe: str, config: Any, settings: RunSettings, task: str, options: Options) -> Plan:
    """The plan that these flags mean.

    Raises: `ValueError` for the first that cannot be meant.
    """
    axis = options.axis
    names = [field.name for field in fields(config)]
    coefs = [field.name for field in fields(config) if field.name in COEFS]
    if axis not in coefs:
        raise ValueError(f"axis is {axis!r}; legal for {recipe} are {', '.join(coefs) or 'none: it has no coefficient to sweep'}")
    _check_run(settings)
    default = {field.name: field.default for field in fields(config)}
    given = _texts(getattr(config, axis))
    if options.coef_range is not None and not options.given and given == _texts(default[axis]):
        given = ()
    rules = given if options.coef_range is None or any(HOLE.search(rule) for rule in given) else ("coef", *given)
    families = tuple(dict.fromkeys(_texts(getattr(config, "family", "shannon"))))
    others = [name for name in names if name not in (axis, "family", "hidden") and isinstance(getattr(config, name), tuple) and len(getattr(config, name)) > 1]
    if several := [name for name in others if all(isinstance(value, str) for value in getattr(config, name))]:
        raise ValueError(f"{several[0]} has several values; legal in a sweep is one: it goes over {axis} and family")
    seeds = options.seeds or SEEDS
    metric, sense = _metric(recipe, names, options)
    changes = {"seeds": 1 if "seeds" in names else None, "video": False if "video" in names else None}
    plan = Plan(
        recipe=recipe,
        task=task,
        config=replace(config, **{name: value for name, value in changes.items() if value is not None}),
        settings=_evaluated(settings, config, options),
        axis=axis,
        rules=tuple(dict.fromkeys(rules)),
        families=families,
        span=options.coef_range,
        points=options.points if options.coef_range else 1,
        seeds=seeds,
        sampler=options.sampler,
        trials_wanted=options.trials or TRIALS,
        pruner=options.pruner,
        metric=metric,
        sense=sense,
        members=options.members,
    )
    _check(plan, options)
    return plan


def _texts(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _metric(recipe: str, names: Sequence[str], options: Options) -> tuple[str, int]:
    """What settings are judged by, and 1 where more is better, -1 where less is."""
    known = METRICS.get(recipe) or ("eval/return" if "env" in names else "nll" if "labels" in names else "eval/pass@1" if "task" in names else None)
    metric = options.select or known
    if metric is None:
        raise ValueError(f"select: {recipe} has no figure that sweeps know; name one of its records, such as --select loss --minimize")
    return metric, -1 if options.minimize or metric in LESS else 1


def _evaluated(settings: RunSettings, config: Any, options: Options) -> RunSettings:
    """A pruner needs figures on the way: ten evaluations unless told otherwise."""
    if options.pruner == "none" or settings.eval_every is not None or not hasattr(config, "steps"):
        return settings
    return replace(settings, eval_every=max(1, config.steps // 10))


def _check_run(settings: RunSettings) -> None:
    for name in ("resume", "dry_run", "max_time"):
        if getattr(settings, name):
            raise ValueError(f"{name} is {getattr(settings, name)!r}; a sweep has none: the same command goes on with it")


def _check(plan: Plan, options: Options) -> None:
    holes = [rule for rule in plan.rules if HOLE.search(rule)]
    if plan.span is None and holes:
        raise ValueError(f"{plan.axis} is {holes[0]!r}, in which coef stands for a number of --coef-range LOW HIGH, which is missing")
    if plan.span is None and plan.sampler != "grid":
        raise ValueError(f"sampler is {plan.sampler!r} without a range to sample from; legal with --coef-range LOW HIGH")
    if plan.sampler == "grid" and options.trials is not None:
        raise ValueError(f"trials is {options.trials} beside the grid sampler, whose trials are --points times --seeds; legal with random and tpe")
    if not plan.rules:
        raise ValueError(f"there is nothing to sweep over; legal are --coef-range LOW HIGH, or --{plan.axis.replace('_', '-')} several times")
    if len(plan.rules) * len(plan.families) * max(1, plan.points) == 1 and plan.sampler == "grid":
        raise ValueError(f"the sweep has a single setting, {plan.rules[0]}; legal are two or more: --coef-range LOW HIGH, or --coef or --family several times")
    settings = len(plan.rules) * max(1, plan.points) * len(plan.families) if plan.sampler == "grid" else plan.trials_wanted
    if settings * plan.seeds > MOST:
        raise ValueError(f"the sweep has {settings * plan.seeds} runs; legal are {MOST} at most")
    if plan.families != ("shannon",) and not hasattr(plan.config, "family"):
        raise ValueError(f"{plan.recipe} has no family to sweep over")
    for rule in plan.rules:
        for value in plan.span or (0.0,):
            spelling.parse_controller(Setting(rule, value, "").text)
    for family in plan.families:
        spelling.parse_family(family)
