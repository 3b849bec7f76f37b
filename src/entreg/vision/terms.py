"""The two entropies of unlabelled data, for all members at once.

    conditional   mean_x H(p(.|x))        of each prediction; minimised (confidence) or maximised, as the sense says
    marginal      H(mean_x p(.|x))        of the mean prediction; maximised, or drawn towards a prior: - D(marginal || prior)

Shapes: M members, N images, V classes. Nats. The marginal is a running mean with the bias of its start corrected and the gradient of the current batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from entreg import collapse, functional, loop, spelling
from entreg.control import constant
from entreg.guard import Rule
from entreg.regularizer import EntropyRegularizer

Pair = tuple[Tensor, Tensor]  # losses, and what each of them weighs


class RunningMarginals:
    """`functional.RunningMarginal` of every member, in a handful of operations.

    >>> running = RunningMarginals(2, 2, momentum=0.9)
    >>> _ = running(torch.tensor([[[50.0, 0.0]], [[0.0, 0.0]]]))
    >>> running(torch.tensor([[[0.0, 50.0]], [[0.0, 0.0]]])).exp()
    tensor([[0.4737, 0.5263],
            [0.5000, 0.5000]])
    """

    def __init__(self, members: int, classes: int, momentum: float) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum: {momentum}; legal is 0 <= momentum < 1")
        self.momentum, self.total, self.weight = momentum, torch.zeros(members, classes), 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Take in a batch `(M, N, V)`; log of the running marginal after it `(M, V)`."""
        batch = logits.log_softmax(-1).exp().mean(1)
        self.total = self.momentum * self.total + batch.detach()
        self.weight = self.momentum * self.weight + 1.0
        probs = self.total / self.weight + (batch - batch.detach())
        return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.weight = state["total"].clone(), float(state["weight"])


class Terms:
    """Both terms of every member. `members` name each one's conditional, sense, marginal, family and prior; `priors [M, V]` are those in numbers."""

    def __init__(self, members: Sequence[Mapping[str, Any]], priors: Tensor, *, steps: int, momentum: float, rescue: bool = False) -> None:
        self.priors, self.even = priors, [member["prior"] == "uniform" for member in members]
        classes = priors.shape[1]
        self.groups: list[tuple[slice, functional.Family]] = []
        start = 0
        for (name, _), group in itertools.groupby(members, key=lambda member: (member["family"], member["prior"])):
            end = start + len(list(group))
            self.groups.append((slice(start, end), spelling.parse_family(name)))
            start = end
        waits = collapse.patience(steps)
        self.conditional, self.marginal = list[EntropyRegularizer](), list[EntropyRegularizer]()
        for member, prior in zip(members, priors, strict=True):
            family = spelling.parse_family(member["family"])
            if family.name == "tsallis" and member["prior"] != "uniform":
                raise ValueError(f"prior is {member['prior']!r} with family {member['family']}; legal with a prior are shannon, renyi(order) and min_entropy")
            highest = float(functional.categorical_entropy(torch.zeros(classes), family))
            of_prior = float(functional.categorical_entropy(prior.log()))
            rules = (Rule("conditional", highest, **waits), Rule("marginal", of_prior, **waits)) if rescue else (None, None)
            shared = {"steps": steps, "maximum": highest, "family": member["family"]}
            self.conditional.append(loop.regularizer(member["conditional"], sense=member["sense"], rescue=rules[0], **shared))
            self.marginal.append(loop.regularizer(member["marginal"], rescue=rules[1], **shared))
        self.running = RunningMarginals(len(members), classes, momentum)
        self.active = any(one.controller != constant(0.0) for one in (*self.conditional, *self.marginal))

    def __call__(self, logits: Tensor) -> list[Pair]:
        """The terms of a batch of unlabelled predictions `(M, N, V)`, shown to the controllers; none where all coefficients are the constant 0."""
        if not self.active:
            return []
        entropy = torch.cat([functional.categorical_entropy(logits[at], family) for at, family in self.groups])
        log_marginal = self.running(logits)
        marginal = torch.cat([functional.categorical_entropy(log_marginal[at], family) for at, family in self.groups])
        towards = torch.cat([self._towards(log_marginal[at], marginal[at], family, at) for at, family in self.groups])
        both = ((entropy, self.conditional, entropy.detach().mean(1)), (towards[:, None], self.marginal, marginal.detach()))
        return [(values, _weights(each, seen, values)) for values, each, seen in both]

    def _towards(self, log_marginal: Tensor, entropy: Tensor, family: functional.Family, at: slice) -> Tensor:
        """What the marginal term maximises, `(m,)`."""
        return entropy if self.even[at.start] else -functional.renyi_divergence(log_marginal, self.priors[at].log(), family.order)

    def step(self, progress: float) -> None:
        """One step of all controllers."""
        if self.active:
            for one in (*self.conditional, *self.marginal):
                one.step(progress=progress)

    def facts(self, member: int) -> dict[str, float]:
        """What a record says of a member's coefficients and targets."""
        both = {"conditional": self.conditional[member], "marginal": self.marginal[member]}
        found = {f"coef/{name}": one.coef for name, one in both.items()}
        found |= {f"target/{name}": one.target for name, one in both.items() if one.target is not None}
        over = collapse.rescued([*both.values()])
        return found | ({"rescued": max(over)} if any("over" in one.state_dict()["controller"] for one in both.values()) else {})

    def state_dict(self) -> dict[str, Any]:
        each = {"conditional": loop.states(self.conditional), "marginal": loop.states(self.marginal)}
        return {**each, "running": self.running.state_dict(), "priors": self.priors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        loop.load_states(self.conditional, state["conditional"])
        loop.load_states(self.marginal, state["marginal"])
        self.running.load_state_dict(state["running"])
        self.priors.copy_(state["priors"])


def _weights(each: Sequence[EntropyRegularizer], seen: Tensor, values: Tensor) -> Tensor:
    """What each regularizer weighs its row of `values (M, N)` by, `(M, N)`; it is shown `seen (M,)`."""
    for one, mean in zip(each, seen.tolist(), strict=True):
        one.observe(mean, values.shape[1])
    signed = torch.tensor([[-one.sense * one.coef / values.shape[1]] for one in each])
    return signed.expand_as(values)


def aligned(probs: Tensor, log_running: Tensor, priors: Tensor) -> Tensor:
    """Predictions `(M, N, V)` with their running mean `(M, V)` moved to the priors `(M, V)`: `p prior / running`, normalised.

    >>> aligned(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]))
    tensor([[[0.2000, 0.8000]]])

    Source: Berthelot et al. 2020 (arXiv:1911.09785), section 3.1.
    """
    weighted = probs * (priors.log() - log_running).exp()[:, None]
    return weighted / weighted.sum(-1, keepdim=True)
