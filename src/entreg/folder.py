"""Run folders: their names, `config.json`, and finding the one to go on with.

`runs/<recipe>-<task>-<seed>-<time>/`: letters, digits, dot, dash and underscore only, so that every file system takes it; no links.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from entreg import disk
from entreg.record import FILE as RECORDS

COEFS = ("coef", "conditional", "marginal")  # settings that weigh an entropy
CONFIG = "config.json"
LOCK = ".lock"
DRY = ".dry-run-"
PACKAGES = ("entreg", "torch", "numpy", "gymnasium")


def slug(text: str) -> str:
    """`text` as a part of a folder name: every run of other characters is one dash, 60 characters at most.

    >>> slug("ALE/Pong-v5"), slug("my_envs.maze:Maze-v0"), slug("..")
    ('ALE-Pong-v5', 'my_envs.maze-Maze-v0', 'x')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60].rstrip("-.") or "x"


def new_folder(out: Path, recipe: str, task: str, seed: int) -> Path:
    """Make a folder that was not there before, `out` too where needed; nothing stays when that fails.

    Raises: `OSError` that says in one line which folder could not be made and why.
    """
    name = "-".join([slug(recipe), slug(task), str(seed), datetime.now().strftime("%Y%m%d-%H%M%S")])
    made: list[Path] = []
    try:
        for parent in reversed([path for path in (out, *out.parents) if not path.exists()]):
            disk.make_folder(parent)
            made.append(parent)
        return _first_free(out, name)
    except OSError as error:
        for parent in reversed(made):
            parent.rmdir()
        raise _one_line(error, out) from None


def _first_free(out: Path, name: str) -> Path:
    for number in range(1, 1000):
        folder = out / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # somebody was faster
                disk.make_folder(folder)
                return folder
    raise FileExistsError(errno.EEXIST, "a thousand runs began in this second")


def dry_folder(out: Path) -> Path:
    """A folder for a run that keeps nothing, on the file system on which `out` is or would be; raises as `new_folder` does."""
    near = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    try:
        return Path(tempfile.mkdtemp(prefix=DRY, dir=near))
    except OSError as error:
        raise _one_line(error, out) from None


def _one_line(error: OSError, out: Path) -> OSError:
    return type(error)(error.errno, f"out: cannot make a run folder ({error.strerror})", str(out))


def describe(
    recipe: str,
    task: str,
    config: Any,
    settings: Any,
    *,
    members: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
    spell: Callable[[Any], Any] = repr,
) -> bytes:
    """The bytes of `config.json`: alone enough to run it again.

    Raises: `TypeError` for what `spell` turns into no JSON value.
    """
    page = {
        "recipe": recipe,
        "task": task,
        "config": plain(config, spell),
        "run": plain(settings, spell),
        "members": [plain(member, spell) for member in members],
        "command": command,
        "versions": versions(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    return json.dumps(page, indent=1).encode() + b"\n"


def plain(value: Any, spell: Callable[[Any], Any]) -> Any:
    """`value` as JSON: the outermost dataclass by its fields, tuples as lists, paths as text, everything else as `spell` writes it.

    >>> plain({"coef": (0.5, None), "out": Path("runs"), "rule": slice(2)}, repr)
    {'coef': [0.5, None], 'out': 'runs', 'rule': 'slice(None, 2, None)'}
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _item(item, spell) for key, item in value.items()}
    return _item(value, spell)


def _item(value: Any, spell: Callable[[Any], Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _item(item, spell) for key, item in value.items()}
    if isinstance(value, list) or type(value) is tuple:  # a NamedTuple (a Family) is one thing and has a spelling
        return [_item(item, spell) for item in value]
    return spell(value)


def versions() -> dict[str, Any]:
    """What the numbers of a run may depend on: versions of packages (None where absent), Python, cores, platform."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "python": platform.python_version(), "cores": os.cpu_count(), "platform": platform.platform()}


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of a run folder.

    Raises: `ValueError` that names the folder when it is no run folder.
    """
    path = Path(folder) / CONFIG
    try:
        page = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no run folder: {CONFIG} cannot be read ({error})") from None
    if not isinstance(page, dict) or not {"recipe", "task", "config", "run"} <= page.keys():
        raise ValueError(f"{folder} is no run folder: {CONFIG} lacks recipe, task, config or run")
    if not isinstance(page["run"], dict):
        raise ValueError(f"{folder} is no run folder: run in {CONFIG} is {page['run']!r:.80}; legal is an object")
    return page


def find_run(resume: str | os.PathLike[str], out: Path = Path("runs"), recipe: str | None = None) -> Path:
    """The run folder to go on with: `resume` itself, or with `"latest"` the one under `out` (of `recipe`) that last wrote a record or checkpoint.

    Raises: `ValueError` where there is none, or where it is one of another recipe.
    """
    if str(resume) != "latest":
        found = read_config(resume)["recipe"]
        if recipe not in (None, found):
            raise ValueError(f"resume is {str(resume)!r}, a run of {found}; legal are runs of {recipe}")
        return Path(resume)
    folders = [path for path in (out.iterdir() if out.is_dir() else ()) if not path.name.startswith(DRY)]
    runs = [(used, path) for path in folders if (used := _last_used(path, recipe)) is not None]
    if not runs:
        raise ValueError(f"resume is 'latest', and {out} holds no run{f' of {recipe}' if recipe else ''} with records or a checkpoint")
    return max(runs)[1]


def _last_used(folder: Path, recipe: str | None) -> float | None:
    try:
        if recipe not in (None, read_config(folder)["recipe"]):
            return None
    except ValueError:
        return None
    times = [path.stat().st_mtime for path in (folder / RECORDS, folder / "checkpoint") if path.exists()]
    return max(times, default=None)


def hold(folder: Path) -> int | None:
    """Keep other processes from writing this run, until the descriptor that is returned is closed; a process that dies lets go by itself.

    A lock of the process (`lockf`), so that worker processes do not inherit it. Windows has none: None.

    Raises: `ValueError` when another process holds it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"resume is {str(folder)!r}, which another process is writing; legal is a run that has ended") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def setting_name(settings: Mapping[str, Any]) -> str:
    """How closing lines and reports call a setting: coefficients and family first, the seed left out.

    >>> setting_name({"bonus": "exact", "family": "shannon", "coef": "0.1", "seed": 3})
    'coef 0.1, shannon, bonus exact'
    """
    words = [f"{name} {settings[name]}" for name in COEFS if name in settings] + ([str(settings["family"])] if "family" in settings else [])
    return ", ".join([*words, *(f"{name} {value}" for name, value in settings.items() if name not in (*COEFS, "family", "seed"))])


def warn(text: str) -> None:
    """One line on stderr, control characters of foreign names spelled out; a stderr that is gone (a closed terminal) is no reason to stop."""
    line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    with contextlib.suppress(OSError, ValueError):
        print(f"entreg: {line}", file=sys.stderr, flush=True)
