"""What columns are called: by which names trainers log what rules look at, and which trainer it was.

Of the names of one thing the first that a log has counts. `-name` is minus that column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

STEPS = (
    "step",
    "_step",
    "Step",
    "global_step",
    "train/global_step",
    "time/total_timesteps",
    "total_timesteps",
    "num_env_steps_sampled_lifetime",
    "timesteps_total",
)
MEMBER = "member"
KNOWN: dict[str, tuple[str, ...]] = {
    "entropy": ("entropy", "entreg/entropy", "policy_entropy", "losses/entropy", "actor/entropy", "policy/entropy_avg", "objective/entropy", "ENTROPY_LOSS"),
    "share": ("entropy/max", "entreg/entropy/max"),
    "regularised": ("entropy/family", "entreg/entropy/family"),
    "target": ("entropy/target", "entreg/entropy/target"),
    "reward": (
        *("return", "rollout/ep_rew_mean", "charts/episodic_return", "episode_reward_mean", "episode_return_mean", "env_runners/episode_return_mean"),
        *("critic/score/mean", "critic/rewards/mean", "reward", "rewards/mean", "objective/scores", "eval_accuracy", "accuracy", "reward_mean", "-nll"),
    ),
    "greedy": ("eval/return", "eval/mean_reward"),
    "coef": (
        *("coef", "entreg/coef", "train/ent_coef", "ent_coef", "entropy_coef", "entropy_coeff", "actor/entropy_coeff", "losses/alpha", "alpha"),
        *("curr_entropy_coeff", "alpha_value", "marginal_coef"),
    ),
    "coef_loss": ("train/ent_coef_loss",),
    "grad_share": ("grad_share", "entreg/grad_share"),
    "classes": ("marginal/share",),
    "marginal": ("marginal", "entropy/marginal"),
}
LOSSES = ("train/entropy_loss", "entropy_loss", "losses/entropy_loss", "actor/entropy_loss")  # two signs in the field
PREFIXES = ("train/", "train_", "info/learner/default_policy/learner_stats/", "learners/default_policy/", "info/")  # that trackers put before names
ENTROPY_LOSS = "ENTROPY_LOSS"
SIGNS = {"stable-baselines3": -1, "verl": 1}  # what these two log under entropy_loss: the term of the loss, and the entropy
HOSTS: dict[str, tuple[str, ...]] = {  # names that only this trainer logs
    "stable-baselines3 SAC": ("train/ent_coef_loss", "train/actor_loss"),
    "stable-baselines3": ("train/policy_gradient_loss", "train/entropy_loss", "rollout/ep_rew_mean", "time/total_timesteps"),
    "verl": ("actor/entropy", "actor/entropy_loss", "critic/score/mean", "critic/rewards/mean", "actor/pg_loss"),
    "cleanrl": ("charts/episodic_return", "losses/policy_loss", "losses/old_approx_kl", "losses/qf1_loss"),
    "rllib": ("env_runners/episode_return_mean", "episode_reward_mean", "curr_entropy_coeff", "num_env_steps_sampled_lifetime"),
    "trl": (
        "completions/mean_length",
        "frac_reward_zero_std",
        "train/completions/mean_length",
        "policy/entropy_avg",
        "objective/entropy",
        "train/frac_reward_zero_std",
    ),
    "entreg": ("entropy/max", "entropy/perplexity", "entropy/family"),
}


def plain(name: str) -> str:
    """A column's name without what trackers put before it, where that makes it a known one.

    >>> plain("train/entropy"), plain("train/entropy_loss"), plain("info/learner/default_policy/learner_stats/entropy"), plain("train/loss")
    ('entropy', 'train/entropy_loss', 'entropy', 'train/loss')
    """
    if name in INTERESTING:
        return name
    for prefix in PREFIXES:
        if name.startswith(prefix) and name[len(prefix) :] in INTERESTING:
            return name[len(prefix) :]
    return name


def signed(name: str) -> tuple[int, str]:
    """The sign and the bare name of `-name` or `name`."""
    return (-1, name[1:]) if name.startswith("-") else (1, name)


INTERESTING = {signed(name)[1] for names in KNOWN.values() for name in names} | set(LOSSES) | {name for names in HOSTS.values() for name in names}


def host_of(names: set[str]) -> str:
    """The trainer that wrote a log with these columns; empty where it cannot be told.

    >>> host_of({"time/iterations", "train/entropy_loss", "train/policy_gradient_loss"}), host_of({"step", "loss"})
    ('stable-baselines3', '')
    """
    found = [(sum(name in names for name in own), -index, host) for index, (host, own) in enumerate(HOSTS.items())]
    count, _, host = max(found)
    return host if count else ""


class Choice(NamedTuple):
    """Which column a name of ours is read from, and by which factor."""

    column: str
    factor: float


class Names(NamedTuple):
    """How a log is read: for each name of ours its column, the trainer, and what has to be said about it."""

    choices: dict[str, Choice]
    host: str
    notes: list[str]


def choose(present: Mapping[str, tuple[float, float]], given: Mapping[str, str], raw: set[str]) -> Names:
    """Which columns to read, from those `present` (plain name -> lowest and highest value), the user's `given` ones, and all `raw` names.

    Raises: `ValueError` where the sign of an entropy_loss cannot be told.
    """
    host = host_of({plain(name) for name in raw} | raw)
    choices: dict[str, Choice] = {}
    notes: list[str] = []
    for ours, column in given.items():
        factor, bare = signed(column) if column not in present else (1, column)
        choices[ours] = Choice(bare, factor)
    for ours, candidates in KNOWN.items():
        if ours in choices:
            continue
        for candidate in candidates:
            factor, bare = signed(candidate)
            if bare == ENTROPY_LOSS:
                loss = next((name for name in LOSSES if name in present), None)
                if loss is not None:
                    sign, why = sign_of(loss, *present[loss], host)
                    choices[ours] = Choice(loss, sign)
                    notes.append(why)
            elif bare in present:
                choices[ours] = Choice(bare, factor)
                break
    return Names(choices, host, notes)


def sign_of(name: str, low: float, high: float, host: str) -> tuple[int, str]:
    """The sign that makes an entropy of the column `name`, which has two in the field, and how we know.

    Raises: `ValueError` where it cannot be told: values of both signs and no known trainer.

    >>> sign_of("entropy_loss", -1.38, -0.2, "")[0], sign_of("entropy_loss", 0.1, 0.5, "")[0]
    (-1, 1)
    """
    minus, plus = f"--column entropy=-{name}", f"--column entropy={name}"
    if host in SIGNS:
        sign = SIGNS[host]
        return (
            sign,
            f"{name} is read as {'the entropy' if sign > 0 else 'minus the entropy'}: that is what {host} logs (otherwise: {plus if sign < 0 else minus})",
        )
    if high <= 0:
        return -1, f"{name} is read as minus the entropy, since no value is above 0 (if it is the entropy of a density: {plus})"
    if low >= 0:
        return 1, f"{name} is read as the entropy, since no value is below 0 (if it is minus the entropy of a density: {minus})"
    raise ValueError(f"{name} has values of both signs, from {low:.4g} to {high:.4g}, and may be the entropy or minus it; say {plus} or {minus}")


def check_given(given: Sequence[str]) -> dict[str, str]:
    """`--column` texts as a mapping.

    Raises: `ValueError` naming the text that is no NAME=COLUMN of a known name.

    >>> check_given(["entropy=pi_H", "reward=-loss"])
    {'entropy': 'pi_H', 'reward': '-loss'}
    """
    result: dict[str, str] = {}
    legal = ("step", "member", *KNOWN)
    for text in given:
        ours, equals, column = text.partition("=")
        if not equals or ours not in legal or not column:
            raise ValueError(f"column is {text!r}; legal is NAME=COLUMN with one of the names {', '.join(legal)}")
        if ours in result:
            raise ValueError(f"column names {ours} twice; legal is one column a name")
        result[ours] = column
    return result
