"""The books of a population: recent returns, what the last update saw, the signals of the controllers and the lines of the records."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg.functional import SHANNON
from entreg.regularizer import EntropyRegularizer
from entreg.rl.heads import Head
from entreg.rl.population import Member

_EPISODES = 100  # the window of `return`


class Books:
    """One entry a member in everything kept here."""

    def __init__(self, members: Sequence[Member], head: Head, regularizers: Sequence[EntropyRegularizer]) -> None:
        self.members = members
        self.head = head
        self.regularizers = regularizers
        self.recent: list[deque[tuple[float, int]]] = [deque(maxlen=_EPISODES) for _ in members]
        self.evaluated = [math.nan] * len(members)
        self._clock = time.perf_counter()
        self._steps = 0
        self.forget()

    def forget(self) -> None:
        """Nothing of what was seen since the last record stays."""
        self.share: np.ndarray | None = None
        self.columns: dict[str, np.ndarray] = {}
        self._seen: list[Tensor] = []

    def begin(self, episodes: Sequence[tuple[int, float, int]], per_member: int, explained_variance: np.ndarray) -> None:
        """A rollout was collected, in which these episodes ended."""
        self.forget()
        self.ended(episodes, per_member)
        self.columns["coef"] = np.array([regularizer.coef for regularizer in self.regularizers])
        self.columns["explained_variance"] = explained_variance

    def ended(self, episodes: Sequence[tuple[int, float, int]], per_member: int) -> None:
        """These episodes ended: (environment, return, length), the environments of a member standing together."""
        for index, total, length in episodes:
            self.recent[index // per_member].append((total, length))

    def seen(self, means: Tensor) -> None:
        """One gradient step's mean policy losses, value losses and entropies, `[3, M]`."""
        self._seen.append(means)

    def end(self, kl: np.ndarray) -> None:
        """The update is over; `kl [M]` is the divergence of the acting policy from the new one."""
        self.average(kl=kl)

    def average(self, **columns: np.ndarray) -> None:
        """The next record holds the means of what was seen since the last one, and these `columns [M]`."""
        policy, value, entropy = torch.stack(self._seen).mean(0).numpy()
        self.columns |= {"loss/policy": policy, "loss/value": value, "entropy/family": entropy, **columns}
        if self.share is not None:
            self.columns["grad_share"] = self.share

    def unread(self) -> Tensor | None:
        """What was seen since the last record, `[steps, 3, M]`, for a checkpoint between two records."""
        return torch.stack(self._seen) if self._seen else None

    def read_again(self, seen: Tensor | None) -> None:
        """Take back what `unread` gave."""
        self._seen = [] if seen is None else list(seen)

    def signals(self, progress: float) -> list[dict[str, float]]:
        """What the controllers may read besides entropy, for every member; a signal without a value yet is left out."""
        result = []
        for index, recent in enumerate(self.recent):
            signals = {"progress": progress}
            if "kl" in self.columns:
                signals["kl"] = float(self.columns["kl"][index])
            if recent:
                signals["reward"] = _mean_return(recent)
            if self.share is not None:
                signals["grad_share"] = float(self.share[index])
            result.append(signals)
        return result

    @torch.no_grad()
    def measure(self, outputs: Tensor, mask: Tensor | None, mean: Callable[[Tensor], Tensor] = lambda each: each.mean(1)) -> tuple[Tensor, Tensor | None]:
        """The mean Shannon entropies `(M,)` of `outputs (M, N, K)`, and the largest there could be, `(M,)` or one for all; None where there is none."""
        largest = self.head.max_entropy(SHANNON, mask)
        return mean(self.head.entropy(outputs, SHANNON, mask)), largest if mask is None or largest is None else mean(largest)

    def rows(self, outputs: Tensor, mask: Tensor | None, steps: int) -> list[dict[str, float]]:
        """One training record a member: the books and the Shannon entropy of `outputs (M, N, K)`."""
        return self.lines(*self.measure(outputs, mask), steps)

    def lines(self, shannon: Tensor, largest: Tensor | None, steps: int) -> list[dict[str, float]]:
        """One training record a member: the books and what `measure` gave."""
        columns = {"entropy": shannon, "entropy/perplexity": shannon.exp()}
        if largest is not None:
            columns["entropy/max"] = shannon / largest.clamp_min(1e-12)
        now = time.perf_counter()
        speed = (steps - self._steps) * len(self.members) / max(now - self._clock, 1e-9)
        self._clock, self._steps = now, steps
        result = []
        for index, recent in enumerate(self.recent):
            row = {"return": _mean_return(recent), "episode_length": float(np.mean([n for _, n in recent]))} if recent else {}
            row |= {name: float(values[index]) for name, values in (columns | self.columns).items()}
            target = self.regularizers[index].target
            if target is not None:
                row["entropy/target"] = target
            result.append(row | {"steps_per_second": speed})
        return result

    def lowest_return(self) -> float:
        """The least of the members' mean returns over a full window of episodes; minus infinity before it is full."""
        return min(_mean_return(recent) if len(recent) == _EPISODES else -math.inf for recent in self.recent)

    def summary(self) -> dict[str, float]:
        """Evaluated (or else recent) return, mean over the members of each setting, which is named where there are several."""
        returns: dict[str, list[float]] = {}
        alone = len({(member.coef, member.family) for member in self.members}) == 1
        for index, member in enumerate(self.members):
            recent = self.recent[index]
            value = self.evaluated[index] if not math.isnan(self.evaluated[index]) else _mean_return(recent) if recent else math.nan
            name = f"return at coef {member.coef}" + ("" if member.family == "shannon" else f", {member.family}")
            returns.setdefault("return" if alone else name, []).append(value)
        return {name: float(np.mean(values)) for name, values in returns.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [list(recent) for recent in self.recent], "evaluated": self.evaluated}

    def load_state_dict(self, state: Mapping[str, Any], steps: int) -> None:
        self.recent = [deque([(total, length) for total, length in recent], maxlen=_EPISODES) for recent in state["recent"]]
        self.evaluated = list(state["evaluated"])
        self._steps = steps


def _mean_return(recent: Sequence[tuple[float, int]]) -> float:
    return float(np.mean([total for total, _ in recent]))
