"""Shares of the gradient from three numbers a token, against autograd through the logits."""

import pytest
import torch

from entreg.functional import SHANNON, categorical_entropy, min_entropy, renyi, tsallis
from entreg.functional.shares import pull, share

LOGITS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 2
TARGETS = torch.tensor([0, 1, 4, 2, 2, 3, 0])


@pytest.mark.parametrize("family", [SHANNON, renyi(2), renyi(0.5), tsallis(2), min_entropy], ids=lambda family: family.name)
def test_the_norm_is_that_of_the_gradient_with_respect_to_the_logits(family):
    a, b = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    z = LOGITS.clone().requires_grad_()
    loss = (a * z.log_softmax(-1).gather(-1, TARGETS[:, None])[:, 0] + b * categorical_entropy(z, family)).sum()
    expected = torch.autograd.grad(loss, z)[0].norm().item()
    found = pull(LOGITS, TARGETS, family)
    assert found.norm(a, b) == pytest.approx(expected, rel=1e-5)
    assert found.norm(a) != pytest.approx(expected, rel=1e-2) and not found.score.requires_grad


def test_it_works_where_gradients_are_off_and_shares_are_of_both():
    with torch.no_grad():
        assert pull(LOGITS, TARGETS).spread.shape == (7,)
    assert (share(1.0, 1.0), share(0.0, 0.0), share(3.0, 1.0)) == (0.5, 0.0, 0.75)
