"""Action distributions of stacked policies: how outputs become actions, log-probabilities and exact entropies.

Shapes: M members, N items, K outputs, A numbers of one action (heads of a discrete action, or dimensions). Actions are kept as the
policy sampled them (class indices; the unclipped or pre-tanh number); `to_environment` turns them into what the environment takes.
Noise is drawn by the caller, from each member's own stream: uniforms in [0, 1) for classes, standard normals for dimensions.
"""

import math
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from entreg import functional
from entreg.functional import SHANNON, Family
from entreg.rl.environments import ActionSpec

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Head(Protocol):
    """What a policy's outputs mean."""

    spec: ActionSpec
    outputs: int  # K, without a state-independent log_std
    log_std: int  # size of a state-independent log_std, 0 for none
    actions: int  # A
    noise: Literal["uniform", "normal"]

    def sample(self, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None, temperature: float = 1.0) -> np.ndarray:
        """Actions `(M, N, A)` from outputs `(M, N, K)` and noise `(M, N, A)`; temperature 0 is the mode. In NumPy: a quarter of torch's time at 8 items."""

    def stats(self, outputs: Tensor, action: Tensor, family: Family, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability of the action and exact entropy, both `(M, N)`."""

    def entropy(self, outputs: Tensor, family: Family, mask: Tensor | None) -> Tensor:
        """Exact entropy `(M, N)`."""

    def kl(self, old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
        """KL(old || new) `(M, N)`."""

    def max_entropy(self, family: Family, mask: Tensor | None = None) -> Tensor | None:
        """Largest entropy over the allowed actions (`(M, N)` where a mask is given), None where there is none."""

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Actions `(N, A)` as the environment takes them."""

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable action as the environment takes it, `(N, K) -> (N,)` or `(N, A)`, in torch alone: what is exported."""


class Discrete:
    """One or several independent categorical heads; Rényi entropies add over heads, the family's transform comes last."""

    log_std = 0
    noise: Literal["uniform", "normal"] = "uniform"

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self.outputs = sum(spec.sizes)
        self.actions = len(spec.sizes)

    def sample(self, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None, temperature: float = 1.0) -> np.ndarray:
        if mask is not None:
            outputs = np.where(mask, outputs, np.float32(-math.inf))
        parts = np.split(outputs, np.cumsum(self.spec.sizes[:-1]), axis=-1) if self.actions > 1 else (outputs,)
        if temperature == 0:
            return np.stack([part.argmax(-1) for part in parts], axis=-1)
        chosen = []
        for head, logits in enumerate(parts):
            weights = np.exp((logits - logits.max(-1, keepdims=True)) / np.float32(max(temperature, 1e-20)))
            cumulative = np.cumsum(weights, axis=-1, out=weights)
            # strictly below the last sum whatever the rounding, so that a class without probability is never taken
            threshold = noise[..., head, None] * np.float32(1 - 2**-20) * cumulative[..., -1:]
            chosen.append((cumulative <= threshold).sum(-1))
        return np.stack(chosen, axis=-1)

    def stats(self, outputs: Tensor, action: Tensor, family: Family, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.actions == 1:
            return functional.categorical_stats(outputs, action[..., 0], family, support=mask)
        log_prob, entropy = [], []
        inner = _renyi(family)
        for head, (logits, legal) in enumerate(zip(self._parts(outputs), self._masks(mask), strict=True)):
            part = functional.categorical_stats(logits, action[..., head], inner, support=legal)
            log_prob.append(part[0])
            entropy.append(part[1])
        return torch.stack(log_prob).sum(0), family.from_renyi(torch.stack(entropy).sum(0))

    def entropy(self, outputs: Tensor, family: Family, mask: Tensor | None) -> Tensor:
        if self.actions == 1:
            return functional.categorical_entropy(outputs, family, support=mask)
        inner = _renyi(family)
        parts = [functional.categorical_entropy(z, inner, support=m) for z, m in zip(self._parts(outputs), self._masks(mask), strict=True)]
        return family.from_renyi(torch.stack(parts).sum(0))

    def kl(self, old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            old, new = old.masked_fill(~mask, -math.inf), new.masked_fill(~mask, -math.inf)
        return torch.stack([functional.categorical_kl(p, q) for p, q in zip(self._parts(old), self._parts(new), strict=True)]).sum(0)

    def max_entropy(self, family: Family, mask: Tensor | None = None) -> Tensor | None:
        if mask is None:
            return family.from_renyi(torch.tensor(sum(math.log(size) for size in self.spec.sizes)))
        return family.from_renyi(torch.stack([legal.sum(-1).float().log() for legal in mask.split(self.spec.sizes, dim=-1)]).sum(0))

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        return action[..., 0] if self.spec.kind == "discrete" else action

    def mode(self, outputs: Tensor) -> Tensor:
        chosen = torch.stack([part.argmax(-1) for part in self._parts(outputs)], dim=-1)
        return chosen[..., 0] if self.spec.kind == "discrete" else chosen

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs.split(self.spec.sizes, dim=-1) if self.actions > 1 else (outputs,)

    def _masks(self, mask: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * self.actions if mask is None else mask.split(self.spec.sizes, dim=-1)


class Gaussian:
    """Diagonal Gaussian with a state-independent scale; the environment gets the action clipped to its bounds."""

    noise: Literal["uniform", "normal"] = "normal"

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self.outputs = self.log_std = self.actions = spec.sizes[0]

    def sample(self, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None, temperature: float = 1.0) -> np.ndarray:
        mean, log_std = np.split(outputs, 2, axis=-1)
        action: np.ndarray = mean + np.float32(temperature) * np.exp(log_std) * noise
        return action

    def stats(self, outputs: Tensor, action: Tensor, family: Family, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, dim=-1)
        return _normal_log_prob(action, mean, log_std), functional.gaussian_entropy(log_std, family)

    def entropy(self, outputs: Tensor, family: Family, mask: Tensor | None) -> Tensor:
        return functional.gaussian_entropy(outputs.chunk(2, dim=-1)[1], family)

    def kl(self, old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
        return functional.gaussian_kl(*old.chunk(2, dim=-1), *new.chunk(2, dim=-1))

    def max_entropy(self, family: Family, mask: Tensor | None = None) -> Tensor | None:
        return None

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        clipped: np.ndarray = np.clip(action, *_bounds(self.spec))
        return clipped

    def mode(self, outputs: Tensor) -> Tensor:
        low, high = (torch.from_numpy(bound) for bound in _bounds(self.spec))
        return torch.maximum(torch.minimum(outputs.chunk(2, dim=-1)[0], high), low)


class TanhGaussian(Gaussian):
    """Gaussian squashed by tanh into the environment's bounds, with the exact entropy of the squashed action (in [-1, 1] units).

    The logarithm of the standard deviation is clamped to `limits`; `remedy` is what to do about an environment without bounds.
    """

    def __init__(
        self, spec: ActionSpec, limits: tuple[float, float] = (LOG_STD_MIN, LOG_STD_MAX), *, remedy: str = "use --no-squash for this environment"
    ) -> None:
        low, high = _bounds(spec)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"a squashed policy needs finite action bounds; {remedy}")
        self.spec, self.limits = spec, limits
        self.actions = spec.sizes[0]
        self.outputs = 2 * self.actions
        self.log_std = 0

    def sample(self, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None, temperature: float = 1.0) -> np.ndarray:
        return super().sample(self._clamped(torch.from_numpy(outputs)).numpy(), noise, mask, temperature)

    def drawn(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squashed actions `(M, N, A)` in [-1, 1] that move with the outputs, and their log-probability `(M, N)`, from standard normal noise `(M, N, A)`."""
        mean, log_std = self._clamped(outputs).chunk(2, dim=-1)
        u = mean + log_std.exp() * noise
        log_prob = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - functional.tanh_log_det(u)).sum(-1)
        return u.tanh(), log_prob

    def stats(self, outputs: Tensor, action: Tensor, family: Family, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, log_std = self._clamped(outputs).chunk(2, dim=-1)
        log_prob = _normal_log_prob(action, mean, log_std) - functional.tanh_log_det(action).sum(-1)
        return log_prob, functional.tanh_gaussian_entropy(mean, log_std, family)

    def entropy(self, outputs: Tensor, family: Family, mask: Tensor | None) -> Tensor:
        mean, log_std = self._clamped(outputs).chunk(2, dim=-1)
        return functional.tanh_gaussian_entropy(mean, log_std, family)

    def kl(self, old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
        return super().kl(self._clamped(old), self._clamped(new), mask)  # a bijection leaves the divergence as it is

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        return self.scale(np.tanh(action))

    def scale(self, squashed: np.ndarray) -> np.ndarray:
        """Squashed actions in [-1, 1] as the environment takes them."""
        low, high = _bounds(self.spec)
        scaled: np.ndarray = low + (squashed + 1) / 2 * (high - low)
        return scaled

    def mode(self, outputs: Tensor) -> Tensor:
        low, high = (torch.from_numpy(bound) for bound in _bounds(self.spec))
        return low + (torch.tanh(outputs.chunk(2, dim=-1)[0]) + 1) / 2 * (high - low)

    def _clamped(self, outputs: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, dim=-1)
        return torch.cat([mean, log_std.clamp(*self.limits)], dim=-1)


class Sampled(TanhGaussian):
    """Actions of a network that reads noise: its outputs `(M, N, A)` are the action before the tanh, and no density of it is known."""

    def __init__(self, spec: ActionSpec, *, remedy: str = "bound the environment's actions") -> None:
        super().__init__(spec, remedy=remedy)
        self.outputs = self.actions

    def sample(self, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray | None, temperature: float = 1.0) -> np.ndarray:
        return outputs  # the noise, times the temperature, has gone into the network

    def drawn(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a sampler's actions have no known density")

    def stats(self, outputs: Tensor, action: Tensor, family: Family, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a sampler's actions have no known density")

    def kl(self, old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError("a sampler's actions have no known density")

    def entropy(self, outputs: Tensor, family: Family, mask: Tensor | None) -> Tensor:
        return torch.full(outputs.shape[:-1], math.nan)  # not known either; recipes estimate that of the policy it imitates

    def mode(self, outputs: Tensor) -> Tensor:
        return super().mode(torch.cat([outputs, outputs], -1))


def head_for(spec: ActionSpec, *, squash: bool = False) -> Head:
    """The head of an action space; `squash` bounds continuous actions by tanh and is refused for discrete ones."""
    if spec.kind == "continuous":
        return TanhGaussian(spec) if squash else Gaussian(spec)
    if squash:
        raise ValueError(f"squash is for continuous actions, and this environment's are {spec.kind}")
    return Discrete(spec)


class Limits(NamedTuple):
    low: np.ndarray
    high: np.ndarray


def _bounds(spec: ActionSpec) -> Limits:
    return Limits(np.asarray(spec.low, dtype=np.float32), np.asarray(spec.high, dtype=np.float32))


def _normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return (-0.5 * ((x - mean) * torch.exp(-log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def _renyi(family: Family) -> Family:
    """The Rényi entropy of the family's order: what adds over independent heads."""
    return SHANNON if family.order == 1 else functional.renyi(family.order)
