"""Files that are one JSON value, read at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entreg.diagnosis.columns import BadLog


def read_page(path: Path, largest: int) -> Any:
    """The value in a file of at most `largest` bytes.

    Raises: `BadLog` for what is longer or no JSON, with its line.
    """
    if path.stat().st_size > largest:
        raise BadLog(f"{path}: {path.stat().st_size} bytes; legal are {largest}")
    try:
        return json.loads(path.read_bytes().decode())
    except json.JSONDecodeError as error:
        raise BadLog(f"{path}, line {error.lineno}: no JSON ({error.msg}): cut off?") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadLog(f"{path}, line 1: no JSON text ({type(error).__name__})") from None
