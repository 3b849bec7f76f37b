"""Small causal language models, all members stacked: learned positions, pre-norm transformer blocks, the embedding also reads the output.

Shapes: M members, N sequences, T tokens of one, V vocabulary, W width, H heads.

Source: Vaswani et al. 2017 (arXiv:1706.03762); pre-norm and GELU as in GPT-2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from entreg.stacked import FlatParameters, linear

Cache = list[tuple[Tensor, Tensor]]  # keys and values [M N, H, t, W / H] of each layer


class TextModel:
    """Logits of the next token, `(M, N, T) -> (M, N, T, V)`; each member's weights come from its seed.

    >>> model = TextModel([0, 1], vocabulary=5, width=8, layers=1, heads=2, context=4)
    >>> model(torch.zeros(2, 3, 4, dtype=torch.long)).shape
    torch.Size([2, 3, 4, 5])
    """

    def __init__(self, seeds: Sequence[int], *, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        self.vocabulary, self.width, self.layers, self.heads, self.context = vocabulary, width, layers, heads, context
        shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, width), "position": (context, width)}
        for layer in range(layers):
            shapes |= {f"{layer}.norm1": (2, width), f"{layer}.norm2": (2, width)}
            shapes |= {
                f"{layer}.attend": (width, 3 * width),
                f"{layer}.attend_bias": (3 * width,),
                f"{layer}.out": (width, width),
                f"{layer}.out_bias": (width,),
            }
            shapes |= {f"{layer}.up": (width, 4 * width), f"{layer}.up_bias": (4 * width,), f"{layer}.down": (4 * width, width), f"{layer}.down_bias": (width,)}
        shapes["norm"] = (2, width)
        self.parameters = FlatParameters(len(seeds), shapes)
        for member, seed in enumerate(seeds):
            self._draw(member, torch.Generator().manual_seed(seed))

    def _draw(self, member: int, generator: torch.Generator) -> None:
        """GPT-2's initial weights: deviation .02, less for what is added to the residual stream."""
        for name, value in self.parameters.plain.items():
            if "norm" in name:
                value[member, 0] = 1.0
            elif not name.endswith("bias"):
                deviation = 0.02 / math.sqrt(2 * self.layers) if name.endswith(("out", "down")) else 0.02
                value[member] = deviation * torch.randn(value.shape[1:], generator=generator)

    def __call__(self, tokens: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Logits behind each of the tokens `[M, N, T]`, which stand from place `start`; with a `cache` of what stood before, which grows."""
        values = self.parameters if torch.is_grad_enabled() else self.parameters.plain
        members, sequences, length = tokens.shape
        offset = self.vocabulary * torch.arange(members)[:, None, None]
        x = torch.nn.functional.embedding(tokens + offset, values["embedding"].flatten(0, 1)) + values["position"][:, None, start : start + length]
        x = x.flatten(1, 2)
        for layer in range(self.layers):
            x = x + self._attend(self._norm(x, f"{layer}.norm1"), layer, (members, sequences, length), cache)
            up = gelu(linear(self._norm(x, f"{layer}.norm2"), values[f"{layer}.up"], values[f"{layer}.up_bias"]))
            x = x + linear(up, values[f"{layer}.down"], values[f"{layer}.down_bias"])
        logits: Tensor = torch.bmm(self._norm(x, "norm"), values["embedding"].mT).unflatten(1, (sequences, length))
        return logits

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale, shift = (self.parameters if torch.is_grad_enabled() else self.parameters.plain)[name].unbind(1)
        return layer_norm(x, (self.width,)) * scale[:, None] + shift[:, None]

    def _attend(self, x: Tensor, layer: int, shape: tuple[int, int, int], cache: Cache | None) -> Tensor:
        values = self.parameters if torch.is_grad_enabled() else self.parameters.plain
        members, sequences, length = shape
        both = linear(x, values[f"{layer}.attend"], values[f"{layer}.attend_bias"])
        query, key, value = both.view(members * sequences, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        if cache is not None:
            if len(cache) > layer:
                key, value = torch.cat([cache[layer][0], key], 2), torch.cat([cache[layer][1], value], 2)
                cache[layer] = key, value
            else:
                cache.append((key, value))
        read = scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        return linear(read.transpose(1, 2).reshape(members, sequences * length, -1), values[f"{layer}.out"], values[f"{layer}.out_bias"])

    @torch.no_grad()
    def sample(self, first: int, temperatures: Tensor, top_p: Tensor, length: int, streams: Sequence[np.random.Generator]) -> Tensor:
        """Sequences `[M, N, length]` behind the token `first`, each at its own temperature and nucleus, `[N]`; temperature 0 takes the likeliest token.

        Each member's noise comes from its stream. `length` is at most the context.
        """
        members, sequences = len(streams), len(temperatures)
        tokens, cache, found = torch.full((members, sequences, 1), first), Cache(), []
        for place in range(length):
            logits = self(tokens, cache, place)[:, :, 0].double()
            noise = torch.from_numpy(np.stack([stream.random(sequences) for stream in streams]))
            tokens = choose(logits, temperatures, top_p, noise)[..., None]
            found.append(tokens)
        return torch.cat(found, -1)


def choose(logits: Tensor, temperatures: Tensor, top_p: Tensor, noise: Tensor) -> Tensor:
    """A token for every sequence from logits `[M, N, V]`, by inversion of the distribution function at `noise [M, N]`; temperature and top_p are `[N]`.

    top_p keeps the smallest set of the likeliest tokens whose probabilities reach it.

    >>> logits = torch.tensor([[[2.0, 1.0, 0.0]] * 3])
    >>> choose(logits, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.5]), torch.full((1, 3), 0.99))
    tensor([[0, 2, 0]])
    """
    sharp = logits / torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    probs, order = sharp.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    probs = torch.where((before < top_p[:, None]) & ((temperatures > 0)[:, None] | (before == 0)), probs, 0.0)
    total = probs.cumsum(-1)
    rank = torch.searchsorted(total, (noise * total[..., -1])[..., None], right=True).clamp_max((probs > 0).sum(-1, keepdim=True) - 1)
    return order.gather(-1, rank)[..., 0]
