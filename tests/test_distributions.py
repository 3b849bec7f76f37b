"""Distribution objects: entropy equals the mean of -log p of their own samples, for every one; then what each has of its own."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import TanhTransform

from entreg.distributions import Joint, MaskedCategorical, TanhNormal, entropy, renyi_entropy
from entreg.functional import SHANNON, categorical_entropy, min_entropy, renyi, sampled, tanh_gaussian_entropy, tsallis

SUPPORT = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name: str, dtype: torch.dtype = torch.float64) -> Distribution | Joint:
    """Two batch items of each."""
    draw = torch.Generator().manual_seed(7)
    logits, mean, log_std = (torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((2, 5), (2, 3), (2, 3)))
    std = 0.5 * (0.5 * log_std).exp()
    tril = torch.eye(3, dtype=dtype) * std[:, :, None] + torch.tril(torch.ones(3, 3, dtype=dtype), -1) * 0.3
    return {
        "categorical": lambda: Categorical(logits=2 * logits),
        "one-hot": lambda: OneHotCategorical(probs=logits.softmax(-1)),
        "bernoulli": lambda: Bernoulli(logits=logits[:, 0]),
        "bernoullis": lambda: Independent(Bernoulli(probs=logits.sigmoid()), 1),
        "normal": lambda: Normal(mean[:, 0], std[:, 0]),
        "diagonal": lambda: Independent(Normal(mean, std), 1),
        "full": lambda: MultivariateNormal(mean, scale_tril=tril),
        "tanh": lambda: TanhNormal(mean[:, 0], std[:, 0]),
        "tanh wide": lambda: TanhNormal(mean[:, 0], log_std=0.2 * log_std[:, 0] + 0.5),
        "tanhs": lambda: Independent(TanhNormal(mean, std), 1),
        "masked": lambda: MaskedCategorical(logits, SUPPORT),
        "multi-discrete": lambda: Independent(Categorical(logits=logits.reshape(2, 1, 5).expand(2, 3, 5)), 1),
        "nested": lambda: Independent(Independent(Normal(mean[:, :, None].expand(2, 3, 2), 0.5), 1), 1),
        "joint": lambda: Joint((MaskedCategorical(logits, SUPPORT), Independent(TanhNormal(mean, std), 1), Bernoulli(logits=logits[:, 0]))),
    }[name]()


DISCRETE = ["categorical", "one-hot", "bernoulli", "bernoullis", "masked", "multi-discrete"]
NAMES = [*DISCRETE, "normal", "diagonal", "full", "tanh", "tanh wide", "tanhs", "nested", "joint"]


def own_log_prob(dist: Distribution | Joint, count: int) -> torch.Tensor:
    return dist.log_prob(dist.sample(torch.Size((count,))))


@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_the_mean_of_minus_log_prob_of_its_own_samples(name):
    dist, count = make(name), 20_000
    log_prob = own_log_prob(dist, count)
    assert log_prob.shape == (count, 2)
    error = (entropy(dist) + log_prob.mean(0)).abs()
    assert (error < 4 * log_prob.std(0) / math.sqrt(count)).all()
    torch.testing.assert_close(dist.entropy(), entropy(dist), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [0.7, 1.3])
def test_renyi_entropy_agrees_with_the_estimate_from_its_own_samples(name, order):
    dist, count = make(name), 20_000
    log_prob = own_log_prob(dist, count)
    power = ((order - 1) * log_prob).exp()
    spread = power.std(0) / power.mean(0) / abs(order - 1) / math.sqrt(count)  # delta method
    assert ((renyi_entropy(dist, order) - sampled(log_prob, renyi(order))).abs() < 5 * spread + 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_families_are_transforms_of_the_renyi_entropy_and_it_decreases(name):
    dist = make(name)
    for family in (SHANNON, renyi(0.5), tsallis(0.5), tsallis(2), min_entropy):
        torch.testing.assert_close(entropy(dist, family), family.from_renyi(renyi_entropy(dist, family.order)))
    orders = [0.3, 0.9, 1 - 1e-6, 1.0, 1 + 1e-6, 1.5, 3.0, math.inf]
    values = torch.stack([renyi_entropy(dist, order) for order in orders])
    assert (values.diff(dim=0) < 1e-5).all() and (values[0] > values[-1]).all()
    if name in DISCRETE:
        assert (values >= 0).all() and (renyi_entropy(dist, 0) >= values[0]).all()
    else:
        with pytest.raises(ValueError, match="order"):
            renyi_entropy(dist, 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "joint"])
def test_expand_keeps_law_and_shapes(name):
    dist = make(name)
    larger = dist.expand(torch.Size((4, 2)))
    assert type(larger) is type(dist) and larger.batch_shape == (4, 2) and larger.event_shape == dist.event_shape
    torch.testing.assert_close(entropy(larger), entropy(dist).expand(4, 2))
    value = dist.sample()
    torch.testing.assert_close(larger.log_prob(value), dist.log_prob(value).expand(4, 2))
    assert larger.sample(torch.Size((3,))).shape == (3, 4, 2, *dist.event_shape)


@pytest.mark.parametrize(
    "dist",
    [
        MixtureSameFamily(Categorical(logits=torch.zeros(2)), Normal(torch.zeros(2), 1.0)),
        Independent(MixtureSameFamily(Categorical(logits=torch.zeros(3, 2)), Normal(torch.zeros(3, 2), 1.0)), 1),
        TransformedDistribution(Normal(0.0, 1.0), [TanhTransform()]),
        LogNormal(0.0, 1.0),
        Beta(2.0, 2.0),
    ],
    ids=lambda dist: type(dist).__name__,
)
def test_what_has_no_exact_entropy_names_the_estimator(dist):
    with pytest.raises(TypeError, match=r"functional\.sampled"):
        entropy(dist)


def test_zero_probabilities_are_zero_not_clamped():
    dist = Categorical(probs=torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    dist.log_prob(torch.tensor(0))  # torch makes its clamped logits now
    torch.testing.assert_close(entropy(dist), torch.tensor(math.log(2), dtype=torch.float64))
    assert entropy(dist, renyi(0)) == entropy(dist)
    assert entropy(Bernoulli(probs=torch.tensor([0.0, 1.0]))).tolist() == [0.0, 0.0]


# TanhNormal


def test_tanh_normal_agrees_with_torchs_transformed_normal():
    mean, std = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.2
    peer = TransformedDistribution(Normal(mean, std), [TanhTransform()])
    ours, value = TanhNormal(mean, std), peer.sample((50,))
    torch.testing.assert_close(ours.log_prob(value), peer.log_prob(value))
    assert ours.batch_shape == (3,) and ours.event_shape == () and Independent(ours, 1).event_shape == (3,)
    torch.testing.assert_close(Independent(ours, 1).entropy(), tanh_gaussian_entropy(mean, std.log()))


def test_log_prob_from_the_pre_tanh_value_is_exact_far_out():
    dist = TanhNormal(torch.tensor([15.0, -18.0, 0.0]), 2.0)
    u = torch.tensor([20.0, -20.0, 20.0])
    truth = Normal(dist.loc.double(), 2.0).log_prob(u.double()) - 2 * math.log(2) + 2 * torch.logaddexp(u.double(), -u.double())
    torch.testing.assert_close(dist.log_prob(u.tanh(), pre_tanh=u).double(), truth, rtol=3e-7, atol=1e-6)
    assert torch.isfinite(dist.log_prob(u.tanh())).all()  # from the value alone: the last number before 1


def test_reparameterised_samples_carry_the_gradient():
    mean, log_std = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    dist = TanhNormal(mean, log_std=log_std)
    value, u = dist.rsample_with_pre_tanh((20_000,))
    assert value.shape == u.shape == (20_000, 3) and not dist.sample().requires_grad
    pathwise = torch.autograd.grad(-dist.log_prob(value, pre_tanh=u).mean(0).sum(), (mean, log_std))
    exact = torch.autograd.grad(dist.entropy().sum(), (mean, log_std))
    for estimate, truth in zip(pathwise, exact, strict=True):
        assert (estimate - truth).abs().max() < 0.05
        assert truth.abs().max() > 0.2


def test_mean_median_and_mode():
    dist = TanhNormal(torch.tensor([0.6, -0.2, 0.0], dtype=torch.float64), torch.tensor([0.4, 1.5, 0.6], dtype=torch.float64))
    values = dist.sample((40_000,))
    assert ((values.mean(0) - dist.mean).abs() < 4 * values.std(0) / 200).all()
    assert ((values < dist.median).double().mean(0) - 0.5).abs().max() < 4 * 0.5 / 200
    grid = torch.linspace(-0.99999, 0.99999, 200_001, dtype=torch.float64)[:, None]
    assert (dist.log_prob(dist.mode) >= dist.log_prob(grid).amax(0) - 1e-12).all()
    torch.testing.assert_close(dist.log_prob(dist.mode), -entropy(dist, min_entropy))


def test_a_value_of_one_is_the_last_number_before_it():
    for dtype in (torch.float32, torch.float64):
        policy, one = TanhNormal(torch.zeros(2, dtype=dtype), 1.0), torch.tensor([1.0, -1.0], dtype=dtype)
        last = torch.nextafter(one, torch.zeros_like(one))
        torch.testing.assert_close(policy.log_prob(one), policy.log_prob(last, pre_tanh=last.atanh()))


@pytest.mark.parametrize("event", [0, 1, 2, 3])
def test_independent_sums_over_all_its_event_dimensions(event):
    base = Normal(torch.zeros(2, 3, 4), torch.rand(2, 3, 4) + 0.5)
    dist = Independent(base, event)
    torch.testing.assert_close(entropy(dist), dist.entropy())
    assert entropy(Independent(Independent(base, 1), 1), renyi(2)).shape == (2,)


def test_tanh_normal_takes_numbers_broadcasts_and_refuses():
    assert TanhNormal(0.0, 1.0).batch_shape == ()
    assert TanhNormal(torch.zeros(4, 1), log_std=torch.zeros(3)).batch_shape == (4, 3)
    assert TanhNormal(torch.zeros(2).half(), torch.ones(2).half()).sample().dtype == torch.float32
    for arguments in ({}, {"std": 1.0, "log_std": 0.0}, {"std": torch.tensor([1.0, 0.0])}):
        with pytest.raises(ValueError, match="std"):
            TanhNormal(torch.zeros(2), **arguments)
    with pytest.raises(ValueError, match="loc"):
        TanhNormal(torch.tensor([math.nan]), 1.0, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        TanhNormal(0.0, 1.0, validate_args=True).log_prob(torch.tensor(1.5))


def test_divergences_are_registered_where_they_are_exact():
    mean, std = torch.randn(2, 3), torch.rand(2, 3) + 0.3
    p, q = (TanhNormal(mean[i], std[i]) for i in range(2))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(Normal(mean[0], std[0]), Normal(mean[1], std[1])))
    torch.testing.assert_close(kl_divergence(Independent(p, 1), Independent(q, 1)), kl_divergence(p, q).sum(-1))
    logits = torch.randn(2, 5, requires_grad=True)
    masked, plain = MaskedCategorical(logits, SUPPORT), Categorical(logits=logits.flip(-1))
    restricted = MaskedCategorical(logits.flip(-1), SUPPORT)
    assert torch.isfinite(kl_divergence(masked, plain)).all() and torch.isfinite(kl_divergence(masked, restricted)).all()
    assert kl_divergence(plain, masked).tolist()[0] == math.inf
    by_hand = (restricted.probs * (restricted.logits - masked.logits)).nan_to_num().sum(-1)
    torch.testing.assert_close(kl_divergence(restricted, masked), by_hand)
    assert torch.isfinite(torch.autograd.grad(kl_divergence(masked, restricted).sum(), logits)[0]).all()


# MaskedCategorical


def test_masked_categorical_is_the_categorical_over_what_is_left():
    logits = torch.randn(2, 5, requires_grad=True)
    dist = MaskedCategorical(logits, SUPPORT)
    left = Categorical(logits=logits[0, SUPPORT[0]])
    torch.testing.assert_close(dist.probs[0, SUPPORT[0]], left.probs)
    torch.testing.assert_close(dist.entropy()[0], left.entropy())
    torch.testing.assert_close(dist.entropy(), categorical_entropy(logits, support=SUPPORT))
    assert dist.log_prob(torch.tensor([1, 1]))[0] == -math.inf
    assert SUPPORT.expand(20_000, 2, 5).gather(-1, dist.sample((20_000,))[..., None]).all()
    assert dist.mode.tolist() == torch.where(SUPPORT, logits, -math.inf).argmax(-1).tolist()
    for value in (dist.entropy(), dist.log_prob(torch.tensor([0, 1])), entropy(dist, renyi(0.3))):
        grad = torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
        assert torch.isfinite(grad).all() and (grad[~SUPPORT] == 0).all() and grad.abs().sum() > 0


def test_masked_categorical_keeps_digits_under_an_offset():
    logits = torch.tensor([0.25, 0.5, 1.0])
    for offset in (4096.0, -4096.0):
        dist, plain = MaskedCategorical(logits + offset), MaskedCategorical(logits)
        torch.testing.assert_close(dist.log_prob(torch.tensor(1)), plain.log_prob(torch.tensor(1)), rtol=3e-7, atol=0)
        torch.testing.assert_close(dist.entropy(), plain.entropy(), rtol=3e-7, atol=0)


def test_masked_categorical_refuses_an_empty_row():
    with pytest.raises(ValueError, match="1 rows have no class"):
        MaskedCategorical(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]]))
    with pytest.raises(ValueError, match="no class"):
        MaskedCategorical(torch.full((3,), -math.inf))
    with pytest.raises(ValueError, match="0 rows have no class, 1 hold a NaN"):
        MaskedCategorical(torch.tensor([math.nan, 0.0]))
    with pytest.raises(ValueError, match=r"support: got torch\.float32; legal is a boolean tensor"):
        MaskedCategorical(torch.zeros(3), torch.ones(3))


# Joint


def test_joint_adds_renyi_entropies_and_transforms_last():
    joint = make("joint")
    torch.testing.assert_close(joint.entropies().sum(-1), joint.entropy())
    q = tsallis(2)
    heads = joint.entropies(q)
    assert heads.shape == (2, 3)
    torch.testing.assert_close(joint.entropy(q), 1 - (1 - heads).prod(-1))  # 1 - sum p^2 of a product
    assert (joint.entropy(q) - heads.sum(-1)).abs().min() > 0.01
    values = joint.sample()
    torch.testing.assert_close(joint.log_prob(values), sum(head.log_prob(value) for head, value in zip(joint.heads, values, strict=True)))


def test_joint_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="batch shapes"):
        Joint((Bernoulli(logits=torch.zeros(2)), Normal(torch.zeros(2, 3), 1.0)))
    with pytest.raises(ValueError, match="at least one head"):
        Joint(())
    with pytest.raises(ValueError, match="one a head"):
        Joint((Bernoulli(logits=torch.zeros(2)),)).log_prob([])
