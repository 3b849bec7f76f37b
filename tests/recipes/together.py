"""What a spawned gloo rank runs in test_ranks.py, and the same in one process: its own file, so that a rank imports no more than it needs."""

import importlib
from pathlib import Path

import torch
import torch.distributed as dist

from entreg.run import Run, RunSettings

RANKS = 2
SMALL = {"environments": 6, "rollout": 12, "hidden": (8,), "steps": 6 * 12 * 8, "video": False, "eval_episodes": 2, "seeds": 2}
CASES = {
    "ppo": {
        "coef": ("TargetEntropy(0.5)", "GradientShare(0.1, 0.1)"), "batch_size": 20, "epochs": 3, "target_kl": 0.02, "kl_coef": 0.1,
        "normalise_observation": True, "normalise_reward": True,
    },
    "a2c": {"env": "tests.rl.worlds:Cut-v0", "coef": ("PI(0.5, 0.1, 0.01, (0, 1))",), "over": "trajectory"},
    "reinforce": {"env": "Pendulum-v1", "coef": ("Plateau(linear(0.1, 0), 1)", "0.1"), "family": ("renyi(2)",), "squash": True, "baseline": "mean"},
    "sac": {
        "env": "Pendulum-v1", "steps": 480, "learning_starts": 60, "batch_size": 15, "updates_per_step": 0.1, "buffer_size": 300,
        "coef": ("TargetEntropy(action_dim())", "GradientShare(0.1, 0.1)"), "rollout": None,
    },
}  # fmt: skip


def train(name, folder, ranks=1, settings=None, run=None):
    """One case on one of `ranks` ranks."""
    recipe = importlib.import_module(f"entreg.recipes.{name}")
    config = {key: value for key, value in {**SMALL, **CASES[name]}.items() if value is not None}
    config["environments"] //= ranks
    return recipe.train(recipe.Config(**config), run or Run(RunSettings(out=folder, quiet=True, eval_every=200, **(settings or {}))))


def join(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)


def work(rank, folder):
    """Every case; then PPO and SAC again, stopped on the way by the last rank and resumed."""
    join(rank, folder)
    for name in CASES:
        train(name, Path(folder, name), RANKS)
    for name in ("ppo", "sac"):
        halted(name, rank, Path(folder, f"cut-{name}"))
    dist.destroy_process_group()


def halted(name, rank, folder):
    from entreg.rl.ranks import Follower

    class Told(Follower):
        """A follower that wants to stop after some steps."""

        def check_finite(self, step, **tensors):
            super().check_finite(step, **tensors)
            if step >= 280:
                self.stop("enough")

    first = train(name, folder, RANKS, run=(Run if rank == 0 else Told)(RunSettings(out=folder, quiet=True, eval_every=200)))
    assert first.stopped == "enough" and 0 < first.step < 400, first
    train(name, folder, RANKS, settings={"resume": str(first.folder)})
