"""Targets: the tables of the field, resolve over every row, and what squashed Gaussians can reach."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize

from entreg.control import PI, GradientShare, Observed, Plateau, TargetEntropy, constant, linear, piecewise
from entreg.targets import action_dim, best_squashed, feasible, fraction_of_max, greedy_probability, needs, resolve, within
from tests.controller_cases import KNOWN, ROWS


def shannon(p):
    return -sum(x * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_resolve_fills_every_open_field_of_every_row(row):
    assert resolve(row.open, **KNOWN) == row.closed
    assert resolve(row.closed, **KNOWN) == row.closed
    assert resolve(row.open) == row.open


def test_resolve_keeps_what_is_given_and_leaves_open_what_is_unknown():
    rule = Plateau(TargetEntropy(linear(fraction_of_max(1), action_dim(), steps=7), lr=0.5), 3)
    assert resolve(rule, steps=99, max_entropy=2, lr=0.1) == Plateau(TargetEntropy(linear(2, action_dim(), steps=7), lr=0.5), 3)
    with pytest.raises(ValueError, match=r"init_coef, .*|action_dim\(factor=-1.0\) \(needs action_dim\)"):
        resolve(rule, steps=99, max_entropy=2, lr=0.1).init()
    scheduled = TargetEntropy(piecewise([(0, fraction_of_max(0.5)), (5, 0)]), 0.1, 1)
    assert resolve(scheduled, max_entropy=2) == TargetEntropy(piecewise([(0, 1), (5, 0)]), 0.1, 1)
    assert resolve(0.01) == constant(0.01)


def test_the_recipes_first_coefficient_moves_into_the_users_bounds():
    assert resolve(TargetEntropy(1, bounds=(1e-4, 1e-3)), lr=1, init_coef=0.5).init_coef == 1e-3
    assert resolve(TargetEntropy(1, bounds=(0.1, 1)), lr=1, init_coef=0.01).init_coef == 0.1


def test_an_entropy_is_no_coefficient():
    for rule in (linear(fraction_of_max(0.9), 0), Plateau(constant(action_dim()), 3)):
        with pytest.raises(ValueError, match=r"is an entropy; legal: coefficients as numbers"):
            resolve(rule, **KNOWN)


@pytest.mark.parametrize("actions, f, p", [(2, 0.98, 0.583), (2, 0.7, 0.811), (2, 0.2, 0.969), (18, 0.98, 0.149), (18, 0.7, 0.530), (18, 0.2, 0.906)])
def test_greedy_probability_inverts_the_table_of_fractions(actions, f, p):
    limit = math.log(actions)
    assert greedy_probability(p).nats(limit) == pytest.approx(fraction_of_max(f).nats(limit), abs=3e-3)


@settings(deadline=None, derandomize=True)
@given(p=st.floats(0.01, 0.99), actions=st.integers(2, 50))
def test_greedy_probability_is_the_entropy_of_that_distribution(p, actions):
    if p * actions >= 1:
        expected = shannon([p] + [(1 - p) / (actions - 1)] * (actions - 1))
        assert greedy_probability(p).nats(math.log(actions)) == pytest.approx(expected, rel=1e-9)
    else:
        with pytest.raises(ValueError, match=r"greedy_probability: p=.*legal: a number >= 1/"):
            greedy_probability(p).nats(math.log(actions))


def test_greedy_probability_bounds_the_joint_action_of_several_heads():
    """Two heads of 3 actions whose joint greedy action holds .5: their entropy is below the target for .5, so at the target they hold less."""
    head = math.sqrt(0.5)
    two_heads = 2 * shannon([head, (1 - head) / 2, (1 - head) / 2])
    assert two_heads < greedy_probability(0.5).nats(2 * math.log(3))


def test_greedy_probability_is_refused_for_other_families():
    rule = TargetEntropy(greedy_probability(0.9))
    assert resolve(rule, max_entropy=math.log(2), family="shannon").target == pytest.approx(0.3251, abs=1e-4)
    with pytest.raises(ValueError, match=r"family='tsallis'.*legal: family 'shannon'"):
        resolve(rule, max_entropy=0.5, family="tsallis")


def test_action_dim_is_minus_the_dimension_by_sacs_convention():
    assert (action_dim().nats(6), action_dim(-0.5).nats(6), action_dim(0.2).nats(5)) == (-6.0, -3.0, 1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fraction_of_max(1.01), "fraction_of_max: f=1.01"),
        (lambda: fraction_of_max("half"), "fraction_of_max: f='half'"),
        (lambda: fraction_of_max(0.5).nats(-1.0), "fraction_of_max: max_entropy=-1.0"),
        (lambda: greedy_probability(1), "greedy_probability: p=1"),
        (lambda: greedy_probability(0.5).nats(0.0), "greedy_probability: max_entropy=0.0"),
        (lambda: action_dim(math.nan), "action_dim: factor=nan"),
        (lambda: best_squashed(math.inf), "best_squashed: mean=inf"),
        (lambda: feasible(math.nan, 0.0), "feasible: target=nan"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=f"{message}; legal: "):
        make()


def squashed_entropy(mean, std):
    """H(y) by SciPy's adaptive quadrature on the density of u."""

    def integrand(z):
        u = mean + std * z
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * 2 * (math.log(2) - abs(u) - math.log1p(math.exp(-2 * abs(u))))

    shift = integrate.quad(integrand, -10, 10, points=[-mean / std], limit=400, epsabs=1e-12)[0]
    return 0.5 * math.log(2 * math.pi * math.e * std * std) + shift


@pytest.mark.parametrize("mean", [0.0, 0.7, -1.844, 4.0])
def test_best_squashed_is_the_maximum_over_std(mean):
    best = best_squashed(mean)
    assert best.entropy == pytest.approx(squashed_entropy(mean, best.std), abs=1e-9)
    search = optimize.minimize_scalar(lambda log_std: -squashed_entropy(mean, math.exp(log_std)), bounds=(-2, 3), method="bounded", options={"xatol": 1e-7})
    assert best.entropy == pytest.approx(-search.fun, abs=1e-9)
    assert best.std == pytest.approx(math.exp(search.x), abs=1e-4)


def test_sacs_target_is_out_of_reach_for_means_beyond_1_844():
    assert best_squashed(0.0) == pytest.approx((0.6836, 0.8744), abs=5e-5)
    assert best_squashed(0.0).entropy < math.log(2)
    assert feasible(-1.0, 1.843)
    assert not feasible(-1.0, 1.845)
    assert feasible(-1.0, -1.843)
    assert feasible(-2.0, np.array([0.0, 2.5]))
    assert not feasible(-2.0, [1.9, 1.9])
    assert not feasible(0.69, 0.0)


def test_an_infeasible_target_runs_into_the_bound_and_no_further():
    rule = TargetEntropy(0.0, lr=0.5, init_coef=1.0, bounds=(0.1, 10))
    state = rule.init()
    for _ in range(100):
        state = rule.update(state, Observed(-1.0))
    assert rule.coef(state) == 10


@pytest.mark.parametrize("target", [-0.1, math.log(4), 2.0])
def test_a_target_outside_the_possible_entropies_is_refused(target):
    within(TargetEntropy(1.3, lr=0.1, init_coef=1.0), math.log(4))
    within(linear(0.1, 0.0, steps=3), math.log(4))
    for controller in (TargetEntropy(target, lr=0.1, init_coef=1.0), Plateau(PI(target, 0.1, 0.1, (0.0, 1.0)), 3)):
        with pytest.raises(ValueError, match=r"its target is .*legal is 0 <= target < 1.38629"):
            within(controller, math.log(4))


def test_needs_are_the_signals_without_which_a_controller_stops():
    assert needs(constant(0.1)) == needs(TargetEntropy(1.0, lr=0.1, init_coef=1.0)) == set()
    assert needs(GradientShare(0.1)) == {"grad_share"} and needs(Plateau(GradientShare(0.1), 3)) == {"grad_share", "reward"}
