"""MaxEnt inverse reinforcement learning against feature matching with a hard maximum: what the greedy policy of the learnt reward loses in the true one.

    python -m bench.maxent_irl [--seeds 12] [--table] [--out bench/results/maxent_irl.csv]

A 6 x 6 gridworld, slip .1, gamma .9, eight regions with normal weights as reward; demonstrations of 40 steps from uniform starts by the soft-optimal policy
at temperature .5. The value difference is 0 for the optimal policy and 1 for the uniform one. A seed's world and demonstrations are the same in all arms.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import common

from entreg import statistics
from entreg.recipes import maxent_irl
from entreg.record import read_records
from entreg.run import Run, RunSettings

ARMS: dict[str, dict[str, Any]] = {
    "soft, likelihood": {},
    "soft, matching": {"objective": "matching"},
    "hard, matching": {"objective": "matching", "temperature": 0.0},
    "hard, likelihood": {"temperature": 0.0},
    "soft, one weight a state": {"features": "states"},
    "soft, network": {"features": "states", "reward": "neural"},
}
FIGURES = ("eval/value_difference", "feature_gap", "log_likelihood", "entropy")


def measured(arm: str, demonstrations: int, seeds: int) -> list[dict[str, Any]]:
    """One row a seed."""
    config = maxent_irl.Config(**{"features": "regions", "demonstrations": demonstrations, "seeds": seeds, **ARMS[arm]})
    with tempfile.TemporaryDirectory() as folder:
        summary = maxent_irl.train(config, Run(RunSettings(out=Path(folder), quiet=True, eval_every=config.steps)))
        last = [line for line in read_records(summary.folder).lines if line["step"] == config.steps and "member" in line]
    return [{"arm": arm, "demonstrations": demonstrations, "seed": line["member"], **{name: line.get(name, "") for name in FIGURES}} for line in last]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Mean and interval over seeds of each arm, and how often it is optimal to three digits."""
    lines = []
    for arm, count in dict.fromkeys((row["arm"], row["demonstrations"]) for row in rows):
        chosen = [row for row in rows if (row["arm"], row["demonstrations"]) == (arm, count)]
        values = np.array([float(row["eval/value_difference"]) for row in chosen])
        likelihood = np.mean([float(row["log_likelihood"] or "nan") for row in chosen])
        shown = [common.interval(statistics.mean_interval(values)), f"{np.median(values):.2g}", f"{(values < 1e-3).sum()} of {len(chosen)}"]
        lines.append([arm, count, str(len(chosen)), *shown, "" if np.isnan(likelihood) else f"{likelihood:.3f}"])
    return common.table(["model", "demonstrations", "seeds", "value difference", "median", "below .001", "log-likelihood"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--table", action="store_true", help="print the table of what was written, and put it on the page")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "maxent_irl.csv")
    arguments = parser.parse_args()
    if not arguments.table:
        rows = [row for arm in ARMS for count in (20, 200) for row in measured(arm, count, arguments.seeds)]
        common.write(arguments.out, rows, common.machine("torch", "numpy", "scipy"))
    text = table(common.read(arguments.out))
    if arguments.table:
        common.onto_page(common.PAGES / "maxent_irl.md", "maxent_irl", text)
    print(text)


if __name__ == "__main__":
    main()
