"""The measured layers, by family: the table of asv's suites and of the comparison with other libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax

import jaxcnn

from . import plain
from .arrays import array


@dataclasses.dataclass(frozen=True)
class Layer:
    """Holds one layer: a convolution, or a pool if `features` is 0.

    Args:
      name: name of the network and of the layer in the network.
      x: shape (N, *spatial, C) of the input.
      window: taps on each spatial axis.
      features: output channels; 0 for a pool.
      strides: step on every axis.
      groups: number of groups.
      pool: kind of a pool, "max" or "avg"; empty for a convolution.
      transposed: flag, True for a transposed convolution, which makes images `strides` times as large.
    """

    name: str
    x: tuple[int, ...]
    window: tuple[int, ...]
    features: int = 0
    strides: int = 1
    groups: int = 1
    pool: str = ""
    transposed: bool = False

    @property
    def pads(self) -> tuple[int, ...]:
        """Returns the padding at each end of each axis: 0 for a pool that tiles its image, else half the window.

        The padding of a transposed convolution makes its images exactly `strides` times as large.
        """
        if self.transposed:
            return tuple((w - self.strides) // 2 for w in self.window)
        if self.pool and self.strides == self.window[0]:
            return (0,) * len(self.window)
        return tuple(w // 2 for w in self.window)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Returns the padding as pairs (low, high)."""
        return tuple((pad, pad) for pad in self.pads)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Returns the shape of the kernel; a transposed convolution has the kernel of its forward convolution."""
        channels = (self.features, self.x[-1]) if self.transposed else (self.x[-1] // self.groups, self.features)
        return (*self.window, *channels)

    @property
    def name_and_shape(self) -> str:
        """Returns the layer's name and the shape of its input, which together no other layer has."""
        return f"{self.name} {'x'.join(map(str, self.x))}"

    @property
    def cost(self) -> Any:
        """Returns the cost of the forward pass, a `jaxcnn.Cost`."""
        if self.pool:
            return jaxcnn.pool_cost(self.x, self.window, strides=self.strides, padding=self.padding)
        return jaxcnn.conv_cost(
            self.x,
            self.kernel_shape,
            strides=self.strides,
            padding=self.padding,
            feature_group_count=self.groups,
            transposed=self.transposed,
        )

    def by_jaxcnn(self, *operands: Any) -> Any:
        """Computes the layer through jaxcnn, from images and, except for a pool, a kernel."""
        if self.pool:
            pool = jaxcnn.max_pool if self.pool == "max" else jaxcnn.avg_pool
            return pool(*operands, self.window, strides=self.strides, padding=self.padding)
        if self.transposed:
            return jaxcnn.conv_transpose(*operands, strides=self.strides, padding=self.padding)
        return jaxcnn.conv(*operands, strides=self.strides, padding=self.padding, feature_group_count=self.groups)

    def by_lax(self, *operands: Any) -> Any:
        """Computes the layer in plain lax, from the same operands."""
        if self.pool:
            pool = plain.max_pool if self.pool == "max" else plain.avg_pool
            return pool(*operands, self.window, self.strides, self.pads)
        if self.transposed:
            return plain.conv_transpose(*operands, self.strides, self.padding_of_adjoint)
        return plain.conv(*operands, self.strides, self.padding, feature_group_count=self.groups)

    @property
    def padding_of_adjoint(self) -> list[tuple[int, int]]:
        """Returns lax's padding for a transposed convolution: the padding of the image with its pixels spread out."""
        return [(w - 1 - pad, w - 1 - pad) for w, pad in zip(self.window, self.pads, strict=True)]

    def operands(self) -> tuple[jax.Array, ...]:
        """Returns random images, and a kernel unless the layer is a pool."""
        return (array(*self.x),) if self.pool else (array(*self.x), array(*self.kernel_shape, seed=1))

    def cotangent(self) -> jax.Array:
        """Returns random values of the result's shape."""
        return array(*jax.eval_shape(self.by_lax, *self.operands()).shape, seed=2)

    def arguments(self, role: str) -> tuple[jax.Array, ...]:
        """Returns the arguments of the function that `in_role` returns: for a gradient the cotangent comes first."""
        return self.operands() if role == "forward" else (self.cotangent(), *self.operands())


def in_role(function: Callable, role: str) -> Callable:
    """Returns a layer's "forward" pass, or its "gradient": a function of cotangent and operands."""
    if role == "forward":
        # Each call returns a new function: JAX would have traced an equal one of another benchmark already.
        return lambda *operands: function(*operands)
    return lambda cotangent, *operands: jax.vjp(function, *operands)[1](cotangent)


def by_name(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Returns layers by their `name_and_shape`, in the order of these texts."""
    return dict(sorted((layer.name_and_shape, layer) for layer in layers))


def _depthwise(name: str, n: int, size: int, channels: int, window: int, strides: int = 1) -> Layer:
    return Layer(name, (n, size, size, channels), (window, window), channels, strides, channels)


def _transposed(name: str, n: int, size: int, c_in: int, c_out: int, window: int, strides: int) -> Layer:
    return Layer(name, (n, size, size, c_in), (window, window), c_out, strides, transposed=True)


def _dense(
    name: str, n: int, size: int, c_in: int, c_out: int, window: int, strides: int = 1, groups: int = 1
) -> Layer:
    return Layer(name, (n, size, size, c_in), (window, window), c_out, strides, groups)


FAMILIES: dict[str, list[Layer]] = {
    "depthwise": [
        _depthwise("MobileNetV2 3x3", 1, 112, 32, 3),
        _depthwise("MobileNetV2 3x3/2", 1, 112, 96, 3, 2),
        _depthwise("MobileNetV2 3x3", 1, 56, 144, 3),
        _depthwise("MobileNetV2 3x3", 8, 14, 384, 3),
        _depthwise("MobileNetV2 3x3", 1, 7, 960, 3),
        _depthwise("EfficientNet 5x5", 1, 28, 240, 5),
        _depthwise("EfficientNet 5x5/2", 1, 56, 144, 5, 2),
        _depthwise("EfficientNet 5x5", 8, 14, 672, 5),
        _depthwise("jax 23713 3x3", 1, 124, 256, 3),
        _depthwise("ConvNeXt 7x7", 1, 56, 96, 7),
        _depthwise("ConvNeXt 7x7", 8, 14, 384, 7),
        _depthwise("RepLKNet 13x13", 1, 14, 512, 13),
        _depthwise("RepLKNet 29x29", 1, 28, 256, 29),
    ],
    "grouped": [
        _dense("AlexNet conv2, 2 groups", 1, 27, 96, 256, 5, groups=2),
        _dense("ResNeXt-50 conv2", 1, 56, 128, 128, 3, groups=32),
        _dense("ResNeXt-50 conv3/2", 1, 56, 256, 256, 3, 2, groups=32),
        _dense("ResNeXt-50 conv4", 8, 14, 512, 512, 3, groups=32),
        _dense("RegNet, 8 groups", 4, 28, 64, 64, 3, groups=8),
        _dense("RegNet, 16 groups", 1, 28, 256, 256, 3, groups=16),
    ],
    "filter": [
        Layer("11x11", (1, 512, 512, 1), (11, 11), 1),
        Layer("21x21", (1, 512, 512, 1), (21, 21), 1),
        Layer("41x41", (1, 512, 512, 1), (41, 41), 1),
        Layer("1x11", (1, 512, 512, 1), (1, 11), 1),
        Layer("11x1", (1, 512, 512, 1), (11, 1), 1),
    ],
    "large": [
        _dense("31x31", 1, 28, 8, 8, 31),
        _depthwise("31x31", 1, 28, 64, 31),
    ],
    "dense": [
        _dense("AlexNet conv1 11x11/4", 1, 224, 3, 64, 11, 4),
        _dense("VGG-16 conv1_1", 1, 224, 3, 64, 3),
        _dense("VGG-16 conv2_2", 1, 112, 128, 128, 3),
        _dense("VGG-16 conv4_2", 1, 28, 512, 512, 3),
        _dense("ResNet-50 conv1 7x7/2", 1, 224, 3, 64, 7, 2),
        _dense("ResNet-50 3x3", 1, 56, 64, 64, 3),
        _dense("ResNet-50 3x3", 8, 14, 256, 256, 3),
        _dense("ResNet-50 3x3", 1, 7, 512, 512, 3),
        _dense("ResNet-50 1x1", 1, 56, 64, 256, 1),
        _dense("ResNet-50 1x1", 8, 14, 1024, 256, 1),
        _dense("ResNet-50 1x1/2", 1, 56, 256, 512, 1, 2),
        _dense("Inception-v3 5x5", 1, 35, 48, 64, 5),
        _dense("MobileNetV2 1x1", 1, 14, 96, 576, 1),
    ],
    "1xk and kx1": [
        Layer("Inception-v3 1x7", (1, 17, 17, 160), (1, 7), 160),
        Layer("Inception-v3 7x1", (1, 17, 17, 160), (7, 1), 160),
        Layer("Inception-v3 1x3", (1, 8, 8, 384), (1, 3), 384),
        Layer("1x11, 64 channels", (1, 56, 56, 64), (1, 11), 64),
        Layer("11x1, 64 channels", (1, 56, 56, 64), (11, 1), 64),
        Layer("3x1, batch 8", (8, 28, 28, 128), (3, 1), 128),
    ],
    "transposed": [
        _transposed("U-Net 2x2/2", 1, 28, 512, 256, 2, 2),
        _transposed("U-Net 2x2/2", 1, 112, 128, 64, 2, 2),
        _transposed("DCGAN 4x4/2", 8, 8, 512, 256, 4, 2),
        _transposed("DCGAN 4x4/2", 8, 32, 128, 3, 4, 2),
        _transposed("FCN-8s 16x16/8", 1, 28, 21, 21, 16, 8),
    ],
    "pool": [
        Layer("ResNet-50 max 3x3/2", (1, 112, 112, 64), (3, 3), 0, 2, pool="max"),
        Layer("VGG-16 max 2x2/2", (1, 112, 112, 128), (2, 2), 0, 2, pool="max"),
        Layer("VGG-16 max 2x2/2, batch 8", (8, 56, 56, 64), (2, 2), 0, 2, pool="max"),
        Layer("Inception-v3 max 3x3", (1, 35, 35, 288), (3, 3), 0, 1, pool="max"),
        Layer("max 13x13 (SPP)", (1, 14, 14, 256), (13, 13), 0, 1, pool="max"),
        Layer("max 5x5 (SPPF)", (8, 20, 20, 256), (5, 5), 0, 1, pool="max"),
        Layer("Inception-v3 avg 3x3", (1, 35, 35, 192), (3, 3), 0, 1, pool="avg"),
        Layer("DenseNet avg 2x2/2", (8, 28, 28, 128), (2, 2), 0, 2, pool="avg"),
    ],
}
