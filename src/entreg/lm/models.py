"""Language models by path, and tiny ones made on the spot: a Qwen2-style network from a configuration, a byte-level tokenizer trained on a task's text.

Nothing is downloaded: a path is a folder on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made, and waits for the network

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, END = "<|pad|>", "<|end|>"
BYTES = 256


def byte_tokenizer(texts: Iterable[str], merges: int = 0) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, with `merges` merges: every text has an encoding, and its own end and padding tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BYTES + 2 + merges, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left")


def tiny_model(tokenizer: Any, seed: int = 0, *, width: int = 64, layers: int = 1, positions: int = 128) -> Any:
    """A Qwen2-style language model of `layers` layers of `width`, weights drawn from the seed, everything else of torch's randomness left as it was."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Writes both so that `load(folder)` has them again."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(path: str | os.PathLike[str], *, scores: bool = False, seed: int = 0) -> tuple[Any, Any]:
    """Model and tokenizer of a folder on this machine; with `scores` the model gives one number a sequence (a reward model, its head
    drawn from the seed where it has none).

    Raises: `ValueError` where there is no such folder or it holds no model, and for a tokenizer that cannot pad.
    """
    check_path(path)
    tokenizer = load_tokenizer(path)
    if scores:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, local_files_only=True, dtype=torch.float32), tokenizer
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32), tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer of a folder, one that can pad; raises as `load` does."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    where = f"model: the tokenizer of {os.fspath(path)!r}"
    if tokenizer.pad_token is None:
        raise ValueError(f"{where} has no pad token; legal is one that has: set tokenizer.pad_token (not to the end token) and save it again")
    if tokenizer.pad_token == tokenizer.eos_token:
        raise ValueError(f"{where} pads with its end token {tokenizer.eos_token!r}, so that no end would be learnt; legal is a pad token of its own")
    if tokenizer.pad_token_id >= classes(path):
        has = f"pads with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id}, and the model has {classes(path)} tokens"
        raise ValueError(f"{where} {has}; legal is a pad token that the model has: resize_token_embeddings, and save both again")
    return tokenizer


def classes(path: str | os.PathLike[str] | None) -> int:
    """How many tokens a model's distributions are over; without a path those of a model made on the spot."""
    return BYTES + 2 if path is None else int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().vocab_size)


def check_path(path: str | os.PathLike[str]) -> None:
    """ValueError unless `path` is a folder that holds a model and a tokenizer."""
    folder = Path(path)
    if not os.fspath(path) or not folder.is_dir():
        raise ValueError(
            f"model: {os.fspath(path)!r} is no folder on this machine; legal is the path of a saved model, such as runs/<run>/model (nothing is downloaded)"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"model: {os.fspath(path)!r} holds no {name}; legal is a folder written by save_pretrained of a model and its tokenizer")
