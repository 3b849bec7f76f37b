"""What is not asked for costs nothing, and nothing as large as all logits is made that need not be."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from entreg.functional import linear_token_loss, linear_token_stats, renyi, token_stats
from entreg.kernels import blocks, head

N, V, D = 40, 10_000, 8  # more than an eager slab holds


class Large(TorchDispatchMode):
    """Counts the places in memory of at least `N * V` entries that operations give back."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.found = {tensor.untyped_storage().data_ptr() for tensor in known}, set()
        self.kept = []  # alive, so that no address is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() >= N * V * one.element_size():
                self.kept.append(one)
                self.found |= {one.untyped_storage().data_ptr()} - self.known
        return result


def case():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((N, D), (V, D)))
    return hidden, weight, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("options", [{}, {"family": renyi(2)}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize(("inplace", "arrays"), [(True, 0), (False, 1)])
def test_from_logits_there_is_one_more_array_and_none_in_place(inplace, arrays, options):
    hidden, weight, targets = case()
    z = (hidden @ weight.T).detach().requires_grad_() * 1
    with Large(z) as large:
        stats = token_stats(z, targets, backend="blocks", inplace=inplace, **options)
        torch.autograd.grad((stats.log_prob + stats.entropy).sum(), z)
    assert len(large.found) == arrays


@pytest.mark.parametrize("options", [{}, {"family": renyi(2)}, {"top_p": 0.9}], ids=str)
def test_the_head_never_holds_all_logits(options, monkeypatch):
    monkeypatch.setattr(head, "BUFFER", N * V)  # bytes: a quarter of the logits
    hidden, weight, targets = case()
    with Large() as large:
        stats = linear_token_stats(hidden, weight, targets, **options)
        torch.autograd.grad((stats.log_prob + stats.entropy).sum(), (hidden, weight))
        loss, _ = linear_token_loss(hidden, weight, targets, lambda stats, _: (stats.log_prob + stats.entropy).sum(), **options)
        torch.autograd.grad(loss, (hidden, weight))
    assert large.found == set()


def test_without_gradients_no_gradient_is_computed(monkeypatch):
    def fails(*_):
        raise AssertionError("a gradient")

    monkeypatch.setattr(blocks, "gradient", fails)
    hidden, weight, targets = case()
    with torch.no_grad():
        token_stats(hidden @ weight.T, targets, backend="blocks")
        linear_token_stats(hidden, weight, targets)
        linear_token_loss(hidden, weight, targets, lambda stats, _: stats.log_prob.sum())
    linear_token_loss(hidden.detach(), weight.detach(), targets, lambda stats, _: stats.log_prob.sum())


@pytest.mark.parametrize(
    ("fields", "sums"),
    [
        (["log_prob"], {"picked"}),
        (["lse"], set()),
        (["shannon"], {"t"}),
        (["entropy"], {"kept"}),
        (["collision"], {"q"}),
        (["varentropy"], {"t", "u"}),
        (["log_prob", "shannon"], {"picked", "t"}),
    ],
    ids=lambda given: "+".join(sorted(given)) or "none",  # the same in every process
)
def test_only_the_sums_that_are_asked_for_are_taken(fields, sums, monkeypatch):
    seen, plain = [], blocks.sums
    monkeypatch.setattr(blocks, "sums", lambda operands, spec: seen.append(plain(operands, spec)) or seen[-1])
    hidden, weight, targets = case()
    stats = token_stats(hidden @ weight.T, targets, fields=fields, family=renyi(2), backend="blocks")
    (parts,) = seen
    assert {name for name, value in parts._asdict().items() if value is not None} == {"m", "rest", "ties"} | sums - {"picked"}
    assert (stats.log_prob is not None) == ("picked" in sums)
