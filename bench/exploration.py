"""Ways to explore compared: none, entropy, curiosity and counts (ppo); epsilon-greedy, Boltzmann and noisy networks (dqn), on five tasks.

    python -m bench.exploration [--only TASK ARM] [--quick] [--page] [--out FILE]

One population of seeds an arm, equal environment steps within a task. Rows are appended to `bench/results/exploration.csv`, one line a member, and what is
there is not run again. `--page` trains nothing and puts the tables on docs/exploration.md. `--quick` runs a twentieth of the steps with two seeds and writes
nothing. Figures are reproducible for a seed on one machine.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import common
from bench.common import HERE, RESULTS, interval
from bench.studies import timed

from entreg.statistics import mean_interval, paired_difference

PAGE = HERE.parent / "docs" / "exploration.md"


class Task(NamedTuple):
    """An environment, steps of each member, seeds, episodes of an evaluation, what counts as solved, and what ppo and dqn need there."""

    env: str
    steps: int
    seeds: int
    eval_episodes: int
    solved: float
    kwargs: Mapping[str, Any] = {}
    ppo: Mapping[str, Any] = {}
    dqn: Mapping[str, Any] = {}


class Arm(NamedTuple):
    """A recipe, what is changed in its settings, and what it is compared with."""

    recipe: str
    changes: Mapping[str, Any]
    beside: str | None
    when: str


SCALED = {"normalise_reward": True}
NORMALISED = {"normalise_observation": True, **SCALED}
TASKS = {
    "FrozenLake 8x8": Task("FrozenLake-v1", 50_000, 8, 1, 0.9, {"map_name": "8x8", "is_slippery": False}),
    "DeepSea 10": Task("DeepSea-v0", 40_000, 8, 1, 0.9, {"size": 10}),
    "MountainCar": Task("MountainCar-v0", 60_000, 5, 20, -150.0, ppo=NORMALISED),
    "DoorKey 6x6": Task("MiniGrid-DoorKey-6x6-v0", 50_000, 5, 20, 0.9, ppo=NORMALISED, dqn={"updates_per_step": 0.25}),
    "LunarLander": Task("LunarLander-v3", 100_000, 5, 20, 200.0, ppo=SCALED),
}
PPO = {"rollout": 32, "epochs": 4, "batch_size": 64, "update": "fused", "coef": ("0",)}
DQN = {"environments": 4, "updates_per_step": 0.5, "learning_rate": "0.001"}
ARMS = {
    "none": Arm("ppo", PPO, None, "what random actions find often enough"),
    "entropy": Arm("ppo", {**PPO, "coef": ("linear(0.1, 0)",)}, "none", "what they find rarely, over a longer run; not what they cannot find"),
    "ICM": Arm("ppo", {**PPO, "intrinsic": "icm"}, "none", "as count, where states do not repeat; dearer"),
    "count": Arm("ppo", {**PPO, "intrinsic": "count"}, "none", "what they cannot find, where states repeat"),
    "epsilon-greedy": Arm("dqn", DQN, None, "where a replay pays for itself; not where single random steps lead nowhere"),
    "Boltzmann": Arm(
        "dqn",
        {**DQN, "exploration": "boltzmann"},
        "epsilon-greedy",
        "as epsilon-greedy, from which nothing here tells it apart; one coefficient instead of a schedule",
    ),
    "NoisyNet": Arm("dqn", {**DQN, "exploration": "noisy_net"}, "epsilon-greedy", "no case for it here: undecided everywhere, at a quarter more time"),
}


def rows_of(name: str, label: str, quick: bool) -> list[dict[str, Any]]:
    """Run one arm of a task: one row a member."""
    task, arm = TASKS[name], ARMS[label]
    changes = {**arm.changes, **(task.ppo if arm.recipe == "ppo" else task.dqn)}
    config = importlib.import_module(f"entreg.recipes.{arm.recipe}").Config(
        env=task.env, env_kwargs=task.kwargs, steps=task.steps, seeds=task.seeds, eval_episodes=task.eval_episodes, video=False, **changes
    )
    if quick:
        config = replace(config, steps=task.steps // 20, seeds=2, eval_episodes=1)
    rows = timed(arm.recipe, config, task.solved)
    return [{"task": name, "arm": label, "env": task.env, **row} for row in rows]


def of(rows: Sequence[Mapping[str, str]], task: str, arm: str) -> list[float]:
    """Evaluated returns by seed."""
    return [float(row["eval_return"]) for row in rows if (row["task"], row["arm"]) == (task, arm)]


def results(rows: Sequence[Mapping[str, str]]) -> str:
    """Every arm and task: mean over seeds, its interval, and how many seeds solved the task."""
    lines = []
    for label, arm, tasks in _there(rows):
        found = {name: of(rows, name, label) for name in tasks}
        solved = {name: f"{sum(value >= TASKS[name].solved for value in values)} of {len(values)}" for name, values in found.items()}
        cells = [f"{interval(mean_interval(values))}, {solved[name]}" if values else "not run" for name, values in found.items()]
        lines.append([f"{label} ({arm.recipe})", *cells, f"{seconds(rows, label):.1f}", arm.when])
    return common.table(["", *tasks, "CPU s a member", "when to use"], lines)


def _there(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, Arm, list[str]]]:
    """The arms of which there are rows, each with all tasks of which there are any."""
    tasks = [name for name in TASKS if any(row["task"] == name for row in rows)]
    return [(label, arm, tasks) for label, arm in ARMS.items() if any(row["arm"] == label for row in rows)]


def seconds(rows: Sequence[Mapping[str, str]], arm: str) -> float:
    """CPU time of a member, mean over tasks; of tasks that the arm has."""
    by_task = {row["task"]: float(row["cpu_seconds"]) for row in rows if row["arm"] == arm}
    return sum(by_task.values()) / len(by_task)


def differences(rows: Sequence[Mapping[str, str]]) -> str:
    """Every arm against the plain one of its recipe, paired by seed; bold where the interval leaves out 0."""
    lines = []
    for label, arm, tasks in _there(rows):
        if arm.beside is None:
            continue
        cells = [f"{label} - {arm.beside}"]
        for name in tasks:
            mine, plain = of(rows, name, label), of(rows, name, arm.beside)
            cells.append(_told(mine, plain) if mine and plain else "not run")
        lines.append(cells)
    return common.table(["", *tasks], lines)


def _told(mine: Sequence[float], plain: Sequence[float]) -> str:
    found = paired_difference(mine, plain)
    text = interval(found)
    return f"**{text}**" if float(found.low) > 0 or float(found.high) < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs=2, metavar=("TASK", "ARM"), help="all for every one")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, two seeds, nothing written")
    parser.add_argument("--page", action="store_true", help="train nothing: put the tables on the page")
    parser.add_argument("--out", type=Path, default=RESULTS / "exploration.csv")
    arguments = parser.parse_args()
    wanted = arguments.only or ("all", "all")
    order = [(task, arm) for recipe in ("ppo", "dqn") for task in TASKS for arm in ARMS if ARMS[arm].recipe == recipe]
    for task, arm in [] if arguments.page else order:
        done = {(row["task"], row["arm"]) for row in common.read(arguments.out)}
        if (not arguments.quick and (task, arm) in done) or wanted[0] not in ("all", task) or wanted[1] not in ("all", arm):
            continue
        rows = rows_of(task, arm, arguments.quick)
        if not arguments.quick:
            common.append(arguments.out, rows, common.machine("torch", "numpy", "gymnasium"))
        print(f"{task}, {arm}: {[row['eval_return'] for row in rows]}, {rows[0]['cpu_seconds'] * len(rows):.0f} s", flush=True)
    if arguments.page:
        written = common.read(arguments.out)
        common.onto_page(PAGE, "exploration", results(written))
        common.onto_page(PAGE, "exploration differences", differences(written))


if __name__ == "__main__":
    main()
