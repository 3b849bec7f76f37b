"""What sweeps cost: 48 PPO runs on CartPole-v1 at the study settings, 6 coefficients x 8 seeds, by the command line and from a cold start.

    python -m bench.sweep [--quick] [--repeats 1] [--out bench/results/sweep.csv]

The study settings are those of `bench.population` (8 environments, 64 steps, 4 epochs x 4 minibatches) at 100 000 steps a run. Sides: populations of
24 members in one and in two processes, eager and fused; and 4 of the same runs as single trials, which is what a sweep costs that cannot train
populations (with a pruner, or of a recipe without them). `cpu` is the CPU time of all processes, `seconds` the time on the clock of this machine:
the latter means something only where nothing else runs. Storage and report are in both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import RESULTS, machine, write

STUDY = ["--environments", "8", "--rollout", "64", "--epochs", "4", "--batch-size", "128", "--eval-episodes", "20"]
AXES = ["--coef-range", "1e-4", "1", "--points", "5", "--coef", "0", "--seeds", "8", "--quiet"]
FEW = ["--coef-range", "1e-2", "1", "--points", "2", "--seeds", "2", "--pruner", "median", "--quiet"]
SIDES: dict[str, tuple[int, list[str]]] = {
    "populations, 2 processes": (48, [*AXES, "--workers", "2"]),
    "populations, 1 process": (48, [*AXES, "--workers", "1"]),
    "populations, fused, 2 processes": (48, [*AXES, "--workers", "2", "--update", "fused"]),
    "single trials, 2 processes": (4, [*FEW, "--workers", "2"]),
}


def sweep(words: list[str], steps: int, seed: int) -> tuple[float, float]:
    """Seconds on the clock and of CPU that one sweep takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "entreg", "sweep", "ppo", "--env", "CartPole-v1", *STUDY, "--steps", str(steps), "--seed", str(seed), *words]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, nothing written: whether it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep.csv")
    args = parser.parse_args()
    steps = 5_000 if args.quick else 100_000
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for repeat in range(args.repeats):
        for name, (_, words) in SIDES.items():
            found[name].append(sweep(words, steps, 100 * repeat))
            print(f"{name:34s} {found[name][-1][0]:7.1f} s {found[name][-1][1]:7.1f} s of CPU, load {os.getloadavg()[0]:.1f}", flush=True)
    rows: list[dict[str, Any]] = []
    for name, (runs, _) in SIDES.items():
        seconds, cpu = (statistics.median(each) for each in zip(*found[name], strict=True))
        rows.append({"side": name, "runs": runs, "steps": steps, "seconds": seconds, "cpu": cpu, "load": os.getloadavg()[0], "repeats": args.repeats})
    if not args.quick:
        write(args.out, rows, machine("torch", "numpy", "gymnasium", "optuna"))


if __name__ == "__main__":
    main()
