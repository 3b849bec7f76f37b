"""A learner whose policies act and learn in compiled code: the same rollouts, records and controllers, one call an update.

Shapes: M members, n environments of each, N items of a rollout, D observation, A actions.
"""

import numpy as np
import torch
from torch import Tensor

from entreg.rl import fused
from entreg.rl.learner import Learner, Rollout
from entreg.stacked import StackedAdam


class FusedPPO:
    """Takes over acting, evaluating and updating of a learner that it can serve; `ValueError` says why it cannot."""

    def __init__(self, learner: Learner, *, batch_size: int, epochs: int) -> None:
        self.learner, self.batch_size, self.epochs = learner, batch_size, epochs
        _check(learner)
        architecture, parameters = learner.network.architecture, learner.network.parameters
        sizes = architecture.observation[0], *architecture.hidden
        self.layout = fused.Layout((*sizes, architecture.outputs), (*sizes, 1), "relu" if architecture.activation == "relu" else "tanh")
        self.parameters = parameters.data.numpy()
        optimizer = learner.optimizer
        assert isinstance(optimizer, StackedAdam)
        self.optimizer = optimizer
        self.adam = fused.Adam(optimizer.first.numpy(), optimizer.second.numpy(), optimizer.steps.numpy())
        learner.act = self.act
        learner.network.shortcut = self.both

    def act(self, observation: np.ndarray, noise: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Actions `[M, n, 1]` for observations `[M, n, D]` by uniform numbers `[M, n, 1]`."""
        acted = fused.act(self.layout, self.parameters, observation, noise[..., 0], mask)
        self.learner.check(logits=acted.log_prob)
        return acted.action[..., None]

    def both(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """What `ActorCritic.both` gives, without gradients."""
        logits, value = fused.forward(self.layout, self.parameters, observation.numpy())
        return torch.from_numpy(logits), torch.from_numpy(value)

    def update(self, rollout: Rollout, clip: float) -> None:
        """All epochs and minibatches of one rollout."""
        learner, config, observation = self.learner, self.learner.config, rollout.observation
        assert isinstance(observation, torch.Tensor)  # images are refused
        items = rollout.advantage.shape[1]
        stats = fused.ppo_update(
            self.layout,
            self.parameters,
            self.adam,
            fused.Rollout(
                observation.numpy(),
                rollout.action[..., 0].numpy(),
                rollout.log_prob.numpy(),
                rollout.advantage.numpy(),
                rollout.returns.numpy(),
                None if rollout.mask is None else rollout.mask.numpy(),
            ),
            learner.streams.orders(self.epochs, items),
            batch_size=self.batch_size,
            learning_rate=learner.schedules["learning_rate"].value,
            clip=clip,
            coef=np.array([regularizer.coef for regularizer in learner.regularizers]),
            value_coef=config.value_coef,
            max_grad_norm=config.max_grad_norm,
            normalize_advantage=config.normalise_advantage,
            betas=self.optimizer.betas,
            eps=self.optimizer.eps,
            threads=learner.run.settings.threads,
        )
        learner.check(loss=stats.policy_loss, value_loss=stats.value_loss, parameters=self.parameters)
        for regularizer, entropy in zip(learner.regularizers, stats.entropy, strict=True):
            regularizer.observe(float(entropy), items)
        learner.books.share = stats.grad_share
        learner.books.seen(torch.from_numpy(np.stack([stats.policy_loss, stats.value_loss, stats.entropy])))


def _check(learner: Learner) -> None:
    architecture, spec = learner.network.architecture, learner.head.spec
    reasons = {
        "one rank": learner.ranks.part.of == 1,
        "actions of one discrete head": spec.kind == "discrete",
        "observations that are vectors": not architecture.image,
        "hidden layers that are not shared": not architecture.shared,
        "tanh or relu": architecture.activation in ("tanh", "relu"),
        "the family shannon": all(member.family == "shannon" for member in learner.members),
    }
    if missing := [reason for reason, met in reasons.items() if not met]:
        raise ValueError(f"update fused needs {', '.join(missing)}; use --update eager here")
