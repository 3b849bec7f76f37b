"""Token-level methods against entropy collapse: which tokens of a policy gradient count, by entropy or by covariance, and how entropy shapes advantages.

Shapes: `*` all tokens of a batch, usually `[N, T]`; `mask [*]` is nonzero where a token counts. What is selected, ranked or averaged is over ALL tokens given:
with accumulation or several ranks give the whole batch, or accept a local choice. Losses are per token, to be minimised, 0 where masked; nothing is reduced.
"""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entreg.functional.losses import ppo_clip


def token_covariance(
    log_prob: Float[Tensor, "*batch"], advantage: Float[Tensor, "*batch"], mask: Shaped[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Each token's part of the covariance between log-probability and advantage, `[*], [*] -> [*]`, without gradient, 0 where masked.

    `(log p - mean log p) (A - mean A)`: a policy-gradient step on tokens where it is large lowers the entropy most.

    >>> token_covariance(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, -1.0]))
    tensor([1., 1.])

    Source: Cui et al. 2025 (arXiv:2505.22617), eq. 10.
    """
    keep = _kept(log_prob, mask)
    log_prob, advantage = log_prob.detach(), advantage.detach()
    count = keep.sum().clamp(min=1)
    centred = [torch.where(keep, one - torch.where(keep, one, 0).sum() / count, 0) for one in (log_prob, advantage)]
    return centred[0] * centred[1]


def clip_cov(
    log_prob: Float[Tensor, "*batch"],
    old_log_prob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    mask: Shaped[Tensor, "*batch"] | None = None,
    *,
    fraction: float = 2e-4,
    bounds: tuple[float, float] = (1.0, 5.0),
    clip: float = 0.2,
    clip_high: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    """PPO's clipped loss without a random `fraction` of the tokens, drawn from those whose covariance lies strictly between `bounds`, `[*] -> [*]`.

    Drops `max(1, floor(fraction * tokens))` tokens, or as many as there are; tokens that the clip holds already are not drawn. Raises ValueError unless
    `0 <= fraction <= 1` and the bounds are in order.

    >>> log_prob, advantage = torch.tensor([-0.5, -4.5, -2.5]), torch.tensor([1.0, -1.0, 0.0])
    >>> clip_cov(log_prob, log_prob, advantage, fraction=0.5, bounds=(1.9, 5.0), generator=torch.Generator().manual_seed(0)).abs().sum()
    tensor(1.)

    Source: Cui et al. 2025 (arXiv:2505.22617), eq. 11-12, where the dropped tokens are called clipped.
    """
    _check_fraction(fraction)
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds: got {bounds}, legal is (low, high) with low < high")
    keep = _kept(log_prob, mask)
    loss = ppo_clip(log_prob, old_log_prob, advantage, clip, clip_high)
    free = loss.detach() <= -advantage.detach() * (log_prob - old_log_prob).detach().exp()
    covariance = token_covariance(log_prob, advantage, mask)
    drawn = torch.nonzero((keep & free & (covariance > low) & (covariance < high)).flatten()).squeeze(-1)
    count = max(1, int(fraction * int(keep.sum())))
    order = torch.randperm(len(drawn), generator=generator).to(drawn.device)[:count]
    counted = keep.flatten().index_fill(0, drawn[order], False).view_as(keep)
    return torch.where(counted, loss, 0)


def kl_cov(
    log_prob: Float[Tensor, "*batch"],
    old_log_prob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    mask: Shaped[Tensor, "*batch"] | None = None,
    *,
    fraction: float = 2e-3,
    coef: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Unclipped policy-gradient loss `-rho A`, plus `coef |log rho|` on the `fraction` of tokens with the largest covariance, `[*] -> [*]`.

    At least one token is held; `|log rho|` is the penalty of the paper's code, with subgradient 0 where the policy has not moved. Raises ValueError unless
    `0 <= fraction <= 1` and `coef >= 0`.

    >>> kl_cov(torch.tensor([-0.5, -2.0, -2.0]), torch.tensor([-1.0, -2.0, -2.0]), torch.tensor([2.0, 1.0, 1.0]), fraction=0.4)
    tensor([-2.7974, -1.0000, -1.0000])

    Source: Cui et al. 2025 (arXiv:2505.22617), eq. 13-14; there 2e-3 for 7B, 2e-4 for 32B parameters.
    """
    _check_fraction(fraction)
    if not 0 <= coef < math.inf:
        raise ValueError(f"coef: got {coef}, legal is a finite number >= 0")
    keep = _kept(log_prob, mask)
    log_ratio = log_prob - old_log_prob.detach()
    ranked = torch.where(keep, token_covariance(log_prob, advantage, mask), -math.inf)
    held = _largest(ranked, max(1, int(fraction * int(keep.sum())))) & keep
    loss = -advantage.detach() * log_ratio.exp() + torch.where(held, coef * log_ratio.abs(), 0)
    return torch.where(keep, loss, 0)


def high_entropy(entropy: Float[Tensor, "*batch"], mask: Shaped[Tensor, "*batch"] | None = None, fraction: float = 0.2) -> Bool[Tensor, "*batch"]:
    """The `fraction` of the tokens with the highest entropy, "80/20", `[*] -> [*]` bool: what a policy gradient is restricted to.

    `ceil(fraction * tokens)` of those that count, over the whole batch. Raises ValueError unless `0 <= fraction <= 1`.

    >>> high_entropy(torch.tensor([0.1, 2.0, 0.3, 0.2]), torch.tensor([1, 0, 1, 1]), 0.3)
    tensor([False, False,  True, False])

    Source: Wang et al. 2025 (arXiv:2506.01939), eq. 5: fraction .2.
    """
    _check_fraction(fraction)
    keep = _kept(entropy, mask)
    count = math.ceil(fraction * int(keep.sum()))
    return _largest(torch.where(keep, entropy.detach(), -math.inf), count) & keep


def entropy_advantage(advantage: Float[Tensor, "*batch"], entropy: Float[Tensor, "*batch"], alpha: float = 0.4, kappa: float = 2.0) -> Float[Tensor, "*batch"]:
    """Advantages that uncertain tokens raise: `A + min(alpha H, |A| / kappa)`, `[*], [*] -> [*]`, without gradient.

    With `kappa > 1` no advantage changes its sign. Raises ValueError unless `alpha >= 0` and `kappa > 1`.

    >>> entropy_advantage(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 5.0]))
    tensor([ 1.2000, -0.5000])

    Source: Cheng et al. 2025 (arXiv:2506.14758), eq. 4-5.
    """
    if not (0 <= alpha < math.inf and kappa > 1):
        raise ValueError(f"alpha, kappa: got {alpha}, {kappa}, legal is alpha >= 0 and kappa > 1")
    advantage = advantage.detach()
    return advantage + torch.minimum(alpha * entropy.detach(), advantage.abs() / kappa)


def _kept(like: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    if mask.shape != like.shape:
        raise ValueError(f"mask: shape {tuple(mask.shape)}; legal is that of the tokens, {tuple(like.shape)}")
    return mask.bool()


def _largest(values: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest values."""
    order = values.flatten().topk(min(count, values.numel())).indices
    return torch.zeros(values.numel(), dtype=torch.bool, device=values.device).index_fill(0, order, True).view_as(values)


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, legal is a number in [0, 1]")
