"""The stacked language model: causal, each member alone, the cache changes nothing, tokens are drawn from what they should be."""

import numpy as np
import pytest
import torch

from entreg.lm.textmodel import TextModel, choose
from entreg.loop import generators

SHAPE = {"vocabulary": 7, "width": 8, "layers": 2, "heads": 2, "context": 6}


def tokens(members=2, sequences=3, length=6):
    return torch.randint(7, (members, sequences, length), generator=torch.Generator().manual_seed(0))


def disturbed(model):
    """Weights large enough to matter."""
    model.parameters.data.add_(0.3 * torch.randn(model.parameters.data.shape, generator=torch.Generator().manual_seed(1))[:1])
    return model


def test_what_comes_later_changes_nothing():
    model, seen = disturbed(TextModel([0, 1], **SHAPE)), tokens()
    other = seen.clone()
    other[..., 4] = (other[..., 4] + 1) % 7
    before, after = model(seen), model(other)
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4])
    assert float((before[:, :, 4:] - after[:, :, 4:]).detach().abs().min(-1).values.max()) > 1e-4


def test_members_are_the_models_they_would_be_alone():
    both, seen = disturbed(TextModel([3, 4], **SHAPE)), tokens()
    alone = TextModel([4], **SHAPE)
    alone.parameters.data.copy_(both.parameters.data[1:])
    together = both(seen)
    torch.testing.assert_close(together[1:], alone(seen[1:]))
    both.parameters.backward((together.square().sum(), torch.ones(())))
    alone.parameters.backward((alone(seen[1:]).square().sum(), torch.ones(())))
    torch.testing.assert_close(both.parameters.grad[1:], alone.parameters.grad, rtol=1e-4, atol=1e-4)
    fresh = TextModel([4], **SHAPE).parameters.data
    assert torch.equal(TextModel([3, 4], **SHAPE).parameters.data[1:], fresh)


def test_a_cache_changes_nothing():
    model, seen = disturbed(TextModel([0, 1], **SHAPE)), tokens()
    with torch.no_grad():
        whole, cache = model(seen), []
        parts = torch.cat([model(seen[..., place : place + 1], cache, place) for place in range(6)], 2)
    torch.testing.assert_close(parts, whole)


def test_greedy_samples_follow_the_likeliest_token():
    model = disturbed(TextModel([0, 1], **SHAPE))
    found = model.sample(2, torch.tensor([0.0]), torch.tensor([1.0]), 5, generators([0, 1], 1))
    seen = torch.full((2, 1, 1), 2)
    for _ in range(5):
        seen = torch.cat([seen, model(seen)[:, :, -1:].argmax(-1)], -1)
    assert torch.equal(found, seen[..., 1:])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.8)])
def test_tokens_are_drawn_as_often_as_they_should(temperature, top_p):
    probs = torch.tensor([0.05, 0.4, 0.25, 0.3])
    count = 20_000
    noise = torch.from_numpy(np.random.default_rng(0).random((1, count)))
    drawn = choose(probs.log().expand(1, count, 4), torch.full((count,), temperature), torch.full((count,), top_p), noise)
    sharp = (probs.double() ** (1 / temperature)) / (probs.double() ** (1 / temperature)).sum()
    order = sharp.argsort(descending=True)
    kept = order[: int((sharp[order].cumsum(0) < top_p - 1e-9).sum()) + 1]
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = sharp[kept] / sharp[kept].sum()
    found = torch.bincount(drawn.flatten(), minlength=4) / count
    torch.testing.assert_close(found.double(), expected, atol=0.012, rtol=0)
    assert bool((found[expected == 0] == 0).all())
