"""What soft actor-critic learns, beside stable-baselines3 at the same settings.

    python -m bench.sac_returns [TASK ...] [--side SIDE ...] [--seeds N] [--page]

Both sides are evaluated by the same function on the same episodes: the most probable action, 20 episodes a seed. Every finished (task, side, seed) is
a row of `bench/results/sac_returns.csv`; what is there is not trained again. `--page` trains nothing and writes the table on docs/recipes/sac.md.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from bench.common import PAGES, RESULTS, append, interval, machine, onto_page, read, table
from bench.studies import EXAMPLES

from entreg import flags
from entreg.rl.acting import EVALUATION_SEED
from entreg.statistics import mean_interval, paired_difference

FILE = RESULTS / "sac_returns.csv"
EPISODES = 20
PEER = "stable-baselines3"


class Task(NamedTuple):
    """Settings in `examples/`, as both sides take them, and what was published."""

    example: str
    seeds: int
    sides: tuple[str, ...]
    published: str


TASKS: Mapping[str, Task] = {
    "Pendulum-v1": Task("sac-pendulum", 5, (PEER, "sampled", "exact"), "-157 +- 89 at 20k steps (stable-baselines3 zoo)"),
    "HalfCheetah-v4": Task("sac-halfcheetah", 2, (PEER, "sampled"), "9635 +- 1424 at 1M steps (CleanRL)"),
}


def settings(task: str) -> dict[str, Any]:
    """The settings of a task by the names of `sac.Config`."""
    found: dict[str, Any] = json.loads((EXAMPLES / f"{TASKS[task].example}.json").read_text(encoding="utf-8"))["config"]
    return found


def evaluate(task: str, seed: int, act: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Mean and deviation of the returns of the seed's 20 episodes, which no training has seen."""
    world = gymnasium.make(task)
    returns = []
    for episode in range(EPISODES):
        observation, _ = world.reset(seed=EVALUATION_SEED + 1000 * seed + episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = world.step(act(observation))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    world.close()
    return {"eval_return": float(np.mean(returns)), "eval_std": float(np.std(returns)), "eval_episodes": EPISODES}


def peer(task: str, seeds: Sequence[int]) -> None:
    """stable-baselines3: one run a seed."""
    from stable_baselines3 import SAC

    ours = settings(task)
    for seed in seeds:
        model = SAC(
            "MlpPolicy", gymnasium.make(task), seed=seed, device="cpu", learning_rate=float(ours["learning_rate"]), ent_coef="auto", target_entropy="auto",
            train_freq=ours["environments"], gradient_steps=ours["updates_per_step"] * ours["environments"], policy_kwargs={"net_arch": list(ours["hidden"])},
            **{name: ours[name] for name in ("batch_size", "gamma", "tau", "learning_starts", "buffer_size")},
        )  # fmt: skip
        model.learn(ours["steps"])
        _finished(task, PEER, seed, lambda observation, model=model: model.predict(observation, deterministic=True)[0])


def ours(task: str, estimator: str, seeds: Sequence[int]) -> None:
    """Ours: all seeds as one population."""
    import entreg
    from entreg.recipes import sac
    from entreg.run import Run, RunSettings

    config = replace(flags.build(sac.Config, settings(task)), seeds=len(seeds), estimator=estimator, eval_episodes=1, video=False)
    with tempfile.TemporaryDirectory() as folder:
        summary = sac.train(config, Run(RunSettings(out=Path(folder), quiet=True, seed=seeds[0], checkpoint_every=3600)))
        if summary.stopped is not None:
            raise SystemExit(f"stopped by {summary.stopped}")
        for member, seed in enumerate(seeds):
            _finished(task, estimator, seed, entreg.load(summary.folder, member).act)


def _finished(task: str, side: str, seed: int, act: Callable[[np.ndarray], np.ndarray]) -> None:
    row = {"task": task, "side": side, "seed": seed, "steps": settings(task)["steps"], **evaluate(task, seed, act)}
    append(FILE, [row], machine("torch", "numpy", "gymnasium", "mujoco", "stable-baselines3"))
    print(*row.values(), flush=True)


def missing(task: str, side: str, seeds: int | None = None) -> list[int]:
    """Which of the task's seeds (or of its first `seeds`) are still to be trained."""
    there = {int(row["seed"]) for row in read(FILE) if (row["task"], row["side"]) == (task, side)}
    return [seed for seed in range(TASKS[task].seeds if seeds is None else seeds) if seed not in there]


def page() -> str:
    """The table: every side, and ours minus the peer of the same seeds."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in read(FILE):
        found.setdefault((row["task"], row["side"]), {})[int(row["seed"])] = float(row["eval_return"])
    lines = []
    for (task, side), mine in sorted(found.items(), key=lambda item: (list(TASKS).index(item[0][0]), TASKS[item[0][0]].sides.index(item[0][1]))):
        theirs = found.get((task, PEER), {})
        pairs = [(value, theirs[seed]) for seed, value in mine.items() if seed in theirs and side != PEER]
        difference = interval(paired_difference(*zip(*pairs, strict=True))) if pairs else ""
        name = side if side == PEER else f"entreg, `--estimator {side}`"
        steps = f"{settings(task)['steps'] // 1000}k"
        lines.append([task, steps, name, str(len(mine)), interval(mean_interval(list(mine.values()))), difference, TASKS[task].published])
    return table(["task", "steps", "", "seeds", "evaluation", "difference to stable-baselines3", "published"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="*", help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--side", action="append", help="of stable-baselines3, sampled, exact (ours by estimator); default: all of the task")
    parser.add_argument("--seeds", type=int, help="only the first so many")
    parser.add_argument("--page", action="store_true", help="train nothing: write the table on the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for task in () if arguments.page else arguments.task or TASKS:
        for side in arguments.side or TASKS[task].sides:
            if seeds := missing(task, side, arguments.seeds):
                peer(task, seeds) if side == PEER else ours(task, side, seeds)
    if arguments.page:
        onto_page(PAGES / "sac.md", "sac_returns", page())
    print(page())


if __name__ == "__main__":
    main()
