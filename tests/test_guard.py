"""The guard: its three signs, when they count, what it then does, and that a target controller takes over."""

import json
import math

import pytest

from entreg.control import Observed, TargetEntropy, linear, pack, unpack
from entreg.guard import Alarm, Collapse, Guard, Guarded, Rule, unguarded
from entreg.regularizer import EntropyRegularizer

LOG10 = math.log(10)


def raised_at(rule, entropies, rewards=None):
    """The looks, from 1, after which the rule is raised."""
    state, found = rule.init(), []
    for step, entropy in enumerate(entropies, 1):
        state = rule.update(state, entropy, None if rewards is None else rewards[step - 1])
        if rule.raised(state):
            found.append(step)
    return found


def test_the_marginal_is_collapsed_under_half_of_the_priors_perplexity():
    rule = Rule("marginal", LOG10, patience=1)
    assert raised_at(rule, [math.log(5.01), math.log(4.99)]) == [2]
    prior = Rule("marginal", math.log(3), patience=1)  # an unbalanced prior wants less
    assert raised_at(prior, [math.log(1.6), math.log(1.4)]) == [2]


def test_predictions_are_undecided_above_nine_tenths_of_the_maximum():
    assert raised_at(Rule("conditional", LOG10, patience=1), [0.89 * LOG10, 0.91 * LOG10]) == [2]


def test_a_policy_is_collapsed_only_while_its_reward_is_below_the_best():
    low, rule = 0.04 * LOG10, Rule("policy", LOG10, patience=1)
    assert raised_at(rule, [2.0, low, low, low], [0.0, 10.0, 9.8, 8.0]) == [4]  # 9.8 of a range of 10 is the best but for noise
    assert raised_at(rule, [2.0, 0.06 * LOG10], [10.0, 0.0]) == []
    with pytest.raises(ValueError, match="reward=None; legal: a finite number"):
        rule.update(rule.init(), low)


def test_a_sign_counts_after_its_patience_and_the_grace():
    low = [0.1] * 6
    assert raised_at(Rule("marginal", LOG10, patience=3), low) == [3, 4, 5, 6]
    assert raised_at(Rule("marginal", LOG10, patience=2, grace=3), low) == [5, 6]
    assert raised_at(Rule("marginal", LOG10, patience=3), [0.1, 0.1, 2.3, 0.1, 0.1]) == []


def test_it_says_each_collapse_once_and_again_after_it_was_over(capsys):
    guard = Guard([Rule("marginal", LOG10, patience=2), Rule("conditional", LOG10, patience=1)], members=2)
    found = [guard.look(step, marginal=value, member=1) for step, value in enumerate([0.1, 0.1, 0.1, 2.3, 0.1, 0.1])]
    assert [len(alarms) for alarms in found] == [0, 1, 0, 0, 0, 1]
    assert found[1][0][:3] == ("marginal", 1, 1)
    assert capsys.readouterr().err.count("entreg: collapse of member 1 at step") == 2
    assert guard.look(9, conditional=0.1) == [] and len(guard.look(10, conditional=2.2)) == 1
    assert guard.look(11, entropy=0.0) == [], "a policy's entropy without a reward is not asked for"


def test_it_stops_a_loop():
    guard = Guard([Rule("policy", LOG10, patience=1)], action="stop")
    guard.look(1, entropy=2.0, reward=1.0)
    with pytest.raises(Collapse, match=r"collapse of member 0 at step 2: entropy 0\.1, under 5 %") as caught:
        guard.look(2, entropy=0.1, reward=0.0)
    assert isinstance(caught.value.alarm, Alarm) and caught.value.alarm.rule == "policy"


def test_a_saved_guard_goes_on(capsys):
    rules = [Rule("marginal", LOG10, patience=3)]
    one, other = Guard(rules, members=2), Guard(rules, members=2)
    one.look(1, marginal=0.1), one.look(2, marginal=0.1)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert len(other.look(3, marginal=0.1)) == 1 and not other.look(3, marginal=0.1, member=1)
    with pytest.raises(ValueError, match="watches of 2 members; legal: 1 with 1 rules each"):
        Guard(rules).load_state_dict(one.state_dict())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("marginals", 1.0), "kind='marginals'; legal: marginal, conditional, policy"),
        (lambda: Rule("marginal", 0.0), "maximum=0.0; legal: a number > 0"),
        (lambda: Rule("marginal", 1.0, patience=0), "patience=0"),
        (lambda: Rule("marginal", 1.0, grace=-1), "grace=-1"),
        (lambda: Guard([], action="shout"), "action='shout'; legal: 'warn', 'stop', or 'note'"),
        (lambda: Guard([Rule("marginal", 1.0)]).look(1, marginal=math.nan), "entropy=nan; legal: a finite number"),
        (lambda: Guarded(0.1, Rule("marginal", 1.0), 0.5), "rescue=0.5; legal: a TargetEntropy"),
        (lambda: Guarded(0.1, Rule("marginal", 1.0), TargetEntropy(0.5)).init(), "open: lr, init_coef"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_controller_takes_over_at_the_coefficient_there_was():
    guarded = Guarded(linear(0.8, 0.0, steps=8), Rule("marginal", LOG10, patience=2), TargetEntropy(2.0, lr=0.1, init_coef=0.1))
    state, seen = guarded.init(), []
    for entropy in (2.2, 0.1, 0.1, 0.1, 2.2, 2.2):
        state = guarded.update(state, Observed(entropy))
        state = unpack(guarded.init(), json.loads(json.dumps(pack(state))))
        seen.append(guarded.coef(state))
    assert seen[:2] == pytest.approx([0.7, 0.6])  # the schedule
    assert seen[2] == pytest.approx(0.6 * math.exp(0.1)) and seen[3] > seen[2]  # raised from there on
    assert state.over, "it stays with the target when entropy is back"
    regularizer = EntropyRegularizer(guarded, sense="maximize")
    for _ in range(3):
        regularizer.observe(0.1)
        regularizer.step()
    assert regularizer.state_dict()["controller"]["over"] is True


def test_conditional_entropy_that_stays_high_is_pushed_down():
    guarded = Guarded(0.0, Rule("conditional", LOG10, patience=1), TargetEntropy(1.0, lr=0.1, init_coef=0.1))
    state = guarded.update(guarded.init(), Observed(2.25, sense=-1))
    assert guarded.coef(state) == pytest.approx(0.1 * math.exp(0.1))


def test_a_policys_rescue_begins_to_look_with_the_first_reward():
    guarded = Guarded(linear(0.8, 0.0, steps=8), Rule("policy", LOG10, patience=1), TargetEntropy(0.5, lr=0.1, init_coef=0.1))
    state = guarded.update(guarded.init(), Observed(2.2))
    assert guarded.coef(state) == pytest.approx(0.7) and state.watch.step == 0
    state = guarded.update(state, Observed(2.2, reward=1.0))
    with pytest.raises(ValueError, match="reward=None"):
        guarded.update(state, Observed(0.01))
    assert unguarded(guarded) is guarded.controller and unguarded(guarded.controller) is guarded.controller
    assert guarded.target(state) is None and guarded.target(state._replace(over=True)) == 0.5
