"""Sinks get the same numbers as the records; one that fails says so once and is dropped."""

import sys
import types

import pytest

from entreg import sinks
from entreg.run import Run, RunSettings
from tests import faults

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


def test_tensorboard_holds_what_the_records_hold(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.open("toy", "x", PAGE["config"], RunSettings(out=tmp_path, track=("tensorboard",), quiet=True)) as run:
        for step in range(3):
            run.log(step, entropy=0.25 * step)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("entropy")] == [(0, 0.0), (1, 0.25), (2, 0.5)]


REAL = """
import sys
from entreg.run import Run, RunSettings
with Run.open("toy", "x", {"a": 1}, RunSettings(out=sys.argv[1], track=("trackio", "wandb"), quiet=True)) as run:
    for step in range(3):
        run.log(step, member=0, entropy=0.5)
"""


@pytest.mark.slow
def test_trackio_and_wandb_themselves_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    pytest.importorskip("wandb")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    ended = faults.finish([sys.executable, "-c", REAL, str(tmp_path)])
    assert ended.code == 0 and ended.out == "" and "dropped" not in ended.err, ended
    (folder,) = faults.started(tmp_path)
    assert list(folder.glob("wandb/offline-run-*/*.wandb")) and (tmp_path / "trackio" / "entreg.db").stat().st_size > 0


def test_unknown_and_missing_ones_are_said_before_anything_is_made(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="legal are tensorboard, trackio, wandb"):
        Run.open("toy", "x", {}, RunSettings(out=tmp_path / "runs", track=("tensorbord",)))
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'entreg\[track\]'"):
        Run.open("toy", "x", {}, RunSettings(out=tmp_path / "runs", track=("wandb",)))
    assert not (tmp_path / "runs").exists()
