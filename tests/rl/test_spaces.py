"""Spaces as arrays: the flat form is Gymnasium's, images have their channels first, actions land in their space."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from entreg.rl.acting import taken
from entreg.rl.environments import make
from entreg.rl.spaces import action_codec, observation_codec
from entreg.rl.stepping import environment_seed

FLAT = [
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(0, 9, (2, 3), np.int64),
    spaces.Box(-1.0, 1.0, (), np.float32),
    spaces.Box(0, 1, (3, 3, 2), np.uint8),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-3),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([3, 2], start=[-1, 5]),
    spaces.MultiDiscrete([[2, 3], [4, 2]]),
    spaces.MultiBinary((2, 2)),
    spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]),
    spaces.Dict({"b": spaces.Discrete(3, start=1), "a": spaces.Box(-1, 1, (2, 2)), "c": spaces.Dict({"d": spaces.MultiBinary(3)})}),
]


@pytest.mark.parametrize("space", FLAT, ids=str)
def test_flat_form_is_gymnasiums(space):
    codec = observation_codec(space)
    space.seed(0)
    rows = codec.empty(20)
    samples = [space.sample() for _ in range(20)]
    for row, sample in zip(rows, samples, strict=True):
        codec.write(row, sample)
    expected = np.stack([spaces.flatten(space, sample) for sample in samples]).astype(np.float32)
    assert codec.spec.shape == expected.shape[1:] and not codec.spec.image and codec.dropped == ()
    np.testing.assert_array_equal(rows, expected, strict=True)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((96, 84, 3), (3, 96, 84)), ((4, 84, 96), (4, 84, 96)), ((7, 7, 3), (3, 7, 7)), ((84, 96), (1, 84, 96)), ((8, 8, 8), (8, 8, 8))],
)
def test_images_have_their_channels_first(shape, expected):
    codec = observation_codec(spaces.Box(0, 255, shape, np.uint8))
    assert codec.spec == (expected, True)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows = codec.empty(2)
    codec.write(rows[1], image)
    last = len(shape) == 3 and shape[-1] <= shape[0]
    np.testing.assert_array_equal(rows[1], image.transpose(2, 0, 1) if last else image.reshape(expected), strict=True)


def test_texts_are_dropped_and_named():
    space = spaces.Dict({"goal": spaces.Text(9), "place": spaces.Discrete(2), "said": spaces.Tuple([spaces.Text(3), spaces.Box(0, 1, (1,))])})
    codec = observation_codec(space)
    row = codec.empty(1)[0]
    codec.write(row, {"goal": "x", "place": 1, "said": ("y", np.array([0.5]))})
    assert codec.dropped == ("goal", "said.0")
    np.testing.assert_array_equal(row, np.array([0, 1, 0.5], np.float32))


@pytest.mark.parametrize(
    "space",
    [spaces.Text(3), spaces.Dict({"a": spaces.Text(3)}), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"g": spaces.Graph(spaces.Box(0, 1), None)})],
    ids=str,
)
def test_observations_without_a_form_are_refused(space):
    with pytest.raises(ValueError, match="supported: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple"):
        observation_codec(space)


@pytest.mark.parametrize(
    ("space", "actions", "expected", "sizes"),
    [
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1], (3,)),
        (spaces.MultiDiscrete([3, 2], start=[1, 0]), [[0, 1], [2, 0]], [[1, 1], [3, 0]], (3, 2)),
        (spaces.MultiDiscrete([[2, 3], [4, 2]]), [[1, 2, 3, 0]], [[[1, 2], [3, 0]]], (2, 3, 4, 2)),
        (spaces.MultiBinary(3), [[1, 0, 1]], [[1, 0, 1]], (2, 2, 2)),
        (spaces.Box(-2.0, 2.0, (2,)), [[0.5, 7.0], [-3.0, 0.0]], [[0.5, 2.0], [-2.0, 0.0]], (2,)),
        (spaces.Box(-np.inf, np.inf, (2, 1), np.float64), [[1e9, -3.0]], [[[1e9], [-3.0]]], (2,)),
    ],
    ids=str,
)
def test_actions_land_in_their_space(space, actions, expected, sizes):
    codec = action_codec(space)
    assert codec.spec.sizes == sizes
    decoded = codec.decode(np.array(actions))
    np.testing.assert_array_equal(decoded, expected)
    assert all(space.contains(action) for action in decoded)


def test_bounds_of_continuous_actions():
    assert action_codec(spaces.Box(np.array([-2.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float64)).spec[:4] == (
        "continuous",
        (2,),
        (-2.0, -np.inf),
        (2.0, np.inf),
    )
    assert action_codec(spaces.Discrete(2)).spec[:4] == ("discrete", (2,), None, None)


@pytest.mark.parametrize(
    "space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Text(3), spaces.Box(0, 9, (2,), np.int64), spaces.Box(0.0, 1.0, (0,))], ids=str
)
def test_other_actions_are_refused(space):
    with pytest.raises(ValueError, match="supported: Discrete, MultiDiscrete, MultiBinary, Box of floats"):
        action_codec(space)


def test_continuous_actions_reach_pendulum():
    environments = make("Pendulum-v1", seeds=[0], per_member=2)
    assert environments.action_spec[:4] == ("continuous", (1,), (-2.0,), (2.0,))
    environments.reset()
    step = environments.step(np.array([[5.0], [0.5]], np.float32))
    for index, torque in enumerate((2.0, 0.5)):
        env = gymnasium.make("Pendulum-v1")
        env.reset(seed=environment_seed(0, index))
        assert env.step(np.array([torque], np.float32))[1] == step.reward[index]
    environments.close()


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3, start=5), [2], 7),
        (spaces.MultiDiscrete([[3, 2], [2, 2]], start=[[1, 0], [0, 4]]), [[2, 1, 0, 1]], [[3, 1], [0, 5]]),
        (spaces.Box(-1, 1, (2, 1)), [[0.5, -0.5]], [[0.5], [-0.5]]),
        (spaces.Box(-1, 1, (2,)), [[0.5, -0.5]], [0.5, -0.5]),
        (spaces.MultiBinary(2), [[1, 0]], [1, 0]),
    ],
)
def test_a_loaded_policys_actions_are_the_codecs(space, action, expected):
    codec, action = action_codec(space), np.array(action)
    assert np.asarray(codec.decode(action)[0]).tolist() == taken(codec.spec, action)[0].tolist() == expected
    assert taken(codec.spec, torch.from_numpy(action), torch.tensor)[0].tolist() == expected
