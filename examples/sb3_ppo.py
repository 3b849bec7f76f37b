"""stable-baselines3's PPO on CartPole with an entropy that a controller holds: two lines more than without."""

from stable_baselines3 import PPO

from entreg import PI
from entreg.integrations.sb3 import EntropyControl
from entreg.targets import fraction_of_max

STEPS = 6144
SETTINGS = {"n_steps": 256, "batch_size": 64, "n_epochs": 5, "learning_rate": 5e-3, "seed": 0, "device": "cpu"}


def train(controlled: bool) -> float:
    """Trains, and gives the entropy of the last update, nats; the largest there is, is log 2 = .693."""
    model = PPO("MlpPolicy", "CartPole-v1", **SETTINGS)
    # --8<-- [start:two]
    control = EntropyControl(PI(fraction_of_max(0.9), kp=1.0, ki=0.2, bounds=(0.0, 1.0))) if controlled else None
    model.learn(STEPS, callback=control)
    # --8<-- [end:two]
    entropy = -model.logger.name_to_value["train/entropy_loss"]
    print(f"{'with' if controlled else 'without'} the controller: entropy {entropy:.3f} nats at coefficient {model.ent_coef:.4f}")
    return entropy


if __name__ == "__main__":
    train(controlled=False)
    train(controlled=True)
