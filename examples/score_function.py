"""An entropy bonus in a trainer that gives nothing but log-probabilities of its own samples (prime-rl, NeMo-RL, ...): the score-function bonus.

Eight answers of three tokens each are equally right. The host is reduced to what such trainers let a loss see: log-probabilities `[B, T]` and advantages `[B]`.
"""

import math

import torch

from entreg import Bridge, TargetEntropy, functional

VOCABULARY, LENGTH, BATCH, STEPS = 6, 3, 256, 400
RIGHT = torch.tensor([[a, b, 3 - b] for a in (0, 1) for b in range(4)])
HOST = {"coef": 0.0, "entropy": math.nan}
torch.set_num_threads(1)  # tensors this small: 2 s, with two threads 19


def answers_and_log_probs(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The host's sampler: answers `[B, T]` and their log-probabilities; the logits of a token depend on the one before."""
    tokens, log_probs, state = [], [], torch.full((BATCH,), VOCABULARY)
    for place in range(LENGTH):
        distribution = torch.distributions.Categorical(logits=table[place, state])
        tokens.append(state := distribution.sample())
        log_probs.append(distribution.log_prob(state))
    return torch.stack(tokens, 1), torch.stack(log_probs, 1)


def custom_loss(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """What one registers as the trainer's loss: its policy gradient, plus the bonus on the entropy of whole answers."""
    sequence = log_probs.sum(1)
    HOST["entropy"] = float(functional.sampled(sequence.detach()))  # nats an answer
    bonus = functional.score_function_bonus(sequence)  # `-log p`, differentiated, would push nowhere
    return (functional.policy_gradient(sequence, advantages) + HOST["coef"] * bonus).mean()


def train(controlled: bool, seed: int = 0) -> tuple[float, int]:
    """Trains; the share of right answers, and how many different ones the policy still gives with a probability of at least 2 %."""
    torch.manual_seed(seed)
    table = torch.zeros(LENGTH, VOCABULARY + 1, VOCABULARY, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.1)
    bridge = Bridge(TargetEntropy(0.9 * math.log(8), lr=0.05, init_coef=0.1), lambda: HOST["entropy"], lambda coef: HOST.update(coef=coef * controlled))
    for _ in range(STEPS):
        answers, log_probs = answers_and_log_probs(table)
        reward = (answers[:, None] == RIGHT).all(-1).any(-1).float()
        custom_loss(log_probs, reward - reward.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        bridge.step()
    answers, _ = answers_and_log_probs(table)
    share = [(answers == one).all(-1).float().mean().item() for one in RIGHT]
    right = sum(share)
    kept = sum(one >= 0.02 for one in share)
    print(f"{'with' if controlled else 'without'} the bonus: {right:.0%} of the answers are right, {kept} of the 8 right answers are alive")
    return right, kept


if __name__ == "__main__":
    train(controlled=False)
    train(controlled=True)
