"""Estimators of KL(p || q) from samples `x ~ p`: `log_ratio = r = log q(x) - log p(x)`, any shape, one value a sample, nats.

Which one where. As a VALUE: k1 and k3 are unbiased, k3 is never negative and has the smaller variance near p = q, k2 is biased but low in variance.
| used as | right | wrong |
|---|---|---|
| a LOSS on samples of the policy, gradient through log p only | k2: its expected gradient is that of KL(p q) | k1: expected gradient 0; k3: that of KL(q p) |
| a penalty in the REWARD (a constant to the gradient) | k1 | k2 and k3: another objective |
| a loss on samples of an OLDER policy, each times the importance ratio p/p_old, ratio DIFFERENTIATED | k1 and k3 | k2 |
| the same, ratio DETACHED | k2 | k1 and k3 |
(KL(p q) is KL(p || q): a bar would end the cell.) Source: Schulman 2020, "Approximating KL divergence", for the values; the gradients follow from E[grad log
p] = 0 and are tested by enumeration.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def k1(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`-r`: unbiased, noisy, may be negative. The one for rewards, and for a direct loss under a differentiated importance ratio; as an on-policy loss its
    expected gradient is zero.

    >>> k1(torch.tensor([0.0, 0.5]))
    tensor([-0.0000, -0.5000])
    """
    return -log_ratio


def k2(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`r^2 / 2`: a biased value with the right gradient. The one for a loss on-policy, or off-policy under a detached importance ratio; wrong in the reward.

    >>> k2(torch.tensor([0.0, 0.5]))
    tensor([0.0000, 0.1250])
    """
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`exp(r) - 1 - r`: unbiased and never negative, so the one to log. As an on-policy loss it descends KL(q || p), the other direction; right as a direct
    loss under a differentiated ratio.

    >>> k3(torch.tensor([0.0, 0.5]))
    tensor([0.0000, 0.1487])
    """
    return torch.expm1(log_ratio) - log_ratio
