"""What a collector hands on is what the environments did, in `Reveal`, whose numbers say where they are from."""

import numpy as np
import pytest

from entreg.rl.environments import make
from entreg.rl.heads import head_for
from entreg.rl.normalize import RewardScaler
from entreg.rl.rollout import Collector

MEMBERS, STEPS, EACH = 2, 12, 3
ENV = "tests.rl.worlds:Kept-v0"


def collector(*, env=ENV, normalise=False, scale=False):
    environments = make(env, seeds=[0, 1], per_member=EACH)
    scaler = RewardScaler(MEMBERS, EACH, 0.9) if scale else None
    return Collector(environments, MEMBERS, head_for(environments.action_spec), normalise_observation=normalise, reward_scaler=scaler)


def act(observation, drawn, mask):
    """One of the legal actions (two without a mask), all as likely."""
    legal = np.ones((*observation.shape[:2], 2), bool) if mask is None else mask
    order = np.argsort(~legal, axis=-1, kind="stable")
    return np.take_along_axis(order, (drawn * legal.sum(-1, keepdims=True)).astype(int), axis=-1)


def noise(seed=0):
    return np.random.default_rng(seed).random((MEMBERS, STEPS, EACH, 1), dtype=np.float32)


def unchecked(**values):
    pass


def test_rows_are_transitions_and_ends_are_kept_apart():
    made = collector().collect(act, noise(), unchecked)
    episode, t = made.observation[..., 0], made.observation[..., 1]
    np.testing.assert_allclose(made.reward, 100 * episode + t + made.action[..., 0] / 10)
    assert made.terminated.any() and made.truncated.any() and not (made.terminated & made.truncated).any()
    np.testing.assert_array_equal(made.truncated, (made.terminated | made.truncated) & (episode % 3 == 2))  # every third episode is cut
    following = np.concatenate([made.observation[:, 1:], made.last[:, None]], axis=1)
    ended = made.terminated | made.truncated
    np.testing.assert_array_equal(following[..., 1], np.where(ended, 0, t + 1))
    np.testing.assert_array_equal(made.final_at[np.lexsort(made.final_at.T[::-1])], np.argwhere(made.truncated))
    np.testing.assert_array_equal(made.final, made.observation[tuple(made.final_at.T)] + [0, 1])  # the state it was cut in
    assert len(made.episodes) == ended.sum()


def test_actions_follow_the_noise():
    made = collector().collect(act, noise(), unchecked)
    np.testing.assert_array_equal(made.action[..., 0], noise()[..., 0] >= 0.5)


def test_observations_are_normalised_by_what_was_seen_up_to_then():
    plain, normalised = collector(), collector(normalise=True)
    raw, made = (one.collect(act, noise(), unchecked) for one in (plain, normalised))
    for t in (0, 5, STEPS - 1):
        seen = raw.observation[:, : t + 1].reshape(MEMBERS, -1, 2).astype(np.float64)
        expected = (raw.observation[:, t] - seen.mean(1)[:, None]) / np.sqrt(seen.var(1)[:, None] + 1e-8)
        np.testing.assert_allclose(made.observation[:, t], np.clip(expected, -10, 10), atol=2e-2)
    everything = normalised.moments.normalise(raw.last)
    np.testing.assert_array_equal(made.last, everything)
    assert normalised.moments.count == pytest.approx(STEPS * EACH, abs=1e-3)  # neither last nor final states are counted


def test_rewards_are_scaled_and_an_end_of_either_kind_begins_a_new_return():
    raw, made = (collector(scale=scale).collect(act, noise(), unchecked) for scale in (False, True))
    scaler = RewardScaler(MEMBERS, EACH, 0.9)
    for t in range(STEPS):
        np.testing.assert_allclose(made.reward[:, t], scaler(raw.reward[:, t], raw.terminated[:, t] | raw.truncated[:, t]), rtol=1e-6)


def test_masks_stand_beside_the_observations_they_belong_to():
    made = collector(env="tests.rl.worlds:Masked-v0").collect(act, noise(), unchecked)  # an illegal action is an error there
    place = made.observation.argmax(-1)
    np.testing.assert_array_equal(made.mask, np.array([np.roll([1, 1, 0, 0], t) for t in range(4)], bool)[place])
    np.testing.assert_array_equal(made.last_mask, np.array([np.roll([1, 1, 0, 0], t) for t in range(4)], bool)[made.last.argmax(-1)])


def test_saved_and_loaded_it_goes_on_as_if_uninterrupted():
    first, second = (collector(normalise=True, scale=True) for _ in range(2))
    first.collect(act, noise(), unchecked)
    assert second.load_state_dict(first.state_dict())
    one, other = (each.collect(act, noise(1), unchecked) for each in (first, second))
    for name in ("observation", "action", "reward", "terminated", "truncated", "last", "final", "final_at"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_everything_that_comes_in_is_checked():
    seen = set()
    collector().collect(act, noise(), lambda **values: seen.update(values))
    assert seen == {"observation", "reward", "final_observation"}


def test_a_step_that_is_both_terminated_and_cut_is_terminated():
    made = collector()
    step = made.environments.step

    def both(actions):
        taken = step(actions)
        return taken._replace(terminated=taken.terminated | taken.truncated)

    made.environments.step = both
    experience = made.collect(act, noise(), unchecked)
    assert experience.terminated.any() and not experience.truncated.any() and len(experience.final) == 0
