"""What `entreg diagnose` prints: findings on stdout, text or JSON, how logs were read on stderr, and the exit status."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entreg.diagnosis import DEFAULT_RULES, Log, diagnose_log, logs_of, read
from entreg.diagnosis.columns import BadLog
from entreg.diagnosis.names import check_given
from entreg.diagnosis.reading import facts_with
from entreg.finding import Finding
from entreg.folder import warn

LISTED = 12  # members that a line of a population lists


def run(
    paths: Sequence[str],
    *,
    columns: Sequence[str] = (),
    extra: Mapping[str, float | None] | None = None,
    as_json: bool = False,
    watch: float | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> int:
    """Diagnose the logs at `paths` and return the exit status: 1 with a finding of severity fail, 2 where a log is bad, else 0.

    `extra` are facts that logs do not hold. `watch`: look again every so many seconds and print what is new, until interrupted.
    """
    known = _checked(extra or {}, watch)
    check_given(columns)
    if watch is not None:
        return _follow(paths, columns, known, as_json, watch, wait)
    logs, status, unread = [], 0, dict[str, str]()
    for path in paths:
        for name, log in _logs(path, columns, known):
            if isinstance(log, str):
                unread[name] = log
            elif log.broken is not None:
                status = 2
            if not isinstance(log, str):
                logs.append((name, log))
                for note in [*log.notes, *([f"{log.broken}; what stands before is diagnosed"] if log.broken else [])]:
                    warn(f"{name}: {note}" if name not in note else note)
    results = [(name, log, diagnose_log(log)) for name, log in logs]
    if as_json:
        print(json.dumps(_page(results, unread)))
    for line in () if as_json else (line for result in results for line in _lines(*result)):
        print(line)
    failed = any(finding.severity == "fail" for _, _, findings in results for finding in findings)
    return 2 if unread else status or int(failed)


def _checked(extra: Mapping[str, float | None], watch: float | None) -> dict[str, float]:
    known = {name: value for name, value in extra.items() if value is not None}
    for name, flag in (("planned", "steps"), ("maximum", "max-entropy")):
        if name in known and not 0 < known[name] < math.inf:
            raise ValueError(f"{flag} is {known[name]}; legal is a finite number above 0")
    if not math.isfinite(known.get("best", 0.0)):
        raise ValueError(f"best is {known['best']}; legal is a finite number")
    if watch is not None and not 0.05 <= watch <= 86400:
        raise ValueError(f"watch is {watch}; legal are seconds from 0.05 to 86400")
    return known


def _logs(path: str, columns: Sequence[str], extra: Mapping[str, float]) -> list[tuple[str, Log | str]]:
    """Every log of a path, or what is wrong with it, which goes to stderr in one line too."""
    result: list[tuple[str, Log | str]] = []
    try:
        files = logs_of(Path(path))
    except (BadLog, OSError) as error:
        return [(path, _told(error, path))]
    for file in files:
        try:
            result.append((str(file), facts_with(read(file, columns), extra)))
        except (BadLog, OSError) as error:
            result.append((str(file), _told(error, str(file))))
    return result


def _told(error: Exception, path: str) -> str:
    """What is wrong, with the file's name, once it has been said on stderr."""
    text = f"{error.filename or path}: cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
    warn(text)
    return text


def _page(results: Sequence[tuple[str, Log, list[Finding]]], unread: Mapping[str, str]) -> dict[str, Any]:
    rules = [rule.__name__ for rule in DEFAULT_RULES]
    logs = [
        {
            "source": name,
            "host": log.traces[0].facts.host if log.traces else "",
            "members": len({trace.member for trace in log.traces}),
            "last_step": max((int(trace.last) for trace in log.traces), default=None),
            "columns": sorted({column for trace in log.traces for column in trace.columns}),
            "notes": log.notes,
            "cut_off": log.broken,
        }
        for name, log, _ in results
    ]
    findings = [asdict(finding) for _, _, findings in results for finding in findings]
    return {"rules": rules, "logs": logs, "unread": unread, "findings": findings}


def _lines(name: str, log: Log, findings: Sequence[Finding]) -> list[str]:
    """A log as text: where it is, then each rule that holds with the members in which it does, and what to do."""
    host = log.traces[0].facts.host if log.traces else ""
    columns = sorted({column for trace in log.traces for column in trace.columns})
    last = max((int(trace.last) for trace in log.traces), default=0)
    members = len(log.traces)
    head = f"{name}: {host or 'unknown trainer'}, to step {last}" + (f", {members} members" if members > 1 else "") + f", reads {', '.join(columns)}"
    lines = [head]
    for rule in dict.fromkeys((finding.severity, finding.rule) for finding in findings):
        of = [finding for finding in findings if (finding.severity, finding.rule) == rule]
        who = ""
        if members > 1:
            numbers = ", ".join(str(finding.member) for finding in of[:LISTED]) + (" ..." if len(of) > LISTED else "")
            who = f" in {len(of)} of {members} members ({numbers}; the first:)"
        lines += [f"  {rule[0]:4s} {rule[1]}{who} at step {of[0].step}: {of[0].evidence}", f"       -> {of[0].advice}"]
    return lines if findings else [*lines, f"  ok   none of {len(DEFAULT_RULES)} rules holds"]


def _follow(paths: Sequence[str], columns: Sequence[str], extra: Mapping[str, float], as_json: bool, every: float, wait: Callable[[float], object]) -> int:
    """Look again and again; a finding is printed when it is new, and once more when it was over in between. Ends with Ctrl-C: 1 where a failure is open."""
    told: set[tuple[str, str, int]] = set()
    stamps: dict[str, Any] = {}
    failed = False
    try:
        while True:
            stamp = {path: _stamp(Path(path)) for path in paths}
            if stamp != stamps:
                stamps = stamp
                logs = [(name, log) for path in paths for name, log in _logs(path, columns, extra) if not isinstance(log, str)]
                findings = [finding for _, log in logs for finding in diagnose_log(log)]
                now = {(finding.source, finding.rule, finding.member) for finding in findings}
                for finding in findings:
                    if (finding.source, finding.rule, finding.member) not in told:
                        print(json.dumps(asdict(finding)) if as_json else f"{finding.source}: {_who(finding)}{finding}", flush=True)
                told, failed = now, any(finding.severity == "fail" for finding in findings)
            wait(every)
    except KeyboardInterrupt:
        sys.stdout.flush()
    return int(failed)


def _who(finding: Finding) -> str:
    return f"member {finding.member}: " if finding.member else ""


def _stamp(path: Path) -> Any:
    """What changes when a log grows."""
    try:
        return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for one in logs_of(path) for file in _files(one)]
    except (OSError, ValueError) as error:
        return str(error)


def _files(log: Path) -> list[Path]:
    return [one for one in log.iterdir() if one.is_file()] if log.is_dir() else [log]
