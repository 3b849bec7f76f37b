"""Evaluation counts every episode once and favours none; a recording is the episode that evaluation plays."""

from types import SimpleNamespace

import numpy as np
import pytest

from entreg.rl import episodes
from entreg.rl.acting import film
from entreg.rl.environments import make
from entreg.rl.episodes import evaluate, evaluate_members, record_episode

REVEAL = "tests.rl.worlds:Reveal-v0"


def zeros(observation, mask):
    return np.zeros(len(observation), np.int64)


def legal(observation, mask):
    return np.argmax(mask, axis=1)


@pytest.mark.parametrize(("episodes", "parallel"), [(1, 8), (7, 3), (8, 8), (20, 4)])
def test_every_environment_plays_its_share_of_first_episodes(episodes, parallel):
    results = evaluate(REVEAL, zeros, episodes, 3, parallel=parallel)
    environments = make(REVEAL, seeds=[3], per_member=min(parallel, episodes))
    environments.reset()
    expected = [[] for _ in range(environments.n)]
    for _ in range(200):
        for index, total, length in environments.step(np.zeros(environments.n, int)).episodes:
            expected[index].append((total, length))
    share = [episodes // environments.n + (index < episodes % environments.n) for index in range(environments.n)]
    assert results == [episode for index, count in enumerate(share) for episode in expected[index][:count]]
    assert len(results) == episodes


def test_short_episodes_are_not_favoured():
    lengths = [length for _, length in evaluate(REVEAL, zeros, 1500, 0, parallel=500)]
    assert abs(np.mean(lengths) - 3.0) < 4 * np.sqrt(2.0 / 1500)  # uniform on 1..5: mean 3, variance 2


def test_members_are_evaluated_as_alone():
    together = evaluate_members("FrozenLake-v1", zeros, episodes=5, seeds=[4, 8], parallel=2)
    assert together == [evaluate("FrozenLake-v1", zeros, 5, seed, parallel=2) for seed in (4, 8)]


def test_masks_reach_the_policy():
    assert evaluate("tests.rl.worlds:Masked-v0", legal, 3, 0) == [(4.0, 4)] * 3
    assert record_episode("tests.rl.worlds:Masked-v0", legal, seed=0).length == 4


def test_a_stopped_evaluation_is_none():
    calls = []
    assert evaluate("CartPole-v1", zeros, 100, 0, stop=lambda: calls.append(1) or len(calls) > 3) == []
    assert len(calls) == 4


@pytest.mark.parametrize(("episodes", "parallel"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(episodes, parallel):
    with pytest.raises(ValueError, match=f"at least 1, got {episodes} and {parallel}"):
        evaluate("CartPole-v1", zeros, episodes, 0, parallel=parallel)


def test_a_recording_is_the_first_evaluated_episode(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    recording = record_episode("CartPole-v1", zeros, seed=5, width=150)
    assert (recording.episode_return, recording.length) == evaluate("CartPole-v1", zeros, 1, 5)[0]
    assert len(recording.frames) == recording.length + 1 and recording.reason is None
    assert {(frame.shape, frame.dtype) for frame in recording.frames} == {((100, 150, 3), np.dtype(np.uint8))}
    assert recording.frames_per_second == 50
    assert not np.array_equal(recording.frames[0], recording.frames[-1])


def test_a_recording_stops_at_max_steps():
    recording = record_episode("CliffWalking-v1", zeros, seed=0, max_steps=6)
    assert recording.length == 6 and recording.episode_return == -6.0 and len(recording.frames) == 7


def test_a_policy_that_walks_in_circles_is_cut(monkeypatch):
    monkeypatch.setattr(episodes, "LONGEST", 30)
    assert evaluate("CliffWalking-v1", zeros, 2, 0) == [(-30.0, 30)] * 2
    assert record_episode("CliffWalking-v1", zeros, seed=0).length == 30
    assert evaluate("CliffWalking-v1", zeros, 1, 0, env_kwargs={"max_episode_steps": 5}) == [(-5.0, 5)]
    assert evaluate("Pendulum-v1", lambda seen, mask: np.zeros((len(seen), 1)), 1, 0)[0][1] == 200  # a limit of its own stays


def test_a_recording_keeps_a_share_of_many_frames_and_ends_when_told():
    recording = record_episode("CliffWalking-v1", zeros, seed=0, max_steps=40, most=8)
    assert (len(recording.frames), recording.length, recording.frames_per_second) == (6, 40, 4 / 8)  # steps 0, 8, ... 40
    assert record_episode("CliffWalking-v1", zeros, seed=0, stop=iter([False, False, True]).__next__).length == 2


def test_environments_that_only_print_give_texts():
    recording = record_episode("tests.rl.worlds:Printed-v0", zeros, seed=1)
    assert recording.texts == [f"episode 0 step {t}" for t in range(recording.length + 1)] and recording.frames == []


@pytest.mark.parametrize(
    ("name", "reason"), [(REVEAL, "renders nothing, not rgb_array or ansi"), ("tests.rl.worlds:Broken-v0", "rendering failed: no display")]
)
def test_no_frames_come_with_a_reason(name, reason):
    recording = record_episode(name, zeros, seed=1)
    assert recording.frames == [] and reason in recording.reason and recording.length >= 1


def test_a_long_episode_in_which_nothing_happens_becomes_a_film(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes, "LONGEST", 4000)
    monkeypatch.setattr("entreg.rl.acting._FRAMES", 8)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    still = SimpleNamespace(act_all=lambda observation, mask, temperature: zeros(observation, mask))
    said = film(still, "CliffWalking-v1", {}, tmp_path / "film.gif", seed=0)
    assert said.endswith("an episode of 4000 steps, return -4000") and (tmp_path / "film.gif").stat().st_size > 100
