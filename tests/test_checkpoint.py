"""Checkpoints: one call of the disk fails, each in turn, and an older state always loads; what is damaged is passed over with a word."""

import shutil

import numpy as np
import pytest
import torch

from entreg import checkpoint, disk
from entreg.checkpoint import Checkpoints, Damaged, Throttle, load_best, read_folder
from tests.faults import ERRORS, FaultyDisk, memory_folder


@pytest.fixture
def tmp_path():
    with memory_folder() as folder:
        yield folder


def state(step):
    return {"weight": torch.full((3,), float(step)), "buffer": np.arange(step), "step": step}


def loaded(folder):
    messages = []
    saved = Checkpoints(folder, messages.append).load()
    return None if saved is None else saved.facts["step"], messages


def test_the_last_two_stay_and_the_newest_loads(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoints = Checkpoints(folder)
    assert checkpoints.load() is None
    for step in range(5):
        checkpoints.save(state(step), step=step, offset=10 * step)
    assert sorted(path.name for path in folder.iterdir()) == ["state-00000004", "state-00000005"]
    saved = Checkpoints(folder).load()
    assert saved.facts == {"step": 4, "offset": 40} and torch.equal(saved.state["weight"], torch.full((3,), 4.0))
    assert saved.state["buffer"].tolist() == [0, 1, 2, 3] and saved.state["step"] == 4


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.TREE, checkpoint.MANIFEST])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_damage_is_seen_and_the_one_before_loads(tmp_path, name, how):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        newest = checkpoints.save(state(step), step=step, offset=0)
    file = newest / name
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes({"flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "cut": data[:-1], "empty": b""}[how])
    step, messages = loaded(tmp_path)
    assert step == 1 and len(messages) == 1 and newest.name in messages[0]
    with pytest.raises(Damaged):
        read_folder(newest)
    again = Checkpoints(tmp_path)  # the damaged one does not push out the good one
    again.load()
    again.save(state(3), step=3, offset=0)
    shutil.rmtree(max(tmp_path.glob("state-*")))
    assert loaded(tmp_path) == (1, [])


def save_three(folder):
    """Three states and two best policies; yields the step after each state that was saved."""
    checkpoints = Checkpoints(folder)
    checkpoints.load()
    for step in (1, 2, 3):
        checkpoints.save(state(step), step=step, offset=0)
        yield step
        checkpoints.save_best(0, step, {"weights": state(step)}, step=step)


def survives(folder, n, error, dead):
    """With call `n` of the disk failing: the error is raised, the newest state that was saved loads, and the next process finds no obstacle."""
    done = 0
    with FaultyDisk(n, error, dead=dead).installed() as faulty, pytest.raises(OSError) as caught:
        for step in save_three(folder):
            done = step
    assert caught.value.errno == error
    step, messages = loaded(folder)
    assert (step or 0) in (done, done + 1) and not messages, (n, faulty.calls[n])
    assert Checkpoints(folder).best_scores().get(0, 0) in (done - 1, done) or done == 0, (n, faulty.calls[n])
    assert list(save_three(folder)) == [1, 2, 3]
    assert not list(folder.glob("tmp-*")) and load_best(folder, 0).facts["score"] == 3
    shutil.rmtree(folder)


def calls_of_the_disk(folder):
    with FaultyDisk().installed() as counted:
        assert list(save_three(folder)) == [1, 2, 3]
    return len(counted.calls)


@pytest.mark.parametrize("dead", [False, True])
def test_every_call_of_the_disk_fails_once_or_for_good(tmp_path, dead):
    count = calls_of_the_disk(tmp_path / "count")
    assert count > 80
    for n in range(count):
        for error in ERRORS:
            survives(tmp_path / f"{n}", n, error, dead)


def test_what_does_not_read_back_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), step=1, offset=0)
    checkpoints.save_best(0, 1.0, state(1), step=1)
    write = disk.write
    monkeypatch.setattr(disk, "write", lambda file, data: write(file, bytes([data[0] ^ 1]) + data[1:]))  # a disk that lies
    with pytest.raises(Damaged):
        checkpoints.save(state(2), step=2, offset=0)
    with pytest.raises(Damaged):
        checkpoints.save_best(0, 2.0, state(2), step=2)
    assert loaded(tmp_path) == (1, []) and load_best(tmp_path, 0).facts["score"] == 1.0


def test_what_cannot_be_saved_leaves_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), step=1, offset=0)
    with pytest.raises(TypeError, match="wrong: a object"):
        checkpoints.save({"wrong": object()}, step=2, offset=0)
    assert loaded(tmp_path) == (1, [])


def test_the_best_of_each_member(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="member 0"):
        load_best(tmp_path, 0)
    for member, score in ((0, 1.0), (11, -2.5), (0, 3.0)):
        checkpoints.save_best(member, score, {"weights": {"w": torch.tensor([score])}, "normaliser": None}, step=7)
    assert checkpoints.best_scores() == {0: 3.0, 11: -2.5}
    best = load_best(tmp_path, 0)
    assert best.state["weights"]["w"].item() == 3.0 and best.state["normaliser"] is None and best.facts["step"] == 7
    (tmp_path / "best-11" / checkpoint.TREE).write_bytes(b"{}")
    messages = []
    assert Checkpoints(tmp_path, messages.append).best_scores() == {0: 3.0} and "best-11" in messages[0]


def test_checkpoints_never_take_more_than_a_twentieth_of_the_time():
    costs = np.random.default_rng(0).uniform(0.01, 3.0, 10_000)
    throttle, now, total, begun = Throttle(5.0, 0.0), 0.0, 0.0, []
    for cost in costs:
        now += 0.25
        if throttle.due(now):
            begun.append(now)
            throttle.spent(now, now + cost)
            total, now = total + cost, now + cost
            assert len(begun) < 3 or total <= now / 15  # a dear one after cheap ones may go over a little
    assert total <= now / 19 and len(begun) > 20
    assert min(np.diff(begun)) >= 5.0


def test_checkpoint_every_zero_is_each_call():
    throttle = Throttle(0.0, 0.0)
    throttle.spent(0.0, 100.0)
    assert throttle.due(100.0)


def test_a_state_is_on_the_disk_and_read_back_before_it_has_its_name_and_others_go(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state(step), step=step, offset=0)
        checkpoints.save_best(0, 1.0, state(step), step=step)
    written = ["make_folder", *["open_file", "write", "sync"] * 3, "sync_folder", *["read"] * 3]
    with FaultyDisk().installed() as counted:
        checkpoints.save(state(3), step=3, offset=0)
    assert counted.calls == [*written, "rename", "sync_folder", "remove", "remove"]
    with FaultyDisk().installed() as counted:
        checkpoints.save_best(0, 2.0, state(3), step=3)
    assert counted.calls == [*written, "remove", "rename", "rename", "sync_folder", "remove"]  # the old one has a name in between
