"""Parity with stable-baselines3: the same advantages, and the same weights after an update on the same rollout."""

import numpy as np
import pytest
import torch

from entreg.recipes import ppo
from entreg.rl import advantages
from entreg.rl.learner import Learner, Rollout
from entreg.run import Run, RunSettings

sb3 = pytest.importorskip("stable_baselines3")
N_STEPS, N_ENVS, COEF = 32, 4, 0.03


@pytest.fixture(scope="module")
def theirs():
    """Their PPO with a filled rollout buffer, before its update."""
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("CartPole-v1", N_ENVS, seed=0)
    model = sb3.PPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, n_epochs=3, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3,
                    clip_range=0.2, ent_coef=COEF, device="cpu", seed=0)  # fmt: skip
    model._setup_learn(1000)
    callback = CallbackList([])
    callback.init_callback(model)
    with torch.no_grad():  # a first policy that is not near uniform, so that the clip and the bonus have something to do
        for parameter in model.policy.parameters():
            parameter.mul_(1.5)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    yield model
    env.close()


def _by_member(values):
    """`[T, n, ...]` as `[1, T, n, ...]`."""
    return np.asarray(values, dtype=np.float32)[None]


def test_advantages_are_those_of_its_rollout_buffer(theirs):
    buffer = theirs.rollout_buffer
    starts = np.concatenate([buffer.episode_starts[1:], theirs._last_episode_starts[None]]).astype(bool)
    with torch.no_grad():
        last = theirs.policy.predict_values(torch.as_tensor(theirs._last_obs)).numpy()[:, 0]
    values = buffer.values.reshape(N_STEPS, N_ENVS)
    following = np.where(starts, 0.0, np.concatenate([values[1:], last[None]]))  # the buffer has no truncation left: it is in the rewards
    rewards = buffer.rewards.reshape(N_STEPS, N_ENVS)
    found = advantages.gae(_by_member(rewards), _by_member(values), _by_member(following), _by_member(starts), 0.98, 0.8)
    np.testing.assert_allclose(found[0], buffer.advantages.reshape(N_STEPS, N_ENVS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["eager", "fused"])
def test_weights_after_an_update_are_its(theirs, update, tmp_path):
    if update == "fused":
        pytest.importorskip("numba")
    config = ppo.Config(environments=N_ENVS, rollout=N_STEPS, batch_size=N_STEPS * N_ENVS, epochs=3, steps=N_STEPS * N_ENVS, learning_rate="0.001",
                        coef=(str(COEF),), update=update)  # fmt: skip
    learner = Learner("ppo", config, Run(RunSettings(out=tmp_path, quiet=True)))
    _copy(theirs, learner)
    fused = ppo.fused_for(learner, config) if update == "fused" else None
    data = next(theirs.rollout_buffer.get())
    with torch.no_grad():
        outputs = theirs.policy.get_distribution(data.observations).distribution.logits
    action = data.actions.long().reshape(1, -1, 1)
    rollout = Rollout(*(part[None].contiguous() if part.dim() < 3 else part for part in (data.observations, action)), None, outputs[None],
                      *(part[None] for part in (data.old_log_prob, data.old_values, data.advantages, data.returns)))  # fmt: skip
    with learner:
        learner.books.begin([], N_ENVS, np.zeros(1))
        before = _flat(theirs)
        fused.update(rollout, 0.2) if fused else ppo.update(learner, config, rollout, 0.2)
        ours = learner.network.parameters.data[0].clone()
    state = {name: value.clone() for name, value in theirs.policy.state_dict().items()}
    optimizer = theirs.policy.optimizer.state_dict()
    theirs.train()
    after = _flat(theirs)
    theirs.policy.load_state_dict(state)
    theirs.policy.optimizer.load_state_dict(optimizer)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, after, rtol=0, atol=2e-5)


def _layers(model):
    extractor = model.policy.mlp_extractor
    actor = [layer for layer in extractor.policy_net if hasattr(layer, "weight")] + [model.policy.action_net]
    critic = [layer for layer in extractor.value_net if hasattr(layer, "weight")] + [model.policy.value_net]
    return {"actor": actor, "critic": critic}


def _flat(model):
    return torch.cat([part.detach().T.flatten() for layers in _layers(model).values() for layer in layers for part in (layer.weight, layer.bias[:, None])])


def _copy(model, learner):
    with torch.no_grad():
        learner.network.parameters.data[0].copy_(_flat(model))
