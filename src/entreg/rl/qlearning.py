"""What recipes that learn the values of discrete actions share: networks with targets, exploration, and one step of regression.

Shapes: M members, n environments of each, B transitions of a batch, V actions. A recipe turns each batch into `target [M, B]` and calls `regress`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from entreg import functional, spelling, stacked
from entreg.folder import warn
from entreg.rl import population
from entreg.rl.config import OffPolicyConfig, require
from entreg.rl.exploration import EXPLORATIONS, Exploration, NoisyNetwork, epsilon_greedy
from entreg.rl.heads import Discrete, Head
from entreg.rl.networks import Architecture
from entreg.rl.off_policy import OffPolicy
from entreg.rl.replay import Batch
from entreg.rl.spaces import ActionSpec
from entreg.run import Run

COLDEST = 1e-6  # a temperature of 0 acts as this: the hard maximum, in float32, of values that differ by more than a millionth
ALMOST_UNIFORM = 0.9  # a target above this fraction of the maximum is warned of


@dataclass(frozen=True)
class ValueConfig(OffPolicyConfig):
    """One study of action values: every coefficient x family x seed is a member of one population."""

    learning_rate: str = "0.0005"
    """A number or a schedule over the run."""
    learning_starts: int = 1000
    """Environment steps of each member with random actions before the first gradient step."""
    batch_size: int = 128
    """Transitions of a gradient step, drawn uniformly from the member's replay."""
    buffer_size: int = 100_000
    """Transitions that each member's replay holds at most."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers."""
    coef_lr: float = 0.001
    """Learning rate of a learned coefficient that names none, a gradient step."""
    loss: Literal["huber", "squared"] = "huber"
    """Of the error of a value; huber's gradient is at most 1."""
    target_rate: float = 0.005
    """How far the target network moves to the learned one, 1 copies it."""
    target_every: int = 1
    """Gradient steps between moves of the target network."""
    max_grad_norm: float = 10.0
    """Each member's gradient is clipped to this Euclidean norm."""


@dataclass(frozen=True)
class QConfig(ValueConfig):
    """One study of action values by which the agent acts."""

    exploration: Exploration = "epsilon_greedy"
    """epsilon_greedy: any action with probability epsilon. boltzmann: the policy softmax(Q / coef). noisy_net: noise on the weights, learned."""
    epsilon: str = "linear(1, 0.05, 10000)"
    """Probability of a random action: a number or a schedule in gradient steps."""
    sigma: float = 0.5
    """Initial noise of noisy_net, divided by the square root of a layer's inputs."""


def check_exploration(config: QConfig) -> None:
    """Raise `ValueError` for the first setting of an agent that acts by its values that cannot be meant."""
    check_values(config)
    if config.exploration not in EXPLORATIONS:
        raise ValueError(f"exploration must be one of {', '.join(EXPLORATIONS)}, got {config.exploration!r}")
    require(config, "sigma", lambda value: value > 0, "positive and finite")


def check_values(config: ValueConfig) -> None:
    """Raise `ValueError` for the first setting of an agent of action values that cannot be meant, with the reason for a family without a soft value."""
    if config.loss not in ("huber", "squared"):
        raise ValueError(f"loss must be huber or squared, got {config.loss!r}")
    require(config, "target_rate", lambda value: 0 < value <= 1, "above 0 and at most 1")
    require(config, "max_grad_norm", lambda value: value > 0, "positive and finite")
    require(config, "target_every", lambda value: value >= 1, "at least 1")
    for text in config.family:
        functional.soft_value(torch.zeros(2), 1.0, spelling.parse_family(text))


def one_head(recipe: str) -> Callable[[ActionSpec], Head]:
    """The head of a recipe for one discrete action."""

    def head(spec: ActionSpec) -> Head:
        if spec.kind != "discrete":
            raise ValueError(f"{recipe} needs one discrete action, and this environment's are {spec.kind}; a2c and ppo take every kind")
        return Discrete(spec)

    return head


class QLearner(OffPolicy):
    """A population of action-value networks and their targets.

    With `soft` the temperature is part of what is learned, and the controllers see the entropy of the soft policy; else it only explores.
    """

    config: QConfig
    agent: "Values"
    UNGUARDED = "without exploration boltzmann the entropy is a setting and not learned"

    def __init__(self, recipe: str, config: QConfig, run: Run | None, *, soft: bool, coef: Sequence[str]) -> None:
        schedules = {"epsilon": config.epsilon} if config.exploration == "epsilon_greedy" else {}
        super().__init__(recipe, config, run, head=one_head(recipe), coef=lambda _: coef, schedules=schedules)
        self.soft = soft
        shape, image = self.environments.observation_spec
        architecture = Architecture(shape, image, self.head.outputs, config.hidden, config.activation, critic=False)
        sigma = config.sigma if config.exploration == "noisy_net" else None
        seeds = [member.seed for member in self.members]
        self.values, self.targets = (NoisyNetwork(architecture, population.weight_generators(seeds), sigma) for _ in range(2))
        self.network = self.values.mean
        self.agent = Values(self.values, self.targets)
        check_share(self)
        self.temperature()  # refuses one that begins below 0

    def temperature(self) -> Tensor:
        """The members' temperatures `[M, 1]`; one below 0 is a `ValueError`."""
        return temperatures(self.coefs())

    def soft_policy(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """Probabilities `(M, N, V)`, each member's by its own family and temperature."""
        return self._by_family(functional.soft_policy, q, mask)

    def _guarded(self) -> float | None:
        return super()._guarded() if self.config.exploration == "boltzmann" else None

    def soft_value(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """Soft values `(M, N)`, each member's by its own family and temperature."""
        return self._by_family(functional.soft_value, q, mask)

    def _by_family(self, function: Callable[..., Tensor], q: Tensor, mask: Tensor | None) -> Tensor:
        tau = self.temperature()
        parts = [function(q[at], tau[at], family, support=None if mask is None else mask[at]) for at, family in self.families.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _entropy(self, probs: Tensor) -> Tensor:
        """Entropies `(M, N)`, each member's by its own family."""
        return torch.cat([functional.categorical_entropy_from_probs(probs[at], family) for at, family in self.families.groups])

    def policy(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """Probabilities `(M, N, V)` by which the agent acts; given the noise of its weights, a noisy network's best action is certain."""
        if self.config.exploration == "boltzmann":
            return self.soft_policy(q, mask)
        schedule = self.schedules.get("epsilon")
        return epsilon_greedy(q, 0.0 if schedule is None else schedule.value, mask)

    @torch.no_grad()
    def act(self, observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, 1]` of the exploring agent."""
        self.values.draw(self.streams.generators)
        q = self.values(torch.from_numpy(observation))
        self.check(q=q)
        probs = self.policy(q, None if mask is None else torch.from_numpy(mask))
        return self.head.sample(probs.log().numpy(), self.noise("uniform"), mask)

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of the learned network at the observations, with gradient, and of the target network at the next ones, `(M, B, V)`; both under new noise."""
        self.values.draw(self.streams.generators)
        self.targets.draw(self.streams.generators)
        with torch.no_grad():
            following = self.targets(batch.next_observation)
        return self.values(batch.observation), following

    def regress(self, batch: Batch, q: Tensor, target: Tensor) -> None:
        """One step of the taken actions' values `q (M, B, V)` towards `target (M, B)`; then the target network moves."""
        error = q.gather(-1, batch.action).squeeze(-1) - target
        loss = functional.huber(error, 1.0 if self.config.loss == "huber" else math.inf)
        self.values.backward(loss, torch.full_like(loss, 1 / loss.shape[1]), self.config.max_grad_norm)
        self.agent.step(self.schedules["learning_rate"].value)
        if (self.update + 1) % self.config.target_every == 0:
            self.targets.follow(self.values, self.config.target_rate)
        with torch.no_grad():
            seen = q.detach()
            probs = self.soft_policy(seen, batch.mask) if self.soft else self.policy(seen, batch.mask)
            mean = loss.detach().mean(1)
            self.seen(mean, mean, self._entropy(probs).mean(1))

    def record(self, outputs: Tensor, mask: Tensor | None) -> None:
        """A training record of every member; `q` is the mean value of the best action, `entropy` that of the acting policy."""
        columns = self.books.columns
        del columns["loss/policy"]  # there is none
        columns["q"] = functional.greedy_value(outputs, support=mask).mean(1).numpy()
        if self.values.spread is not None:
            columns["sigma"] = self.values.spread.data.abs().mean(1).numpy()
        super().record(self.policy(outputs, mask).log(), mask)


def temperatures(coef: Tensor) -> Tensor:
    """The temperatures that coefficients `[M, 1]` are; one below 0 is a `ValueError`."""
    if bool((coef < 0).any()):
        raise ValueError(f"coef: the temperature of a soft value is {float(coef.min())}; legal are numbers >= 0")
    return coef.clamp_min(COLDEST)


class Values:
    """What a checkpoint holds of an agent of action values, beside the mean of its network."""

    def __init__(self, values: NoisyNetwork, targets: NoisyNetwork) -> None:
        self.values, self.targets = values, targets
        self.optimizers = [stacked.StackedAdam(part) for part in values.parts()]

    def step(self, rate: float) -> None:
        for optimizer in self.optimizers:
            optimizer.step(rate)

    def state_dict(self) -> dict[str, Any]:
        optimizers = {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}
        return {"values": self.values.state_dict(), "targets": self.targets.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values.load_state_dict(state["values"])
        self.targets.load_state_dict(state["targets"])
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state["optimizers"][str(index)])


def check_share(learner: OffPolicy) -> None:
    """Raise `ValueError` for a coefficient that is set by the bonus's share of a loss."""
    if learner.reads_share:
        raise ValueError("coef: GradientShare reads a bonus's share of the policy's gradient, and values have no such bonus; legal are the other controllers")


def warn_of_uniform_targets(learner: OffPolicy) -> None:
    """Say, on stderr and as an event of a new run, where a coefficient's target leaves almost no choice to the policy."""
    if learner.step > 0:
        return
    said = set()
    for member, regularizer, family in zip(learner.members, learner.regularizers, (spelling.parse_family(m.family) for m in learner.members), strict=True):
        largest = learner.head.max_entropy(family)
        target = regularizer.target
        if target is None or largest is None or target <= ALMOST_UNIFORM * float(largest) or (member.coef, member.family) in said:
            continue
        said.add((member.coef, member.family))
        actions = learner.head.outputs
        share = f"; its best action of {actions} may hold {most_greedy(target, actions):.3f}" if family.name == "shannon" else ""
        if target > float(largest):
            share = "; no policy reaches it, and a learned coefficient grows to its bound"
        kind = "above what there is" if target > float(largest) else "almost uniform"
        text = f"coef {member.coef}: a target of {target / float(largest):.2f} of the largest entropy is {kind}{share}"
        learner.run.event(0, "almost_uniform", text)
        warn(text)


def most_greedy(entropy: float, actions: int) -> float:
    """The largest probability that one of so many actions can hold at a Shannon entropy: the inverse of `greedy_probability`.

    >>> round(most_greedy(0.98 * math.log(2), 2), 3), round(most_greedy(0.98 * math.log(18), 18), 3)
    (0.583, 0.149)
    """
    low, high = 1 / actions, 1.0
    for _ in range(60):
        p = (low + high) / 2
        rest = -(1 - p) * math.log((1 - p) / (actions - 1)) if p < 1 else 0.0
        low, high = (p, high) if -p * math.log(p) + rest > entropy else (low, p)
    return low
