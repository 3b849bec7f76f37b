"""What the on-policy recipes learn: published settings, several seeds, with an entropy bonus and without.

    python -m bench.studies cartpole | acrobot | pendulum | minigrid | mujoco | frozenlake | a2c | reinforce  [--quick | --table] [--out FOLDER]

Every study trains one population an arm (all coefficients x seeds as one stacked network), appends it to `bench/results/<study>.csv` (one line a member;
an arm that is there is not run again) and prints a table: means over seeds with 95 % bootstrap intervals, and for every coefficient the paired
difference to coefficient 0 of the same seeds.
`--quick` runs a twentieth of the steps with two seeds and writes nothing: it shows that a study runs, not what it finds. Figures are
reproducible for a seed on one machine; other processors and versions round differently, which reinforcement learning amplifies.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import common
from bench.common import HERE, RESULTS, interval

from entreg import flags
from entreg.record import read_records
from entreg.run import Run, RunSettings, exit_status
from entreg.statistics import mean_interval, paired_difference

EXAMPLES = HERE.parent / "examples"


class Arm(NamedTuple):
    """One population: a settings file of `examples/` and what is changed in it; `threshold` is the mean return of 100 episodes whose first step is told."""

    example: str
    seeds: int
    coefs: tuple[str, ...]
    eval_episodes: int
    threshold: float | None = None
    published: str = "none"
    changes: Mapping[str, Any] = {}


PACKAGES = {"mujoco": ("mujoco",)}  # whose versions count beside those of torch, numpy and gymnasium
PAIR = ("0", "linear(0.01, 0)")
ZOO = "stable-baselines3 zoo: "
STUDIES: Mapping[str, Mapping[str, Arm]] = {
    "cartpole": {"PPO": Arm("ppo-cartpole", 20, PAIR, 30, 475.0, ZOO + "500 at 100k steps")},
    "acrobot": {
        "PPO, 300k steps": Arm("ppo-acrobot", 5, PAIR, 200, -100.0, changes={"steps": 300_000}),
        "PPO, 1M steps": Arm("ppo-acrobot", 5, ("0",), 200, -100.0, ZOO + "-73.5 at 1M steps"),
    },
    "pendulum": {
        "PPO, Gaussian": Arm("ppo-pendulum", 10, PAIR, 300, None, ZOO + "-172 at 100k steps"),
        "PPO, squashed": Arm("ppo-pendulum-squashed", 10, PAIR, 300),
    },
    "minigrid": {"PPO": Arm("ppo-minigrid-doorkey", 5, PAIR, 50, 0.9, ZOO + "0.964 at 100k steps")},
    "mujoco": {
        "Hopper-v4": Arm("ppo-hopper", 8, ("0", "0.01"), 20, None, "CleanRL: 2383 +- 272 at 1M steps"),
        "HalfCheetah-v4": Arm("ppo-halfcheetah", 8, ("0", "0.01"), 20, None, "CleanRL: 1443 +- 46 at 1M steps"),
    },
    "frozenlake": {"PPO": Arm("ppo-frozenlake", 32, ("0", "linear(1, 0)", "0.1"), 1, 0.9)},
    "a2c": {
        "CartPole": Arm("a2c-cartpole", 8, (*PAIR, "linear(0.1, 0)"), 30, 475.0, ZOO + "500 at 500k steps"),
        "FrozenLake": Arm("a2c-frozenlake", 16, (*PAIR, "linear(0.03, 0)", "linear(0.1, 0)"), 1, 0.9),
    },
    "a3c": {"CartPole": Arm("a3c-cartpole", 5, (*PAIR, "linear(0.1, 0)"), 30, 475.0)},
    "reinforce": {
        "CartPole": Arm("reinforce-cartpole", 8, (*PAIR, "linear(0.1, 0)"), 30, 475.0),
        "FrozenLake": Arm("reinforce-frozenlake", 16, (*PAIR, "linear(0.03, 0)", "linear(0.1, 0)"), 1, 0.9),
    },
}


def settings(arm: Arm, quick: bool) -> tuple[str, Any]:
    """The recipe's name and the Config of an arm."""
    page = json.loads((EXAMPLES / f"{arm.example}.json").read_text(encoding="utf-8"))
    recipe = str(page["recipe"])
    config = flags.build(importlib.import_module(f"entreg.recipes.{recipe}").Config, page["config"])
    config = replace(config, video=False, seeds=arm.seeds, coef=arm.coefs, eval_episodes=arm.eval_episodes, **arm.changes)
    return recipe, replace(config, steps=config.steps // 20, seeds=2, eval_episodes=2) if quick else config


def train(recipe: str, config: Any) -> list[dict[str, Any]]:
    """Run one arm: one row a member."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunSettings(out=Path(folder), quiet=True, checkpoint_every=3600))
        summary = importlib.import_module(f"entreg.recipes.{recipe}").train(config, run)
        if summary.stopped is not None:
            raise SystemExit(exit_status(summary))
        members = json.loads((summary.folder / "config.json").read_text(encoding="utf-8"))["members"]
        lines = read_records(summary.folder).lines
    rows = []
    for member in members:
        mine = [line for line in lines if line.get("member") == member["member"]]
        rows.append({name: member[name] for name in ("seed", "coef", "family")} | _outcome(mine))
    return rows


def _outcome(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of one member; `curve` is its (step, return) for the thresholds."""
    training = [line for line in lines if "coef" in line]
    final = next(line for line in reversed(lines) if "eval/return" in line)
    last = training[-1]
    return {
        "steps": last["step"],
        "eval_return": final["eval/return"],
        "eval_std": final["eval/return_std"],
        "eval_episodes": final["eval/episodes"],
        "return": last.get("return", float("nan")),
        "entropy": last["entropy"],
        "entropy_mean": float(np.mean([line["entropy"] for line in training])),
        "curve": [(line["step"], line["return"]) for line in training if "return" in line],
    }


def first_step(curve: Sequence[tuple[int, float]], threshold: float) -> int | None:
    """The first logged step whose `return` (mean of the last 100 episodes) is at least `threshold`."""
    return next((step for step, value in curve if value >= threshold), None)


def timed(recipe: str, config: Any, threshold: float) -> list[dict[str, Any]]:
    """`train` with the first step at `threshold` ("" where there is none) in the place of the curve, and the CPU seconds of a member."""
    begun = time.process_time()
    rows = train(recipe, config)
    seconds = time.process_time() - begun
    for row in rows:
        reached = first_step(row.pop("curve"), threshold)
        row |= {"reached": "" if reached is None else reached, "cpu_seconds": seconds / len(rows)}
    return rows


def run(name: str, label: str, quick: bool) -> list[dict[str, Any]]:
    """The rows of one arm of a study."""
    arm = STUDIES[name][label]
    recipe, config = settings(arm, quick)
    rows = []
    for row in train(recipe, config):
        curve = row.pop("curve")
        row["reached"] = None if arm.threshold is None else first_step(curve, arm.threshold)
        rows.append({"study": name, "arm": label, "recipe": recipe, "env": config.env, **row})
    return rows


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The study as a markdown table."""
    head = ["", "coef", "seeds", "evaluation", "difference to coef 0", "last 100 episodes", "mean entropy", "first step there"]
    lines = []
    for label, coef in dict.fromkeys((row["arm"], row["coef"]) for row in rows):
        mine, zero = _of(rows, label, coef), _of(rows, label, "0")
        cells = [
            label,
            f"`{coef}`",
            str(len(mine)),
            interval(mean_interval(_column(mine, "eval_return"))),
            "" if coef == "0" else interval(paired_difference(_column(mine, "eval_return"), _column(zero, "eval_return"))),
            interval(mean_interval(_column(mine, "return"))),
            f"{np.mean(_column(mine, 'entropy_mean')):.3g}",
            _reached(mine, STUDIES[name][label].threshold),
        ]
        lines.append(cells)
    return "\n".join([common.table(head, lines), "", *(f"{label}: published {arm.published}" for label, arm in STUDIES[name].items())])


def _reached(rows: Sequence[Mapping[str, Any]], threshold: float | None) -> str:
    if threshold is None:
        return ""
    steps = [row["reached"] for row in rows if row["reached"] is not None]
    return f"{threshold:g}: {len(steps)} of {len(rows)}" + (f", median {int(np.median(steps))}, last {max(steps)}" if steps else "")


def _of(rows: Sequence[Mapping[str, Any]], arm: str, coef: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["arm"] == arm and row["coef"] == coef]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a study that was written, figures as numbers."""
    return [{key: _parsed(key, text) for key, text in row.items()} for row in common.read(file)]


def _parsed(key: str, text: str) -> Any:
    if key == "reached":
        return int(text) if text else None
    return float(text) if key in ("eval_return", "return", "entropy_mean") else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, two seeds, nothing written")
    parser.add_argument("--table", action="store_true", help="train nothing: print the table of what was written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    file = arguments.out / f"{arguments.study}.csv"
    found: list[dict[str, Any]] = [] if arguments.quick else read(file)
    there = {row["arm"] for row in found}
    for label in () if arguments.table else STUDIES[arguments.study]:
        if label not in there:
            rows = run(arguments.study, label, arguments.quick)
            found += rows
            if not arguments.quick:
                common.append(file, rows, common.machine("torch", "numpy", "gymnasium", *PACKAGES.get(arguments.study, ())))
    print(table(arguments.study, found))


if __name__ == "__main__":
    main()
