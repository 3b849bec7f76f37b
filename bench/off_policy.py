"""Discrete control from a replay: sac_discrete, soft_q and dqn beside a2c on Acrobot-v1 and LunarLander-v3, near their defaults.

    python -m bench.off_policy [--only TASK ARM] [--page] [--out FILE]

One population of four seeds an arm; its rows are appended to `bench/results/off_policy.csv`, and what is there is not run again. The table holds
means over seeds with 95 % bootstrap intervals; `--page` trains nothing and puts it on docs/recipes/dqn.md. Figures are reproducible for a seed on one machine.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import common
from bench.common import PAGES, RESULTS, append, interval, machine, read
from bench.studies import timed

from entreg.statistics import mean_interval


class Task(NamedTuple):
    """An environment, steps of each member, episodes of an evaluation, and the mean return of 100 episodes whose first step is told."""

    env: str
    steps: int
    eval_episodes: int
    threshold: float


class Arm(NamedTuple):
    """A recipe and what is changed in its defaults."""

    recipe: str
    changes: Mapping[str, Any] = {}


TASKS = {"acrobot": Task("Acrobot-v1", 50_000, 50, -100.0), "lunarlander": Task("LunarLander-v3", 100_000, 20, 200.0)}
# DQN on Acrobot, two seeds, 40k steps, evaluation: -111, -81 by these settings; -91, -76 by the defaults in twice the time
REPLAY = {"environments": 4, "updates_per_step": 0.5, "learning_rate": "0.001"}
ARMS = {
    "sac_discrete": Arm("sac_discrete", REPLAY),
    "soft_q": Arm("soft_q", REPLAY),
    "dqn": Arm("dqn", REPLAY),
    "a2c": Arm("a2c"),
}


def rows_of(name: str, task: Task, label: str, arm: Arm, seeds: int) -> list[dict[str, Any]]:
    """Run one arm of a task: one row a member."""
    config = importlib.import_module(f"entreg.recipes.{arm.recipe}").Config(
        env=task.env, steps=task.steps, seeds=seeds, eval_episodes=task.eval_episodes, video=False, **arm.changes
    )
    rows = timed(arm.recipe, config, task.threshold)
    return [{"task": name, "arm": label, "env": task.env, **row, **machine("torch", "numpy", "gymnasium")} for row in rows]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Every task and arm as a markdown table."""
    lines = []
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
        columns = {name: [float(row[name]) for row in mine] for name in ("eval_return", "return", "entropy_mean", "cpu_seconds")}
        steps = [int(row["reached"]) for row in mine if row["reached"]]
        reached = f"{TASKS[task].threshold:g}: {len(steps)} of {len(mine)}" + (f", median {int(np.median(steps))}" if steps else "")
        means = [interval(mean_interval(columns[name])) for name in ("eval_return", "return")]
        lines.append([task, arm, str(len(mine)), *means, f"{np.mean(columns['entropy_mean']):.3g}", reached, f"{np.mean(columns['cpu_seconds']):.0f}"])
    return common.table(["task", "arm", "seeds", "evaluation", "last 100 episodes", "mean entropy", "first step there", "CPU s a member"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs=2, metavar=("TASK", "ARM"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--page", action="store_true", help="train nothing: put the table on the page")
    parser.add_argument("--out", type=Path, default=RESULTS / "off_policy.csv")
    arguments = parser.parse_args()
    for name, label, arm in ((name, label, arm) for name in TASKS for label, arm in ARMS.items()):
        done = {(row["task"], row["arm"]) for row in read(arguments.out)}
        if arguments.page or (name, label) in done or (arguments.only and [name, label] != arguments.only):
            continue
        append(arguments.out, rows_of(name, TASKS[name], label, arm, arguments.seeds))
        print(f"{name}: {label} done", flush=True)
    if arguments.page:
        common.onto_page(PAGES / "dqn.md", "off_policy", table(read(arguments.out)))
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
