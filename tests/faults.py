"""What the fault tests share: a disk whose n-th call fails, processes that are killed or told to stop, and comparing what is left."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from entreg import disk
from entreg.checkpoint import Checkpoints
from entreg.record import Record, read_records

ROOT = Path(__file__).parent.parent
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO)
VOLATILE = ("time", "steps_per_second")  # what differs between two runs that are the same


class FaultyDisk:
    """Counts the calls of `entreg.disk` in `calls`; call number `at` (from 0) raises `OSError(error)`, with `dead` every later one too.

    A write that fails has written half of its bytes, as on a disk that is full.
    """

    def __init__(self, at: int | None = None, error: int = errno.EIO, *, dead: bool = False) -> None:
        self.at, self.error, self.dead = at, error, dead
        self.calls: list[str] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[FaultyDisk]:
        """While this is open, `entreg.disk` fails as told."""
        with mock.patch.multiple(disk, **{name: self._counted(name, getattr(disk, name)) for name in disk.FALLIBLE}):
            yield self

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            if self.at is not None and (number == self.at or (self.dead and number > self.at)):
                if name == "write" and number == self.at:
                    real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(self.error, os.strerror(self.error), name)
            return real(*args)

        return call


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder for a moment, in memory where the system has such a place: thousands of small files wait for no disk that others use."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None, prefix="entreg-test-") as folder:
        yield Path(folder)


def python(module: str, *args: object) -> list[str]:
    """The command line of a module of this repository."""
    return [sys.executable, "-m", module, *map(str, args)]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start `command` in the repository, its output kept."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def wait(process: subprocess.Popen[str], seconds: float = 120) -> Ended:
    """Wait for the end; a process that does not end is killed, and that is an error."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, out, err)


def finish(command: Sequence[str]) -> Ended:
    """Run `command` to its end."""
    return wait(start(command))


def signal_when(command: Sequence[str], phrase: str, number: int, again: str | None = None) -> Ended:
    """Run `command`, send it signal `number` when it says `phrase` on stdout, and once more when it says `again` on stderr."""
    process = start(command)
    assert process.stdout is not None and process.stderr is not None
    if any(phrase in line for line in process.stdout):
        process.send_signal(number)
    if again is not None and any(again in line for line in process.stderr):
        process.send_signal(number)
    return wait(process)


def kill_and_resume(fresh: Sequence[str], resume: Sequence[str], out: Path, delays: Sequence[float]) -> tuple[Path, int]:
    """Run to the end a command that is SIGKILLed after each of `delays` seconds and resumed: its folder, and how many kills met it alive.

    `fresh` starts the run under `out`, `resume` goes on with it.
    """
    met = 0
    for delay in delays:
        process = start(resume if started(out) else fresh)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        ended = wait(process)
        assert ended.code in (0, -signal.SIGKILL), ended.err
        met += ended.code != 0
    ended = finish(resume if started(out) else fresh)
    assert ended.code == 0, ended.err
    folders = started(out)
    assert len(folders) == 1, folders
    return folders[0], met


def started(out: Path) -> list[Path]:
    """The run folders under `out` that have begun."""
    return [path for path in (out.iterdir() if out.is_dir() else ()) if (path / "config.json").exists() and (path / "records.jsonl").exists()]


def lasting(folder: Path) -> list[Record]:
    """The records of a run without its events and without what differs between two runs that are the same."""
    found = read_records(folder)
    assert found.skipped == 0
    return [{name: value for name, value in record.items() if name not in VOLATILE} for record in found.lines if "event" not in record]


def final_state(folder: Path) -> dict[str, Any]:
    """The state of the newest checkpoint of a run."""
    messages: list[str] = []
    saved = Checkpoints(folder / "checkpoint", messages.append).load()
    assert saved is not None and not messages, messages
    return saved.state


def processes() -> list[int]:
    """All processes of the machine, by /proc."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int | None:
    """The parent of a process; None where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
