"""The Triton backend against plain torch, on a GPU or in Triton's interpreter. `make test-triton` runs it: the interpreter needs NumPy below 2.4."""

import math

import numpy as np
import pytest
import torch

from entreg.functional import SHANNON, min_entropy, renyi, token_stats, tsallis

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIELDS = ("log_prob", "entropy", "shannon", "varentropy", "collision", "lse")
FAMILIES = [SHANNON, min_entropy, *map(renyi, (0, 0.3, 0.7, 1 - 1e-6, 1.3, 2, 5)), tsallis(2)]
OPTIONS = [{}, {"temperature": 0.7, "softcap": 3.0}, {"top_p": 0.8}, {"clamp": 0.5, "softcap": 5.0}, {"support": True}, {"support": True, "top_p": 0.9}]


def case(n=5, classes=700, dtype=torch.float32, seed=0, extreme=True):
    """Logits with classes at -inf and, where `extreme`, a row that is almost certain and one with a large offset; targets; a pull for each field."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    targets = torch.randint(classes, (n,), generator=generator)
    banned = torch.rand(n, classes, generator=generator) < 0.2
    banned.scatter_(1, targets[:, None], False)
    logits = logits.masked_fill(banned, -math.inf)
    if extreme:
        logits[0] += 1000
        logits[1, targets[1]] += 25
    pulls = {field: torch.randn(n, generator=generator).to(DEVICE) for field in FIELDS}
    return logits.to(dtype).to(DEVICE), targets.to(DEVICE), pulls


def both(logits, targets, pulls, backend, **options):
    """All fields and the gradient of their pulled sum."""
    z = logits.detach().clone().requires_grad_()
    stats = token_stats(z, targets, fields=FIELDS, backend=backend, **options)
    sum((pulls[field] * value).sum() for field, value in stats._asdict().items()).backward()
    return stats, z.grad


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # the interpreter's NumPy warns of what `where` leaves out
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.name}({family.order:g})")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fields_and_gradients_are_those_of_plain_torch(family, options):
    logits, targets, pulls = case(extreme="softcap" not in options)  # which would make ties of them
    if "support" in options:
        support = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.7).to(DEVICE).scatter_(1, targets[:, None], True)
        options = {**options, "support": support}
    stats, grad = both(logits, targets, pulls, "triton", family=family, **options)
    expected, slope = both(logits.double(), targets, pulls, "reference", family=family, **options)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(stats, field).double().detach().cpu(), getattr(expected, field).detach().cpu(), 3e-6, 3e-6, err_msg=field)
    scale = slope.abs().amax(-1, keepdim=True).clamp(min=1e-3)
    assert float(((grad - slope).abs() / scale).max()) < 2e-5
    assert not grad[logits == -math.inf].any()


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize("shape", [(3, 1), (0, 40), (2, 8193), (1, 20_000)])
def test_any_shape(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    targets = torch.zeros(shape[0], dtype=torch.long, device=DEVICE)
    pulls = {field: torch.ones(shape[0], device=DEVICE) for field in FIELDS}
    stats, grad = both(logits, targets, pulls, "triton", family=renyi(2))
    expected, slope = both(logits.double(), targets, pulls, "reference", family=renyi(2))
    np.testing.assert_allclose(stats.entropy.detach().cpu(), expected.entropy.detach().cpu(), 1e-5, 1e-6)
    np.testing.assert_allclose(grad.cpu(), slope.cpu(), 1e-4, 1e-6)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_in_place_strided_and_low_precision_logits_and_rows_without_a_class():
    logits, targets, pulls = case(dtype=torch.bfloat16)
    _, grad = both(logits, targets, pulls, "triton")
    base = logits.detach().clone().requires_grad_()
    z = base * 1
    stats = token_stats(z, targets, fields=FIELDS, inplace=True, backend="triton")
    sum((pulls[field] * value).sum() for field, value in stats._asdict().items()).backward()
    assert torch.equal(base.grad, grad) and torch.equal(z.detach(), grad)  # written over the logits
    wide = torch.stack([logits, logits], -1)[..., 0]  # classes two apart in memory
    assert torch.equal(both(wide, targets, pulls, "triton")[1], grad)
    logits[2] = -math.inf
    assert token_stats(logits, targets, backend="triton").entropy.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning", "ignore:.*should not be instantiated:DeprecationWarning")  # the second of torch's compiler itself
def test_one_graph_under_torch_compile():
    (logits, targets, pulls), collision = case(), renyi(2)

    def loss(z):
        stats = token_stats(z, targets, fields=("log_prob", "entropy"), family=collision, backend="triton")
        return (pulls["log_prob"] * stats.log_prob + pulls["entropy"] * stats.entropy).sum()

    plain, compiled = (logits.detach().clone().requires_grad_() for _ in range(2))
    loss(plain).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, plain.grad)


def test_what_the_kernels_cannot_do_is_said():
    with pytest.raises(ValueError, match="backend: got 'triton' for float64 logits: the kernels compute in float32; legal is blocks or auto"):
        token_stats(torch.zeros(2, 100, dtype=torch.float64, device=DEVICE), torch.zeros(2, dtype=torch.long, device=DEVICE), backend="triton")
