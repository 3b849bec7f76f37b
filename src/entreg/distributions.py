"""Exact entropies of distribution objects: `entropy(dist, family)`, and two that `torch.distributions` lacks, `TanhNormal` and `MaskedCategorical`.

Shapes: `*` the batch shape, `S` sample shape; all values in nats. A distribution implements one thing, its Rényi entropy at an order (`renyi_entropy`; Shannon
is order 1); dimensions and heads are independent, their Rényi entropies are added and the family's transform comes last.
float16 and bfloat16 parameters are held in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Size, Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MultivariateNormal, Normal, OneHotCategorical, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from entreg.functional._precision import full_precision
from entreg.functional.categorical import bernoulli_entropy, categorical_entropy, categorical_entropy_from_probs, categorical_kl
from entreg.functional.continuous import (
    gaussian_entropy,
    gaussian_kl,
    multivariate_gaussian_entropy,
    squashed_mean,
    squashed_mode,
    squashed_renyi,
    tanh_log_det,
)
from entreg.functional.families import SHANNON, Family, renyi


def entropy(dist: "Distribution | Joint", family: Family = SHANNON) -> Tensor:
    """Exact entropy of a distribution object, one value per batch item `(*)`, nats, differentiable in its parameters.

    Known: Categorical, OneHotCategorical, Bernoulli, Normal, MultivariateNormal of torch, `TanhNormal`, `MaskedCategorical`, `Joint`, and Independent of those.

    Raises `TypeError` for a distribution without exact entropy (mixtures, transformed ones), `ValueError` for an order that it does not have.

    >>> entropy(Normal(torch.zeros(2), 1.0))
    tensor([1.4189, 1.4189])

    Source: see `entreg.functional`.
    """
    return family.from_renyi(renyi_entropy(dist, family.order))


def renyi_entropy(dist: "Distribution | Joint", order: float) -> Tensor:
    """Rényi entropy at an order, `(*)` nats: what every distribution implements, and what adds up over independent parts.

    Raises as `entropy` does.

    >>> renyi_entropy(Bernoulli(torch.tensor(0.5)), 2.0)
    tensor(0.6931)
    """
    family = renyi(order)
    match dist:
        case Joint():
            value = torch.stack([renyi_entropy(head, order) for head in dist.heads]).sum(0)
        case Independent():
            inner = renyi_entropy(dist.base_dist, order)
            value = inner.flatten(len(dist.batch_shape)).sum(-1) if dist.reinterpreted_batch_ndims else inner
        case Categorical() | OneHotCategorical():
            given = dist._param  # logits or probabilities, as it was made: torch's conversion clamps a probability of 0 to 1e-7
            value = categorical_entropy(given, family) if given is dist.logits else categorical_entropy_from_probs(given, family)
        case Bernoulli():
            given = dist._param
            value = bernoulli_entropy(given, family) if given is dist.logits else categorical_entropy_from_probs(torch.stack([given, 1.0 - given], -1), family)
        case Normal():
            value = gaussian_entropy(dist.scale.log()[..., None], family)
        case MultivariateNormal():
            value = multivariate_gaussian_entropy(dist.scale_tril, family)
        case TanhNormal():
            value = squashed_renyi(dist.loc, dist.log_std, order)
        case _:
            raise TypeError(
                f"{type(dist).__name__} has no exact entropy; estimate it from samples with functional.sampled(dist.log_prob(dist.rsample((n,))))"
                " (for a tanh-squashed Normal use entreg.distributions.TanhNormal)"
            )
    return value


@final
class TanhNormal(Distribution):
    """`tanh(u)` with `u ~ N(mean, std^2)`, elementwise on the batch shape: `Independent(TanhNormal(mean, std), 1)` is a vector action.

    Give `std` or `log_std`. Entropies are exact for every family, `log_prob(value, pre_tanh=u)` is exact and finite for every `u`; from the value alone nothing
    beyond `|u| = 8.7` (float32) can be told apart, and a value of +-1 is taken as the last number before it. `mode` is the point of largest density, `median =
    tanh(mean)` the usual greedy action, `mean` is `E tanh u`.

    Raises `ValueError` unless exactly one of `std > 0` and `log_std` is given.

    >>> policy = TanhNormal(torch.zeros(2), torch.tensor([0.5, 1.0]))
    >>> policy.entropy()
    tensor([0.5000, 0.6698])
    >>> value, u = policy.rsample_with_pre_tanh()
    >>> policy.log_prob(value, pre_tanh=u).shape
    torch.Size([2])

    Source: Haarnoja et al. 2018, appendix C.
    """

    arg_constraints = {"loc": constraints.real, "log_std": constraints.real}  # noqa: RUF012
    support = constraints.interval(-1.0, 1.0)
    has_rsample = True

    def __init__(
        self, mean: Tensor | float, std: Tensor | float | None = None, *, log_std: Tensor | float | None = None, validate_args: bool | None = None
    ) -> None:
        if (std is None) == (log_std is None):
            raise ValueError(f"std, log_std: {'neither' if std is None else 'both'} given; legal is exactly one")
        if std is not None:
            std = torch.as_tensor(std)
            if validate_args is not False and not bool((std > 0.0).all()):
                raise ValueError(f"std: smallest is {float(std.min())}; legal are positive numbers")
            log_std = std.log()
        assert log_std is not None
        self.loc, self.log_std = (full_precision(t) for t in broadcast_all(mean, log_std))
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "TanhNormal":
        """The same distribution on a larger batch shape, without copying."""
        new: TanhNormal = self._get_checked_instance(TanhNormal, _instance)  # type: ignore[no-untyped-call]
        new.loc, new.log_std = self.loc.expand(batch_shape), self.log_std.expand(batch_shape)
        super(TanhNormal, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """`E tanh u` `(*)`."""
        return squashed_mean(self.loc, self.log_std)

    @property
    def median(self) -> Tensor:
        """`tanh` of the mean of `u` `(*)`: the usual greedy action, differentiable."""
        return self.loc.tanh()

    @property
    def mode(self) -> Tensor:
        """Where the density is largest `(*)`: outside of the median, and one of two for a wide policy centred at 0. No gradient."""
        return squashed_mode(self.loc, self.log_std).tanh()

    def rsample_with_pre_tanh(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Reparameterised samples and the `u` they come from, each `(S, *)`."""
        noise = torch.randn(self._extended_shape(Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
        u = self.loc + self.log_std.exp() * noise
        return u.tanh(), u

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparameterised samples `(S, *)`."""
        return self.rsample_with_pre_tanh(sample_shape)[0]

    def log_prob(self, value: Tensor, pre_tanh: Tensor | None = None) -> Tensor:
        """Log-density at `value`, `(S, *)` nats; with `pre_tanh` exact for every `u`, and `value` is not looked at."""
        if pre_tanh is None:
            if self._validate_args:
                self._validate_sample(value)
            value = full_precision(value)
            edge = 1.0 - torch.finfo(value.dtype).eps / 2
            pre_tanh = value.clamp(-edge, edge).atanh()
        scaled = (pre_tanh - self.loc) * torch.exp(-self.log_std)
        return -0.5 * (scaled.square() + math.log(2.0 * math.pi)) - self.log_std - tanh_log_det(pre_tanh)

    def entropy(self) -> Tensor:
        """Shannon entropy `(*)`, nats; other families: `entreg.distributions.entropy(dist, family)`."""
        return squashed_renyi(self.loc, self.log_std, 1.0)


@final
class MaskedCategorical(Categorical):
    """Categorical over the classes of `support`, `(*, V)`; the others have probability 0, log-probability -inf and no gradient.

    Takes logits only, -inf allowed. `sample`, `log_prob`, `mode`, `probs` are torch's; the entropy is exact in value and gradient.

    Raises `ValueError` for a row without any class, a NaN, and a `support` that is not boolean.

    >>> policy = MaskedCategorical(torch.zeros(4), support=torch.tensor([True, True, False, False]))
    >>> policy.entropy(), policy.probs
    (tensor(0.6931), tensor([0.5000, 0.5000, 0.0000, 0.0000]))

    Source: Huang and Ontañón 2022, invalid action masking.
    """

    def __init__(self, logits: Tensor, support: Tensor | None = None, *, validate_args: bool | None = None) -> None:
        logits = full_precision(logits)
        if support is not None:
            if support.dtype != torch.bool:
                raise ValueError(f"support: got {support.dtype}; legal is a boolean tensor, True where the class exists")
            logits = logits.masked_fill(~support, -math.inf)
        largest = logits.detach().amax(-1, keepdim=True)
        if validate_args is not False and not bool((largest > -math.inf).all()):
            dead, nan = int((largest == -math.inf).sum()), int(largest.isnan().sum())
            raise ValueError(f"logits, support: {dead} rows have no class, {nan} hold a NaN; legal is at least one finite logit inside the support")
        # without the offset torch's normalisation keeps its digits
        super().__init__(logits=logits - largest, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "MaskedCategorical":
        """The same distribution on a larger batch shape, without copying."""
        new = self._get_checked_instance(MaskedCategorical, _instance)  # type: ignore[no-untyped-call]
        expanded: MaskedCategorical = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded

    def entropy(self) -> Tensor:
        """Shannon entropy `(*)`, nats; other families: `entreg.distributions.entropy(dist, family)`."""
        return categorical_entropy(self.logits)


@final
@dataclass(frozen=True)
class Joint:
    """Independent heads of a composite action, each with the same batch shape `(*)`: entropies per head and of the whole.

    Heads are independent given the observation. For autoregressive heads only Shannon has a chain rule: add the conditional entropies yourself.

    Raises `ValueError` without heads, or when batch shapes differ.

    >>> policy = Joint((MaskedCategorical(torch.zeros(3, 4)), Independent(Normal(torch.zeros(3, 2), 1.0), 1)))
    >>> policy.entropies().shape, policy.entropy()
    (torch.Size([3, 2]), tensor([4.2242, 4.2242, 4.2242]))
    """

    heads: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(head.batch_shape) for head in self.heads]
        if len(set(shapes)) != 1:
            raise ValueError(f"heads: batch shapes {shapes}; legal is at least one head, all with the same batch shape (Independent makes event dimensions)")

    def entropies(self, family: Family = SHANNON) -> Tensor:
        """Entropy of each head, `(*, heads)` nats."""
        return torch.stack([entropy(head, family) for head in self.heads], -1)

    def entropy(self, family: Family = SHANNON) -> Tensor:
        """Entropy of the whole action, `(*)` nats: Rényi entropies added, transformed last. For Tsallis it is not the sum of the heads'."""
        return entropy(self, family)

    def sample(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """One sample a head, each `(S, *, event)`."""
        return tuple(head.sample(Size(sample_shape)) for head in self.heads)

    def log_prob(self, values: Sequence[Tensor]) -> Tensor:
        """Log-probability of the whole action, `(S, *)` nats."""
        if len(values) != len(self.heads):
            raise ValueError(f"values: {len(values)} given; legal is one a head, {len(self.heads)}")
        return torch.stack([head.log_prob(value) for head, value in zip(self.heads, values, strict=True)]).sum(0)


def _kl_tanh_normal(p: TanhNormal, q: TanhNormal) -> Tensor:
    return gaussian_kl(*(t[..., None] for t in (p.loc, p.log_std, q.loc, q.log_std)))


def _kl_masked_categorical(p: Categorical, q: Categorical) -> Tensor:
    return categorical_kl(p.logits, q.logits)


register_kl(TanhNormal, TanhNormal)(_kl_tanh_normal)
for _p, _q in ((MaskedCategorical, MaskedCategorical), (MaskedCategorical, Categorical), (Categorical, MaskedCategorical)):
    register_kl(_p, _q)(_kl_masked_categorical)
