"""Sinks get the same numbers as the records; one that fails says so once and is dropped."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import types

import pytest

from entreg import sinks
from entreg.record import read_records
from entreg.run import Run, RunSettings
from tests import faults

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = {"recipe": "ppo", "task": "x", "config": {"a": 1}, "run": {}}
RECORD = {"step": 3, "time": 1.0, "member": 1, "entropy": 0.5, "entropy/max": 0.7, "note": "text"}


class Fake:
    """Stands for a tracker's module and run; raises where told."""

    def __init__(self, fail=None):
        self.fail, self.calls = fail, []

    def _call(self, name, *args):
        self.calls.append((name, *args))
        print("chatter")
        if name == self.fail:
            raise RuntimeError("no network\nhere")

    def init(self, **options):
        self._call("init", options["name"], options["config"])
        return self

    def log(self, scalars, step):
        self._call("log", step, scalars)

    def finish(self):
        self._call("finish")


def use(monkeypatch, name, fake):
    module = types.ModuleType(name)
    module.init, module.finish = fake.init, fake.finish
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackers_get_the_numbers(monkeypatch, tmp_path, capsys, name):
    fake = Fake()
    use(monkeypatch, name, fake)
    opened = sinks.Sinks([name, name], tmp_path, PAGE, members=2)
    opened.log(RECORD)
    opened.log({"step": 4, "event": "stopped", "message": "SIGINT"})
    opened.close()
    opened.close()
    assert fake.calls == [("init", tmp_path.name, PAGE), ("log", 3, {"entropy/member-1": 0.5, "entropy/max/member-1": 0.7}), ("finish",)]
    out, err = capsys.readouterr()
    assert out == "" and "chatter" in err  # stdout is for results


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_one_that_fails_is_dropped_with_one_line(monkeypatch, tmp_path, capsys, fail):
    broken, well = Fake(fail), Fake()
    use(monkeypatch, "wandb", broken)
    use(monkeypatch, "trackio", well)
    opened = sinks.Sinks(["wandb", "trackio"], tmp_path, PAGE)
    for _ in range(3):
        opened.log(RECORD)
    opened.close()
    assert [call[0] for call in well.calls] == ["init", "log", "log", "log", "finish"]
    assert [call[0] for call in broken.calls].count(fail) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("entreg:")]
    assert lines == ["entreg: wandb is dropped, the run goes on: RuntimeError: no network here"]


REAL = """
import sys
from entreg.run import Run, RunSettings
with Run.open("toy", "x", {"a": 1}, RunSettings(out=sys.argv[1], track=("tensorboard", "trackio", "wandb"), quiet=True)) as run:
    for step in range(3):
        run.log(step, member=0, entropy=0.5 + 0.25 * step)
"""
LOGGED = [(0, 0.5), (1, 0.75), (2, 1.0)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that all three trackers themselves have followed, without a network: its folder, and trackio's."""
    for name in ("tensorboard", "trackio", "wandb"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        ended = faults.finish([sys.executable, "-c", REAL, str(folder)])
    assert ended.code == 0 and ended.out == "" and "dropped" not in ended.err, ended
    (run,) = faults.started(folder)
    return run, folder / "trackio"


def wandb_history(data):
    """Steps and entropies of an offline run's file: records in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto import wandb_internal_pb2

    place, parts = 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        left = 32768 - place % 32768
        if left < 7 or kind == 0:
            place += left
            continue
        parts, place = parts + data[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                yield row["_step"], row["entropy"]


@pytest.mark.slow
def test_all_three_hold_what_the_records_hold(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, trackio = tracked
    assert [(line["step"], line["entropy"]) for line in read_records(run).lines] == LOGGED
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("entropy")] == LOGGED
    with contextlib.closing(sqlite3.connect(trackio / "entreg.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(metrics)["entropy"]) for name, step, metrics in rows] == [(run.name, *line) for line in LOGGED]
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert list(wandb_history(file.read_bytes())) == LOGGED


SERVERS = {
    "tensorboard": ("tensorboard.main", "--logdir", "{out}", "--port", "0", "--load_fast=false"),
    "trackio": ("trackio.cli", "show", "--project", "entreg"),
}


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("name", SERVERS)
def test_their_pages_show_the_entropy(tracked, tmp_path, name):
    run, trackio = tracked
    module, *options = (part.format(out=run.parent) for part in SERVERS[name])
    environment = {**os.environ, "TRACKIO_DIR": str(trackio), "GRADIO_ANALYTICS_ENABLED": "False", "BROWSER": "true", "PYTHONUNBUFFERED": "1"}
    said = tmp_path / "said"
    with said.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", module, *options], env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while (
            (found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+", said.read_text())) is None and time.monotonic() < deadline and server.poll() is None
        ):
            time.sleep(0.2)
        assert found is not None, said.read_text()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1200", "--virtual-time-budget=20000", "--dump-dom"]
        page = subprocess.run([*command, found[0] + "/?project=entreg"], capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        server.terminate()
        server.wait(30)
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert run.name in text and ">entropy<" in re.sub(r"\s+", "", text) and ("<canvas" in text or "<svg" in text)


def test_unknown_and_missing_ones_are_said_before_anything_is_made(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="legal are tensorboard, trackio, wandb"):
        Run.open("toy", "x", {}, RunSettings(out=tmp_path / "runs", track=("tensorbord",)))
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'entreg\[track\]'"):
        Run.open("toy", "x", {}, RunSettings(out=tmp_path / "runs", track=("wandb",)))
    assert not (tmp_path / "runs").exists()
