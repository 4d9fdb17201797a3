"""The layers of the table in PyTorch, on images in channels-last memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .environment import torch_or_none
from .layers import Layer


def _to_torch(x: Any, axes: tuple[int, ...]) -> Any:
    """Returns an array as a channels-last tensor with permuted axes."""
    torch = torch_or_none()
    tensor = torch.from_numpy(np.array(x)).permute(axes)
    return tensor.contiguous(memory_format=torch.channels_last)


def torch_function(layer: Layer, role: str, *arguments: Any) -> Callable[[], Any]:
    """Returns a function without arguments that computes a layer in PyTorch from the arrays of `Layer.arguments`."""
    torch = torch_or_none()
    functional = torch.nn.functional
    cotangent = _to_torch(arguments[0], (0, 3, 1, 2)) if role == "gradient" else None
    images, *kernels = arguments if role == "forward" else arguments[1:]
    images = _to_torch(images, (0, 3, 1, 2))
    if layer.pool:
        pool = functional.max_pool2d if layer.pool == "max" else functional.avg_pool2d
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()

        def forward() -> Any:
            with torch.no_grad():
                return pool(images, layer.window, layer.strides, layer.pads)

        def gradient() -> Any:
            return torch.autograd.grad(pool(leaf, layer.window, layer.strides, layer.pads), leaf, cotangent)

        return forward if role == "forward" else gradient
    weight = _to_torch(kernels[0], (3, 2, 0, 1))
    options = {"stride": layer.strides, "padding": layer.pads, "groups": layer.groups}
    conv = functional.conv_transpose2d if layer.transposed else functional.conv2d

    def forward() -> Any:
        with torch.no_grad():
            return conv(images, weight, **options)

    def gradient() -> Any:
        return torch.ops.aten.convolution_backward(
            cotangent,
            images,
            weight,
            None,
            [layer.strides] * 2,
            list(layer.pads),
            [1, 1],
            layer.transposed,
            [0, 0],
            layer.groups,
            [True, True, False],
        )

    return forward if role == "forward" else gradient
