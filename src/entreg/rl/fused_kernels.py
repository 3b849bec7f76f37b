# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Compiled entry points of `fused`: the PPO update, the outputs and the sampled actions of small MLPs, one member after the other.

Legend: M members, N samples of a member, E epochs, D observation width, A actions, B rows of a minibatch, C = CHUNK rows of a chunk.
Policies are handled by columns, [A, C] and [C], so that every loop runs along the rows in vectors.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .fused_network import CHUNK, ONE, OUTPUTS, PLACE, ROW, WIDTH, ZERO, adam, backward, clear, compiled, exp, f32, forward, norm, pack, total, turn

RATE, CLIP, COEF, VALUE_COEF, MAX_NORM, NORMALIZE, RELU, BETA1, BETA2, EPS = range(10)  # columns of `hyper`
POLICY, VALUE, ENTROPY, KL, CLIPPED, TASK, BONUS, NORM, SHARE = range(9)  # columns of `sums` (the first seven) and `stats`
_NONE = f32(-np.inf)


def _entry(function: Any) -> Any:
    """An entry point: without the interpreter lock, cached on disk where some place is writable, compiled anew by every process where none is."""
    # numba's cache looks at this file only; the other sources are told apart by the name of the cache's file
    parts = [Path(__file__).with_name(name) for name in ("fused_network.py", "fused_tile.py")]
    function.__qualname__ += "_" + "".join(f"{zlib.crc32(part.read_bytes()):08x}" for part in parts)
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found neither __pycache__ nor a cache folder of the user to write to
        return njit(**options)(function)


class Space(NamedTuple):
    """Buffers of one thread; zero at first but for `ones` and `legal`."""

    work: Any  # observations and activations of a chunk
    scratch: Any  # a matrix of the widest layer
    zeros: Any  # a line of it
    ones: Any
    packed: Any
    turned: Any
    gradient: Any
    moment: Any
    square: Any
    legal: Any  # [A, C]
    columns: Any  # [2, A, C]: probabilities, log-probabilities
    rows: Any  # [8, C]: scratch (two), entropy, log-ratio, d loss / d log-prob, surrogate, KL, clipped
    advantage: Any  # [B]
    sums: Any  # [7]


class Data(NamedTuple):
    """Rollout of one member."""

    observation: Any  # [N, D]
    action: Any  # [N]
    log_prob: Any  # [N]
    advantage: Any  # [N]
    returns: Any  # [N]
    mask: Any  # [N, A], or [0, A] where every action is legal


@compiled
def _policy(work, at, width, count, legal, columns, rows):
    """Probabilities and log-probabilities (`columns`) and entropies (rows[2]) of `count` rows of logits."""
    prob, logp, top, sums, entropy = columns[0], columns[1], rows[0], rows[1], rows[2]
    for r in range(count):
        top[r], sums[r], entropy[r] = _NONE, ZERO, ZERO
    for a in range(legal.shape[0]):
        logits = work[at + a : at + count * width]
        for r in range(count):
            z = logits[r * width] if legal[a, r] else _NONE
            logp[a, r] = z
            top[r] = z if z > top[r] else top[r]
    for a in range(legal.shape[0]):
        for r in range(count):
            logp[a, r] -= top[r]
            prob[a, r] = exp(logp[a, r])
            sums[r] += prob[a, r]
    for r in range(count):
        top[r] = math.log(sums[r])
        sums[r] = ONE / sums[r]
    for a in range(legal.shape[0]):
        for r in range(count):
            p, l = prob[a, r] * sums[r], logp[a, r] - top[r]
            prob[a, r], logp[a, r] = p, l
            entropy[r] -= ZERO if p == ZERO else p * l


@compiled
def _standardise(advantage, index, normalize, out):
    """Advantages of a minibatch, with mean 0 and unbiased standard deviation 1 where that is asked for and possible."""
    count, mean, square = index.size, 0.0, 0.0
    for i in range(count):
        mean += advantage[index[i]]
    mean /= count
    for i in range(count):
        square += (advantage[index[i]] - mean) ** 2
    on = normalize and count > 1
    scale = 1.0 / (math.sqrt(square / (count - 1)) + 1e-8) if on else 1.0
    for i in range(count):
        out[i] = (advantage[index[i]] - mean) * scale if on else advantage[index[i]]


@compiled
def _gather(data, index, row, work, legal):
    for r in range(index.size):
        line, seen = work[r * row : (r + 1) * row], data.observation[index[r]]
        for j in range(seen.size):
            line[j] = seen[j]
    if data.mask.shape[0] > 0:
        for r in range(index.size):
            for a in range(legal.shape[0]):
                legal[a, r] = data.mask[index[r], a]


@compiled
def _surrogate(rows, clip, count, advantage):
    """The clipped objective of a chunk from its log-ratios: its terms, and its derivative with respect to log p."""
    ratios, slope, term, kl, clipped = rows[3], rows[4], rows[5], rows[6], rows[7]
    low, high = ONE - clip, ONE + clip
    for r in range(advantage.size):
        ratio = exp(ratios[r])
        kept = low if ratio < low else (high if ratio > high else ratio)
        plain, bounded = ratio * advantage[r], kept * advantage[r]
        beyond = plain > bounded  # false for NaN, which so reaches the gradient
        term[r] = -(bounded if beyond else plain)
        slope[r] = ZERO if beyond else -plain / count
        kl[r] = (ratio - ONE) - ratios[r]
        clipped[r] = ONE if kept != ratio else ZERO


@compiled
def _policy_gradient(space, action, index, weight, at, width):
    """Gradient of surrogate and bonus (of `weight` a row) with respect to the logits, over the logits; adds the squares of both to `sums`."""
    entropy, slope, first, second = space.rows[2], space.rows[4], 0.0, 0.0
    for a in range(space.legal.shape[0]):
        prob, logp, gradient = space.columns[0, a], space.columns[1, a], space.work[at + a : at + index.size * width]
        for r in range(index.size):
            p = prob[r]
            task = slope[r] * ((ONE if action[index[r]] == a else ZERO) - p)
            bonus = ZERO if p == ZERO else weight * p * (logp[r] + entropy[r])
            gradient[r * width] = task + bonus
            first += task * task
            second += bonus * bonus
    space.sums[TASK] += first
    space.sums[BONUS] += second


@compiled
def _loss(space, data, index, hyper, count, start, table, split):
    """Values of the loss's terms, added to `sums`, and the gradients of all outputs, written over the outputs."""
    work, sums, rows = space.work, space.sums, space.rows
    at, width = table[split - 1, PLACE], table[split - 1, WIDTH]
    _policy(work, at, width, index.size, space.legal, space.columns, rows)
    for r in range(index.size):
        rows[3, r] = space.columns[1, data.action[index[r]], r] - data.log_prob[index[r]]
    _surrogate(rows, f32(hyper[CLIP]), f32(count), space.advantage[start : start + index.size])
    for column, k in ((2, ENTROPY), (5, POLICY), (6, KL), (7, CLIPPED)):
        sums[k] += total(rows[column, : index.size])
    _policy_gradient(space, data.action, index, f32(hyper[COEF] / count), at, width)
    at, width, scale, square = table[-1, PLACE], table[-1, WIDTH], f32(2.0 * hyper[VALUE_COEF] / count), 0.0
    for r in range(index.size):
        error = work[at + r * width] - data.returns[index[r]]
        work[at + r * width] = scale * error
        square += error * error
    sums[VALUE] += square


@compiled
def _minibatch(space, data, index, table, split, hyper, step, stats, share):
    """One gradient step; its statistics are added to `stats`, the bonus's share of the gradient where `share` says so."""
    count, layers, relu, sums = index.size, table.shape[0], hyper[RELU] > 0.0, space.sums
    clear(space.gradient)
    for k in range(sums.size):
        sums[k] = 0.0
    _standardise(data.advantage, index, hyper[NORMALIZE] > 0.0, space.advantage)
    turn(table, space.packed, space.turned)
    for start in range(0, count, CHUNK):
        part = index[start : start + CHUNK]
        _gather(data, part, table[0, ROW], space.work, space.legal)
        for first, end in ((0, split), (split, layers)):
            forward(table, first, end, space.packed, space.work, part.size, relu)
        _loss(space, data, part, hyper, count, start, table, split)
        for first, end in ((0, split), (split, layers)):
            backward(table, first, end, space, part.size, relu)
    length = norm(space.gradient)
    scale = f32(hyper[MAX_NORM] / (length + 1e-6))
    scale = ONE if scale > ONE else scale
    adam(space.packed, space.gradient, space.moment, space.square, scale, step, hyper[RATE], hyper[BETA1], hyper[BETA2], hyper[EPS])
    for k in range(TASK):
        stats[k] += sums[k] / count
    task, bonus = math.sqrt(sums[TASK]), math.sqrt(sums[BONUS])
    stats[NORM] += length
    if share:
        stats[SHARE] = bonus / (task + bonus) if bonus != 0.0 else bonus


@_entry
def update(members, table, split, space, parameters, moment, square, step, data, order, batch, hyper, stats):
    """All epochs and minibatches of the members from members[0] up to members[1]; arrays have a leading member axis, `hyper` and `stats` [M, columns]."""
    for m in range(members[0], members[1]):
        for flat, packed in ((parameters, space.packed), (moment, space.moment), (square, space.square)):
            pack(table, flat[m], packed, False)
        own = Data(data.observation[m], data.action[m], data.log_prob[m], data.advantage[m], data.returns[m], data.mask[m])
        count = 0
        for epoch in range(order.shape[1]):
            for start in range(0, order.shape[2], batch):
                step[m] += 1
                count += 1
                _minibatch(space, own, order[m, epoch, start : start + batch], table, split, hyper[m], step[m], stats[m], count == 1)
        for k in range(SHARE):
            stats[m, k] /= count
        for flat, packed in ((parameters, space.packed), (moment, space.moment), (square, space.square)):
            pack(table, flat[m], packed, True)


@compiled
def _observe(table, split, relu, packed, work, observation, start, count):
    """Outputs of both networks for `count` observations from `start` on."""
    for r in range(count):
        line, seen = work[r * table[0, ROW] : (r + 1) * table[0, ROW]], observation[start + r]
        for j in range(seen.size):
            line[j] = seen[j]
    for first, end in ((0, split), (split, table.shape[0])):
        forward(table, first, end, packed, work, count, relu)


@_entry
def outputs(plan, parameters, observation, logits, value):
    """Logits [M, n, A] and values [M, n] of observations [M, n, D]."""
    table, actor, critic = plan.table, plan.table[plan.split - 1], plan.table[-1]
    packed, work = np.empty(plan.packed, np.float32), np.empty(plan.activations, np.float32)
    for m in range(observation.shape[0]):
        pack(table, parameters[m], packed, False)
        for start in range(0, observation.shape[1], CHUNK):
            count = min(CHUNK, observation.shape[1] - start)
            _observe(table, plan.split, plan.relu, packed, work, observation[m], start, count)
            for r in range(count):
                for a in range(actor[OUTPUTS]):
                    logits[m, start + r, a] = work[actor[PLACE] + r * actor[WIDTH] + a]
                value[m, start + r] = work[critic[PLACE] + r * critic[WIDTH]]


@_entry
def act(plan, parameters, observation, uniform, mask, action, result):
    """Sampled actions [M, n]; log-probabilities, values and entropies into `result` [3, M, n]."""
    table, actor, critic = plan.table, plan.table[plan.split - 1], plan.table[-1]
    packed, work, rows = np.empty(plan.packed, np.float32), np.empty(plan.activations, np.float32), np.empty((3, CHUNK), np.float32)
    columns, legal = np.empty((2, actor[OUTPUTS], CHUNK), np.float32), np.ones((actor[OUTPUTS], CHUNK), np.bool_)
    for m in range(observation.shape[0]):
        pack(table, parameters[m], packed, False)
        for start in range(0, observation.shape[1], CHUNK):
            count = min(CHUNK, observation.shape[1] - start)
            _observe(table, plan.split, plan.relu, packed, work, observation[m], start, count)
            for a in range(legal.shape[0] if mask.shape[1] > 0 else 0):
                for r in range(count):
                    legal[a, r] = mask[m, start + r, a]
            _policy(work, actor[PLACE], actor[WIDTH], count, legal, columns, rows)
            for r in range(count):
                chosen, below = 0, 0.0
                for a in range(legal.shape[0]):  # where rounding leaves the sum below u: the last action that has a probability
                    if columns[0, a, r] > ZERO and below <= uniform[m, start + r]:
                        chosen = a
                    below += columns[0, a, r]
                action[m, start + r] = chosen
                result[0, m, start + r] = columns[1, chosen, r]
                result[1, m, start + r] = work[critic[PLACE] + r * critic[WIDTH]]
                result[2, m, start + r] = rows[2, r]
