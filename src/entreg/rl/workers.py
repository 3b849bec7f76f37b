"""Processes that learn together: started, heard, paused, ended, and never left behind.

A worker does rounds. After each it reports, and goes on without waiting: the answer to a report is read in the middle of the next round, when it has long
arrived. An answer says what is new and whether the next round is the last before a pause; a worker that pauses sends its state and waits. So the main process
decides who does which round, at most one answer is open, all workers together stand still at a known place, and a single worker is deterministic.

Processes are spawned, not forked: a fork would copy the threads' locks of torch and of the display in whatever state they are. They ignore the signals of the
terminal (the main process ends them), and end by themselves when the main process is gone, however it went.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch.multiprocessing  # noqa: F401  teaches the transport to pass tensors as file descriptors: their memory has no name that could be left behind

from entreg.finite import NonFinite

_GRACE = 1.0  # seconds that a worker which was told to end has for closing its environments
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerFailed(ChildProcessError):
    """A worker raised an error or died; the message names it and says what happened."""


class Answer(NamedTuple):
    """What a worker is told: `news` for the update of its round, and whether to `pause` after it."""

    news: Any
    pause: bool


class Line:
    """The worker's end of the line to the main process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rounds(self, begin: Callable[[], Any], end: Callable[[Any, Any], Any], state: Callable[[], Any]) -> None:
        """Do rounds until told to end: `begin()` what needs no news, `end(begun, news)` the rest, which gives the report; `state()` is sent at a pause."""
        answer = self._receive()
        fresh = True
        while answer is not None:
            begun = begin()
            if not fresh:
                answer = self._receive()
                if answer is None:
                    return
            self._connection.send(("report", end(begun, answer.news)))
            fresh = False
            if answer.pause:
                self._connection.send(("state", state()))
                answer, fresh = self._receive(), True

    def _receive(self) -> Answer | None:
        answer: Answer | None = self._connection.recv()
        return answer


def _serve(work: Callable[[Any, Line], None], job: Any, connection: Connection) -> None:
    """What a worker's process runs."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_follow, daemon=True).start()
    try:
        work(job, Line(connection))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        if not _gone():  # else the main process has hung up
            _tell(connection)
    except BaseException:
        _tell(connection)


def _gone() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or not parent.is_alive()


def _tell(connection: Connection) -> None:
    """Send what was raised to the main process; where it was raised goes to stderr, for the author of an environment."""
    error = sys.exc_info()[1]
    known = isinstance(error, NonFinite)
    if not known:
        traceback.print_exc()
    with suppress(OSError):
        connection.send(("failed", (str(error) if known else f"{type(error).__name__}: {error}", known)))


def _follow() -> None:
    """End this process with its parent, whatever it is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Crew:
    """The main process's side: one process a job, each running `work(job, line)`. A context: leaving it ends them all.

    >>> with Crew(print, []) as crew:
    ...     crew.paused
    True
    """

    def __init__(self, work: Callable[[Any, Line], None], jobs: Sequence[Any]) -> None:
        self._work, self._jobs = work, jobs
        self._lines: list[Connection] = []
        self._processes: list[Any] = []
        self._resting: dict[int, Any] = {}
        self._began: set[int] = set()

    def __enter__(self) -> "Crew":
        resource_tracker.ensure_running()  # it meddles with the signal mask when it starts
        context = multiprocessing.get_context("spawn")
        try:
            with _signals_held():
                for index, job in enumerate(self._jobs):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(self._work, job, theirs), name=f"worker {index}", daemon=True)
                    self._lines.append(ours)
                    process.start()
                    self._processes.append(process)
                    theirs.close()  # so that the line breaks when the worker dies
        except BaseException:
            self.__exit__()
            raise
        self._resting = dict.fromkeys(range(len(self._jobs)))
        return self

    def __exit__(self, *_: object) -> None:
        """Those that rest are asked to end and have a moment for it; the others have no time for questions."""
        for index, process in enumerate(self._processes):
            if index in self._resting and process.is_alive():
                with suppress(OSError):
                    self._lines[index].send(None)
            else:
                process.kill()
        for process in self._processes:
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for line in self._lines:
            line.close()
        self._processes, self._lines, self._resting = [], [], {}

    @property
    def paused(self) -> bool:
        """Whether every worker rests."""
        return len(self._resting) == len(self._processes)

    @property
    def states(self) -> list[Any]:
        """What each resting worker sent when it paused, None before its first round; in the order of the jobs."""
        assert self.paused
        return [self._resting[index] for index in range(len(self._processes))]

    def answer(self, index: int, news: Any, *, pause: bool) -> None:
        """Answer the report of a worker, or send one that rests into its next round."""
        self._resting.pop(index, None)
        with suppress(OSError):  # it is dead, which `reports` finds
            self._lines[index].send(Answer(news, pause))

    def reports(self, look: Callable[[], object], seconds: float = 0.1) -> Iterator[tuple[int, Any]]:
        """(worker, report) as they come, until all workers rest; each must be answered unless that worker was told to pause. `look()` is called in between.

        Raises: `WorkerFailed`, or `NonFinite` for a number that is not finite.
        """
        while not self.paused:
            look()
            busy = [index for index in range(len(self._processes)) if index not in self._resting]
            ready = wait([*(self._lines[i] for i in busy), *(self._processes[i].sentinel for i in busy)], seconds)
            for index in busy:
                if self._lines[index] in ready:
                    yield from self._heard(index)
                elif self._processes[index].sentinel in ready:
                    self._died(index)

    def _heard(self, index: int) -> Iterator[tuple[int, Any]]:
        try:
            kind, content = self._lines[index].recv()
        except (EOFError, OSError):
            self._died(index)
        self._began.add(index)
        if kind == "report":
            yield index, content
        elif kind == "state":
            self._resting[index] = content
        else:
            message, known = content
            raise (NonFinite if known else WorkerFailed)(f"worker {index}: {message}")

    def _died(self, index: int) -> None:
        process = self._processes[index]
        process.join(_GRACE)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended by itself with exit status {code}"
        raise WorkerFailed(f"worker {index} {how}" + (f" before it did anything: {GUARD}" if code == 1 and index not in self._began else ""))


GUARD = "does the script guard its call of train with `if __name__ == '__main__'`?"


def check_main() -> None:
    """Raise `ValueError` in a process that is only loading the main script in order to become a worker, before it begins a run of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself looks at, when it is too late for us
        raise ValueError(f"workers: a worker cannot begin a run; {GUARD}")


def sendable(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` can be sent to another process.

    >>> sendable("env_kwargs", {"reward": lambda state: 0.0})
    Traceback (most recent call last):
    ValueError: env_kwargs cannot be sent to another process: ...
    """
    try:
        ForkingPickler.dumps(value)
    except Exception as error:  # whatever an object's own reduction raises
        raise ValueError(f"{name} cannot be sent to another process: {error}") from error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals of the terminal wait until the block ends; a process that is started inside begins with them blocked, and loads its modules in peace."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
