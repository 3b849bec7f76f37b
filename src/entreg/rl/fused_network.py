# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Compiled networks of `fused`: layers forward and backward, Adam, and the exponential, all on flat float32 arrays.

A `table` describes the two networks of a member, one row a layer (the actor's first), columns as named below. Inside, widths are padded to multiples of 8
(`packed` parameters, activations): the padding of weights, gradients and Adam's moments stays exactly zero, so it needs no special case anywhere.
Samples go through in chunks of C = CHUNK rows, so that activations stay in the first cache levels; `work` begins with the chunk's observations and holds every
layer's outputs [C, width] at its place. Loops run over slices: with offsets added to the index numba's test for negative ones keeps them out of vectors.
No flag lets the compiler assume away NaN or infinity: what comes in as NaN comes out as NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import register_jitable

from .fused_tile import NARROW, WIDE, make_tile

INPUTS, OUTPUTS, ROW, WIDTH, FLAT, PACKED, TURNED, PLACE = range(8)  # ROW, WIDTH: inputs and outputs padded to 8; the others are offsets
CHUNK = 64

compiled = register_jitable(error_model="numpy", fastmath={"contract"})
lanes = register_jitable(error_model="numpy", fastmath={"contract", "reassoc"})  # sums in several lanes: still one fixed order on one machine

_wide, _narrow = make_tile(4, WIDE), make_tile(8, NARROW)
_wide_row, _narrow_row = make_tile(1, WIDE), make_tile(1, NARROW)
f32 = np.float32
ZERO, ONE = f32(0.0), f32(1.0)
# tanh(x) = x P(x^2)/Q(x^2), relative error 5.7e-9 on |x| <= 7.9 (own minimax fit), 3.4e-7 when evaluated in float32; never above 1
_P0, _P1, _P2, _P3, _P4 = f32(0.9999999943547437), f32(0.13450614184840617), f32(0.0035789842567866196), f32(2.202310746055318e-05), f32(1.542775546134586e-08)
_Q1, _Q2, _Q3, _Q4 = f32(0.4678394218605919), f32(0.026192208883931915), f32(0.0003423637463395211), f32(8.598697311020624e-07)
_EDGE = f32(7.9)
# exp(x) = 2^n exp(r): n by the rounding of x log2(e) + 1.5 2^23, whose low bits are n
_LOG2E, _LN2_HIGH, _LN2_LOW, _MAGIC = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4), f32(12582912.0)
_E2, _E3, _E4, _E5, _E6 = f32(0.5), f32(1 / 6), f32(1 / 24), f32(1 / 120), f32(1 / 720)
_LOWEST, _HIGHEST = f32(-87.3), f32(89.0)


@compiled
def exp(x):
    """exp(x) within 2e-7, in a form that runs in vectors: 0 below -87.3, infinite above 88.4."""
    low = x < _LOWEST
    x = _HIGHEST if x > _HIGHEST else (_LOWEST if low else x)
    shifted = x * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ONE + r * (ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    scale = np.int32((np.float32(shifted).view(np.int32) << 23) + 0x3F800000).view(np.float32)
    return ZERO if low else p * scale


@compiled
def _activate(x, relu):
    """tanh or max(0, x) in place."""
    if relu:
        for i in range(x.size):
            x[i] = ZERO if x[i] < ZERO else x[i]
        return
    for i in range(x.size):
        v = x[i]
        v = _EDGE if v > _EDGE else (-_EDGE if v < -_EDGE else v)
        u = v * v
        x[i] = v * (_P0 + u * (_P1 + u * (_P2 + u * (_P3 + u * _P4)))) / (ONE + u * (_Q1 + u * (_Q2 + u * (_Q3 + u * _Q4))))


@compiled
def _deactivate(x, slope, relu):
    """The gradient before the activation from the one behind it (`slope`), written over the activations x."""
    if relu:
        for i in range(x.size):
            x[i] = slope[i] if x[i] > ZERO else x[i] * ZERO
        return
    for i in range(x.size):
        x[i] = slope[i] * (ONE - x[i] * x[i])


@compiled
def _multiply(a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, d, d_at, d_row, rows, width, depth):
    """C = D + A B for `width` columns, a multiple of 8; up to 7 rows behind the last one are computed too."""
    wide = width // WIDE * WIDE
    for j in range(0, wide, WIDE):
        for i in range(0, rows, 4):
            _wide(a, a_at + i * a_row, a_row, b, b_at + j, b_row, c, c_at + i * c_row + j, c_row, d, d_at + i * d_row + j, d_row, a_step, depth)
    for j in range(wide, width, NARROW):
        for i in range(0, rows, 8):
            _narrow(a, a_at + i * a_row, a_row, b, b_at + j, b_row, c, c_at + i * c_row + j, c_row, d, d_at + i * d_row + j, d_row, a_step, depth)


@compiled
def _add_rows(ones, b, b_at, b_row, c, c_at, width, depth):
    """C = C + sum of the rows of B: the product with a row of ones, a third of the time of a loop over rows."""
    wide = width // WIDE * WIDE
    for j in range(0, wide, WIDE):
        _wide_row(ones, 0, 0, b, b_at + j, b_row, c, c_at + j, 0, c, c_at + j, 0, 0, depth)
    for j in range(wide, width, NARROW):
        _narrow_row(ones, 0, 0, b, b_at + j, b_row, c, c_at + j, 0, c, c_at + j, 0, 0, depth)


@compiled
def forward(table, first, last, packed, work, rows, relu):
    """Layers first..last-1, from the observations to the outputs."""
    for k in range(first, last):
        source, place = (table[k - 1, PLACE] if k > first else 0), table[k, PLACE]
        row, width, weight = table[k, ROW], table[k, WIDTH], table[k, PACKED]
        bias = weight + row * width
        _multiply(work, source, row, 1, packed, weight, width, work, place, width, packed, bias, 0, rows, width, table[k, INPUTS])
        if k < last - 1:
            _activate(work[place : place + rows * width], relu)


@compiled
def backward(table, first, last, space, rows, relu):
    """Adds the gradient of the weights, given that of the outputs at the last layer's place; activations are overwritten by their gradients."""
    work, gradient, scratch = space.work, space.gradient, space.scratch
    for k in range(last - 1, first - 1, -1):
        source, place = (table[k - 1, PLACE] if k > first else 0), table[k, PLACE]
        row, width, weight = table[k, ROW], table[k, WIDTH], table[k, PACKED]
        _multiply(work, source, 1, row, work, place, width, gradient, weight, width, gradient, weight, width, table[k, INPUTS], width, rows)
        _add_rows(space.ones, work, place, width, gradient, weight + row * width, width, rows)
        if k > first:
            _multiply(work, place, width, 1, space.turned, table[k, TURNED], row, scratch, 0, row, space.zeros, 0, 0, rows, row, table[k, OUTPUTS])
            _deactivate(work[source : source + rows * row], scratch[: rows * row], relu)


@compiled
def clear(x):
    """Zeros in place: a loop compiles several times faster than `x[:] = 0`."""
    for i in range(x.size):
        x[i] = ZERO


@compiled
def pack(table, flat, packed, back):
    """Copies parameters (or moments) of one member from the flat layout to the padded one, or `back`."""
    if not back:
        clear(packed)
    for k in range(table.shape[0]):
        inputs, outputs, row, width, flat_at, packed_at = table[k, INPUTS], table[k, OUTPUTS], table[k, ROW], table[k, WIDTH], table[k, FLAT], table[k, PACKED]
        for i in range(inputs + 1):  # the bias is one more row, behind the padding
            place = packed_at + (i if i < inputs else row) * width
            here, there = flat[flat_at + i * outputs : flat_at + (i + 1) * outputs], packed[place : place + outputs]
            if back:
                for j in range(outputs):
                    here[j] = there[j]
            else:
                for j in range(outputs):
                    there[j] = here[j]


@compiled
def turn(table, packed, turned):
    """Transposed weights of all layers but the first ones: dy W^T then runs along the inputs."""
    for k in range(table.shape[0]):
        row, width, weight, to = table[k, ROW], table[k, WIDTH], table[k, PACKED], table[k, TURNED]
        if to >= 0:
            for o in range(table[k, OUTPUTS]):
                column, line = packed[weight + o : weight + row * width], turned[to + o * row : to + (o + 1) * row]
                for i in range(row):
                    line[i] = column[i * width]


@lanes
def total(x):
    """Sum of a vector."""
    result = ZERO
    for i in range(x.size):
        result += x[i]
    return result


@lanes
def norm(x):
    """Euclidean norm of a vector."""
    result = ZERO
    for i in range(x.size):
        result += x[i] * x[i]
    return math.sqrt(result)


@compiled
def adam(parameters, gradient, moment, square, scale, step, rate, beta1, beta2, eps):
    """torch.optim.Adam on flat vectors, the gradient multiplied by `scale`; step, rate, betas and eps in float64."""
    size, root = f32(rate / (1.0 - beta1**step)), f32(1.0 / math.sqrt(1.0 - beta2**step))
    keep, take1, take2, least = f32(beta2), f32(1.0 - beta1), f32(1.0 - beta2), f32(eps)
    for i in range(parameters.size):
        g = gradient[i] * scale
        m = moment[i] + (g - moment[i]) * take1
        s = square[i] * keep + g * g * take2
        moment[i], square[i] = m, s
        parameters[i] -= size * m / (f32(math.sqrt(s)) * root + least)
