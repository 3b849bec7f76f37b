"""stable-baselines3's PPO on Pendulum-v1 at the zoo's settings, with its state-dependent exploration (gSDE) and without: what our figures stand beside.

    python -m bench.pendulum_sb3 [--seeds 5] [--out bench/results/pendulum_sb3.csv]

The final policy's most probable actions, 300 episodes a seed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.common import RESULTS, interval, machine, write
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from entreg.statistics import mean_interval

ZOO: dict[str, Any] = {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3, "clip_range": 0.2}
SIDES: dict[str, dict[str, Any]] = {"gSDE": {"use_sde": True, "sde_sample_freq": 4}, "no gSDE": {}}


def evaluated(seed: int, side: str, steps: int = 100_000, episodes: int = 300) -> dict[str, Any]:
    """Train one policy and play it."""
    model = PPO("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=4, seed=seed), seed=seed, device="cpu", **ZOO, **SIDES[side])
    model.learn(steps)
    returns, _ = evaluate_policy(model, make_vec_env("Pendulum-v1", n_envs=8, seed=seed + 1_000_003), episodes, return_episode_rewards=True)
    spread = {"eval_return": float(np.mean(returns)), "eval_std": float(np.std(returns)), "eval_episodes": len(returns)}
    return {"side": side, "seed": seed, "steps": model.num_timesteps, **spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "pendulum_sb3.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [evaluated(seed, side) for seed in range(arguments.seeds) for side in SIDES]
    write(arguments.out, rows, machine("torch", "numpy", "gymnasium", "stable-baselines3"))
    for side in SIDES:
        print(side, interval(mean_interval([row["eval_return"] for row in rows if row["side"] == side])))


if __name__ == "__main__":
    main()
