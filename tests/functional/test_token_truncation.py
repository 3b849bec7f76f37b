"""Where truncated sets end: counting against sorting, which the other tests of tokens compare with definitions."""

import math

import pytest
import torch

from entreg.functional import renyi, token_stats
from entreg.kernels import truncation
from entreg.kernels.truncation import Truncation


def logits():
    """A row drawn, one whose upper half is zeros of both signs, one of bfloat16 numbers, one of one sign, one with absent classes, one with no class."""
    z = 3 * torch.randn(6, 700, generator=torch.Generator().manual_seed(0))
    z[1], z[2], z[3], z[4, ::3], z[5] = z[1].round().clamp(max=0), z[2].bfloat16().float(), -z[3].abs(), -math.inf, -math.inf
    assert len({str(zero) for zero in z[1][z[1] == 0].tolist()}) == 2
    return z


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("how", [Truncation(top_p=0.3), Truncation(top_p=0.97), Truncation(clamp=0.0), Truncation(clamp=0.6)], ids=str)
def test_counting_ends_a_set_where_sorting_does(how, softcap):
    scale = torch.linspace(0.5, 2, 6)
    for x in (logits(), logits().double()):
        mine, peer = (find(x, scale, softcap, how) for find in (truncation._counted, truncation._sorted))
        assert torch.equal(mine.value, peer.value) and torch.equal(mine.last, peer.last)


@pytest.mark.parametrize("family", [renyi(0), renyi(2)], ids=str)
@pytest.mark.parametrize("options", [{"top_p": 0.8}, {"clamp": 0.5}], ids=str)
def test_a_vocabulary_that_is_counted_has_the_statistics_of_one_that_is_sorted(options, family, monkeypatch):
    z, support = logits()[:5], torch.rand(5, 700, generator=torch.Generator().manual_seed(1)) < 0.7
    found = []
    for least in (1, 701):
        monkeypatch.setattr(truncation, "COUNTED", least)
        found.append(token_stats(z, fields=["entropy"], family=family, support=support, backend="blocks", **options).entropy)
    assert torch.equal(*found)


def test_a_set_that_reaches_p_exactly_takes_no_further_class(monkeypatch):
    monkeypatch.setattr(truncation, "COUNTED", 1)
    for classes in (300, 1000):  # a tenth of them, added up, is not .1 in binary
        stats = token_stats(torch.zeros(1, classes), fields=["entropy"], family=renyi(0), top_p=0.1, backend="blocks")
        assert stats.entropy.exp().round() == classes / 10


def test_a_nan_is_not_hidden(monkeypatch):
    monkeypatch.setattr(truncation, "COUNTED", 1)
    z = torch.zeros(2, 300)
    z[0, 7] = math.nan
    entropy = token_stats(z, fields=["entropy"], top_p=0.5, backend="blocks").entropy
    assert entropy.isnan().tolist() == [True, False]
