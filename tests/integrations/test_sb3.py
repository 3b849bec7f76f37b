"""Our callback in stable-baselines3 and sb3-contrib: what it measures and writes against independent arithmetic and the hosts' own coefficients, resumed."""

import math

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import gymnasium
import stable_baselines3
import torch
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EveryNTimesteps
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from entreg import reference
from entreg.control import GradientShare, Observed, Plateau, TargetEntropy, Thermostat, constant, linear
from entreg.functional import SHANNON, categorical_entropy, renyi, tsallis
from entreg.integrations.sb3 import EntropyControl, policy_entropy
from entreg.targets import action_dim, fraction_of_max

SMALL = {"net_arch": [8]}
RULE = TargetEntropy(0.3, lr=0.1, init_coef=0.05)


class Masked(gymnasium.Env):
    """Four classes of which two or three are legal; the reward is the class."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        assert self.action_masks()[action]
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen, float(action), bool(self.np_random.random() < 0.1), False, {}

    def action_masks(self):
        return np.array([True, self.seen[0] > 0, False, True])


def make(kind, **how):
    if kind is SAC:
        how = {"policy_kwargs": dict(SMALL), "learning_starts": 20, "batch_size": 16, "buffer_size": 1000, **how}
        return SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **how)
    policy = "MlpLstmPolicy" if kind is RecurrentPPO else "MlpPolicy"
    sizes = {"policy_kwargs": SMALL | ({"lstm_hidden_size": 8} if kind is RecurrentPPO else {}), "n_steps": 32}
    sizes |= {} if kind is A2C else {"batch_size": 16, "n_epochs": 2}
    return kind(policy, Masked() if kind is MaskablePPO else "CartPole-v1", seed=0, device="cpu", **(sizes | how))


def squashed(**how):
    return PPO("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs={**SMALL, "squash_output": True}, n_steps=32, batch_size=16, n_epochs=2, seed=0, **how)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


class Spy(BaseCallback):
    """The coefficient that each update has used."""

    def __init__(self):
        super().__init__()
        self.coefs = []

    def _on_rollout_end(self):
        self.coefs.append(float(self.model.ent_coef))

    def _on_step(self):
        return True


ON_POLICY = (PPO, A2C, MaskablePPO, RecurrentPPO)
name = lambda value: value.__name__ if isinstance(value, type) else None  # noqa: E731


@pytest.mark.parametrize("kind", [*ON_POLICY, SAC], ids=name)
def test_a_constant_is_the_hosts_own_coefficient(kind):
    own, ours, other = (
        weights(make(kind, ent_coef=coef).learn(64, callback=callback)) for coef, callback in ((0.2, None), (0.0, EntropyControl(0.2)), (0.0, None))
    )
    assert torch.equal(own, ours) and not torch.equal(own, other)


@pytest.mark.parametrize("kind", ON_POLICY, ids=name)
def test_a_schedule_begins_at_its_start_and_stays_at_its_end_where_the_host_overshoots(kind):
    model, spy = make(kind), Spy()
    model.learn(100, callback=[EntropyControl(linear(1.0, 0.0)), spy])
    assert model.num_timesteps == 128 and spy.coefs == [1.0, 0.75, 0.5, 0.25] and model.ent_coef == 0.0
    model.learn(30, callback=[EntropyControl(linear(1.0, 0.0, steps=4)), spy], reset_num_timesteps=False)
    assert spy.coefs[4:] == [0.0] and model.ent_coef == 0.0


def test_sac_schedules_count_gradient_steps():
    used = []
    model = make(SAC, train_freq=8, gradient_steps=3, ent_coef=0.5)
    inner = model.actor.action_log_prob

    def spy(observations):
        result = inner(observations)
        if torch.is_grad_enabled():
            used.append(model)
        return result

    model.actor.action_log_prob = spy
    coefs = []
    polyak = model.critic_target.forward

    def forward(*given):
        coefs.append(float(model.ent_coef_tensor))
        return polyak(*given)

    model.critic_target.forward = forward
    model.learn(41, callback=EntropyControl(linear(1.2, 0.0)))
    assert model.num_timesteps == 48 and len(used) == 12
    assert coefs == pytest.approx([1.2 - 0.1 * i for i in range(12)]) and float(model.ent_coef_tensor) == pytest.approx(0.0)
    assert model.actor.action_log_prob is spy


def test_the_controller_sees_the_exact_entropy_of_the_rollout():
    """A2C updates once a rollout, so that the entropies of the policies before each update can be written down from outside."""
    seen = []

    class Measure(Spy):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            logits = self.model.policy.get_distribution(torch.as_tensor(self.model.rollout_buffer.observations[:, 0])).distribution.logits
            seen.append(float(reference.discrete_entropy(logits.detach().numpy()).mean()))

    model, spy = make(A2C), Measure()
    control = EntropyControl(RULE)
    model.learn(32 * 6, callback=[control, spy])
    state, coefs = RULE.init(), []
    for entropy in seen:
        coefs.append(RULE.coef(state))
        state = RULE.update(state, Observed(entropy))
    assert spy.coefs == pytest.approx(coefs, rel=1e-5) and control.bridge.state_dict()["step"] == 6
    logged = model.logger.name_to_value
    assert logged["entreg/entropy"] == pytest.approx(seen[-1], rel=1e-5) and logged["entreg/coef"] == spy.coefs[-1] and logged["entreg/entropy/target"] == 0.3


# -------------------------------------------------------------------- exact entropies


def renyi_two(logits, mask=True):
    """Rényi-2 from logits, float64: what the hosts' distributions must have."""
    p = np.where(mask, np.exp(np.asarray(logits, dtype=float)), 0.0)
    return -np.log(np.square(p / p.sum(-1, keepdims=True)).sum(-1))


def distributions():
    torch.manual_seed(0)
    logits, mask = torch.randn(5, 4), torch.tensor([[True, True, False, True]] * 4 + [[False, False, True, False]])
    mean, log_std = torch.randn(5, 2), torch.tensor([0.2, -0.4])
    masked = MaskableCategoricalDistribution(4).proba_distribution(logits)
    masked.apply_masking(mask.numpy())
    heads = MaskableMultiCategoricalDistribution([2, 2]).proba_distribution(logits)
    heads.apply_masking(np.array([[True, False, True, True]] * 5))
    pairs = [renyi_two(logits[:, a : a + 2]) for a in (0, 2)]
    return {
        "categorical": (sb3.CategoricalDistribution(4).proba_distribution(logits), renyi_two(logits)),
        "heads": (sb3.MultiCategoricalDistribution([2, 2]).proba_distribution(logits), pairs[0] + pairs[1]),
        "bernoulli": (sb3.BernoulliDistribution(4).proba_distribution(logits), renyi_two(torch.stack([logits, 0 * logits], -1)).sum(-1)),
        "gaussian": (sb3.DiagGaussianDistribution(2).proba_distribution(mean, log_std), np.full(5, log_std.sum() + math.log(4 * math.pi))),
        "masked": (masked, renyi_two(logits, mask)),
        "masked heads": (heads, pairs[1]),
    }


@pytest.mark.parametrize("kind", distributions())
def test_entropies_of_their_distributions_are_exact(kind):
    dist, expected = distributions()[kind]
    assert policy_entropy(dist, renyi(2)).numpy() == pytest.approx(expected, abs=1e-5)
    assert policy_entropy(dist).numpy() == pytest.approx(dist.entropy().numpy(), abs=1e-5)
    assert policy_entropy(dist, tsallis(2)).numpy() == pytest.approx(1 - np.exp(-np.asarray(expected)), abs=1e-5)


def test_masked_classes_do_not_count_at_the_smallest_orders():
    """The host's -1e8 in the place of -inf is not small at order 1e-9, whose entropy is the logarithm of the number of legal classes."""
    dist = distributions()["masked"][0]
    assert policy_entropy(dist, renyi(1e-9)).numpy() == pytest.approx([math.log(3)] * 4 + [0.0], abs=1e-4)


@pytest.mark.parametrize("sde", [False, True])
def test_the_entropy_of_a_squashed_policy_is_the_mean_of_its_own_surprise(sde):
    torch.manual_seed(0)
    mean, n = torch.tensor([[0.8, -0.3]]), 50_000
    if sde:
        dist = sb3.StateDependentNoiseDistribution(2, squash_output=True)
        dist.proba_distribution_net(3)
        dist.sample_weights(torch.full((3, 2), -0.5), n)
        dist.proba_distribution(mean.expand(n, 2), torch.full((3, 2), -0.5), torch.tensor([[0.5, 1.0, -0.7]]).expand(n, 3))
    else:
        dist = sb3.SquashedDiagGaussianDistribution(2).proba_distribution(mean.expand(n, 2), torch.tensor([-0.2, 0.3]))
    exact = policy_entropy(dist)
    assert exact.std() < 1e-6 and float(exact[0]) == pytest.approx(-float(dist.log_prob(dist.sample()).mean()), abs=0.02)
    with pytest.raises(TypeError, match="dist: object; legal are the distributions"):
        policy_entropy(object())


def test_a_squashed_policy_gets_the_gradient_that_the_host_does_not_give():
    """Entropy alone: the host's `-log p` of old actions is noise around zero in log std, ours the slope of the entropy itself."""
    model = squashed()
    observations = model.policy.obs_to_tensor(np.full((4096, 3), [0.6, 0.8, 1.0], np.float32))[0]
    with torch.no_grad():
        model.policy.reset_noise(4096)
        actions = model.policy.get_distribution(observations).get_actions()
    _, log_prob, entropy = model.policy.evaluate_actions(observations, actions)
    assert entropy is None
    exact = policy_entropy(model.policy.action_dist)
    (theirs,) = torch.autograd.grad(-log_prob.mean(), model.policy.log_std, retain_graph=True)
    (ours,) = torch.autograd.grad(exact.mean(), model.policy.log_std)
    assert theirs.norm() < 0.1 * ours.norm()


def test_during_training_a_squashed_policy_has_it():
    """Without rewards only the bonus moves the policy: ours towards the largest entropy that a tanh of a Gaussian has (.6836), the host's anywhere."""
    ends = []
    for controller in (None, EntropyControl(1.0)):
        model = squashed(ent_coef=1.0, vf_coef=0.0, learning_rate=0.02)
        world = model.env.envs[0].unwrapped
        world.observation_space.seed(0)
        world.step = lambda action, world=world: (world.observation_space.sample(), 0.0, False, False, {})
        model.learn(32 * 12, callback=controller)
        model.policy.get_distribution(torch.as_tensor(model.rollout_buffer.observations.reshape(-1, 3)))
        ends.append(float(policy_entropy(model.policy.action_dist).detach().mean()))
    assert ends[0] < 0 and 0.3 < ends[1] < 0.6836


class Renyi(ActorCriticPolicy):
    """A policy that gives another family's entropy by itself."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, _ = super().evaluate_actions(obs, actions)
        return values, log_prob, categorical_entropy(self.action_dist.distribution.logits, renyi(2))


def test_another_family_is_what_the_host_would_do_with_its_entropies():
    how = {"policy_kwargs": dict(SMALL), "n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
    own = PPO(Renyi, "CartPole-v1", ent_coef=0.3, **how)
    own.learn(64)
    ours = PPO("MlpPolicy", "CartPole-v1", **how)
    ours.learn(64, callback=EntropyControl(0.3, renyi(2)))
    assert torch.equal(weights(own), weights(ours))
    logged = ours.logger.name_to_value
    assert logged["entreg/entropy/family"] == -logged["train/entropy_loss"] < logged["entreg/entropy"] < math.log(2)
    own.policy.action_net.weight.data *= 100
    with pytest.raises(RuntimeError, match=r"its entropy is not that of policy\.action_dist"):
        own.learn(64, callback=EntropyControl(0.3, tsallis(2)))


@pytest.mark.parametrize("kind", [MaskablePPO, RecurrentPPO], ids=name)
def test_families_with_masks_and_with_padded_sequences(kind):
    model = make(kind)
    model.learn(64, callback=EntropyControl(0.3, renyi(2)))
    logged = model.logger.name_to_value
    assert ("entreg/entropy" in logged) == (kind is MaskablePPO)  # with padding only the host's own mean leaves the padding out
    assert 0 < logged["entreg/entropy/family"] == -logged["train/entropy_loss"] < math.log(3 if kind is MaskablePPO else 2)


# -------------------------------------------------------------------- SAC


def test_sac_with_the_hosts_sample_entropy_is_the_hosts_own_rule(monkeypatch):
    own = make(SAC, ent_coef="auto").learn(100)

    def sampled(dist, family=SHANNON):
        return -dist.log_prob(torch.tanh(dist.gaussian_actions), dist.gaussian_actions).detach()

    monkeypatch.setattr("entreg.integrations.sb3.policy_entropy", sampled)
    ours = make(SAC, ent_coef="auto").learn(100, callback=EntropyControl(TargetEntropy(action_dim())))
    assert float(ours.ent_coef_tensor) == pytest.approx(float(own.log_ent_coef.detach().exp()), rel=1e-5) and ours.ent_coef != 1.0
    assert (weights(own) - weights(ours)).abs().max() < 1e-4


def test_sac_takes_over_what_auto_has_learnt_and_travels(tmp_path):
    model = make(SAC, ent_coef="auto_0.5")
    model.learn(60)
    learnt = float(model.log_ent_coef.detach().exp())
    control = EntropyControl(TargetEntropy(-1.0))
    model.learn(40, callback=control, reset_num_timesteps=False)
    assert control.bridge.controller.init_coef == pytest.approx(learnt) and learnt != 0.5
    model.save(tmp_path / "sac")
    again = SAC.load(tmp_path / "sac", env=gymnasium.make("Pendulum-v1"), device="cpu")
    assert again.entreg == control.bridge.state_dict() and again.ent_coef == control.bridge.coef != learnt
    assert torch.equal(again.ent_coef_tensor, model.ent_coef_tensor)


# -------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", [*ON_POLICY, SAC], ids=name)
def test_a_loaded_model_goes_on_as_the_uninterrupted_one(kind, tmp_path):
    """The host keeps neither random states nor environments in its zip: both sides begin the second half with the same ones."""
    ends, rule = [], TargetEntropy(-1.0 if kind is SAC else 0.3, lr=0.1, init_coef=0.05)
    for interrupted in (False, True):
        model, control = make(kind), EntropyControl(rule)
        model.learn(64, callback=control)
        if interrupted:
            model.save(tmp_path / "model")
            replay = model.replay_buffer if kind is SAC else None
            world = Masked() if kind is MaskablePPO else gymnasium.make(model.env.envs[0].spec.id)
            model, control = kind.load(tmp_path / "model", env=world, device="cpu"), EntropyControl(rule)
            if kind is SAC:
                model.replay_buffer = replay
        model._last_obs = None
        if kind is RecurrentPPO:
            model._last_lstm_states = type(model._last_lstm_states)(*[tuple(torch.zeros_like(t) for t in pair) for pair in model._last_lstm_states])
        model.set_random_seed(5)
        model.learn(64, callback=control, reset_num_timesteps=False)
        ends.append((weights(model), control.bridge.state_dict(), model.ent_coef))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:] and ends[0][2] != 0.05


def test_checkpoints_of_callbacks_hold_the_state_of_their_step(tmp_path):
    model = make(PPO)
    model.learn(96, callback=[CheckpointCallback(40, str(tmp_path)), EntropyControl(linear(1.0, 0.0))])
    loaded = PPO.load(tmp_path / "rl_model_40_steps", device="cpu")
    assert loaded.entreg == {"step": 1} and loaded.ent_coef == pytest.approx(2 / 3)


def test_a_second_learn_that_counts_from_zero_asks_which_is_meant():
    model = make(A2C)
    model.learn(64, callback=EntropyControl(RULE))
    with pytest.raises(ValueError, match="legal is reset_num_timesteps=False, which goes on with it, or EntropyControl"):
        model.learn(64, callback=EntropyControl(RULE))
    model.learn(32, callback=EntropyControl(RULE, restart=True))
    assert model.entreg["step"] == 1
    with pytest.raises(ValueError, match="legal: the fields step, held, on of Gate"):
        model.learn(32, callback=EntropyControl(Thermostat(0.3, 0.01)), reset_num_timesteps=False)


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("kind", "how", "control", "message"),
    [
        (TRPO, {}, {}, "model: TRPO, whose entropy coefficient is ignored or not known here"),
        (SAC, {}, {"family": renyi(2)}, "family='renyi' for SAC, whose soft value is Shannon's"),
        (SAC, {}, {"controller": TargetEntropy(0.7)}, "its target is 0.7; no tanh policy of 1 dimensions has more than 0.68"),
        (SAC, {"train_freq": (1, "episode")}, {"controller": linear(1, 0)}, "linear: open: steps"),
        (PPO, {}, {"controller": TargetEntropy(0.7)}, "its target is 0.7; legal is 0 <= target < 0.693"),
        (PPO, {}, {"controller": TargetEntropy(action_dim())}, "action_dim"),
        (PPO, {}, {"controller": GradientShare(0.1)}, "reads grad_share; this PPO gives kl, progress, reward"),
        (MaskablePPO, {}, {"controller": TargetEntropy(fraction_of_max(0.5))}, "with masks the largest entropy differs from state to state"),
    ],
)  # fmt: skip
def test_refused_before_training(kind, how, control, message):
    model = TRPO("MlpPolicy", "CartPole-v1") if kind is TRPO else make(kind, **how)
    with pytest.raises(ValueError, match=message):
        model.learn(64, callback=EntropyControl(**{"controller": 0.1, **control}))
    assert model.num_timesteps == 0 and "entreg" not in vars(model)


def test_other_versions_two_controllers_and_the_wrong_place_are_refused(monkeypatch):
    model = make(PPO)
    with pytest.raises(ValueError, match="two EntropyControl; legal is one"):
        model.learn(32, callback=[EntropyControl(0.1), EntropyControl(0.2)])
    with pytest.raises(ValueError, match="inside EveryNTimesteps, which tells it of no rollout"):
        model.learn(64, callback=EveryNTimesteps(8, EntropyControl(0.1)))
    monkeypatch.setattr(stable_baselines3, "__version__", "2.10.0")
    with pytest.raises(ValueError, match=r"stable_baselines3: version 2.10.0; legal is 2.9.\*"):
        model.learn(32, callback=EntropyControl(0.1))


def test_a_controller_that_reads_rewards_waits_for_the_first_and_needs_a_monitor():
    rule = Plateau(constant(0.1), patience=1)
    with pytest.raises(ValueError, match="reads reward; this A2C gives progress"):
        A2C("MlpPolicy", DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])).learn(10, callback=EntropyControl(rule))
    model, control = make(A2C, n_steps=4), EntropyControl(rule)
    model.learn(4, callback=control)
    assert control.bridge.state_dict()["waited"] == 0 and model.ent_coef == 0.1
    model.learn(200, callback=control, reset_num_timesteps=False)
    assert model.ent_coef < 0.1
