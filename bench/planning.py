"""Soft value iteration on 100,000 sparse states: a 316 x 316 gridworld with slip and random rewards; CPU seconds of one thread until the error is 1e-10.

    python -m bench.planning [--size 316] [--repeats 3] [--plain] [--out bench/results/planning.csv]

With `--plain` also the same backups without sweeps between them (plain value iteration), stopped at the same error.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from bench import common

from entreg import planning
from entreg.functional import SHANNON, renyi, tsallis
from entreg.planning import soft

FAMILIES = {"shannon": SHANNON, "tsallis(2)": tsallis(2), "tsallis(1.5)": tsallis(1.5), "renyi(0.5)": renyi(0.5)}
CASES = [("hard", 0.0, 0.99), *((name, 0.5, 0.99) for name in FAMILIES), ("shannon", 0.5, 0.9)]


def timed(mdp: planning.MDP, family: str, temperature: float, gamma: float) -> tuple[float, planning.Solution]:
    start = time.process_time()  # one thread: of an idle machine this is wall-clock time
    solution = planning.soft_value_iteration(mdp, gamma=gamma, temperature=temperature, family=FAMILIES.get(family, SHANNON))
    return time.process_time() - start, solution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=316)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "planning.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mdp = planning.gridworld(arguments.size)
    mdp = mdp.with_reward(torch.from_numpy(np.random.default_rng(0).normal(size=(mdp.states, mdp.actions))))
    rows = []
    for family, temperature, gamma in CASES:
        runs = [timed(mdp, family, temperature, gamma) for _ in range(arguments.repeats)]
        seconds, solution = statistics.median(run[0] for run in runs), runs[0][1]
        facts = {"states": mdp.states, "entries": mdp.transitions.nnz, "family": family, "temperature": temperature, "gamma": gamma}
        rows.append({**facts, "cpu_seconds": round(seconds, 2), "backups": solution.rounds, "error": f"{solution.error:.1e}", "sweeps": soft.SWEEPS})
        if arguments.plain and (family, gamma) == ("shannon", 0.99):
            kept, soft.SWEEPS = soft.SWEEPS, 0
            seconds, plain = timed(mdp, family, temperature, gamma)
            assert float((plain.value - solution.value).abs().max()) < 1e-9
            soft.SWEEPS = kept
            rows.append({**facts, "cpu_seconds": round(seconds, 2), "backups": plain.rounds, "error": f"{plain.error:.1e}", "sweeps": 0})
        print(rows[-1], flush=True)
    common.write(arguments.out, rows, {"repeats": arguments.repeats, **common.machine("torch", "numpy", "scipy")})


if __name__ == "__main__":
    main()
