"""What a run does about a collapse, on data and with policies alike: the event, the word on stderr, the stop, and the controller that takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from entreg.control import Controller, TargetEntropy
from entreg.folder import warn
from entreg.functional import Family
from entreg.guard import Guard, Guarded, Rule
from entreg.regularizer import EntropyRegularizer
from entreg.run import Run

Action: TypeAlias = Literal["off", "warn", "stop", "rescue"]
AIMS = {"marginal": 0.95, "conditional": 0.5, "policy": 0.25}  # of the rule's maximum: the entropy that a rescue holds
RATE, START = 0.02, 0.1  # learning rate and least first coefficient of a target controller that takes over


def rescuing(controller: Controller[Any], rule: Rule, family: Family, *, lr: float = RATE, init_coef: float = START) -> Guarded:
    """The controller, handed to a target controller once the rule is raised.

    Raises: `ValueError` for a Tsallis entropy, whose values are no nats.

    >>> from entreg.control import constant
    >>> from entreg.functional import SHANNON
    >>> rescuing(constant(0.0), Rule("policy", maximum=2.0), SHANNON).rescue
    TargetEntropy(target=0.5, lr=0.02, init_coef=0.1, bounds=(1e-08, 10000.0), form='log')
    """
    if family.name == "tsallis" and family.order != 1:
        raise ValueError(
            f"on_collapse is rescue with family tsallis({family.order:g}), whose values are no nats; legal are shannon, renyi(order) and min_entropy"
        )
    return Guarded(controller, rule, TargetEntropy(AIMS[rule.kind] * rule.maximum, lr=lr, init_coef=init_coef))


def rescued(each: Sequence[EntropyRegularizer]) -> list[float]:
    """Which regularizers a target controller has taken over: 1 for those, 0 for the others."""
    states = [one.state_dict()["controller"] for one in each]
    return [float(bool(state.get("over", False))) for state in states]


def patience(steps: int) -> dict[str, int]:
    """How long a rescue waits: not in the first tenth of a run, then for a fiftieth of it."""
    return {"patience": max(1, steps // 50), "grace": steps // 10}


class Watcher:
    """The guard of a run's records: a collapse and a rescue become events and, unless the run is quiet, lines on stderr; with "stop" the run is told to end.

    `rules` are those of each member.
    """

    def __init__(self, run: Run, rules: Sequence[Sequence[Rule]], action: Action) -> None:
        self.run, self.stops = run, action == "stop"
        self.guards = [Guard(() if action == "off" else own, action="note") for own in rules]
        self.handed = [0.0] * len(rules)

    def look(self, step: int, member: int, row: Mapping[str, float], *, entropy: float | None, reward: float | None) -> None:
        """Take in a member's record: `marginal` and `conditional` of the row, and a policy's entropy and reward."""
        if (over := row.get("rescued", 0.0)) != self.handed[member]:
            self.handed[member] = over
            now = "".join(f", {words} {row[name]:.3g}" for name, words in (("coef", "which is"), ("entropy/target", "to hold")) if over and name in row)
            self._say(step, "rescue", f"a target controller has taken over the coefficient of member {member} by step {step}{now}")
        guard = self.guards[member]
        for alarm in guard.look(step, marginal=row.get("marginal"), conditional=row.get("conditional"), entropy=entropy, reward=reward):
            self._say(step, "collapse", str(alarm._replace(member=member)))
            if self.stops:
                self.run.stop("collapse")

    def _say(self, step: int, name: str, text: str) -> None:
        self.run.event(step, name, text)
        if not self.run.settings.quiet:
            warn(text)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"guards": [one.state_dict() for one in self.guards], "handed": self.handed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for one, saved in zip(self.guards, state["guards"], strict=True):
            one.load_state_dict(saved)
        self.handed = list(state["handed"])
