# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Compiled parts of `fused`: forward, backward, PPO loss and Adam of small MLPs, one member after the other.

Legend: M members, N samples of a member, E epochs, D observation width, A actions, P parameters of a member, B rows of a minibatch, C rows of a chunk.
A `table` describes the two networks, one row a layer (the actor's first), columns as named below. Inside, widths are padded to multiples of 8 (`packed`
parameters, activations): the padding of weights, gradients and Adam's moments stays exactly zero, so it needs no special case anywhere.
A minibatch goes through in chunks of C rows, so that activations stay in the first cache levels. Sums that decide a result run in a fixed order.
No flag allows the compiler to assume away NaN or infinity: what comes in as NaN comes out as NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .fused_tile import NARROW, WIDE, make_tile

INPUTS, OUTPUTS, ROW, WIDTH, FLAT, PACKED, TURNED, PLACE = range(8)  # ROW, WIDTH: inputs and outputs padded to 8; the others are offsets
CHUNK = 64
RATE, CLIP, COEF, VALUE_COEF, MAX_NORM, NORMALIZE, RELU, BETA1, BETA2, EPS = range(10)  # columns of `hyper`
POLICY, VALUE, ENTROPY, KL, CLIPPED, TASK, BONUS, NORM, SHARE = range(9)  # columns of `sums` (the first seven) and `stats`

_wide, _narrow = make_tile(4, WIDE), make_tile(8, NARROW)
_f = np.float32
_0, _1 = _f(0.0), _f(1.0)
# tanh(x) = x P(x^2)/Q(x^2), relative error 5.7e-9 on |x| <= 7.9 (own minimax fit), 3.4e-7 when evaluated in float32; never above 1
_P0, _P1, _P2, _P3, _P4 = _f(0.9999999943547437), _f(0.13450614184840617), _f(0.0035789842567866196), _f(2.202310746055318e-05), _f(1.542775546134586e-08)
_Q1, _Q2, _Q3, _Q4 = _f(0.4678394218605919), _f(0.026192208883931915), _f(0.0003423637463395211), _f(8.598697311020624e-07)
_EDGE = _f(7.9)
# exp(x) = 2^n exp(r): n by the rounding of x log2(e) + 1.5 2^23, whose low bits are n
_LOG2E, _LN2_HIGH, _LN2_LOW, _MAGIC = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4), _f(12582912.0)
_E2, _E3, _E4, _E5, _E6 = _f(0.5), _f(1 / 6), _f(1 / 24), _f(1 / 120), _f(1 / 720)
_LOWEST, _HIGHEST = _f(-87.3), _f(89.0)

_OPTIONS: Any = {"error_model": "numpy", "fastmath": {"contract"}}
_compiled = njit(**_OPTIONS)
_lanes = njit(error_model="numpy", fastmath={"contract", "reassoc"})  # sums may run in several lanes: still one fixed order on one machine


def _entry(function: Any) -> Any:
    """An entry point: without the interpreter lock, cached on disk where some place is writable, compiled anew by every process where none is."""
    try:
        return njit(nogil=True, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found neither __pycache__ nor a cache folder of the user to write to
        return njit(nogil=True, **_OPTIONS)(function)


@_compiled
def _exp(x):
    low = x < _LOWEST
    x = _HIGHEST if x > _HIGHEST else (_LOWEST if low else x)
    shifted = x * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _1 + r * (_1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    scale = np.int32((np.float32(shifted).view(np.int32) << 23) + 0x3F800000).view(np.float32)
    return _0 if low else p * scale


@_compiled
def _activate(x, relu):
    """tanh or max(0, x) in place."""
    if relu:
        for i in range(x.size):
            x[i] = _0 if x[i] < _0 else x[i]
        return
    for i in range(x.size):
        v = x[i]
        v = _EDGE if v > _EDGE else (-_EDGE if v < -_EDGE else v)
        u = v * v
        x[i] = v * (_P0 + u * (_P1 + u * (_P2 + u * (_P3 + u * _P4)))) / (_1 + u * (_Q1 + u * (_Q2 + u * (_Q3 + u * _Q4))))


@_compiled
def _deactivate(x, slope, relu):
    """The gradient before the activation from the one behind it (`slope`), written over the activations x."""
    if relu:
        for i in range(x.size):
            x[i] = slope[i] if x[i] > _0 else x[i] * _0
        return
    for i in range(x.size):
        x[i] = slope[i] * (_1 - x[i] * x[i])


@_compiled
def _multiply(a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, d, d_at, d_row, rows, width, depth):
    """C = D + A B for `width` columns, a multiple of 8; up to 7 rows behind the last one are computed too."""
    wide = width // WIDE * WIDE
    for j in range(0, wide, WIDE):
        for i in range(0, rows, 4):
            _wide(a, a_at + i * a_row, a_row, b, b_at + j, b_row, c, c_at + i * c_row + j, c_row, d, d_at + i * d_row + j, d_row, a_step, depth)
    for j in range(wide, width, NARROW):
        for i in range(0, rows, 8):
            _narrow(a, a_at + i * a_row, a_row, b, b_at + j, b_row, c, c_at + i * c_row + j, c_row, d, d_at + i * d_row + j, d_row, a_step, depth)


@_compiled
def _forward(table, first, last, packed, work, rows, relu):
    """Layers first..last-1 on the observations at the start of `work`, each layer's outputs at its place."""
    for k in range(first, last):
        layer = table[k]
        source, place, width = (table[k - 1, PLACE] if k > first else 0), layer[PLACE], layer[WIDTH]
        weight, bias = layer[PACKED], layer[PACKED] + layer[ROW] * width
        _multiply(work, source, layer[ROW], 1, packed, weight, width, work, place, width, packed, bias, 0, rows, width, layer[INPUTS])
        if k < last - 1:
            _activate(work[place : place + rows * width], relu)


@_compiled
def _backward(table, first, last, turned, gradient, work, scratch, zeros, rows, relu):
    """Adds the gradient of the weights, given that of the last layer's outputs at its place; activations are overwritten by their gradients."""
    for k in range(last - 1, first - 1, -1):
        layer = table[k]
        source, place, row, width = (table[k - 1, PLACE] if k > first else 0), layer[PLACE], layer[ROW], layer[WIDTH]
        weight = layer[PACKED]
        bias = gradient[weight + row * width : weight + row * width + width]
        _multiply(work, source, 1, row, work, place, width, gradient, weight, width, gradient, weight, width, layer[INPUTS], width, rows)
        for r in range(rows):
            line = work[place + r * width : place + r * width + width]
            for j in range(width):
                bias[j] += line[j]
        if k > first:
            _multiply(work, place, width, 1, turned, layer[TURNED], row, work, scratch, row, work, zeros, 0, rows, row, layer[OUTPUTS])
            _deactivate(work[source : source + rows * row], work[scratch : scratch + rows * row], relu)


@_compiled
def _clear(x):
    for i in range(x.size):
        x[i] = _0


@_compiled
def _pack(table, flat, packed, back):
    """Copies parameters (or moments) of one member between the flat layout and the padded one."""
    if not back:
        _clear(packed)
    for k in range(table.shape[0]):
        layer = table[k]
        inputs, outputs, width, start, at = layer[INPUTS], layer[OUTPUTS], layer[WIDTH], layer[FLAT], layer[PACKED]
        for i in range(inputs + 1):  # the bias is one more row, behind the padding
            place = at + (i if i < inputs else layer[ROW]) * width
            here, there = flat[start + i * outputs : start + (i + 1) * outputs], packed[place : place + outputs]
            source, target = (there, here) if back else (here, there)
            for j in range(outputs):
                target[j] = source[j]


@_compiled
def _turn(table, packed, turned):
    """Transposed weights of all layers but the first ones: dy W^T then runs along the inputs."""
    for k in range(table.shape[0]):
        layer = table[k]
        row, width, at, to = layer[ROW], layer[WIDTH], layer[PACKED], layer[TURNED]
        if to >= 0:
            for o in range(layer[OUTPUTS]):
                column, line = packed[at + o : at + row * width], turned[to + o * row : to + (o + 1) * row]
                for i in range(row):
                    line[i] = column[i * width]


class Space(NamedTuple):
    """Buffers of one thread: all zero but `legal`, which is true."""

    work: Any  # observations, activations, one scratch matrix, a line of zeros
    packed: Any
    turned: Any
    gradient: Any
    moment: Any
    square: Any
    legal: Any  # [A, C]
    prob: Any  # [A, C]
    logp: Any  # [A, C]
    rows: Any  # [6, C] values of a row: entropy, log-ratio, d loss / d log-prob, surrogate, KL, clipped
    advantage: Any  # [B]
    sums: Any  # [7]


@_compiled
def _policy(work, at, width, rows, actions, legal, prob, logp, entropy):
    """Probabilities, log-probabilities and entropies of `rows` rows of logits, by column: every loop runs along the rows."""
    top, total = np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32)
    for a in range(actions):
        logits = work[at + a :]
        for r in range(rows):
            z = logits[r * width] if legal[a, r] else _f(-np.inf)
            logp[a, r] = z
            top[r] = z if z > top[r] else top[r]
    for a in range(actions):
        for r in range(rows):
            logp[a, r] -= top[r]
            prob[a, r] = _exp(logp[a, r])
            total[r] += prob[a, r]
    for r in range(rows):
        entropy[r] = _0
        top[r] = math.log(total[r])
        total[r] = _1 / total[r]
    for a in range(actions):
        for r in range(rows):
            p, l = prob[a, r] * total[r], logp[a, r] - top[r]
            prob[a, r], logp[a, r] = p, l
            entropy[r] -= _0 if p == _0 else p * l


@_lanes
def _total(x):
    total = _0
    for i in range(x.size):
        total += x[i]
    return total


@_lanes
def _norm(x):
    total = _0
    for i in range(x.size):
        total += x[i] * x[i]
    return math.sqrt(total)


class Data(NamedTuple):
    """Rollout of one member."""

    observation: Any  # [N, D]
    action: Any  # [N]
    log_prob: Any  # [N]
    advantage: Any  # [N]
    returns: Any  # [N]
    mask: Any  # [N, A], or [0, A] where every action is legal


@_compiled
def _standardise(data, index, normalize, out):
    """Advantages of a minibatch, with mean 0 and unbiased standard deviation 1 where that is asked for and possible."""
    count, mean, square = index.size, 0.0, 0.0
    for i in range(count):
        mean += data.advantage[index[i]]
    mean /= count
    for i in range(count):
        square += (data.advantage[index[i]] - mean) ** 2
    on = normalize and count > 1
    scale = 1.0 / (math.sqrt(square / (count - 1)) + 1e-8) if on else 1.0
    for i in range(count):
        out[i] = (data.advantage[index[i]] - mean) * scale if on else data.advantage[index[i]]


@_compiled
def _gather(data, index, row, work, legal):
    width = data.observation.shape[1]
    for r in range(index.size):
        line, source = work[r * row : r * row + width], data.observation[index[r]]
        for j in range(width):
            line[j] = source[j]
    if data.mask.shape[0] > 0:
        for r in range(index.size):
            for a in range(legal.shape[0]):
                legal[a, r] = data.mask[index[r], a]


@_compiled
def _surrogate(space, clip, count, advantage):
    """The clipped objective of a chunk from its log-ratios: its terms, and its derivative with respect to log p."""
    ratios, slope, term, kl, clipped = space.rows[1], space.rows[2], space.rows[3], space.rows[4], space.rows[5]
    for r in range(advantage.size):
        ratio = _exp(ratios[r])
        low, high = _1 - clip, _1 + clip
        kept = low if ratio < low else (high if ratio > high else ratio)
        plain, bounded = ratio * advantage[r], kept * advantage[r]
        beyond = plain > bounded
        term[r] = -(bounded if beyond else plain)
        slope[r] = _0 if beyond else -plain / count
        kl[r] = (ratio - _1) - ratios[r]
        clipped[r] = _1 if kept != ratio else _0


@_compiled
def _loss(space, data, index, hyper, count, start, table, split):
    """Values of the loss's terms, added to `sums`, and the gradients of all outputs, written over the outputs."""
    rows, actions, work, sums = index.size, space.legal.shape[0], space.work, space.sums
    actor, critic = table[split - 1], table[-1]
    entropy, ratios, slope = space.rows[0], space.rows[1], space.rows[2]
    _policy(work, actor[PLACE], actor[WIDTH], rows, actions, space.legal, space.prob, space.logp, entropy)
    for r in range(rows):
        ratios[r] = space.logp[data.action[index[r]], r] - data.log_prob[index[r]]
    _surrogate(space, _f(hyper[CLIP]), _f(count), space.advantage[start : start + rows])
    for column, k in ((0, ENTROPY), (3, POLICY), (4, KL), (5, CLIPPED)):
        sums[k] += _total(space.rows[column, :rows])
    bonus_scale, value_scale = _f(-hyper[COEF] / count), _f(2.0 * hyper[VALUE_COEF] / count)
    for r in range(rows):
        taken, place = data.action[index[r]], actor[PLACE] + r * actor[WIDTH]
        for a in range(actions):
            p = space.prob[a, r]
            task = slope[r] * ((_1 if a == taken else _0) - p)
            bonus = bonus_scale * (_0 if p == _0 else -p * (space.logp[a, r] + entropy[r]))
            work[place + a] = task + bonus
            sums[TASK] += task * task
            sums[BONUS] += bonus * bonus
        place = critic[PLACE] + r * critic[WIDTH]
        error = work[place] - data.returns[index[r]]
        work[place] = value_scale * error
        sums[VALUE] += error * error


@_compiled
def _adam(parameters, gradient, moment, square, scale, step, hyper):
    """torch.optim.Adam on flat vectors, the gradient multiplied by `scale`."""
    beta1, beta2, eps = _f(hyper[BETA1]), _f(hyper[BETA2]), _f(hyper[EPS])
    rate = _f(hyper[RATE] / (1.0 - hyper[BETA1] ** step))
    root = _f(1.0 / math.sqrt(1.0 - hyper[BETA2] ** step))
    for i in range(parameters.size):
        g = gradient[i] * scale
        moment[i] += (g - moment[i]) * (_1 - beta1)
        square[i] = square[i] * beta2 + g * g * (_1 - beta2)
        parameters[i] -= rate * moment[i] / (_f(math.sqrt(square[i])) * root + eps)


@_compiled
def _minibatch(space, data, index, table, split, hyper, step, stats):
    """One gradient step; its statistics are added to `stats`."""
    count, layers, relu, last = index.size, table.shape[0], hyper[RELU] > 0.0, table[-1]
    scratch = last[PLACE] + CHUNK * last[WIDTH]
    zeros = space.work.size - table[:, ROW].max()
    _clear(space.gradient)
    for k in range(TASK + 2):
        space.sums[k] = 0.0
    _standardise(data, index, hyper[NORMALIZE] > 0.0, space.advantage)
    _turn(table, space.packed, space.turned)
    for start in range(0, count, CHUNK):
        part = index[start : start + CHUNK]
        _gather(data, part, table[0, ROW], space.work, space.legal)
        _forward(table, 0, split, space.packed, space.work, part.size, relu)
        _forward(table, split, layers, space.packed, space.work, part.size, relu)
        _loss(space, data, part, hyper, count, start, table, split)
        _backward(table, 0, split, space.turned, space.gradient, space.work, scratch, zeros, part.size, relu)
        _backward(table, split, layers, space.turned, space.gradient, space.work, scratch, zeros, part.size, relu)
    norm = _norm(space.gradient)
    scale = _f(hyper[MAX_NORM] / (norm + 1e-6))
    _adam(space.packed, space.gradient, space.moment, space.square, _1 if scale > _1 else scale, step, hyper)
    for k in range(TASK):
        stats[k] += space.sums[k] / count
    task, bonus = math.sqrt(space.sums[TASK]), math.sqrt(space.sums[BONUS])
    stats[NORM] += norm
    stats[SHARE] = bonus / (task + bonus) if bonus > 0.0 else bonus


@_entry
def update(members, table, split, space, parameters, moment, square, step, observation, action, log_prob, advantage, returns, mask, order, batch, hyper, stats):
    """All epochs and minibatches of the members from members[0] up to members[1]; arrays have a leading member axis, `hyper` and `stats` [M, columns]."""
    for m in range(members[0], members[1]):
        _pack(table, parameters[m], space.packed, False)
        _pack(table, moment[m], space.moment, False)
        _pack(table, square[m], space.square, False)
        data = Data(observation[m], action[m], log_prob[m], advantage[m], returns[m], mask[m])
        count = 0
        for epoch in range(order.shape[1]):
            for start in range(0, order.shape[2], batch):
                step[m] += 1
                count += 1
                _minibatch(space, data, order[m, epoch, start : start + batch], table, split, hyper[m], step[m], stats[m])
        for k in range(SHARE):
            stats[m, k] /= count
        _pack(table, parameters[m], space.packed, True)
        _pack(table, moment[m], space.moment, True)
        _pack(table, square[m], space.square, True)


@_compiled
def _observe(table, split, relu, packed, work, observation, start, rows):
    """Outputs of both networks for `rows` observations from `start` on."""
    row = table[0, ROW]
    for r in range(rows):
        for j in range(observation.shape[1]):
            work[r * row + j] = observation[start + r, j]
    _forward(table, 0, split, packed, work, rows, relu)
    _forward(table, split, table.shape[0], packed, work, rows, relu)


@_entry
def outputs(table, split, relu, parameters, observation, packed, work, logits, value):
    """Logits [M, n, A] and values [M, n] of observations [M, n, D]."""
    actor, critic = table[split - 1], table[-1]
    for m in range(observation.shape[0]):
        _pack(table, parameters[m], packed, False)
        for start in range(0, observation.shape[1], CHUNK):
            rows = min(CHUNK, observation.shape[1] - start)
            _observe(table, split, relu, packed, work, observation[m], start, rows)
            for r in range(rows):
                for a in range(logits.shape[2]):
                    logits[m, start + r, a] = work[actor[PLACE] + r * actor[WIDTH] + a]
                value[m, start + r] = work[critic[PLACE] + r * critic[WIDTH]]


@_entry
def act(table, split, relu, parameters, observation, uniform, mask, packed, work, columns, legal, action, result):
    """Sampled actions [M, n]; log-probabilities, values and entropies into `result` [3, M, n]."""
    actor, critic, prob, logp = table[split - 1], table[-1], columns[0], columns[1]
    for m in range(observation.shape[0]):
        _pack(table, parameters[m], packed, False)
        for start in range(0, observation.shape[1], CHUNK):
            rows = min(CHUNK, observation.shape[1] - start)
            _observe(table, split, relu, packed, work, observation[m], start, rows)
            if mask.shape[1] > 0:
                for r in range(rows):
                    for a in range(legal.shape[0]):
                        legal[a, r] = mask[m, start + r, a]
            entropy = result[2, m, start : start + rows]
            _policy(work, actor[PLACE], actor[WIDTH], rows, legal.shape[0], legal, prob, logp, entropy)
            for r in range(rows):
                chosen, below = 0, 0.0
                for a in range(legal.shape[0]):  # where rounding leaves the sum below u: the last action that has a probability
                    if prob[a, r] > _0 and below <= uniform[m, start + r]:
                        chosen = a
                    below += prob[a, r]
                action[m, start + r] = chosen
                result[0, m, start + r] = logp[chosen, r]
                result[1, m, start + r] = work[critic[PLACE] + r * critic[WIDTH]]
