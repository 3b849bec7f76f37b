"""Settings that recipes for populations of policies share, and what is wrong with them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from entreg import spelling
from entreg.collapse import Action
from entreg.rl.networks import Activation, Precision
from entreg.several import Several


@dataclass(frozen=True)
class StudyConfig:
    """One study: every coefficient x family x seed is a member of one population."""

    env: str = "CartPole-v1"
    """Gymnasium id, or module:Id for your own."""
    coef: Several[str] = ()
    """Entropy coefficient: a number or a controller; several to compare."""
    family: Several[str] = ("shannon",)
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    seeds: int = 1
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    steps: int = 100_000
    """Environment steps of each member."""
    environments: int = 1
    """Environments of each member."""
    gamma: float = 0.99
    """Discount."""
    learning_rate: str = "0.0003"
    """A number or a schedule over the run."""
    coef_lr: float = 0.0003
    """Learning rate of a learned coefficient that names none."""
    coef_init: float = 1.0
    """Start of a learned coefficient that names none."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
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
    on_collapse: Action = "warn"
    """On collapse (entropy of discrete actions under 5 % of its maximum, the return below its best): off, warn, stop, or rescue by a target controller."""
    video: bool = True
    """Film one evaluated episode for the report where the environment draws itself."""


@dataclass(frozen=True)
class ActorCriticConfig(StudyConfig):
    """One study of policies that learn from fresh experience, with state values."""

    rollout: int = 128
    """Steps of each environment between two updates."""
    value_coef: float = 0.5
    """Weight of the squared error of the value."""
    max_grad_norm: float = 0.5
    """Each member's gradient is clipped to this Euclidean norm."""


@dataclass(frozen=True)
class OnPolicyConfig(ActorCriticConfig):
    """One study: every coefficient x family x seed is a member of one population."""

    coef: Several[str] = ()
    """Entropy coefficient: a number or a controller; several to compare. Default: linear(0.01, 0), for continuous actions 0."""
    over: Literal["action", "trajectory"] = "action"
    """action: the bonus stands in the loss. trajectory: entropy also enters the return (the full gradient of the sequence entropy)."""
    environments: int = 8
    """Environments of each member."""
    rollout: int = 128
    """Steps of each environment in a rollout."""
    lam: float = 0.95
    """GAE's lambda; 1 is the return to go minus the value."""
    learning_rate: str = "linear(0.001, 0)"
    """A number or a schedule over the run."""
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
    shared: bool = False
    """Actor and critic share the hidden layers; convolutions they always share."""
    precision: Precision = "float32"
    """Of the convolutions of images; bfloat16 pays where the processor has AVX512-BF16 or AMX."""
    intrinsic: Literal["none", "icm", "rnd", "count", "state_entropy"] = "none"
    """A reward for what is new: error of a forward model, error at imitating a random network, visit counts, distance to other states."""
    intrinsic_coef: str = "linear(1, 0)"
    """Its weight, a number or a schedule over the run; it is scaled by the standard deviation of its own discounted sum before."""
    intrinsic_order: float = 0.5
    """Rényi order of state_entropy, in (0, 1]."""
    intrinsic_k: int = 3
    """Which nearest neighbour state_entropy measures the distance to."""
    intrinsic_lr: float = 0.001
    """Learning rate of the networks of icm and rnd."""


@dataclass(frozen=True)
class OffPolicyConfig(StudyConfig):
    """One study: every coefficient x family x seed is a member of one population that learns from a replay memory."""

    learning_starts: int = 100
    """Environment steps of each member with random actions before the first gradient step."""
    updates_per_step: float = 1.0
    """Gradient steps for each environment step of a member."""
    batch_size: int = 256
    """Transitions of a gradient step, drawn uniformly from the member's replay."""
    buffer_size: int = 1_000_000
    """Transitions that each member's replay holds at most."""


def check_study(config: StudyConfig) -> None:
    """Raise `ValueError` for the first shared setting that cannot be meant, before anything is made."""
    for name in ("coef", "family"):
        if isinstance(getattr(config, name), str):
            raise ValueError(f"{name} must be a tuple of texts, got the text {getattr(config, name)!r}; write ({getattr(config, name)!r},)")
    for name in ("seeds", "steps", "environments", "coef_lr", "coef_init", "eval_episodes"):
        require(config, name, lambda value: value > 0, "positive and finite")
    require(config, "gamma", lambda value: 0 <= value <= 1, "between 0 and 1")
    require(config, "eval_temperature", lambda value: value >= 0, "finite and not negative")
    if config.on_collapse not in get_args(Action):
        raise ValueError(f"on_collapse must be one of {', '.join(get_args(Action))}, got {config.on_collapse!r}")
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


def check(config: OnPolicyConfig) -> None:
    """Raise `ValueError` for the first setting of an on-policy study that cannot be meant."""
    check_study(config)
    for name in ("rollout", "max_grad_norm"):
        require(config, name, lambda value: value > 0, "positive and finite")
    require(config, "lam", lambda value: 0 <= value <= 1, "between 0 and 1")
    require(config, "value_coef", lambda value: value >= 0, "finite and not negative")
    require(config, "log_std", lambda _: True, "a finite number")


def check_off_policy(config: OffPolicyConfig) -> None:
    """Raise `ValueError` for the first setting of an off-policy study that cannot be meant."""
    check_study(config)
    for name in ("batch_size", "buffer_size"):
        require(config, name, lambda value: value >= 1, "at least 1")
    require(config, "updates_per_step", lambda value: value > 0, "positive and finite")
    require(config, "learning_starts", lambda value: 0 <= value < config.steps, f"from 0 to below steps = {config.steps}")
    left = config.steps - config.learning_starts
    if math.floor(left * config.updates_per_step + 1e-9) < 1:
        raise ValueError(f"updates_per_step must give a gradient step in the {left} steps after learning_starts, got {config.updates_per_step}")


def require(config: StudyConfig, name: str, legal: Callable[[float], bool], words: str) -> None:
    """Raise `ValueError` unless the setting `name` is finite and `legal`, which is what `words` say."""
    value = getattr(config, name)
    if not (math.isfinite(value) and legal(value)):
        raise ValueError(f"{name} must be {words}, got {value}")
