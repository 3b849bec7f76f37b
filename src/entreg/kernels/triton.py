"""Sums of every row of logits, and the gradient of any function of them, as two Triton kernels.

Shapes: N rows (tokens), V classes. One program owns one row, so that nothing is added atomically and every run gives the same bits; rows begin at int64 offsets.
A row is read once forward and once backward, in blocks of `BLOCK` classes; the backward may write over what it reads.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOOR = tl.constexpr(-1e4)  # y of a class of probability 0: turns 0 * -inf into 0
SHANNON, NEAR, FAR, LARGEST, COUNT = (tl.constexpr(kind) for kind in range(5))  # how sum p^a is taken


@triton.jit
def _expm1(x):
    """exp(x) - 1; |x| <= 1 by its series, whose first term left out is 3e-8."""
    series = 1.0 + x / 11.0
    for k in tl.static_range(10, 1, -1):
        series = 1.0 + x * series / k
    return tl.where(tl.abs(x) <= 1, x * series, tl.exp(x) - 1)


@triton.jit
def _tanh(x):
    small = _expm1(-2 * tl.abs(x))  # in (-1, 0]
    return tl.where(x < 0, small, -small) / (small + 2)


@triton.jit
def _block(logits, support, columns, V, scale, softcap, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """`z` of a block (-inf where a class does not exist) and the derivative of z by the logit."""
    there = columns < V
    if MASKED:
        there = there & (tl.load(support + columns, mask=there, other=0) != 0)
    x = tl.load(logits + columns, mask=there, other=0.0).to(tl.float32)
    slope = tl.full(x.shape, 1.0, tl.float32) * scale
    if CAPPED:
        bent = _tanh(x / softcap)
        x = softcap * bent
        slope = slope * (1 - bent * bent)
    return tl.where(there, x * scale, -float("inf")), slope, there


@triton.jit
def _sums(
    logits, row_stride, support, support_stride, target, temperature, out, out_stride, V, softcap, order,
    ORDER: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, TARGETS: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scale = 1 / tl.load(temperature + row)
    logits += row * row_stride
    support += row * support_stride
    e = order - 1
    m = tl.full((), -1e30, tl.float32)
    low = tl.full((), 0.0, tl.float32)  # sum of w below the maximum
    ties = tl.full((), 0.0, tl.float32)
    t = tl.full((), 0.0, tl.float32)
    u = tl.full((), 0.0, tl.float32)
    power = tl.full((), 0.0, tl.float32)  # sum of w expm1(e y) (NEAR), of w^a (FAR), of 1 (COUNT)
    squares = tl.full((), 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z, _, _ = _block(logits, support, columns, V, scale, softcap, CAPPED, MASKED)
        largest = tl.maximum(m, tl.max(z, 0))
        y = z - largest
        live = z > -float("inf")
        y = tl.where(live, y, FLOOR)
        w = tl.exp(y)
        top = tl.where(y == 0, 1.0, 0.0)
        d = tl.maximum(m - largest, FLOOR)  # nothing before the first block, and d * d must be finite
        shrink = tl.exp(d)
        s = low + ties
        moved = tl.where(d < 0, ties, 0.0)  # what was largest is now among the others
        if ORDER == NEAR:
            grown = tl.where(tl.abs(e * d) <= 1, shrink * _expm1(e * d), tl.exp(order * d) - shrink)
            power = tl.exp(order * d) * power + s * grown
            power += tl.sum(tl.where(tl.abs(e * y) <= 1, w * _expm1(e * y), tl.exp(order * y) - w), 0)
        if ORDER == FAR:
            power = tl.exp(order * d) * power + tl.sum(tl.where(live, tl.exp(order * y), 0.0), 0)
        if ORDER == COUNT:
            power += tl.sum(tl.where(live, 1.0, 0.0), 0)
        if SQUARES:
            squares = shrink * shrink * squares + tl.sum(w * w, 0)
        u = shrink * (u + 2 * d * t + d * d * s) + tl.sum(w * y * y, 0)
        t = shrink * (t + d * s) + tl.sum(w * y, 0)
        low = shrink * (low + moved) + tl.sum(tl.where(y < 0, w, 0.0), 0)
        ties = ties - moved + tl.sum(top, 0)
        m = largest
    out += row
    tl.store(out, m)
    tl.store(out + out_stride, low + (ties - 1))
    tl.store(out + 2 * out_stride, t)
    tl.store(out + 3 * out_stride, u)
    tl.store(out + 4 * out_stride, power)
    tl.store(out + 5 * out_stride, squares)
    tl.store(out + 6 * out_stride, ties)
    if TARGETS:
        index = tl.load(target + row)
        z, _, _ = _block(logits, support, index + tl.arange(0, 1), V, scale, softcap, CAPPED, MASKED)
        tl.store(out + 7 * out_stride + tl.arange(0, 1), z)


@triton.jit
def _gradient(
    logits, row_stride, support, support_stride, target, temperature, row_values, values_stride, grad, grad_stride, V, softcap, order,
    ORDER: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, TARGETS: tl.constexpr, SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`grad = slope (p (c0 + c1 l + c2 l^2 + c3 p) + family + [target] c_target)`, l = log p; see `_Weights`."""
    row = tl.program_id(0).to(tl.int64)
    scale = 1 / tl.load(temperature + row)
    logits += row * row_stride
    support += row * support_stride
    grad += row * grad_stride
    row_values += row
    m = tl.load(row_values)
    log_s = tl.load(row_values + values_stride)
    c0 = tl.load(row_values + 2 * values_stride)
    c1 = tl.load(row_values + 3 * values_stride)
    c2 = tl.load(row_values + 4 * values_stride)
    c3 = tl.load(row_values + 5 * values_stride)
    c_family = tl.load(row_values + 6 * values_stride)
    family = tl.load(row_values + 7 * values_stride)  # R_a (NEAR), log sum p^a (FAR), number of maxima (LARGEST)
    c_target = tl.load(row_values + 8 * values_stride)
    e = order - 1
    index = tl.load(target + row) if TARGETS else -1
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z, slope, there = _block(logits, support, columns, V, scale, softcap, CAPPED, MASKED)
        y = z - m
        live = z > -float("inf")
        y = tl.where(live, y, FLOOR)
        l = y - log_s  # noqa: E741  log p
        p = tl.exp(l)
        value = c0 + c1 * l + c2 * l * l
        if SQUARES:
            value += c3 * p
        value = p * value
        if ORDER == NEAR:
            x = e * (l + family)
            near = p * _expm1(x)
            value += c_family * tl.where(tl.abs(x) <= 1, near, tl.exp(order * l + e * family) - p)
        if ORDER == FAR:
            value += c_family * (tl.exp(order * l - family) - p)
        if ORDER == LARGEST:
            value += c_family * (tl.where(y == 0, 1 / family, 0.0) - p)
        if TARGETS:
            value += tl.where(columns == index, c_target, 0.0)
        value = tl.where(live, value * slope, 0.0)
        tl.store(grad + columns, value.to(grad.dtype.element_ty), mask=columns < V)


def order_kind(order: float) -> int:
    """How the kernels take the sum of p^order."""
    if order == 1:
        return SHANNON.value
    if order == 0:
        return COUNT.value
    if math.isinf(order):
        return LARGEST.value
    return NEAR.value if 0.5 < order < 1.6 else FAR.value


def sums(logits: Tensor, target: Tensor | None, support: Tensor | None, temperature: Tensor, softcap: float | None, order: float, squares: bool) -> Tensor:
    """Row sums `[8, N]` of logits `[N, V]`: m, s without one maximum, t, u, power, sum w^2, number of maxima, z of the target (0 without)."""
    out = torch.zeros(8, len(logits), device=logits.device)
    if len(logits):
        mask, mask_stride = (logits, 0) if support is None else (support.view(torch.uint8), support.stride(0))
        _sums[(len(logits),)](
            logits, logits.stride(0), mask, mask_stride, temperature if target is None else target, temperature, out, out.stride(0), logits.shape[1],
            1.0 if softcap is None else softcap, order if math.isfinite(order) else 0.0, **_constants(logits, target, support, softcap, order, squares),
        )  # fmt: skip
    return out


def gradient(
    logits: Tensor, target: Tensor | None, support: Tensor | None, temperature: Tensor, softcap: float | None, order: float, values: Tensor, grad: Tensor
) -> Tensor:
    """Write the gradient `[N, V]` into `grad`, which may be the logits themselves; `values [9, N]` are what every row needs."""
    if len(logits):
        mask, mask_stride = (logits, 0) if support is None else (support.view(torch.uint8), support.stride(0))
        _gradient[(len(logits),)](
            logits, logits.stride(0), mask, mask_stride, temperature if target is None else target, temperature, values, values.stride(0), grad, grad.stride(0),
            logits.shape[1], 1.0 if softcap is None else softcap, order if math.isfinite(order) else 0.0, **_constants(logits, target, support, softcap, order, True),
        )  # fmt: skip
    return grad


def _constants(logits: Tensor, target: Tensor | None, support: Tensor | None, softcap: float | None, order: float, squares: bool) -> dict[str, int]:
    block = min(8192, triton.next_power_of_2(logits.shape[1]))
    flags = {"CAPPED": softcap is not None, "MASKED": support is not None, "TARGETS": target is not None, "SQUARES": squares}
    return {"ORDER": order_kind(order), "BLOCK": block, "num_warps": max(1, min(16, block // 512)), **flags}
