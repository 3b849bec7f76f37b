"""What a model answers: samples, how many are right, and how many different right answers it still has.

Shapes: P prompts, n samples of each. Sampling is from the whole softmax at a temperature (no top-k, no top-p); randomness has a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from entreg.functional import categorical_stats
from entreg.lm.arithmetic import WIDEST, Task


class Sampled(NamedTuple):
    """`texts[prompt][sample]`, and the mean entropy of the model's next tokens along them at temperature 1, nats a token."""

    texts: list[list[str]]
    entropy: float


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[str], count: int, *, temperature: float = 1.0, seed: int = 0, length: int = WIDEST + 1) -> Sampled:
    """`count` completions of each prompt, at most `length` tokens long; temperature 0 takes the most probable token.

    Written out, because `generate` draws from torch's global stream.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    batch = tokenizer(repeated, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    done = torch.zeros(len(repeated), dtype=torch.bool, device=ids.device)
    taken, total, weight = [], 0.0, 0.0
    training = model.training
    model.eval()
    for _ in range(length):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1].float()
        token = logits.argmax(-1) if temperature == 0 else torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
        token = torch.where(done, tokenizer.pad_token_id, token)
        _, entropy = categorical_stats(logits, token)
        total, weight = total + float(entropy[~done].sum()), weight + float((~done).sum())
        taken.append(token)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, (~done).long()[:, None]], 1)
        done = done | (token == tokenizer.eos_token_id)
        if bool(done.all()):
            break
    model.train(training)
    ended = tokenizer.eos_token_id
    rows = torch.stack(taken, 1).tolist()
    decoded = [tokenizer.decode(row[: row.index(ended)] if ended in row else row) for row in rows]
    return Sampled([decoded[start : start + count] for start in range(0, len(decoded), count)], total / max(weight, 1.0))


def pass_at(right: int, count: int, k: int) -> float:
    """The probability that at least one of `k` of the `count` samples, drawn without replacement, is right, `right` of them being so.

    >>> pass_at(1, 4, 2), pass_at(0, 4, 4)
    (0.5, 0.0)

    Source: Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    """
    if not 1 <= k <= count:
        raise ValueError(f"k is {k} with {count} samples; legal are integers from 1 to {count}")
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def judge(task: Task, prompts: Sequence[str], sampled: Sampled, ks: Sequence[int] = (1,)) -> dict[str, float]:
    """Means over prompts: `pass@k`, `distinct` (different right answers among the samples) and `distinct/max`, its share of what the samples could show."""
    rows = []
    for prompt, texts in zip(prompts, sampled.texts, strict=True):
        right = [text for text in texts if task.right(prompt, text)]
        found, most = len(set(right)), min(len(texts), len(task.answers(prompt)))
        rows.append({**{f"pass@{k}": pass_at(len(right), len(texts), k) for k in ks}, "distinct": float(found), "distinct/max": found / most})
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def judging(task: Task, tokenizer: Any, count: int, seed: int) -> Callable[[object], dict[str, float]]:
    """A function that judges a model by `count` samples of every judged prompt, with the entropy of their tokens."""

    def of(model: object) -> dict[str, float]:
        drawn = sample(model, tokenizer, task.judged, count, seed=seed)
        return {**judge(task, task.judged, drawn, (1, count)), "entropy": drawn.entropy}

    return of
