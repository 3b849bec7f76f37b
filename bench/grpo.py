"""GRPO of a tiny model with and without controlled entropy: what happens to the entropy, to the rewards, and to the different right answers.

    python -m bench.grpo [--seeds 3] [--steps 60] [--table] [--out bench/results/grpo.csv]

The task is split ("9=" to "4+5": all n + 1 answers are right), the start a model that has seen 600 batches of demonstrations. The target is the documented
first one, .8 of the mean entropy of the first ten steps, here of the run without control and the same seed. Both arms of a seed start from the same model.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from bench import common

from entreg import statistics
from entreg.lm.running import FIRST, START
from entreg.recipes import grpo
from entreg.record import read_records
from entreg.run import Run, RunSettings

CONTROLLER = "PI({target:.4f}, 0.5, 0.05, (-1.0, 1.0))"
SETTINGS: dict[str, Any] = {"learning_rate": 0.002, "batch_size": 64, "group": 8, "warm_up": 600, "eval_samples": 64}
COLUMNS = ("first", "last", "deviation", "return", "pass@1", "pass@64", "distinct", "distinct/max")


def trained(seed: int, coef: str, steps: int, folder: Path) -> tuple[dict[str, float], list[float]]:
    """Figures of one run, and its entropies by step."""
    config = grpo.Config(coef=coef, steps=steps, **SETTINGS)
    summary = grpo.train(config, Run(RunSettings(seed=seed, out=folder, quiet=True, checkpoint_every=1e6)))
    lines = [line for line in read_records(summary.folder).lines if "loss" in line]
    entropies = [line["entropy"] for line in lines]
    figures = {"first": mean(entropies[:FIRST]), "last": mean(entropies[-FIRST:]), "return": mean(line["return"] for line in lines[-FIRST:])}
    return {**figures, **{name: summary.metrics[name] for name in ("pass@1", "pass@64", "distinct", "distinct/max")}}, entropies


def measured(seed: int, steps: int, controller: str = CONTROLLER) -> list[dict[str, Any]]:
    """A row for each arm of a seed."""
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = trained(seed, "0", steps, Path(folder))
        target = START * plain["first"]
        coef = controller.format(target=target)
        held, _ = trained(seed, coef, steps, Path(folder))
    rows = []
    for arm, text, figures in (("none", "0", plain), ("controlled", coef, held)):
        figures["deviation"] = figures["last"] / target - 1
        rows.append({"arm": arm, "coef": text, "seed": seed, "steps": steps, "target": target, **{name: figures[name] for name in COLUMNS}})
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line a run, then means with intervals over seeds."""
    lines = []
    for row in rows:
        numbers = [f"{float(row[name]):.3g}" for name in ("first", "target", "last")] + [f"{float(row['deviation']):+.1%}"]
        lines.append([f"`{row['coef']}`", row["seed"], *numbers, *(f"{float(row[name]):.3g}" for name in COLUMNS[3:])])
    for arm in dict.fromkeys(row["arm"] for row in rows):
        chosen = [row for row in rows if row["arm"] == arm]
        means = {name: common.interval(statistics.mean_interval(np.array([float(row[name]) for row in chosen]))) for name in ("last", *COLUMNS[3:])}
        lines.append([f"mean, {arm}", f"{len(chosen)} seeds", "", "", means["last"], "", *(means[name] for name in COLUMNS[3:])])
    head = ["coef", "seed", "entropy, first 10", "target", "entropy, last 10", "off target", "reward, last 10", *COLUMNS[4:]]
    return common.table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--controller", default=CONTROLLER, help="its spelling, with {target} where the target goes")
    parser.add_argument("--table", action="store_true", help="print the table of what was written")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "grpo.csv")
    arguments = parser.parse_args()
    if not arguments.table:
        rows = [row for seed in range(arguments.seeds) for row in measured(seed, arguments.steps, arguments.controller)]
        common.write(arguments.out, rows, common.machine("torch", "transformers", "trl"))
    print(table(common.read(arguments.out)))


if __name__ == "__main__":
    main()
