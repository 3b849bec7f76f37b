"""Soft Q-learning of continuous actions: soft values by importance sampling, and a sampler network that follows Stein's variational gradient.

Shapes: M members, n environments of each, B transitions of a batch, D observation, A numbers of an action in [-1, 1], K value samples, P particles.
The energy policy is `p(a | s) = exp((Q(s, a) - V(s)) / coef)` on the box; its entropy is differential, `A log 2` at most.

Source: Haarnoja et al. 2017 (arXiv:1702.08165); Liu and Wang 2016 (arXiv:1608.04471) for the kernel and its bandwidth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entreg import functional, stacked
from entreg.rl import population
from entreg.rl.config import require
from entreg.rl.exploration import NoisyNetwork
from entreg.rl.heads import Head, Sampled
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.off_policy import OffPolicy
from entreg.rl.qlearning import QConfig, Values, check_share, temperatures
from entreg.rl.replay import Batch
from entreg.rl.spaces import ActionSpec
from entreg.run import Run

NARROWEST = 1e-8  # bandwidth of particles that lie on each other


@dataclass(frozen=True)
class EnergyConfig(QConfig):
    """One study of action values whose actions may be continuous."""

    value_samples: int = 32
    """Continuous actions: uniform ones over which a state's soft value and entropy are estimated."""
    particles: int = 16
    """Continuous actions: the sampler's actions of a state that attract and repel each other."""


def check_energy(config: EnergyConfig) -> None:
    """Raise `ValueError` for the first of these settings that cannot be meant."""
    for name in ("value_samples", "particles"):
        require(config, name, lambda value: value >= 2, "at least 2")


def check_continuous(config: EnergyConfig) -> None:
    """Raise `ValueError` for a setting that only discrete actions have."""
    if config.exploration != "boltzmann":
        raise ValueError(f"exploration {config.exploration} is for discrete actions; with continuous ones the sampler explores, which is boltzmann")
    if others := [family for family in config.family if family != "shannon"]:
        raise ValueError(f"family {others[0]}: soft values of continuous actions are those of shannon alone")


def volume(actions: int, samples: int) -> float:
    """What `samples` uniform actions weigh in an integral over the box: the logarithm of its size over their number, `A log 2 - log K`."""
    return actions * math.log(2) - math.log(samples)


def sampled_value(q: Tensor, coef: Tensor, actions: int) -> Tensor:
    """Soft values `(M, B)` of states from the values `q (M, B, K)` of uniform actions in the box: `coef log mean(exp(Q / coef) 2^A)`, `coef (M, 1)`.

    >>> sampled_value(torch.zeros(1, 1, 5), torch.tensor([[2.0]]), 1)  # 2 log 2
    tensor([[1.3863]])

    Source: Haarnoja et al. 2017, equation 10, with a uniform proposal.
    """
    return functional.soft_value(q, coef) + coef * volume(actions, q.shape[-1])


def sampled_entropy(q: Tensor, coef: Tensor, actions: int) -> Tensor:
    """Entropies `(M, B)` of the energy policy from the same values: `(V - E_p Q) / coef`, the mean by self-normalised weights; at least `A log 2 - log K`.

    >>> sampled_entropy(torch.zeros(1, 1, 5), torch.tensor([[2.0]]), 1)  # log 2: uniform
    tensor([[0.6931]])
    """
    return functional.categorical_entropy(q / coef[..., None]) + volume(actions, q.shape[-1])


def stein(particles: Tensor, score: Tensor) -> Tensor:
    """Directions `(*, P, A)` in which particles approach a density whose log has the gradients `score (*, P, A)` at them.

    `phi_i = mean_j k(u_j, u_i) score_j + grad_{u_j} k(u_j, u_i)` over `j != i`, `k = exp(-|u_j - u_i|^2 / h)`, `h` the median squared distance over `log P`.
    The particle itself is left out, so that the mean is one over actions independent of it, as the paper's is. With itself the sampler of a bandit whose
    actions have a standard deviation of .316 came to .22 (16 particles, 1600 steps), without to .30. Particles that are kept, not drawn, need it.

    >>> stein(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1)).flatten()  # without a score they only repel each other
    tensor([-0.3466,  0.3466])

    Source: Liu and Wang 2016, equation 8; Haarnoja et al. 2017, equation 13, divided by the temperature.
    """
    count = particles.shape[-2]
    apart = particles[..., :, None, :] - particles[..., None, :, :]
    distance = apart.square().sum(-1)
    row, column = torch.triu_indices(count, count, 1)
    h = (distance[..., row, column].median(-1).values / math.log(count)).clamp_min(NARROWEST)[..., None, None]
    kernel = torch.exp(-distance / h) * (1 - torch.eye(count, dtype=score.dtype))
    return (kernel @ score + 2 / h * (kernel[..., None] * apart).sum(-2)) / (count - 1)


class EnergyLearner(OffPolicy):
    """A population of energy policies: `Q(s, a)`, its slow copy, and the sampler `f(s, xi)` that draws actions."""

    config: EnergyConfig
    agent: "Energies"

    def __init__(self, recipe: str, config: EnergyConfig, run: Run | None) -> None:
        super().__init__(recipe, config, run, head=bounded_head(recipe), coef=self._default)
        (size, *_), image = self.environments.observation_spec
        if image:
            raise ValueError(f"env {config.env} shows images, and {recipe} reads vectors where actions are continuous")
        self.size = self.head.actions
        critic = Architecture((size + self.size,), False, 1, config.hidden, config.activation, critic=False)
        sampler = Architecture((size,), False, self.size, config.hidden, config.activation, critic=False, noise=self.size)
        generators = population.weight_generators([member.seed for member in self.members])
        self.network = ActorCritic(sampler, generators, initial="uniform")
        self.values, self.targets = (NoisyNetwork(critic, population.weight_generators([member.seed for member in self.members])) for _ in range(2))
        self.agent = Energies(self.values, self.targets, self.network)
        self.best = torch.zeros(len(self.members))
        check_share(self)
        self.temperature()  # refuses one that begins below 0
        self._check_targets()

    def _default(self, head: Head) -> tuple[str]:
        """A target at which the weights of the value samples are worth `sqrt(K)` equal ones: far from uniform, and far from what the samples cannot show."""
        return (f"TargetEntropy({volume(head.actions, self.config.value_samples) + 0.5 * math.log(self.config.value_samples):.4g})",)

    def _check_targets(self) -> None:
        low, high = volume(self.size, self.config.value_samples), self.size * math.log(2)
        for member, regularizer in zip(self.members, self.regularizers, strict=True):
            target = regularizer.target
            if target is not None and not low < target < high:
                words = (
                    f"legal are entropies between {low:.4g}, the least that {self.config.value_samples} value_samples can show, and {high:.4g}, the uniform one"
                )
                raise ValueError(f"coef {member.coef}: the target is {target:.4g}; {words}")

    def temperature(self) -> Tensor:
        """The members' temperatures `[M, 1]`; one below 0 is a `ValueError`."""
        return temperatures(self.coefs())

    @torch.no_grad()
    def act(self, observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, A]` of the sampler, one draw of its noise each."""
        outputs = self.network.actor(torch.from_numpy(np.concatenate([observation, self.noise("normal")], -1)))
        self.check(outputs=outputs)
        action: np.ndarray = outputs.tanh().numpy()
        return action

    def improve(self, batch: Batch) -> None:
        """One gradient step: the values, their slow copy, then the sampler on the new values."""
        config, tau = self.config, self.temperature()
        items = batch.reward.shape[1]
        proposals = 2 * torch.from_numpy(self.streams.noise((items, config.value_samples, self.size), "uniform")) - 1
        with torch.no_grad():
            value = sampled_value(joint(self.targets, batch.next_observation, proposals), tau, self.size)
            seen = joint(self.values, batch.observation, proposals)
            entropy = sampled_entropy(seen, tau, self.size)
            self.best = seen.amax(-1).mean(1)
        target = functional.soft_backup(batch.reward, value, config.gamma, batch.terminated)
        error = joint(self.values, batch.observation, batch.action[:, :, None])[..., 0] - target
        loss = functional.huber(error, 1.0 if config.loss == "huber" else math.inf)
        self.values.backward(loss, torch.full_like(loss, 1 / items), config.max_grad_norm)
        self._move_sampler(batch.observation, tau)
        self.agent.step(self.schedules["learning_rate"].value)
        if (self.update + 1) % config.target_every == 0:
            self.targets.follow(self.values, config.target_rate)
        mean = loss.detach().mean(1)
        self.seen(mean, mean, entropy.mean(1))

    def _move_sampler(self, observation: Tensor, tau: Tensor) -> None:
        """The sampler's gradient: its particles follow Stein's direction towards the energy policy, before the tanh and with its log-determinant."""
        count = self.config.particles
        noise = torch.from_numpy(self.streams.noise((observation.shape[1], count, self.size), "normal"))
        u = joint(self.network.actor, observation, noise, self.size)
        action = u.detach().tanh().requires_grad_()
        (of_action,) = torch.autograd.grad(joint(self.values, observation, action).sum(), action)
        action = action.detach()
        score = (1 - action.square()) * of_action / tau[:, :, None, None] - 2 * action  # of Q / coef + log det
        direction = stein(u.detach(), score)
        self.network.parameters.backward((u, -direction / (observation.shape[1] * count)))
        stacked.clip_grad_norm(self.network.parameters, self.config.max_grad_norm)

    def record(self, outputs: Tensor, mask: Tensor | None) -> None:
        """A training record of every member; `q` is the mean value of the best of the value samples, `entropy` the estimate of the energy policy's."""
        columns = self.books.columns
        del columns["loss/policy"]  # the sampler has a direction and no loss
        columns["q"] = self.best.numpy()
        self.write(self.books.lines(torch.from_numpy(columns["entropy/family"]), None, self.step))


def joint(network: Callable[[Tensor], Tensor], observation: Tensor, beside: Tensor, outputs: int = 0) -> Tensor:
    """What a network says of every observation `(M, B, D)` joined with each of `beside (M, B, K, A)`: one number each, `(M, B, K)`, or so many `outputs`."""
    wide = observation[:, :, None].expand(*beside.shape[:3], -1)
    result = network(torch.cat([wide, beside], -1).flatten(1, 2)).unflatten(1, beside.shape[1:3])
    joined: Tensor = result if outputs else result[..., 0]
    return joined


def bounded_head(recipe: str) -> Callable[[ActionSpec], Head]:
    """The sampler's head for the continuous actions of an environment, which must have bounds."""

    def head(spec: ActionSpec) -> Head:
        return Sampled(spec, remedy=f"{recipe} has no other kind: bound the environment's actions")

    return head


class Energies(Values):
    """What a checkpoint holds of an agent of continuous actions, beside the sampler's weights."""

    def __init__(self, values: NoisyNetwork, targets: NoisyNetwork, sampler: ActorCritic) -> None:
        super().__init__(values, targets)
        self.optimizers.append(stacked.StackedAdam(sampler.parameters))
