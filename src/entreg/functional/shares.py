"""How strongly loss terms pull on the logits, from one pass over them: the gradients of log-probability and entropy are two vectors a token.

Shapes: `N` tokens, `V` classes. A loss that depends on the logits through `log p_y` and `H` alone has, with slopes `a = dL/dlog p_y` and `b = dL/dH`, the
gradient `a (1_y - p) + b dH/dz` in token z, of squared norm `a^2 S + 2 a b X + b^2 E`. So any number of terms is measured with three numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entreg.functional.categorical import categorical_entropy
from entreg.functional.families import SHANNON, Family


class Pull(NamedTuple):
    """Inner products `[N]` of the two gradients: `score` S of log p with itself, `spread` E of the entropy's with itself, `cross` X of both."""

    score: Tensor
    spread: Tensor
    cross: Tensor

    def norm(self, log_prob_slope: Float[Tensor, " N"], entropy_slope: Float[Tensor, " N"] | float = 0.0) -> float:
        """Euclidean norm over all tokens' logits of the gradient with these slopes."""
        squares = log_prob_slope.square() * self.score
        if isinstance(entropy_slope, Tensor) or entropy_slope != 0.0:
            squares = squares + entropy_slope * (2 * log_prob_slope * self.cross + entropy_slope * self.spread)
        return float(squares.sum().clamp(min=0).sqrt())


def pull(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], family: Family | Callable[[Tensor], Tensor] = SHANNON) -> Pull:
    """The inner products of the gradients of `log softmax(z)_y` and of the entropy with respect to z, `[N, V], [N] -> 3 x [N]`, without gradient.

    `family` may be any function of logits, such as a truncated entropy.

    >>> pull(torch.zeros(1, 4), torch.tensor([0])).score          # (3/4)^2 + 3 (1/4)^2
    tensor([0.7500])
    """
    with torch.enable_grad():
        z = logits.detach().float().requires_grad_()
        entropy = categorical_entropy(z, family) if isinstance(family, Family) else family(z)
        spread = torch.autograd.grad(entropy.sum(), z)[0]
    score = -z.detach().softmax(-1)
    score = score.scatter_add(-1, targets.unsqueeze(-1), torch.ones_like(score[..., :1]))
    return Pull((score * score).sum(-1), (spread * spread).sum(-1), (score * spread).sum(-1))


def share(term: float, task: float) -> float:
    """`|term| / (|task| + |term|)`, 0 where both are 0.

    >>> share(1.0, 3.0), share(0.0, 0.0)
    (0.25, 0.0)
    """
    return term / (task + term) if term > 0 else 0.0
