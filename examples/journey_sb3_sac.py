"""A day with stable-baselines3's SAC: a target that no policy reaches, what it does to the coefficient, and a target that can be reached."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from entreg import TargetEntropy
from entreg.integrations.sb3 import EntropyControl
from entreg.targets import action_dim

STEPS = 1500


class Match(gymnasium.Env):
    """Eight times in a row a number in [-.5, .5] is shown and to be repeated; the reward is minus the distance."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 8
        return self._show(), {}

    def step(self, action):
        reward = -float(abs(action[0] - self.shown[0]))
        self.left -= 1
        return self._show(), reward, self.left == 0, False, {}

    def _show(self):
        self.shown = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32)
        return self.shown


def train(folder, target_entropy="auto", callback=None, seed=0):
    """Trains with a CSV log in `folder`, and gives the mean return of drawn actions: what an entropy that is too high costs."""
    environment = make_vec_env(Match, n_envs=1, seed=seed)
    settings = {"learning_rate": 3e-3, "batch_size": 64, "gamma": 0.9, "policy_kwargs": {"net_arch": [32, 32]}, "seed": seed, "device": "cpu"}
    model = SAC("MlpPolicy", environment, target_entropy=target_entropy, **settings)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(STEPS, callback=callback, log_interval=4)
    model.logger.close()
    return evaluate_policy(model, environment, n_eval_episodes=20, deterministic=False)[0]


if __name__ == "__main__":
    print("target 5 nats:", train("logs/five", target_entropy=5.0))
    # --8<-- [start:two]
    # SAC's usual target, which a policy of one dimension reaches
    control = EntropyControl(TargetEntropy(action_dim(), lr=3e-3, init_coef=1.0))
    print("target -1 nat:", train("logs/minus_one", callback=control))
    # --8<-- [end:two]
