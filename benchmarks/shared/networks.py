"""Published networks with random weights, each a function of `k`, the layers of JAX or PyTorch, and of the images x."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .environment import torch_or_none
from .network_layers import LaxLayers, Layers, TorchLayers, WeightSpec, ask, draw


def mobilenet_v2(k: Layers, x: Any) -> Any:
    """Computes MobileNetV2: Sandler et al. 2018, arXiv:1801.04381."""
    x = k.relu6(k.norm(k.conv(x, k.wide(32), 3, 2)))
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, features, repeats, first in blocks:
        for index in range(repeats):
            y, strides = x, first if index == 0 else 1
            inner = expansion * k.channels(x)
            if expansion > 1:
                y = k.relu6(k.norm(k.conv(y, inner, 1)))
            y = k.relu6(k.norm(k.conv(y, inner, 3, strides, groups=inner)))
            y = k.norm(k.conv(y, k.wide(features), 1))
            x = x + y if x.shape == y.shape else y
    return k.dense(k.mean(k.relu6(k.norm(k.conv(x, k.wide(1280), 1)))), 1000)


def efficientnet_b0(k: Layers, x: Any) -> Any:
    """Computes EfficientNet-B0, inverted residuals with squeeze and excite: Tan and Le 2019, arXiv:1905.11946."""
    x = k.silu(k.norm(k.conv(x, k.wide(32), 3, 2)))
    blocks = [
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ]
    for expansion, window, features, repeats, first in blocks:
        for index in range(repeats):
            y, strides = x, first if index == 0 else 1
            inner = expansion * k.channels(x)
            if expansion > 1:
                y = k.silu(k.norm(k.conv(y, inner, 1)))
            y = k.silu(k.norm(k.conv(y, inner, window, strides, groups=inner)))
            squeezed = k.silu(k.conv(k.mean(y, keepdims=True), max(k.channels(x) // 4, 1), 1, bias=True))
            y = y * k.sigmoid(k.conv(squeezed, inner, 1, bias=True))
            y = k.norm(k.conv(y, k.wide(features), 1))
            x = x + y if x.shape == y.shape else y
    return k.dense(k.mean(k.silu(k.norm(k.conv(x, k.wide(1280), 1)))), 1000)


def convnext_tiny(k: Layers, x: Any) -> Any:
    """Computes ConvNeXt-T: Liu et al. 2022, arXiv:2201.03545."""
    x = k.layer_norm(k.conv(x, k.wide(96), 4, 4, padding=0, bias=True))
    for index, (features, repeats) in enumerate([(96, 3), (192, 3), (384, 9), (768, 3)]):
        features = k.wide(features)
        if index > 0:
            x = k.conv(k.layer_norm(x), features, 2, 2, padding=0, bias=True)
        for _ in range(repeats):
            y = k.layer_norm(k.conv(x, features, 7, groups=features, bias=True))
            x = x + k.scale(k.dense(k.gelu(k.dense(y, 4 * features)), features))
    return k.dense(k.layer_norm(k.mean(x)), 1000)


def xception(k: Layers, x: Any) -> Any:
    """Computes Xception: Chollet 2017, arXiv:1610.02357."""

    def separable(x: Any, features: int) -> Any:
        return k.norm(k.conv(k.conv(x, k.channels(x), 3, groups=k.channels(x)), k.wide(features), 1))

    x = k.relu(k.norm(k.conv(x, k.wide(32), 3, 2, padding=0)))
    x = k.relu(k.norm(k.conv(x, k.wide(64), 3, padding=0)))
    for features in (128, 256, 728):
        y = separable(x if features == 128 else k.relu(x), features)
        y = k.max_pool(separable(k.relu(y), features), 3, 2, 1)
        x = y + k.norm(k.conv(x, k.wide(features), 1, 2))
    for _ in range(8):
        y = x
        for _ in range(3):
            y = separable(k.relu(y), 728)
        x = x + y
    y = separable(k.relu(separable(k.relu(x), 728)), 1024)
    x = k.max_pool(y, 3, 2, 1) + k.norm(k.conv(x, k.wide(1024), 1, 2))
    return k.dense(k.mean(k.relu(separable(k.relu(separable(x, 1536)), 2048))), 1000)


def resnet_50(k: Layers, x: Any) -> Any:
    """Computes ResNet-50: He et al. 2016, arXiv:1512.03385, with the strides in the 3x3 convolutions."""
    x = k.max_pool(k.relu(k.norm(k.conv(x, k.wide(64), 7, 2))), 3, 2, 1)
    for features, repeats, first in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        features = k.wide(features)
        for index in range(repeats):
            strides = first if index == 0 else 1
            y = k.relu(k.norm(k.conv(x, features, 1)))
            y = k.relu(k.norm(k.conv(y, features, 3, strides)))
            y = k.norm(k.conv(y, 4 * features, 1))
            x = k.relu(y + (k.norm(k.conv(x, 4 * features, 1, strides)) if index == 0 else x))
    return k.dense(k.mean(x), 1000)


def vgg_16(k: Layers, x: Any) -> Any:
    """Computes VGG-16: Simonyan and Zisserman 2015, arXiv:1409.1556, configuration D."""
    for features, repeats in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(repeats):
            x = k.relu(k.conv(x, k.wide(features), 3, bias=True))
        x = k.max_pool(x, 2, 2)
    x = k.relu(k.dense(k.relu(k.dense(k.flatten(x), k.wide(4096))), k.wide(4096)))
    return k.dense(x, 1000)


def inception_v3(k: Layers, x: Any) -> Any:
    """Computes Inception-v3: Szegedy et al. 2016, arXiv:1512.00567, without the auxiliary classifier."""

    def conv(x: Any, features: int, window: int | tuple[int, int], strides: int = 1, padding: int | None = None) -> Any:
        return k.relu(k.norm(k.conv(x, k.wide(features), window, strides, padding=padding)))

    def pooled(x: Any, features: int) -> Any:
        return conv(k.avg_pool(x, 3, 1, 1), features, 1)

    def both(x: Any) -> Any:
        return k.concatenate([conv(x, 384, (1, 3)), conv(x, 384, (3, 1))])

    x = conv(conv(conv(x, 32, 3, 2, 0), 32, 3, 1, 0), 64, 3)
    x = conv(conv(k.max_pool(x, 3, 2), 80, 1), 192, 3, 1, 0)
    x = k.max_pool(x, 3, 2)
    for features in (32, 64, 64):
        double = conv(conv(conv(x, 64, 1), 96, 3), 96, 3)
        x = k.concatenate([conv(x, 64, 1), conv(conv(x, 48, 1), 64, 5), double, pooled(x, features)])
    double = conv(conv(conv(x, 64, 1), 96, 3), 96, 3, 2, 0)
    x = k.concatenate([conv(x, 384, 3, 2, 0), double, k.max_pool(x, 3, 2)])
    for inner in (128, 160, 160, 192):
        single = conv(conv(conv(x, inner, 1), inner, (1, 7)), 192, (7, 1))
        double = conv(conv(conv(x, inner, 1), inner, (7, 1)), inner, (1, 7))
        double = conv(conv(double, inner, (7, 1)), 192, (1, 7))
        x = k.concatenate([conv(x, 192, 1), single, double, pooled(x, 192)])
    reduced = conv(conv(x, 192, 1), 320, 3, 2, 0)
    factored = conv(conv(conv(conv(x, 192, 1), 192, (1, 7)), 192, (7, 1)), 192, 3, 2, 0)
    x = k.concatenate([reduced, factored, k.max_pool(x, 3, 2)])
    for _ in range(2):
        double = both(conv(conv(x, 448, 1), 384, 3))
        x = k.concatenate([conv(x, 320, 1), both(conv(x, 384, 1)), double, pooled(x, 192)])
    return k.dense(k.mean(x), 1000)


def u_net(k: Layers, x: Any) -> Any:
    """Computes U-Net: Ronneberger et al. 2015, arXiv:1505.04597, padded instead of cropped, for three channels."""

    def double(x: Any, features: int) -> Any:
        features = k.wide(features)
        return k.relu(k.conv(k.relu(k.conv(x, features, 3, bias=True)), features, 3, bias=True))

    skipped = []
    for features in (64, 128, 256, 512):
        skipped.append(double(x, features))
        x = k.max_pool(skipped[-1], 2, 2)
    x = double(x, 1024)
    for features in (512, 256, 128, 64):
        x = double(k.concatenate([skipped.pop(), k.conv_transpose(x, k.wide(features), 2)]), features)
    return k.conv(x, 2, 1, bias=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """Holds a published network.

    Args:
      forward: function of layers and images that computes the network.
      parameters: number of parameters as published, with the scales and offsets of norms and without their statistics.
      size: rows and columns of the images.
      width: ratio of the numbers of channels to the published ones.
    """

    forward: Callable[[Layers, Any], Any]
    parameters: int
    size: int = 224
    width: float = 1.0

    def weight_specs(self, size: int | None = None) -> list[WeightSpec]:
        """Returns the kinds and shapes of the weights, in order, for images of `size` or of the network's own size."""
        return ask(self.forward, size or self.size, self.width)

    def weights(self) -> list[jax.Array]:
        """Returns random weights for images of the network's size."""
        return list(map(jnp.asarray, draw(self.weight_specs())))

    def lax(self, role: str) -> Callable[[list[Any], Any], Any]:
        """Returns a function of weights and images in plain lax: the "forward" pass, or the "gradient" of a loss."""

        def forward(weights: list[Any], x: Any) -> Any:
            return self.forward(LaxLayers(weights, self.width), x)

        if role == "forward":
            return forward
        return jax.grad(lambda weights, x: LaxLayers(()).cross_entropy(forward(weights, x)))

    def torch(self, role: str, weights: list[Any], x: Any) -> Callable[[], Any]:
        """Returns a function without arguments that computes the network in PyTorch, in the roles of `lax`.

        The weights and the images x have the shapes of lax.
        """
        torch = torch_or_none()
        kinds = [kind for kind, _ in self.weight_specs(x.shape[1])]
        tensors = [TorchLayers.weight(kind, weight) for kind, weight in zip(kinds, weights, strict=True)]
        images = TorchLayers.images(x)

        def forward() -> Any:
            with torch.no_grad():
                return self.forward(TorchLayers(tensors, self.width), images)

        def gradient() -> Any:
            layers = TorchLayers(tensors, self.width)
            return torch.autograd.grad(layers.cross_entropy(self.forward(layers, images)), tensors)

        if role == "gradient":
            for tensor in tensors:
                tensor.requires_grad_()
        return forward if role == "forward" else gradient


NETWORKS = {
    "ConvNeXt-T": Network(convnext_tiny, 28_589_128),
    "EfficientNet-B0": Network(efficientnet_b0, 5_288_548),
    "Inception-v3": Network(inception_v3, 23_834_568, 299),
    "MobileNetV2": Network(mobilenet_v2, 3_504_872),
    "ResNet-50": Network(resnet_50, 25_557_032),
    # The published number, 31,030,658, is for images of one channel.
    "U-Net": Network(u_net, 31_030_658 + 2 * 9 * 64),
    "VGG-16": Network(vgg_16, 138_357_544),
    "Xception": Network(xception, 22_855_952, 299),
}


def _one_block(k: Layers, x: Any) -> Any:
    """Computes a small network that has a layer of most kinds."""
    x = k.relu(k.norm(k.conv(x, 4, 3, 2)))
    x = x + k.norm(k.conv(k.relu6(k.norm(k.conv(x, 4, 3, groups=4))), 4, 1))
    return k.dense(k.mean(k.max_pool(x, 2, 2)), 5)


QUICK = {"one block": Network(_one_block, 0, 16)}
"""The network that the benchmarks' tests run in place of the published networks."""
