"""How agents that learn action values explore: epsilon-greedy, Boltzmann, or noise on the weights.

Shapes: M members, n items, V actions of which a mask may allow some. Noise comes from each member's own stream.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from entreg import stacked
from entreg.rl.networks import ActorCritic, Architecture

Exploration = Literal["epsilon_greedy", "boltzmann", "noisy_net"]
EXPLORATIONS = get_args(Exploration)


def epsilon_greedy(q: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """Probabilities `(M, n, V)` of the policy that takes any allowed action with probability epsilon, and else the best one.

    >>> epsilon_greedy(torch.tensor([[[1.0, 3.0]]]), 0.1)
    tensor([[[0.0500, 0.9500]]])
    """
    legal = torch.ones_like(q) if mask is None else mask.to(q.dtype)
    best = (q if mask is None else torch.where(mask, q, -math.inf)).argmax(-1, keepdim=True)
    return (epsilon * legal / legal.sum(-1, keepdim=True)).scatter_add(-1, best, torch.full_like(q[..., :1], 1 - epsilon))


class NoisyNetwork:
    """Action values of M members: `mean` holds what is saved, played and evaluated; with `sigma` every affine layer is noisy while it learns and acts.

    A noisy weight is `mean + sigma eps`, `eps_ij = f(e_i) f(e_j)`, `f(x) = sign(x) sqrt|x|`, with normal e of inputs and outputs (factorised noise). One draw
    serves a whole batch. Without `sigma` the network is its mean, and draws cost nothing.

    Source: Fortunato et al. 2018 (arXiv:1706.10295), section 3 and equations 10 and 11; sigma begins at `sigma / sqrt(inputs)`. Convolutions are not noisy.
    """

    def __init__(self, architecture: Architecture, generators: Sequence[torch.Generator], sigma: float | None = None) -> None:
        self.mean = ActorCritic(architecture, generators, initial="uniform")
        self.drawn, self.spread = self.mean, None
        if sigma is None:
            return
        self.drawn = ActorCritic(architecture, generators, initial="uniform")
        self.spread = stacked.FlatParameters(len(generators), self.mean.parameters.shapes)
        for weight, bias in self._layers():
            for name in (weight, bias):
                self.spread.plain[name].fill_(sigma * self.mean.parameters.shapes[weight][0] ** -0.5)
        self.drawn.parameters.data.copy_(self.mean.parameters.data)
        self._eps = torch.zeros_like(self.spread.data)

    def _layers(self) -> list[tuple[str, str]]:
        names = [name.removesuffix(".weight") for name in self.mean.parameters.shapes if name.endswith("weight") and not name.startswith("image")]
        return [(f"{name}.weight", f"{name}.bias") for name in names]

    def draw(self, streams: Sequence[np.random.Generator]) -> None:
        """New noise for every member from its own stream."""
        if self.spread is None:
            return
        shapes = [self.spread.shapes[weight] for weight, _ in self._layers()]
        noise = np.stack([stream.standard_normal(sum(map(sum, shapes)), dtype=np.float32) for stream in streams])
        parts = iter(torch.from_numpy(np.copysign(np.sqrt(np.abs(noise)), noise)).split([size for shape in shapes for size in shape], dim=1))
        eps: dict[str, Tensor | None] = {}
        for weight, bias in self._layers():
            of_inputs, of_outputs = next(parts), next(parts)
            eps |= {weight: of_inputs[:, :, None] * of_outputs[:, None], bias: of_outputs}
        self._eps = self.spread.joined(eps)
        torch.addcmul(self.mean.parameters.data, self.spread.data, self._eps, out=self.drawn.parameters.data)

    def __call__(self, observation: Tensor) -> Tensor:
        """Action values `(M, N, *observation) -> (M, N, V)` under the newest draw."""
        return self.drawn.actor(observation)

    def backward(self, loss: Tensor, weight: Tensor, max_norm: float) -> None:
        """Fill the gradients of the mean and of sigma, each member's clipped together to a Euclidean norm of at most `max_norm`."""
        self.drawn.parameters.backward((loss, weight))
        if self.spread is None:
            stacked.clip_grad_norm(self.mean.parameters, max_norm)
            return
        grad = self.drawn.parameters.grad
        of_spread = grad * self._eps
        norm = torch.linalg.vector_norm(torch.cat([grad, of_spread], dim=1), dim=1)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
        self.mean.parameters.grad, self.spread.grad = grad * scale, of_spread * scale

    def parts(self) -> list[stacked.FlatParameters]:
        """What an optimizer moves."""
        return [self.mean.parameters] if self.spread is None else [self.mean.parameters, self.spread]

    def follow(self, other: "NoisyNetwork", rate: float) -> None:
        """Move by `rate` of the way to `other` (1: copy it)."""
        for mine, theirs in zip(self.parts(), other.parts(), strict=True):
            mine.data.lerp_(theirs.data, rate)
        if self.spread is not None:
            torch.addcmul(self.mean.parameters.data, self.spread.data, self._eps, out=self.drawn.parameters.data)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): part.data for index, part in enumerate(self.parts())} | ({} if self.spread is None else {"eps": self._eps})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, part in enumerate(self.parts()):
            part.data.copy_(state[str(index)])
        if self.spread is not None:
            self._eps = state["eps"]
            torch.addcmul(self.mean.parameters.data, self.spread.data, self._eps, out=self.drawn.parameters.data)
