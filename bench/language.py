"""What entropy does in the other language-model recipes, on tiny models that are made on the spot: demonstrations, pairs, a learnt reward.

    python -m bench.language sft|dpo|rlhf [--seeds 3] [--table]

Trains the arms and seeds that `bench/results/NAME.csv` does not have yet and appends one line a run; `--table` puts the table on the page. Figures are of 64
answers to each prompt of the task split after training; `cpu` is the processor time of a run in seconds, making the start included.
"""

import argparse
import importlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common

from entreg import statistics
from entreg.record import read_records
from entreg.run import Run, RunSettings

SAMPLES = 64
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"coef 0": {}, "coef 0.1": {"coef": "0.1"}, "linear(0.1, 0)": {"coef": "linear(0.1, 0)"}},
    "dpo": {
        "DPO": {},
        "H-DPO, weight 0.05": {"entropy_weight": 0.05},
        "SPL, weight 0.2": {"entropy_weight": 0.2},
        "DPO, coef 0.01": {"coef": "0.01"},
    },
    "rlhf": {
        "rloo": {},
        "grpo": {"algorithm": "grpo"},
        "rloo, beta 0.05": {"beta": 0.05},
        "grpo, beta 0.05": {"algorithm": "grpo", "beta": 0.05},
        "rloo, beta 0.05, coef 0.05": {"beta": 0.05, "coef": "0.05"},
        "grpo, beta 0.05, coef 0.05": {"algorithm": "grpo", "beta": 0.05, "coef": "0.05"},
    },
}
FIGURES = ("pass@1", f"pass@{SAMPLES}", "distinct", "distinct/max", "entropy")
OF_RLHF = ("return", "ordered")  # the learnt reward of the last ten steps, and the share of new pairs that its model orders rightly


def measured(name: str, arm: str, seed: int) -> dict[str, Any]:
    """One row: what the model was, and is."""
    recipe, start = importlib.import_module(f"entreg.recipes.{name}"), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = recipe.Config(eval_samples=SAMPLES, **STUDIES[name][arm])
        summary = recipe.train(config, Run(RunSettings(seed=seed, out=Path(folder), quiet=True, checkpoint_every=1e6)))
        lines = read_records(summary.folder).lines
    first = next(line for line in lines if "eval/pass@1" in line)
    figures: dict[str, Any] = {"pass@1/start": first["eval/pass@1"], **{figure: summary.metrics[figure] for figure in FIGURES}}
    if name == "rlhf":
        returns = [line["return"] for line in lines if "return" in line]
        said = next(line["message"] for line in lines if line.get("event") == "reward_model")
        figures |= {"return": sum(returns[-10:]) / 10, "ordered": float(re.findall(r"([\d.]+)%", said)[0]) / 100}
    return {"arm": arm, "seed": seed, "steps": summary.step, **figures, "cpu": time.process_time() - start}


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line an arm: means over seeds, with their intervals."""
    names = [name for name in rows[0] if name in ("pass@1/start", *FIGURES, *OF_RLHF, "cpu")] if rows else []
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of = [row for row in rows if row["arm"] == arm]
        lines.append([arm, str(len(of)), *(common.interval(statistics.mean_interval([float(row[name]) for row in of])) for name in names)])
    return common.table(["arm", "seeds", *names], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="put the table of what was written on the page")
    arguments = parser.parse_args()
    name, file = arguments.study, common.RESULTS / f"{arguments.study}.csv"
    done = {(row["arm"], row["seed"]) for row in common.read(file)}
    for arm in () if arguments.table else STUDIES[name]:
        for seed in range(arguments.seeds):
            if (arm, str(seed)) not in done:
                common.append(file, [measured(name, arm, seed)], common.machine("torch", "transformers", "trl"))
    text = table(common.read(file))
    if arguments.table:
        common.onto_page(common.PAGES / f"{name}.md", name, text)
    print(text)


if __name__ == "__main__":
    main()
