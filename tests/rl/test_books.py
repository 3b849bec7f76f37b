"""The books of a population: whose episode it was, what a line says, and when a run has reached its goal."""

import math

import numpy as np
import pytest
import torch

from entreg.rl import population
from entreg.rl.books import Books
from entreg.rl.heads import head_for
from entreg.rl.population import Member
from entreg.rl.spaces import ActionSpec

HEAD = head_for(ActionSpec("discrete", (4,)))
MEMBERS = [Member(0, "0.1", "shannon"), Member(0, "TargetEntropy(0.5)", "shannon")]


def books():
    return Books(MEMBERS, HEAD, population.regularizers(MEMBERS, HEAD, steps=10, lr=0.01, init_coef=0.2))


def updated(kept, episodes):
    kept.begin(episodes, 2, np.array([0.5, -1.0]))
    kept.share = np.array([0.25, 0.75])
    kept.seen(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.1, 0.2]]))
    kept.seen(torch.tensor([[3.0, 2.0], [3.0, 6.0], [0.3, 0.2]]))
    kept.end(np.array([0.01, 0.02]))
    return kept


def test_a_line_holds_the_members_own_numbers():
    outputs = torch.tensor([[[0.0] * 4], [[9.0, 9.0, -99.0, -99.0]]])
    one, other = updated(books(), [(0, 1.0, 3), (1, 2.0, 5), (3, 8.0, 7)]).rows(outputs, None, 64)
    assert (one["return"], one["episode_length"], other["return"], other["episode_length"]) == (1.5, 4.0, 8.0, 7.0)
    assert (one["entropy"], one["entropy/max"], one["entropy/perplexity"]) == pytest.approx((math.log(4), 1.0, 4.0))
    assert (other["entropy"], other["entropy/max"]) == pytest.approx((math.log(2), 0.5))
    assert (one["coef"], other["coef"], other["entropy/target"]) == pytest.approx((0.1, 0.2, 0.5)) and "entropy/target" not in one
    assert (one["loss/policy"], one["loss/value"], other["loss/value"], one["entropy/family"]) == pytest.approx((2.0, 3.0, 5.0, 0.2))
    assert (other["grad_share"], other["kl"], other["explained_variance"]) == pytest.approx((0.75, 0.02, -1.0))


def test_the_largest_entropy_is_that_of_the_legal_actions():
    mask = torch.tensor([[[True, True, False, False]], [[True, True, True, True]]])
    one, other = updated(books(), []).rows(torch.zeros(2, 1, 4), mask, 64)
    assert (one["entropy/max"], other["entropy/max"]) == pytest.approx((1.0, 1.0)) and "return" not in one


def test_signals_are_the_members_own_and_a_reward_waits_for_an_episode():
    one, other = updated(books(), [(2, 4.0, 3), (3, 5.0, 3)]).signals(0.5)
    assert one == pytest.approx({"progress": 0.5, "kl": 0.01, "grad_share": 0.25})
    assert other == pytest.approx({"progress": 0.5, "kl": 0.02, "grad_share": 0.75, "reward": 4.5})


def test_the_goal_is_reached_by_all_members_over_a_full_window():
    kept = books()
    kept.begin([(index, 10.0, 1) for index in (0, 2) for _ in range(99)], 2, np.zeros(2))
    assert kept.lowest_return() == -math.inf
    kept.begin([(0, 10.0, 1), (2, 0.0, 1), (2, 0.0, 1)], 2, np.zeros(2))
    assert kept.lowest_return() == pytest.approx(9.8)  # the first of 101 is forgotten


def test_saved_books_go_on_and_end_with_evaluated_returns():
    kept, again = updated(books(), [(0, 1.0, 3), (3, 8.0, 7)]), books()
    kept.evaluated = [math.nan, 20.0]
    again.load_state_dict(kept.state_dict(), 64)
    assert again.summary() == kept.summary() == {"return at coef 0.1": 1.0, "return at coef TargetEntropy(0.5)": 20.0}
