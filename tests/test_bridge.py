"""Bridge: a host's number goes in, the coefficient comes out, and nothing else is touched."""

import json
import math

import pytest

from entreg.bridge import Bridge
from entreg.control import Observed, TargetEntropy
from entreg.guard import Guarded, Rule
from tests.controller_cases import ROWS


class Host:
    """A trainer that logs its entropy and reads its coefficient, as TRL's does."""

    def __init__(self):
        self.entropy, self.coef = math.nan, None

    def bridge(self, controller, **options):
        return Bridge(controller, lambda: self.entropy, lambda coef: setattr(self, "coef", coef), **options)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("sense", ["maximize", "minimize"])
def test_every_controller_drives_a_host_and_resumes(row, sense):
    host, state = Host(), row.closed.init()
    bridge = host.bridge(row.closed, sense=sense)
    assert host.coef == row.closed.coef(state) == bridge.coef
    signals = {"reward": 1.0, "grad_share": 0.1}
    for step in range(20):
        host.entropy = 0.5 + 0.3 * math.sin(step)
        if step == 10:
            saved = json.loads(json.dumps(bridge.state_dict()))
            bridge, host.coef = host.bridge(row.closed, sense=sense), None
            bridge.load_state_dict(saved)
            assert host.coef == row.closed.coef(state)
        bridge.step(**signals)
        state = row.closed.update(state, Observed(host.entropy, 1 if sense == "maximize" else -1, **signals))
        assert host.coef == row.closed.coef(state) == bridge.coef


@pytest.mark.parametrize("row", [row for row in ROWS if row.feedback == "entropy"], ids=lambda row: row.name)
def test_a_host_without_a_measurement_is_refused_and_keeps_its_coefficient(row):
    host = Host()
    bridge = host.bridge(row.closed)
    before, coef, host.coef = bridge.state_dict(), host.coef, "untouched"
    for host.entropy in (math.nan, None):
        with pytest.raises(ValueError, match=r"entropy=(nan|None); legal: a finite number"):
            bridge.step()
    assert (bridge.state_dict(), host.coef, bridge.coef) == (before, "untouched", coef)


def test_a_guarded_controllers_target_is_that_of_the_one_in_charge():
    host = Host()
    rule = Rule("marginal", math.log(10), patience=1)
    bridge = host.bridge(Guarded(TargetEntropy(1.0, lr=0.1, init_coef=0.1), rule, TargetEntropy(2.2, lr=0.1, init_coef=0.5)))
    assert bridge.target == 1.0
    host.entropy = 0.1
    bridge.step()
    assert bridge.target == 2.2 and host.coef > 0.5


def test_a_number_is_a_controller_and_its_target_is_none():
    host = Host()
    bridge = host.bridge(0.25)
    bridge.step()
    assert (host.coef, bridge.target) == (0.25, None)
    with pytest.raises(ValueError, match="sense='up'; legal: 'maximize' or 'minimize'"):
        host.bridge(0.25, sense="up")
