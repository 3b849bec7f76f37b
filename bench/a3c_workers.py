"""Environment steps a second of A3C with one worker and with two, beside A2C: one member, whole runs, arms interleaved.

    python -m bench.a3c_workers [--rounds 5] [--quick] [--out bench/results/a3c_workers.csv]

Each arm of a round trains one member for a fixed number of steps; the speed is that between its first and its last training record, so that starting
processes and the last evaluation do not count. Ratios are those of the medians. CartPole is a vectorised environment of microseconds, LunarLander one in
Box2D of some thirty microseconds a step, one after the other: there a worker has something to do beside its network.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.common import RESULTS, machine, write

from entreg.recipes import a2c, a3c
from entreg.record import read_records
from entreg.run import Run, RunSettings

SIZES = {"hidden": (64, 64), "rollout": 8, "video": False, "eval_episodes": 1}
ARMS: dict[str, Any] = {
    "A2C, 8 environments": a2c.Config(environments=8, **SIZES),
    "A3C, 1 worker of 8": a3c.Config(workers=1, environments=8, **SIZES),
    "A3C, 2 workers of 4": a3c.Config(workers=2, environments=4, **SIZES),
    "A3C, 2 workers of 8": a3c.Config(workers=2, environments=8, **SIZES),
}
TASKS = {"CartPole-v1": 100_000, "LunarLander-v3": 50_000}


def speed(config: Any) -> float:
    """Environment steps a second of one run."""
    recipe = a3c if isinstance(config, a3c.Config) else a2c
    with tempfile.TemporaryDirectory() as folder:
        summary = recipe.train(config, Run(RunSettings(out=Path(folder), quiet=True, checkpoint_every=3600)))
        lines = [line for line in read_records(summary.folder).lines if "coef" in line]
    return float((lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["time"] - lines[0]["time"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the steps, nothing written")
    parser.add_argument("--out", type=Path, default=RESULTS / "a3c_workers.csv")
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {(task, arm): [] for task in TASKS for arm in ARMS}
    for _ in range(1 if arguments.quick else arguments.rounds):
        for (task, arm), each in found.items():
            steps = TASKS[task] // (10 if arguments.quick else 1)
            each.append(speed(type(ARMS[arm])(**{**vars(ARMS[arm]), "env": task, "steps": steps})))
    rows = []
    for (task, arm), each in found.items():
        median, base = statistics.median(each), statistics.median(found[task, next(iter(ARMS))])
        rows.append({"task": task, "arm": arm, "steps_per_second": median, "low": min(each), "high": max(each), "to_a2c": median / base, "rounds": len(each)})
        print(f"| {task} | {arm} | {median:.0f} [{min(each):.0f}, {max(each):.0f}] | {median / base:.2f} |")
    if not arguments.quick:
        write(arguments.out, rows, machine("torch", "numpy", "gymnasium"))


if __name__ == "__main__":
    main()
