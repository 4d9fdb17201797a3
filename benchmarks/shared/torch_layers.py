"""Layers of one and two axes in PyTorch, on images in channels-last memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .environment import torch_or_none
from .layers import Layer


def _to_torch(x: Any, *first: int) -> Any:
    """Returns an array as a tensor that begins with two of its axes, in channels-last memory where PyTorch has that."""
    torch = torch_or_none()
    tensor = torch.from_numpy(np.moveaxis(np.array(x), first, (0, 1)))
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def torch_function(layer: Layer, role: str, *arguments: Any) -> Callable[[], Any]:
    """Returns a function without arguments that computes a layer in PyTorch from the arrays of `Layer.arguments`."""
    torch = torch_or_none()
    functional, rank = torch.nn.functional, len(layer.window)
    cotangent = _to_torch(arguments[0], 0, -1) if role == "gradient" else None
    images, *kernels = arguments if role == "forward" else arguments[1:]
    images = _to_torch(images, 0, -1)
    if layer.pool:
        pool = getattr(functional, f"{layer.pool}_pool{rank}d")
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()

        def forward() -> Any:
            with torch.no_grad():
                return pool(images, layer.window, layer.strides, layer.pads)

        def gradient() -> Any:
            return torch.autograd.grad(pool(leaf, layer.window, layer.strides, layer.pads), leaf, cotangent)

        return forward if role == "forward" else gradient
    weight = _to_torch(kernels[0], -1, -2)
    options = {"stride": layer.strides, "padding": layer.pads, "groups": layer.groups}
    conv = getattr(functional, f"conv{'_transpose' if layer.transposed else ''}{rank}d")

    def forward() -> Any:
        with torch.no_grad():
            return conv(images, weight, **options)

    def gradient() -> Any:
        return torch.ops.aten.convolution_backward(
            cotangent,
            images,
            weight,
            None,
            [layer.strides] * rank,
            list(layer.pads),
            [1] * rank,
            layer.transposed,
            [0] * rank,
            layer.groups,
            [True, True, False],
        )

    return forward if role == "forward" else gradient
