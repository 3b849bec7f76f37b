"""Text for small language models: paragraphs without duplicates, a vocabulary of frequent words and single characters, and what samples are worth.

A piece is a word with the space before it, a line break, or one other character; a vocabulary holds the characters and the most frequent pieces, so that every
text can be written in it, and a probability of tokens is one of characters. What cannot be decoded is refused with the file and the row.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
SUFFIXES = (".txt", ".md", ".rst")
LEAST = 2000  # characters
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
PIECE = re.compile(r" ?\w+|.", re.DOTALL)
BREAK = "\n\n"  # stands between paragraphs


class Split(NamedTuple):
    """Paragraphs to learn from, to choose by and to judge by."""

    train: list[str]
    valid: list[str]
    test: list[str]


def load(path: str | None) -> Split:
    """The paragraphs of a file, of the .txt, .md and .rst files below a folder, or of Python's own reference manual, each once, split 8:1:1.

    Spaces and line breaks inside a paragraph become single spaces: indentation is what a small model repeats first. The split does not depend on a run's seed.

    Raises: `ValueError` naming file and row for what is not UTF-8, and where there are too few characters.
    """
    if path is None:
        from pydoc_data.topics import topics

        texts = [topics[name] for name in sorted(topics)]
    else:
        if not path:
            raise ValueError("text is ''; legal are a UTF-8 file, or a folder of .txt, .md and .rst files")
        texts = [_decoded(file) for file in _files(Path(path))]
    found = list(dict.fromkeys(" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text) if part.strip()))
    length = sum(map(len, found))
    if length < LEAST or len(found) < 10:
        raise ValueError(f"text: {path} has {len(found)} different paragraphs with {length} characters; legal are at least 10 with {LEAST}")
    order = np.random.default_rng(0x7E87).permutation(len(found))
    tenth = len(found) // 10
    parts = np.split(order, [len(found) - 2 * tenth, len(found) - tenth])
    return Split(*([found[index] for index in part] for part in parts))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise ValueError(f"text: {path} holds no {', '.join(SUFFIXES)} files; legal is a folder with some, or a file")
    return found


def _decoded(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"text: {file} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise ValueError(f"text: {file}, row {row}: byte {data[error.start]:#04x} is not UTF-8; legal is UTF-8 text") from None


class Vocabulary:
    """Texts as token numbers and back.

    >>> words = Vocabulary(["a rose is a rose is a rose"], size=11)
    >>> words.tokens
    ['�', ' ', 'a', 'e', 'i', 'o', 'r', 's', ' rose', ' is', ' a']
    >>> words.encode("a rose?"), words.decode([8, 7])
    ([2, 8, 0], ' roses')
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        counts = Counter(piece for text in texts for piece in PIECE.findall(text))
        characters = sorted(set("".join(counts)))
        room = size - len(characters) - 1
        if room < 0:
            raise ValueError(f"vocabulary is {size}, and the text has {len(characters)} different characters; legal are integers from {len(characters) + 1}")
        frequent = [piece for piece, _ in counts.most_common() if len(piece) > 1][:room]
        self.tokens = [UNKNOWN, *characters, *frequent]
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        self.lengths = np.array([len(token) for token in self.tokens])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; characters that were not in the vocabulary's text are unknown."""
        found: list[int] = []
        for piece in PIECE.findall(text):
            number = self._numbers.get(piece)
            found += [self._numbers.get(character, 0) for character in piece] if number is None else [number]
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return "".join(self.tokens[token] for token in tokens)

    def joined(self, paragraphs: Sequence[str]) -> NDArray[np.int64]:
        """All paragraphs as one row of tokens, a break behind each."""
        return np.array([token for paragraph in paragraphs for token in self.encode(paragraph + BREAK)], np.int64)


def repetition(words: Sequence[Hashable], n: int = 4) -> float:
    """The share of n-grams that have stood in the sequence before; 0 where it is shorter.

    >>> repetition("a b a b a b".split(), 2)
    0.6
    """
    grams = _grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(samples: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams of all samples over their number.

    Source: Li et al. 2016 (arXiv:1510.03055), section 5.
    """
    grams = [gram for words in samples for gram in _grams(words, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def bleu(samples: Sequence[Sequence[str]], references: Sequence[Sequence[str]] | None = None, order: int = 4) -> float:
    """Mean BLEU of samples against references; without references each against all other samples (self-BLEU: high where they resemble each other).

    Geometric mean of the clipped n-gram precisions, n up to `order`, times the brevity penalty; a precision of 0 counts as half a match. A sample of fewer
    than `order` words is worth 0; for self-BLEU it is judged by the n-grams it has, so that equal samples resemble each other however short they are.

    Source: Papineni et al. 2002; self-BLEU: Zhu et al. 2018 (arXiv:1802.01886).
    """
    against = samples if references is None else references
    lengths = np.array([len(words) for words in against])
    counted = [[Counter(_grams(words, n)) for words in samples] for n in range(1, order + 1)]
    most = [_most(of if references is None else [Counter(_grams(words, n)) for words in references]) for n, of in enumerate(counted, 1)]
    scores = []
    for index, words in enumerate(samples):
        longest = min(order, len(words)) if references is None else order
        if len(words) < max(longest, 1):  # no words at all resemble no words only
            scores.append(float(references is None and (lengths == 0).sum() > 1))
            continue
        total = 0.0
        for of, best in zip(counted[:longest], most[:longest], strict=True):
            own = of[index]
            matched = sum(min(count, _limit(best, gram, index if references is None else None)) for gram, count in own.items())
            total += math.log(max(matched, 0.5) / sum(own.values()))
        others = np.delete(lengths, index) if references is None else lengths
        closest = others[np.abs(others - len(words)).argmin()]
        scores.append(math.exp(total / longest + min(0.0, 1 - closest / len(words))))
    return float(np.mean(scores))


def _grams(words: Sequence[T], n: int) -> list[tuple[T, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _most(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Of each n-gram the largest count in one text, that text, and the largest in another."""
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for index, own in enumerate(counts):
        for gram, count in own.items():
            first, holder, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, index, first) if count > first else (first, holder, max(second, count))
    return best


def _limit(best: dict[tuple[str, ...], tuple[int, int, int]], gram: tuple[str, ...], own: int | None) -> int:
    first, holder, second = best.get(gram, (0, -1, 0))
    return second if own is not None and holder == own else first
