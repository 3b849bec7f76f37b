"""What to change, in the words of the trainer that wrote the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """How a host spells the coefficient, a fixed target, a schedule of the coefficient and a feedback rule; `title` is its name."""

    title: str
    coef: str
    target: str
    schedule: str
    rule: str


HOSTS = {
    "entreg": Words("entreg", "--coef", "the target in --coef", "--coef 'linear(0.01, 0)'", "--coef 'TargetEntropy(fraction_of_max(0.5))'"),
    "stable-baselines3": Words(
        "stable-baselines3", "ent_coef", "target_entropy", "an ent_coef that a callback lowers (it takes no schedule)", "entreg.integrations.sb3.EntropyControl"
    ),
    "stable-baselines3 SAC": Words(
        "stable-baselines3 (SAC)", "ent_coef", "target_entropy", "a constant ent_coef", "ent_coef='auto' with a target_entropy that can be reached"
    ),
    "cleanrl": Words("CleanRL", "--ent-coef", "target_entropy in the file", "args.ent_coef lowered in the loop as lr is", "an entreg Bridge on args.ent_coef"),
    "rllib": Words("RLlib", "entropy_coeff", "target_entropy", "entropy_coeff=[[0, 0.01], [STEPS, 0.0]]", "an entreg Bridge on entropy_coeff"),
    "trl": Words(
        "TRL", "entropy_coef", "entropy_target", "entreg.integrations.trl.attach(trainer, linear(0.01, 0))", "entreg.integrations.trl.attach(trainer, PI(...))"
    ),
    "verl": Words("verl", "actor_rollout_ref.actor.entropy_coeff", "the target in ENTREG_VERL", "ENTREG_VERL='linear(0.01, 0)'", "ENTREG_VERL='PI(...)'"),
    "": Words(
        "the trainer", "the entropy coefficient", "the entropy target", "a schedule of the entropy coefficient", "an entreg controller (TargetEntropy, PI)"
    ),
}

ADVICE = {
    "collapsed": "raise {coef} from the start, or hold a target: {rule}; also look at the learning rate and the sign of the term. Entropy does not come back by"
    " decoding at a higher temperature",
    "collapsing": "act now: raise {coef}, or hold a target: {rule}",
    "exploded": "lower {coef} tenfold, or let it decay: {schedule}",
    "no_effect": "raise {coef} tenfold until the bonus has 5 to 20 % of the gradient, or set it to 0 and say so",
    "should_decay": "let the coefficient decay: {schedule}; or lower {coef}",
    "saturated": "set {target} to what the policy can have, or widen the bounds of the rule that sets {coef}",
    "oscillating": "a smaller step of the rule that sets {coef} (lr, or kp and ki), a third of it first",
    "runaway": "set {target} to what the policy can have (for n actions below log n, for squashed ones below .68 nats each), and bound {coef}",
    "marginal_collapse": "raise {marginal}, or match a prior; it is the entropy of the mean prediction that keeps classes, not that of each",
    "schedule": "end the schedule with the run, at 0 or at a floor of a tenth or less: {schedule}",
}
MARGINAL = "the weight of the marginal's entropy"


def advice(rule: str, host: str, setting: Mapping[str, str]) -> str:
    """The advice of a rule in a host's words; `setting` overrides single words.

    >>> advice("exploded", "verl", {})
    "lower actor_rollout_ref.actor.entropy_coeff tenfold, or let it decay: ENTREG_VERL='linear(0.01, 0)'"
    """
    words = HOSTS.get(host, HOSTS[""])._asdict()
    return ADVICE[rule].format(**{"marginal": MARGINAL, **words, **setting})
