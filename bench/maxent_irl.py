"""MaxEnt inverse reinforcement learning against feature matching with a hard maximum: what the greedy policy of the learnt reward loses in the true one.

    python -m bench.maxent_irl [--seeds 12] [--table] [--out bench/results/maxent_irl.csv]

A 6 x 6 gridworld, slip .1, gamma .9, eight regions with normal weights as reward; demonstrations of 40 steps from uniform starts by the soft-optimal policy at
temperature .5. The value difference is 0 for the optimal policy and 1 for the uniform one. Each seed has its own world and demonstrations, the same in all arms.
"""

import argparse
import csv
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch

from entreg import statistics
from entreg.recipes import maxent_irl
from entreg.record import read_records
from entreg.run import Run, RunSettings

ARMS = {
    "soft, likelihood": {},
    "soft, matching": {"objective": "matching"},
    "hard, matching": {"objective": "matching", "temperature": 0.0},
    "hard, likelihood": {"temperature": 0.0},
    "soft, one weight a state": {"features": "states"},
    "soft, network": {"features": "states", "reward": "neural"},
}
FIGURES = ("eval/value_difference", "feature_gap", "log_likelihood", "entropy")


def measured(arm: str, demonstrations: int, seeds: int) -> list[dict[str, object]]:
    """One line a seed."""
    config = maxent_irl.Config(**{"features": "regions", "demonstrations": demonstrations, "seeds": seeds, **ARMS[arm]})
    with tempfile.TemporaryDirectory() as folder:
        summary = maxent_irl.train(config, Run(RunSettings(out=Path(folder), quiet=True, eval_every=config.steps)))
        last = [line for line in read_records(summary.folder).lines if line["step"] == config.steps and "member" in line]
    return [{"arm": arm, "demonstrations": demonstrations, "seed": line["member"], **{name: line.get(name, "") for name in FIGURES}} for line in last]


def table(rows: list[dict[str, object]]) -> str:
    """Mean and interval over seeds of each arm, and how often it is optimal to three digits."""
    lines = ["| model | demonstrations | seeds | value difference | below .001 | median | log-likelihood |", "|---|---|---|---|---|---|---|"]
    for arm in ARMS:
        for count in sorted({int(str(row["demonstrations"])) for row in rows}):
            chosen = [row for row in rows if row["arm"] == arm and int(str(row["demonstrations"])) == count]
            values = np.array([float(str(row["eval/value_difference"])) for row in chosen])
            one = statistics.mean_interval(values[:, None])
            shown = f"{float(np.ravel(one.value)[0]):.4f} [{float(np.ravel(one.low)[0]):.4f}, {float(np.ravel(one.high)[0]):.4f}]"
            likelihood = "" if "" in (every := [row["log_likelihood"] for row in chosen]) else f"{np.mean([float(str(x)) for x in every]):.3f}"
            lines.append(f"| {arm} | {count} | {len(chosen)} | {shown} | {(values < 1e-3).sum()} of {len(chosen)} | {np.median(values):.4f} | {likelihood} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--table", action="store_true", help="print the table of what was written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "maxent_irl.csv")
    arguments = parser.parse_args()
    if not arguments.table:
        facts = {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        rows = [{**row, **facts} for arm in ARMS for count in (20, 200) for row in measured(arm, count, arguments.seeds)]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    with arguments.out.open(encoding="utf-8") as file:
        print(table(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
