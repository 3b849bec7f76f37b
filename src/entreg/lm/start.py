"""A useful start for tiny models: plain maximum likelihood on demonstrations, a few seconds, no trainer.

Shapes: B sequences of T tokens, prompt and completion, padded on the right; labels are -100 on prompts and padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entreg.lm import models
from entreg.lm.arithmetic import Task, demonstrations, texts

IGNORED = -100


def encode(tokenizer: Any, rows: Sequence[Mapping[str, str]], pause: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
    """Token ids and labels `[B, T]` of prompts with their completions; the end token is part of the completion. `pause` is called now and then."""
    encoded = []
    for index, row in enumerate(rows):
        if index % 1000 == 0:
            pause()
        prompt, completion = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "completion"))
        encoded.append((prompt, [*completion, tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(completion) for prompt, completion in encoded)
    ids = torch.full((len(encoded), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for index, (prompt, completion) in enumerate(encoded):
        ids[index, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[index, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids, labels


def beginner(
    task: Task,
    seed: int,
    *,
    steps: int = 600,
    batch: int = 32,
    learning_rate: float = 5e-3,
    width: int = 64,
    layers: int = 1,
    pause: Callable[[], None] = lambda: None,
) -> tuple[Any, Any]:
    """A tiny model that has seen `steps` batches of demonstrations, and its tokenizer; everything random comes from the seed."""
    tokenizer = models.byte_tokenizer(texts(task))
    model = models.tiny_model(tokenizer, seed, width=width, layers=layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(1, steps))
    ids, labels = encode(tokenizer, demonstrations(task, steps * batch, seed), pause) if steps else (torch.empty(0), torch.empty(0))
    for start in range(0, steps * batch, batch):
        part = slice(start, start + batch)
        loss = model(input_ids=ids[part], attention_mask=(ids[part] != tokenizer.pad_token_id).long(), labels=labels[part]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        pause()
    return model, tokenizer


def prepared(path: str | None, task: Task, seed: int, folder: Path, *, steps: int = 600, pause: Callable[[], None] = lambda: None) -> Path:
    """Where the model to start from lies: `path`, or a beginner made now and saved in `folder`; `pause` is called after each batch and may raise."""
    if path is not None:
        models.check_path(path)
        return Path(path)
    if not (folder / "config.json").is_file():
        models.save_whole(*beginner(task, seed, steps=steps, pause=pause), folder)
    return folder
