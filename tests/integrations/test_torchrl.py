"""Controllers on TorchRL's loss modules: gradients against plain torch, schedules, resumed training, and what is refused."""

import math

import numpy as np
import pytest

pytest.importorskip("torchrl")

import torch
import torchrl
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.data import Bounded
from torchrl.modules import MaskedCategorical, OneHotCategorical, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import A2CLoss, ClipPPOLoss, SACLoss, SoftUpdate

from entreg import reference
from entreg.control import PI, TargetEntropy, Thermostat, linear
from entreg.functional import SHANNON, renyi, tsallis
from entreg.integrations.torchrl import attach, policy_entropy
from entreg.targets import action_dim, fraction_of_max

N, OBS = 16, 3


def ppo(continuous=False, **how):
    torch.manual_seed(0)
    if continuous:
        net = TensorDictModule(nn.Sequential(nn.Linear(OBS, 4), NormalParamExtractor()), ["observation"], ["loc", "scale"])
        bounds = {"low": torch.tensor([-2.0, -1.0]), "high": torch.tensor([2.0, 3.0])}
        actor = ProbabilisticActor(net, in_keys=["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=bounds, return_log_prob=True)
    else:
        net = TensorDictModule(nn.Linear(OBS, 4), ["observation"], ["logits"])
        actor = ProbabilisticActor(net, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(nn.Linear(OBS, 1), in_keys=["observation"])
    return ClipPPOLoss(actor, critic, **how)


def batch(loss, seed=0):
    torch.manual_seed(seed)
    data = TensorDict({"observation": torch.randn(N, OBS)}, [N])
    with torch.no_grad():
        data = acted(loss, data)
    data["advantage"], data["value_target"] = torch.randn(N, 1), torch.randn(N, 1)
    return data


def acted(loss, data):
    with loss.actor_network_params.to_module(loss.actor_network):
        return loss.actor_network(data).detach()


def sac(**how):
    torch.manual_seed(0)
    net = TensorDictModule(nn.Sequential(nn.Linear(OBS, 4), NormalParamExtractor()), ["observation"], ["loc", "scale"])
    spec = Bounded(-1, 1, (2,))
    actor = ProbabilisticActor(net, in_keys=["loc", "scale"], spec=spec, distribution_class=TanhNormal, return_log_prob=True)
    critic = ValueOperator(_Q(), in_keys=["observation", "action"])
    loss = SACLoss(actor, critic, action_spec=spec, **{"fixed_alpha": True, **how})
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.1)
    return loss


class _Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBS + 2, 1)

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1))


def transitions(seed):
    torch.manual_seed(seed)
    done = torch.zeros(N, 1, dtype=torch.bool)
    after = {"observation": torch.randn(N, OBS), "reward": torch.randn(N, 1), "done": done, "terminated": done}
    return TensorDict({"observation": torch.randn(N, OBS), "action": torch.rand(N, 2) * 2 - 1, "next": TensorDict(after, [N])}, [N])


def train(loss, control, steps, optimizer=None):
    """Two losses a controller step; gives the optimizer and the coefficients that were used."""
    optimizer = optimizer or torch.optim.Adam(loss.parameters(), lr=0.03)
    used = []
    for step in range(*steps):
        used.append(control.coef)
        for part in (0, 1):
            torch.manual_seed(100 + 2 * step + part)
            data = transitions(2 * step + part) if isinstance(loss, SACLoss) else batch(loss, 2 * step + part)
            values = loss(data)
            sum(value for key, value in values.items() if key.startswith("loss_")).backward()
            optimizer.step()
            optimizer.zero_grad()
        control.step()
    return optimizer, used


def weights(loss):
    return torch.cat([p.detach().flatten() for p in loss.parameters()])


# -------------------------------------------------------------------- what the loss is


@pytest.mark.parametrize("family", [SHANNON, renyi(2), tsallis(0.5)], ids=lambda family: f"{family.name}({family.order})")
def test_the_term_is_the_coefficient_times_the_mean_entropy_of_the_family(family):
    loss = ppo()
    attach(loss, 0.3, family)
    data = batch(loss)
    values = loss(data)
    logits = acted(loss, data.clone())["logits"]
    expected = np.mean(reference.discrete_entropy(logits.numpy(), family.name, family.order))
    assert float(values["loss_entropy"].detach()) == pytest.approx(-0.3 * expected, rel=1e-5)
    assert float(values["entropy"]) == pytest.approx(expected, rel=1e-5)


def test_shannons_gradients_are_the_hosts_own():
    own, ours = ppo(entropy_coeff=0.3), ppo(entropy_coeff=0.0)
    attach(ours, 0.3)
    for loss in (own, ours):
        values = loss(batch(loss))
        sum(values[key] for key in ("loss_objective", "loss_entropy", "loss_critic")).backward()
    for a, b in zip(own.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


def test_a_squashed_policy_has_its_exact_entropy_between_the_bounds():
    torch.manual_seed(0)
    loc, scale = torch.randn(1, 2), torch.tensor([[0.5, 1.2]])
    low, high = torch.tensor([-2.0, -1.0]), torch.tensor([2.0, 3.0])
    dist = TanhNormal(loc, scale, low=low, high=high, tanh_loc=False)
    sampled = -dist.log_prob(dist.sample((100_000,))).mean()
    assert float(policy_entropy(dist)[0]) == pytest.approx(float(sampled), abs=0.02)
    inner = reference.squashed_gaussian_entropy(loc.numpy(), scale.log().numpy(), "renyi", 2.0)
    assert float(policy_entropy(dist, renyi(2))[0]) == pytest.approx(float(inner[0]) + 2 * math.log(2), abs=1e-4)
    loss = ppo(continuous=True)
    attach(loss, 1.0)
    data = batch(loss)
    twice = [loss(data)["loss_entropy"].detach() for _ in range(2)]
    assert twice[0] == twice[1]  # the host's own would be samples


def test_masked_and_one_hot_actors():
    logits, mask = torch.randn(5, 4), torch.tensor([[True, False, True, True]] * 5)
    expected = reference.discrete_entropy(logits.numpy(), "renyi", 2.0, support=mask.numpy())
    assert policy_entropy(MaskedCategorical(logits=logits, mask=mask), renyi(2)).numpy() == pytest.approx(expected, abs=1e-5)
    expected = reference.discrete_entropy(logits.numpy(), "renyi", 2.0)
    assert policy_entropy(OneHotCategorical(logits=logits), renyi(2)).numpy() == pytest.approx(expected, abs=1e-5)


# -------------------------------------------------------------------- what the controller does


def test_a_schedule_is_in_the_buffer_and_stays_at_its_end():
    loss = ppo()
    control = attach(loss, linear(0.4, 0.0), steps=4)
    _, used = train(loss, control, (0, 6))
    assert used == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0]) and float(loss.entropy_coeff) == 0.0


def test_the_controller_sees_the_mean_over_all_losses_since_its_last_step():
    loss = ppo()
    control = attach(loss, PI(0.5, 0.1, 0.1, (0.0, 1.0)), renyi(2))
    expected = []
    for seed in (1, 2):
        data = batch(loss, seed)[: 10 if seed == 1 else N]
        loss(data)
        with torch.no_grad():
            loss(batch(loss, 3))  # an evaluation
        expected.append(acted(loss, data.clone())["logits"])
    control.step()
    record, logits = control.record(), torch.cat(expected).numpy()
    assert record["entropy"] == pytest.approx(np.mean(reference.discrete_entropy(logits)), rel=1e-5)
    assert record["entropy/family"] == pytest.approx(np.mean(reference.discrete_entropy(logits, "renyi", 2.0)), rel=1e-5)
    assert record["coef"] == 0.0 and record["entropy/target"] == 0.5 and set(record) == {"entropy", "entropy/family", "entropy/target", "coef"}
    with pytest.raises(ValueError, match="entropy=nan; legal: a finite number"):
        control.step()


def test_a_target_is_held():
    loss = ppo()
    control = attach(loss, TargetEntropy(fraction_of_max(0.5), lr=0.3), max_entropy=math.log(4))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for step in range(80):
        data = batch(loss, step)
        data["advantage"] = (data["action"] == 0).float()[:, None]
        values = loss(data)
        (values["loss_objective"] + values["loss_entropy"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        control.step()
    assert control.record()["entropy"] == pytest.approx(0.5 * math.log(4), abs=0.15)


def test_sac_without_its_own_optimizer_is_its_own_rule():
    own, ours = sac(fixed_alpha=False, target_entropy=-2.0), sac()
    control = attach(ours, TargetEntropy(action_dim(), lr=0.03), action_dim=2)
    optimizers = [torch.optim.Adam(loss.parameters(), lr=0.03) for loss in (own, ours)]
    for step in range(10):
        for loss, optimizer in zip((own, ours), optimizers, strict=True):
            torch.manual_seed(1000 + step)
            values = loss(transitions(step))
            sum(value for key, value in values.items() if key.startswith("loss_")).backward()
            optimizer.step()
            optimizer.zero_grad()
        control.step()
        assert control.coef == pytest.approx(float(own.log_alpha.detach().exp()), rel=1e-4) != 1.0
        assert float(ours._alpha) == pytest.approx(control.coef, rel=1e-6)


def test_a_coefficient_of_zero_leaves_sacs_loss_finite():
    loss = sac()
    control = attach(loss, linear(1.0, 0.0), steps=1)
    train(loss, control, (0, 2))
    assert control.coef == 0.0 and torch.isfinite(weights(loss)).all()
    assert all(torch.isfinite(value).all() for value in loss(transitions(0)).values())


@pytest.mark.parametrize("make", [ppo, sac])
def test_resumed_training_is_uninterrupted(make, tmp_path):
    rule = TargetEntropy(0.9, lr=0.2, init_coef=0.05)
    whole = make()
    control = attach(whole, rule)
    train(whole, control, (0, 6))
    first = make()
    optimizer, _ = train(first, attach(first, rule), (0, 3))
    torch.save({"loss": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = make()
    again = attach(second, rule)
    second.load_state_dict(saved["loss"])
    optimizer = torch.optim.Adam(second.parameters(), lr=0.03)
    optimizer.load_state_dict(saved["optimizer"])
    train(second, again, (3, 6), optimizer)
    assert torch.equal(weights(whole), weights(second)) and control.bridge.state_dict() == again.bridge.state_dict() and again.coef != 0.05


def test_checkpoints_without_a_controller_or_with_another_are_refused():
    loss = ppo()
    attach(loss, TargetEntropy(0.5))
    with pytest.raises(RuntimeError, match="entreg"):
        loss.load_state_dict(ppo().state_dict())
    other = ppo()
    attach(other, Thermostat(0.5, 0.01))
    with pytest.raises(ValueError, match="legal: the fields step, log_coef, m, v of Dual"):
        loss.load_state_dict(other.state_dict())


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (lambda: ppo(entropy_bonus=False), {}, "entropy_bonus=False: the loss would ignore"),
        (lambda: ppo(entropy_coeff={"a": 0.1}), {}, "with one a head the loss ignores"),
        (lambda: sac(fixed_alpha=False), {}, "an optimizer would overwrite the coefficient"),
        (lambda: sac(min_alpha=0.1), {}, "legal is neither, and bounds in the controller"),
        (sac, {"family": renyi(2)}, "family='renyi' for SACLoss"),
        (sac, {"controller": -0.1}, "legal is a number >= 0"),
        (ppo, {"controller": TargetEntropy(2.0), "max_entropy": 1.38}, "its target is 2; legal is 0 <= target < 1.38"),
        (ppo, {"controller": linear(1, 0)}, "linear: open: steps"),
        (object, {}, "loss: object; legal are ClipPPOLoss"),
    ],
)  # fmt: skip
def test_refused(make, how, message):
    loss = make()
    with pytest.raises(ValueError, match=message):
        attach(loss, **{"controller": 0.1, **how})


def test_other_classes_versions_and_a_second_controller(monkeypatch):
    loss = ppo()
    with pytest.raises(ValueError, match="loss: A2CLoss; legal are"):
        attach(A2CLoss(loss.actor_network, loss.critic_network), 0.1)
    attach(loss, 0.1)
    with pytest.raises(ValueError, match="attached already"):
        attach(loss, 0.1)
    monkeypatch.setattr(torchrl, "__version__", "0.15.0")
    with pytest.raises(ValueError, match=r"torchrl: version 0.15.0; legal is 0.14.\*"):
        attach(ppo(), 0.1)
