"""The compiled bodies do what the eager ones do, and what cannot be compiled runs eagerly."""

import pytest
import torch

from entreg.functional import SHANNON, min_entropy, renyi, token_backend, token_stats
from entreg.kernels import blocks

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of inductor itself, while it compiles


def gradient(n, dtype, inplace, family=SHANNON):
    generator = torch.Generator().manual_seed(n)
    z = (3 * torch.randn(n, 1100, generator=generator)).to(dtype).requires_grad_() * 1
    stats = token_stats(z, torch.arange(n), family=family, backend="blocks", inplace=inplace)
    (result,) = torch.autograd.grad((stats.log_prob + 0.1 * stats.entropy).sum(), z)
    return torch.stack(stats[:2]).detach(), result


@pytest.mark.slow
@pytest.mark.skipif(blocks.compiler() is None, reason="inductor needs a C++ compiler")
def test_compiled_bodies_equal_eager_ones(monkeypatch):
    cases = [(n, dtype, SHANNON) for n in (3, 5) for dtype in (torch.float32, torch.bfloat16)]
    cases += [(3, torch.float32, family) for family in (min_entropy, renyi(0.7), renyi(2), renyi(5))]
    eager = [gradient(n, dtype, False, family) for n, dtype, family in cases]
    monkeypatch.setattr(blocks, "COMPILED", 1)
    fast = [gradient(n, dtype, True, family) for n, dtype, family in cases]
    assert blocks._failure == []
    for (stats, result), (expected, wanted) in zip(fast, eager, strict=True):
        torch.testing.assert_close(stats, expected, rtol=1e-6, atol=2e-6)
        torch.testing.assert_close(result, wanted, rtol=2.0**-7 if wanted.dtype == torch.bfloat16 else 1e-5, atol=1e-7)


def test_a_compiler_that_fails_leaves_the_eager_path(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    expected, wanted = gradient(3, torch.float32, False)
    tried = []

    def fails(*key):
        def body(*tensors):
            tried.append(key)
            raise TorchDynamoException("no")

        return body

    monkeypatch.setattr(blocks, "COMPILED", 1)
    monkeypatch.setattr(blocks, "compiler", lambda: "c++")
    monkeypatch.setattr(blocks, "_fast", fails)
    monkeypatch.setattr(blocks, "_failure", [])
    stats, result = gradient(3, torch.float32, False)
    assert torch.equal(stats, expected) and torch.equal(result, wanted) and len(tried) == 1
    assert token_backend(torch.zeros(2000, 80)).why == "eager (inductor failed: TorchDynamoException)"
