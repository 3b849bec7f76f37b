"""Language models by path, and tiny ones made on the spot: a Qwen2-style network from a configuration, a byte-level tokenizer trained on a task's text.

Nothing is downloaded: a path is a folder on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made, and waits for the network

import torch
from safetensors import SafetensorError, safe_open
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

WHOLE = "legal is a folder written by save_pretrained of a model and its tokenizer"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")  # as transformers looks for them
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


def save_whole(model: Any, tokenizer: Any, folder: Path) -> Path:
    """As `save`, into a folder that is there only once everything is: what was half written before is thrown away."""
    half = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    save(model, tokenizer, half)
    half.rename(folder)
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
            network = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, local_files_only=True, dtype=torch.float32)
        network.config.pad_token_id = tokenizer.pad_token_id  # where a sequence ends, and many configurations do not say
        return network, tokenizer
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32), tokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer of a folder, one that can pad; raises as `load` does."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    where = f"model: the tokenizer of {os.fspath(path)!r}"
    if tokenizer.pad_token is None:
        raise ValueError(f"{where} has no pad token; legal is one that has: set tokenizer.pad_token (not to the end token) and save it again")
    if tokenizer.pad_token == tokenizer.eos_token:
        raise ValueError(f"{where} pads with its end token {tokenizer.eos_token!r}, so that no end would be learnt; legal is a pad token of its own")
    if tokenizer.eos_token is None:
        raise ValueError(f"{where} has no end token, so that no answer would end; legal is one that has: set tokenizer.eos_token and save it again")
    for does, token, number in (("pads", tokenizer.pad_token, tokenizer.pad_token_id), ("ends", tokenizer.eos_token, tokenizer.eos_token_id)):
        if number >= classes(path):
            has = f"{does} with {token!r}, token {number}, and the model has {classes(path)} tokens"
            raise ValueError(f"{where} {has}; legal is a token that the model has: resize_token_embeddings, and save both again")
    return tokenizer


def check_texts(path: str | os.PathLike[str], texts: Iterable[str]) -> None:
    """ValueError unless the tokenizer of a folder writes these texts in tokens that its model has."""
    written, most = list(texts), classes(path)
    for text, tokens in zip(written, load_tokenizer(path)(written, add_special_tokens=False)["input_ids"], strict=True):
        if not tokens or max(tokens) >= most:
            wrote = f"writes {text!r} as {tokens}, and the model has the tokens 0 to {most - 1}"
            raise ValueError(f"model: the tokenizer of {os.fspath(path)!r} {wrote}; legal is the tokenizer that was saved with the model")


def check_scores(path: str | os.PathLike[str]) -> None:
    """ValueError unless a folder holds a reward model: one whose head gives one number a sequence, not a head that would be drawn."""
    check_path(path, "reward_model")
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    kinds = config.architectures or []
    if config.num_labels != 1 or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        got = f"{os.fspath(path)!r} holds {', '.join(kinds) or 'no architecture'} with {config.num_labels} labels"
        raise ValueError(f"reward_model: {got}; legal is a model for sequence classification with one label, such as runs/<run>/reward")


def classes(path: str | os.PathLike[str] | None) -> int:
    """How many tokens a model's distributions are over; without a path those of a model made on the spot."""
    return BYTES + 2 if path is None else int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().vocab_size)


def check_path(path: str | os.PathLike[str], flag: str = "model") -> None:
    """ValueError, naming the flag, unless `path` is a folder that holds a model and a tokenizer."""
    folder = Path(path)
    if not os.fspath(path) or not folder.is_dir():
        raise ValueError(
            f"{flag}: {os.fspath(path)!r} is no folder on this machine; legal is the path of a saved model, such as runs/<run>/model (nothing is downloaded)"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{flag}: {os.fspath(path)!r} holds no {name}; {WHOLE}")
    _check_weights(folder, flag)


def _check_weights(folder: Path, flag: str) -> None:
    """ValueError where weights are absent, parts of them missing, or cut short."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{flag}: {os.fspath(folder)!r} holds no {WEIGHTS[0]}; {WHOLE}")
    files = [found]
    if found.suffix == ".json":
        files = [folder / name for name in sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{flag}: {os.fspath(folder)!r} holds no {missing[0]}; {WHOLE}")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        except SafetensorError as error:
            raise ValueError(f"{flag}: {os.fspath(file)!r} cannot be read: {error}; {WHOLE}") from None
