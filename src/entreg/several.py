"""The type of a setting of which several are compared: on the command line its flag is given once for each, and what is given replaces the default."""

from __future__ import annotations

from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")


def _hint(default: str) -> str:
    return f"(repeatable; default: {default})" if default not in ("", "()") else "(repeatable)"


Several = Annotated[tuple[T, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help_behavior_hint=_hint)]
