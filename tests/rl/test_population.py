"""A member draws, counts and is weighed as it would be alone."""

import math

import numpy as np
import pytest
import torch

from entreg import EntropyRegularizer, spelling
from entreg.rl import population
from entreg.rl.heads import head_for
from entreg.rl.population import Families, Member, Streams
from entreg.rl.spaces import ActionSpec

HEAD = head_for(ActionSpec("discrete", (4,)))


def test_seeds_vary_fastest_and_the_first_setting_comes_first():
    members = population.expand(["0.1", "0"], ["shannon", "renyi(2)"], [3, 4])
    assert members[:3] == [Member(3, "0.1", "shannon"), Member(4, "0.1", "shannon"), Member(3, "0", "shannon")]
    assert len(set(members)) == 8 and members[-1] == Member(4, "0", "renyi(2)")


def test_open_fields_are_those_of_the_members_own_family():
    members = [Member(0, "TargetEntropy(fraction_of_max(0.5))", family) for family in ("shannon", "tsallis(2)")]
    shannon, tsallis = population.regularizers(members, HEAD, steps=10, lr=0.01, init_coef=0.2)
    assert (shannon.target, tsallis.target) == (pytest.approx(math.log(4) / 2), pytest.approx(0.75 / 2))
    assert shannon.coef == tsallis.coef == pytest.approx(0.2)
    (falling,) = population.regularizers([Member(0, "linear(1, 0)", "shannon")], HEAD, steps=10, lr=0.01, init_coef=0.2)
    falling.step()
    assert falling.coef == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_stream_is_the_members_own(kind):
    together, alone = Streams([5, 9]), Streams([9])
    for _ in range(2):
        np.testing.assert_array_equal(together.noise((3, 2), kind)[1:], alone.noise((3, 2), kind))
        np.testing.assert_array_equal(together.orders(2, 7)[1:], alone.orders(2, 7))
    noise = Streams([0]).noise((20_000,), kind)
    assert noise.dtype == np.float32
    assert (noise.mean(), noise.std()) == pytest.approx((0.5, math.sqrt(1 / 12)) if kind == "uniform" else (0.0, 1.0), abs=0.02)


def test_orders_are_permutations_and_differ():
    orders = Streams([0, 1]).orders(3, 50)
    assert orders.shape == (2, 3, 50) and (np.sort(orders) == np.arange(50)).all()
    assert len({tuple(row) for row in orders.reshape(6, 50).tolist()}) == 6


def test_a_saved_stream_goes_on_where_it_was():
    first, second = Streams([0, 1]), Streams([0, 1])
    first.noise((5,), "normal")
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.noise((3,), "uniform"), first.noise((3,), "uniform"))


def test_members_of_mixed_families_are_measured_by_their_own():
    names = ["shannon", "shannon", "renyi(2)", "tsallis(0.5)"]
    families = Families(names)
    torch.manual_seed(0)
    outputs, action = torch.randn(4, 5, 4), torch.randint(0, 4, (4, 5, 1))
    mask = torch.rand(4, 5, 4) > 0.3
    mask.scatter_(-1, action, True)
    log_prob, entropy = families.stats(HEAD, outputs, action, mask)
    for member, name in enumerate(names):
        at = slice(member, member + 1)
        expected = HEAD.stats(outputs[at], action[at], spelling.parse_family(name), mask[at])
        torch.testing.assert_close((log_prob[at], entropy[at]), expected)
    torch.testing.assert_close(families.entropy(HEAD, outputs, mask), entropy)


def test_the_bonus_is_weighed_by_sense_and_coefficient_and_seen_by_the_controller():
    up, down = EntropyRegularizer(0.5), EntropyRegularizer(0.25, sense="minimize")
    weights = population.observe([up, down], torch.tensor([1.0, 3.0]), 8)
    assert weights.tolist() == [[-0.5], [0.25]]
    population.observe([up, down], torch.tensor([4.0, 3.0]), 16)
    up.step(), down.step()
    assert (up.entropy, down.entropy) == (3.0, 3.0)


def test_the_share_of_the_bonus_is_its_part_of_the_gradients_norms():
    outputs = torch.ones(2, 3, 4, requires_grad=True)
    losses = (outputs * torch.tensor([3.0, 0.0])[:, None, None]).sum(-1), outputs.sum(-1)
    bonus, task = ((loss, torch.full_like(loss, 0.1)) for loss in losses)
    assert population.gradient_shares(bonus, task, outputs).tolist() == pytest.approx([0.75, 0.0])
