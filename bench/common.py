"""What all benches share: where a figure was made, rows of CSV that can be continued, tables on pages."""

import csv
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entreg.statistics import Interval

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = HERE.parent / "docs" / "recipes"


def machine(*packages: str) -> dict[str, Any]:
    """Cores, processor, system, Python and the versions of `packages`: what every row ends with."""
    names = Path("/proc/cpuinfo")
    model = next((line.split(":")[1].strip() for line in names.read_text().splitlines() if line.startswith("model name")), "") if names.exists() else ""
    where = {"cores": os.cpu_count(), "processor": model or platform.processor(), "system": platform.system(), "python": platform.python_version()}
    return where | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def write(file: Path, rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> None:
    """A new file: `rows` with `where` (see `machine`) in each, floats to four decimals."""
    file.unlink(missing_ok=True)
    append(file, rows, where)


def append(file: Path, rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any] | None = None) -> None:
    """As `write`, after the rows that are there.

    Raises: `ValueError` when those have other columns.
    """
    lines = [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} | (where or {}) for row in rows]
    there = list(read(file))
    if there and list(there[0]) != list(lines[0]):
        raise ValueError(f"{file} has the columns {', '.join(there[0])}; these rows have {', '.join(lines[0])}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, lines[0], lineterminator="\n")
        if not there:
            writer.writeheader()
        writer.writerows(lines)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a file as texts; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" if cells else "|" + "---|" * len(head) for cells in (head, (), *rows))


def interval(found: Interval) -> str:
    """`value [low, high]` with four digits; a single seed has no interval."""
    return f"{float(found.value):.4g}" + (f" [{float(found.low):.4g}, {float(found.high):.4g}]" if found.n > 1 else "")


def onto_page(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two lines `<!-- name -->` of a page.

    Raises: `ValueError` when the page does not have the marker twice.
    """
    marker = f"<!-- {name} -->"
    parts = page.read_text(encoding="utf-8").split(marker)
    if len(parts) != 3:
        raise ValueError(f"{page} must have {marker} twice, has it {len(parts) - 1} times")
    page.write_text(marker.join((parts[0], f"\n{text}\n", parts[2])), encoding="utf-8")
