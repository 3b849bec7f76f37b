"""A run: the folder in which a recipe keeps its configuration, records and checkpoints, and the signals that end it.

    runs/<recipe>-<task>-<seed>-<time>/   config.json  records.jsonl  checkpoint/  (report.html and media/ are written by others)

A recipe opens a `Run`, asks `restore()` for the state to go on from, calls `log`, `checkpoint` and `check_finite` as it goes, leaves its loop when
`stopping()` says why, and returns `finish(...)`. Times are seconds, steps are what the recipe counts (environment or optimizer steps).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from entreg import disk, sinks
from entreg.checkpoint import Checkpoints, Throttle
from entreg.finite import NonFinite, all_finite, where_not_finite
from entreg.folder import CONFIG, describe, dry_folder, find_run, hold, new_folder, read_config, warn
from entreg.progress import Progress, closing
from entreg.record import Recorder
from entreg.state import State, require_safetensors

__all__ = ["NonFinite", "Run", "RunSettings", "Summary", "closing", "exit_status", "find_run", "read_config"]
ROOM = 64 * 2**20  # bytes a run may need beside its checkpoints (records, report)
KEPT = ("seed", "deterministic", "threads", "eval_every")  # what a resumed run takes from its config.json: they shape the trajectory
SEEDS, THREADS = 2**53, 1024  # the most: whole numbers that every reader of JSON keeps; torch dies without a word of 100 000 threads
PATIENCE = 7.0  # seconds that a phase may take to its end after a signal; leaves three to save and exit


@dataclass(frozen=True)
class RunSettings:
    """What every recipe's run can be told; times in seconds, `eval_every` in steps."""

    seed: int = 0
    """The only source of randomness; members of a population count up from it."""
    deterministic: bool = False
    """Refuse operations of torch that are not deterministic (on a CPU runs are deterministic anyway)."""
    threads: int = 1
    """Threads of torch and of fused updates; small networks are fastest with one."""
    out: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    resume: str | None = None
    """Go on with a run: its folder, or latest."""
    checkpoint_every: float = 5.0
    """Seconds between checkpoints; 0: at every opportunity."""
    eval_every: int | None = None
    """Steps between evaluations; one is made at the end in any case."""
    max_time: float | None = None
    """Seconds after which to stop and save."""
    dry_run: bool = False
    """Two updates, evaluate, save, reload, look at the free space; nothing is kept."""
    track: tuple[str, ...] = ()
    """Also send the records to tensorboard, trackio or wandb."""
    quiet: bool = False
    """No progress on stderr."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= SEEDS:
            raise ValueError(f"seed is {self.seed}; legal are integers from 0 to {SEEDS}")
        if not 1 <= self.threads <= THREADS:
            raise ValueError(f"threads is {self.threads}; legal are integers from 1 to {THREADS}")
        if not self.checkpoint_every >= 0:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}; legal are seconds from 0")
        if self.eval_every is not None and self.eval_every < 1:
            raise ValueError(f"eval_every is {self.eval_every}; legal are steps from 1, or None")
        if self.max_time is not None and not self.max_time > 0:
            raise ValueError(f"max_time is {self.max_time}; legal are seconds above 0, or None")
        if self.dry_run and self.resume is not None:
            raise ValueError(f"dry_run is True beside resume {self.resume!r}; legal is one of the two: a dry run keeps nothing")


@dataclass(frozen=True)
class Summary:
    """How a run ended: `stopped` is None for a run that did all its work, else `"SIGINT"`, `"SIGTERM"`, `"max_time"` or the recipe's own word."""

    folder: Path
    step: int
    stopped: str | None
    metrics: dict[str, float]
    following: str | None = None
    """The command that comes next; None: `entreg play`."""


def exit_status(summary: Summary) -> int:
    """The exit status of a process whose run ended so: 130 after Ctrl-C, 143 after SIGTERM, 1 where the guard stopped it, else 0.

    >>> exit_status(Summary(Path("runs/x"), 10, "SIGINT", {})), exit_status(Summary(Path("runs/x"), 10, "max_time", {}))
    (130, 0)
    """
    return {"SIGINT": 130, "SIGTERM": 143, "collapse": 1}.get(summary.stopped or "", 0)


class Run:
    """One run of a recipe: made from settings, `start`ed by the recipe once everything is known to be right; a context that handles signals.

    `ppo.train(config, Run(RunSettings(seed=3)))` is how Python gives settings to a recipe. `started` says whether there is a folder.
    """

    folder: Path

    def __init__(self, settings: RunSettings = RunSettings(), *, command: str | None = None) -> None:
        self.settings, self.command, self.started = settings, command, False
        self._start = time.monotonic()
        self._stopped: str | None = None
        self._state: State | None = None
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()
        self._signalled: float | None = None

    @classmethod
    def open(cls, recipe: str, task: str, config: Any, settings: RunSettings = RunSettings(), *, command: str | None = None, **how: Any) -> Run:
        """A run made and started in one call: see `start`."""
        run = cls(settings, command=command)
        run.start(recipe, task, config, **how)
        return run

    def start(
        self,
        recipe: str,
        task: str,
        config: Any,
        *,
        members: Sequence[Mapping[str, Any]] = (),
        spell: Callable[[Any], Any] = repr,
        total: int | None = None,
    ) -> None:
        """Make a new folder under `settings.out`, or with `settings.resume` take the existing one, its records cut to its newest checkpoint.

        `config` is the recipe's dataclass; `spell` writes controllers and families; `total` steps, where known, show how far the run is.
        A resumed run goes by its own `config.json`: give it the config that `read_config(find_run(...))` holds; seed, threads, deterministic
        and eval_every are taken from there. A dry run lives in a temporary folder beside `out`.

        Raises: `ValueError`, `TypeError`, `ImportError` or `OSError` in one line, with nothing new left on the disk.
        """
        settings = self.settings
        sinks.check(settings.track)
        require_safetensors()
        if settings.resume is not None:
            folder = find_run(settings.resume, Path(settings.out), recipe)
            page = read_config(folder)
            self.settings = replace(settings, **{name: page["run"][name] for name in KEPT if name in page["run"]})
            self._use(folder, page, total)
            try:
                self._go_on()
            except BaseException:
                self.__exit__()
                raise
            return
        text = describe(recipe, task, config, settings, members=members, command=self.command, spell=spell)
        out = Path(settings.out)
        folder = dry_folder(out) if settings.dry_run else new_folder(out, recipe, task, settings.seed)
        try:
            disk.replace_file(folder / CONFIG, text)
            self._use(folder, json.loads(text), total)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others may have runs there
                out.rmdir()
            raise

    def _use(self, folder: Path, page: Mapping[str, Any], total: int | None) -> None:
        self.folder = folder
        members = max(1, len(page.get("members", ())))
        self._lock = hold(folder)  # before the recorder, which cuts a torn tail: of a run that is writing now it would cut live lines
        try:
            self._recorder = Recorder(folder)
        except OSError:
            self._let_go()
            raise
        self._checkpoints = Checkpoints(folder / "checkpoint", warn)
        self._best = self._checkpoints.best_scores()
        self._sinks = sinks.Sinks(self.settings.track, folder, page, members=members)
        self._progress = Progress(quiet=self.settings.quiet, members=members, total=total, title=f"{page['recipe']} {page['task']}")
        self._throttle = Throttle(self.settings.checkpoint_every, time.monotonic())
        self.started = True

    def _go_on(self) -> None:
        saved = self._checkpoints.load()
        self._state = None if saved is None else saved.state
        step, offset = (0, 0) if saved is None else (int(saved.facts["step"]), int(saved.facts["offset"]))
        if self._recorder.offset < offset:
            warn(f"{self.folder}: {offset - self._recorder.offset} bytes of records are missing before the checkpoint of step {step}")
        self._recorder.cut(offset)
        self.event(step, "resumed", f"at step {step}")

    # ---------------------------------------------------------------- what a recipe calls

    def log(self, step: int, **values: Any) -> None:
        """Append a record, show it, and give it to the sinks."""
        record = self._recorder.append({"step": step, "time": round(time.time(), 3), **values})
        self._progress.show(record)
        self._sinks.log(record)

    def event(self, step: int, name: str, message: str) -> None:
        """Append a record of something that happened: `event` is a short name, `message` a sentence."""
        self.log(step, event=name, message=message)

    def restore(self) -> State | None:
        """The state to go on from, as it was given to `checkpoint`; None for a new run."""
        return self._state

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._throttle.due(time.monotonic())

    def checkpoint(self, step: int, state: Callable[[], Mapping[str, Any]], *, force: bool = False) -> bool:
        """Save `state()` when it is time (`force`: in any case); whether it did.

        Raises: `OSError`, `TypeError` or `Damaged` when it could not; the checkpoints before are then still there.
        """
        start = time.monotonic()
        if not force and not self._throttle.due(start):
            return False
        self._recorder.sync()
        self._checkpoints.save(state(), step=step, offset=self._recorder.offset)
        self._throttle.spent(start, time.monotonic())
        return True

    def save_best(self, member: int, score: float, policy: Mapping[str, Any], *, step: int = 0) -> bool:
        """Keep `policy` as the best of `member` when its score is at least the best so far; whether it did."""
        if not score >= self._best.get(member, -math.inf):
            return False
        self._checkpoints.save_best(member, score, policy, step=step)
        self._best[member] = score
        return True

    def stop(self, reason: str) -> None:
        """Ask the run to stop; the first reason stays."""
        self._stopped = self._stopped or reason

    def stopping(self) -> str | None:
        """Why the run should end now, or None."""
        if self._stopped is None and self.settings.max_time is not None and time.monotonic() - self._start >= self.settings.max_time:
            self._stopped = "max_time"
        return self._stopped

    def hurry(self) -> None:
        """Called inside long phases: raise `SystemExit` (130, 143) when a signal came PATIENCE seconds ago and the phase has not ended since.

        What the run did after its newest checkpoint is then done again by the resumed one.
        """
        if self._signalled is not None and time.monotonic() - self._signalled >= PATIENCE:
            warn(f"stopped in the middle of a phase; --resume {self.folder} goes on from the newest checkpoint")
            raise SystemExit(130 if self._stopped == "SIGINT" else 143)

    def check_finite(self, step: int, **tensors: Any) -> None:
        """Stop the run when a tensor, array or number holds a NaN or an infinity: one pass over each.

        Raises: `NonFinite` that names it, the step and the first place, after writing that as an event. The checkpoints are left alone.
        """
        for name, value in tensors.items():
            if not all_finite(value):
                message = f"{name} at step {step}: {where_not_finite(value)}"
                self.event(step, "nonfinite", message)
                raise NonFinite(message)

    def reload(self) -> State | None:
        """The newest checkpoint, read from the disk now: what a resumed run would get (a dry run tries it)."""
        saved = self._checkpoints.load()
        return None if saved is None else saved.state

    def finish(self, step: int, metrics: Mapping[str, float], following: str | None = None) -> Summary:
        """The summary of the run; call `checkpoint(..., force=True)` before. A run that was stopped gets an event; a dry run says what it checked.

        Raises: `OSError` when a dry run finds too little space for the checkpoints of a real one.
        """
        stopped = self.stopping()
        if stopped is not None:
            self.event(step, "stopped", f"{stopped} at step {step}")
        self._recorder.sync()
        self._progress.close()
        if self.settings.dry_run:
            self._say_checked()
        return Summary(self.folder, step, stopped, {name: float(value) for name, value in metrics.items()}, following)

    def _say_checked(self) -> None:
        saved = self._checkpoints.load()
        size = 0 if saved is None else sum(path.stat().st_size for path in saved.folder.iterdir())
        free, need = shutil.disk_usage(self.folder).free, ROOM + 4 * size
        if free < need:
            raise OSError(errno.ENOSPC, f"dry run: {free / 1e6:.0f} MB are free, a run needs {need / 1e6:.0f} MB", str(self.settings.out))
        made = "no checkpoint was made" if saved is None else f"a checkpoint of {size / 1e3:.1f} kB was written and read back"
        warn(f"dry run: configuration and records written, {made}, {free / 1e9:.1f} GB are free; nothing is kept")

    # ---------------------------------------------------------------- signals and the end

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread() and not self._handlers:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and friends
                    self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._close()

    def _close(self) -> None:
        self._progress.close()
        self._sinks.close()
        self._recorder.close()
        self._let_go()
        if self.settings.dry_run:
            shutil.rmtree(self.folder)

    def _abandon(self) -> None:
        self._progress.abandon()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked environment worker has inherited this handler: the run's process decides, or ends it
            if number == signal.SIGTERM:
                os._exit(143)
            return
        if number == signal.SIGINT and self._stopped in ("SIGINT", "SIGTERM"):
            self._abandon()
            os._exit(130)
        self._stopped, self._signalled = signal.Signals(number).name, time.monotonic()
        if not self.settings.quiet:
            os.write(2, b"entreg: stopping and saving; Ctrl-C quits at once\n")  # print may not be called again inside itself
