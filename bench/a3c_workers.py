"""What an environment step of A3C costs with one worker and with two, beside A2C: processor time of all processes, one member, arms interleaved.

    python -m bench.a3c_workers [--rounds 3] [--quick] [--out bench/results/a3c_workers.csv]

Each arm of a round trains for a few steps and for many, and the difference of the processor times is divided by that of the steps: starting processes
and the last evaluation do not count, and a busy machine disturbs less than in wall time. The most that two workers on two cores can gain over A2C is twice
the ratio of the costs. CartPole is a vectorised environment of microseconds, LunarLander one in Box2D, stepped one after the other.
"""

import argparse
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.common import RESULTS, machine, write

from entreg.recipes import a2c, a3c
from entreg.run import Run, RunSettings

SIZES = {"hidden": (64, 64), "rollout": 8, "video": False, "eval_episodes": 1}
ARMS: dict[str, Any] = {
    "A2C, 8 environments": a2c.Config(environments=8, **SIZES),
    "A3C, 1 worker of 8": a3c.Config(workers=1, environments=8, **SIZES),
    "A3C, 2 workers of 8": a3c.Config(workers=2, environments=8, **SIZES),
    "A3C, 2 workers of 4": a3c.Config(workers=2, environments=4, **SIZES),
}
TASKS = {"CartPole-v1": 40_000, "LunarLander-v3": 20_000}
FEW = 2_000


def used() -> float:
    """Processor time of this process and of its children that have ended, in seconds."""
    return sum(each.ru_utime + each.ru_stime for each in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def cost(config: Any, task: str, steps: int) -> float:
    """Seconds of all processors for one run."""
    recipe, before = a3c if isinstance(config, a3c.Config) else a2c, used()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunSettings(out=Path(folder), quiet=True, checkpoint_every=3600))
        recipe.train(type(config)(**{**vars(config), "env": task, "steps": steps}), run)
    return used() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the steps, nothing written")
    parser.add_argument("--out", type=Path, default=RESULTS / "a3c_workers.csv")
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {(task, arm): [] for task in TASKS for arm in ARMS}
    for _ in range(1 if arguments.quick else arguments.rounds):
        for (task, arm), each in found.items():
            steps = TASKS[task] // (10 if arguments.quick else 1)
            each.append(1e6 * (cost(ARMS[arm], task, FEW + steps) - cost(ARMS[arm], task, FEW)) / steps)
    rows: list[dict[str, Any]] = []
    for (task, arm), each in found.items():
        median, base = statistics.median(each), statistics.median(found[task, next(iter(ARMS))])
        rows.append({"task": task, "arm": arm, "microseconds": median, "low": min(each), "high": max(each), "to_a2c": median / base, "rounds": len(each)})
        print(f"| {task} | {arm} | {median:.0f} [{min(each):.0f}, {max(each):.0f}] | {median / base:.2f} |", flush=True)
    if not arguments.quick:
        write(arguments.out, rows, machine("torch", "numpy", "gymnasium"))


if __name__ == "__main__":
    main()
