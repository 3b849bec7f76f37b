"""What a policy's outputs are, so that the rules need not ask: categorical (logits or log-probabilities) or Gaussian (squashed or not).

Shapes: `*` items, `V` classes, `D` action dimensions, `M` draws. `leaf [*, K]` is what gradients are taken of: the logits, or mean and log_std side by side
(K = 2 D). A hypothesis is an entropy that a loss may have used in the place of the exact one, `leaf -> [*]`; `total` marks those that mix items: `leaf -> []`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from entreg.functional import SHANNON, Family, categorical_entropy, gaussian_entropy, marginal_entropy, min_entropy, renyi, tanh_gaussian_entropy, tsallis


class Hypothesis(NamedTuple):
    """An entropy that would explain a gradient: the rule it breaks, and how it reads in the evidence."""

    rule: str
    words: str
    entropy: Callable[[Tensor], Tensor]
    total: bool = False


OTHERS = (SHANNON, renyi(0.5), renyi(2), tsallis(0.5), tsallis(2), min_entropy)


@dataclass(frozen=True)
class Categorical:
    """`softmax(leaf / temperature)` over the classes that exist; `key` is what the loss is given, "logits" or "log_probs"."""

    key: str
    family: Family
    support: Tensor | None
    temperature: float = 1.0

    def arguments(self, leaf: Tensor) -> dict[str, Tensor]:
        return {self.key: leaf if self.key == "logits" else leaf.log_softmax(-1)}

    def entropy(self, leaf: Tensor) -> Tensor:
        return categorical_entropy(leaf / self.temperature, self.family, support=self.support)

    def live(self, leaf: Tensor) -> Tensor:
        """Which classes exist, `[*, V]`."""
        return torch.isfinite(leaf) if self.support is None else torch.isfinite(leaf) & self.support

    def probe(self, leaf: Tensor, generator: torch.Generator) -> Tensor:
        """Logits like the batch's, with noise and a greedy probability of .3 to .9: at a uniform or certain policy every entropy has gradient 0."""
        live = self.live(leaf)
        count = live.sum(-1, keepdim=True)
        centred = torch.where(live, leaf - torch.where(live, leaf, 0).sum(-1, keepdim=True) / count, 0)
        spread = (centred.square().sum(-1, keepdim=True) / count).sqrt().clamp(min=1e-12)
        noisy = centred * (1.0 / spread).clamp(max=1.0) + torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf)
        wanted = 0.3 + 0.6 * torch.rand(leaf.shape[:-1], generator=generator, dtype=leaf.dtype).to(leaf)
        return torch.where(torch.isfinite(leaf), self._confident(noisy, live, wanted), leaf)

    def _confident(self, leaf: Tensor, live: Tensor, probability: Tensor) -> Tensor:
        """The same with the likeliest class at this probability, `[*]`, at the policy's temperature."""
        scaled = torch.where(live, leaf, -math.inf) / self.temperature
        top = scaled.argmax(-1, keepdim=True)
        rest = scaled.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
        gap = rest + torch.logit(probability).unsqueeze(-1)
        return leaf.scatter(-1, top, torch.where(torch.isfinite(gap), gap * self.temperature, leaf.gather(-1, top)))

    def extremes(self, leaf: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Policies at which an epsilon shows: nearly uniform, and nearly certain."""
        finite, live = torch.isfinite(leaf), self.live(leaf)
        yield "near uniform", torch.where(finite, leaf * 0.01, leaf)
        sure = self._confident(leaf, live, torch.full_like(leaf[..., 0], 0.999))
        yield "at a greedy probability of .999", torch.where(finite, sure, leaf)

    def draw(self, leaf: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Actions `[M, *]` of the policy, stratified: over the M draws every item takes each class as often as it is likely, to 1/M."""
        probs = torch.where(self.live(leaf), leaf / self.temperature, -math.inf).softmax(-1)
        at = _strata(probs.shape[:-1], count, generator).to(probs)
        edges = probs.cumsum(-1)
        return torch.stack([torch.searchsorted(edges, row.unsqueeze(-1)).squeeze(-1).clamp(max=leaf.shape[-1] - 1) for row in at])

    def log_prob(self, leaf: Tensor, actions: Tensor) -> Tensor:
        return torch.where(self.live(leaf), leaf / self.temperature, -math.inf).log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def largest(self, leaf: Tensor) -> Tensor:
        """The largest entropy that each item can have, `[*]`."""
        return self.family.from_renyi(self.live(leaf).sum(-1).to(leaf.dtype).log())

    def hypotheses(self, leaf: Tensor) -> Iterator[Hypothesis]:
        if self.support is not None:
            yield Hypothesis("support", "the entropy over all classes, `support` ignored", lambda z: categorical_entropy(z / self.temperature, self.family))
        for family in OTHERS:
            if family != self.family:
                words = f"the entropy {family!r} where {self.family!r} is wanted"
                yield Hypothesis("family", words, lambda z, family=family: categorical_entropy(z / self.temperature, family, support=self.support))  # type: ignore[misc]
        finite = bool(torch.isfinite(leaf).all())
        for dim in range(leaf.ndim - 1) if finite else ():
            words = f"an entropy over dimension {dim} of {tuple(leaf.shape)}, where classes lie along the last"
            yield Hypothesis("dimension", words, lambda z, dim=dim: categorical_entropy(z.movedim(dim, -1) / self.temperature, self.family), True)  # type: ignore[misc]
        if finite:
            yield Hypothesis("dimension", "the entropy of the mean prediction (the marginal)", lambda z: _marginal(z / self.temperature, self.family), True)
            yield Hypothesis("unnormalised", "-sum p z, with logits in the place of log-probabilities", lambda z: -(z.softmax(-1) * z).sum(-1))
            yield Hypothesis("unnormalised", "-sum exp(z) z, with logits in the place of log-probabilities", lambda z: -(z.exp() * z).sum(-1))

    def at_temperature(self, temperature: float) -> Callable[[Tensor], Tensor]:
        return lambda z: categorical_entropy(z / temperature, self.family, support=self.support)


def _marginal(logits: Tensor, family: Family) -> Tensor:
    return marginal_entropy(logits.flatten(0, -2), family)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian, or with `squashed` the tanh of one."""

    family: Family
    squashed: bool
    dims: int
    key: str = "mean, log_std"

    def arguments(self, leaf: Tensor) -> dict[str, Tensor]:
        mean, log_std = leaf.chunk(2, -1)
        return {"mean": mean, "log_std": log_std}

    def entropy(self, leaf: Tensor) -> Tensor:
        return self._entropy(leaf, self.squashed)

    def _entropy(self, leaf: Tensor, squashed: bool) -> Tensor:
        mean, log_std = leaf.chunk(2, -1)
        return tanh_gaussian_entropy(mean, log_std, self.family) if squashed else gaussian_entropy(log_std, self.family)

    def probe(self, leaf: Tensor, generator: torch.Generator) -> Tensor:
        """Moderate means and stds near the batch's: far out the squashed entropy is flat."""
        mean, log_std = (part + 0.3 * torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part) for part in leaf.chunk(2, -1))
        return torch.cat((mean.clamp(-1.5, 1.5), log_std.clamp(-2, 0.5)), -1)

    def extremes(self, leaf: Tensor) -> Iterator[tuple[str, Tensor]]:
        mean, log_std = leaf.chunk(2, -1)
        yield "at a small std", torch.cat((mean, log_std - 2), -1)
        yield "at large means", torch.cat((mean * 2, log_std), -1)

    def draw(self, leaf: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Actions `[M, *, D]`, stratified a dimension."""
        mean, log_std = leaf.chunk(2, -1)
        u: Tensor = mean + log_std.exp() * torch.special.ndtri(_strata(mean.shape, count, generator)).to(mean)
        return u.tanh() if self.squashed else u

    def log_prob(self, leaf: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = leaf.chunk(2, -1)
        u = actions.clamp(-1 + 1e-9, 1 - 1e-9).atanh() if self.squashed else actions
        density = -0.5 * ((u - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        return (density - (1 - actions.square()).clamp(min=1e-18).log() if self.squashed else density).sum(-1)

    def largest(self, leaf: Tensor) -> Tensor:
        if not self.squashed or self.family != SHANNON:
            return torch.full_like(leaf[..., 0], math.inf)
        mean = leaf.chunk(2, -1)[0].clamp(-50, 50)
        std = torch.linspace(-0.4, 4.7, 205, dtype=leaf.dtype, device=leaf.device).exp()  # to 1e-4 nats; targets.best_squashed is exact, for one mean in 15 ms
        mean, log_std = torch.broadcast_tensors(mean[..., None, None], std.log()[:, None])
        entropy: Tensor = tanh_gaussian_entropy(mean, log_std)
        return entropy.amax(-1).sum(-1)

    def hypotheses(self, leaf: Tensor) -> Iterator[Hypothesis]:
        words = "the entropy before the tanh" if self.squashed else "the entropy after a tanh"
        yield Hypothesis("squash", words, lambda leaf: self._entropy(leaf, not self.squashed))
        yield Hypothesis("unnormalised", "std in the place of log std", lambda leaf: leaf.chunk(2, -1)[1].exp().sum(-1))


Head = Categorical | Gaussian


def _strata(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers `[M, *shape]` in (0, 1): for each place one in every interval of length 1/M, in an order of its own."""
    order = torch.rand((count, *shape), generator=generator, dtype=torch.float64).argsort(0)
    return (order + torch.rand((count, *shape), generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)) / count
