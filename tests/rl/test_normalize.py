"""Running moments are those of everything seen at once; rewards are divided by the deviation of the discounted return."""

import numpy as np
import pytest

from entreg.rl.normalize import RewardScaler, RunningMoments


def test_merged_moments_are_those_of_everything_seen():
    generator = np.random.default_rng(0)
    batches = [generator.normal(3.0, scale, (2, n, 4)).astype(np.float32) for n, scale in ((5, 1.0), (1, 9.0), (40, 0.1))]
    moments = RunningMoments(2, (4,))
    for batch in batches:
        moments.update(batch)
    seen = np.concatenate(batches, axis=1).astype(np.float64)
    np.testing.assert_allclose(moments.mean, seen.mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(moments.var, seen.var(axis=1), rtol=1e-3)
    scaled = moments.normalise(seen)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, (seen - seen.mean(1, keepdims=True)) / seen.std(1, keepdims=True), atol=1e-3)
    assert moments.normalise(np.full((2, 1, 4), [1e9, -1e9, 3.0, 3.0])).tolist()[0][0][:2] == [10.0, -10.0]
    np.testing.assert_array_equal(moments.member(1)["mean"], moments.mean[1:])


def test_saved_moments_go_on_where_they_were():
    first, second = RunningMoments(1, (2,)), RunningMoments(1, (2,))
    batch = np.random.default_rng(0).normal(size=(1, 9, 2))
    first.update(batch)
    second.load_state_dict(first.state_dict())
    for moments in (first, second):
        moments.update(2 * batch)
    np.testing.assert_array_equal(second.var, first.var)


@pytest.mark.parametrize("cut", [None, 13])
def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return(cut):
    generator, gamma = np.random.default_rng(0), 0.9
    rewards, done = generator.normal(1.0, 5.0, (50, 2, 3)), generator.random((50, 2, 3)) < 0.2
    scaler, running, seen = RewardScaler(2, 3, gamma), np.zeros((2, 3)), []
    for t in range(50):
        if t == cut:
            scaler, old = RewardScaler(2, 3, gamma), scaler
            scaler.load_state_dict(old.state_dict())
        found = scaler(rewards[t], done[t])
        running = running * gamma + rewards[t]
        seen.append(running)
        running = np.where(done[t], 0.0, running)  # an episode owes nothing to the one before
        deviation = np.concatenate(seen, axis=1).std(axis=1, keepdims=True)
        np.testing.assert_allclose(found, np.clip(rewards[t] / deviation, -10, 10), rtol=2e-4)
