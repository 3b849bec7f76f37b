"""GRPO of a tiny model with and without controlled entropy, and what temperatures make of both models afterwards.

    python -m bench.grpo [--seeds 0 1 2] [--steps 60] [--controller TEXT] [--table] [--out FOLDER]

The task is split ("9=" to "4+5": all n + 1 answers are right), the start a model that has seen demonstrations. The target is the documented first one, .8 of
the mean entropy of the first ten steps, here of the run without control and the same seed; both arms of a seed start from the same model. `grpo.csv` has a line
a run, `decode.csv` one for every run and temperature; seeds that `grpo.csv` has are not trained again. `--table` puts both tables on their pages.
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
from entreg.lm import arithmetic, models, sampling, start
from entreg.lm.running import FIRST, START
from entreg.recipes import grpo
from entreg.record import read_records
from entreg.run import Run, RunSettings

CONTROLLER = "PI({target:.4f}, 2.0, 0.2, (-0.2, 2.0))"
EVAL_SAMPLES = 64
COLUMNS = ("first", "last", "deviation", "return", "pass@1", "pass@64", "distinct", "distinct/max")
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SAMPLES, KS = 256, (1, 4, 16, 64)
DECODED = (*(f"pass@{k}" for k in KS), "distinct", "distinct/max")


def trained(seed: int, coef: str, steps: int, folder: Path) -> tuple[dict[str, float], Path]:
    """Figures of one run, and its folder; the model to begin with is made once and lies in `start-SEED`."""
    begin = start.prepared(None, arithmetic.make("split"), seed, folder / f"start-{seed}", steps=grpo.Config.warm_up)
    config = grpo.Config(coef=coef, steps=steps, model=str(begin), eval_samples=EVAL_SAMPLES)
    summary = grpo.train(config, Run(RunSettings(seed=seed, out=folder, quiet=True, checkpoint_every=1e6)))
    lines = [line for line in read_records(summary.folder).lines if "loss" in line]
    entropies = [line["entropy"] for line in lines]
    figures = {"first": mean(entropies[:FIRST]), "last": mean(entropies[-FIRST:]), "return": mean(line["return"] for line in lines[-FIRST:])}
    return {**figures, **{name: summary.metrics[name] for name in COLUMNS[4:]}}, summary.folder


def decoded(model: Path, seed: int) -> list[dict[str, float]]:
    """What a model answers at every temperature."""
    task = arithmetic.make("split")
    network, tokenizer = models.load(model)
    rows = []
    for temperature in TEMPERATURES:
        drawn = sampling.sample(network, tokenizer, task.judged, SAMPLES, temperature=temperature, seed=seed)
        rows.append({"temperature": temperature, **sampling.judge(task, task.judged, drawn, KS)})
    return rows


def measured(seed: int, steps: int, controller: str = CONTROLLER) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each arm of a seed, and one for each arm and temperature."""
    runs, decodings = [], []
    with tempfile.TemporaryDirectory() as folder:
        target = float("nan")
        for arm in ("none", "controlled"):
            coef = "0" if arm == "none" else controller.format(target=target)
            figures, place = trained(seed, coef, steps, Path(folder))
            target = START * figures["first"] if arm == "none" else target
            figures["deviation"] = figures["last"] / target - 1
            runs.append({"arm": arm, "coef": coef, "seed": seed, "steps": steps, "target": target, **{name: figures[name] for name in COLUMNS}})
            decodings += [{"arm": arm, "seed": seed, **row} for row in decoded(place / "model", seed)]
    return runs, decodings


def means(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """Mean and interval over seeds."""
    return common.interval(statistics.mean_interval(np.array([float(row[name]) for row in rows])))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line a run, then means with intervals over seeds."""
    lines = []
    for row in rows:
        numbers = [f"{float(row[name]):.3f}" for name in ("first", "target", "last")] + [f"{float(row['deviation']):+.1%}"]
        lines.append([f"`{row['coef']}`", row["seed"], *numbers, *(f"{float(row[name]):.3g}" for name in COLUMNS[3:])])
    for arm in dict.fromkeys(row["arm"] for row in rows):
        chosen = [row for row in rows if row["arm"] == arm]
        lines.append([f"mean, {arm}", f"{len(chosen)} seeds", "", "", means(chosen, "last"), "", *(means(chosen, name) for name in COLUMNS[3:])])
    head = ["coef", "seed", "entropy, first 10", "target", "entropy, last 10", "off target", "reward, last 10", *COLUMNS[4:]]
    return common.table(head, lines)


def decode_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line a temperature: both models, means over seeds."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = []
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        chosen = [[row for row in rows if (row["arm"], row["temperature"]) == (arm, temperature)] for arm in arms]
        lines.append([temperature, *(f"{mean(float(row[name]) for row in of):.3g}" for of in chosen for name in ("pass@1", "pass@16", "pass@64", "distinct"))])
    names = {"none": "without", "controlled": "with"}
    head = [f"{name}, {names[arm]}" for arm in arms for name in ("pass@1", "pass@16", "pass@64", "distinct")]
    return common.table(["temperature", *head], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--controller", default=CONTROLLER, help="its spelling, with {target} where the target goes")
    parser.add_argument("--table", action="store_true", help="put the tables of what was written on the pages")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of grpo.csv and decode.csv")
    arguments = parser.parse_args()
    files = arguments.out / "grpo.csv", arguments.out / "decode.csv"
    done = {row["seed"] for row in common.read(files[0])}
    for seed in () if arguments.table else arguments.seeds:
        if str(seed) not in done:
            for file, rows in zip(reversed(files), reversed(measured(seed, arguments.steps, arguments.controller)), strict=True):
                common.append(file, rows, common.machine("torch", "transformers", "trl"))
    texts = table(common.read(files[0])), decode_table(common.read(files[1]))
    if arguments.table:
        for name, text in zip(("grpo", "decode"), texts, strict=True):
            common.onto_page(common.PAGES / f"{name}.md", name, text)
    print(*texts, sep="\n\n")


if __name__ == "__main__":
    main()
