"""Losses as people write them, batches for them, and what `lint` says in short."""

import torch
from torch.distributions import Categorical

from entreg import EntropyRegularizer, functional
from entreg.functional import SHANNON
from entreg.linting import RULES, lint

N, V, T = 12, 6, 9


def batch(seed=0, *, sequences=False, ragged=False, classes=V, dtype=torch.float32):
    """An on-policy batch `[N, V]`, or `[4, T, V]` with a mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, T) if sequences else (N,)
    logits = torch.randn(*shape, classes, generator=generator)
    actions = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator).view(shape)
    made = {"logits": logits.to(dtype), "actions": actions, "advantages": torch.randn(shape, generator=generator)}
    if sequences:
        lengths = torch.tensor([9, 3, 6, 5]) if ragged else torch.full((4,), T)
        made["mask"] = (torch.arange(T) < lengths[:, None]).float()
    return made


def gaussian(dims=3):
    generator = torch.Generator().manual_seed(1)
    mean, log_std = 0.5 * torch.randn(N, dims, generator=generator), 0.3 * torch.randn(N, dims, generator=generator) - 0.5
    noise = torch.randn(N, dims, generator=generator)
    return {"mean": mean, "log_std": log_std, "actions": (mean + log_std.exp() * noise).tanh()}


def rules(*args, skip=("minus_inf",), **kwargs):
    """The rules that are broken; by hand written p log p breaks `minus_inf`, which has a test of its own."""
    found = lint(*args, skip=skip, **kwargs)
    assert all(one.rule in RULES and one.step == 0 for one in found)
    return [one.rule for one in found]


def evidence(*args, skip=("minus_inf",), **kwargs):
    (one,) = lint(*args, skip=skip, **kwargs)
    return f"{one.rule}: {one.evidence}"


def sb3(logits, actions, advantages, coef):
    """stable-baselines3: PPO.train, ratio 1."""
    policy = Categorical(logits=logits)
    log_prob = policy.log_prob(actions)
    ratio = torch.exp(log_prob - log_prob.detach())
    policy_loss = -torch.min(advantages * ratio, advantages * torch.clamp(ratio, 0.8, 1.2)).mean()
    entropy_loss = -torch.mean(policy.entropy())
    return policy_loss + coef * entropy_loss


def cleanrl(logits, actions, advantages, coef):
    """CleanRL: ppo.py, advantages normalised in the minibatch."""
    policy = Categorical(logits=logits)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return (-advantages * policy.log_prob(actions)).mean() - coef * policy.entropy().mean()


def masked_mean(values, mask):
    return (values * mask).sum() / mask.sum()


def token_entropy(logits):
    log_probs = logits.float().log_softmax(-1) if logits.dtype in (torch.bfloat16, torch.float16) else logits.log_softmax(-1)
    log_probs = torch.where(torch.isfinite(log_probs), log_probs, -1e9) if not torch.isfinite(log_probs).all() else log_probs
    return -(log_probs.exp() * log_probs).sum(-1)


def trl(logits, actions, advantages, mask, coef):
    """TRL-like: token losses, one mean over the tokens that count."""
    log_prob = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    ratio = torch.exp(log_prob - log_prob.detach())
    per_token = -ratio * advantages
    return masked_mean(per_token, mask) - coef * masked_mean(token_entropy(logits), mask)


def ours(logits, actions, advantages, coef, mask=None, support=None, family=SHANNON, sense="maximize"):
    log_prob, entropy = functional.categorical_stats(logits, actions, family, support=support)
    regularizer = EntropyRegularizer(coef, sense=sense) if coef else None
    keep = torch.ones_like(advantages) if mask is None else mask
    task = functional.tally(functional.policy_gradient(log_prob, advantages), keep).mean
    return task + (regularizer(entropy, keep).loss if regularizer else 0)
