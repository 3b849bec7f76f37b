"""SAC on Pendulum-v1 at batch 256 and two layers of 256: environment steps a second, one core, beside stable-baselines3 and sbx, sides interleaved.

    python -m bench.sac_speed [--blocks 7] [--steps 200] [--sbx-python PATH] [--out bench/results/sac_speed.csv]

Every side takes one gradient step an environment step. A block is `steps` of them after a warm-up; its time is the process's own (CPU) time, all threads
together, which jobs beside this one disturb less than the clock; all processes are bound to one core. sbx runs in its own environment (`bench/sac_sbx.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench.common import RESULTS, machine, write

from entreg.recipes import sac
from entreg.rl.off_policy import OffPolicy
from entreg.run import Run, RunSettings

WARM = 60  # gradient steps before the first block; the first of a compiled side takes a minute

Block = Callable[[int], float]  # steps -> seconds


def ours(*, compile: bool) -> Block:
    """Blocks of one endless run of the recipe."""
    config = sac.Config(steps=10**6, buffer_size=10**5, compile=compile, video=False)
    learner = OffPolicy("sac", config, Run(RunSettings(out=Path(tempfile.mkdtemp()), quiet=True)), head=sac.head_for, coef=sac.default_coef)
    agent = learner.agent = sac.Agent(learner, config)
    learner.__enter__()
    batches = learner.batches(agent.act)

    def block(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            agent.update(next(batches))
        return time.process_time() - start

    return block


def stable_baselines3() -> Block:
    """Blocks of one run of stable-baselines3's SAC at its defaults, which are these settings."""
    from stable_baselines3 import SAC

    model = SAC("MlpPolicy", "Pendulum-v1", device="cpu", seed=0, buffer_size=10**5)
    model.learn(110)

    def block(steps: int) -> float:
        start = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return time.process_time() - start

    return block


def sbx(python: str) -> Block:
    """Blocks of sbx's SAC in another interpreter."""
    limits = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "PYTHONPATH": ""}
    script = Path(__file__).with_name("sac_sbx.py")
    process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits})
    assert process.stdin is not None and process.stdout is not None
    asked, answered = process.stdin, process.stdout

    def block(steps: int) -> float:
        asked.write(f"{steps}\n")
        asked.flush()
        return float(answered.readline())

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sbx-python", help="interpreter of an environment with sbx-rl")
    parser.add_argument("--out", type=Path, default=RESULTS / "sac_speed.csv")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    sides = {"stable-baselines3": stable_baselines3(), "entreg": ours(compile=False), "entreg --compile": ours(compile=True)}
    if args.sbx_python:
        sides["sbx"] = sbx(args.sbx_python)
    for block in sides.values():
        block(WARM)
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.blocks):
        for side, block in sides.items():
            speeds[side].append(args.steps / block(args.steps))
    rows = []
    for side, values in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(values, speeds["stable-baselines3"], strict=True))
        middle, spread = statistics.median(values), {"lowest": round(min(values), 1), "highest": round(max(values), 1), "blocks": len(values)}
        rows.append({"side": side, "median_steps_per_cpu_second": round(middle, 1), "median_ratio_to_stable_baselines3": round(ratio, 2), **spread})
        print(f"{side:18} {middle:7.1f} steps a CPU second {ratio:5.2f} x   ({min(values):.1f} to {max(values):.1f})", flush=True)
    write(args.out, rows, machine("torch", "numpy", "gymnasium", "stable-baselines3"))


if __name__ == "__main__":
    main()
