"""Soft actor-critic: maximum-entropy control of continuous actions with a learned coefficient.

Source: Haarnoja et al. 2018 (arXiv:1812.05905). Page: docs/recipes/sac.md.
Shapes: M members, B transitions of a batch, D observation, A numbers of an action, K = 2 A policy outputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from entreg import folder, functional, spelling
from entreg.rl import population
from entreg.rl.config import OffPolicyConfig, require
from entreg.rl.critics import TwinCritics
from entreg.rl.feasibility import infeasible
from entreg.rl.heads import Head, TanhGaussian
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.off_policy import OffPolicy
from entreg.rl.ranks import alone
from entreg.rl.replay import Batch
from entreg.rl.spaces import ActionSpec
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.stacked import StackedAdam

STATUS = "stable"
SUMMARY = "Soft actor-critic (SAC)"
LOG_STD = (-20.0, 2.0)
RUNAWAY = 20.0  # times its start, where most states cannot reach the target: no coefficient will do


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """SAC on any Gymnasium environment with bounded continuous actions."""

    env: str = "Pendulum-v1"
    """Gymnasium id, or module:Id for your own."""
    coef: Several[str] = ()
    """Entropy coefficient: a number or a controller; several to compare. Default: TargetEntropy(action_dim())."""
    steps: int = 20_000
    """Environment steps of each member."""
    tau: float = 0.005
    """Share of the way that the target networks move to the critics at every gradient step."""
    estimator: Literal["sampled", "exact"] | None = None
    """Entropy in losses and target: sampled is -log p of one action, exact the closed form. None: sampled, for families other than Shannon's exact."""
    compile: bool = False
    """The whole gradient step as one compiled graph (torch.compile); needs a C++ compiler, and the first use compiles for about a minute."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    check(config)
    learner = OffPolicy("sac", config, run, head=head_for, coef=default_coef, over_ranks=True)
    agent = learner.agent = Agent(learner, config)
    with learner:
        for batch in learner.batches(agent.act):
            agent.update(batch)
        return learner.finish()


class Agent:
    """Actors, twin critics and their optimizers."""

    def __init__(self, learner: OffPolicy, config: Config) -> None:
        self.learner, self.config = learner, config
        (size, *_), image = learner.environments.observation_spec
        if image:
            raise ValueError(f"env {config.env} shows images, and sac reads vectors")
        assert isinstance(learner.head, TanhGaussian)
        self.head = learner.head
        generators = population.weight_generators([member.seed for member in learner.members])
        architecture = Architecture((size,), False, self.head.outputs, config.hidden, config.activation, critic=False)
        self.actor = learner.network = ActorCritic(architecture, generators, initial="uniform")
        self.critics = TwinCritics(size + self.head.actions, config.hidden, "tanh" if config.activation == "tanh" else "relu", generators)
        self.actor_adam, self.critic_adam = StackedAdam(self.actor.parameters, eps=1e-8), StackedAdam(self.critics.parameters, eps=1e-8)
        self.exact = config.estimator == "exact" or (config.estimator is None and any(member.family != "shannon" for member in learner.members))
        self.starts = [regularizer.coef for regularizer in learner.regularizers]
        self.step = self._compiled() if config.compile else self.gradient_step
        self.warned = [False] * len(learner.members)

    @torch.no_grad()
    def act(self, observation: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Squashed actions `[M, n, A]` for observations `[M, n, D]`."""
        outputs = self.actor.actor(torch.from_numpy(observation)).numpy()
        self.learner.check(outputs=outputs)
        action: np.ndarray = np.tanh(self.head.sample(outputs, self.learner.noise("normal"), None))
        return action

    def update(self, batch: Batch) -> None:
        """One gradient step: critics, then actors on the new critics, then target networks."""
        learner = self.learner
        coef, rate = learner.coefs(), learner.schedules["learning_rate"].value
        noise = learner.batch_noise(2)
        if learner.share_due:
            self.measure(batch.observation, noise[:, 0], coef)
        learner.seen(*self.step(batch, noise, coef, self.critic_adam.rates(rate), self.actor_adam.rates(rate)))

    def gradient_step(self, batch: Batch, noise: Tensor, coef: Tensor, critic_rates: Tensor, actor_rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The arithmetic of an update, as one graph; gives mean actor losses, critic losses and entropies, `[M]` each. Noise is `[M, 2, B, A]`."""
        learner = self.learner
        critic_loss = self.critic_loss(batch, noise[:, 1], coef)
        self.critics.parameters.backward((critic_loss, learner.each(critic_loss)))
        learner.ranks.sum(self.critics.parameters.grad)
        self.critic_adam.apply(critic_rates)
        _, action, entropy = self.look(batch.observation, noise[:, 0])
        value = self.critics(torch.cat([batch.observation, action], -1), frozen=True).amin(1)
        actor_loss = functional.soft_actor(value, entropy, coef)
        self.actor.parameters.backward((actor_loss, learner.each(actor_loss)))
        learner.ranks.sum(self.actor.parameters.grad)
        self.actor_adam.apply(actor_rates)
        self.critics.follow(self.config.tau)
        return learner.mean(actor_loss.detach()), learner.mean(critic_loss.detach().sum(1)), learner.mean(entropy.detach())

    def _compiled(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """`gradient_step` as one graph of compiled code, optimizers included."""
        from torch._dynamo import config as dynamo
        from torch._inductor import cpp_builder

        try:
            cpp_builder.get_cpp_compiler()
        except Exception as error:
            raise ValueError(f"compile needs a C++ compiler, and none was found: {error}; install one or leave compile off") from error

        def traced(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            with self.critics.parameters.traced(), self.critics.target.traced(), self.actor.parameters.traced():
                return self.gradient_step(*inputs)

        compiled = torch.compile(traced, fullgraph=True, dynamic=False)

        def step(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            with dynamo.patch(trace_autograd_ops=True):
                result: tuple[Tensor, Tensor, Tensor] = compiled(*inputs)
            return result

        return step

    def look(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's outputs `[M, B, K]`, drawn actions `[M, B, A]` and entropies `[M, B]`: exact ones, or -log p of the drawn actions."""
        outputs = self.actor.actor(observation)
        action, log_prob = self.head.drawn(outputs, noise)
        return outputs, action, self.learner.families.entropy(self.head, outputs, None) if self.exact else -log_prob

    def critic_loss(self, batch: Batch, noise: Tensor, coef: Tensor) -> Tensor:
        """Half the squared error of both critics, `[M, 2, B]`."""
        with torch.no_grad():
            _, action, entropy = self.look(batch.next_observation, noise)
            value = self.critics.slow(torch.cat([batch.next_observation, action], -1)).amin(1)
        target = functional.soft_target(batch.reward, batch.terminated, value, entropy, coef, self.config.gamma)
        return 0.5 * (self.critics(torch.cat([batch.observation, batch.action], -1)) - target[:, None]).square()

    def measure(self, observation: Tensor, noise: Tensor, coef: Tensor) -> None:
        """The bonus's share of the gradient, and before a record the share of states that cannot reach the target."""
        outputs, action, entropy = self.look(observation, noise)
        value = self.critics(torch.cat([observation, action], -1), frozen=True).amin(1)
        learner, books, each = self.learner, self.learner.books, self.learner.each(value)
        books.share = population.gradient_shares((entropy, coef * each), (value, each), outputs, learner.ranks.sum if learner.part.of > 1 else None)
        targets = [regularizer.target for regularizer in self.learner.regularizers]
        if self.learner.record_next and any(target is not None for target in targets):
            mean = outputs.detach().chunk(2, -1)[0]
            shares = [math.nan if target is None else self.unreachable(member, mean[member], target) for member, target in enumerate(targets)]
            books.columns["entropy/infeasible"] = np.array(shares)

    def unreachable(self, member: int, mean: Tensor, target: float) -> float:
        """The share of states in which no scale reaches the target; a finding where most are such and the coefficient has run away."""
        share = float(infeasible(mean, target, spelling.parse_family(self.learner.members[member].family), self.head.limits))
        coef, start = self.learner.regularizers[member].coef, self.starts[member]
        if share > 0.5 and coef > RUNAWAY * max(start, 1e-3) and not self.warned[member]:
            self.warned[member] = True
            words = f"member {member}: coef has grown from {start:.3g} to {coef:.3g}, and in {share:.0%} of the states no scale reaches the target {target:.3g}"
            self.learner.run.event(self.learner.step, "finding", f"{words}; lower the target")
            folder.warn(f"{words}; lower the target")
        return share

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.critics.state_dict(),
            "actor_adam": self.actor_adam.state_dict(),
            "critic_adam": self.critic_adam.state_dict(),
            "warned": self.warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.critics.load_state_dict(state)
        self.actor_adam.load_state_dict(state["actor_adam"])
        self.critic_adam.load_state_dict(state["critic_adam"])
        self.warned = list(state["warned"])


def default_coef(_: Head) -> tuple[str, ...]:
    """The coefficient where none is named."""
    return ("TargetEntropy(action_dim())",)


def head_for(spec: ActionSpec) -> Head:
    if spec.kind != "continuous":
        raise ValueError(f"sac is for continuous actions, and this environment's are {spec.kind}; sac_discrete and dqn are for those")
    return TanhGaussian(spec, LOG_STD, remedy="sac has no other kind: bound the environment's actions")


def check(config: Config) -> None:
    """Raise `ValueError` for the first of SAC's own settings that cannot be meant."""
    if config.compile:
        alone("sac with compile", "leave compile off")
    require(config, "tau", lambda value: 0 < value <= 1, "above 0 and at most 1")
    if config.activation not in ("tanh", "relu"):
        raise ValueError(f"activation must be tanh or relu for sac, got {config.activation!r}")
    if config.estimator not in (None, "sampled", "exact"):
        raise ValueError(f"estimator must be sampled, exact or None, got {config.estimator!r}")
    if config.estimator == "sampled" and (others := [family for family in config.family if family != "shannon"]):
        raise ValueError(f"estimator sampled is for the family shannon, whose entropy is the mean of -log p; {others[0]} is no such mean: use exact")
