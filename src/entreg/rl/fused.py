"""The whole PPO update of small MLP policies in one compiled call, and the matching forward pass for rollouts.

Legend: M members, N samples of a member, n environments of a member, E epochs, D observation width, A actions, P parameters of a member.
NumPy in, NumPy out; parameters and Adam's state are updated in place (`tensor.numpy()` shares memory with a tensor). The parameters of a member are one row:
the actor's layers, then the critic's; of each layer the weight [inputs, outputs] (y = x W + b), then the bias. Hidden layers are tanh or relu, outputs linear.
A member's result depends neither on the other members nor on the number of threads, bit for bit. NaN comes out where NaN went in.

Needs numba (`pip install 'entreg[fused]'`). The first call on a machine compiles for some seconds; later processes load the code from numba's cache.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from . import fused_kernels as kernels
    from .fused_layout import Layout, space
except ImportError as error:
    raise ImportError("the fused update needs numba: pip install 'entreg[fused]'") from error

__all__ = ["Acted", "Adam", "Layout", "Rollout", "Stats", "act", "forward", "ppo_update"]

Floats = NDArray[np.float32]


def _check(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: Any) -> None:
    """For what is updated in place: exactly this shape and type, contiguous and writable."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or not array.flags.c_contiguous or not array.flags.writeable or array.shape != shape:
        raise ValueError(f"{name}: {_describe(array)} is updated in place and must be a contiguous, writable {np.dtype(dtype)} array {list(shape)}")


def _describe(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__


def _given(name: str, array: ArrayLike, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """For what is read: converted where necessary."""
    result = np.ascontiguousarray(array, dtype)
    if result.shape != shape:
        raise ValueError(f"{name}: shape {list(result.shape)}, must be {list(shape)}")
    return result


def _mask(mask: ArrayLike | None, members: int, samples: int, layout: Layout) -> NDArray[np.bool_]:
    if mask is None:
        return np.empty((members, 0, layout.actions), np.bool_)
    return _given("mask", mask, (members, samples, layout.actions), np.bool_)


def _seen(layout: Layout, params: Floats, observation: ArrayLike) -> tuple[Floats, Floats]:
    seen = np.ascontiguousarray(observation, np.float32)
    if seen.ndim != 3 or seen.shape[2] != layout.actor[0]:
        raise ValueError(f"observation: shape {list(seen.shape)}, must be [M, n, {layout.actor[0]}]")
    return seen, _given("params", params, (len(seen), layout.size), np.float32)


def forward(layout: Layout, params: Floats, observation: ArrayLike) -> tuple[Floats, Floats]:
    """Logits and values of observations [M, n, D] -> [M, n, A], [M, n].

    Raises ValueError for a wrong shape.

    >>> layout = Layout((4, 8, 2), (4, 8, 1))
    >>> logits, value = forward(layout, np.zeros((3, layout.size), np.float32), np.ones((3, 5, 4)))
    >>> logits.shape, value.shape
    ((3, 5, 2), (3, 5))
    """
    seen, params = _seen(layout, params, observation)
    members, n, _ = seen.shape
    logits, value = np.empty((members, n, layout.actions), np.float32), np.empty((members, n), np.float32)
    kernels.outputs(layout.plan, params, seen, logits, value)
    return logits, value


class Acted(NamedTuple):
    """What `act` chose; all [M, n]."""

    action: NDArray[np.int64]
    log_prob: Floats
    value: Floats
    entropy: Floats  # nats


def act(layout: Layout, params: Floats, observation: ArrayLike, uniform: ArrayLike, mask: ArrayLike | None = None) -> Acted:
    """Actions of observations [M, n, D] by the inverse CDF from uniform numbers [M, n] in [0, 1): the smallest k with p_0 + ... + p_k > u.

    `mask` [M, n, A] is true where an action is legal. A row without a legal action gives NaN. Raises ValueError for a wrong shape.

    >>> layout = Layout((4, 8, 2), (4, 8, 1))
    >>> acted = act(layout, np.zeros((1, layout.size), np.float32), np.ones((1, 3, 4)), [[0.0, 0.49, 0.51]])
    >>> acted.action.tolist(), round(acted.entropy.item(0), 4)
    ([[0, 0, 1]], 0.6931)
    """
    seen, params = _seen(layout, params, observation)
    members, n, _ = seen.shape
    u = _given("uniform", uniform, (members, n), np.float64)
    action, result = np.empty((members, n), np.int64), np.empty((3, members, n), np.float32)
    kernels.act(layout.plan, params, seen, u, _mask(mask, members, n, layout), action, result)
    return Acted(action, result[0], result[1], result[2])


class Stats(NamedTuple):
    """Statistics of an update, all float64 [M]: means over its minibatches of the minibatch's mean, `grad_share` of the first one."""

    policy_loss: NDArray[np.float64]
    value_loss: NDArray[np.float64]  # mean (V - R)^2, without value_coef
    entropy: NDArray[np.float64]  # nats
    kl: NDArray[np.float64]  # k3: mean (r - 1) - log r
    clip_fraction: NDArray[np.float64]
    grad_norm: NDArray[np.float64]  # before clipping
    grad_share: NDArray[np.float64]  # |d coef H/dz| / (|d policy loss/dz| + |d coef H/dz|), z the logits


class Rollout(NamedTuple):
    """What an update learns from."""

    observation: ArrayLike  # [M, N, D]
    action: ArrayLike  # [M, N]
    log_prob: ArrayLike  # [M, N]
    advantage: ArrayLike  # [M, N]
    returns: ArrayLike  # [M, N]
    mask: ArrayLike | None = None  # [M, N, A], true where an action was legal


class Adam(NamedTuple):
    """State of the optimizer, updated in place: moments [M, P] float32 and the number of steps [M] int64."""

    exp_avg: Floats
    exp_avg_sq: Floats
    step: NDArray[np.int64]


def ppo_update(
    layout: Layout,
    params: Floats,
    adam: Adam,
    rollout: Rollout,
    order: ArrayLike,
    *,
    batch_size: int,
    learning_rate: ArrayLike,
    clip: ArrayLike,
    coef: ArrayLike,
    value_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    normalize_advantage: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-5,
    threads: int = 1,
) -> Stats:
    """All epochs and minibatches of PPO for M members; changes `params` [M, P] and `adam` in place.

    Loss of a minibatch of a member: mean(-min(r A, clip(r, 1 - c, 1 + c) A)) + value_coef mean((V - R)^2) - coef mean(H), A standardised over the
    minibatch with the unbiased deviation + 1e-8 (not for a minibatch of one), H the Shannon entropy in nats. The gradient is scaled by
    min(1, max_grad_norm/(norm + 1e-6)) and given to Adam. `order` [M, E, N] holds a permutation of the samples for each epoch; the last minibatch of
    an epoch may be smaller.
    `learning_rate`, `clip`, `coef` are numbers or [M]. Members are spread over `threads`.

    Raises ValueError for a wrong shape, an index or action out of range, or an array to be updated that is not contiguous, writable and of the right type.

    >>> layout, zeros = Layout((1, 2), (1, 1)), np.zeros
    >>> params, adam = zeros((1, 6), np.float32), Adam(zeros((1, 6), np.float32), zeros((1, 6), np.float32), zeros(1, np.int64))
    >>> rollout = Rollout([[[1.0], [1.0]]], [[0, 1]], np.full((1, 2), -np.log(2)), [[1.0, -1.0]], [[0.0, 0.0]])
    >>> stats = ppo_update(layout, params, adam, rollout, [[[0, 1]]], batch_size=2, learning_rate=0.1, clip=0.2, coef=0.0)
    >>> params.astype(float).round(3).tolist()
    [[0.1, -0.1, 0.1, -0.1, 0.0, 0.0]]

    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9; the standardisation and the clipping of the gradient are those of its reference code.
    """
    index = np.ascontiguousarray(order, np.int64)
    if index.ndim != 3 or index.shape[2] < 1:
        raise ValueError(f"order: shape {list(index.shape)}, must be [M, E, N]")
    members, _, samples = index.shape
    for name, number in (("batch_size", batch_size), ("threads", threads)):
        if number < 1:
            raise ValueError(f"{name}: {number}, must be at least 1")
    _check_state(layout, params, adam, members)
    data = _rollout(layout, rollout, members, samples)
    _check_range("order", index, samples)
    _check_range("action", data.action, layout.actions)
    settings = (learning_rate, clip, coef, value_coef, max_grad_norm, normalize_advantage, layout.plan.relu, *betas, eps)
    hyper = np.stack([np.broadcast_to(np.asarray(value, np.float64), (members,)) for value in settings], axis=1)
    stats, batch, plan = np.zeros((members, kernels.SHARE + 1)), min(batch_size, samples), layout.plan

    def work(share: tuple[int, int]) -> None:
        buffers = space(layout, batch)
        kernels.update(share, plan.table, plan.split, buffers, params, adam.exp_avg, adam.exp_avg_sq, adam.step, data, index, batch, hyper, stats)

    if threads == 1 or members == 1:
        work((0, members))
    else:  # shares of a few members, so that a busy core delays the end by a few members only
        share = max(1, members // (4 * threads))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [(m, min(m + share, members)) for m in range(0, members, share)]))
    return Stats(*(stats[:, k] for k in (kernels.POLICY, kernels.VALUE, kernels.ENTROPY, kernels.KL, kernels.CLIPPED, kernels.NORM, kernels.SHARE)))


def _check_range(name: str, array: NDArray[np.int64], bound: int) -> None:
    if array.size and (array.min() < 0 or array.max() >= bound):
        raise ValueError(f"{name}: holds values from {array.min()} to {array.max()}, must lie in 0..{bound - 1}")


def _check_state(layout: Layout, params: Floats, adam: Adam, members: int) -> None:
    for name, array in (("params", params), ("exp_avg", adam.exp_avg), ("exp_avg_sq", adam.exp_avg_sq)):
        _check(name, array, (members, layout.size), np.float32)
    _check("step", adam.step, (members,), np.int64)


def _rollout(layout: Layout, rollout: Rollout, members: int, samples: int) -> kernels.Data:
    flat = (members, samples)
    return kernels.Data(
        _given("observation", rollout.observation, (*flat, layout.actor[0]), np.float32),
        _given("action", rollout.action, flat, np.int64),
        _given("log_prob", rollout.log_prob, flat, np.float32),
        _given("advantage", rollout.advantage, flat, np.float32),
        _given("returns", rollout.returns, flat, np.float32),
        _mask(rollout.mask, members, samples, layout),
    )
