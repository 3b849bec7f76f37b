"""A sweep's folder as the report reads it: who the members are, their records, plots and what the choice says.

    config.json  records.jsonl  plots.json  summary.json  ->  report.html (`entreg report FOLDER` makes it again)

Runs that lie on other machines have their scores and coarse curves in the storage, and these stand in for their records.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from entreg import disk, spelling
from entreg.folder import describe
from entreg.functional import SHANNON, curvature
from entreg.record import FILE, Record, encode, read_records
from entreg.sweep.choice import Cell, Choice, cells, choose
from entreg.sweep.plan import HOLE, Plan, Setting
from entreg.sweep.store import Store

POINTS = 120  # records of a member in the report


def settings_of(plan: Plan, trials: Mapping[int, FrozenTrial]) -> dict[int, Setting]:
    """The setting of every trial that has one."""
    found = {}
    for index, trial in sorted(trials.items()):
        given = plan.trials[index].setting
        if given is None and "family" in trial.params:
            coef = trial.params.get("coef")
            given = Setting(trial.params["rule"], None if coef is None else float(f"{coef:.6g}"), trial.params["family"])
        if given is not None:
            found[index] = given
    return found


def results_of(plan: Plan, trials: Mapping[int, FrozenTrial]) -> dict[Setting, list[dict[str, Any]]]:
    """What came out, by setting, in the order of the plan."""
    found: dict[Setting, list[dict[str, Any]]] = {}
    for index, setting in settings_of(plan, trials).items():
        trial = trials[index]
        if "scores" in trial.user_attrs:
            curve = {step: value for step, value in trial.intermediate_values.items() if not plan.length or step <= plan.length}
            found.setdefault(setting, []).append({**trial.user_attrs, "pruned": trial.state.name == "PRUNED", "curve": curve})
    return found


def write(plan: Plan, store: Store, folder: Path, command: str, winner: Sequence[str]) -> Choice | None:
    """Write the files that the report is made from; the choice. `winner` are the words that every run of the sweep shares."""
    results = results_of(plan, store.current())
    found = cells(results)
    choice = choose(found, plan)
    members, lines, missing = _gathered(plan, results, folder)
    disk.replace_file(folder / FILE, b"".join(encode(line) for line in lines))
    config = json.loads(describe(plan.recipe, plan.task, plan.config, plan.settings, members=members, command=command))
    config["sweep"] = config.pop("run")  # no run folder: `play latest` passes it over
    disk.replace_file(folder / "config.json", json.dumps(config, indent=1).encode())
    disk.replace_file(folder / "plots.json", json.dumps(plots(plan, found)).encode())
    said = [{"tone": tone, "text": text} for tone, text in (choice.lines if choice else [("bad", "No setting was trained to its end.")])]
    if missing:
        said.append({"tone": "plain", "text": f"{missing} runs lie on other machines: their curves are the coarse ones of the storage."})
    page = {"lines": said, "command": None if choice is None else train_command(plan, choice.best.setting, winner), "table": table(found, choice)}
    disk.replace_file(folder / "summary.json", json.dumps(page, indent=1).encode())
    return choice


def train_command(plan: Plan, setting: Setting, shared: Sequence[str]) -> str:
    """The command that trains a setting, with a seed that the sweep has not seen."""
    family = ["--family", setting.family] if hasattr(plan.config, "family") else []
    seed = ["--seed", str(plan.settings.seed + plan.seeds)]
    return shlex.join(["entreg", "train", plan.recipe, *shared, f"--{plan.axis.replace('_', '-')}", setting.text, *family, *seed])


def table(found: Sequence[Cell], choice: Choice | None) -> list[dict[str, Any]]:
    """One row a setting, for programs."""
    rows = []
    for cell in found:
        ends = [float(end) for end in cell.interval[:3]]
        value, low, high = (end if math.isfinite(end) else None for end in ends)
        shown = {"coef": cell.setting.text, "family": cell.setting.family, "iqm": value, "low": low, "high": high, "seeds": cell.interval.n}
        rows.append({**shown, "pruned": cell.pruned, "best": choice is not None and cell.setting == choice.best.setting})
    return rows


def _gathered(plan: Plan, results: Mapping[Setting, Sequence[Mapping[str, Any]]], folder: Path) -> tuple[list[dict[str, Any]], list[Record], int]:
    """The members of all runs, their records under new numbers, and how many had none here."""
    members: list[dict[str, Any]] = []
    lines: list[Record] = []
    missing, read = 0, dict[str, dict[int, list[Record]]]()
    for setting, of in results.items():
        for result in of:
            for seed, (place, member) in result["members"].items():
                number = len(members)
                members.append({"member": number, "seed": int(seed), "coef": setting.text, "family": setting.family})
                if place not in read:
                    read[place] = _by_member(read_records(folder / place).lines)
                mine = read[place].get(member, [])
                if not mine:
                    missing += 1
                    name = plan.metric.removeprefix("eval/")
                    mine = [{"step": int(step), name: value} for step, value in result["curve"].items()]
                lines += [{**line, "member": number} for line in _thinned(mine)]
    return members, lines, missing


def _by_member(lines: Iterable[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for line in lines:
        if "event" not in line:
            found.setdefault(line.get("member", 0), []).append(line)
    return found


def _thinned(lines: Sequence[Record]) -> list[Record]:
    """At most about `POINTS` records, the evaluations all and the last in any case."""
    stride = math.ceil(len(lines) / POINTS)
    return [line for index, line in enumerate(lines) if index % stride == 0 or index == len(lines) - 1 or any(name.startswith("eval/") for name in line)]


# ---------------------------------------------------------------- plots


def plots(plan: Plan, found: Sequence[Cell]) -> list[dict[str, Any]]:
    """Coefficient against score, families at matched curvature, and the plane of entropy and score; of settings that ran to their end."""
    ended = [cell for cell in found if not cell.pruned]
    shown = [_against(plan, ended)] if plan.span is not None else []
    if plan.span is not None and len(plan.families) > 1 and (scales := scales_of(ended)):
        shown.append(_against(plan, ended, scales))
    plane = [_cloud(plan, cell, index) for index, cell in enumerate(found) if cell.entropies and not cell.pruned]
    if plane:
        words = (
            "One point a run, at its end. Low entropy with a low score is a policy that settled too early; high entropy with a low score, one that never did."
        )
        shown.append({"title": "Entropy and score", "x": "entropy (nats)", "y": plan.metric, "kind": "scatter", "caption": words, "series": plane})
    left_out = "" if len(ended) == len(found) else " Settings that were pruned are left out."
    return [{**plot, "caption": plot["caption"] + left_out} for plot in shown]


def scales_of(found: Sequence[Cell]) -> dict[str, float]:
    """By family, what turns its coefficient into that of Shannon's entropy which pulls as strongly near uniform; families without curvature are left out."""
    classes = next((cell.classes for cell in found if cell.classes), None)
    scales = {}
    for name in dict.fromkeys(cell.setting.family for cell in found) if classes else ():
        family = spelling.parse_family(name)
        if family.order != 0 and math.isfinite(family.order):
            scales[name] = curvature(family, classes or 1) / curvature(SHANNON, classes or 1)
    return scales


def _against(plan: Plan, found: Sequence[Cell], scales: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Interquartile means with their intervals over the coefficient, or over the one of equal curvature."""
    assert plan.span is not None
    series = []
    lines = dict.fromkeys((cell.setting.rule, cell.setting.family) for cell in found if cell.setting.coef is not None)
    for rule, family in lines:
        if scales is not None and family not in scales:
            continue
        scale = 1.0 if scales is None else scales[family]
        of = sorted((cell for cell in found if (cell.setting.rule, cell.setting.family) == (rule, family)), key=lambda cell: cell.setting.coef or 0.0)
        name = family if rule == "coef" else f"{rule}, {family}"
        series.append(_line(name, [scale * (cell.setting.coef or 0.0) for cell in of], of))
    ends = [min(min(one["x"]) for one in series), max(max(one["x"]) for one in series)] if series else list(plan.span)
    series += [_line(cell.setting.name, ends, [cell, cell]) for cell in found if not HOLE.search(cell.setting.rule)]
    words = "Interquartile mean over seeds; bands are 95 % bootstrap intervals, widened for few seeds."
    title, x = f"{plan.metric} over the coefficient", "coef"
    if scales is not None:
        title, x = "Families at matched curvature", "coef of Shannon's entropy with the same pull near uniform"
        words += " Where the lines fall on each other, the families differ in their scale only."
    elif len(plan.families) > 1:
        words += " Families at equal coefficients; near uniform these pull with different strength."
    return {"title": title, "x": x, "y": plan.metric, "log": True, "caption": words, "series": series}


def _line(name: str, x: Sequence[float], of: Sequence[Cell]) -> dict[str, Any]:
    value, low, high = ([float(cell.interval[end]) for cell in of] for end in range(3))
    words = ["", *[""] * (len(of) - 2), name][-len(of) :]
    band = {} if any(math.isnan(one) for one in low) else {"low": low, "high": high}
    return {"name": name, "x": list(x), "y": value, "text": words, **band}


def _cloud(plan: Plan, cell: Cell, group: int) -> dict[str, Any]:
    seeds = [seed for seed in cell.scores if seed in cell.entropies]
    return {"name": cell.setting.name, "group": group, "x": [cell.entropies[seed] for seed in seeds], "y": [cell.scores[seed] for seed in seeds]}
