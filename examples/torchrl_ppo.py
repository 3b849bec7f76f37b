"""TorchRL's ClipPPOLoss on CartPole with an entropy that a controller holds: two lines more than without."""

import math

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.envs import GymEnv, StepCounter, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from entreg import PI
from entreg.integrations.torchrl import attach
from entreg.targets import fraction_of_max

ROLLOUTS, FRAMES, EPOCHS = 16, 256, 8


def network(outputs: int) -> nn.Module:
    """Two layers of 64."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def train(controlled: bool) -> float:
    """Trains, and gives the entropy of the last update, nats; the largest there is, is log 2 = .693."""
    torch.manual_seed(0)
    world = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), StepCounter())
    world.set_seed(0)
    logits = TensorDictModule(network(2), ["observation"], ["logits"])
    actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(network(1), in_keys=["observation"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.0)
    # --8<-- [start:attach]
    control = attach(loss, PI(fraction_of_max(0.9), 1.0, 0.2, (0.0, 1.0)) if controlled else 0.0, max_entropy=math.log(2))
    # --8<-- [end:attach]
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
    for _ in range(ROLLOUTS):
        with torch.no_grad():
            batch = advantage(world.rollout(FRAMES, actor, break_when_any_done=False))
        for _ in range(EPOCHS):
            values = loss(batch)
            (values["loss_objective"] + values["loss_critic"] + values["loss_entropy"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        # --8<-- [start:step]
        control.step()
        # --8<-- [end:step]
    record = control.record()
    print(f"{'with' if controlled else 'without'} the controller: entropy {record['entropy']:.3f} nats at coefficient {record['coef']:.4f}")
    return record["entropy"]


if __name__ == "__main__":
    train(controlled=False)
    train(controlled=True)
