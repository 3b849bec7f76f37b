"""Advantages and returns from rollouts. Shapes: M members, T steps, n environments of each; everything is float32 `[M, T, n]`."""

import numpy as np


def gae(rewards: np.ndarray, values: np.ndarray, next_values: np.ndarray, done: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates `(M, T, n)`.

    `next_values[t]` is the value of the state that step t led to: 0 where the episode terminated, the value of the final state where it
    was truncated. `done` marks both, so that nothing flows back over the end of an episode.

    Source: Schulman et al. 2016, eq. 16.
    """
    delta = rewards + gamma * next_values - values
    carry = (gamma * lam) * (1.0 - done)
    result: np.ndarray = np.empty_like(delta)
    running = np.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + carry[:, t] * running
        result[:, t] = running
    return result


def explained_variance(values: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """1 - Var(returns - values) / Var(returns) of each member, `(M, T, n) -> (M,)`; 0 where the returns do not vary."""
    variance = returns.reshape(len(returns), -1).var(axis=1)
    residual = (returns - values).reshape(len(returns), -1).var(axis=1)
    explained: np.ndarray = np.where(variance > 0, 1 - residual / np.maximum(variance, 1e-12), 0.0)
    return explained


def soft_rewards(rewards: np.ndarray, next_entropy: np.ndarray, coef: np.ndarray, gamma: float) -> np.ndarray:
    """Rewards `(M, T, n)` that carry the entropy of the state each step led to: `r_t + gamma coef H(s_{t+1})`.

    With the direct term of the loss, policy gradients on these maximise return plus coef x entropy of whole trajectories: an action
    is credited with the entropies that follow it, its own state's entropy with its direct gradient. `next_entropy` is 0 after termination.
    """
    soft: np.ndarray = rewards + gamma * coef[:, None, None] * next_entropy
    return soft
