"""Text: what is read and refused, that a vocabulary loses nothing, and what samples are worth, against plain counting."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from entreg.lm import text


def paragraphs(count=40):
    chosen = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    return [f"{number}: " + " ".join(chosen.choice(words) for _ in range(12)) + "." for number in range(count)]


def test_pythons_manual_is_there_without_duplicates():
    split = text.load(None)
    every = [part for of in split for part in of]
    assert len(every) > 1500 and len(set(every)) == len(every) and len(split.test) == len(split.valid) == len(every) // 10
    assert text.load(None) == split


def test_files_and_folders_are_read(tmp_path):
    first, second = paragraphs()[:25], paragraphs()[20:]
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("\n\n".join(first), encoding="utf-8-sig")
    (tmp_path / "deep" / "b.md").write_bytes("\r\n \r\n".join(second).encode())
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    found = text.load(str(tmp_path))
    assert sorted(part for of in found for part in of) == sorted(paragraphs())
    (tmp_path / "d.txt").write_text("\n\n".join(paragraphs()))
    assert len(text.load(str(tmp_path / "d.txt")).train) == 32


def test_what_cannot_be_read_is_named_with_its_row(tmp_path):
    (tmp_path / "bad.txt").write_bytes("\n\n".join(paragraphs()).encode() + b"\n\nline \xe9t\xe9")
    for path in (tmp_path, tmp_path / "bad.txt"):
        with pytest.raises(ValueError, match=r"bad\.txt, row 81: byte 0xe9 is not UTF-8"):
            text.load(str(path))
    (tmp_path / "bad.txt").write_text("one paragraph, " * 200)
    with pytest.raises(ValueError, match=r"has 1 different paragraphs with .* characters; legal are at least 10 with 2000"):
        text.load(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="text is ''; legal are"):
        text.load("")
    for path, words in {"absent.txt": r"absent\.txt cannot be read", "empty": r"holds no \.txt, \.md, \.rst files"}.items():
        with pytest.raises(ValueError, match=words):
            text.load(str(tmp_path / path))


def test_a_vocabulary_loses_nothing():
    words = text.Vocabulary(paragraphs(), 60)
    assert len(words.tokens) == 60
    for part in [*paragraphs(), "  two  spaces\n\tand tabs 9"]:
        known = "".join(character if character in "".join(words.tokens[1:]) else text.UNKNOWN for character in part)
        assert words.decode(words.encode(part)) == known
    joined = words.joined(["alpha beta", "beta"])
    assert words.decode(joined) == "alpha beta\n\nbeta\n\n" or text.UNKNOWN in words.decode(joined)
    assert words.lengths[joined].sum() == len("alpha beta\n\nbeta\n\n")
    with pytest.raises(ValueError, match="vocabulary is 10, and the text has"):
        text.Vocabulary(paragraphs(), 10)


def plain_bleu(words, references, order):
    """BLEU of one sample, as the paper defines it, a precision of 0 as half a match."""
    total = 0.0
    for n in range(1, order + 1):
        own = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        limits = [Counter(zip(*(one[i:] for i in range(n)), strict=False)) for one in references]
        matched = sum(min(count, max(limit[gram] for limit in limits)) for gram, count in own.items())
        total += math.log(max(matched, 0.5) / sum(own.values()))
    closest = min((abs(len(one) - len(words)), index) for index, one in enumerate(references))[1]
    return math.exp(total / order + min(0.0, 1 - len(references[closest]) / len(words)))


def test_bleu_and_self_bleu_are_those_of_plain_counting():
    chosen = random.Random(1)
    samples = [[chosen.choice("abcd") for _ in range(chosen.randint(6, 12))] for _ in range(8)]
    references = [[chosen.choice("abcde") for _ in range(chosen.randint(6, 12))] for _ in range(5)]
    assert text.bleu(samples, references, 3) == pytest.approx(np.mean([plain_bleu(words, references, 3) for words in samples]))
    others = [plain_bleu(words, samples[:index] + samples[index + 1 :], 4) for index, words in enumerate(samples)]
    assert text.bleu(samples) == pytest.approx(np.mean(others))
    assert text.bleu([list("abcdef")] * 3) == pytest.approx(1.0)
    assert text.bleu([list("ab")], references) == 0.0
    assert text.bleu([["a"]] * 3) == text.bleu([[]] * 2) == pytest.approx(1.0), "equal samples are not diverse, however short"
    assert text.bleu([["a"], ["b"]]) == pytest.approx(0.5) and text.bleu([[], ["a"]]) == pytest.approx(0.25)


def test_repetition_and_distinct():
    assert text.repetition(["a", "b", "c", "d", "e"]) == 0.0 and text.repetition(["x"] * 7, 4) == 0.75 and text.repetition(["x"]) == 0.0
    assert text.distinct([list("aab"), list("ab")], 1) == 2 / 5 and text.distinct([list("aab"), list("ab")], 2) == 2 / 3 and text.distinct([[]], 1) == 0.0
