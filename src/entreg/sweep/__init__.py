"""`entreg sweep`: coefficients, families and schedules times seeds, in populations or worker processes, on one machine or several.

    options.py   the flags            plan.py    settings, trials, jobs          journal.py, store.py   Optuna's storage: taking and keeping jobs
    work.py      one process's work   choice.py  which is best, if any           page.py                the report

Nothing is written before every setting has been tried on the recipe up to the moment its run would begin.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from entreg import disk
from entreg.folder import hold, warn
from entreg.run import Run
from entreg.sweep.options import Options, parse, parser
from entreg.sweep.plan import Plan, make

__all__ = ["Options", "Plan", "make", "parse", "parser", "sweep", "without"]
NOT_SHARED = ("--seed", "--out", "--family")  # of the command's flags, what the winner's has its own of
Draw: TypeAlias = Callable[[Path], Path]  # makes the report of a folder and says where it is
PATIENCE = 12.0  # seconds that workers have to save after a signal


class _Checked(Exception):
    """A recipe has found nothing wrong: its run would begin now."""


class _Probe(Run):
    """A run that never begins."""

    def start(self, *_: Any, **__: Any) -> None:
        raise _Checked


def probe(plan: Plan) -> None:
    """Let the recipe look at the sweep's settings as far as the beginning of a run; nothing is written.

    Raises: `ValueError`, `ImportError` or `OSError` as the recipe does.
    """
    recipe = importlib.import_module(f"entreg.recipes.{plan.recipe}")
    chosen = [trial.setting for trial in plan.trials if trial.setting is not None]
    if not chosen:
        ends = replace(plan, sampler="grid", points=2, seeds=1)
        chosen = [trial.setting for trial in ends.trials if trial.setting is not None]
    several = plan.several
    by_family = {family: list(dict.fromkeys(one for one in chosen if one.family == family)) for family in plan.families}
    for of in by_family.values():
        for config, _, _ in plan.runs(of if several else of[:1], [plan.settings.seed]):
            calm = replace(config, vectorise="sync") if hasattr(config, "vectorise") else config
            with contextlib.suppress(_Checked):
                recipe.train(calm, _Probe(replace(plan.settings, quiet=True)))
    gc.collect()


def sweep(plan: Plan, options: Options, words: Sequence[str], shared: Sequence[str], draw: Draw) -> int:
    """Run, join or go on with a sweep; the exit status. `words` are the command's, `shared` those of them that every run shares; `draw` makes the report.

    Raises: `ValueError`, `ImportError` or `OSError` in one line before anything is written.
    """
    from entreg.sweep.store import Store, close, open_storage

    folder, address = places(plan, options)
    if options.worker:
        with contextlib.closing(Store(plan, address, beat=options.heartbeat)) as store:
            return _worker(plan, store, folder)
    probe(plan)
    if "://" in address or Path(address).exists():
        close(open_storage(address)[0])  # what cannot be used leaves no folder
    disk.make_folders(folder)
    with contextlib.closing(Store(plan, address, beat=options.heartbeat)) as store:
        _say(plan, f"{len(plan.trials)} trials in {len(plan.jobs)} jobs; optuna-dashboard {shlex.quote(address)} shows them")
        store.complete()
        workers = min(options.workers or os.cpu_count() or 1, len(plan.jobs))
        status = _alone(plan, store, folder) if workers == 1 else _together(plan, store, words, workers)
        if status:
            warn(f"stopped; the same command goes on: entreg sweep {shlex.join(words)}")
            return status
        return _close(plan, store, folder, words, shared, draw)


def places(plan: Plan, options: Options) -> tuple[Path, str]:
    """The sweep's folder and the address of its storage."""
    if options.storage is None:
        folder = plan.settings.out / plan.name
        return folder, str(folder / "journal.log")
    near = plan.settings.out if "://" in options.storage else Path(options.storage).parent
    return near / plan.name, options.storage


def without(words: Sequence[str], plan: Plan) -> list[str]:
    """The words of a command that every run of the sweep shares: without coefficients, families, seed, folder and how much is printed."""
    left, out = list(words), []
    own = (*NOT_SHARED, f"--{plan.axis.replace('_', '-')}")
    while left:
        word = left.pop(0)
        if word in own and left:
            left.pop(0)
        elif word.partition("=")[0] not in (*own, "--quiet", "--json"):
            out.append(word)
    return out


def _say(plan: Plan, text: str) -> None:
    if not plan.settings.quiet:
        warn(text)


def _alone(plan: Plan, store: Any, folder: Path) -> int:
    """Work in this process."""
    from entreg.sweep.work import Worker

    try:
        return Worker(plan, store, folder, say=warn, progress=not plan.settings.quiet and len(plan.jobs) <= 4).work()
    except KeyboardInterrupt:
        return 130


def _worker(plan: Plan, store: Any, folder: Path) -> int:
    """Work in a process that another has started."""
    from entreg.sweep.work import Worker

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return Worker(plan, store, folder, say=warn, parent=os.getppid()).work()
    except KeyboardInterrupt:
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _together(plan: Plan, store: Any, words: Sequence[str], workers: int) -> int:
    """Start worker processes, say how far they are, and pass a signal on."""
    command = [sys.executable, "-m", "entreg", "sweep", *words, "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    told: list[int] = []
    with _signals(told):
        processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(workers)]
        try:
            _watch(plan, store, processes, told)
        finally:
            _end(processes)
    if told:
        return 128 + told[0]
    if store.finished():
        return 0
    codes = [process.returncode for process in processes]
    if set(codes) == {2}:  # each has said what is wrong
        return 2
    warn(f"all workers ended before the sweep did (exit status {', '.join(map(str, codes))})")
    return 1


@contextlib.contextmanager
def _signals(told: list[int]) -> Iterator[None]:
    """While open, SIGINT and SIGTERM are noted in `told`."""

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]  # nohup and friends
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(plan: Plan, store: Any, processes: Sequence[subprocess.Popen[bytes]], told: Sequence[int]) -> None:
    shown, last = "", 0.0
    while not told and any(process.poll() is None for process in processes):
        time.sleep(0.2)
        if time.monotonic() - last >= 2:
            last = time.monotonic()
            line = progress(store)
            if line != shown:
                _say(plan, line)
            shown = line


def progress(store: Any) -> str:
    """How far a sweep is, in one line."""
    from entreg.sweep.store import ended

    trials = store.current().values()
    failed = sum("error" in trial.user_attrs for trial in trials)
    running = sum(trial.state.name == "RUNNING" for trial in trials)
    bad = f", {failed} failed" if failed else ""
    return f"{sum(map(ended, trials))} of {len(store.plan.trials)} trials done{bad}, {running} running"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell workers to save and stop; those that do not are ended."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _only(folder: Path) -> Iterator[None]:
    """While open, no other process of the sweep writes its report: those that end together would write the same files."""
    while True:
        try:
            descriptor = hold(folder)
            break
        except ValueError:
            time.sleep(0.1)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _close(plan: Plan, store: Any, folder: Path, words: Sequence[str], shared: Sequence[str], draw: Draw) -> int:
    """Write the report and say what was found."""
    from entreg.sweep import page

    with _only(folder):
        choice, path = page.write(plan, store, folder, "entreg sweep " + shlex.join(words), shared), draw(folder)
    failed = {trial.number: trial.user_attrs["error"] for trial in store.current().values() if "error" in trial.user_attrs}
    summary = json.loads((folder / "summary.json").read_bytes())
    if plan.settings.json:
        print(json.dumps({"folder": str(folder), "study": plan.name, "report": str(path), "failed": failed, **summary}))
    else:
        for line in summary["lines"]:
            print(line["text"])
        print(f"report: {path}")
        if summary["command"]:
            print(f"train it: {summary['command']}")
    if failed:
        warn(f"{len(failed)} of {len(plan.trials)} trials failed, the first: {next(iter(failed.values()))}")
    return 0 if choice is not None and not failed else 1
