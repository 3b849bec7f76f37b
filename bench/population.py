"""Populations of PPO on CartPole-v1: environment steps a second of all members together, beside stable-baselines3, sides interleaved in one process.

    python -m bench.population [--quick] [--repeats 3] [--out bench/results/population.csv]

48 members are 6 coefficients x 8 seeds. `zoo`: RL-Zoo's settings (8 environments, 32 steps, 20 epochs of one minibatch); `study`: 8 environments,
64 steps, 4 epochs x 4 minibatches, also with one member `alone`; `vmap`: 16 members, 4 environments, 128 steps, 4 epochs x 4 minibatches.
stable-baselines3 trains one member at the zoo's settings on one thread: what a loop over members would reach on a core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from bench.common import RESULTS
from bench.ppo_cartpole import stable_baselines3, write

from entreg.recipes import ppo
from entreg.record import read_records
from entreg.run import Run, RunSettings

COEFS = ("0.0", "0.0001", "0.001", "0.01", "0.1", "1.0")
SETTINGS: dict[str, dict[str, Any]] = {
    "zoo": {"environments": 8, "rollout": 32, "batch_size": 256, "epochs": 20, "gamma": 0.98, "lam": 0.8, "steps": 2_560, "coef": COEFS, "seeds": 8},
    "study": {"environments": 8, "rollout": 64, "batch_size": 128, "epochs": 4, "steps": 10_240, "coef": COEFS, "seeds": 8},
    "study, alone": {"environments": 8, "rollout": 64, "batch_size": 128, "epochs": 4, "steps": 40_960, "coef": ("0.01",), "seeds": 1},
    "vmap": {"environments": 4, "rollout": 128, "batch_size": 128, "epochs": 4, "steps": 20_480, "coef": ("0.01",), "seeds": 16},
}


def ours(name: str, update: Literal["eager", "fused"], threads: int, seed: int, shorter: int) -> float:
    """Aggregate steps a second between the first and the last training record."""
    settings = SETTINGS[name]
    config = ppo.Config(**{**settings, "steps": settings["steps"] // shorter}, update=update, eval_episodes=1, video=False)
    members = config.seeds * len(config.coef)
    with tempfile.TemporaryDirectory() as folder:
        summary = ppo.train(config, Run(RunSettings(seed=seed, out=Path(folder), quiet=True, threads=threads)))
        lines = [line for line in read_records(summary.folder).lines if "steps_per_second" in line]
    return float(members * (lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["time"] - lines[0]["time"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the steps, one repeat: whether it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=RESULTS / "population.csv")
    args = parser.parse_args()
    repeats, shorter = (1, 4) if args.quick else (args.repeats, 1)
    cases = [(name, update, threads) for name in SETTINGS for update, threads in (("eager", 1), ("fused", 1), ("fused", 2))]
    speeds: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
    peer: list[float] = []
    for repeat in range(repeats):
        torch.set_num_threads(1)
        peer.append(stable_baselines3(5_120, repeat, 0.0))
        for name, update, threads in cases:
            speeds[name, update, threads].append(ours(name, update, threads, repeat, shorter))
    base = statistics.median(peer)
    rows = []
    for (name, side, threads), values in {("zoo, 1 member", "stable-baselines3", 1): peer, **speeds}.items():
        middle = statistics.median(values)
        found = {"median_steps_per_second": round(middle), "ratio_to_stable_baselines3": round(middle / base, 1)}
        spread = {"lowest": round(min(values)), "highest": round(max(values)), "repeats": len(values)}
        rows.append({"settings": name, "side": side, "threads": threads, **found, **spread})
        print(f"{name:14} {side:18} {threads} threads {middle:9.0f} steps/s {middle / base:6.1f} x   ({min(values):.0f} to {max(values):.0f})", flush=True)
    write(args.out, rows)


if __name__ == "__main__":
    main()
