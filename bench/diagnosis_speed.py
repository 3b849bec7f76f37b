"""How fast and in how much memory `entreg diagnose` reads long logs: a million rows of CSV and of JSONL, with orjson and with the standard library.

    python -m bench.diagnosis_speed [--rows 1000000]

Each log is read in a process of its own: CPU seconds and peak memory of that process, from start to exit. Goal: 6 seconds, memory that does not grow with rows.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import RESULTS, machine, write

READ = "import sys{block}; from entreg import cli; sys.exit(cli.main(['diagnose', sys.argv[1]]))"
BLOCK = "; sys.modules['orjson'] = None"


def make(path: Path, rows: int) -> Path:
    """A log of one run of so many steps, as a loop with a recorder would write it."""
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("step,entropy,reward,coef,loss,kl\n")
        form = (
            "{},{:.6f},{:.4f},{:.6g},{:.6f},{:.6f}\n"
            if path.suffix == ".csv"
            else ('{{"step": {}, "entropy": {:.6f}, "reward": {:.4f}, "coef": {:.6g}, "loss": {:.6f}, "kl": {:.6f}}}\n')
        )
        for step in range(rows):
            part = step / rows
            file.write(form.format(step, 1.386 - 0.9 * part, 100 * part + math.sin(step), 0.01 * (1 - part), math.cos(step), 0.01 * math.sin(step) ** 2))
    return path


def measure(path: Path, block: str) -> tuple[float, float, int]:
    """CPU seconds, peak megabytes and exit status of reading a log."""
    code = (
        "import resource, subprocess, sys; ended = subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]], stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, ended.returncode)"
    )
    words = subprocess.run([sys.executable, "-c", code, READ.format(block=block), str(path)], check=True, text=True, capture_output=True).stdout.split()
    return float(words[0]), float(words[1]), int(words[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "diagnosis_speed.csv")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, block in (("log.csv", ""), ("log.jsonl", ""), ("log.jsonl", BLOCK)):
            for count in (args.rows // 10, args.rows):
                path = make(Path(folder) / name, count)
                seconds, megabytes, status = measure(path, block)
                reader = "csv" if name == "log.csv" else "json" if block else "orjson"
                rows.append(
                    {
                        "file": name,
                        "reader": reader,
                        "rows": count,
                        "megabytes": path.stat().st_size / 1e6,
                        "cpu_seconds": seconds,
                        "peak_megabytes": megabytes,
                        "exit": status,
                    }
                )
                print(rows[-1], flush=True)
    write(args.out, rows, machine("numpy", "orjson"))


if __name__ == "__main__":
    main()
