"""Controllers: laws that every row obeys, and parity with the rules of the field."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entreg import control
from entreg.control import PI, Band, Controller, GradientShare, Observed, Plateau, TargetEntropy, Thermostat, constant, cosine, exponential, linear, piecewise

from entreg.control import as_controller, current_target, pack, unpack  # isort: skip
from tests.controller_cases import KNOWN, ROWS, seen

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
feedback = pytest.mark.parametrize("row", [row for row in ROWS if row.feedback == "entropy"], ids=lambda row: row.name)
both = pytest.mark.parametrize("sense", [1, -1])
WAVE = [0.5 + 0.6 * math.sin(step) for step in range(60)]


def run(rule, entropies, state=None, **signals):
    """The states after each entropy."""
    states = [rule.init() if state is None else state]
    for entropy in entropies:
        states.append(rule.update(states[-1], seen(entropy, **signals)))
    return states


def test_every_public_controller_has_a_row():
    public = {name for name in control.__all__ if name not in ("Controller", "Observed")}
    assert public == {type(row.closed).__name__ for row in ROWS}


@every
def test_is_a_frozen_controller_of_plain_numbers(row):
    assert isinstance(row.closed, Controller)
    with pytest.raises(FrozenInstanceError):
        setattr(row.closed, fields(row.closed)[0].name, 1.0)

    def leaves(state):
        return [leaf for value in state for leaf in (leaves(value) if isinstance(value, tuple) else [value])]

    assert all(type(leaf) in (int, float, bool) for state in run(row.closed, WAVE) for leaf in leaves(state))


@every
def test_is_pure(row):
    first, second = run(row.closed, WAVE), run(row.closed, WAVE)
    assert first == second
    assert [row.closed.coef(state) for state in first] == [row.closed.coef(state) for state in first]


@every
@pytest.mark.parametrize("cut", [0, 1, 17])
def test_saved_through_json_it_goes_on_as_if_uninterrupted(row, cut):
    states = run(row.closed, WAVE)
    saved = json.loads(json.dumps(pack(states[cut])))
    loaded = unpack(row.closed.init(), saved)
    assert loaded == states[cut]
    assert type(loaded) is type(states[cut])
    assert run(row.closed, WAVE[cut:], loaded) == states[cut:]


@every
def test_a_foreign_state_is_refused(row):
    good = pack(row.closed.init())
    first = next(iter(good))
    for bad in ({**good, "other": 1}, {}, {**good, first: "x"}, [1, 2]):
        with pytest.raises(ValueError, match="state"):
            unpack(row.closed.init(), bad)


@pytest.mark.parametrize("row", [row for row in ROWS if row.bounds], ids=lambda row: row.name)
@given(entropies=st.lists(st.floats(-1e100, 1e100), max_size=30), sense=st.sampled_from([1, -1]), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_coefficient_stays_in_its_bounds(row, entropies, sense, share):
    low, high = row.bounds
    coefs = [row.closed.coef(state) for state in run(row.closed, entropies, sense=sense, grad_share=share)]
    assert all(low <= coef <= high or (coef == 0 and isinstance(row.closed, Thermostat)) for coef in coefs)


@feedback
@both
def test_an_error_moves_the_coefficient_the_right_way_in_both_senses(row, sense):
    """Further from the wanted side of the target: a stronger coefficient than on it."""
    wanting, sated = (run(row.closed, [0.5 - sense * side] * 5, sense=sense)[-1] for side in (5.0, -5.0))
    assert row.closed.coef(wanting) > row.closed.coef(sated)


@feedback
@both
def test_closed_loop_reaches_the_target_and_does_not_run_away(row, sense):
    """A policy whose entropy the task pulls the unwanted way and the bonus the other: dH = .2 (sense coef - sense .5) - .2 (H - .5)."""
    entropy, state, tail = 0.5, row.closed.init(), []
    for step in range(6000):
        state = row.closed.update(state, seen(entropy, sense))
        entropy += 0.2 * sense * (row.closed.coef(state) - 0.5) - 0.2 * (entropy - 0.5)
        tail.append(entropy)
        assert abs(entropy - 0.5) < 5, f"ran away at step {step}"
    assert abs(sum(tail[-1000:]) / 1000 - 0.5) < 0.11


@both
def test_gradient_share_reaches_its_share_in_both_senses(sense):
    rule, task = GradientShare(0.2, lr=0.1), 30.0
    state = rule.init()
    for _ in range(200):
        coef = rule.coef(state)
        state = rule.update(state, Observed(1.0, sense, grad_share=coef / (coef + task)))
    assert rule.coef(state) / (rule.coef(state) + task) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.feedback], ids=lambda row: row.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_signal_that_is_absent_or_not_finite_is_refused_by_name(row, bad):
    state = run(row.closed, WAVE[:3])[-1]
    before = pack(state)
    with pytest.raises(ValueError, match=f"{row.feedback}={bad}.*legal: a finite number"):
        row.closed.update(state, seen()._replace(**{row.feedback: bad}))
    assert pack(state) == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.feedback is None], ids=lambda row: row.name)
def test_schedules_read_nothing(row):
    assert row.closed.update(row.closed.init(), Observed(math.nan)).step == 1


@every
def test_what_is_open_is_refused_at_init_by_name(row):
    if row.open == row.closed:
        assert row.open.init() == row.closed.init()
    else:
        with pytest.raises(ValueError, match=r"open: .*(steps|lr|max_entropy).*resolve"):
            row.open.init()


# Schedules: values by hand


def at(schedule, *steps):
    return pytest.approx([schedule.at(step) for step in steps])


def test_schedules_by_hand():
    assert at(linear(1, 0, 10), 0, 5, 10, 1000) == [1.0, 0.5, 0.0, 0.0]
    assert at(linear(2, -1, 3), 0, 3) == [2.0, -1.0]
    assert at(exponential(1, 7, floor=0.1), 0, 7, 10**9) == [1.0, 0.5 + 0.1 / 2, 0.1]
    assert [0.0, 0.5, 1.0, 0.5 + 0.25 * math.sqrt(2), 0.0, 0.0] == at(cosine(1, 0, 10, warmup=2), 0, 1, 2, 4, 10, 11)
    assert at(piecewise([(5, 0.3), (10, 0.1)]), 0, 5, 7.5, 10, 99) == [0.3, 0.3, 0.2, 0.1, 0.1]
    assert at(piecewise([(5, 0.3)]), 0, 99) == [0.3, 0.3]
    assert at(constant(0.7), 0, 99) == [0.7, 0.7]


def test_a_schedule_used_as_a_controller_begins_at_its_start():
    rule = linear(1, 0, 4)
    assert [rule.coef(state) for state in run(rule, [0.0] * 4)] == [1, 0.75, 0.5, 0.25, 0]


# Feedback rules: parity with the field

ENTROPIES = [0.7 + 0.5 * math.sin(0.01 * step) + 0.2 * math.cos(1.7 * step) for step in range(2000)]


@pytest.mark.parametrize("form", ["log", "exp"])
@pytest.mark.parametrize("sense", [1, -1])
def test_target_entropy_is_adam_on_a_float64_log_coefficient(form, sense):
    """ "exp" is CleanRL's objective, (-exp(log_alpha) * (log_pi + target)).mean() with log_pi = -entropy."""
    rule, target = TargetEntropy(0.6, 3e-3, 0.2, form=form), 0.6
    log_coef = torch.tensor(math.log(0.2), dtype=torch.float64, requires_grad=True)
    adam, state = torch.optim.Adam([log_coef], lr=3e-3), rule.init()
    for entropy in ENTROPIES:
        adam.zero_grad()
        weight = log_coef.exp() if form == "exp" else log_coef
        (-weight * sense * (-entropy + target)).backward()
        adam.step()
        state = rule.update(state, Observed(entropy, sense))
        assert abs(rule.coef(state) - log_coef.exp().item()) < 1e-9
    assert abs(rule.coef(state) - 0.2) > 0.01


def test_target_entropy_is_the_learnt_coefficient_of_stable_baselines3():
    """Its own SAC on Pendulum, 60 gradient steps; float32 there."""
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is the peer")
    model = sb3.SAC(
        "MlpPolicy", "Pendulum-v1", seed=0, learning_starts=20, batch_size=16, ent_coef="auto_0.3", policy_kwargs={"net_arch": [8]}, learning_rate=1e-2
    )
    actual, entropies = model.actor.action_log_prob, []

    def listening(observation):
        action, log_prob = actual(observation)
        if torch.is_grad_enabled():  # the policy's own step; the target's is under no_grad
            entropies.append(-log_prob.detach().mean().item())
        return action, log_prob

    model.actor.action_log_prob = listening
    model.learn(80)
    rule = TargetEntropy(-1.0, lr=1e-2, init_coef=0.3)
    state = rule.init()
    for entropy in entropies:
        state = rule.update(state, Observed(entropy))
    assert len(entropies) >= 50
    assert abs(rule.coef(state) - 0.3) > 0.03
    assert rule.coef(state) == pytest.approx(model.log_ent_coef.exp().item(), abs=1e-5)


def test_thermostat_is_trls_adaptive_entropy_step_by_step():
    """TRL 1.16, GRPOTrainer: the last measured entropy starts at infinity and gates the coefficient; a step up at or below the target, down above it."""
    target, delta, low, high = 0.7, 0.005, 0.0, 0.05
    rule = Thermostat(target, delta, 0.01, (low, high))
    coef, last, state = 0.01, math.inf, rule.init()
    for entropy in [*ENTROPIES, target, target]:
        assert rule.coef(state) == (coef if last <= target else 0.0)
        coef = min(coef + delta, high) if entropy <= target else max(coef - delta, low)
        last = entropy
        state = rule.update(state, Observed(entropy))
        assert state.held == coef
    assert {0.0, high} <= {rule.coef(state) for state in run(rule, ENTROPIES)}


def test_band_is_aents_rule_step_by_step():
    """AEnt: coef -= lr (min(0, H - low) + max(0, H - high)), into the box."""
    rule, coef = Band(0.6, 0.8, 1e-3, (1e-5, 1e-2), start=2e-4), 2e-4
    state = rule.init()
    for entropy in ENTROPIES:
        coef = min(max(coef - 1e-3 * (min(0.0, entropy - 0.6) + max(0.0, entropy - 0.8)), 1e-5), 1e-2)
        state = rule.update(state, Observed(entropy))
        assert rule.coef(state) == pytest.approx(coef, abs=1e-15)
    assert rule.coef(rule.update(state, Observed(0.7))) == rule.coef(state)
    assert Band(0.1, 0.5).init().held == 1e-5


def test_pi_is_proportional_plus_integral():
    rule = PI(1.0, kp=0.5, ki=0.1, bounds=(-10, 10))
    total, state = 0.0, rule.init()
    for entropy in (0.8, 0.9, 1.3, 0.2):
        total += 1.0 - entropy
        state = rule.update(state, Observed(entropy))
        assert rule.coef(state) == pytest.approx(0.5 * (1.0 - entropy) + 0.1 * total)


@pytest.mark.parametrize("side", [1, -1])
def test_pi_leaves_its_bound_at_once_when_the_error_turns(side):
    rule = PI(0.0, kp=0.01, ki=0.1, bounds=(-1, 1))
    states = run(rule, [-side * 3.0] * 500)
    assert rule.coef(states[-1]) == side
    turned = run(rule, [side * 3.0] * 3, states[-1])
    assert abs(rule.coef(turned[1])) < 1
    assert side * rule.coef(turned[3]) < 0.5


def test_pi_two_sided_is_a_ceiling_as_well():
    rule = PI(0.5, 0.2, 0.02, (-2, 2))
    assert rule.coef(run(rule, [5.0])[-1]) < 0 < rule.coef(run(rule, [0.0])[-1])
    assert PI(0.5, 1, 0, (0.1, 2)).init().held == 0.1


def test_plateau_lowers_only_after_patience_steps_without_a_better_reward():
    rule = Plateau(constant(1.0), patience=2, factor=0.5)
    state, coefs = rule.init(), []
    for reward in (1, 2, 2, 1, 3, 0, 0, 0, 0):
        state = rule.update(state, seen(reward=reward))
        coefs.append(rule.coef(state))
    assert coefs == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_plateau_steps_the_controller_inside():
    rule = Plateau(linear(1, 0, 4), 100)
    assert [rule.coef(state) for state in run(rule, [0.0] * 2)] == [1, 0.75, 0.5]


def test_a_scheduled_target_moves_with_the_steps():
    rule = Thermostat(linear(1.0, 0.0, steps=10), delta=0.1)
    states = run(rule, [0.55] * 9)
    assert [state.on for state in states[1:]] == [True] * 5 + [False] * 4
    assert [current_target(rule, state) for state in states[:3]] == [1.0, 0.9, 0.8]
    assert current_target(Plateau(rule, 3), Plateau(rule, 3).init()) == 1.0
    assert current_target(linear(1, 0, 5), linear(1, 0, 5).init()) is None


# Arguments

BAD = [
    (lambda: constant("x"), "constant: value='x'"),
    (lambda: constant(math.nan), "constant: value=nan"),
    (lambda: constant(True), "constant: value=True"),
    (lambda: linear(1, math.inf), "linear: end=inf"),
    (lambda: linear(1, 0, 0), "linear: steps=0"),
    (lambda: linear(1, 0, 2.5), "linear: steps=2.5"),
    (lambda: linear(10**400, 0), "linear: start=1000"),
    (lambda: linear(linear(1, 0), 0), "linear: start=linear"),
    (lambda: exponential(1, 0), "exponential: half_life=0"),
    (lambda: exponential(1, 5, floor=2), "exponential: floor=2.0"),
    (lambda: cosine(1, 0, 10, warmup=10), "cosine: warmup=10"),
    (lambda: cosine(1, 0, warmup=-1), "cosine: warmup=-1"),
    (lambda: piecewise([]), r"piecewise: points=\[\]"),
    (lambda: piecewise([(1, 0), (1, 2)]), "piecewise: points"),
    (lambda: piecewise([1, 2]), "piecewise: points"),
    (lambda: piecewise([(-1, 2)]), "piecewise: points: step=-1"),
    (lambda: TargetEntropy("auto"), "TargetEntropy: target='auto'"),
    (lambda: TargetEntropy(1, lr=0), "TargetEntropy: lr=0"),
    (lambda: TargetEntropy(1, init_coef=0), "TargetEntropy: init_coef=0"),
    (lambda: TargetEntropy(1, init_coef=2, bounds=(0.1, 1)), "TargetEntropy: init_coef=2.0"),
    (lambda: TargetEntropy(1, bounds=(0, 1)), r"TargetEntropy: bounds\[0\]=0"),
    (lambda: TargetEntropy(1, bounds=(2, 1)), r"TargetEntropy: bounds=\(2, 1\)"),
    (lambda: TargetEntropy(1, bounds=3), "TargetEntropy: bounds=3"),
    (lambda: TargetEntropy(1, bounds=(1, "x")), "TargetEntropy: bounds"),
    (lambda: TargetEntropy(1, form="square"), "TargetEntropy: form='square'"),
    (lambda: Thermostat(0.2, 0), "Thermostat: delta=0"),
    (lambda: Thermostat(0.2, 0.1, start=2), "Thermostat: start=2.0"),
    (lambda: PI(0.2, -1, 0, (0, 1)), "PI: kp=-1"),
    (lambda: PI(0.2, 1, 0, (1, 1)), "PI: bounds"),
    (lambda: Band(2, 1), "Band: high=1.0"),
    (lambda: Band(0, 1, start=5), "Band: start=5.0"),
    (lambda: GradientShare(1.0), "GradientShare: share=1.0"),
    (lambda: GradientShare(0.5, start=1e5), "GradientShare: start"),
    (lambda: Plateau("x", 3), "controller='x'"),
    (lambda: Plateau(0.1, 0), "Plateau: patience=0"),
    (lambda: Plateau(0.1, 3, 1.0), "Plateau: factor=1.0"),
    (lambda: as_controller(None), "controller=None"),
    (lambda: as_controller(linear), "controller=<class"),
    (lambda: as_controller(math.nan), "controller=nan"),
]


@pytest.mark.parametrize("make, message", BAD, ids=[message for _, message in BAD])
def test_a_bad_argument_is_named_with_its_value_and_what_is_legal(make, message):
    with pytest.raises(ValueError, match=f"{message}.*legal: "):
        make()


def test_numbers_of_any_kind_become_plain_ones():
    rule = linear(torch.tensor(0.5).item(), 0, 1e4)
    assert (type(rule.end), type(rule.steps), rule.steps) == (float, int, 10_000)
    assert as_controller(0.25) == constant(0.25) == Plateau(0.25, 1).controller
    assert PI(constant(0.5), 1, 0, (0, 1)) == PI(0.5, 1, 0, (0, 1))
    assert KNOWN["steps"] == 50
