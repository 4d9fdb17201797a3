"""Layers of the families in PyTorch, on images in channels-last memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcnn.lowering.spec import ConvSpec, Role

from ..shared.environment import torch_or_none


def torch_function(spec: ConvSpec, lhs: np.ndarray, rhs: np.ndarray, *, transposed: bool = False) -> Callable[[], Any]:
    """Returns a layer in PyTorch as a function without arguments; `as_lax` puts the result in lax's order of axes.

    A 1-D layer is computed as a 2-D layer of a single row, for which PyTorch has a channels-last form.

    Args:
      spec: layer with the same padding at both ends of each axis.
      lhs: first operand in lax's order.
      rhs: second operand in lax's order.
      transposed: flag, True for a layer of a transposed convolution, whose forward pass is the role `"input"`.
    """
    torch = torch_or_none()
    lead = max(2 - spec.rank, 0)
    rank = spec.rank + lead
    memory = torch.channels_last if rank == 2 else torch.channels_last_3d
    names: tuple[Role, ...] = ("input", "output", "kernel")
    shapes = (spec.input_shape, spec.output_shape, spec.kernel_shape)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in zip(names, shapes, strict=True)}
    arrays |= zip([name for name in names if name != spec.role], (lhs, rhs), strict=True)

    def images(role: str) -> Any:
        array = arrays[role]
        array = array.reshape(array.shape[0], *(1,) * lead, *array.shape[1:])
        return torch.from_numpy(np.moveaxis(array, -1, 1)).contiguous(memory_format=memory)

    x, y = images("input"), images("output")
    kernel = arrays["kernel"].reshape(*(1,) * lead, *spec.kernel_shape)
    weight = torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1))).contiguous(memory_format=memory)
    strides, dilation = [1] * lead + list(spec.strides), [1] * lead + list(spec.kernel_dilation)
    pads, groups = [0] * lead + [low for low, _ in spec.padding], spec.feature_group_count
    forward, extra = "output", [0] * rank
    if transposed:
        forward = "input"
        axes = zip(x.shape[2:], y.shape[2:], weight.shape[2:], strides, dilation, pads, strict=True)
        extra = [n - ((m - 1) * stride + d * (w - 1) + 1 - 2 * pad) for n, m, w, stride, d, pad in axes]
        x, y = y, x
    options = (None, strides, pads, dilation, transposed, extra, groups)
    mask = [spec.role != "kernel", spec.role == "kernel", False]

    def call() -> Any:
        with torch.no_grad():
            if spec.role == forward:
                return torch.ops.aten.convolution(x, weight, *options)
            return torch.ops.aten.convolution_backward(y, x, weight, *options, mask)[mask.index(True)]

    return call


def as_lax(spec: ConvSpec, tensor: Any) -> np.ndarray:
    """Returns a result of PyTorch in lax's order of axes."""
    array = tensor.numpy()
    array = np.moveaxis(array, (0, 1), (-1, -2)) if spec.role == "kernel" else np.moveaxis(array, 1, -1)
    return array.reshape(spec.result_shape)
