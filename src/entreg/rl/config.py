"""Settings that every on-policy recipe has, and what is wrong with them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from entreg import spelling
from entreg.rl.networks import Activation


@dataclass(frozen=True)
class OnPolicyConfig:
    """One study: every coefficient x family x seed is a member of one population."""

    env: str = "CartPole-v1"
    """Gymnasium id, or module:Id for your own."""
    coef: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Entropy coefficient: a number or a controller; several to compare. Default: linear(0.01, 0), for continuous actions 0."""
    family: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("shannon",)
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    over: Literal["action", "trajectory"] = "action"
    """action: the bonus stands in the loss. trajectory: entropy also enters the return (the full gradient of the sequence entropy)."""
    seeds: int = 1
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    steps: int = 100_000
    """Environment steps of each member."""
    environments: int = 8
    """Environments of each member."""
    rollout: int = 128
    """Steps of each environment in a rollout."""
    gamma: float = 0.99
    """Discount."""
    lam: float = 0.95
    """GAE's lambda; 1 is the return to go minus the value."""
    learning_rate: str = "linear(0.001, 0)"
    """A number or a schedule over the run."""
    value_coef: float = 0.5
    """Weight of the squared error of the value."""
    max_grad_norm: float = 0.5
    """Each member's gradient is clipped to this Euclidean norm."""
    normalise_advantage: bool = True
    """Shift and scale the advantages of a minibatch."""
    normalise_observation: bool = False
    """Shift and scale observations by their running moments."""
    normalise_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    coef_lr: float = 0.03
    """Learning rate of a learned coefficient that names none, a rollout."""
    coef_init: float = 0.01
    """Start of a learned coefficient that names none."""
    squash: bool = False
    """Continuous actions through tanh, with the exact entropy of the squashed action."""
    log_std: float = 0.0
    """Initial log standard deviation of an unsquashed Gaussian policy."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    activation: Activation = "tanh"
    """Between the layers."""
    vectorise: Literal["auto", "sync", "async"] = "auto"
    """How environments run; auto takes a vector implementation where there is one."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor."""
    eval_episodes: int = 10
    """Episodes an evaluation; where the environment has no limit, each is cut after 27 000 steps."""
    eval_temperature: float = 0.0
    """0 takes the most probable action, 1 samples."""
    stop_at: float | None = None
    """Stop when the mean return of the last 100 episodes of every member reaches this."""
    video: bool = True
    """Film one evaluated episode for the report where the environment draws itself."""


_POSITIVE = ("seeds", "steps", "environments", "rollout", "max_grad_norm", "coef_lr", "coef_init", "eval_episodes")
_UNIT = ("gamma", "lam")
_NOT_NEGATIVE = ("value_coef", "eval_temperature")


def check(config: OnPolicyConfig) -> None:
    """Raise `ValueError` for the first setting that cannot be meant, before anything is made."""
    for name in ("coef", "family"):
        if isinstance(getattr(config, name), str):
            raise ValueError(f"{name} must be a tuple of texts, got the text {getattr(config, name)!r}; write ({getattr(config, name)!r},)")
    for name in _POSITIVE:
        require(config, name, lambda value: value > 0, "positive and finite")
    for name in _UNIT:
        require(config, name, lambda value: 0 <= value <= 1, "between 0 and 1")
    for name in _NOT_NEGATIVE:
        require(config, name, lambda value: value >= 0, "finite and not negative")
    require(config, "log_std", lambda _: True, "a finite number")
    if config.stop_at is not None:
        require(config, "stop_at", lambda _: True, "a finite number or None")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"hidden must name at least one positive width, got {config.hidden}")
    for text in config.coef:
        spelling.parse_controller(text)
    for text in config.family:
        spelling.parse_family(text)
    if not config.family:
        raise ValueError("family must name at least one family")


def require(config: OnPolicyConfig, name: str, legal: Callable[[float], bool], words: str) -> None:
    """Raise `ValueError` unless the setting `name` is finite and `legal`, which is what `words` say."""
    value = getattr(config, name)
    if not (math.isfinite(value) and legal(value)):
        raise ValueError(f"{name} must be {words}, got {value}")
