"""Temperature at decoding against entropy in training: what a trained model still knows, at every temperature.

For each temperature n answers to each prompt: pass@k, the number of different right answers, and the curve of quality (pass@1) against diversity. A temperature
can spread what a model still weighs; answers that training has driven to probability 0 it brings back only together with wrong ones. `--against` puts a second
model, trained with an entropy bonus, beside the first. Source: Chen et al. 2021 (pass@k, arXiv:2107.03374), eq. 1. Page: docs/recipes/decode.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entreg import loop
from entreg.lm import arithmetic, models, running, sampling
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "A trained language model at many temperatures: pass@k and different right answers"


@dataclass(frozen=True)
class Config:
    """One or two trained models at many decode temperatures; a record a temperature, the step is its place in the list."""

    model: str = ""
    """Folder of the model, such as runs/<run>/model."""
    against: str | None = None
    """Folder of a second one, member 1 of the records."""
    task: str = "split"
    """split or add: what the models were trained on."""
    largest: int = 9
    """The largest number in the task's prompts."""
    temperatures: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """Decode temperatures; 0 takes the most probable token."""
    samples: int = 64
    """Answers drawn for each prompt and temperature."""
    k: tuple[int, ...] = (1, 4, 16, 64)
    """Of pass@k."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    for path in (config.model, config.against):
        if path is not None:
            models.check_path(path)
            models.check_texts(path, arithmetic.texts(arithmetic.make(config.task, config.largest)))
    if config.samples < 1:
        raise ValueError(f"samples is {config.samples}; legal are integers from 1")
    if not config.k or not all(1 <= k <= config.samples for k in config.k):
        raise ValueError(f"k is {config.k}; legal are integers from 1 to samples, {config.samples}")
    if not config.temperatures or not all(0 <= temperature < float("inf") for temperature in config.temperatures):
        raise ValueError(f"temperatures is {config.temperatures}; legal are finite numbers from 0")


def train(config: Config, run: Run | None = None) -> Summary:
    """Sample, judge and record; nothing is trained."""
    task = arithmetic.make(config.task, config.largest)
    check(config)
    run = run if run is not None else Run()
    settings = run.settings
    torch.set_num_threads(settings.threads)
    paths = [config.model] if config.against is None else [config.model, config.against]
    with running.quiet():
        loaded = [models.load(path) for path in paths]
    run.start("decode", config.task, config, members=[{"seed": settings.seed, "model": path} for path in paths], total=len(config.temperatures))
    with run:
        state = run.restore() or {"step": 0, "metrics": {}}
        step, metrics, rows = int(state["step"]), dict(state["metrics"]), list(state.get("rows", []))
        temperatures = config.temperatures[:2] if settings.dry_run else config.temperatures
        while step < len(temperatures) and run.stopping() is None:
            for member, (network, tokenizer) in enumerate(loaded):
                drawn = sampling.sample(network, tokenizer, task.judged, config.samples, temperature=temperatures[step], seed=run.settings.seed + step)
                row = sampling.judge(task, task.judged, drawn, config.k)
                run.log(step + 1, member=member, temperature=temperatures[step], **row, entropy=drawn.entropy)
                rows.append({"member": member, "temperature": temperatures[step], **row})
                best = f"distinct, model {member}"
                metrics[best] = max(metrics.get(best, 0.0), row["distinct"])
            step += 1
            state = {"step": step, "metrics": dict(metrics), "rows": list(rows)}
            run.checkpoint(step, state.copy, force=step == len(temperatures))
        loop.write_plots(run.folder, plots(config, rows))
        return run.finish(step, metrics, f"entreg report {run.folder}")


def plots(config: Config, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Quality against diversity, and pass@k against the temperature, a line a model, for the report."""

    def lines(x: str, y: str) -> list[dict[str, Any]]:
        found = []
        for member in sorted({row["member"] for row in rows}):
            own = [row for row in rows if row["member"] == member]
            words = [f"{row['temperature']:g}" for row in own] if x != "temperature" else []
            found.append({"name": f"model {member}", "group": member, "x": [row[x] for row in own], "y": [row[y] for row in own], "text": words})
        return found

    words = "Each point is a decode temperature. Up and to the right is better: right answers, and many different ones."
    curve = {"title": "Quality and diversity", "x": "different right answers a prompt", "y": "pass@1", "caption": words}
    shown = [curve | {"series": lines("distinct", "pass@1")}] if 1 in config.k else []
    tried = [{"title": f"pass@{k}", "x": "temperature", "y": f"pass@{k}", "series": lines("temperature", f"pass@{k}")} for k in config.k]
    found = {"title": "Different right answers", "x": "temperature", "y": "answers a prompt", "series": lines("temperature", "distinct")}
    return [*shown, found, *tried]
