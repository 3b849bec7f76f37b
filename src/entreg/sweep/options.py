"""The flags of a sweep; all others are the recipe's and its runs'."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SAMPLERS, PRUNERS = ("grid", "random", "tpe"), ("none", "median", "hyperband")
EPILOG = """All flags of `entreg train RECIPE` are legal too (`entreg train ppo --help` lists them). With a range, --coef gives the rule in which the word coef
stands for the number: --coef 'linear(coef, 0)'; a --coef without that word is a setting of its own, such as the baseline --coef 0.
The same command joins a sweep that is running, on this machine or on others that share the storage, and goes on with one that was stopped."""


@dataclass(frozen=True)
class Options:
    """What concerns the sweep and neither recipe nor run."""

    coef_range: tuple[float, float] | None = None
    points: int = 5
    seeds: int | None = None
    axis: str = "coef"
    sampler: str = "grid"
    trials: int | None = None
    pruner: str = "none"
    select: str | None = None
    minimize: bool = False
    members: int = 24
    storage: str | None = None
    workers: int | None = None
    heartbeat: float = 10.0
    worker: bool = False
    given: bool = False
    """Whether the command names coefficients of its own; without them the recipe's default plays no part beside a range."""

    def __post_init__(self) -> None:
        if self.coef_range is not None:
            low, high = self.coef_range
            if not (0 < low < high and math.isfinite(high)):
                raise ValueError(f"coef_range is {low:g} {high:g}; legal are two finite numbers above 0, the lower one first: the scale is logarithmic")
        for name, least in (("points", 2), ("seeds", 1), ("trials", 1), ("members", 1), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; legal are integers from {least}")
        if not 0.1 <= self.heartbeat <= 3600:
            raise ValueError(f"heartbeat is {self.heartbeat}; legal are seconds from 0.1 to 3600")
        if self.storage == "":
            raise ValueError("storage is ''; legal are a journal file, or the URL of a database such as postgresql://user@host/name")


def parser() -> argparse.ArgumentParser:
    """The flags that `parse` takes out of a command."""
    made = argparse.ArgumentParser(
        prog="entreg sweep RECIPE",
        description="Coefficients, families and schedules times seeds: which is best, and is that more than luck?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add: Any = made.add_argument
    add("--coef-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="coefficients from LOW to HIGH, evenly spaced in their logarithm")
    add("--points", type=int, default=5, help="how many coefficients of the range (default 5)")
    add("--seeds", type=int, metavar="N", help="runs of each setting, with seeds --seed, --seed + 1, ... (default 5, the fewest that allow a verdict)")
    add("--axis", default="coef", metavar="NAME", help="the setting that the coefficient is: coef, or marginal or conditional of semi-supervised recipes")
    add("--sampler", choices=SAMPLERS, default="grid", help="grid: every point; random, tpe: Optuna chooses from the range (default grid)")
    add("--trials", type=int, metavar="N", help="settings that a sampler chooses (default 20)")
    add("--pruner", choices=PRUNERS, default="none", help="Optuna's, which stops a run that falls behind (default none)")
    add("--select", metavar="NAME", help="figure of the records that settings are judged by, its last value (default: evaluated return, or held-out nll)")
    add("--minimize", action="store_true", help="less of it is better (of nll, loss and bits_per_character this is known)")
    add("--members", type=int, default=24, help="at most so many runs in one population, where the recipe trains populations (default 24)")
    add(
        "--storage",
        metavar="FILE|URL",
        help="Optuna's journal file, or a database such as postgresql://user@host/name (default: a file in the sweep's folder)",
    )
    add("--workers", type=int, metavar="N", help="processes on this machine (default: one a core)")
    add("--heartbeat", type=float, default=10.0, metavar="S", help="seconds between signs of life; a trial that misses two is taken up by others (default 10)")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def parse(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The sweep's options, and the words that are left for the recipe.

    >>> parse(["--coef-range", "1e-4", "1", "--env", "CartPole-v1"])[1]
    ['--env', 'CartPole-v1']

    Raises: `ValueError` for values that cannot be meant; wrong flags end the process with status 2 after a message.
    """
    found, rest = parser().parse_known_args(list(words))
    values = vars(found)
    if values["coef_range"] is not None:
        values["coef_range"] = tuple(values["coef_range"])
    flag = f"--{found.axis.replace('_', '-')}"
    return Options(**values, given=any(word.partition("=")[0] in (flag, "--config") for word in rest)), rest
