"""The replay is a list of the newest transitions, whatever its ring, its files and its crashes do."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg.rl import segments
from entreg.rl.replay import Replay
from entreg.rl.spaces import ObservationSpec
from tests.faults import ERRORS, FaultyDisk, memory_folder

VECTOR = ObservationSpec((3,), image=False)


def make(folder=None, members=2, per_member=2, capacity=12, **changes):
    return Replay(members, per_member, capacity, VECTOR, ((1,), np.int64), folder=folder, **changes)


def transition(t, members=2, per_member=2, masked=False):
    """What happened in round t: every number says member, environment and round."""
    where = np.arange(members)[:, None] * 100 + np.arange(per_member) * 10_000 + t
    observation = np.stack([where, where + 0.25, where + 0.5], -1).astype(np.float32)
    ends = (where % 3 == 0), (where % 5 == 1)
    mask = {"mask": (where[..., None] + np.arange(4)) % 3 > 0, "next_mask": (where[..., None] + np.arange(4)) % 2 > 0} if masked else {}
    return {"observation": observation, "action": where[..., None], "reward": where / 8, "terminated": ends[0], "truncated": ends[1],
            "next_observation": observation + 0.125, **mask}  # fmt: skip


def streams(members=2, seed=0):
    return [np.random.default_rng([seed, member]) for member in range(members)]


def drawn_from(rounds, generators, batch, per_member=2, masked=False):
    """The same draw from a plain list of rounds."""
    result = []
    for member, generator in enumerate(generators):
        picks = [divmod(int(index), per_member) for index in generator.integers(0, len(rounds) * per_member, batch)]
        result.append([{name: part[member, e] for name, part in transition(rounds[t], per_member=per_member, masked=masked).items()} for t, e in picks])
    return result


def assert_drawn(batch, expected):
    for name, values in batch._asdict().items():
        if values is not None:
            np.testing.assert_array_equal(values.numpy(), np.array([[one[name] for one in member] for member in expected]), name)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(["add"] * 8 + ["sample", "save", "load", "kill"]), min_size=10, max_size=80), capacity=st.integers(1, 16),
       per_member=st.integers(1, 3), masked=st.booleans(), in_files=st.booleans())  # fmt: skip
def test_it_is_a_list_of_the_newest_transitions(steps, capacity, per_member, masked, in_files):
    with memory_folder() as folder:
        kind = {"per_member": per_member, "capacity": capacity, "mask_size": 4 if masked else None}
        place = folder if in_files else None
        replay, rounds, t, saves = make(place, **kind), [], 0, []
        keep = max(1, capacity // per_member)
        for number, step in enumerate(steps):
            if step == "add":
                replay.add(**transition(t, per_member=per_member, masked=masked))
                rounds, t = [*rounds, t][-keep:], t + 1
            elif step == "sample" and rounds:
                batch = replay.sample(streams(seed=number), 17)
                assert_drawn(batch, drawn_from(rounds, streams(seed=number), 17, per_member, masked))
                assert (batch.mask is not None) == masked
            elif step == "save":
                saves.append((replay.state_dict(), list(rounds), t))
            elif step in ("load", "kill") and saves:
                del saves[:-2]
                if step == "kill":  # a new process
                    replay.close()
                    replay = make(place, **kind)
                if len(saves) == 2 and number % 2:  # the newest is damaged
                    saves.pop()
                state, rounds, t = saves[-1][0], list(saves[-1][1]), saves[-1][2]
                replay.load_state_dict(state)
            assert len(replay) == len(rounds) * per_member
        replay.close()


@pytest.mark.parametrize("lost", [0, 1, 5, 20])
@pytest.mark.parametrize("kept", [1, 3, 4, 9, 17])
def test_a_killed_replay_goes_on_where_its_checkpoint_was(kept, lost, tmp_path):
    replay = make(tmp_path, capacity=14)  # 7 rounds in segments of 2
    for t in range(kept):
        replay.add(**transition(t))
    state = replay.state_dict()
    for t in range(500, 500 + lost):
        replay.add(**transition(t))
    replay.close()  # what a SIGKILL does
    again = make(tmp_path, capacity=14)
    again.load_state_dict(state)
    for t in range(kept, kept + 3):
        assert_drawn(again.sample(streams(), 40), drawn_from(list(range(t))[-7:], streams(), 40))
        again.add(**transition(t))
    again.close()


def test_a_member_draws_as_it_would_alone(tmp_path):
    together, alone = make(tmp_path / "a"), make(tmp_path / "b", members=1)
    for t in range(20):
        row = transition(t)
        together.add(**row)
        alone.add(**{name: part[1:] for name, part in row.items()})
    both, one = together.sample(streams(), 9), alone.sample(streams()[1:], 9)
    for left, right in zip(both, one, strict=True):
        assert left is right is None or np.array_equal(left[1], right[0])
    together.close()
    alone.close()


def test_files_that_left_the_ring_and_every_checkpoint_go(tmp_path):
    replay = make(tmp_path, capacity=16)  # 8 rounds in segments of 2
    for t in range(100):
        replay.add(**transition(t))
        if t % 5 == 0:
            replay.state_dict()
        assert len(list((tmp_path / "replay").iterdir())) <= 5 + 8  # what the ring spans, and 15 rounds of three states
    for _ in range(3):
        replay.state_dict()
    for t in range(100, 103):
        replay.add(**transition(t))
    assert len(list((tmp_path / "replay").iterdir())) <= 6
    replay.close()


def test_states_far_apart_are_asked_for_before_their_files_take_more_room_than_was_made_sure_of(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "BEHIND", 0)
    replay, saves = make(tmp_path, capacity=32), 0  # 16 rounds in segments of 8
    width = replay._store.lanes * replay._store.width
    for t in range(300):
        replay.add(**transition(t))
        if t == 3 or replay.crowded:
            replay.state_dict()
            saves += 1
        assert sum(path.stat().st_size for path in (tmp_path / "replay").iterdir()) <= segments.room(width, 16)
    assert 3 < saves < 100 and segments.room(width, 16) < 3 * 16 * width
    replay.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_fails_loses_nothing_that_a_checkpoint_named(error, tmp_path):
    def fill(folder, disk, saved):
        with contextlib.closing(make(folder, capacity=16)) as replay, disk.installed():
            for t in range(30):
                replay.add(**transition(t))
                if t % 7 == 6:
                    saved.append((replay.state_dict(), t))

    calls = FaultyDisk()
    fill(tmp_path / "whole", calls, [])
    for at in range(0, len(calls.calls), 3):
        with memory_folder() as folder:
            saved = []
            with pytest.raises(OSError):
                fill(folder / "r", FaultyDisk(at, error, dead=True), saved)
            if saved:
                state, t = saved[-1]
                replay = make(folder / "r", capacity=16)
                replay.load_state_dict(state)
                assert_drawn(replay.sample(streams(), 20), drawn_from(list(range(t + 1))[-8:], streams(), 20))
                replay.close()


def test_a_missing_or_short_file_and_other_rows_are_named(tmp_path):
    replay = make(tmp_path)
    for t in range(9):
        replay.add(**transition(t))
    state = replay.state_dict()
    replay.close()
    with pytest.raises(ValueError, match="rows are"):
        make(tmp_path, mask_size=40).load_state_dict(state)
    file = sorted((tmp_path / "replay").iterdir())[-1]
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match="too short"):
        make(tmp_path).load_state_dict(state)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing"):
        make(tmp_path).load_state_dict(state)


def test_what_cannot_fit_is_refused_with_both_sizes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"takes up to .* GB, and .* GB of disk of .* are free"):
        make(tmp_path / "not" / "there", capacity=10**14)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(segments, "_free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="memory are free"):
        make(capacity=1000)
    with pytest.raises(ValueError, match="capacity"):
        make(capacity=0)
    with pytest.raises(ValueError, match="nothing to draw"):
        make(capacity=4).sample(streams(), 1)
