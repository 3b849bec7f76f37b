"""Tallies: parts add up to the whole, masked items cannot leak, sequences are summed alone."""

import math

import pytest
import torch

from entreg.functional import Tally, tally


def test_unequal_parts_add_up_to_the_whole_and_their_means_do_not():
    values = torch.arange(10.0)
    parts = [tally(values[:2]), tally(values[2:3]), tally(values[3:])]
    whole = parts[0] + parts[1] + parts[2]
    assert isinstance(whole, Tally) and whole == tally(values)
    assert whole.mean.item() == 4.5
    assert sum(part.mean.item() for part in parts) / 3 != pytest.approx(4.5)


def test_masked_items_may_be_nan_without_touching_value_or_gradient():
    values = torch.tensor([1.0, math.nan, 3.0, math.inf], requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    counted = tally(values, mask)
    counted.mean.backward()
    assert counted.mean.item() == 2.0 and counted.weight.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_weights_and_sequences():
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    weighted = tally(values, torch.tensor([0.5, 1.0, 0.0]))
    assert weighted.total.item() == 2.5 + 6.5 and weighted.weight.item() == 3.0
    rows = tally(values, torch.tensor([[True, True, False], [False, False, False]]), dim=-1)
    assert rows.total.tolist() == [3.0, 0.0] and rows.weight.tolist() == [2.0, 0.0]
    assert rows.mean[0].item() == 1.5 and bool(rows.mean[1].isnan())
    learnt = torch.tensor([0.5, 1.0, 0.0], requires_grad=True)
    assert not tally(values, learnt).mean.requires_grad  # a weight says what counts; it is not trained


def test_a_mask_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"mask: got shape \(3,\), legal is one that broadcasts to \(2,\)"):
        tally(torch.zeros(2), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_counts_beyond_half_precision_and_fractional_weights_of_integers(dtype):
    whole = tally(torch.ones(70_000, dtype=dtype)) + tally(torch.ones(1, dtype=dtype))
    assert (whole.total.item(), whole.weight.item(), whole.mean.dtype) == (70_001, 70_001, torch.float32)
    assert tally(torch.tensor([1, 3], dtype=dtype), torch.tensor([0.5, 0.5])).mean.item() == 2
    assert tally(torch.ones(2, dtype=torch.float64)).total.dtype == torch.float64
