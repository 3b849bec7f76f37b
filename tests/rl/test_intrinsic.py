"""Intrinsic rewards against counts by hand, all distances, plain torch networks, and what they are for: finding what nobody finds by chance."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from entreg.recipes import a2c, ppo, reinforce
from entreg.record import read_records
from entreg.rl import intrinsic, naming, novelty
from entreg.rl.curiosity import ICM, RND
from entreg.rl.environments import make
from entreg.rl.heads import head_for
from entreg.rl.novelty import Count, StateEntropy
from entreg.rl.population import Streams
from entreg.rl.rollout import Collector
from entreg.rl.spaces import ActionSpec, ObservationSpec
from entreg.run import Run, RunSettings

KINDS = ("icm", "rnd", "count", "state_entropy")
VECTOR, IMAGE = ObservationSpec((3,), False), ObservationSpec((3, 7, 7), True)
HEADS = {
    "discrete": ActionSpec("discrete", (4,)),
    "two heads": ActionSpec("multi_discrete", (3, 2)),
    "continuous": ActionSpec("continuous", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
}


def streams(seeds):
    return Streams(seeds, 1)


def transitions(members=2, items=40, spec=VECTOR, action=HEADS["discrete"], seed=0):
    draw = np.random.default_rng(seed)
    shape = members, items, *spec.shape
    states = [draw.integers(0, 256, shape, dtype=np.uint8) if spec.image else draw.standard_normal(shape).astype(np.float32) for _ in range(2)]
    if action.kind == "continuous":
        taken = draw.standard_normal((members, items, action.sizes[0])).astype(np.float32)
    else:
        taken = np.stack([draw.integers(0, size, (members, items)) for size in action.sizes], axis=-1)
    return states[0], taken, states[1]


# -------------------------------------------------------------------- counts


def test_whole_numbers_are_counted_exactly_over_the_whole_run():
    count, seen = Count(streams([0, 1]), VECTOR), [{}, {}]
    draw = np.random.default_rng(3)
    for _ in range(3):
        states = draw.integers(0, 3, (2, 30, 3)).astype(np.float32)
        reward = count.reward(states, None, states)
        for member in range(2):
            for row in states[member]:
                seen[member][tuple(row)] = seen[member].get(tuple(row), 0) + 1
            np.testing.assert_allclose(reward[member], [seen[member][tuple(row)] ** -0.5 for row in states[member]])


def test_minus_zero_is_zero():
    states = np.array([[[0.0, 1, 2], [-0.0, 1, 2]]], np.float32)
    np.testing.assert_allclose(Count(streams([0]), VECTOR).reward(states, None, states), 2**-0.5)


def test_near_states_share_a_count_and_far_ones_do_not():
    count = Count(streams([0]), VECTOR)
    first = np.random.default_rng(0).standard_normal((1, 200, 3)).astype(np.float32)
    count.reward(first, None, first)
    assert count.exact is False
    points = np.array([[0.3, -0.2, 0.5]], np.float32) + np.array([0, 1e-6, 2.0], np.float32)[:, None]
    keys = count._hashed(points[None])[0]
    assert (keys[0] == keys[1]).all() and (keys[0] != keys[2]).any()
    rays = np.stack([points[:1] - count.moments.mean, 3 * (points[:1] - count.moments.mean)], axis=1)[0] + count.moments.mean
    keys = count._hashed(rays.astype(np.float32)[None, :, :] if rays.ndim == 2 else rays.astype(np.float32))[0]
    assert (keys[0] != keys[1]).any()  # planes through the mean alone would tell directions, not places


def test_small_images_are_counted_exactly():
    count = Count(streams([0]), IMAGE)
    states = np.zeros((1, 3, 3, 7, 7), np.uint8)
    states[0, 2, 0, 0, 0] = 1
    np.testing.assert_allclose(count.reward(states, None, states)[0], [2**-0.5, 2**-0.5, 1])


# -------------------------------------------------------------------- state entropy


@pytest.mark.parametrize("order", [0.3, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_state_entropy_is_the_distance_to_the_kth_neighbour(order, k):
    bonus = StateEntropy([0], VECTOR, k, order)
    states = transitions(1, 700)[2]
    found = bonus.reward(None, None, states)[0]
    scaled = (states[0] - states[0].mean(0)) / states[0].std(0)
    distance = np.sort(np.linalg.norm(scaled[:, None] - scaled[None], axis=-1), axis=1)[:, k]
    np.testing.assert_allclose(found, np.log1p(distance) if order == 1 else distance ** (1 - order), rtol=1e-3)


def test_equal_states_get_nothing_and_one_state_alone_too():
    assert novelty.nearest(torch.full((5, 3), 1e3), 2).tolist() == [0.0] * 5
    assert novelty.nearest(torch.ones(1, 3), 2).tolist() == [0.0]
    assert novelty.nearest(torch.arange(3.0)[:, None], 9).tolist() == [2.0, 1.0, 2.0]


# -------------------------------------------------------------------- networks


def torch_mlp(network, member=0):
    weights = network.parameters.member(member)
    layers = []
    for layer in range(len(network.architecture.hidden) + 1):
        weight = weights[f"actor.{layer}.weight"]
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(weights[f"actor.{layer}.bias"])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("name", HEADS)
def test_one_icm_step_is_that_of_plain_torch(name, monkeypatch):
    monkeypatch.setattr("entreg.rl.curiosity.PASSES", 1)
    head = head_for(HEADS[name])
    bonus = ICM([5], streams([5]), VECTOR, head, 1e-3)
    before, action, after = transitions(1, 40, action=HEADS[name])
    features, inverse, forward = (torch_mlp(bonus.networks[one]) for one in ("features", "inverse", "forward"))
    parameters = [*features.parameters(), *inverse.parameters(), *forward.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-5)
    moments = before[0].mean(0), before[0].std(0)
    here, there = (features(torch.from_numpy(((part[0] - moments[0]) / moments[1]).clip(-5, 5))) for part in (before, after))
    outputs, taken = inverse(torch.cat([here, there], -1)), torch.from_numpy(action[0])
    if name == "continuous":
        told, code = (outputs - taken).square().sum(-1), taken
    else:
        sizes = HEADS[name].sizes
        heads = list(zip(outputs.split(sizes, -1), taken.unbind(-1), sizes, strict=True))
        told = sum(nn.functional.cross_entropy(logits, one, reduction="none") for logits, one, _ in heads)
        code = torch.cat([nn.functional.one_hot(one, size) for _, one, size in heads], -1).float()
    error = 0.5 * (forward(torch.cat([here, code], -1)) - there).square().sum(-1)
    (0.8 * told + 0.2 * error).mean().backward()
    optimizer.step()
    found = bonus.reward(before, action, after)
    np.testing.assert_allclose(found[0], error.detach().numpy(), rtol=2e-3, atol=1e-5)
    for mine, theirs in (("features", features), ("inverse", inverse), ("forward", forward)):
        weights = bonus.networks[mine].parameters.member(0)
        for layer, linear in enumerate(theirs[::2]):
            torch.testing.assert_close(weights[f"actor.{layer}.weight"], linear.weight.T.detach(), rtol=1e-3, atol=2e-4)


def test_rnd_falls_where_it_was_and_not_elsewhere():
    bonus = RND([0], streams([0]), VECTOR, 1e-3)
    fixed = bonus.target.parameters.data.clone()
    before, action, after = transitions(1, 256)
    near, far = np.abs(after) * 0.3, -np.abs(after) * 3
    both = np.concatenate([near, far], axis=1)
    bonus.reward(before, action, both)  # the moments see both
    first = bonus.error(bonus.seen(near, learn=False), bonus.target.actor(bonus.seen(near, learn=False))).mean().item()
    for _ in range(60):
        bonus.moments.update = lambda batch: None
        bonus.reward(before, action, near)
    last, elsewhere = (
        bonus.error(states, bonus.target.actor(states)).mean().item() for states in (bonus.seen(near, learn=False), bonus.seen(far, learn=False))
    )
    assert last < first / 20 and elsewhere > 10 * last
    assert torch.equal(bonus.target.parameters.data, fixed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [VECTOR, IMAGE], ids=["vector", "image"])
def test_a_member_is_what_it_is_alone(kind, spec):
    settings, head = intrinsic.Settings(kind, 0.5, 3, 1e-3), head_for(HEADS["discrete"])

    def made(seeds):
        return intrinsic._bonus(settings, seeds, streams(seeds), spec, head)

    rounds = [transitions(2, 300, spec, seed=seed) for seed in range(3)]
    both, alone = made([4, 7]), made([7])
    for before, action, after in rounds[:2]:
        together = both.reward(before, action, after)
        single = alone.reward(before[1:], action[1:], after[1:])
        np.testing.assert_allclose(together[1], single[0], rtol=1e-4, atol=1e-6)
        assert np.isfinite(together).all() and (together >= 0).all()


def test_the_states_around_a_step_are_kept_with_the_last_one_of_an_episode():
    environments = make("tests.rl.worlds:Kept-v0", seeds=[0, 1], per_member=2)
    collector = Collector(environments, 2, head_for(environments.action_spec), normalise_observation=True, reward_scaler=None, keep=True)
    draw = np.random.default_rng(0).random((2, 12, 2, 1), dtype=np.float32)
    made = collector.collect(lambda observation, noise, mask: np.zeros((*noise.shape[:-1], 1), int), draw, lambda **values: None)
    np.testing.assert_array_equal(made.after[..., 1], made.before[..., 1] + 1)  # `Kept` counts its steps, also into the end
    np.testing.assert_array_equal(made.after[..., 0], made.before[..., 0])


def test_rewards_are_scaled_by_their_own_discounted_sum_which_does_not_end_with_episodes():
    spec, gamma = ObservationSpec((1,), False), 0.9
    made = intrinsic.Intrinsic(intrinsic.Settings("count", 0.5, 3, 1e-3), [0], 8, spec, head_for(HEADS["discrete"]), gamma)
    states = np.random.default_rng(0).integers(0, 20, (1, 6, 8, 1)).astype(np.float32)
    ended = np.ones((1, 6, 8), bool)
    rollout = SimpleNamespace(before=states, action=states, after=states, reward=np.zeros((1, 6, 8)), terminated=ended)
    scaled, mean = made.reward(rollout)
    unique, inverse, found = np.unique(states, return_inverse=True, return_counts=True)
    raw, total, seen = (found**-0.5)[inverse].reshape(6, 8), np.zeros(8), []
    for t in range(6):
        total = gamma * total + raw[t]
        seen.append(total)
        np.testing.assert_allclose(scaled[0, t], raw[t] / np.std(seen), rtol=1e-2)
    assert mean[0] == pytest.approx(raw.mean()) and len(unique) > 10


def test_ranks_are_refused():
    with pytest.raises(ValueError, match="intrinsic must be none under torchrun, got 'rnd': each of 2 ranks"):
        intrinsic.Settings("rnd", 0.5, 3, 1e-3).check(2)


# -------------------------------------------------------------------- in a recipe

DEEP = ppo.Config(env="DeepSea-v0", env_kwargs={"size": 6}, environments=4, rollout=30, steps=1200, hidden=(16,), coef=("0",), eval_episodes=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", [ppo, a2c, reinforce], ids=["ppo", "a2c", "reinforce"])
def test_resumed_is_uninterrupted_and_the_share_is_recorded(recipe, kind, tmp_path):
    config = recipe.Config(env="DeepSea-v0", env_kwargs={"size": 6}, environments=4, rollout=30, steps=1200, hidden=(16,), coef=("0",), seeds=2, intrinsic=kind)

    def states(folder):
        return [
            {name: value for name, value in row.items() if name not in ("time", "steps_per_second")} for row in read_records(folder).lines if "event" not in row
        ]

    whole = recipe.train(config, Run(RunSettings(out=tmp_path, quiet=True)))
    run = Run(RunSettings(out=tmp_path, quiet=True, checkpoint_every=0))
    log, rows = run.log, []

    def stop_early(step, **values):
        log(step, **values)
        rows.append(step)
        if step >= 600:
            run.stop("test")

    run.log = stop_early
    half = recipe.train(config, run)
    assert half.step < 1200
    recipe.train(config, Run(RunSettings(out=tmp_path, quiet=True, resume=str(half.folder))))
    assert states(half.folder) == states(whole.folder)
    shares = [row["intrinsic/share"] for row in states(whole.folder) if "intrinsic/share" in row]
    assert all(0 <= share <= 1 for share in shares) and max(shares) > 0.5
    assert json.loads((whole.folder / "config.json").read_text())["config"]["intrinsic"] == kind


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"intrinsic": "curiosity"}, "intrinsic must be one of none, icm, rnd, count, state_entropy, got 'curiosity'"),
        ({"intrinsic": "rnd", "intrinsic_coef": "linear(-1, 0)"}, "intrinsic_coef must stay at 0 or above"),
        ({"intrinsic": "state_entropy", "intrinsic_order": 2.0}, r"intrinsic_order must be in \(0, 1\], got 2.0"),
        ({"intrinsic": "state_entropy", "intrinsic_k": 0}, "intrinsic_k must be at least 1, got 0"),
        ({"intrinsic": "icm", "intrinsic_lr": 0.0}, "intrinsic_lr must be positive and finite, got 0.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(wrong, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        ppo.train(replace(DEEP, **wrong), Run(RunSettings(out=tmp_path / "runs", quiet=True)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_counts_find_the_treasure_that_nothing_else_finds(tmp_path):
    """DeepSea of size 12: by chance one episode in 4096 ends at the treasure, and every step towards it costs."""
    settings = {
        "env_kwargs": {"size": 12},
        "steps": 60_000,
        "rollout": 48,
        "hidden": (32,),
        "learning_rate": "0.002",
        "seeds": 3,
        "eval_episodes": 1,
        "video": False,
    }
    found = {}
    for kind in ("none", "count"):
        summary = ppo.train(replace(DEEP, intrinsic=kind, **settings), Run(RunSettings(out=tmp_path, quiet=True)))
        found[kind] = summary.metrics["return"]
    assert found["count"] > 0.9 and found["none"] <= 0.0


def test_deepsea_is_the_one_of_the_paper():
    env = gymnasium.make(naming.find("DeepSea-v0")[0], size=5, mapping_seed=3)
    world = env.unwrapped
    observation, _ = env.reset(seed=0)
    assert observation.sum() == 1 and observation[0] == 1
    total = 0.0
    for row in range(5):
        observation, reward, terminated, truncated, _ = env.step(int(world.right[row, row]))
        total += reward
        assert terminated == (row == 4) and not truncated
    assert total == pytest.approx(0.99) and observation.sum() == 0
    env.reset()
    left = [env.step(int(1 - world.right[row, 0]))[1] for row in range(5)]
    assert left == [0.0] * 5
    env.reset()
    env.step(int(world.right[0, 0]))
    observation = env.step(int(1 - world.right[1, 1]))[0]
    assert observation.argmax() == 2 * 5
    assert 0 < world.right.mean() < 1
