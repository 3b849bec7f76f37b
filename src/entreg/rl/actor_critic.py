"""What actor-critics share that learn from fresh experience: an update is so many steps of all environments, then gradient steps of policy and value.

Shapes: M members, B items of a minibatch, K policy outputs. `learner.py` adds rollouts of the policy, AlphaZero games of a search.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from entreg import stacked
from entreg.rl import population
from entreg.rl.config import ActorCriticConfig
from entreg.rl.study import LOG_LINES, Study


class Optimizer(Protocol):
    """Moves parameters by their gradients."""

    def step(self, lr: float, active: Tensor | None = None) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class ActorCriticStudy(Study):
    """A population of policies with state values, and their optimizer."""

    config: ActorCriticConfig
    optimizer: Optimizer

    @property
    def steps_per_update(self) -> int:
        """Environment steps that each member takes for an update, over all processes."""
        return self.config.environments * self.config.rollout * self.part.of

    @property
    def step(self) -> int:
        """Environment steps that each member has taken."""
        return self.update * self.steps_per_update

    @property
    def steps(self) -> int:
        """Environment steps that each member takes in the whole run."""
        return self.updates * self.steps_per_update

    @property
    def recording(self) -> bool:
        """Whether a training record is written after this update."""
        return self.update % max(1, self.updates // LOG_LINES) == 0 or self.update == self.updates

    def gradient_step(
        self,
        outputs: Tensor,
        policy_loss: Tensor,
        value_loss: Tensor,
        entropy: Tensor,
        active: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """One Adam step on mean policy loss + value_coef x mean value loss + bonus, each member by itself.

        All losses and entropies are `(M, B)`; `outputs (M, B, K)` are the policy's, of whose gradient the bonus's share is measured once a
        rollout. Members outside the boolean `active [M]` stay as they are. Items of `weight (M, B)` 0 do not count; means are over all ranks.
        """
        items = policy_loss.shape[1] * self.ranks.part.of if weight is None else int(self.ranks.count(weight)[0])
        means = self.ranks.mean(torch.stack([part.detach() for part in (policy_loss, value_loss, entropy)]), weight)
        self.check(loss=means)
        signed = population.observe(self.regularizers, means[2], items)
        policy, value = _weighed(policy_loss, 1 / items, weight), _weighed(value_loss, self.config.value_coef / items, weight)
        bonus = _weighed(entropy, signed / items, weight)
        if self.books.share is None:
            self.books.share = population.gradient_shares(bonus, policy, outputs, self.ranks.sum if self.ranks.part.of > 1 else None)
        self.network.parameters.backward(policy, value, bonus)
        self.ranks.sum(self.network.parameters.grad)
        stacked.clip_grad_norm(self.network.parameters, self.config.max_grad_norm)
        self.optimizer.step(self.schedules["learning_rate"].value, active)
        self.books.seen(means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


def _weighed(loss: Tensor, each: float | Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """A loss `(M, B)` and what each of its items is weighed by: one number, or one a member `(M, 1)`, where it counts."""
    every = torch.full_like(loss, each) if isinstance(each, float) else each.expand_as(loss)
    return loss, every if weight is None else every * weight
