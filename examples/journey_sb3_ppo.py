"""A day with stable-baselines3's PPO: it settles for the near reward, `entreg diagnose` says why, two lines make it find the far one."""

import gymnasium
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from entreg import linear
from entreg.integrations.sb3 import EntropyControl

STEPS = 40_000


class Corridor(gymnasium.Env):
    """A corridor of 17 cells, entered at cell 2: .3 waits at the near end, 1 at the far one."""

    observation_space = Discrete(17)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.step_count = 2, 0
        return self.cell, {}

    def step(self, action):
        self.cell += 1 if action == 1 else -1
        self.step_count += 1
        reward = {0: 0.3, 16: 1.0}.get(self.cell, 0.0)
        return self.cell, reward, reward > 0, self.step_count >= 80, {}


def train(folder, callback=None, seed=0):
    """Trains with a CSV log in `folder`, and gives the mean return of the most probable actions."""
    environments = make_vec_env(Corridor, n_envs=8, seed=seed)
    settings = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": 3e-3, "policy_kwargs": {"net_arch": [32]}, "seed": seed, "device": "cpu"}
    model = PPO("MlpPolicy", environments, **settings)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(STEPS, callback=callback)
    model.logger.close()
    return evaluate_policy(model, environments, n_eval_episodes=8)[0]


if __name__ == "__main__":
    print("without:", train("logs/without"))
    # --8<-- [start:two]
    # an entropy bonus that is strong at first and gone at the end
    control = EntropyControl(linear(1.0, 0.0))
    print("with:", train("logs/with", callback=control))
    # --8<-- [end:two]
