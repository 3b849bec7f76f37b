"""The members of a population: seeds x coefficients x families, each the run it would have been alone.

Everything random about a member comes from its seed: initial weights, environments (seeded there), and one NumPy stream that draws
action noise and the order of minibatches. Nothing is drawn from a stream that members share.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg import spelling, targets
from entreg.functional import Family
from entreg.regularizer import EntropyRegularizer
from entreg.rl.heads import Head


class Member(NamedTuple):
    """One member's seed, and the spelling of its family and (resolved) controller."""

    seed: int
    coef: str
    family: str


def expand(coefs: Sequence[str], families: Sequence[str], seeds: Sequence[int]) -> list[Member]:
    """Every combination; seeds vary fastest, so that members of one setting stand together and the first coefficient comes first."""
    return [Member(seed, coef, family) for family, coef, seed in itertools.product(families, coefs, seeds)]


def regularizers(members: Sequence[Member], head: Head, *, steps: int, lr: float, init_coef: float) -> list[EntropyRegularizer]:
    """One regulariser a member, its controller's open fields filled in for this head and `steps` controller steps."""
    result = []
    for member in members:
        family = spelling.parse_family(member.family)
        largest = head.max_entropy(family)
        controller = targets.resolve(
            spelling.parse_controller(member.coef),
            steps=steps,
            max_entropy=None if largest is None else float(largest),
            action_dim=head.actions if head.spec.kind == "continuous" else None,
            lr=lr,
            init_coef=init_coef,
            family=family.name,
        )
        head.entropy(torch.zeros(1, 1, head.outputs + head.log_std), family, None)  # refuses what this head has no entropy of
        if unknown := targets.named_targets(controller):
            legal = "action_dim(factor)" if head.spec.kind == "continuous" else "fraction_of_max(f), greedy_probability(p)"
            raise ValueError(
                f"coef {member.coef}: {head.spec.kind} actions have no {unknown[0].needs}; legal: {legal}, a number of nats, or a schedule of either"
            )
        try:
            result.append(EntropyRegularizer(controller))
        except ValueError as error:
            raise ValueError(f"coef {member.coef} for {head.spec.kind} actions: {error}") from error
    return result


class Streams:
    """Each member's stream of action noise and minibatch orders; streams of different `purpose` are independent."""

    def __init__(self, seeds: Sequence[int], purpose: int = 0xE27) -> None:
        self.generators = [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose]))) for seed in seeds]

    def noise(self, shape: tuple[int, ...], kind: str) -> np.ndarray:
        """Float32 noise `[M, *shape]`: `uniform` in [0, 1) or `normal`."""
        if kind == "uniform":
            return np.stack([generator.random(shape, dtype=np.float32) for generator in self.generators])
        return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in self.generators])

    def orders(self, epochs: int, items: int) -> np.ndarray:
        """A permutation of the items for every member and epoch, `[M, epochs, items]`."""
        return np.stack([np.stack([generator.permutation(items) for _ in range(epochs)]) for generator in self.generators])

    def keys(self, count: int) -> np.ndarray:
        """64-bit numbers for counter-based randomness, `[M count]` member-major."""
        return np.concatenate([generator.integers(0, 2**64, count, dtype=np.uint64) for generator in self.generators])

    def state_dict(self) -> dict[str, Any]:
        return {str(index): generator.bit_generator.state for index, generator in enumerate(self.generators)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, generator in enumerate(self.generators):
            generator.bit_generator.state = state[str(index)]


def weight_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """The source of each member's initial weights."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Families:
    """Which slice of the members uses which family, so that entropies of a mixed population cost one call a family."""

    def __init__(self, names: Sequence[str]) -> None:
        self.groups: list[tuple[slice, Family]] = []
        start = 0
        for name, group in itertools.groupby(names):
            end = start + len(list(group))
            self.groups.append((slice(start, end), spelling.parse_family(name)))
            start = end

    def stats(self, head: Head, outputs: Tensor, action: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy `(M, N)`, each member by its own family."""
        parts = [head.stats(outputs[at], action[at], family, _part(mask, at)) for at, family in self.groups]
        return parts[0] if len(parts) == 1 else (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))

    def entropy(self, head: Head, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Entropy `(M, N)`, each member by its own family."""
        parts = [head.entropy(outputs[at], family, _part(mask, at)) for at, family in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def observe(each: Sequence[EntropyRegularizer], means: Tensor, items: int) -> Tensor:
    """Show every member's regulariser its mean entropy (`means [M]`) of so many items; what each weighs entropy by in its loss, `[M, 1]`."""
    for regularizer, mean in zip(each, means.tolist(), strict=True):
        regularizer.observe(mean, items)
    return torch.tensor([[-regularizer.sense * regularizer.coef] for regularizer in each], dtype=means.dtype)


def gradient_shares(
    bonus: tuple[Tensor, Tensor], task: tuple[Tensor, Tensor], outputs: Tensor, over_ranks: Callable[[Tensor], Tensor] | None = None
) -> np.ndarray:
    """Each member's share of the bonus in the gradient with respect to the policy's outputs, `[M]` in [0, 1]; losses come with their weights.

    `over_ranks` sums over the processes that hold the other items.
    """
    of_bonus, of_task = _norm(*bonus, outputs), _norm(*task, outputs)
    if over_ranks is not None:
        of_bonus, of_task = over_ranks(torch.stack([of_bonus, of_task]).square()).sqrt().unbind()
    return (of_bonus / (of_bonus + of_task).clamp_min(1e-30)).numpy()


def _norm(loss: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, outputs, weight, retain_graph=True, allow_unused=True)
    norms: Tensor = torch.zeros(len(outputs)) if grad is None else grad.flatten(1).norm(dim=1)
    return norms


def _part(mask: Tensor | None, at: slice) -> Tensor | None:
    return None if mask is None else mask[at]
