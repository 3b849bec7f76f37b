"""Maximum-entropy control in one state: the soft value of action values, the policy that attains it, and the Bellman backup around them.

Shapes: `*` batch, `V` actions. `soft_value = max_p <p, q> + temperature Omega(p)` over the simplex, `soft_policy` the p that attains it; Omega is the entropy
of a family. Families: Shannon, Tsallis at every order > 0, Rényi at orders in (0, 1]; the others are refused.
An action outside `support`, or whose value is -inf, has probability 0 and gradient 0.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from entreg.functional._conjugate import Conjugate, kind_of
from entreg.functional.categorical import _prepared
from entreg.functional.families import SHANNON, Family


def value_and_policy(q: Tensor, temperature: float | Tensor, family: Family = SHANNON, support: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`soft_value` and `soft_policy` of one solution."""
    name, order = kind_of(family)
    q, support = _prepared(q, support, "q")
    if not isinstance(temperature, Tensor):
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: got {temperature}, legal is a finite number > 0")
        tau = torch.tensor(temperature, dtype=q.dtype, device=q.device)
    else:
        if type(temperature) is Tensor and temperature.device.type == "cpu" and not bool((temperature > 0).all()):
            raise ValueError(f"temperature: got {float(temperature.min())} as the least, legal are numbers > 0")
        tau = temperature.to(q.dtype)
        if tau.ndim:
            try:
                tau = tau.expand(q.shape[:-1]).unsqueeze(-1)
            except RuntimeError:
                raise ValueError(f"temperature: got shape {tuple(tau.shape)}, legal is one that broadcasts to {tuple(q.shape[:-1])}") from None
    value, policy = Conjugate.apply(q, support, tau.expand(*q.shape[:-1], 1), name, order)  # type: ignore[no-untyped-call]
    return value, policy


def soft_value(
    q: Float[Tensor, "*batch V"], temperature: float | Tensor, family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """Soft value `max_p <p, q> + temperature Omega(p)` of action values, `[*, V] -> [*]`, in the unit of q.

    Shannon: `tau logsumexp(q / tau)`. Tsallis-2, with `1 - sum p^2`: `2 tau spmax(q / (2 tau))`. `temperature`: a float or a tensor that broadcasts to `[*]`.
    Gradients are exact: the policy to q, Omega(policy) to the temperature. Raises ValueError for a temperature that is not above 0, a row without an action,
    and for families without a soft value: Rényi above 1 and min-entropy (not concave), order 0.

    >>> import torch
    >>> from entreg.functional import soft_value, tsallis
    >>> q = torch.tensor([1.0, 0.7, 0.2, -0.5])
    >>> soft_value(q, 0.5), soft_value(q, 0.5, tsallis(2))
    (tensor(1.2940), tensor(1.1225))

    Source: Ziebart 2010, eq. 9.1 (Shannon); Martins and Astudillo 2016 and Lee et al. 2018 (Tsallis-2, there with 1/2 (1 - sum p^2): their temperature is twice
    ours); Blondel et al. 2020, sections 3 and 4 (Tsallis and Rényi).
    """
    return value_and_policy(q, temperature, family, support)[0]


def soft_policy(
    q: Float[Tensor, "*batch V"], temperature: float | Tensor, family: Family = SHANNON, *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch V"]:
    """The policy that attains `soft_value`: probabilities `[*, V] -> [*, V]`.

    Shannon: `softmax(q / tau)`. Tsallis-2: `sparsemax(q / (2 tau))`, by sorting. Other orders solve one equation a row in float64. Tsallis above 1 gives exact
    zeros. The gradient is that of the optimality conditions, so it is exact, and 0 at an action of probability 0. Raises as `soft_value` does.

    >>> import torch
    >>> from entreg.functional import soft_policy, tsallis
    >>> soft_policy(torch.tensor([1.0, 0.7, 0.2, -0.5]), 0.6, tsallis(2))
    tensor([0.6250, 0.3750, 0.0000, 0.0000])

    Source: as `soft_value`; entmax: Peters et al. 2019, whose alpha is our order.
    """
    return value_and_policy(q, temperature, family, support)[1]


def soft_backup(
    reward: Float[Tensor, "*batch"], next_value: Float[Tensor, "*batch"], gamma: float, terminated: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Bellman backup `r + gamma V(s')`, `[*], [*] -> [*]`; where `terminated` is True there is no V, so no entropy after the end.

    `next_value` is the soft value of the next state, or its expectation. A truncated episode is not terminated: its value counts. Raises ValueError unless
    `0 <= gamma <= 1`.

    >>> import torch
    >>> from entreg.functional import soft_backup
    >>> soft_backup(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]), 0.5, torch.tensor([False, True]))
    tensor([2., 1.])

    Source: Haarnoja et al. 2017, eq. 8.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: got {gamma}, legal is 0 <= gamma <= 1")
    return reward + gamma * (next_value if terminated is None else torch.where(terminated, 0, next_value))
