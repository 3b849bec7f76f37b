"""PPO of stable-baselines3 with a controlled entropy, killed at any moment and started again by the same command: the controller goes on where it stood."""

import sys
import zipfile
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env

from entreg import TargetEntropy
from entreg.integrations.sb3 import EntropyControl
from entreg.targets import fraction_of_max

STEPS = 16_384


def whole(path):
    """Whether a checkpoint is: the host writes in place, and a kill tears the newest. The networks inside are zips too, with an end of their own."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "data" in archive.namelist() and archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def train(folder, steps=STEPS):
    """Goes on with the newest checkpoint of `folder`, or begins; gives the model."""
    environments = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    saved = sorted(filter(whole, Path(folder).glob("*.zip")), key=lambda path: int(path.stem.split("_")[-2]))
    if saved:
        model = PPO.load(saved[-1], env=environments, device="cpu")
        print(f"goes on at step {model.num_timesteps} with coefficient {model.ent_coef:.5f}", flush=True)
    else:
        model = PPO("MlpPolicy", environments, n_steps=128, batch_size=128, n_epochs=4, learning_rate=1e-3, seed=0, device="cpu")
    control = EntropyControl(TargetEntropy(fraction_of_max(0.9), lr=0.1))
    keep = CheckpointCallback(save_freq=256, save_path=str(folder))
    left = steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=[control, keep], reset_num_timesteps=not saved)
    return model


if __name__ == "__main__":
    print(f"ended at coefficient {train(sys.argv[1] if len(sys.argv) > 1 else 'checkpoints').ent_coef:.5f}")
