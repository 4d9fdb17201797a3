"""The layers of networks in lax, in PyTorch and in ONNX: each network is written once, over the class `Layers`.

Images are float32. They are channels-last in lax by the order of their axes, and in PyTorch by their memory format. In
ONNX the order of their axes is channels-first, and the runtime chooses the layout in memory.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import plain
from .environment import torch_or_none

WeightSpec = tuple[str, tuple[int, ...]]
"""Kind of a weight of a network, and its shape as lax takes it."""


class Layers(abc.ABC):
    """Base class of layers that take their weights from a list, in the order in which a network calls the layers.

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
        """Returns the number of channels that replaces the published number `features` at this width."""
        return max(round(features * self.width), 1)

    def take(self, kind: str, *shape: int) -> Any:
        """Returns the next weight.

        The kinds are "kernel" and "transposed" (*window, I, O), "dense" (I, O), "scale", "small scale" and "offset".
        """
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
        """Computes a convolution; the default padding keeps the size of x, but for the strides."""
        height, width = (window, window) if isinstance(window, int) else window
        pads = (height // 2, width // 2) if padding is None else (padding, padding)
        kernel = self.take("kernel", height, width, self.channels(x) // groups, features)
        return self.convolve(x, kernel, self.take("offset", features) if bias else None, strides, pads, groups)

    def conv_transpose(self, x: Any, features: int, window: int) -> Any:
        """Computes a transposed convolution whose strides are its window, with a bias."""
        kernel = self.take("transposed", window, window, self.channels(x), features)
        return self.convolve_transposed(x, kernel, self.take("offset", features), window)

    def norm(self, x: Any) -> Any:
        """Computes a batch normalisation."""
        return self.affine(x, self.take("scale", self.channels(x)), self.take("offset", self.channels(x)))

    def layer_norm(self, x: Any) -> Any:
        """Normalises over the channels of each pixel."""
        return self.normalize(x, self.take("scale", self.channels(x)), self.take("offset", self.channels(x)))

    def dense(self, x: Any, features: int) -> Any:
        """Multiplies the channels by a matrix, with a bias."""
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
        """Multiplies each channel by a small factor, as at the end of a residual branch."""

    @abc.abstractmethod
    def max_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any: ...

    @abc.abstractmethod
    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        """Returns the mean of each window, padding counted."""

    @abc.abstractmethod
    def mean(self, x: Any, keepdims: bool = False) -> Any:
        """Returns the mean of all pixels."""

    @abc.abstractmethod
    def flatten(self, x: Any) -> Any:
        """Returns the values of an image in the order of lax, by row, column and channel."""

    @abc.abstractmethod
    def concatenate(self, xs: list[Any]) -> Any:
        """Joins images along the channels."""

    @abc.abstractmethod
    def cross_entropy(self, logits: Any) -> Any:
        """Returns the loss where every image is of the first class."""


class LaxLayers(Layers):
    """Layers in plain lax and jnp."""

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
        y = plain.conv(x, kernel, strides, [(pad, pad) for pad in padding], feature_group_count=groups)
        return y if offset is None else y + offset

    def convolve_transposed(self, x: Any, kernel: Any, offset: Any, strides: int) -> Any:
        return plain.conv_transpose(x, kernel, strides, "VALID", transpose_kernel=False) + offset

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
        return plain.max_pool(x, window, strides, padding)

    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> Any:
        return plain.avg_pool(x, window, strides, padding)

    def mean(self, x: Any, keepdims: bool = False) -> Any:
        return x.mean((1, 2), keepdims=keepdims)

    def flatten(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def concatenate(self, xs: list[Any]) -> Any:
        return jnp.concatenate(xs, -1)

    def cross_entropy(self, logits: Any) -> Any:
        return -jax.nn.log_softmax(logits)[..., 0].mean()


class _WeightLister(LaxLayers):
    """Layers that list the kinds and shapes of a network's weights."""

    def __init__(self, width: float) -> None:
        super().__init__((), width)
        self.weight_specs: list[WeightSpec] = []

    def take(self, kind: str, *shape: int) -> Any:
        self.weight_specs.append((kind, shape))
        return jnp.zeros(shape)


def ask(network: Callable[[Layers, Any], Any], size: int, width: float = 1.0) -> list[WeightSpec]:
    """Returns the kinds and shapes of a network's weights in order, for images of this size, by tracing alone."""
    layers = _WeightLister(width)
    jax.eval_shape(lambda x: network(layers, x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return layers.weight_specs


_SPREADS: dict[str, Callable[[tuple[int, ...]], tuple[float, float]]] = {
    # Depthwise kernels often have no activation after them: with a factor of 2 the values of Xception would grow.
    "kernel": lambda shape: (0.0, ((1 if shape[-2] == 1 else 2) / np.prod(shape[:-1])) ** 0.5),
    "transposed": lambda shape: (0.0, (2 / shape[-2]) ** 0.5),
    "dense": lambda shape: (0.0, (2 / shape[0]) ** 0.5),
    "scale": lambda shape: (0.8, 0.1),
    "small scale": lambda shape: (0.1, 0.02),
    "offset": lambda shape: (0.0, 0.1),
}
"""Mean and standard deviation of the weights, by kind, with which values neither vanish nor grow with the depth."""


def draw(weight_specs: list[WeightSpec]) -> list[np.ndarray]:
    """Returns random weights of these kinds and shapes, the same in every call."""
    weights = []
    for index, (kind, shape) in enumerate(weight_specs):
        mean, deviation = _SPREADS[kind](shape)
        normal = np.random.default_rng(index).standard_normal(shape, np.float32)
        weights.append(normal * np.float32(deviation) + np.float32(mean))
    return weights


@functools.cache
def _statistics(channels: int) -> tuple[Any, Any]:
    """Returns a mean of 0 and a variance of 1 for each channel."""
    torch = torch_or_none()
    return torch.zeros(channels), torch.ones(channels)


class TorchLayers(Layers):
    """Layers of PyTorch."""

    def __init__(self, weights: Iterable[Any], width: float = 1.0) -> None:
        super().__init__(weights, width)
        self.torch = torch_or_none()
        self.functional = self.torch.nn.functional
        for name in ("relu", "relu6", "silu", "sigmoid", "gelu"):
            setattr(self, name, getattr(self.functional, name))

    @staticmethod
    def images(x: Any) -> Any:
        """Returns images (N, H, W, C) as a tensor."""
        torch = torch_or_none()
        return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def weight(kind: str, weight: np.ndarray) -> Any:
        """Returns a weight of lax's shape as the tensor that PyTorch's layers take."""
        torch = torch_or_none()
        if kind == "dense":
            return torch.from_numpy(np.ascontiguousarray(weight.T))
        if kind == "transposed":  # PyTorch scatters the kernel, lax slides the reversed one over the image
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
        # A batch norm with a mean of 0 and a variance of 1 is one pass; a product and a sum would be two.
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


@dataclasses.dataclass(frozen=True)
class OnnxTensor:
    """Holds a value of an ONNX graph.

    Args:
      graph: layers that compute the value.
      name: name of the value in the graph.
      shape: shape (N, C) or (N, C, H, W), in this order for channels-last images too.
      channels_last: flag, True for an image whose axes in the graph are (N, H, W, C).
    """

    graph: OnnxLayers
    name: str
    shape: tuple[int, ...]
    channels_last: bool = False

    def __add__(self, other: OnnxTensor) -> OnnxTensor:
        return self.graph.combine("Add", self, other)

    def __mul__(self, other: OnnxTensor) -> OnnxTensor:
        return self.graph.combine("Mul", self, other)


class OnnxLayers(Layers):
    """Layers as nodes of an ONNX graph, which `model` puts together.

    Weights have lax's shapes. Images are channels-first. A norm or a product over the channels makes them
    channels-last until a layer needs the other order, which saves two transpositions around each such layer.
    """

    OPSET = 20

    def __init__(self, weights: Iterable[np.ndarray], width: float = 1.0) -> None:
        super().__init__(weights, width)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def images(self, shape: tuple[int, int, int, int]) -> OnnxTensor:
        """Returns the argument of the graph, images (N, C, H, W)."""
        return OnnxTensor(self, "images", shape)

    def model(self, x: OnnxTensor, result: OnnxTensor) -> Any:
        """Returns the graph from images x to a result as an ONNX model; both are channels-first."""
        import onnx
        from onnx import helper

        result = self._channels_first(result)
        ends = [
            helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, tensor.shape) for tensor in (x, result)
        ]
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], self.constants)
        opset = helper.make_opsetid("", self.OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

    def constant(self, array: Any) -> str:
        """Returns the name of a new constant."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(
        self, operation: str, inputs: Sequence[str], shape: Sequence[int], channels_last: bool = False, **options: Any
    ) -> OnnxTensor:
        """Returns the result of a new node."""
        from onnx import helper

        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **options))
        return OnnxTensor(self, name, tuple(shape), channels_last)

    def _channels_first(self, x: OnnxTensor) -> OnnxTensor:
        """Returns x with channels-first axes, by a new node if necessary."""
        return self.node("Transpose", [x.name], x.shape, perm=[0, 3, 1, 2]) if x.channels_last else x

    def _channels_last(self, x: OnnxTensor) -> OnnxTensor:
        """Returns x with channels-last axes, by a new node if necessary."""
        if x.channels_last or len(x.shape) == 2:
            return x
        return self.node("Transpose", [x.name], x.shape, True, perm=[0, 2, 3, 1])

    def _same_shape_node(self, operation: str, x: OnnxTensor, *others: str, **options: Any) -> OnnxTensor:
        """Returns the result of a new node that keeps the shape of x and the order of its axes."""
        return self.node(operation, [x.name, *others], x.shape, x.channels_last, **options)

    def combine(self, operation: str, x: OnnxTensor, y: OnnxTensor) -> OnnxTensor:
        """Returns the sum or product of two values, one of which may have a single pixel."""
        if x.channels_last != y.channels_last:
            x, y = self._channels_first(x), self._channels_first(y)
        shape = tuple(map(max, x.shape, y.shape))
        return self.node(operation, [x.name, y.name], shape, x.channels_last)

    def relu(self, x: OnnxTensor) -> OnnxTensor:
        return self._same_shape_node("Relu", x)

    def relu6(self, x: OnnxTensor) -> OnnxTensor:
        return self._same_shape_node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def silu(self, x: OnnxTensor) -> OnnxTensor:
        return x * self.sigmoid(x)

    def sigmoid(self, x: OnnxTensor) -> OnnxTensor:
        return self._same_shape_node("Sigmoid", x)

    def gelu(self, x: OnnxTensor) -> OnnxTensor:
        return self._same_shape_node("Gelu", x)

    def channels(self, x: OnnxTensor) -> int:
        return x.shape[1]

    def convolve(
        self, x: Any, kernel: Any, offset: Any | None, strides: int, padding: tuple[int, int], groups: int
    ) -> OnnxTensor:
        x = self._channels_first(x)
        window = kernel.shape[:2]
        sizes = [(n + 2 * pad - w) // strides + 1 for n, pad, w in zip(x.shape[2:], padding, window, strict=True)]
        constants = [kernel.transpose(3, 2, 0, 1)] if offset is None else [kernel.transpose(3, 2, 0, 1), offset]
        return self.node(
            "Conv",
            [x.name, *map(self.constant, constants)],
            (x.shape[0], kernel.shape[3], *sizes),
            kernel_shape=window,
            strides=(strides, strides),
            pads=(*padding, *padding),
            group=groups,
        )

    def convolve_transposed(self, x: Any, kernel: Any, offset: Any, strides: int) -> OnnxTensor:
        x = self._channels_first(x)
        # ONNX scatters with the kernel like PyTorch; lax slides the reversed kernel over the spread image.
        constants = [kernel[::-1, ::-1].transpose(2, 3, 0, 1), offset]
        sizes = [(n - 1) * strides + w for n, w in zip(x.shape[2:], kernel.shape[:2], strict=True)]
        return self.node(
            "ConvTranspose",
            [x.name, *map(self.constant, constants)],
            (x.shape[0], kernel.shape[3], *sizes),
            kernel_shape=kernel.shape[:2],
            strides=(strides, strides),
        )

    def affine(self, x: Any, scale: Any, offset: Any) -> OnnxTensor:
        constants = [scale, offset, np.zeros_like(scale), np.ones_like(scale)]
        return self._same_shape_node(
            "BatchNormalization", self._channels_first(x), *map(self.constant, constants), epsilon=0.0
        )

    def normalize(self, x: Any, scale: Any, offset: Any) -> OnnxTensor:
        constants = map(self.constant, (scale, offset))
        return self._same_shape_node("LayerNormalization", self._channels_last(x), *constants, axis=-1, epsilon=1e-6)

    def multiply(self, x: Any, matrix: Any, offset: Any) -> OnnxTensor:
        x = self._channels_last(x)
        shape = (x.shape[0], matrix.shape[1], *x.shape[2:])
        product = self.node("MatMul", [x.name, self.constant(matrix)], shape, x.channels_last)
        return self._same_shape_node("Add", product, self.constant(offset))

    def scale(self, x: Any) -> OnnxTensor:
        factor = self.take("small scale", self.channels(x))
        return self._same_shape_node("Mul", x, self.constant(factor if x.channels_last else factor[:, None, None]))

    def _pool(self, operation: str, x: Any, window: int, strides: int, padding: int, **options: Any) -> OnnxTensor:
        x = self._channels_first(x)
        sizes = [(n + 2 * padding - window) // strides + 1 for n in x.shape[2:]]
        options |= {"kernel_shape": (window,) * 2, "strides": (strides,) * 2, "pads": (padding,) * 4}
        return self.node(operation, [x.name], (*x.shape[:2], *sizes), **options)

    def max_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> OnnxTensor:
        return self._pool("MaxPool", x, window, strides, padding)

    def avg_pool(self, x: Any, window: int, strides: int, padding: int = 0) -> OnnxTensor:
        return self._pool("AveragePool", x, window, strides, padding, count_include_pad=1)

    def mean(self, x: Any, keepdims: bool = False) -> OnnxTensor:
        x = self._channels_first(x)
        mean = self.node("GlobalAveragePool", [x.name], (*x.shape[:2], 1, 1))
        return mean if keepdims else self.node("Flatten", [mean.name], x.shape[:2], axis=1)

    def flatten(self, x: Any) -> OnnxTensor:
        x = self._channels_last(x)
        return self.node("Flatten", [x.name], (x.shape[0], math.prod(x.shape[1:])), axis=1)

    def concatenate(self, xs: list[Any]) -> OnnxTensor:
        xs = [self._channels_first(x) for x in xs]
        n, _, *sizes = xs[0].shape
        return self.node("Concat", [x.name for x in xs], (n, sum(x.shape[1] for x in xs), *sizes), axis=1)

    def cross_entropy(self, logits: Any) -> Any:
        raise NotImplementedError("an ONNX graph here is a forward pass")


_IR_VERSION = 10
"""Version of the file format: high enough for `OnnxLayers.OPSET`, and low enough for older runtimes."""
