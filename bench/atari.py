"""Atari: frames a second of the environments, and one PPO update of the Nature network, against stable-baselines3.

    python -m bench.atari [--quick] [--only environments|update|training] [--repeats 5] [--out bench/results/atari.csv]

Needs stable-baselines3, ale-py and opencv-python (for its wrappers). Eight environments, frame skip 4, 84 x 84 grey, sticky actions, rewards
clipped, stacks of 4 on both sides. The sides take turns, the first turn of each is thrown away, medians are compared. `environments` steps random
actions, here on one and on two threads and there in one process and in eight; `update` is 4 epochs of minibatches of 256 out of 8 x 128 items, one
thread; `training` is both together with acting, records and the divergence that entreg measures after each update, one thread for the network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import common

from entreg.recipes import ppo
from entreg.rl import environments
from entreg.rl.learner import Learner
from entreg.run import Run, RunSettings

ENV, N, ROLLOUT, BATCH, EPOCHS, RATE, CLIP, COEF = "ALE/Pong-v5", 8, 128, 256, 4, 0.00025, 0.1, 0.01
clock = time.perf_counter
Side = Callable[[], float]  # one turn: something a second


def game(**kwargs: Any) -> Any:
    """One game as stable-baselines3 wraps it; the processes of SubprocVecEnv import this module."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    return gymnasium.make(ENV, frameskip=1, **kwargs)


def sb3_environments(processes: bool) -> Any:
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    kind = SubprocVecEnv if processes else DummyVecEnv
    made = make_atari_env(game, n_envs=N, seed=0, vec_env_cls=kind, wrapper_kwargs={"terminal_on_life_loss": False})
    return VecFrameStack(made, 4)


def stepping(steps: int) -> dict[str, Side]:
    """Frames of the game a second; every turn makes its environments anew and does not count that."""

    def timed(step: Callable[[np.ndarray], Any]) -> float:
        actions = np.random.default_rng(0).integers(6, size=(steps + 20, N))
        for row in actions[:20]:
            step(row)
        start = clock()
        for row in actions[20:]:
            step(row)
        return 4 * N * steps / (clock() - start)

    def ours(threads: int) -> Side:
        def turn() -> float:
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, sorted(cores)[:threads])
            try:
                made = environments.make(ENV, seeds=[0], per_member=N)
                made.reset()
                speed = timed(made.step)
                made.close()
            finally:
                os.sched_setaffinity(0, cores)
            return speed

        return turn

    def theirs(processes: bool) -> Side:
        def turn() -> float:
            made = sb3_environments(processes)
            made.reset()
            speed = timed(made.step)
            made.close()
            return speed

        return turn

    peers = {"stable-baselines3 DummyVecEnv": theirs(False), "stable-baselines3 SubprocVecEnv": theirs(True)}
    return {**peers, "entreg 1 thread": ours(1), "entreg 2 threads": ours(2)}


def config(precision: str, updates: int, **settings: Any) -> ppo.Config:
    return ppo.Config(
        env=ENV, coef=(str(COEF),), steps=updates * N * ROLLOUT, environments=N, rollout=ROLLOUT, batch_size=BATCH, epochs=EPOCHS, learning_rate=str(RATE),
        clip=str(CLIP), hidden=(512,), shared=True, activation="relu", precision=precision, eval_episodes=1, video=False, **settings,
    )  # fmt: skip


def sb3_model() -> Any:
    from stable_baselines3 import PPO

    settings = {"n_steps": ROLLOUT, "batch_size": BATCH, "n_epochs": EPOCHS, "learning_rate": RATE, "clip_range": CLIP, "ent_coef": COEF}
    return PPO("CnnPolicy", sb3_environments(False), seed=0, device="cpu", **settings)


def updating() -> dict[str, Side]:
    """Updates a second, each side over and over on one rollout of its own."""
    folder = Path(tempfile.mkdtemp())

    def ours(precision: str) -> Side:
        learner = Learner("ppo", config(precision, 1), Run(RunSettings(out=folder, quiet=True)), schedules={"clip": str(CLIP)})
        rollout = learner._collect()
        learner.environments.close()
        return lambda: per_second(lambda: ppo.update(learner, learner.config, rollout, CLIP))

    model = sb3_model()
    model.learn(N * ROLLOUT)  # fills its buffer; `train` is what follows a rollout
    return {"stable-baselines3": lambda: per_second(model.train), "entreg float32": ours("float32"), "entreg bfloat16": ours("bfloat16")}


def per_second(what: Callable[[], Any]) -> float:
    start = clock()
    what()
    return 1 / (clock() - start)


def training(updates: int) -> dict[str, Side]:
    """Environment steps a second of a whole training run of so many updates, without its construction and evaluation."""

    def ours(precision: str) -> Side:
        def turn() -> float:
            chosen = config(precision, updates)
            with tempfile.TemporaryDirectory() as folder:
                learner = Learner("ppo", chosen, Run(RunSettings(out=Path(folder), quiet=True)), schedules={"clip": str(CLIP)})
                with learner:
                    start = clock()
                    for rollout in learner.rollouts():
                        ppo.update(learner, chosen, rollout, CLIP)
                    return learner.steps / (clock() - start)

        return turn

    def theirs() -> float:
        model = sb3_model()
        start = clock()
        model.learn(updates * N * ROLLOUT)
        return updates * N * ROLLOUT / (clock() - start)

    return {"stable-baselines3": theirs, "entreg float32": ours("float32"), "entreg bfloat16": ours("bfloat16")}


def measured(name: str, unit: str, sides: dict[str, Side], repeats: int) -> Iterator[dict[str, Any]]:
    """A row of every side; the ratio is to the faster side of stable-baselines3."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        for side, turn in sides.items():
            speed = turn()
            if repeat:
                speeds[side].append(speed)
    middle = {side: statistics.median(values) for side, values in speeds.items()}
    base = max(value for side, value in middle.items() if side.startswith("stable"))
    for side, values in speeds.items():
        found = {"median": middle[side], "ratio_to_stable_baselines3": middle[side] / base, "lowest": min(values), "highest": max(values)}
        print(f"{name:12} {side:32} {middle[side]:10.4g} {unit:12} {middle[side] / base:5.2f} x   ({min(values):.4g} to {max(values):.4g})", flush=True)
        yield {"what": name, "side": side, "unit": unit, **found, "repeats": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("environments", "update", "training"))
    parser.add_argument("--cpu", action="store_true", help="this process's processor time, for a machine with other work; without SubprocVecEnv")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat of short turns: whether it works, not how fast it is")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "atari.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.cpu:
        globals()["clock"] = time.process_time
    repeats = 1 if args.quick else args.repeats
    kinds: dict[str, tuple[str, Callable[[], dict[str, Side]]]] = {
        "environments": ("frames/s", lambda: stepping(30 if args.quick else 400)),
        "update": ("updates/s", updating),
        "training": ("steps/s", lambda: training(1 if args.quick else 2)),
    }
    where = common.machine("torch", "numpy", "gymnasium", "ale-py", "stable-baselines3")
    args.out.unlink(missing_ok=True)
    for name, (unit, sides) in kinds.items():
        if args.only in (None, name):
            chosen = {side: turn for side, turn in sides().items() if not (args.cpu and "Subproc" in side)}
            rows = [{**row, "clock": "processor" if args.cpu else "wall"} for row in measured(name, unit, chosen, repeats)]
            common.append(args.out, rows, where)


if __name__ == "__main__":
    main()
