"""Every rule on a real run with its fault and on a healthy one (recorded by `python -m bench.diagnosis --fixtures`), and what the rules leave alone."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from entreg.diagnosis import DEFAULT_RULES, judge, read
from entreg.diagnosis.traces import Column, Facts, Trace, scale

RUNS = Path(__file__).parent / "recorded"
STEP = np.arange(100.0)
FAULTS = {
    "collapsed": ["lr", "sign"],
    "exploded": ["large", "larger"],
    "no_effect": ["small"],
    "should_decay": ["constant"],
    "saturated": ["bounds", "squashed"],
    "oscillating": ["gain", "integral"],
    "runaway": ["maximum", "too-wide"],
    "marginal_collapse": ["no-marginal"],
    "schedule": ["late", "floor"],
}
HEALTHY = ["cartpole", "cartpole-target", "acrobot", "bandit", "pendulum", "clusters"]


@pytest.fixture
def run(tmp_path):
    """The trace of a recorded run."""

    def load(name):
        config, *records = gzip.decompress((RUNS / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "records.jsonl").write_text("".join(f"{line}\n" for line in records))
        (trace,) = read(tmp_path).traces
        return trace

    return load


def names(trace):
    return [finding.rule for finding in judge(trace) if finding.severity != "info"]


@pytest.mark.parametrize(("rule", "arm"), [(rule, arm) for rule, arms in FAULTS.items() for arm in arms])
def test_a_rule_holds_on_a_real_run_with_its_fault(run, rule, arm):
    (finding,) = [finding for finding in judge(run(arm)) if finding.rule == rule]
    assert finding.severity in ("warn", "fail") and finding.advice and any(sign.isdigit() for sign in finding.evidence)


@pytest.mark.parametrize("arm", HEALTHY)
def test_no_rule_holds_on_a_healthy_real_run(run, arm):
    assert names(run(arm)) == []


@pytest.mark.parametrize(("name", "found"), [("healthy", []), ("collapsed", ["collapsed"]), ("exploded", ["exploded"])])
def test_runs_of_stable_baselines3(tmp_path, name, found):
    """PPO on CartPole: the defaults, a learning rate of .05 without a bonus, and a coefficient of 3; its log has neither a maximum nor gradient shares."""
    (tmp_path / "progress.csv").write_bytes(gzip.decompress((RUNS / f"sb3-{name}.csv.gz").read_bytes()))
    (trace,) = read(tmp_path / "progress.csv").traces
    assert names(trace) == found and all("ent_coef" in finding.advice for finding in judge(trace))
    best = Trace(trace.columns, Facts(host=trace.facts.host, best=500.0))
    assert [finding.severity for finding in judge(best)] == ["fail" if name == "collapsed" else "warn"] * len(found)


def before(trace, step):
    return Trace({name: Column(column.step[column.step <= step], column.value[column.step <= step]) for name, column in trace.columns.items()}, trace.facts)


def test_a_collapse_is_seen_coming_on_a_real_run_and_not_on_a_healthy_one(run):
    trace = run("fall")
    share = trace.columns["share"]
    looks = [before(trace, step) for step in share.step[: (share.value < 0.05).argmax()]]
    assert share.value[-1] < 0.05 and any("collapsing" in names(look) for look in looks)
    healthy = run("cartpole")
    assert not any("collapsing" in names(before(healthy, step)) for step in healthy.columns["share"].step[5::5])


def test_every_rule_has_a_fault_and_there_are_ten():
    assert {*FAULTS, "collapsing"} == {rule.__name__ for rule in DEFAULT_RULES} and len(DEFAULT_RULES) == 10


# -------------------------------------------------------------------- known answers


def made(facts=None, **columns):
    return Trace({name: Column(STEP, np.broadcast_to(np.asarray(value, float), 100)) for name, value in columns.items()}, facts or Facts())


RISING = STEP * 2 + 10
STUCK = np.minimum(STEP, 50)
TURN = np.where(STEP % 10 < 5, 1.0, -1.0)
SLOW, SLOWER = (np.where(STEP // every % 2 == 0, 1.0, -1.0) for every in (17, 22))  # in the last two thirds four turns, and three


@pytest.mark.parametrize(
    ("trace", "found"),
    [
        # low entropy with the best reward there is known to be: done, not collapsed
        (made(share=np.exp(-STEP / 10), reward=np.minimum(STEP, 35)), []),
        # low entropy before the reward was earned
        (made(share=np.exp(-STEP / 10), reward=RISING), ["collapsed"]),
        (made(share=np.exp(-STEP / 10), reward=np.minimum(STEP, 35), facts=Facts(best=500.0)), ["collapsed"]),
        (made(share=np.exp(-STEP / 10), reward=10 + STEP % 2), ["collapsed"]),
        (made(share=np.exp(-STEP / 10)), ["collapsed"]),
        # of the highest seen, where no maximum is known; a density has no share
        (made(entropy=0.5 * np.exp(-STEP / 10), reward=10 + STEP % 2), ["collapsed"]),
        (made(entropy=1.0 - STEP / 10, reward=10 + STEP % 2), []),
        (made(entropy=0.02, reward=10 + STEP % 2, facts=Facts(maximum=1.4)), ["collapsed"]),
        # falling towards the floor; not where the plan ends before it, nor in a run that has ended, nor while the reward rises
        (made(share=np.exp(-STEP / 40), reward=10 + STEP % 2), ["collapsing"]),
        (made(share=np.exp(-STEP / 40), reward=10 + STEP % 2, facts=Facts(planned=105.0)), []),
        (made(share=np.exp(-STEP / 40), reward=10 + STEP % 2, facts=Facts(finished=True)), []),
        (made(share=np.exp(-STEP / 40), reward=RISING), []),
        # uniform and no better than at the start: only where a bonus can have done it
        (made(share=0.99, reward=10 + STEP % 2), ["exploded"]),
        (made(share=0.99, reward=10 + STEP % 2, coef=0.0), []),
        (made(share=0.99, reward=10 + STEP % 2, grad_share=0.02), []),
        (made(share=0.99, reward=10 + STEP % 2, grad_share=0.4), ["exploded"]),
        (made(share=0.99, reward=RISING), []),
        (made(entropy=0.3 + STEP / 50, reward=10 - STEP / 50), ["exploded"]),
        # the bonus's share of the gradient
        (made(coef=0.01, grad_share=0.0005, share=0.6, reward=RISING), ["no_effect"]),
        (made(coef=0.01, grad_share=0.05, share=0.6, reward=RISING), []),
        (made(coef=0.0, grad_share=0.0, share=0.6, reward=RISING), []),
        (made(coef=0.01, grad_share=0.0005, entropy=0.6, target=0.5, reward=RISING), []),
        # a controller at its bound, one without the power, one that has nothing to do
        (made(coef=0.1, entropy=0.2, target=0.5, facts=Facts(bounds=(1e-8, 0.1))), ["saturated"]),
        (made(coef=0.1, entropy=0.2, target=0.5, facts=Facts(bounds=(1e-8, 1.0))), []),
        (made(coef=1e-8, entropy=0.6, target=0.5, facts=Facts(bounds=(1e-8, 1.0))), []),
        (made(coef=0.01 + STEP / 1000, entropy=0.2, target=0.5, facts=Facts(bounds=(1e-8, 9.0))), ["saturated"]),
        (made(coef=0.01 + STEP / 1000, entropy=0.2 + STEP / 400, target=0.5, facts=Facts(bounds=(1e-8, 9.0))), []),
        # swings about the target with the coefficient, not noise of the entropy alone, nor swings that calm down
        (made(coef=0.1 + 0.05 * TURN, entropy=0.5 + 0.2 * TURN, target=0.5), ["oscillating"]),
        (made(coef=0.1, entropy=0.5 + 0.2 * TURN, target=0.5), []),
        (made(coef=0.1 + 0.05 * TURN, entropy=0.5 + 0.04 * TURN, target=0.5), []),
        (made(coef=0.1 + 0.05 * TURN, entropy=0.5 + TURN * np.exp(-STEP / 20), target=0.5), []),
        # a coefficient without end
        (made(coef=1e-3 * np.exp(STEP / 10)), ["runaway"]),
        (made(coef=1e-3 * np.exp(STEP / 10), entropy=0.2, target=0.5), ["runaway"]),
        (made(coef=1e-3 * np.exp(np.minimum(STEP, 60) / 10)), []),
        # three crossings are too few; swings that end or calm down are none
        (made(coef=0.1 + 0.05 * SLOW, entropy=0.5 + 0.2 * SLOW, target=0.5), ["oscillating"]),
        (made(coef=0.1 + 0.05 * SLOWER, entropy=0.5 + 0.2 * SLOWER, target=0.5), []),
        (made(coef=0.1 - STEP / 2000, entropy=np.where(STEP < 60, 0.5 + 0.2 * TURN, 0.5 + (STEP - 60) / 100), target=0.5), []),
        (made(coef=0.1 + 0.05 * TURN, entropy=0.5 + np.where(STEP < 66, 1.0, 0.15) * TURN, target=0.5), []),
        # a fall that meets 5 % only long after the log is left alone, and so is a run that has hardly begun or an entropy that still moves
        (made(share=0.5 * np.exp(-STEP / 50), reward=10 + STEP % 2, facts=Facts(planned=1e4)), ["collapsing"]),
        (made(share=0.5 * np.exp(-STEP / 150), reward=10 + STEP % 2, facts=Facts(planned=1e4)), []),
        (made(share=0.97, grad_share=0.5, reward=10 + STEP % 2, facts=Facts(planned=200.0)), ["exploded"]),
        (made(share=0.97, grad_share=0.5, reward=10 + STEP % 2, facts=Facts(planned=400.0)), []),
        (made(coef=0.1, share=0.6 - STEP / 500, grad_share=0.2, reward=STUCK, facts=Facts(planned=100.0, best=200.0)), []),
        # classes of the mean prediction
        (made(classes=0.55), []),
        (made(classes=np.exp(-STEP / 50)), ["marginal_collapse"]),
        (made(classes=0.8), []),
        (made(marginal=2.3 - STEP / 50), ["marginal_collapse"]),
        (made(marginal=2.3 - STEP / 1000), []),
        # schedules
        (made(coef=0.1 - STEP / 2000, facts=Facts(planned=100.0)), ["schedule"]),
        (made(coef=0.1 - STEP / 1000, facts=Facts(planned=100.0)), []),
        (made(coef=0.1 - STEP / 2000, facts=Facts(planned=250.0)), []),
        (
            made(coef=np.maximum(0.1 - STEP / 500, 0.05), share=0.6, grad_share=0.2, reward=STUCK, facts=Facts(planned=100.0, best=200.0)),
            ["schedule"],
        ),
        (made(coef=np.maximum(0.1 - STEP / 500, 0.05), share=0.6, grad_share=0.2, reward=RISING, facts=Facts(planned=100.0)), []),
        (made(coef=0.1, share=0.6, grad_share=0.2, reward=STUCK, facts=Facts(planned=100.0, best=200.0)), ["should_decay"]),
        (made(coef=0.1, share=0.6, grad_share=0.2, reward=STUCK, facts=Facts(planned=300.0, best=200.0)), []),
    ],
)
def test_known_answers(trace, found):
    assert names(trace) == found


def test_of_what_entropy_is_a_share():
    def words(start, host=""):
        return scale(made(entropy=start * np.exp(-STEP / 50), facts=Facts(host=host))).words

    assert [words(np.log(n)) for n in (2, 20, 21)] == ["of log 2, where it began", "of log 20, where it began", "of the highest seen"]
    assert words(np.log(2), "trl") == words(0.68) == "of the highest seen"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_few_records_are_no_reason_to_say_anything(count):
    columns = {
        name: Column(STEP[:count], np.full(count, 0.01)) for name in ("entropy", "share", "reward", "greedy", "coef", "target", "regularised", "grad_share")
    }
    assert names(Trace(columns)) == []
    assert judge(Trace({name: Column(np.zeros(count), np.full(count, 0.01)) for name in columns})) == []


def test_advice_is_in_the_words_of_the_trainer():
    from entreg.diagnosis.advice import ADVICE, HOSTS, advice

    assert {rule.__name__ for rule in DEFAULT_RULES} == set(ADVICE)
    for rule in ADVICE:
        assert len({advice(rule, host, {}) for host in HOSTS}) >= len(HOSTS) - 1 or rule == "marginal_collapse"
    assert "--marginal" in advice("marginal_collapse", "entreg", {"marginal": "--marginal"}) and "ent_coef" in advice("exploded", "stable-baselines3", {})


def test_records_in_memory_and_the_bad_ones():
    import entreg

    records = [{"step": step, "entropy": 0.6 * 0.8**step, "entropy/max": 0.8**step, "return": 9 + step % 2} for step in range(40)]
    assert [finding.rule for finding in entreg.diagnose([*records, {"event": "stopped"}])] == ["collapsed"]
    assert entreg.diagnose(records, rules=()) == []
    with pytest.raises(ValueError, match="records holds no records"):
        entreg.diagnose([])
    with pytest.raises(ValueError, match="record 40: entropy is 'x'; legal is a number"):
        entreg.diagnose([*records, {"step": 41, "entropy": "x"}])


def test_json_of_a_finding_round_trips():
    (finding,) = judge(made(share=np.exp(-STEP / 10)))
    assert json.loads(json.dumps(vars(finding))) == vars(finding) and type(finding.step) is int
