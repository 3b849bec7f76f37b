"""The loop of recipes on data, with the smallest thing that can be fitted: records, guard, rescue, resume and the end."""

import math

import numpy as np
import pytest

from entreg import collapse, loop
from entreg.control import TargetEntropy
from entreg.guard import Guarded, Rule
from entreg.record import read_records
from entreg.report.data import digest
from entreg.run import NonFinite, Run, RunSettings, exit_status
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same

LARGEST = math.log(8)


class Falling(loop.Fit):
    """Two members: the entropy of the second falls to nothing, and its accuracy after it; a coefficient above 0.05 holds the entropy."""

    rules = (Rule("policy", LARGEST),)
    lines = 20

    def __init__(self, action="warn", steps=40, at=None):
        self.steps, self.at, self.value, self.written = steps, at, 0.0, 0
        self.members = loop.combinations([3, 4], coef=["0"], kind=["falling"])
        self.streams = loop.generators([3, 4], 0x77)
        rescue = Rule("policy", LARGEST, patience=2) if action == "rescue" else None
        self.regularizers = [loop.regularizer("0", steps=steps, maximum=LARGEST, rescue=rescue) for _ in self.members]
        self.entropies = [LARGEST, LARGEST]

    def accuracy(self, member):
        return 0.1 if member and self.entropies[1] < 0.1 else 0.9

    def update(self, step):
        if step == self.at:
            raise KeyboardInterrupt
        self.value += sum(float(stream.random()) for stream in self.streams)
        self.entropies[1] = LARGEST if self.regularizers[1].coef > 0.05 else max(0.0, self.entropies[1] - 0.25)
        for member, one in enumerate(self.regularizers):
            one.observe(self.entropies[member])
            one.step(reward=self.accuracy(member))
        return {"value": self.value if self.steps < 1000 or step < 3 else math.nan}

    def rows(self, step, *, evaluate):
        over = collapse.rescued(self.regularizers)
        each = [{"accuracy": self.accuracy(m), "entropy": self.entropies[m], "value": self.value, "rescued": over[m]} for m in range(2)]
        return [{**row, "evaluated": 1.0} for row in each] if evaluate else each

    def state_dict(self):
        return {"value": self.value, "entropies": self.entropies, "streams": loop.streams_state(self.streams), "each": loop.states(self.regularizers)}

    def load_state_dict(self, state):
        self.value, self.entropies = state["value"], state["entropies"]
        loop.load_streams(self.streams, state["streams"])
        loop.load_states(self.regularizers, state["each"])

    def write(self, run):
        self.written += 1
        loop.write_maps(run.folder, {"a map": np.eye(2)})


def go(folder, fit, action="warn", **settings):
    run = Run(RunSettings(out=folder, **{"quiet": True, "checkpoint_every": 0, **settings}))
    return loop.train("falling", "toy", {}, run, fit, action)


def events(summary):
    return [line["event"] for line in read_records(summary.folder).lines if "event" in line]


def test_a_collapse_is_said_once_stops_or_is_left_alone(tmp_path, capsys):
    warned = go(tmp_path / "warn", Falling(), quiet=False)
    assert events(warned) == ["collapse"] and warned.step == 40 and warned.stopped is None
    assert capsys.readouterr().err.count("entreg: collapse of member 1 at step") == 1
    stopped = go(tmp_path / "stop", Falling(), "stop")
    assert events(stopped) == ["collapse", "stopped"] and stopped.stopped == "collapse" and stopped.step < 20 and exit_status(stopped) == 1
    assert events(go(tmp_path / "off", Falling(), "off")) == []
    assert warned.metrics == {"accuracy": 0.5}, "the only setting goes without a name"


def test_each_member_has_its_own_rules(tmp_path):
    class Own(Falling):
        def watched(self, member):
            return () if member else self.rules

    assert events(go(tmp_path, Own())) == [], "the second member falls, for which nobody looks"


def test_a_rescue_brings_entropy_back_and_says_so(tmp_path):
    summary = go(tmp_path, Falling("rescue"), "rescue")
    assert events(summary) == ["rescue"]
    last = [line for line in read_records(summary.folder).lines if line["step"] == 40]
    assert [line["rescued"] for line in last] == [0.0, 1.0] and last[1]["entropy"] == LARGEST and last[1]["accuracy"] == 0.9


@pytest.mark.parametrize("action", ["warn", "rescue"])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, action):
    whole = go(tmp_path / "whole", Falling(action), action, eval_every=15)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", Falling(action, at=13), action, eval_every=15)
    for fit in (Falling(action), Falling(action)):
        resumed = go(tmp_path / "cut", fit, action, resume="latest")
    assert fit.written == 0, "a run that is complete writes nothing again"
    assert lasting(resumed.folder) == lasting(whole.folder) and resumed.metrics == whole.metrics
    assert_same(final_state(resumed.folder), final_state(whole.folder))
    assert sum("evaluated" in line for line in lasting(whole.folder)) == 6  # steps 15, 30 and 40


def test_a_value_that_is_not_finite_stops(tmp_path):
    with pytest.raises(NonFinite, match="value at step 3"):
        go(tmp_path, Falling(steps=1000))


def test_a_dry_run_takes_two_steps_and_keeps_nothing(tmp_path):
    run = Run(RunSettings(out=tmp_path, quiet=True, dry_run=True))
    assert loop.prepare(run, 40) == 2 and loop.prepare(run, 1) == 1
    assert loop.train("falling", "toy", {}, run, Falling(steps=2)).step == 2
    assert not list(tmp_path.iterdir())


def test_settings_are_the_groups_of_the_report():
    members = [*loop.combinations([0, 1], coef=["1", "0"], family=["shannon"], match=["none"]), {"method": "kmeans", "seed": 0}]
    assert list(loop.settings(members).items()) == [
        ("coef 1, shannon, match none", [0, 1]), ("coef 0, shannon, match none", [2, 3]), ("method kmeans", [4])
    ]  # fmt: skip
    assert loop.told_apart(members[:4])[0] == {"coef": "1", "family": "shannon", "seed": 0}


def test_a_rescue_aims_at_what_its_rule_wants():
    aims = {}
    for kind, maximum in (("marginal", 2.0), ("conditional", LARGEST), ("policy", LARGEST)):
        controller = loop.regularizer("0", steps=10, maximum=LARGEST, rescue=Rule(kind, maximum)).controller
        assert isinstance(controller, Guarded) and isinstance(controller.rescue, TargetEntropy)
        aims[kind] = controller.rescue.target
    assert collapse.rescued([loop.regularizer("0", steps=10, maximum=LARGEST)]) == [0.0]
    assert aims == {"marginal": 1.9, "conditional": LARGEST / 2, "policy": LARGEST / 4}


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    go(tmp_path, Falling())
    other = Falling()
    other.source = loop.digest(np.ones(3), None)
    with pytest.raises(ValueError, match="the data are not those that this run began with"):
        go(tmp_path, other, resume="latest")
    assert loop.digest(np.ones(3)) != loop.digest(np.zeros(3))


def test_settings_have_the_names_of_the_reports_groups():
    axes = {"family": ["shannon", "renyi(2)"], "prior": ["uniform", "labels"], "conditional": ["0", "0.1"], "marginal": ["0", "0.5"]}
    for given in (axes, {"coef": ["0.1", "0"], "bonus": ["exact", "naive"], "family": ["shannon"]}):
        members = loop.combinations([0, 1], **given)
        records = [{"step": 1, "member": index, "loss": 1.0} for index in range(len(members))]
        groups = digest({"members": [{"member": index, **one} for index, one in enumerate(loop.told_apart(members))]}, records).groups
        assert [group.name for group in groups] == list(loop.settings(members))
