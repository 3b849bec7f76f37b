"""PPO in one file, in the manner of CleanRL, with entreg's parts: the lines that differ from the original end in `# entreg`.

Writes `runs/cleanrl-CartPole-v1/records.jsonl`, which `entreg report` and `entreg diagnose` read. N environments, T steps a rollout.
"""

import gymnasium
import numpy as np
import torch
from torch import nn

from entreg import PI, EntropyRegularizer, Recorder, functional, targets  # entreg

SEED, ENVS, STEPS, TOTAL = 1, 8, 128, 30_720
RATE, GAMMA, LAMBDA, EPOCHS, MINIBATCHES, CLIP, CLIP_NORM, VALUE_COEF = 1e-3, 0.99, 0.95, 4, 4, 0.2, 0.5, 0.5
UPDATES = TOTAL // (ENVS * STEPS)


def layer(inputs: int, outputs: int, std: float = 2**0.5) -> nn.Linear:
    """A linear layer with orthogonal weights and no bias at the start."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, std)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    """Policy and value, two layers of 64 each."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.actor = nn.Sequential(layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, actions, 0.01))


def advantages(rewards: torch.Tensor, values: torch.Tensor, ends: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Generalised advantages `[T, N]`; `ends` are the steps whose episode ended with them."""
    result, running = torch.zeros_like(rewards), torch.zeros(ENVS)
    for t in reversed(range(STEPS)):
        after = last if t == STEPS - 1 else values[t + 1]
        running = rewards[t] + GAMMA * after * (1 - ends[t]) - values[t] + GAMMA * LAMBDA * (1 - ends[t]) * running
        result[t] = running
    return result


def main() -> None:
    torch.manual_seed(SEED)
    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    envs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(ENVS)], autoreset_mode=same_step)
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.n)
    optimizer = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
    most = float(np.log(envs.single_action_space.n))
    controller = targets.resolve(PI(targets.fraction_of_max(0.9), 1.0, 0.2, (0.0, 0.5)), max_entropy=most)  # entreg
    regularizer = EntropyRegularizer(controller)  # entreg
    recorder = Recorder("runs/cleanrl-CartPole-v1")  # entreg
    observation = torch.as_tensor(envs.reset(seed=SEED)[0])
    running, finished, total = np.zeros(ENVS), [], 0.0

    for update in range(UPDATES):
        seen, taken, log_probs, rewards, ends, values = (torch.zeros((STEPS, ENVS, *shape)) for shape in ((4,), (), (), (), (), ()))
        for t in range(STEPS):
            seen[t] = observation
            with torch.no_grad():
                policy = torch.distributions.Categorical(logits=agent.actor(observation))
                action, values[t] = policy.sample(), agent.critic(observation)[:, 0]
            taken[t], log_probs[t] = action, policy.log_prob(action)
            after, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[t], ends[t] = torch.as_tensor(reward), torch.as_tensor(terminated | truncated)
            running += reward
            finished += list(running[terminated | truncated])
            running[terminated | truncated] = 0.0
            observation = torch.as_tensor(after)
        with torch.no_grad():
            advantage = advantages(rewards, values, ends, agent.critic(observation)[:, 0])
        batch = [x.flatten(0, 1) for x in (seen, taken, log_probs, advantage, advantage + values)]

        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVS * STEPS).chunk(MINIBATCHES):
                states, actions, old, gain, returns = (x[rows] for x in batch)
                log_prob, entropy = functional.categorical_stats(agent.actor(states), actions.long())  # entreg
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                ratio = (log_prob - old).exp()
                policy_loss = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (agent.critic(states)[:, 0] - returns).square().mean()
                term = regularizer(entropy)  # entreg
                loss = policy_loss + term.loss + VALUE_COEF * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), CLIP_NORM)
                optimizer.step()
        regularizer.step()  # entreg
        total = float(np.mean(finished[-20:])) if finished else 0.0
        measured = {"entropy": regularizer.entropy, "entropy/max": regularizer.entropy / most, "entropy/target": regularizer.target}  # entreg
        recorder.log((update + 1) * ENVS * STEPS, **measured, coef=term.coef, **{"return": total})  # entreg
    recorder.close()  # entreg
    print(f"return {total:.0f} of 500, entropy {regularizer.entropy:.3f} nats, wanted {regularizer.target:.3f}, at coefficient {term.coef:.4f}")


if __name__ == "__main__":
    main()
