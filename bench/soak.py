"""The long fault tests: a records file cut at every byte, runs that are killed again and again (the disk that fails is in the suite), and broken logs.

    python -m bench.soak [--kills 30] [--logs 100000] [--seed 0]

Prints one line a part and exits with 1 when anything was lost, doubled or different. Each killed run is compared with an undisturbed one:
records without times, and the newest checkpoint bit for bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from tests import faults
from tests.diagnosis import junk

from entreg import disk
from entreg.record import FILE, Recorder, read_records
from entreg.state import pack


class Subject(NamedTuple):
    """A run to be killed: the command that starts it (the folder for runs goes in for OUT), and what makes it go on."""

    name: str
    command: list[str]
    resume: list[str]
    seconds: float  # the longest time until a kill: about that of a run

    def under(self, out: Path) -> tuple[list[str], list[str]]:
        """The two command lines with runs under `out`."""
        start = [str(out) if word == "OUT" else word for word in self.command]
        return start, [*start, *self.resume]


PPO = ("entreg.cli", "train", "ppo", "--out", "OUT", "--checkpoint-every", "0", "--quiet", "--no-video", "--hidden", "8")
SMALL = ("--environments", "4", "--rollout", "32", "--steps", "25600", "--eval-every", "4000", "--eval-episodes", "2")
SUBJECTS = [
    Subject("walk", faults.python("tests.toy", "--out", "OUT", "--steps", 400, "--pause", 0.004), ["--resume", "latest"], 1.5),
    Subject(
        "ppo", faults.python(*PPO, *SMALL, "--coef", "linear(0.01, 0)", "--coef", "TargetEntropy(0.4)", "--normalise-observation"), ["--resume", "latest"], 8.0
    ),
]


def cut_everywhere(out: Path, _: argparse.Namespace) -> str:
    """A records file cut at every byte length, appended to, and read."""
    rng = np.random.default_rng(0)
    with Recorder(out / "whole") as recorder:
        for step in range(40):
            recorder.log(step, entropy=float(rng.random()), note="a\n{" * int(rng.integers(4)), nan=float("nan"))
    data = (out / "whole" / FILE).read_bytes()
    for cut in range(len(data) + 1):
        (out / FILE).write_bytes(data[:cut])
        with Recorder(out) as recorder:
            recorder.log(-1)
        found = read_records(out)
        wanted = [*range(data[:cut].count(b"\n")), -1]
        assert [record["step"] for record in found.lines] == wanted and not found.skipped, f"cut at {cut}"
    return f"{len(data) + 1} lengths, 0 lines wrong"


def kill(subject: Subject, out: Path, args: argparse.Namespace) -> str:
    """`args.kills` SIGKILLs at random moments, some runs after another, each resumed until it ends."""
    fresh, _ = subject.under(out / "whole")
    ended = faults.finish(fresh)
    assert ended.code == 0, ended.err
    (whole,) = faults.started(out / "whole")
    draw, met, runs = random.Random(args.seed), 0, 0
    while met < args.kills:
        delays = [draw.uniform(0.05, subject.seconds) for _ in range(min(5, args.kills - met))]
        place = out / f"killed-{runs}"
        folder, hits = faults.kill_and_resume(*subject.under(place), place, delays)
        met, runs = met + hits, runs + 1
        assert faults.lasting(folder) == faults.lasting(whole), f"the records of {folder} differ (seed {args.seed}, delays {delays})"
        assert same(faults.final_state(folder), faults.final_state(whole)), f"the state of {folder} differs (seed {args.seed}, delays {delays})"
    return f"{met} kills over {runs} runs, {len(faults.lasting(whole))} records each: 0 lost, 0 doubled, states equal"


def broken_logs(out: Path, args: argparse.Namespace) -> str:
    """`entreg diagnose` on `args.logs` broken logs: it never raises."""
    met = {0: 0, 1: 0, 2: 0}

    @settings(max_examples=args.logs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(args.seed)
    @given(junk.logs())
    def each(log: tuple[str, bytes]) -> None:
        met[junk.check(out, *log)] += 1

    each()
    return f"{sum(met.values())} logs: {met[0]} without a failure, {met[1]} with one, {met[2]} refused or cut off, 0 tracebacks"


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states are equal bit for bit."""
    return pack(one) == pack(other)


def run(name: str, part: Callable[[Path, argparse.Namespace], str], args: argparse.Namespace) -> bool:
    """Run one part in a folder of its own, which stays where it failed; whether it held."""
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-"))
    start = time.monotonic()
    try:
        said = part(folder, args)
    except Exception:
        traceback.print_exc()
        print(f"{name}: FAILED, see {folder}", flush=True)
        return False
    disk.remove(folder)
    print(f"{name}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
    return True


def main() -> int:
    """All parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--logs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    held = [run("records", cut_everywhere, args), run("logs", broken_logs, args)]
    for subject in SUBJECTS:
        held.append(run(subject.name, lambda out, args, subject=subject: kill(subject, out, args), args))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
