"""The replay of frames gives the stacks that the environment gave, at every border: of episodes, of the ring, of files and of restarts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg.rl.frames import FrameReplay
from entreg.rl.spaces import ObservationSpec
from tests.faults import memory_folder


class Lane:
    """One environment: a stack of 2 x 2 frames that say when they were, filled at the begin of an episode as `zeros` says."""

    def __init__(self, seed, stack, zeros):
        self.random, self.stack, self.zeros, self.frame = np.random.default_rng(seed), stack, zeros, seed % 7
        self.begin()

    def see(self):
        self.frame += 1
        return np.full((1, 2, 2), 1 + self.frame % 251, np.uint8)

    def begin(self):
        frame = self.see()
        self.seen = [frame * (not self.zeros)] * (self.stack - 1) + [frame]

    def step(self):
        before = np.concatenate(self.seen)
        self.seen = [*self.seen[1:], self.see()]
        after = np.concatenate(self.seen)
        end = self.random.random()
        if end < 0.3:
            self.begin()
        return before, int(self.random.integers(3)), float(self.frame), end < 0.15, 0.15 <= end < 0.3, after


def make(folder, stack, capacity, per_member=1, members=2):
    return FrameReplay(members, per_member, capacity, ObservationSpec((stack, 2, 2), image=True), ((1,), np.int64), folder=folder, stack=stack)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(["add"] * 6 + ["sample", "save", "load", "kill", "restart"]), min_size=1, max_size=70), stack=st.integers(1, 4),
       capacity=st.integers(2, 24), per_member=st.integers(1, 2), zeros=st.booleans(), in_files=st.booleans())  # fmt: skip
def test_stacks_are_those_that_the_environment_gave(steps, stack, capacity, per_member, zeros, in_files):
    with memory_folder() as folder:
        place = folder if in_files else None
        replay, lanes = make(place, stack, capacity, per_member), [Lane(seed, stack, zeros) for seed in range(2 * per_member)]
        rounds, saved = [], None  # a step's transitions, or None for final frames
        keep = max(2, capacity // per_member) + stack
        for number, step in enumerate(steps):
            if step == "add":
                parts = [np.stack(part).reshape(2, per_member, *np.shape(part[0])) for part in zip(*(lane.step() for lane in lanes), strict=True)]
                observation, action, reward, terminated, truncated, after = parts
                replay.add(observation, action[..., None], reward, terminated, truncated, after)
                rounds += [parts] + [None] * bool((terminated | truncated).any())
            elif step == "restart" and rounds:
                replay.restarted()
                for lane in lanes:
                    lane.begin()
                rounds += [None] * (rounds[-1] is not None)
            elif step == "save":
                saved = replay.state_dict(), list(rounds)
            elif step in ("load", "kill") and saved is not None:
                if step == "kill":
                    replay.close()
                    replay = make(place, stack, capacity, per_member)
                replay.load_state_dict(saved[0])
                replay.restarted()  # these environments cannot be restored
                rounds = list(saved[1]) + [None] * bool(saved[1] and saved[1][-1] is not None)
                for lane in lanes:
                    lane.begin()
            live = [parts for parts in rounds[-keep:] if parts is not None][stack - 1 if len(rounds) > keep else 0 :]
            assert len(replay) == len(live) * per_member
            if step == "sample" and live:
                batch = replay.sample([np.random.default_rng([number, member]) for member in range(2)], 23)
                for member in range(2):
                    picks = np.random.default_rng([number, member]).integers(0, len(live) * per_member, 23)
                    for i, (t, e) in enumerate(divmod(int(pick), per_member) for pick in picks):
                        observation, action, reward, terminated, _, after = (part[member, e] for part in live[t])
                        assert (batch.observation[member, i].numpy() == observation).all()
                        assert (batch.next_observation[member, i].numpy() == after).all()
                        assert (batch.action[member, i], batch.reward[member, i], batch.terminated[member, i]) == (action, reward, terminated)
        replay.close()


def test_a_frame_is_stored_once(tmp_path):
    replay, lane = FrameReplay(1, 1, 400, ObservationSpec((4, 84, 84), image=True), ((1,), np.int64), folder=tmp_path), np.zeros((1, 1, 4, 84, 84), np.uint8)
    for t in range(401):
        replay.add(lane, np.zeros((1, 1, 1)), np.zeros((1, 1)), np.full((1, 1), t == 400), np.zeros((1, 1), bool), lane)
    replay.close()
    rows = sum(path.stat().st_size for path in (tmp_path / "replay").iterdir()) / (84 * 84)
    assert 402 <= rows < 402 + 101 + 10  # every frame, one segment that has just begun, some bytes a row


def test_what_is_no_stack_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stack must divide the 3 channels"):
        FrameReplay(1, 1, 10, ObservationSpec((3, 8, 8), image=True), ((1,), np.int64), stack=2)
    replay, odd = make(None, 3, 10), np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 2, 2)
    with pytest.raises(ValueError, match="neither its frame repeated nor zeros"):
        replay.add(odd, np.zeros((2, 1, 1)), np.zeros((2, 1)), np.zeros((2, 1), bool), np.zeros((2, 1), bool), odd)
    with pytest.raises(ValueError, match="lower buffer_size"):
        FrameReplay(8, 1, 10**9, ObservationSpec((4, 84, 84), image=True), ((1,), np.int64), folder=tmp_path)
    assert not list(tmp_path.iterdir())
