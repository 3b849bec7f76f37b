"""Mutation testing: every entry of `mutants.toml` is a one-line mistake that the tests it names must notice.

    python -m tests.mutation [--list FILE] [WORD ...]      in the repository's root; with words only the mutants in whose lines one of them stands

One process imports what takes long to import, and not entreg, and forks once a mutant; in the fork the mutated text is served in the place of the
module's file, which stays as it is. Only this process sees the mutant: tests that start others cannot kill it. One more fork runs all named tests
without a mutant. Killed means that a test failed; a mutant or a list that cannot be run at all is an error, and so is one that takes too long.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "entreg"
# with what torch imports when it is first needed: half a second each time
WARM = "numpy torch torch.testing torch._dynamo torch.fx.experimental.symbolic_shapes scipy.stats scipy.integrate scipy.optimize gymnasium hypothesis"
WARM += " pytest _pytest.unittest _pytest.junitxml doctest pdb safetensors.numpy tyro jaxtyping"
LIMIT = 300.0  # seconds for one fork: only what hangs takes so long, on the slowest machine too
STATUS = {0: "survived", 1: "killed", 2: "error: no collection", 3: "error inside pytest", 4: "error: no such test", 5: "error: no test", 6: "error: no import"}


class Mutant(NamedTuple):
    """`line`, which stands once in `file` (below src/entreg), becomes `mutant`; one of `tests` must fail."""

    file: str
    line: str
    mutant: str
    tests: list[str]

    def __str__(self) -> str:
        return f"{self.file}: {self.line}  ->  {self.mutant}"


def read(path: Path) -> list[Mutant]:
    """The mutants of a list; ValueError where one has no tests, or is the same as the code or another one."""
    mutants = [Mutant(**entry) for entry in tomllib.loads(path.read_text())["mutant"]]
    if wrong := [str(mutant) for mutant in mutants if not mutant.tests or mutant.line == mutant.mutant or mutants.count(mutant) > 1]:
        raise ValueError(f"no mutants: {wrong}")
    return mutants


def mutated(mutant: Mutant) -> str:
    """The text of the mutated module; ValueError where the line is not there exactly once, or is more than one line."""
    text = (SOURCE / mutant.file).read_text()
    if text.count(mutant.line) != 1 or "\n" in mutant.line + mutant.mutant:
        raise ValueError(f"{mutant}: the line stands {text.count(mutant.line)} times in the file; legal is one line that stands there once")
    text = text.replace(mutant.line, mutant.mutant)
    compile(text, mutant.file, "exec")
    return text


class Served(importlib.machinery.SourceFileLoader):
    """Finds and loads one module from memory; neither the source file nor compiled code is read or written."""

    def __init__(self, file: str, text: str) -> None:
        parts = Path("entreg", file).with_suffix("").parts
        super().__init__(".".join(parts[:-1] if parts[-1] == "__init__" else parts), str(SOURCE / file))
        self.text = text

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> object:
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return self.text


class Judge:
    """A module of tests that cannot be collected is an error of the list, whatever else pytest makes of it."""

    def pytest_collectreport(self, report) -> None:
        import pytest

        if report.failed:
            pytest.exit(str(report.longrepr), returncode=2)


def judged(served: Served | None, tests: Sequence[str], folder: Path) -> int:
    """Run the tests in this process, on a mutant or on the code as it is, and return pytest's exit status."""
    import pytest

    sys.path[:0] = [str(ROOT / "src")]
    if served is not None:
        sys.meta_path.insert(0, served)
        try:
            loader = importlib.import_module(served.name).__spec__.loader
        except Exception as error:  # whatever it is, no test has noticed it
            print(f"{type(error).__name__}: {error}")
            return 6
        assert loader is served
    options = ["-x", "--no-header", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--basetemp={folder}"]
    return int(pytest.main([*options, *tests], plugins=[Judge()]))


def fork(served: Served | None, tests: Sequence[str], folder: Path) -> int:
    """Start `judged` in a process of its own, what it prints in a file beside its folder, and return the process's number."""
    if number := os.fork():
        return number
    code = 3
    try:
        os.setsid()  # so that what it starts ends with it
        output = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if served is None:
            os.environ["ENTREG_NO_SKIPS"] = "1"  # a test that is skipped kills nothing
        code = judged(served, tests, folder)
        sys.stdout.flush()
    finally:
        os._exit(code)


def end(numbers: Iterable[int]) -> None:
    """Kill these forks and what they have started."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)


def run(jobs: Sequence[tuple[Served | None, Sequence[str]]], folder: Path) -> list[tuple[str, str]]:
    """What became of each job, and what it printed; as many at a time as there are cores."""
    waiting, running, results = list(range(len(jobs)))[::-1], {}, [("", "")] * len(jobs)
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                index = waiting.pop()
                running[fork(*jobs[index], folder / str(index))] = index, time.monotonic() + LIMIT
            end(number for number, (_, limit) in running.items() if time.monotonic() > limit)
            number, status = os.waitpid(-1, os.WNOHANG)
            if number == 0:
                time.sleep(0.02)
                continue
            index, _ = running.pop(number)
            code = os.waitstatus_to_exitcode(status)
            results[index] = STATUS.get(code, f"error: ended by signal {-code}"), (folder / f"{index}.txt").read_text(errors="replace")
    finally:
        end(running)
    return results


def warm() -> None:
    """Import what takes long, with one thread each, and settle what the tests of all forks share."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    os.environ.pop("PYTEST_ADDOPTS", None)
    for name in WARM.split():
        importlib.import_module(name)
    from hypothesis import Phase, settings

    # found is enough, the smallest counterexample is not needed; nothing is kept for later runs
    settings.register_profile("mutation", database=None, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    assert "entreg" not in sys.modules
    gc.freeze()  # pytest collects at its end, and would look at all of this: .6 s a fork


def main() -> int:
    """Run a list and say what survived; 0 when all mutants are killed and the code as it is passes."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("mutants.toml"))
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in read(arguments.list) if not arguments.words or any(word in str(mutant) for word in arguments.words)]
    served, faults = [], []
    for mutant in mutants:
        try:
            served.append(Served(mutant.file, mutated(mutant)))
        except (ValueError, SyntaxError) as fault:
            faults.append(str(fault))
    if faults:
        print(*faults, sep="\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
        warm()
        everything = sorted({test for mutant in mutants for test in mutant.tests})
        tests = [everything, *(mutant.tests for mutant in mutants)]
        (baseline, output), *results = run(list(zip([None, *served], tests, strict=True)), Path(folder))
    green = baseline == "survived"
    if not green:
        print(output)
    for mutant, (result, output) in zip(mutants, results, strict=True):
        if result != "killed":
            print(f"{result}: {mutant}", *output.splitlines()[-12:] if result != "survived" else (), sep="\n    ")
    killed = sum(result == "killed" for result, _ in results)
    print(f"baseline {'green' if green else 'RED'}, {killed} of {len(mutants)} mutants killed")
    return 0 if green and killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
