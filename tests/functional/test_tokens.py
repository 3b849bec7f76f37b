"""Tokens over large vocabularies: every field, family and option of both backends against NumPy float64 and against each other."""

import math

import numpy as np
import pytest
import torch

from entreg import reference
from entreg.functional import SHANNON, TokenStats, clamped_entropy, min_entropy, renyi, token_backend, token_stats, top_p_entropy, tsallis
from entreg.kernels import blocks

FIELDS = ("log_prob", "entropy", "shannon", "varentropy", "collision", "lse")
FAMILIES = [SHANNON, min_entropy, *map(renyi, (0, 0.25, 0.5, 1 - 1e-7, 1 + 1e-7, 1.3, 2, 5)), tsallis(0.5), tsallis(2)]
both = pytest.mark.parametrize("backend", ["reference", "blocks"])
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.name}({family.order:g})")


def case(n=5, classes=1300, dtype=torch.float64, seed=0, dead=0.2, offset=0.0):
    """Logits with some classes at -inf, targets that exist, and a pull for each field."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) + offset
    targets = torch.randint(classes, (n,), generator=generator)
    banned = torch.rand(n, classes, generator=generator) < dead
    banned.scatter_(1, targets[:, None], False)
    logits = logits.masked_fill(banned, -math.inf).to(dtype)
    pulls = {field: torch.randn(n, generator=generator, dtype=torch.float64) for field in FIELDS}
    return logits, targets, pulls


def oracle(z, targets, family, support=None):
    """The fields from float64 logits after soft-cap and temperature."""
    z = np.asarray(z, np.float64)
    log_p = reference.log_softmax(z, support)
    return TokenStats(
        np.take_along_axis(log_p, np.asarray(targets)[:, None], -1)[:, 0],
        reference.discrete_entropy(z, family.name, family.order, support=support),
        reference.discrete_entropy(z, support=support),
        reference.varentropy(z, support=support),
        (np.exp(log_p) ** 2).sum(-1),
        (z if support is None else np.where(support, z, -np.inf)).max(-1) - log_p.max(-1),
    )


def close(stats, expected, rtol=1e-9, atol=1e-9):
    for field in FIELDS:
        np.testing.assert_allclose(getattr(stats, field).detach().double().numpy(), getattr(expected, field), rtol=rtol, atol=atol, err_msg=field)


def slope(logits, *arguments, pulls, **options):
    """The gradient of the pulled sum of all fields."""
    z = logits.detach().clone().requires_grad_()
    stats = token_stats(z, *arguments, **options)
    sum((pulls[field] * value).sum() for field, value in stats._asdict().items() if value is not None).backward()
    return z.grad


@both
@families
def test_every_field_against_the_oracle(backend, family):
    logits, targets, _ = case()
    close(token_stats(logits, targets, fields=FIELDS, family=family, backend=backend), oracle(logits, targets, family), 2e-8, 2e-9)


@both
@families
def test_options_are_soft_cap_then_mask_then_temperature(backend, family):
    logits, targets, _ = case()
    temperature = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    support = torch.rand(5, 1300, generator=torch.Generator().manual_seed(1)) < 0.7
    support.scatter_(1, targets[:, None], True)
    dead = support.numpy() & np.isfinite(logits.numpy())
    z = 4 * np.tanh(np.where(dead, logits.numpy(), 0) / 4) / temperature.numpy()[:, None]
    options = {"temperature": temperature, "softcap": 4.0, "support": support}
    close(token_stats(logits, targets, fields=FIELDS, family=family, backend=backend, **options), oracle(z, targets, family, dead), 2e-8, 2e-9)


@families
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 3.0}, {"top_p": 0.8}, {"clamp": 0.5, "temperature": 2.0, "softcap": 5.0}], ids=str)
def test_gradients_of_both_backends_agree_and_pass_gradcheck(family, options):
    logits, targets, pulls = case()
    options = {"fields": FIELDS, "family": family, "support": torch.arange(1300) != 7 if 7 not in targets else None, **options}
    mine, plain = (slope(logits, targets, pulls=pulls, backend=backend, **options) for backend in ("blocks", "reference"))
    torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-10)
    assert bool((mine[logits == -math.inf] == 0).all())
    if family.order > 0:
        small, few, _ = case(2, 9, seed=3, dead=0)
        options["support"] = torch.arange(9) != (set(range(9)) - set(few.tolist())).pop()

        def fields(z):
            return tuple(value for value in token_stats(z, few, backend="blocks", **options))

        assert torch.autograd.gradcheck(fields, small.requires_grad_(), atol=1e-6, fast_mode=True)


@both
def test_one_field_alone_has_its_own_gradient(backend):
    logits, targets, pulls = case()
    whole = slope(logits, targets, pulls=pulls, fields=FIELDS, family=renyi(2), backend=backend)
    alone = sum(slope(logits, targets, pulls=pulls, fields=[field], family=renyi(2), backend=backend) for field in FIELDS)
    torch.testing.assert_close(alone, whole)
    for field in FIELDS:
        stats = token_stats(logits, targets, fields=[field], backend=backend)
        assert [name for name, value in stats._asdict().items() if value is not None] == [field]


@both
@families
@pytest.mark.parametrize("truncation", [{"top_p": 0.7}, {"clamp": 0.3}], ids=str)
def test_truncation_restricts_the_entropy_and_nothing_else(backend, family, truncation):
    logits, targets, pulls = case(dead=0.1)
    stats = token_stats(logits, targets, fields=FIELDS, family=family, backend=backend, **truncation)
    peer = top_p_entropy(logits, 0.7, family) if "top_p" in truncation else clamped_entropy(logits, 0.3, family)
    torch.testing.assert_close(stats.entropy, peer)
    close(stats._replace(entropy=stats.shannon), oracle(logits, targets, SHANNON))
    z = logits.clone().requires_grad_()
    peer = top_p_entropy(z, 0.7, family) if "top_p" in truncation else clamped_entropy(z, 0.3, family)
    (expected,) = torch.autograd.grad((pulls["entropy"] * peer).sum(), z)
    mine = slope(logits, targets, pulls=pulls, fields=["entropy"], family=family, backend=backend, **truncation)
    torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-11)


@both
def test_tied_logits_are_kept_in_the_order_of_their_numbers_until_the_set_is_full(backend):
    logits = torch.tensor([[0.0] * 600, [5.0] + [0.0] * 599, [0.0] * 599 + [5.0]], dtype=torch.float64)
    for truncation, kept in (({"clamp": 0.5}, 300), ({"top_p": 0.25}, None)):
        z = logits.clone().requires_grad_()
        entropy = token_stats(z, fields=["entropy"], family=renyi(0), backend=backend, **truncation).entropy.exp()
        sizes = [kept or 150] * 3 if kept else [150, 1 + math.ceil(0.25 * (599 + math.exp(5)) - math.exp(5)), 1]
        sizes[2] = sizes[1]
        assert entropy.round().tolist() == sizes
        stats = token_stats(z, fields=["entropy"], backend=backend, **truncation)
        (gradient,) = torch.autograd.grad(stats.entropy.sum(), z)
        moved = gradient[2].nonzero().flatten().tolist()
        assert moved == [*range(sizes[2] - 1), 599]


@both
def test_ignored_tokens_are_zero_both_ways_whatever_their_logits(backend):
    logits, targets, pulls = case()
    logits[1], logits[3] = math.nan, -math.inf
    targets[1] = targets[3] = -100
    for options in ({}, {"family": renyi(2), "softcap": 5.0}, {"top_p": 0.9}):
        stats = token_stats(logits, targets, fields=FIELDS, backend=backend, **options)
        assert all(value[[1, 3]].tolist() == [0, 0] and bool((value[[0, 2, 4]] != 0).all()) for value in stats)
        gradient = slope(logits, targets, pulls=pulls, fields=FIELDS, backend=backend, **options)
        assert gradient[[1, 3]].count_nonzero() == 0 and bool(gradient.isfinite().all())
    other = targets.masked_fill(targets == -100, 7)
    assert token_stats(logits, other, ignore_index=7, backend=backend).log_prob[1] == 0


@both
def test_a_target_that_does_not_exist_has_log_prob_minus_infinity_and_no_gradient(backend):
    logits, targets, pulls = case()
    logits[0, targets[0]] = -math.inf
    support = torch.ones(1300, dtype=torch.bool)
    support[targets[1]] = False
    stats = token_stats(logits, targets, support=support, backend=backend)
    assert stats.log_prob[:2].tolist() == [-math.inf] * 2
    gradient = slope(logits, targets, pulls=pulls, support=support, fields=["log_prob"], backend=backend)
    assert gradient[:2].count_nonzero() == 0 and bool(gradient.isfinite().all())


@both
@pytest.mark.parametrize("classes", [1, 2, 511, 512, 513, 1024])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_number_of_classes_and_tokens(backend, classes, n):
    logits, targets, pulls = case(n, classes, dead=0.3)
    stats = token_stats(logits, targets, fields=FIELDS, family=renyi(2), backend=backend)
    assert all(value.shape == (n,) for value in stats)
    if n:
        close(stats, oracle(logits, targets, renyi(2)))
    gradient = slope(logits, targets, pulls=pulls, fields=FIELDS, family=renyi(2), backend=backend)
    assert gradient.shape == logits.shape and bool(gradient.isfinite().all())
    lse = slope(logits, targets, pulls=pulls, fields=["lse"], backend=backend).sum(-1)
    torch.testing.assert_close(slope(logits, targets, pulls=pulls, fields=FIELDS, backend=backend).sum(-1), lse)  # all other rows sum to 0


@both
@pytest.mark.parametrize("inplace", [False, True])
def test_batches_of_any_memory_layout(backend, inplace):
    if inplace and backend == "reference":
        with pytest.raises(ValueError, match="backend: got 'reference' with inplace"):
            token_stats(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), backend="reference", inplace=True)
        return
    base = torch.randn(3, 4, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(700, (3, 3), generator=torch.Generator().manual_seed(1))
    expected = slope(base[:, :-1].contiguous(), targets, pulls={"log_prob": 1.0, "entropy": 2.0}, backend="reference")
    views = (lambda z: z[:, :-1], lambda z: z.movedim(0, 1).contiguous().movedim(0, 1)[:, :3], lambda z: z.movedim(-1, 0).contiguous().movedim(0, -1)[:, :-1])
    for view in views:
        z = base.clone().requires_grad_()
        stats = token_stats(view(z * 1), targets, backend=backend, inplace=inplace)
        (stats.log_prob + 2 * stats.entropy).sum().backward()
        torch.testing.assert_close(z.grad[:, :-1], expected)
        assert z.grad[:, -1].count_nonzero() == 0


def test_a_kernel_that_writes_past_torch_is_noticed_by_whoever_saved_the_logits(monkeypatch):
    """Triton's kernels do not count versions."""
    monkeypatch.setattr(blocks, "gradient", lambda operands, spec, slopes, out: out.numpy().fill(0))
    z = torch.zeros(2, 9, requires_grad=True) * 1
    misuse = (z * z).sum() + token_stats(z, fields=["entropy"], inplace=True).entropy.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        misuse.backward()


def test_in_place_overwrites_the_logits_and_whoever_saved_them_raises():
    logits, targets, pulls = case()
    leaf = logits.requires_grad_()
    z = leaf * 1
    stats = token_stats(z, targets, inplace=True)
    (pulls["entropy"] * stats.entropy + stats.log_prob).sum().backward()
    assert torch.equal(z.detach(), leaf.grad)
    other = z = leaf * 1
    misuse = (other * other).sum() + token_stats(z, targets, inplace=True).entropy.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        misuse.backward()
    twice = token_stats(leaf * 1, targets, inplace=True).entropy.sum()
    twice.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twice.backward()
    with pytest.raises(ValueError, match="inplace: got a leaf"):
        token_stats(leaf, targets, inplace=True)
    with pytest.raises(ValueError, match="inplace: got expanded logits"):
        token_stats((leaf[:1] * 1).expand(5, -1), targets, inplace=True)
    with pytest.raises(ValueError, match="inplace: got expanded logits"):
        token_stats((leaf * 1).flatten().unfold(0, leaf.shape[1], 1)[:5], targets[:1].expand(5), inplace=True)
    with torch.no_grad():
        token_stats(leaf, targets, inplace=True)  # nothing will be overwritten


@both
def test_a_graph_that_is_kept_gives_the_same_gradient_twice(backend):
    logits, targets, _ = case()
    z = logits.requires_grad_()
    total = token_stats(z, targets, backend=backend).entropy.sum()
    (first,) = torch.autograd.grad(total, z, retain_graph=True)
    (second,) = torch.autograd.grad(total, z)
    assert torch.equal(first, second)


def test_only_the_reference_is_differentiated_twice():
    logits, targets, _ = case(2, 9)
    small = logits.masked_fill(logits == -math.inf, -2).requires_grad_()

    def fields(z, **options):
        return tuple(token_stats(z, targets, fields=FIELDS, backend="reference", **options))

    for options in ({"family": renyi(2)}, {"temperature": 0.5, "softcap": 3.0}, {"top_p": 0.9}):
        assert torch.autograd.gradgradcheck(lambda z: fields(z, **options), small, fast_mode=True)  # noqa: B023
    with pytest.raises(RuntimeError, match="kernels are differentiable once"):
        torch.autograd.grad(token_stats(small, targets, backend="blocks").entropy.sum(), small, create_graph=True)


def test_no_graph_is_made_where_none_is_asked_for():
    logits, targets, _ = case()
    with torch.no_grad():
        assert token_stats(logits.requires_grad_(), targets, backend="blocks").entropy.grad_fn is None
    stats = token_stats(logits, targets, fields=FIELDS, backend="blocks")
    assert torch.autograd.grad(stats.lse.sum() * 0 + stats.shannon.sum(), logits)[0].isfinite().all()


@both
@families
def test_float32_and_bfloat16_against_float64_on_the_same_numbers(backend, family):
    for dtype, offset in ((torch.float32, 0.0), (torch.float32, 1e4), (torch.bfloat16, 0.0)):
        logits, targets, pulls = case(4, 6000, dtype, offset=offset, dead=0.1)
        exact = slope(logits.double(), targets, pulls=pulls, fields=FIELDS[:2], family=family, backend="reference")
        stats = token_stats(logits, targets, fields=FIELDS, family=family, backend=backend)
        expected = oracle(logits.double(), targets, family)
        assert all(value.dtype == torch.float32 for value in stats)
        error = np.abs(stats.entropy.double().numpy() - expected.entropy)
        assert (error <= np.maximum(2e-6, 3e-7 * np.abs(expected.entropy))).all()
        assert (np.abs(stats.log_prob.double().numpy() - expected.log_prob) <= 2.5e-7 * np.maximum(1, np.abs(expected.log_prob))).all()
        np.testing.assert_allclose(stats.varentropy.double().numpy(), expected.varentropy, rtol=3e-6, atol=1e-6)
        np.testing.assert_allclose(stats.collision.double().numpy(), expected.collision, rtol=3e-6)
        mine = slope(logits, targets, pulls=pulls, fields=FIELDS[:2], family=family, backend=backend)
        rounding = 2.0**-8 * exact.abs() + 1e-30 if dtype == torch.bfloat16 else 0
        bound = 1e-6 * max(1, min(family.order, 10), exact.abs().max().item())
        assert mine.dtype == dtype and bool(((mine.double() - exact).abs() <= bound + rounding).all())


def test_low_entropies_keep_their_digits():
    logits = torch.zeros(1, 2000)
    logits[0, 1500] = 40.0
    for backend in ("blocks", "reference"):
        stats = token_stats(logits, torch.tensor([3]), backend=backend)
        assert stats.entropy.item() == pytest.approx(float(reference.discrete_entropy(logits.numpy())[0]), rel=1e-5)
    assert token_stats(logits, torch.tensor([1500]), backend="blocks").log_prob.item() == pytest.approx(-1999 * math.exp(-40), rel=1e-5)


def test_a_row_without_a_class_is_an_error_on_the_plain_path_and_nan_in_the_kernels():
    logits, targets, _ = case()
    logits[2] = -math.inf
    with pytest.raises(ValueError, match=r"row \(2,\) has no class left"):
        token_stats(logits, targets, backend="reference")
    for family in (renyi(2), renyi(0), min_entropy):
        stats = token_stats(logits, targets, fields=FIELDS, family=family, backend="blocks")
        assert all(value.isnan().tolist() == [False, False, True, False, False] for value in stats)
    logits[0, 0] = math.nan
    assert token_stats(logits, targets, backend="blocks").entropy.isnan().tolist() == [True, False, True, False, False]


@both
def test_orders_beyond_what_numbers_hold_are_their_limits(backend):
    logits, targets, pulls = case(dtype=torch.float32)
    for extreme, limit in ((1e-40, renyi(0)), (1e300, min_entropy)):
        near, at = (token_stats(logits, fields=["entropy"], family=family, backend=backend).entropy for family in (renyi(extreme), limit))
        torch.testing.assert_close(near, at)
        near, at = (slope(logits, targets, pulls=pulls, fields=["entropy"], family=family, backend=backend) for family in (renyi(extreme), limit))
        torch.testing.assert_close(near, at)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning", "ignore:Dynamo detected:UserWarning")  # of torch's compiler itself
def test_auto_is_one_graph_under_torch_compile():
    (logits, targets, _), family = case(dtype=torch.float32), renyi(2)

    def loss(z):
        stats = token_stats(z, targets, family=family, temperature=0.7, softcap=5.0, top_p=0.9)
        return (stats.log_prob + stats.entropy).sum()

    plain, compiled = (logits.detach().clone().requires_grad_() for _ in range(2))
    loss(plain).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, plain.grad)


def test_what_auto_chooses_and_says():
    def chosen(*shape, **options):
        return token_backend(torch.empty(shape, device="meta") if math.prod(shape) > 1e6 else torch.empty(shape), **options)

    assert chosen(10_000, 64).name == "reference" and chosen(10, 100).why.startswith("1000 logits")
    assert chosen(2, 2, inplace=True).why.startswith("inplace: not in plain torch; eager")
    assert chosen(100, 5000) == ("blocks", f"eager (below {blocks.COMPILED} logits, or one row, compiling does not pay)")
    large = torch.empty(1).expand(64, 151_936)
    assert token_backend(large).name == "blocks" and ("compiled" in token_backend(large).why) == (blocks.compiler() is not None)


def test_arguments_are_checked():
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    for options, message in (
        ({"fields": "entropy"}, r"fields: got 'entropy', legal is a sequence"),
        ({"fields": ["entropie"]}, r"fields: got \['entropie'\]"),
        ({"temperature": 0.0}, "temperature: got 0.0, legal is a number > 0"),
        ({"temperature": torch.tensor([1.0, -1.0])}, "temperature: got -1.0 to 1.0"),
        ({"temperature": torch.ones(3)}, r"temperature: got shape \(3,\)"),
        ({"temperature": torch.ones(2, requires_grad=True)}, "temperature: got a tensor that requires grad"),
        ({"softcap": -1}, "softcap: got -1"),
        ({"support": z}, r"support: got torch\.float32"),
        ({"support": torch.ones(4, dtype=torch.bool)}, r"support: got shape \(4,\)"),
        ({"top_p": 0}, "top_p: got 0"),
        ({"clamp": 1}, "clamp: got 1"),
        ({"clamp": 0.5, "top_p": 0.5}, "legal is one of them"),
        ({"backend": "cuda"}, "backend: got 'cuda', legal are auto, reference, blocks, triton"),
        ({"group": object(), "top_p": 0.5}, "with a truncation"),
        ({"group": 3}, "group: got 3, legal is a process group of torch.distributed"),
        ({"top_p": True}, "top_p: got True, legal is a number"),
        ({"clamp": False}, "clamp: got False, legal is a number"),
        ({"softcap": "3"}, "softcap: got '3', legal is a finite number"),
        ({"temperature": None}, "temperature: got None, legal is a number > 0"),
        ({"temperature": 1e-300}, "temperature: got 1e-300, legal is a number > 0"),  # its inverse is no float32
        ({"ignore_index": None}, "ignore_index: got None, legal is an integer"),
        ({"fields": None}, "fields: got None, legal is a sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            token_stats(z, y, **options)
    for targets, message in (
        (None, "targets: got None"),
        (y.float(), "targets: got shape"),
        (y[:1], "targets: got shape"),
        (y + 3, "targets: got 3, legal is 0 <= t"),
    ):
        with pytest.raises(ValueError, match=message):
            token_stats(z, targets)
    for wrong in (z.long(), z.to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match=r"logits: got shape .* float16 to float64"):
            token_stats(wrong, y)


def test_what_is_no_tensor_and_no_family_is_named():
    z, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    for call, message in (
        (lambda: token_stats(z.tolist(), y), "logits: got list, legal is a tensor"),
        (lambda: token_backend(z.tolist()), "logits: got list, legal is a tensor"),
        (lambda: token_stats(z, y.tolist()), "targets: got list, legal is a tensor"),
        (lambda: token_stats(z, y, support=[True] * 3), "support: got list, legal is a tensor"),
        (lambda: token_stats(z, y, family="shannon"), "family: got 'shannon', legal is a Family"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
