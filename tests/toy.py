"""A run as small as runs get, for the fault tests: a NumPy random walk that uses every part of `Run`, and no torch.

python -m tests.toy --out runs --steps 200 [--resume latest] [--every 0] [--pause 0.001] [--deaf] [--slow-disk 0.01] [--announce 20]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entreg import disk
from entreg.run import Run, RunSettings, Summary, closing, exit_status


@dataclass(frozen=True)
class Config:
    """Steps to walk, and the size of the walk."""

    steps: int = 200
    size: int = 5


def train(config: Config, run: Run, *, pause: float = 0.0, deaf: bool = False, announce: int | None = None) -> Summary:
    """Walk, log every step, checkpoint when it is time, keep the best place."""
    generator = np.random.default_rng(run.settings.seed)
    place, step = np.zeros(config.size), 0
    if (state := run.restore()) is not None:
        place, step = state["place"], state["step"]
        generator.bit_generator.state = state["generator"]

    def now() -> dict:
        return {"place": place, "step": step, "generator": generator.bit_generator.state}

    while step < config.steps and (deaf or run.stopping() is None):
        step += 1
        place = place + generator.standard_normal(config.size)
        run.check_finite(step, place=place)
        run.log(step, member=0, entropy=float(np.abs(place).sum()), coef=0.01)
        if step % 3 == 0:
            run.save_best(0, float(place[0]), {"spec": {"size": config.size}, "weights": {"place": place}, "normaliser": None}, step=step)
        if step == announce:
            print("announced", flush=True)
        run.checkpoint(step, now)
        time.sleep(pause)
    run.checkpoint(step, now, force=True)
    return run.finish(step, {"place": float(place[0])})


def main() -> int:
    """One walk from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--resume")
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--slow-disk", type=float, default=0.0)
    parser.add_argument("--announce", type=int)
    args = parser.parse_args()
    if args.slow_disk:
        slow_sync(args.slow_disk)
    config = Config(steps=args.steps)
    with Run.open("toy", "walk", config, RunSettings(out=args.out, resume=args.resume, checkpoint_every=args.every)) as run:
        summary = train(config, run, pause=args.pause, deaf=args.deaf, announce=args.announce)
    print(closing(summary, "toy"))
    return exit_status(summary)


def slow_sync(seconds: float) -> None:
    """Make every sync take so long that a signal that is sent at an announcement arrives in the middle of a checkpoint."""
    sync = disk.sync

    def slow(file) -> None:
        time.sleep(seconds)
        sync(file)

    disk.sync = slow


if __name__ == "__main__":
    sys.exit(main())
