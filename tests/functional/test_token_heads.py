"""The LM head: statistics and losses of hidden states and a weight, against plain torch on logits that exist."""

import pytest
import torch
from torch.nn.functional import linear

from entreg.functional import SHANNON, linear_token_loss, linear_token_stats, renyi, token_stats
from entreg.kernels import head

FIELDS = ("log_prob", "entropy", "shannon", "varentropy", "collision", "lse")
OPTIONS = [{}, {"family": renyi(2), "temperature": 0.7, "softcap": 5.0}, {"family": renyi(0.5), "top_p": 0.8}, {"clamp": 0.4}]


def case(n=7, classes=1100, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(classes, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(classes, (n,), generator=generator)
    targets[2:3] = -100
    return hidden, weight, bias, targets


def objective(stats, tokens):
    """A clipped policy gradient with a bonus, weighted by token: a plain sum."""
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)[tokens]
    ratio = (stats.log_prob + 8).exp()
    loss = -torch.minimum(ratio * weights, ratio.clamp(0.8, 1.2) * weights) - 0.1 * stats.entropy
    for value in (stats.shannon, stats.varentropy, stats.collision, stats.lse):
        loss = loss if value is None else loss + weights * value
    return loss.sum() / 7


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of classes, and of tokens within each, for shapes of tests."""
    monkeypatch.setattr(head, "BUFFER", 2 * 512 * 8 * 2)
    monkeypatch.setattr(head, "ROWS", 3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_statistics_and_gradients_are_those_of_the_logits(options, with_bias, small_blocks):
    hidden, weight, bias, targets = case()
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    pulls = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = token_stats(linear(*inputs), targets, fields=FIELDS, backend="reference", **options)
    mine = linear_token_stats(hidden, weight, targets, bias=bias if with_bias else None, fields=FIELDS, chunk=3, **options)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    wanted = torch.autograd.grad((torch.stack(plain) * pulls).sum(), inputs)
    total = (torch.stack(mine) * pulls).sum()
    for a, b in zip(torch.autograd.grad(total, inputs, retain_graph=True), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    for a, b in zip(torch.autograd.grad(total, inputs), wanted, strict=True):  # a graph that was kept
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", [{"clamp": 0.5}, {"top_p": 0.6}], ids=str)
def test_ties_at_the_edge_of_a_truncated_set_are_cut_alike_in_every_block(options, small_blocks):
    hidden, weight, _, targets = case(classes=1600)
    hidden = hidden.detach().round().requires_grad_()  # whole numbers: products are exact, however they are blocked
    weight = weight.detach()[:2].round().repeat(800, 1).requires_grad_()  # two logits a token, 800 times each
    plain, mine = (
        function.entropy.sum()
        for function in (token_stats(linear(hidden, weight), targets, backend="reference", **options), linear_token_stats(hidden, weight, targets, **options))
    )
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(torch.autograd.grad(mine, weight)[0], torch.autograd.grad(plain, weight)[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, (2, 4, 1), None], ids=str)
def test_the_closure_is_the_whole(options, chunk):
    hidden, weight, bias, targets = case()
    whole = objective(token_stats(linear(hidden, weight, bias), targets, fields=FIELDS, backend="reference", **options), slice(0, 7))
    wanted = torch.autograd.grad(whole, (hidden, weight, bias))
    loss, stats = linear_token_loss(hidden, weight, targets, objective, bias=bias, fields=FIELDS, chunk=chunk, **options)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(stats.entropy, token_stats(linear(hidden, weight, bias), targets, backend="reference", **options).entropy.detach())
    for a, b in zip(torch.autograd.grad(3 * loss, (hidden, weight, bias), retain_graph=True), wanted, strict=True):
        torch.testing.assert_close(a, 3 * b, rtol=1e-8, atol=1e-10)
    for a, b in zip(torch.autograd.grad(loss, (hidden, weight, bias)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    with pytest.raises(RuntimeError, match="a second backward"):
        loss.backward()


def test_preferences_are_exact_where_a_chunk_is_a_pair():
    """Two DPO pairs: answers of 3 and 1, of 2 and 1 tokens."""
    hidden, weight, bias, targets = case()
    chosen = {0: 3, 4: 2}

    def dpo(stats, tokens):
        better, worse = stats.log_prob[: chosen[tokens.start]].sum(), stats.log_prob[chosen[tokens.start] :].sum()
        return -torch.nn.functional.logsigmoid(0.3 * (better - worse) + 1) - 0.01 * stats.entropy.sum() / 7

    plain = token_stats(linear(hidden, weight, bias), targets, backend="reference")
    whole = sum(dpo(plain._replace(log_prob=plain.log_prob[at], entropy=plain.entropy[at]), at) for at in (slice(0, 4), slice(4, 7)))
    loss, _ = linear_token_loss(hidden, weight, targets, dpo, bias=bias, chunk=[4, 3])
    torch.testing.assert_close(loss, whole)
    for mine, wanted in zip(*(torch.autograd.grad(one, (hidden, weight, bias)) for one in (loss, whole)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10)


def test_a_tied_embedding_gets_both_gradients_and_accumulation_adds():
    _, weight, _, targets = case()
    index = torch.arange(7) * 3
    whole = objective(token_stats(linear(torch.tanh(weight[index]), weight), targets, backend="reference"), slice(0, 7))
    (wanted,) = torch.autograd.grad(whole, weight)
    for _ in range(2):
        linear_token_loss(torch.tanh(weight[index]), weight, targets, objective, chunk=3)[0].backward()
    torch.testing.assert_close(weight.grad, 2 * wanted)
    weight.grad = None
    objective(linear_token_stats(torch.tanh(weight[index]), weight, targets, chunk=3), slice(0, 7)).backward()
    torch.testing.assert_close(weight.grad, wanted)


def test_the_gradient_of_the_weight_exists_once():
    hidden, weight, _, targets = case()
    loss, _ = linear_token_loss(hidden, weight, targets, objective)
    there = loss.grad_fn.grads[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == there
    loss, _ = linear_token_loss(hidden, weight.detach(), targets, objective)
    assert loss.grad_fn.grads[1] is None
    with torch.no_grad():
        assert linear_token_loss(hidden, weight, targets, objective)[0].grad_fn is None


def test_what_is_no_plain_sum_is_found_by_debug_and_what_needs_other_gradients_always():
    hidden, weight, bias, targets = case()
    arguments = {"bias": bias, "chunk": 3}
    linear_token_loss(hidden, weight, targets, objective, debug=True, **arguments)
    for wrong in (lambda stats, tokens: stats.log_prob.mean(), lambda stats, tokens: stats.entropy.sum() ** 2):
        linear_token_loss(hidden, weight, targets, wrong, **arguments)
        with pytest.raises(ValueError, match="loss_fn: the loss by chunks differs"):
            linear_token_loss(hidden, weight, targets, wrong, debug=True, **arguments)
    with pytest.raises(ValueError, match="loss_fn: got a loss without a gradient"):
        linear_token_loss(hidden, weight, targets, lambda stats, tokens: stats.log_prob.detach().sum(), debug=True, **arguments)
    coef = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match=r"loss_fn: got a loss that also needs gradients of a tensor of shape \(\)"):
        linear_token_loss(hidden, weight, targets, lambda stats, tokens: (coef * stats.entropy).sum(), **arguments)
    with pytest.raises(ValueError, match=r"loss_fn: got \(3,\), legal is a scalar"):
        linear_token_loss(hidden, weight, targets, lambda stats, tokens: stats.entropy, **arguments)
    loss, _ = linear_token_loss(hidden, weight, targets, lambda stats, tokens: torch.zeros(()), **arguments)
    assert all(gradient.count_nonzero() == 0 for gradient in torch.autograd.grad(loss, (hidden, weight, bias)))


def test_bfloat16_accumulates_as_asked():
    hidden, weight, _, targets = case(400, 600, 8, torch.bfloat16)
    hidden = hidden.detach()[:1].repeat(400, 1).requires_grad_()  # equal addends: a sum of bfloat16 soon stands still
    whole = token_stats(linear(hidden.double(), weight.double()), targets, backend="reference")
    wanted = torch.autograd.grad(-whole.log_prob.sum(), (hidden, weight))
    errors = []
    for accumulate in (None, torch.float32):
        loss, _ = linear_token_loss(hidden, weight, targets, lambda stats, tokens: -stats.log_prob.sum(), chunk=4, accumulate=accumulate)
        gradients = torch.autograd.grad(loss, (hidden, weight))
        assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
        errors.append(((gradients[1].double() - wanted[1].double()).norm() / wanted[1].double().norm()).item())
    assert errors[1] < 0.5 * errors[0]
    stats = linear_token_stats(hidden, weight, targets)
    (mine,) = torch.autograd.grad(-stats.log_prob.sum(), weight)
    assert (mine.double() - wanted[1].double()).norm() < 0.5 * errors[0] * wanted[1].double().norm()


def test_batches_empty_batches_and_other_dtypes():
    hidden, weight, _, targets = case()
    batched = linear_token_stats(hidden[:6].reshape(2, 3, -1), weight, targets[:6].reshape(2, 3))
    assert batched.entropy.shape == (2, 3)
    torch.testing.assert_close(batched.entropy.flatten(), linear_token_stats(hidden, weight, targets).entropy[:6])
    empty, none = hidden[:0], targets[:0]
    (linear_token_stats(empty, weight, none).entropy.sum() + linear_token_loss(empty, weight, none, objective_of_none)[0]).backward()
    assert weight.grad.count_nonzero() == 0
    low = linear_token_stats(hidden.bfloat16(), weight.float(), targets)
    assert low.entropy.dtype == torch.float32 and bool(low.entropy.isfinite().all())


def objective_of_none(stats, tokens):
    return stats.entropy.sum()


def test_arguments_are_checked():
    hidden, weight, bias, targets = case()
    for options, message in (
        ({"weight": weight.T}, r"weight: got shape \(12, 1100\) for hidden \(7, 12\)"),
        ({"bias": bias[:5]}, r"bias: got shape \(5,\)"),
        ({"chunk": 0}, "chunk: got 0"),
        ({"chunk": 1.5}, "chunk: got 1.5"),
        ({"accumulate": torch.int32}, "accumulate: got torch.int32"),
        ({"accumulate": torch.float16}, "accumulate: got torch.float16, legal is a floating dtype at least as wide as"),
        ({"chunk": (3, 3)}, r"chunk: got sizes \[3, 3\], legal are numbers >= 1 with sum 7"),
        ({"targets": targets + 1100}, "targets: got"),
        ({"hidden": hidden.long()}, "hidden: got torch.int64, legal is a floating dtype"),
        ({"weight": weight.long()}, "weight: got torch.int64, legal is a floating dtype"),
        ({"chunk": True}, "chunk: got True"),
        ({"accumulate": "float32"}, "accumulate: got 'float32'"),
        ({"group": 3}, "group: got 3, legal is a process group"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_token_loss(**{"hidden": hidden, "weight": weight, "targets": targets, "loss_fn": objective, "family": SHANNON, **options})


def test_what_is_no_tensor_and_no_function_is_named():
    hidden, weight, bias, targets = case()
    right = {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets, "loss_fn": objective}
    for name in right:
        with pytest.raises(TypeError, match=f"{name}: got .*legal is a {'function' if name == 'loss_fn' else 'tensor'}"):
            linear_token_loss(**{**right, name: [0.0]})


def test_chunks_are_even_and_fit_the_buffer():
    weight = torch.empty(1, dtype=torch.bfloat16).expand(151_936, 8)
    sizes = [tokens.stop - tokens.start for tokens in head.chunks(256, weight, None)]
    assert sizes == [86, 85, 85] and head.BUFFER >= 86 * 151_936 * 2


def test_no_tokens_leave_the_weight_a_gradient_of_zero():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
    torch.full((9, 4), 7.0)  # what memory may hold
    linear_token_loss(hidden, weight, torch.zeros(0, dtype=torch.long), lambda stats, _: stats.log_prob.sum())[0].backward()
    assert not weight.grad.any()
