"""The one rule of precision: float16 and bfloat16 are computed, and returned, in float32; float64 stays."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in its own dtype, at least float32 (integers too)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def common_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
