"""Networks in plain lax, of random kernels: no normalisation (its scales would be folded into the kernels)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Kernels:
    """Kernels in the order in which a network asks for them: drawn the first time, given the next."""

    def __init__(self, given: list[jax.Array] | None = None) -> None:
        self.drawn: list[np.ndarray] = []
        self.given: Iterator[jax.Array] | None = None if given is None else iter(given)

    def take(self, *shape: int) -> Any:
        if self.given is not None:
            return next(self.given)
        fan_in = np.prod(shape[:-1])
        values = np.random.default_rng(len(self.drawn)).standard_normal(shape, np.float32) * np.sqrt(2 / fan_in)
        self.drawn.append(values.astype(np.float32))
        return self.drawn[-1]

    def conv(self, x: Any, features: int, window: int, strides: int = 1, groups: int = 1) -> Any:
        kernel = self.take(window, window, x.shape[-1] // groups, features)
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (strides, strides), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    def classify(self, x: Any) -> Any:
        return x.mean((1, 2)) @ self.take(x.shape[-1], 1000)


def mobilenet_v2(k: Kernels, x: Any) -> Any:
    x = jax.nn.relu6(k.conv(x, 32, 3, 2))
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, features, repeats, first in blocks:
        for index in range(repeats):
            y, strides = x, first if index == 0 else 1
            if expansion > 1:
                y = jax.nn.relu6(k.conv(y, expansion * x.shape[-1], 1))
            y = jax.nn.relu6(k.conv(y, y.shape[-1], 3, strides, y.shape[-1]))
            y = k.conv(y, features, 1)
            x = x + y if x.shape == y.shape else y
    return k.classify(jax.nn.relu6(k.conv(x, 1280, 1)))


def convnext_tiny(k: Kernels, x: Any) -> Any:
    x = k.conv(x, 96, 4, 4)
    for features, repeats in [(96, 3), (192, 3), (384, 9), (768, 3)]:
        if features > 96:
            x = k.conv(x, features, 2, 2)
        for _ in range(repeats):
            y = k.conv(x, features, 7, 1, features)
            x = x + k.conv(jax.nn.gelu(k.conv(y, 4 * features, 1)), features, 1) / 8
    return k.classify(x)


def resnet_50(k: Kernels, x: Any) -> Any:
    x = jax.nn.relu(k.conv(x, 64, 7, 2))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    for features, repeats, first in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for index in range(repeats):
            strides = first if index == 0 else 1
            y = jax.nn.relu(k.conv(x, features, 1))
            y = jax.nn.relu(k.conv(y, features, 3, strides))
            y = k.conv(y, 4 * features, 1) / 4
            x = jax.nn.relu((x if x.shape == y.shape else k.conv(x, 4 * features, 1, strides)) + y)
    return k.classify(x)


NETWORKS = {"ConvNeXt-T": convnext_tiny, "MobileNetV2": mobilenet_v2, "ResNet-50": resnet_50}


def parts(name: str) -> tuple[Callable, list[np.ndarray]]:
    """A network as a function of its kernels and images, and kernels."""
    network, drawing = NETWORKS[name], Kernels()
    jax.eval_shape(lambda x: network(drawing, x), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    return lambda kernels, x: network(Kernels(kernels), x), drawing.drawn
