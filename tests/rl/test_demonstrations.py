"""Demonstrations: what files may hold and how wrong ones are refused, sampling by its own statistics, counts and entries by hand."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg.planning import MDP, gridworld, occupancy, soft_value_iteration
from entreg.rl import demonstrations
from entreg.rl.demonstrations import joined

CORRIDOR = MDP([[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]], torch.zeros(3, 2), torch.tensor([False, False, True]), [1.0, 0, 0])
GOOD = [([0, 1, 2], [1, 1]), ([0, 0, 1], [0, 0, 1])]  # the first ended, the second was cut


def jsonl(folder, *lines):
    path = folder / "shown.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def npz(folder, **arrays):
    path = folder / "shown.npz"
    np.savez(path, **arrays)
    return path


def test_both_forms_hold_the_same(tmp_path):
    expected = joined(GOOD)
    assert (expected.lengths.tolist(), expected.time.tolist(), expected.end.tolist()) == ([2, 3], [0, 1, 0, 1, 2], [2, -1])
    text = jsonl(tmp_path, *({"state": states, "action": actions} for states, actions in GOOD), b"")
    arrays = npz(tmp_path, trajectory=[7, 7, 7, 3, 3, 3], state=[0, 1, 2, 0, 0, 1], action=[1, 1, -1, 0, 0, 1])
    for path in (text, arrays):
        for left, right in zip(demonstrations.read(path, CORRIDOR), expected, strict=True):
            assert left.tolist() == right.tolist()


FINE = {"state": [0, 1], "action": [1]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no trajectory"),
        ([FINE, b'{"state": [0, 1], "act'], "row 2 is no JSON object"),
        ([FINE, b"\xff\xfe"], "row 2 is no JSON object"),
        ([b"[" * 100_000], "row 1 is no JSON object"),
        ([FINE, [1, 2]], "row 2 is '[1, 2]'"),
        ([{"state": [0], "action": [1], "reward": [1]}], "row 1 is "),
        ([{"state": [0.0, 1], "action": [1]}], "row 1: state holds 0.0"),
        ([{"state": [0, 1], "action": [True]}], "row 1: action holds True"),
        ([b'{"state": [0, NaN], "action": [1]}'], "row 1: state holds nan"),
        ([{"state": [[0], 1], "action": [1]}], "row 1: state holds [0]"),
        ([{"state": 0, "action": [1]}], "row 1: state holds 0"),
        ([{"state": [0], "action": None}], "row 1: action holds None"),
        ([{"state": [], "action": []}], "row 1 has 0 states and 0 actions"),
        ([{"state": [0], "action": []}], "row 1 has 1 states and 0 actions"),
        ([{"state": [0, 1, 2], "action": [1]}], "row 1 has 3 states and 1 actions"),
        ([FINE, {"state": [0, 3], "action": [1, 1]}], "row 2, step 1: state is 3; legal are 0 to 2"),
        ([{"state": [-1], "action": [1]}], "row 1, step 0: state is -1"),
        ([{"state": [0], "action": [2]}], "row 1, step 0: action is 2; legal are 0 to 1"),
        ([{"state": [10**30], "action": [0]}], "row 1, step 0: state is 1000"),
        ([{"state": [0, 1, 2], "action": [1, 1, 0]}], "row 1, step 2: an action in state 2, which is terminal"),
        ([{"state": [0, 0], "action": [1, 1]}], "row 1, step 0: action 1 cannot lead from state 0 to 0"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        demonstrations.read(jsonl(tmp_path, *lines), CORRIDOR)
    assert "shown.jsonl" in str(raised.value) and "\n" not in str(raised.value)


BASE = {"trajectory": [0, 0, 1], "state": [0, 1, 0], "action": [1, 1, 0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": [0.0, 1.0, 0.0]}, "state is an array (3,) of float64"),
        ({"state": [[0, 1, 0]]}, "state is an array (1, 3)"),
        ({"state": [0, 1]}, "rows of unequal number (3 of action, 2 of state, 3 of trajectory)"),
        ({"reward": [0]}, "holds action, reward, state, trajectory"),
        ({"state": np.array([0, 1, None])}, "is no readable .npz (ValueError"),
        ({"state": [0, 1, 9]}, "row 2: state is 9"),
        ({"action": [1, 7, 0]}, "row 0 + 1: action is 7"),
        ({"action": [-1, 1, 0]}, "row 0: action is -1"),
        ({"action": [1, 1, -1]}, "row 2 is a trajectory without an action"),
        ({"trajectory": [0, 1, 0]}, "row 2 goes on with trajectory 0 after another"),
        ({"state": [0, 0, 0]}, "row 0: action 1 cannot lead from state 0 to 0"),
        ({name: np.zeros(0, int) for name in BASE}, "holds no trajectory"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        demonstrations.read(npz(tmp_path, **BASE | change), CORRIDOR)
    assert "shown.npz" in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    whole = npz(tmp_path, **BASE).read_bytes()
    for size in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.npz is no readable \.npz"):
            demonstrations.read(tmp_path / "cut.npz", CORRIDOR)
    with pytest.raises(ValueError, match=r"absent\.jsonl cannot be read \(No such file"):
        demonstrations.read(tmp_path / "absent.jsonl", CORRIDOR)
    with pytest.raises(ValueError, match=r"legal are files that end in \.npz or \.jsonl"):
        demonstrations.read(tmp_path / "shown.csv", CORRIDOR)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=4), max_leaves=6
)
LINES = st.dictionaries(st.sampled_from(["state", "action", "x"]), VALUES | st.lists(st.integers(-1, 3), max_size=4), max_size=3) | VALUES


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINES, max_size=3), cut=st.integers(0, 60))
def test_any_text_is_trajectories_or_one_line_that_names_the_file(tmp_path_factory, lines, cut):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    data = "\n".join(json.dumps(line) for line in lines).encode()
    path.write_bytes(data[: len(data) - cut] if cut < 20 else data)
    look_at(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), flips=st.lists(st.integers(0, 2000), max_size=3), cut=st.integers(0, 1500))
def test_any_bytes_are_trajectories_or_one_line_that_names_the_file(tmp_path_factory, data, flips, cut):
    path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
    size = data.draw(st.integers(0, 4))
    numbers = st.lists(st.integers(-2, 3), min_size=size, max_size=size)
    arrays = {name: data.draw(numbers) for name in data.draw(st.sets(st.sampled_from([*BASE, "x"]), min_size=2))}
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    for place in flips:
        content[place % len(content)] ^= 0x41
    path.write_bytes(content[: len(content) - cut] if cut < 200 else content)
    look_at(path)


def look_at(path):
    try:
        shown = demonstrations.read(path, CORRIDOR)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert set(shown.state) <= {0, 1} and set(shown.action) <= {0, 1} and set(shown.end) <= {-1, 0, 1, 2} and (shown.lengths > 0).all()


def test_samples_are_those_of_the_policy():
    mdp = gridworld(3).with_reward(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    for horizon in (None, 12):
        solution = soft_value_iteration(mdp, gamma=0.8, temperature=0.5, horizon=horizon)
        shown = demonstrations.sample(mdp, solution.policy, 20_000, 12, np.random.default_rng(0))
        assert set(shown.lengths) == {12}
        visits = occupancy(mdp, solution.policy, gamma=0.8, horizon=12)
        np.testing.assert_allclose(demonstrations.counts(shown, mdp, 0.8, 12).numpy(), visits.numpy(), atol=0.012)
        torch.testing.assert_close(demonstrations.counts(shown, mdp, 0.8), demonstrations.counts(shown, mdp, 0.8, 12).sum(0))


def test_samples_end_where_episodes_do():
    shown = demonstrations.sample(CORRIDOR, torch.full((3, 2), 0.5), 500, 6, np.random.default_rng(0))
    ended = shown.end == 2
    assert ended.any() and not ended.all() and (shown.lengths[~ended] == 6).all() and not (shown.state == 2).any()


def test_counts_and_entries_by_hand():
    shown, gamma = joined(GOOD), 0.5
    visits = demonstrations.counts(shown, CORRIDOR, gamma)
    assert (2 * visits).tolist() == [[1 + 0.5, 1], [0, 0.5 + 0.25], [0, 0]]
    # both begin in 0; the first ended; the second was cut after action 1 in state 1, which leads to 1 or to the end
    whole = demonstrations.entries(shown, CORRIDOR, gamma)
    assert (2 * whole).tolist() == [2, -(0.5**3) / 2, 0]
    each = demonstrations.entries(shown, CORRIDOR, gamma, every=True)
    began = np.array([1 + 1 + 0.5, 0.5 + 0.25, 0])
    went = np.array([0.5 * (0 + 0.5) + 0.25 * 0.5, 0.5 * (1 + 0.5) + 0.25 * (0.5 + 0.5) + 0.125 * 0.5, 0])
    np.testing.assert_allclose(2 * each.numpy(), began - went)
    timed = demonstrations.entries(shown, CORRIDOR, gamma, 4, every=True)
    np.testing.assert_allclose(timed.sum(0).numpy(), each.numpy())
    np.testing.assert_allclose(2 * timed[0].numpy(), [2, 0, 0])
    short = demonstrations.entries(shown, CORRIDOR, gamma, 3)  # nothing comes after the horizon, so nothing is taken away
    assert (2 * short).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
