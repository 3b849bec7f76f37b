"""TRL's fused LM head, watched: the log-probabilities and entropies of a forward pass, the entropy of any family, and how they pull on the logits.

Shapes: B sequences of T next-token predictions, N of them in a row `[N, D]`, V classes. Entropies of a family come from `functional.linear_token_stats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.trainer import utils

from entreg.functional import SHANNON, Family, categorical_entropy, clamped_entropy, top_p_entropy
from entreg.functional.shares import Pull, pull
from entreg.functional.tokens import linear_token_stats

ESTIMATOR = "_ChunkedLogProbFunction"  # the name under which trl.trainer.utils calls its kernel
ROWS = 2**25  # logits in memory at a time: 128 MB


class Measure(NamedTuple):
    """Which entropy of a token is regularised: of a family, over all classes, the nucleus `top_p`, or all but the lowest share `clamp` of the classes."""

    family: Family = SHANNON
    top_p: float | None = None
    clamp: float | None = None

    def entropy(self, logits: Tensor) -> Tensor:
        """Of every row, `[*, V] -> [*]` nats, differentiable."""
        if self.top_p is not None:
            return top_p_entropy(logits, self.top_p, self.family)
        return categorical_entropy(logits, self.family) if self.clamp is None else clamped_entropy(logits, self.clamp, self.family)


class Seen(NamedTuple):
    """One pass: log-probabilities, Shannon entropies and those that are regularised `[B, T]`, differentiable; `pull` of each token where it was asked for."""

    log_prob: Tensor
    entropy: Tensor
    family: Tensor
    pull: Pull | None

    def last(self, length: int) -> Seen:
        """The last `length` predictions (TRL's completions are there); what is cut off has no gradient."""
        parts = None if self.pull is None else Pull(*(part[:, -length:].flatten() for part in self.pull))
        return Seen(self.log_prob[:, -length:], self.entropy[:, -length:], self.family[:, -length:], parts)


class Head:
    """Wraps the forward of a model with a fused LM head; transparent unless a pass is `watching`."""

    def __init__(self, model: Any, measure: Measure) -> None:
        self._forward, self._measure = model.forward, measure
        self._seen: list[Seen] | None = None
        self._shares = False
        model.forward = self

    @staticmethod
    def is_fused(model: Any) -> bool:
        """Whether the model's forward is the one of `trl.trainer.utils.add_fused_lm_head`."""
        function = getattr(model.forward, "__func__", None)
        return function is not None and function.__code__.co_name == "_fused_forward" and function.__code__.co_filename == utils.__file__

    @contextmanager
    def watching(self, *, shares: bool) -> Iterator[list[Seen]]:
        """While open, every differentiable pass of the fused head is put into the list that it yields."""
        self._seen, self._shares = [], shares
        try:
            yield self._seen
        finally:
            self._seen = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._seen is None or not kwargs.get("fused_lm_head") or not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        estimator = _Watched(getattr(utils, ESTIMATOR), self._measure, self._shares)
        setattr(utils, ESTIMATOR, estimator)
        try:
            outputs = self._forward(*args, **kwargs)
        finally:
            setattr(utils, ESTIMATOR, estimator.original)
        if outputs.entropy is None or not outputs.entropy.requires_grad:
            raise RuntimeError("fused LM head: its entropy is absent or has no gradient; legal is outputs=('log_probs', 'entropy', ...)")
        family, pulled = estimator.in_place(outputs.label_mask)
        self._seen.append(Seen(outputs.log_probs, outputs.entropy, outputs.entropy if family is None else family, pulled))
        return outputs

    @property
    def __wrapped__(self) -> Any:
        return self._forward  # so that `inspect.signature` gives the model's own


class _Watched:
    """Stands in for TRL's kernel during one pass: calls it, and computes beside it what it does not have."""

    def __init__(self, original: Any, measure: Measure, shares: bool) -> None:
        self.original, self._measure, self._shares = original, measure, shares
        self._rows: tuple[Tensor | None, Pull | None] | None = None

    def apply(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float, chunk: int, softcap: Any, scale: float, outputs: Any
    ) -> Any:
        results = self.original.apply(hidden, weight, bias, labels, temperature, chunk, softcap, scale, outputs)
        how = {"temperature": temperature, "softcap": softcap, "scale": scale}
        family = None if self._measure == Measure() else entropies(hidden, weight, bias, self._measure, how)
        self._rows = family, pulls(hidden, weight, bias, labels, self._measure, how) if self._shares else None
        return results

    def in_place(self, mask: Tensor) -> tuple[Tensor | None, Pull | None]:
        """The rows as `[B, T]`, 0 where `mask` is: TRL computes all positions without Triton, with it only those that count."""
        assert self._rows is not None
        family, pulled = self._rows

        def placed(rows: Tensor) -> Tensor:
            if len(rows) == mask.numel():
                return rows.view(mask.shape).masked_fill(~mask, 0)
            return rows.new_zeros(mask.shape).masked_scatter(mask, rows)

        return None if family is None else placed(family), None if pulled is None else Pull(*(placed(part) for part in pulled))


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, how: Mapping[str, Any]) -> Tensor:
    """Logits `[N, V]` in float32 after scaling, soft-capping and temperature, in TRL's order."""
    z = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias).float() * how["scale"]
    if how["softcap"] is not None:
        z = how["softcap"] * torch.tanh(z / how["softcap"])
    cooled: Tensor = z / how["temperature"]
    return cooled


def entropies(hidden: Tensor, weight: Tensor, bias: Tensor | None, measure: Measure, how: Mapping[str, Any]) -> Tensor:
    """The entropy of every row's next-token distribution, `[N, D] -> [N]`, differentiable; the logits never exist as a whole."""
    scaled, shift = hidden.to(weight.dtype) * how["scale"], None if bias is None else bias * how["scale"]
    cooled = {"temperature": how["temperature"], "softcap": how["softcap"]}
    stats = linear_token_stats(scaled, weight, bias=shift, fields=("entropy",), **measure._asdict(), **cooled)
    return torch.as_tensor(stats.entropy)


@torch.no_grad()
def pulls(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, measure: Measure, how: Mapping[str, Any]) -> Pull:
    """`functional.shares.pull` of every row, without gradient."""
    chunks = zip(_chunks(hidden, weight), _chunks(labels, weight), strict=True)
    parts = [pull(logits_of(rows, weight, bias, how), targets, measure.entropy) for rows, targets in chunks]
    return Pull(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _chunks(rows: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = rows.split(max(1, ROWS // weight.shape[0]))
    return chunks
