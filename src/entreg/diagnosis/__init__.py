"""Diagnosis: what went wrong with entropy in a run, from its records or from the log of somebody else's trainer.

`diagnose(records)` asks the rules about records in memory, `read(path)` and `diagnose_log` about files; the command line is `entreg diagnose`. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from entreg.diagnosis.coefficients import oscillating, runaway, saturated, schedule
from entreg.diagnosis.findings import Rule
from entreg.diagnosis.gather import Gather, Log
from entreg.diagnosis.policies import collapsed, collapsing, exploded, marginal_collapse, no_effect, should_decay
from entreg.diagnosis.reading import logs_of, read
from entreg.diagnosis.tables import as_floats
from entreg.diagnosis.traces import Facts, Trace
from entreg.finding import Finding
from entreg.record import Record

__all__ = ["DEFAULT_RULES", "Finding", "Log", "Rule", "Trace", "diagnose", "diagnose_log", "judge", "logs_of", "read"]

DEFAULT_RULES: tuple[Rule, ...] = (
    *(collapsed, collapsing, exploded, no_effect, should_decay),
    *(saturated, oscillating, runaway, marginal_collapse, schedule),
)


def diagnose(records: Sequence[Record], rules: Sequence[Rule] = DEFAULT_RULES) -> list[Finding]:
    """What the rules find in records (`Recorder.log`, or dictionaries with the names of any trainer that `read` knows), member by member.

    Raises: `ValueError` for a value that is no number, and where no record has an entropy or a coefficient.

    >>> fallen = [{"step": step, "entropy": 0.69 * 0.8**step, "entropy/max": 0.8**step, "return": 9.0 + step % 2} for step in range(40)]
    >>> [(one.rule, one.severity, one.step) for one in diagnose(fallen)]
    [('collapsed', 'fail', 14)]
    """
    gather = Gather(Path("records"), {})
    kept = [record for record in records if "event" not in record]
    if kept:
        names = gather.wanted(dict.fromkeys(name for record in kept for name in record))
        columns = {name: as_floats([record.get(name) for record in kept], lambda at, name=name: f"record {at}: {name}") for name in names}  # type: ignore[misc]
        gather.rows(columns, range(len(kept)), {name: np.array([record.get(name) is None for record in kept]) for name in names})
    return diagnose_log(gather.log(Facts()), rules)


def diagnose_log(log: Log, rules: Sequence[Rule] = DEFAULT_RULES) -> list[Finding]:
    """What the rules find in a log, the worst first."""
    found = [finding for trace in log.traces for finding in judge(trace, rules)]
    return sorted(found, key=lambda one: (-("info", "warn", "fail").index(one.severity), one.rule, one.source, one.member))


def judge(trace: Trace, rules: Sequence[Rule] = DEFAULT_RULES) -> list[Finding]:
    """What the rules find in one trace, in their order; of two that say the same the stronger one."""
    found = [finding for rule in rules if (finding := rule(trace)) is not None]
    names = {finding.rule for finding in found}
    hidden = ({"saturated"} if "runaway" in names else set()) | ({"should_decay"} if "exploded" in names else set())
    return [finding for finding in found if finding.rule not in hidden]
