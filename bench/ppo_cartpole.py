"""PPO on CartPole-v1 against stable-baselines3: environment steps a second on one thread, both sides interleaved in one process.

    python -m bench.ppo_cartpole [--quick] [--steps 10240] [--repeats 5] [--coef 0.0] [--out bench/results/ppo_cartpole.csv]

The settings are RL-Zoo's for this task and equal on both sides. Each side is timed while it trains: imports, construction and the evaluation at
the end are left out; our records and checkpoints are in. The sides take turns, the first turn of each is thrown away, medians are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from bench import common

from entreg.recipes import ppo
from entreg.record import read_records
from entreg.run import Run, RunSettings

ENVIRONMENTS, ROLLOUT, BATCH, EPOCHS, GAMMA, LAMBDA, RATE, CLIP = 8, 32, 256, 20, 0.98, 0.8, 0.001, 0.2
Side = Callable[[int, int, float], float]


def stable_baselines3(steps: int, seed: int, coef: float) -> float:
    """Environment steps a second of stable-baselines3's PPO."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=ENVIRONMENTS, seed=seed), seed=seed, device="cpu",
        n_steps=ROLLOUT, batch_size=BATCH, n_epochs=EPOCHS, gamma=GAMMA, gae_lambda=LAMBDA, ent_coef=coef,
        learning_rate=lambda left: left * RATE, clip_range=lambda left: left * CLIP,
    )  # fmt: skip
    start = time.perf_counter()
    model.learn(steps)
    return steps / (time.perf_counter() - start)


def ours(update: Literal["eager", "fused"]) -> Side:
    """Environment steps a second of our PPO, between its first and its last training record."""

    def side(steps: int, seed: int, coef: float) -> float:
        config = ppo.Config(
            env="CartPole-v1", coef=(str(coef),), steps=steps, environments=ENVIRONMENTS, rollout=ROLLOUT, batch_size=BATCH, epochs=EPOCHS,
            gamma=GAMMA, lam=LAMBDA, learning_rate=f"linear({RATE}, 0)", clip=f"linear({CLIP}, 0)", update=update, eval_episodes=1, video=False,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            summary = ppo.train(config, Run(RunSettings(seed=seed, out=Path(folder), quiet=True)))
            lines = [line for line in read_records(summary.folder).lines if "steps_per_second" in line]
        return float((lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["time"] - lines[0]["time"]))

    return side


def sides() -> dict[str, Side]:
    """What is compared; the fused update where numba is there."""
    result = {"stable-baselines3": stable_baselines3, "entreg eager": ours("eager")}
    if importlib.util.find_spec("numba") is not None:
        result["entreg fused"] = ours("fused")
    return result


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """The speeds with the versions of both sides."""
    common.write(file, rows, common.machine("torch", "numpy", "gymnasium", "stable-baselines3", "numba"))


def measure(steps: int, repeats: int, coef: float) -> dict[str, list[float]]:
    """Steps a second of every side and repeat, the sides taking turns."""
    speeds: dict[str, list[float]] = {name: [] for name in sides()}
    for repeat in range(repeats + 1):
        for name, side in sides().items():
            speed = side(steps, repeat, coef)
            if repeat:
                speeds[name].append(speed)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_240, help="environment steps of one turn of one side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--coef", type=float, default=0.0, help="entropy coefficient of every side (RL-Zoo: 0)")
    parser.add_argument("--quick", action="store_true", help="2560 steps, 2 repeats: whether it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "ppo_cartpole.csv")
    args = parser.parse_args()
    steps, repeats = (2_560, 2) if args.quick else (args.steps, args.repeats)
    torch.set_num_threads(1)
    speeds = measure(steps, repeats, args.coef)
    base = statistics.median(speeds["stable-baselines3"])
    about = {"steps": steps, "coef": args.coef, "threads": torch.get_num_threads()}
    rows = []
    for name, values in speeds.items():
        middle = statistics.median(values)
        found = {"median_steps_per_second": round(middle), "ratio_to_stable_baselines3": round(middle / base, 2)}
        rows.append({"side": name, **found, "lowest": round(min(values)), "highest": round(max(values)), "repeats": len(values), **about})
        print(f"{name:20} {middle:9.0f} steps/s   {middle / base:5.2f} x   ({min(values):.0f} to {max(values):.0f}, {len(values)} repeats)")
    write(args.out, rows)


if __name__ == "__main__":
    main()
