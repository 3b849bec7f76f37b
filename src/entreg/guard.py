"""The collapse guard: signs that entropy went wrong, for every recipe and any loop. Standard library only; everything in nats, floats alone.

    marginal      exp(H_m) < 1/2 exp(H_prior): the batch, or a running mean, uses less than half of the classes that it should
    conditional   H_c > 0.9 log K: the predictions stay undecided
    policy        H < 0.05 H_max while the reward is below its best: nothing is left to find something better with

`Guard` warns or stops where these are measured; `Guarded` is a controller that hands its coefficient to a target controller when its entropy goes wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from entreg.control import Controller, Observed, TargetEntropy, as_controller, current_target, pack, unpack
from entreg.folder import warn
from entreg.schedules import check_closed, count, fix, positive

Kind = Literal["marginal", "conditional", "policy"]
MARGINAL, CONDITIONAL, POLICY = 0.5, 0.9, 0.05
NEAR_BEST = 0.05  # of the range of rewards: what is nearer to the best than that is noise
ADVICE = {
    "marginal": "raise the coefficient of the marginal, or match a prior",
    "conditional": "minimise the conditional entropy more strongly, or maximise it less",
    "policy": "a higher coefficient or a target, from the start: entropy does not come back by decoding at a higher temperature",
}


class Watch(NamedTuple):
    """The state of a rule: looks taken, looks in a row at which its sign was there, and the extremes of the reward so far."""

    step: int
    held: int
    lowest: float
    best: float


@dataclass(frozen=True)
class Rule:
    """One sign of collapse, raised once it was there for `patience` looks in a row after the first `grace`.

    `maximum`: the entropy of the prior for "marginal" (log K where it is uniform), log K for "conditional", the largest of the policy for "policy".

    >>> rule = Rule("marginal", maximum=math.log(10), patience=2)
    >>> watch = rule.init()
    >>> for entropy in (1.5, 1.5): watch = rule.update(watch, entropy)      # perplexity 4.5 of 10
    >>> rule.raised(watch)
    True
    """

    kind: Kind
    maximum: float
    patience: int = 3
    grace: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ADVICE:
            raise ValueError(f"Rule: kind={self.kind!r}; legal: {', '.join(ADVICE)}")
        fix(self, maximum=positive, patience=count)
        if not (isinstance(self.grace, int) and self.grace >= 0):
            raise ValueError(f"Rule: grace={self.grace!r}; legal: an integer >= 0")

    def init(self) -> Watch:
        return Watch(0, 0, math.inf, -math.inf)

    def update(self, state: Watch, entropy: float, reward: float | None = None) -> Watch:
        """The state after a look at an entropy; ValueError where it, or the reward of a policy, is missing or not finite."""
        if not math.isfinite(entropy):
            raise ValueError(f"entropy={entropy!r}; legal: a finite number")
        lowest, best, below = state.lowest, state.best, False
        if self.kind == "policy":
            if reward is None or not math.isfinite(reward):
                raise ValueError(f"reward={reward!r}; legal: a finite number, which the policy rule reads at every look")
            lowest, best = min(lowest, reward), max(best, reward)
            below = reward < best - NEAR_BEST * (best - lowest)
        there = self._there(entropy, below) and state.step >= self.grace
        return Watch(state.step + 1, state.held + 1 if there else 0, lowest, best)

    def _there(self, entropy: float, below: bool) -> bool:
        if self.kind == "marginal":
            return entropy < self.maximum + math.log(MARGINAL)
        if self.kind == "conditional":
            return entropy > CONDITIONAL * self.maximum
        return below and entropy < POLICY * self.maximum

    def raised(self, state: Watch) -> bool:
        """Whether the sign has been there for long enough."""
        return state.held >= self.patience

    def evidence(self, entropy: float) -> str:
        """The sign in words.

        >>> Rule("conditional", maximum=math.log(10)).evidence(2.2)
        'conditional entropy 2.2, above 90 % of its maximum 2.303'
        """
        if self.kind == "marginal":
            return f"perplexity of the marginal {math.exp(entropy):.3g}, under half of the prior's {math.exp(self.maximum):.3g}"
        if self.kind == "conditional":
            return f"conditional entropy {entropy:.4g}, above 90 % of its maximum {self.maximum:.4g}"
        return f"entropy {entropy:.3g}, under 5 % of its maximum {self.maximum:.4g}, while the reward is below its best"


class Alarm(NamedTuple):
    """A rule that was raised."""

    rule: Kind
    member: int
    step: int
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"collapse of member {self.member} at step {self.step}: {self.evidence}; {self.advice}"


class Collapse(RuntimeError):
    """What a guard that stops raises; `alarm` says why."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(str(alarm))
        self.alarm = alarm


class Guard:
    """Rules over the members of a run, or of any loop; `action` "warn" says so on stderr once, each time anew after it was over, "stop" raises `Collapse`.

    >>> guard = Guard([Rule("marginal", maximum=math.log(10), patience=2)], action="stop")
    >>> guard.look(1, marginal=2.2), guard.look(2, marginal=0.1)
    ([], [])
    >>> guard.look(3, marginal=0.1)
    Traceback (most recent call last):
    entreg.guard.Collapse: collapse of member 0 at step 3: perplexity of the marginal 1.11, under half of the prior's 10; raise the coefficient ...
    """

    def __init__(self, rules: Sequence[Rule], *, action: Literal["warn", "stop", "note"] = "warn", members: int = 1) -> None:
        if action not in ("warn", "stop", "note"):
            raise ValueError(f"action={action!r}; legal: 'warn', 'stop', or 'note' (alarms are returned and nothing else)")
        self.rules, self.action = tuple(rules), action
        self.watches = [[rule.init() for rule in self.rules] for _ in range(members)]

    def look(
        self,
        step: int,
        *,
        marginal: float | None = None,
        conditional: float | None = None,
        entropy: float | None = None,
        reward: float | None = None,
        member: int = 0,
    ) -> list[Alarm]:
        """Take these values in, nats, and return the alarms that are new. A rule without a value is not asked (`policy` reads `entropy` and `reward`).

        Raises: `ValueError` for a value that is not finite, `Collapse` with action "stop".
        """
        seen = {"marginal": marginal, "conditional": conditional, "policy": None if reward is None else entropy}
        alarms = []
        for index, rule in enumerate(self.rules):
            value, old = seen[rule.kind], self.watches[member][index]
            if value is None:
                continue
            new = self.watches[member][index] = rule.update(old, value, reward)
            if rule.raised(new) and not rule.raised(old):
                alarms.append(Alarm(rule.kind, member, step, rule.evidence(value), ADVICE[rule.kind]))
        if alarms and self.action == "stop":
            raise Collapse(alarms[0])
        for alarm in alarms if self.action == "warn" else ():
            warn(str(alarm))
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """What a resumed loop goes on from, as plain JSON numbers."""
        return {"watches": [[pack(watch) for watch in of] for of in self.watches]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; ValueError where it is of other rules or members."""
        watches = state["watches"]
        if len(watches) != len(self.watches) or any(len(of) != len(self.rules) for of in watches):
            raise ValueError(f"state: watches of {len(watches)} members; legal: {len(self.watches)} with {len(self.rules)} rules each")
        self.watches = [[unpack(rule.init(), watch) for rule, watch in zip(self.rules, of, strict=True)] for of in watches]


class Handed(NamedTuple):
    """The state of Guarded: the first controller's, the rule's, the target controller's, and whether that has taken over."""

    inner: Any
    watch: Watch
    rescue: Any
    over: bool


@dataclass(frozen=True)
class Guarded:
    """A controller until its rule is raised, a target controller from then on, which starts at the coefficient there was, at least its own first one.

    `rule` reads the entropy that the regularizer sees (nats: Shannon, Rényi and min-entropy) and, for "policy", the signal `reward`: its looks
    begin with the first one.

    >>> rule = Rule("marginal", maximum=math.log(10), patience=1)
    >>> guarded = Guarded(0.0, rule, TargetEntropy(2.2, lr=0.1, init_coef=0.5))
    >>> state = guarded.init()
    >>> state = guarded.update(state, Observed(2.25))
    >>> guarded.coef(state)
    0.0
    >>> round(guarded.coef(guarded.update(state, Observed(0.1))), 3)        # one class: the target controller raises it
    0.553
    """

    controller: Controller[Any]
    rule: Rule
    rescue: TargetEntropy

    def __post_init__(self) -> None:
        object.__setattr__(self, "controller", as_controller(self.controller))
        for name, kind in (("rule", Rule), ("rescue", TargetEntropy)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"Guarded: {name}={getattr(self, name)!r}; legal: a {kind.__name__}")

    def init(self) -> Handed:
        check_closed(self.rescue)
        return Handed(self.controller.init(), self.rule.init(), self.rescue.init(), False)

    def update(self, state: Handed, seen: Observed) -> Handed:
        if state.over:
            return state._replace(rescue=self.rescue.update(state.rescue, seen))
        unseen = self.rule.kind == "policy" and seen.reward is None and state.watch.step == 0  # no episode has ended yet
        watch = state.watch if unseen else self.rule.update(state.watch, seen.entropy, seen.reward)
        inner = self.controller.update(state.inner, seen)
        if not self.rule.raised(watch):
            return state._replace(inner=inner, watch=watch)
        low, high = self.rescue.bounds
        start = min(max(self.controller.coef(state.inner), self.rescue.coef(state.rescue), low), high)
        rescue = self.rescue.update(state.rescue._replace(log_coef=math.log(start)), seen)
        return Handed(inner, watch, rescue, True)

    def coef(self, state: Handed) -> float:
        return self.rescue.coef(state.rescue) if state.over else self.controller.coef(state.inner)

    def target(self, state: Handed) -> float | None:
        """The entropy that the controller in charge wants now, nats; None where it has no single target."""
        return current_target(self.rescue, state.rescue) if state.over else current_target(self.controller, state.inner)


def unguarded(controller: Controller[Any]) -> Controller[Any]:
    """The controller that a guard holds; any other one itself.

    >>> unguarded(Guarded(0.5, Rule("policy", maximum=1.0), TargetEntropy(0.2, lr=0.1, init_coef=0.1)))
    constant(value=0.5)
    """
    return controller.controller if isinstance(controller, Guarded) else controller
