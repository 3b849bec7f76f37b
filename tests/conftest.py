"""What every test has: one thread for small tensors, and no skip that is not listed where all extras are installed."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
VERL = ("integrations/verl_worker.py", "integrations/verl_actor.py", "integrations/verl_cpu.py")
HOSTS = {"lm/trainers.py": "trl", **dict.fromkeys(VERL, "verl")}  # not tests themselves, and their host may be missing
collect_ignore = [file for file, host in HOSTS.items() if find_spec(host) is None]
if "ENTREG_POSTGRES" not in os.environ:  # tests/postgres.sh starts the server
    collect_ignore.append("postgres_sweep.py")
ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With ENTREG_NO_SKIPS=1 a skipped test that `allowed_skips` does not list is a failure."""
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("ENTREG_NO_SKIPS") == "1":
        allowed = [line.split("#")[0].strip() for line in ALLOWED_SKIPS.read_text().splitlines()]
        if item.nodeid not in allowed:
            report.outcome = "failed"
            report.longrepr = f"skipped, but not listed in tests/allowed_skips: {item.nodeid}: {report.longrepr}"
