"""What entropy does beyond policies: bandit, clustering, generators and text, each with seeds, paired where settings are compared.

    python -m bench.beyond bandit|clustering|gan|gan-grid|gan-digits|textgen [--arm NAME ...] [--seeds N] [--table]

Trains the arms that `bench/results/NAME.csv` does not have yet and appends one line a member; `--table` puts what was written on the page.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import common

from entreg import statistics
from entreg.record import read_records
from entreg.run import Run, RunSettings


class Study(NamedTuple):
    """Arms by name, each the changes to the recipe's defaults; the figures of the table, and whose difference from the first arm is taken.
    The recipe, whose page has the table, is what stands before the study's dash."""

    arms: Mapping[str, Mapping[str, Any]]
    figures: Sequence[str]
    judged: str
    seeds: int = 10


POINTS = (0.5, 0.7, 1.0)  # temperatures of a curve that a page shows
PLAIN = {"method": ("mutual_information",)}
WGAN = {"loss": "wgan_gp", "critic_steps": 5}
MODES = ("modes", "high_quality", "modes/perplexity")
ANNEALED = {"coef": ("linear(0.3, 0)",)}
GANS: Mapping[str, Mapping[str, Any]] = {
    "Parzen, linear(0.3, 0)": ANNEALED,
    "no bonus": {"coef": ("0",)},
    "classifier, linear(0.3, 0)": {**ANNEALED, "bonus": ("classifier",)},
    "nearest neighbours, linear(0.3, 0)": {**ANNEALED, "bonus": ("knn",)},
    "WGAN-GP, Parzen": {**ANNEALED, **WGAN},
    "WGAN-GP, no bonus": {"coef": ("0",), **WGAN},
}
STUDIES = {
    "bandit": Study(
        {
            "coef 0.1": {"coef": ("0.1",)},
            "coef 0": {"coef": ("0",)},
            "coef 0.1, sampled": {"coef": ("0.1",), "bonus": ("sampled",)},
            "coef 0.1, naive": {"coef": ("0.1",), "bonus": ("naive",)},
            "coef 0.1, renyi(2)": {"coef": ("0.1",), "family": ("renyi(2)",)},
            "coef 0, Adam": {"coef": ("0",), "optimizer": "adam", "learning_rate": "0.1"},
        },
        ("accuracy", "answers", "answers/best_temperature", "coverage", "coverage/best_temperature"),
        "answers",
    ),
    "clustering": Study(
        {
            "marginal 1.5": {**PLAIN, "marginal": ("1.5",)},
            "marginal 0": {**PLAIN, "marginal": ("0",)},
            "k-means": {"method": ("kmeans",)},
            "Sinkhorn": {"method": ("sinkhorn",)},
            "tsallis(2), matched": {**PLAIN, "marginal": ("1.5",), "family": ("tsallis(2)",)},
            "tsallis(2), equal coefficients": {**PLAIN, "marginal": ("1.5",), "family": ("tsallis(2)",), "match": ("none",)},
            "renyi(2), matched": {**PLAIN, "marginal": ("1.5",), "family": ("renyi(2)",)},
            "renyi(2), equal coefficients": {**PLAIN, "marginal": ("1.5",), "family": ("renyi(2)",), "match": ("none",)},
        },
        ("accuracy", "nmi", "ari", "clusters"),
        "accuracy",
    ),
    "gan": Study(
        {
            **GANS,
            "Parzen, rate 0.0005": {**ANNEALED, "learning_rate": "0.0005"},
            "no bonus, rate 0.0005": {"coef": ("0",), "learning_rate": "0.0005"},
        },
        MODES,
        "high_quality",
    ),
    "gan-grid": Study({name: {"data": "grid", "modes": 25, **arm} for name, arm in GANS.items()}, MODES, "high_quality"),
    "gan-digits": Study({name: {"data": "digits", **arm} for name, arm in GANS.items()}, MODES, "high_quality"),
    "textgen": Study(
        {
            "coef 0": {"coef": ("0",)},
            "coef 0.1": {"coef": ("0.1",)},
            "renyi(2), coef 0.1": {"coef": ("0.1",), "family": ("renyi(2)",)},
            "tsallis(2), coef 0.1": {"coef": ("0.1",), "family": ("tsallis(2)",)},
            "coef 0, unlikelihood 0.5": {"coef": ("0",), "unlikelihood": (0.5,)},
        },
        ("bits_per_character", "bits_per_character/temperature_1", "best_temperature", "entropy", "greedy/repetition"),
        "bits_per_character",
        seeds=5,
    ),
}


def recipe_of(name: str) -> str:
    """What stands before a study's dash: the recipe, whose page has the table.

    >>> recipe_of("gan-grid"), recipe_of("bandit")
    ('gan', 'bandit')
    """
    return name.partition("-")[0]


def measured(name: str, arm: str, seeds: int, changes: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row a seed, `cpu` being the processor time of the whole arm in seconds; and the points of every seed's curves, where the recipe has such."""
    recipe, study = importlib.import_module(f"entreg.recipes.{recipe_of(name)}"), STUDIES[name]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = recipe.Config(**{**changes, **study.arms[arm], "seeds": seeds})
        summary = recipe.train(config, Run(RunSettings(out=Path(folder), quiet=True)))
        rows = [line for line in read_records(summary.folder).lines if line["step"] == summary.step and "member" in line]
        curves = summary.folder / "curves.json"
        points = json.loads(curves.read_text()) if curves.exists() else []
    spent = time.process_time() - start
    found = [
        {"arm": arm, "seed": row["member"], "steps": summary.step, **{figure: row.get(figure, "") for figure in study.figures}, "cpu": spent} for row in rows
    ]
    return found, [{"arm": arm, "seed": seed, **point} for seed, of in enumerate(points) for point in of]


def curves_of(name: str) -> Path:
    """Where a study's curves are kept."""
    return common.RESULTS / f"{name}_curves.csv"


def table(name: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Mean and interval over seeds of every figure, and the paired difference of the judged one from the first arm."""
    study, lines = STUDIES[name], []
    by_arm = {arm: {int(row["seed"]): row for row in rows if row["arm"] == arm} for arm in study.arms}
    for arm, of in by_arm.items():
        if not of:
            continue
        cells = [common.interval(statistics.mean_interval([float(row[figure]) for row in of.values()])) if all(row[figure] for row in of.values()) else ""
                 for figure in study.figures]  # fmt: skip
        first = by_arm[next(iter(study.arms))]
        both = sorted(of.keys() & first.keys())
        pairs = ([float(one[seed][study.judged]) for seed in both] for one in (of, first))
        gap = "" if of is first or not both else common.interval(statistics.paired_difference(*pairs))
        lines.append([arm, str(len(of)), *cells, gap])
    return common.table(["arm", "seeds", *study.figures, f"{study.judged} against the first"], lines)


def curves(rows: Sequence[Mapping[str, str]]) -> str:
    """Some points of curves as a table: a line an arm and way of decoding, means over seeds."""
    of: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        if float(row["temperature"]) in POINTS:
            of.setdefault((row["arm"], row["temperature"], row["top_p"]), []).append(row)
    columns, lines = ("quality", "self_bleu", "distinct_2", "repetition"), []
    for (arm, temperature, top_p), points in of.items():
        way = f"{float(temperature):g}" + ("" if float(top_p) == 1 else f", top-p {float(top_p):g}")
        lines.append([arm, way, *(f"{sum(float(point[name]) for point in points) / len(points):.3f}" for name in columns)])
    return common.table(["arm", "temperature", *columns], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--arm", action="append", help="some arms only")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int, help="other than the recipe's")
    parser.add_argument("--table", action="store_true", help="put the table of what was written on the page")
    arguments = parser.parse_args()
    name, file = arguments.study, common.RESULTS / f"{arguments.study}.csv"
    changes = {} if arguments.steps is None else {"steps": arguments.steps}
    done = {row["arm"] for row in common.read(file)}
    for arm in () if arguments.table else arguments.arm or STUDIES[name].arms:
        if arm not in done:
            rows, points = measured(name, arm, arguments.seeds or STUDIES[name].seeds, changes)
            common.append(file, rows, common.machine("torch", "numpy", "scikit-learn", "POT"))
            if points:
                common.append(curves_of(name), points, {})
    text = table(name, common.read(file))
    if arguments.table:
        common.onto_page(common.PAGES / f"{recipe_of(name)}.md", name, text)
        if curves_of(name).exists():
            common.onto_page(common.PAGES / f"{recipe_of(name)}.md", f"{name}-curves", curves(common.read(curves_of(name))))
    print(text)


if __name__ == "__main__":
    main()
