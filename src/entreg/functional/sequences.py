"""Entropy of whole sequences, and losses on pairs of them.

Shapes: `N` sequences of `T` tokens, `mask [N, T]` nonzero where a token counts (prompt and padding do not); nats.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def sequence_entropy_loss(
    log_prob: Float[Tensor, "*batch T"],
    entropy: Float[Tensor, "*batch T"],
    mask: Shaped[Tensor, "*batch T"] | None = None,
    *,
    old_log_prob: Float[Tensor, "*batch T"] | None = None,
    baseline: Float[Tensor, "*batch T"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """A loss per token whose expected gradient is that of MINUS the entropy of the whole sequence, `[*, T] -> [*, T]`: sum over tokens, average over sequences.

    `-H_t - stop_grad(sum_{s>t} H_s - b_t) log p_t`: the first term spreads each token, the second prefers prefixes that lead to spread continuations. Leaving
    the second out ("token") is another objective. `b_t` may depend on the prefix or on other sequences; `old_log_prob` makes the second term that of samples
    of an older policy, `log p_t` becoming the ratio (each token's own, as in PPO: exact where all ratios are 1). The value means nothing; report `sum_t H_t`.

    >>> entropy, log_prob = torch.tensor([0.5, 1.0], requires_grad=True), torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> [slope.tolist() for slope in torch.autograd.grad(sequence_entropy_loss(log_prob, entropy).sum(), (entropy, log_prob))]
    [[-1.0, -1.0], [-1.0, -0.0]]

    Source: the policy gradient theorem with reward H_s at s (Sutton et al. 2000); Levine 2018 (arXiv:1805.00909), section 2.
    """
    keep = torch.ones_like(log_prob, dtype=torch.bool) if mask is None else mask.bool()
    own = torch.where(keep, entropy, 0)
    ahead = entropy_to_go(entropy, mask)
    if baseline is not None:
        ahead = ahead - baseline.detach()
    path = log_prob if old_log_prob is None else (log_prob - old_log_prob.detach()).exp()
    return -own - torch.where(keep, ahead * path, 0)


def entropy_to_go(entropy: Float[Tensor, "*batch T"], mask: Shaped[Tensor, "*batch T"] | None = None) -> Float[Tensor, "*batch T"]:
    """The entropy of what comes after each token, `sum_{s>t} H_s`, `[*, T] -> [*, T]`, without gradient.

    >>> entropy_to_go(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 0]))
    tensor([2., 0., 0.])
    """
    own = entropy.detach() if mask is None else torch.where(mask.bool(), entropy.detach(), 0)
    return own.flip(-1).cumsum(-1).flip(-1) - own


def others_mean(values: Float[Tensor, "N T"], mask: Shaped[Tensor, "N T"] | None = None) -> Float[Tensor, "N T"]:
    """For each sequence and position the mean over the OTHER sequences that have the position, `[N, T] -> [N, T]`; 0 where there is none.

    A baseline for `sequence_entropy_loss`: it does not depend on the sequence, so it adds no bias.

    >>> others_mean(torch.tensor([[1.0], [3.0], [5.0]])).flatten()
    tensor([4., 3., 2.])
    """
    keep = torch.ones_like(values) if mask is None else mask.bool().to(values.dtype)
    own = torch.where(keep > 0, values, 0)
    count = keep.sum(0) - keep
    return (own.sum(0) - own) / count.clamp(min=1) * (count > 0)


def preference(
    chosen: Float[Tensor, "*batch"],
    rejected: Float[Tensor, "*batch"],
    reference_chosen: Float[Tensor, "*batch"],
    reference_rejected: Float[Tensor, "*batch"],
    beta: float,
    coef: float | None = None,
) -> Float[Tensor, "*batch"]:
    """Preference loss `-log sigmoid(c (log p_w - log p_l) - beta (log p_ref,w - log p_ref,l))` of sequence log-probabilities, `[*] -> [*]` nats.

    `coef` c is the entropy weight of the objective `E r + beta E log p_ref + c H(p)`, whose optimum is `p_ref^(beta/c) exp(r/c)`: None or `c = beta` is DPO,
    `c < beta` H-DPO (sharper), `c > beta` SPL (spread). Raises ValueError unless beta >= 0 and c > 0.

    >>> preference(*(torch.tensor(x) for x in (-1.0, -2.0, -1.5, -1.5)), beta=0.1)
    tensor(0.6444)

    Source: Rafailov et al. 2023 (DPO, arXiv:2305.18290), eq. 7; Omura et al. 2024 (H-DPO, arXiv:2411.07595), eq. 9.
    """
    coef = beta if coef is None else coef
    if not (0 <= beta < math.inf and 0 < coef < math.inf):
        raise ValueError(f"beta, coef: got {beta}, {coef}, legal are finite numbers, beta >= 0 and coef > 0")
    margin = coef * (chosen - rejected) - beta * (reference_chosen - reference_rejected)
    return -torch.nn.functional.logsigmoid(margin)
