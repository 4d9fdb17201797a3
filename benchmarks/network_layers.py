"""The layers that networks are made of, in lax and in PyTorch: a network is written once, over these.

Images are float32 and channels-last: in lax by their axes, in PyTorch by their memory format.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .timing import torch_or_none

Asked = tuple[str, tuple[int, ...]]
"""What a network asks for: the kind of weight, and its shape as lax takes it."""


class Layers(abc.ABC):
    """Layers that take their weights from a list, in the order in which a network calls them.

    Norms are in inference form, a scale and an offset: the statistics of a trained network are constants, which fold
    into the two. Convolutions and pools pad both ends alike, as the published networks do in PyTorch.
    """

    relu: Callable[[Any], Any]
    relu6: Callable[[Any], Any]
    silu: Callable[[Any], Any]
    sigmoid: Callable[[Any], Any]
    gelu: Callable[[Any], Any]

    def __init__(self, weights: Iterable[Any], width: float = 1.0) -> None:
        self.weights: Iterator[Any] = iter(weights)
        self.width = width

    def wide(self, features: int) -> int:
        """Returns as many channels as a network of this width has where the published one has `features`."""
        return max(round(features * self.width), 1)

    def take(self, kind: str, *shape: int) -> Any:
        """The next weight: a "kernel" or "transposed" kernel (*window, I, O), "dense" (I, O), "scale" or "offset"."""
        del kind, shape
        return next(self.weights)

    def conv(
        self,
        x: Any,
        features: int,
        window: int | tuple[int, int],
        strides: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> Any:
        """A convolution; without `padding` one that keeps the size of x, but for the strides."""
        height, width = (window, window) if isinstance(window, int) else window
        pads = (height // 2, width // 2) if padding is None else (padding, padding)
        kernel = self.take("kernel", height, width, self.channels(x) // groups, features)
        return self.convolve(x, kernel, self.take("offset", features) if bias else None, strides, pads, groups)

    def conv_transpose(self, x: Any, features: int, window: int) -> Any:
        """A transposed convolution whose strides are its window, with a bias."""
        kernel = self.take("transposed", window, window, self.channels(x), features)
        return self.convolve_transposed(x, kernel, self.take("offset", features), window)

    def norm(self, x: Any) -> Any:
        """Batch normalisation."""
        return self.affine(x, self.take("scale", self.channels(x)), self.take("offset", self.channels(x)))

    def layer_norm(self, x: Any) -> Any:
        """Normalisation over the channels of each pixel."""
        return self.normalize(x, self.take("scale", self.channels(x)), self.take("offset", self.channels(x)))

    def dense(self, x: Any, features: int) -> Any:
        """A matrix over the channels, with a bias."""
        return self.multiply(x, self.take("dense", self.channels(x), features), self.take("offset", features))

    @abc.abstractmethod
    def channels(self, x: Any) -> int: ...

    @abc.abstractmethod
    def convolve(
        self, x: Any, kernel: Any, offset: Any | None, strides: int, padding: tuple[int, int], groups: int
    ) -> Any: ...

    @abc.abstractmethod
    def convolve_transposed(self, x: Any, kernel: Any, offset: Any, strides: int) -> Any: ...

    @abc.abstractmethod
    def affine(self, x: Any, scale: Any, offset: Any) -> Any: ...

    @abc.abstractmethod
    def normalize(self, x: Any, scale: Any, offset: Any) -> Any: ...

    @abc.abstractmethod
    def multiply(self, x: Any, matrix: Any, offset: Any) -> Any: ...

    @abc.abstractmethod
    def scale(self, x: Any) -> Any:
        """A factor for each channel, small: it stands at the end of a residual branch."""

    @abc.abstractmethod
    def max_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any: ...

    @abc.abstractmethod
    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        """The mean of each window, padding counted."""

    @abc.abstractmethod
    def mean(self, x: Any, keepdims: bool = False) -> Any:
        """The mean of all pixels."""

    @abc.abstractmethod
    def flatten(self, x: Any) -> Any:
        """The values of an image in the order of lax, by row, column and channel."""

    @abc.abstractmethod
    def concatenate(self, xs: list[Any]) -> Any:
        """Along the channels."""

    @abc.abstractmethod
    def cross_entropy(self, logits: Any) -> Any:
        """A loss: everything is of the first class."""


class LaxLayers(Layers):
    """In plain lax and jnp."""

    relu = staticmethod(jax.nn.relu)
    relu6 = staticmethod(jax.nn.relu6)
    silu = staticmethod(jax.nn.silu)
    sigmoid = staticmethod(jax.nn.sigmoid)

    def gelu(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    def channels(self, x: Any) -> int:
        return x.shape[-1]

    def convolve(
        self, x: Any, kernel: Any, offset: Any | None, strides: int, padding: tuple[int, int], groups: int
    ) -> Any:
        y = lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            [(pad, pad) for pad in padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return y if offset is None else y + offset

    def convolve_transposed(self, x: Any, kernel: Any, offset: Any, strides: int) -> Any:
        return (
            lax.conv_transpose(x, kernel, (strides, strides), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            + offset
        )

    def affine(self, x: Any, scale: Any, offset: Any) -> Any:
        return x * scale + offset

    def normalize(self, x: Any, scale: Any, offset: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + offset

    def multiply(self, x: Any, matrix: Any, offset: Any) -> Any:
        return x @ matrix + offset

    def scale(self, x: Any) -> Any:
        return x * self.take("small scale", self.channels(x))

    def max_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        return self._reduce(x, -jnp.inf, lax.max, window, strides, padding)

    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        return self._reduce(x, 0.0, lax.add, window, strides, padding) / window**2

    def _reduce(self, x: Any, identity: float, operation: Any, window: int, strides: int, padding: int) -> Any:
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        return lax.reduce_window(x, identity, operation, (1, window, window, 1), (1, strides, strides, 1), pads)

    def mean(self, x: Any, keepdims: bool = False) -> Any:
        return x.mean((1, 2), keepdims=keepdims)

    def flatten(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def concatenate(self, xs: list[Any]) -> Any:
        return jnp.concatenate(xs, -1)

    def cross_entropy(self, logits: Any) -> Any:
        return -jax.nn.log_softmax(logits)[..., 0].mean()


class _Asking(LaxLayers):
    """Writes down what a network asks for."""

    def __init__(self, width: float) -> None:
        super().__init__((), width)
        self.asked: list[Asked] = []

    def take(self, kind: str, *shape: int) -> Any:
        self.asked.append((kind, shape))
        return jnp.zeros(shape)


def ask(network: Callable[[Layers, Any], Any], size: int, width: float = 1.0) -> list[Asked]:
    """Returns the weights of a network for images of this size, in order; nothing is computed."""
    layers = _Asking(width)
    jax.eval_shape(lambda x: network(layers, x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return layers.asked


_SPREADS: dict[str, Callable[[tuple[int, ...]], tuple[float, float]]] = {
    # With 2 for depthwise kernels too, which often have no activation after them, Xception's values grow to 400.
    "kernel": lambda shape: (0.0, ((1 if shape[-2] == 1 else 2) / np.prod(shape[:-1])) ** 0.5),
    "transposed": lambda shape: (0.0, (2 / shape[-2]) ** 0.5),
    "dense": lambda shape: (0.0, (2 / shape[0]) ** 0.5),
    "scale": lambda shape: (0.8, 0.1),
    "small scale": lambda shape: (0.1, 0.02),
    "offset": lambda shape: (0.0, 0.1),
}
"""Mean and standard deviation of the weights of each kind: values neither vanish nor grow, whatever the depth."""


def draw(asked: list[Asked]) -> list[np.ndarray]:
    """Random weights of these kinds and shapes, always the same ones."""
    weights = []
    for index, (kind, shape) in enumerate(asked):
        mean, deviation = _SPREADS[kind](shape)
        normal = np.random.default_rng(index).standard_normal(shape, np.float32)
        weights.append(normal * np.float32(deviation) + np.float32(mean))
    return weights


@functools.cache
def _statistics(channels: int) -> tuple[Any, Any]:
    torch = torch_or_none()
    return torch.zeros(channels), torch.ones(channels)


class TorchLayers(Layers):
    """In PyTorch's own layers."""

    def __init__(self, weights: Iterable[Any], width: float = 1.0) -> None:
        super().__init__(weights, width)
        self.torch = torch_or_none()
        self.functional = self.torch.nn.functional
        for name in ("relu", "relu6", "silu", "sigmoid", "gelu"):
            setattr(self, name, getattr(self.functional, name))

    @staticmethod
    def images(x: Any) -> Any:
        """Images (N, H, W, C) as a tensor."""
        torch = torch_or_none()
        return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def weight(kind: str, weight: np.ndarray) -> Any:
        """A weight of lax's shape as the tensor that PyTorch's layers take."""
        torch = torch_or_none()
        if kind == "dense":
            return torch.from_numpy(np.ascontiguousarray(weight.T))
        if kind == "transposed":  # lax runs the kernel over the spread image; PyTorch scatters, which turns it round
            kernel = torch.from_numpy(np.ascontiguousarray(weight[::-1, ::-1])).permute(2, 3, 0, 1)
        elif kind == "kernel":
            kernel = torch.from_numpy(weight).permute(3, 2, 0, 1)
        else:
            return torch.from_numpy(weight)
        return kernel.contiguous(memory_format=torch.channels_last)

    def channels(self, x: Any) -> int:
        return x.shape[1]

    def convolve(
        self, x: Any, kernel: Any, offset: Any | None, strides: int, padding: tuple[int, int], groups: int
    ) -> Any:
        return self.functional.conv2d(x, kernel, offset, strides, padding, groups=groups)

    def convolve_transposed(self, x: Any, kernel: Any, offset: Any, strides: int) -> Any:
        return self.functional.conv_transpose2d(x, kernel, offset, strides)

    def affine(self, x: Any, scale: Any, offset: Any) -> Any:
        # Its own layer, with a mean of 0 and a variance of 1: one pass, where a product and a sum would be two.
        return self.functional.batch_norm(x, *_statistics(len(scale)), scale, offset, eps=0.0)

    def normalize(self, x: Any, scale: Any, offset: Any) -> Any:
        x = self.functional.layer_norm(x.movedim(1, -1), scale.shape, scale, offset, 1e-6)
        return x.movedim(-1, 1)

    def multiply(self, x: Any, matrix: Any, offset: Any) -> Any:
        return self.functional.linear(x.movedim(1, -1), matrix, offset).movedim(-1, 1)

    def scale(self, x: Any) -> Any:
        return x * self.take("small scale", self.channels(x))[:, None, None]

    def max_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        return self.functional.max_pool2d(x, window, strides, padding)

    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        return self.functional.avg_pool2d(x, window, strides, padding)

    def mean(self, x: Any, keepdims: bool = False) -> Any:
        return x.mean((2, 3), keepdim=keepdims)

    def flatten(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1)

    def concatenate(self, xs: list[Any]) -> Any:
        return self.torch.cat(xs, 1)

    def cross_entropy(self, logits: Any) -> Any:
        first = self.torch.zeros_like(logits[:, 0], dtype=self.torch.long)
        return self.functional.cross_entropy(logits, first)
