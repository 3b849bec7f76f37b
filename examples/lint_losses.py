"""One batch through losses as stable-baselines3, CleanRL and TRL write them, and through the same ones with a bug each; two lines a loss."""

import torch
from torch.distributions import Categorical

from entreg import functional, lint

torch.manual_seed(0)
steps = {"logits": torch.randn(64, 6), "actions": torch.randint(6, (64,)), "advantages": torch.randn(64)}
tokens = {"logits": torch.randn(4, 16, 50), "actions": torch.randint(50, (4, 16)), "advantages": torch.randn(4, 16), "mask": torch.ones(4, 16).tril(8)}


# --8<-- [start:sb3]
def sb3(logits, actions, advantages, coef):
    policy = Categorical(logits=logits)
    ratio = (policy.log_prob(actions) - policy.log_prob(actions).detach()).exp()
    return -(advantages * ratio).mean() - coef * policy.entropy().mean()


def sb3_without_an_entropy(logits, actions, advantages, coef):  # what PPO does where a distribution has no entropy(): -log p of stored actions
    log_prob = Categorical(logits=logits).log_prob(actions)
    return -(advantages * log_prob).mean() + coef * log_prob.mean()


print("SB3-like:", *lint(sb3, steps, coef=0.01) or ["nothing found"])
print("sampled:", *lint(sb3_without_an_entropy, steps, coef=0.01), sep="\n  ")
# --8<-- [end:sb3]


# --8<-- [start:cleanrl]
def cleanrl(logits, actions, advantages, coef):
    policy = Categorical(logits=logits)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return (-advantages * policy.log_prob(actions)).mean() - coef * policy.entropy().mean()


def mean_over_classes(logits, actions, advantages, coef):
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).mean()
    return cleanrl(logits, actions, advantages, 0.0) - coef * entropy


print("CleanRL-like:", *lint(cleanrl, steps, coef=0.01) or ["nothing found"])
print("by hand:", *lint(mean_over_classes, steps, coef=0.01), sep="\n  ")
# --8<-- [end:cleanrl]


# --8<-- [start:trl]
def trl(logits, actions, advantages, mask, coef, temperature=0.7, entropy_at=0.7):
    log_prob = (logits / temperature).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    per_token = -(log_prob - log_prob.detach()).exp() * advantages - coef * functional.categorical_entropy(logits / entropy_at)
    return (per_token * mask).sum() / mask.sum()


print("TRL-like:", *lint(trl, tokens, coef=0.01) or ["nothing found"])
print("entropy of the raw logits:", *lint(lambda **batch: trl(**batch, entropy_at=1.0), tokens, coef=0.01), sep="\n  ")
print("accumulated:", *lint(trl, tokens, coef=0.01, micro_batches=2, target=5.0), sep="\n  ")
# --8<-- [end:trl]
