"""What value-based recipes learn from: errors, bootstrap values and the bonus of Munchausen RL. Nothing is reduced.

Shapes: `*` batch, `V` actions. An action outside `support` does not exist.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entreg.functional.soft import soft_policy


def huber(error: Float[Tensor, "*batch"], delta: float = 1.0) -> Float[Tensor, "*batch"]:
    """Huber's loss `e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`, `[*] -> [*]`: a squared error whose gradient is bounded by `delta`.

    ValueError unless `delta > 0`; at infinity it is half the squared error.

    >>> huber(torch.tensor([0.5, -3.0]))
    tensor([0.1250, 2.5000])

    Source: Huber 1964; as the clipped error of Mnih et al. 2015.
    """
    if not delta > 0:
        raise ValueError(f"delta: got {delta}, legal is a number > 0")
    size = error.abs()
    inside = size.clamp(max=delta)
    return inside * (size - inside / 2)


def greedy_value(q: Float[Tensor, "*batch V"], *, support: Bool[Tensor, "*batch V"] | None = None) -> Float[Tensor, "*batch"]:
    """The largest action value, `[*, V] -> [*]`: the soft value at temperature 0.

    >>> greedy_value(torch.tensor([1.0, 3.0]), support=torch.tensor([True, False]))
    tensor(1.)

    Source: Watkins 1989.
    """
    return _legal(q, support).amax(-1)


def double_value(
    q: Float[Tensor, "*batch V"], target_q: Float[Tensor, "*batch V"], *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """The target network's value of the action that `q` holds for the best, `[*, V], [*, V] -> [*]`: the maximum's bias goes.

    >>> double_value(torch.tensor([1.0, 3.0]), torch.tensor([5.0, 4.0]))
    tensor(4.)

    Source: van Hasselt et al. 2016, eq. 4.
    """
    best = _legal(q, support).argmax(-1, keepdim=True)
    return target_q.gather(-1, best).squeeze(-1)


def munchausen_bonus(
    q: Float[Tensor, "*batch V"],
    action: Int[Tensor, "*batch"],
    temperature: float | Tensor,
    *,
    alpha: float = 0.9,
    floor: float = -1.0,
    support: Bool[Tensor, "*batch V"] | None = None,
) -> Float[Tensor, "*batch"]:
    """What Munchausen RL adds to the reward, `alpha max(temperature log pi(a), floor)` with `pi = softmax(q / temperature)`, `[*, V], [*] -> [*]`.

    Raises ValueError unless `0 <= alpha <= 1` and `floor <= 0`; those of `soft_policy`.

    >>> munchausen_bonus(torch.tensor([0.0, 0.0]), torch.tensor(1), 0.5)
    tensor(-0.3119)

    Source: Vieillard et al. 2020, eq. 2 and section 3 (alpha .9, floor -1).
    """
    if not (0 <= alpha <= 1 and floor <= 0):
        raise ValueError(f"alpha, floor: got {alpha}, {floor}, legal is 0 <= alpha <= 1 and floor <= 0")
    taken = soft_policy(q, temperature, support=support).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return alpha * (temperature * taken.log()).clamp(min=floor, max=0)


def policy_value(
    probs: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"], entropy: Float[Tensor, "*batch"], coef: float | Tensor
) -> Float[Tensor, "*batch"]:
    """Soft value of a policy, `<p, q> + coef H`, `[*, V], [*, V], [*] -> [*]`: exact over actions; `soft_value` is its maximum over policies.

    The actor of discrete SAC maximises it with `q` constant, its critics learn from it with everything constant.

    >>> policy_value(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0]), torch.tensor(0.6931), 0.1)
    tensor(2.0693)

    Source: Christodoulou 2019, eq. 10 (there with Shannon's entropy).
    """
    return (probs * q).sum(-1) + coef * entropy


def _legal(q: Tensor, support: Tensor | None) -> Tensor:
    return q if support is None else torch.where(support, q, -math.inf)
