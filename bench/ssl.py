"""Image classifiers with few labels: what the two entropies of unlabelled data do. Digits, ten seeds, paired.

    python -m bench.ssl [--study NAME ...] [--seeds N] [--steps N] [--table]

Trains the arms that `bench/results/ssl.csv` does not have yet and appends a line a member; `--table` puts the tables on the pages.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench import common

from entreg import statistics
from entreg.record import read_records
from entreg.run import Run, RunSettings
from entreg.vision import images, split

FILE = common.RESULTS / "ssl.csv"
IMBALANCE = 50.0


class Study(NamedTuple):
    """Arms by name, each changes to a recipe's defaults; differences are taken from the arm `first`. `page` is where the table stands."""

    recipe: str
    page: str
    arms: Mapping[str, Mapping[str, Any]]
    figures: Sequence[str]
    judged: str = "accuracy"


SEMI = ("accuracy", "worst_recall", "calibration_error", "best_temperature", "marginal/perplexity", "conditional")
EACH = {"without the marginal": {"marginal": ("0",)}, "marginal 0.5": {"marginal": ("0.5",)}}
RARE = {"imbalance": IMBALANCE, "marginal": ("0.5",)}
STUDIES = {
    "pseudo": Study("pseudo_label", "pseudo_label", EACH, (*SEMI, "pseudo/use", "pseudo/accuracy")),
    "entropy": Study("pseudo_label", "pseudo_label", {name: {**arm, "method": "entropy"} for name, arm in EACH.items()}, SEMI),
    "fixmatch": Study("fixmatch", "fixmatch", {**EACH, "alignment": {"align": True}}, (*SEMI, "pseudo/use", "pseudo/accuracy")),
    "bonus": Study(
        "fixmatch",
        "fixmatch",
        {
            "no bonus": {},
            "maximise the conditional entropy, 0.05": {"sense": ("maximize",), "conditional": ("0.05",)},
            "maximise the conditional entropy, 0.3": {"sense": ("maximize",), "conditional": ("0.3",)},
        },
        SEMI,
    ),
    "prior": Study(
        "fixmatch",
        "fixmatch",
        {
            "uniform prior": {**RARE, "prior": ("uniform",)},
            "true prior": {**RARE, "prior": ("TRUE",)},
            "prior of the labels": {**RARE, "prior": ("labels",)},
            "estimated prior": {**RARE, "prior": ("estimate",)},
            "no marginal": {"imbalance": IMBALANCE},
        },
        ("accuracy", "worst_recall", "calibration_error", "marginal/perplexity", "pseudo/accuracy"),
    ),
    "mean_teacher": Study("mean_teacher", "mean_teacher", EACH, SEMI),
    "noisy_student": Study("noisy_student", "noisy_student", {**EACH, **{f"hard, {name}": {**arm, "hard": True} for name, arm in EACH.items()}}, SEMI),
    "classifier": Study(
        "classifier",
        "classifier",
        {
            "plain": {"coef": ("0",)},
            "confidence penalty 0.1": {"coef": ("0.1",)},
            "annealed, linear(0.1, 0)": {"coef": ("linear(0.1, 0)",)},
            "hinge at half of the maximum, 0.1": {"coef": ("0.1",), "hinge": (0.5,)},
            "label smoothing 0.1": {"coef": ("0",), "smoothing": (0.1,)},
        },
        ("accuracy", "worst_recall", "calibration_error", "best_temperature", "nll", "nll/tempered"),
    ),
}


def true_prior(folder: Path) -> str:
    """A file with the shares of the classes that are left of digits."""
    found = images.load("digits")
    kept, _ = split.counts(found.label.numpy(), found.classes, 20, IMBALANCE)
    file = folder / "prior.txt"
    file.write_text("\n".join(f"{share:.8f}" for share in kept / kept.sum()))
    return str(file)


def measured(study: Study, arm: str, seeds: int, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a seed; `cpu` is the processor time of the whole arm, in seconds."""
    recipe = importlib.import_module(f"entreg.recipes.{study.recipe}")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        given = {**study.arms[arm], **changes, "seeds": seeds}
        if given.get("prior") == ("TRUE",):
            given["prior"] = (true_prior(Path(folder)),)
        summary = recipe.train(recipe.Config(**given), Run(RunSettings(out=Path(folder) / "runs", quiet=True)))
        last = [line for line in read_records(summary.folder).lines if line["step"] == summary.step and "member" in line]
    spent = time.process_time() - start
    every = sorted({figure for one in STUDIES.values() for figure in one.figures})
    return [{"arm": arm, "seed": row["member"], "steps": summary.step, **{name: row.get(name, "") for name in every}, "cpu": spent} for row in last]


def table(study: Study, rows: Sequence[Mapping[str, str]]) -> str:
    """Mean and interval over seeds of every figure, and the paired difference of the judged one from the first arm."""
    lines = []
    by_arm = {arm: {int(row["seed"]): row for row in rows if row["arm"] == arm} for arm in study.arms}
    first = by_arm[next(iter(study.arms))]
    for arm, of in by_arm.items():
        if of:
            known = [name for name in study.figures if all(row[name] for row in of.values())]
            cells = [common.interval(statistics.mean_interval([float(row[name]) for row in of.values()])) if name in known else "" for name in study.figures]
            both = sorted(of.keys() & first.keys())
            pairs = [np.array([float(one[seed][study.judged]) for seed in both]) for one in (of, first)]
            gap = "" if of is first or not both else common.interval(statistics.paired_difference(*pairs))
            lines.append([arm, str(len(of)), *cells, gap, f"{float(next(iter(of.values()))['cpu']):.0f}"])
    return common.table(["arm", "seeds", *study.figures, f"{study.judged} against the first", "CPU s"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", action="append", choices=STUDIES, help="some studies only")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="other than the recipes'")
    parser.add_argument("--table", action="store_true", help="put the tables of what was written on the pages")
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    changes = {} if arguments.steps is None else {"steps": arguments.steps}
    for name in arguments.study or STUDIES:
        study = STUDIES[name]
        done = {row["arm"] for row in common.read(arguments.out) if row["study"] == name}
        for arm in () if arguments.table else [arm for arm in study.arms if arm not in done]:
            rows = [{"study": name, **row} for row in measured(study, arm, arguments.seeds, changes)]
            common.append(arguments.out, rows, common.machine("torch", "numpy", "scikit-learn", "kornia"))
        text = table(study, [row for row in common.read(arguments.out) if row["study"] == name])
        if arguments.table:
            common.onto_page(common.PAGES / f"{study.page}.md", name, text)
        print(f"{name}\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
