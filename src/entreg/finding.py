"""A finding: what `diagnose` says of a run and `lint` of one batch. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `rule` names it, `evidence` has the numbers, `advice` the setting or the line to change.

    `step` is that of the record where it shows (0: none, as of a single batch), `member` one of a population, `source` the log. Raises ValueError for another
    severity.

    >>> print(Finding("collapsed", "fail", 1200, "entropy 0.01 of 1.39 nats", "coef: raise it to 0.02"))
    fail collapsed at step 1200: entropy 0.01 of 1.39 nats; coef: raise it to 0.02
    """

    rule: str
    severity: Severity
    step: int
    evidence: str
    advice: str
    member: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if self.severity not in get_args(Severity):
            raise ValueError(f"Finding: severity={self.severity!r}; legal: {', '.join(get_args(Severity))}")

    def __str__(self) -> str:
        """One line."""
        where = f" at step {self.step}" if self.step else ""
        return f"{self.severity} {self.rule}{where}: {self.evidence}; {self.advice}"
