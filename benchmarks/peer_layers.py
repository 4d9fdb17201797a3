"""Single layers by jaxcnn, in plain lax, Flax and PyTorch, and image filters by SciPy and OpenCV.

Flax's layers call lax: their column says whether anything is lost or won on the way.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn

from .timing import Program, Statistic, milliseconds, program, torch_or_none


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: a convolution, or a pool if it has no output features.

    Args:
      name: the network it is from, and which of its layers.
      x: (N, *spatial, C) of the input.
      window: taps on each spatial axis.
      features: output channels; 0 for a pool.
      strides: step on both axes.
      groups: number of groups.
      pool: "max" or "avg" for a pool.
      transposed: whether it is a transposed convolution, which makes images `strides` times as large.
    """

    name: str
    x: tuple[int, ...]
    window: tuple[int, int]
    features: int = 0
    strides: int = 1
    groups: int = 1
    pool: str = ""
    transposed: bool = False

    @property
    def pads(self) -> tuple[int, ...]:
        """Padding at both ends of each axis; none for a pool that tiles its image."""
        if self.transposed:
            return tuple((w - self.strides) // 2 for w in self.window)
        if self.pool and self.strides == self.window[0]:
            return (0,) * len(self.window)
        return tuple(w // 2 for w in self.window)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        return tuple((pad, pad) for pad in self.pads)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its shape; a transposed convolution has that of the convolution that it is the adjoint of."""
        channels = (self.features, self.x[-1]) if self.transposed else (self.x[-1] // self.groups, self.features)
        return (*self.window, *channels)

    @property
    def name_and_shape(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.x))}"


def _depthwise(name: str, n: int, size: int, channels: int, window: int, strides: int = 1) -> Layer:
    return Layer(name, (n, size, size, channels), (window, window), channels, strides, channels)


def _transposed(name: str, n: int, size: int, c_in: int, c_out: int, window: int, strides: int) -> Layer:
    return Layer(name, (n, size, size, c_in), (window, window), c_out, strides, transposed=True)


def _dense(
    name: str, n: int, size: int, c_in: int, c_out: int, window: int, strides: int = 1, groups: int = 1
) -> Layer:
    return Layer(name, (n, size, size, c_in), (window, window), c_out, strides, groups)


GROUPS: dict[str, list[Layer]] = {
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


def _draw(shape: Iterable[int], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(tuple(shape), np.float32))


def _plain_pool(x: jax.Array, layer: Layer) -> jax.Array:
    window, strides = (1, *layer.window, 1), (1, layer.strides, layer.strides, 1)
    padding = ((0, 0), *layer.padding, (0, 0))
    if layer.pool == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / math.prod(layer.window)


def _our_pool(x: jax.Array, layer: Layer) -> jax.Array:
    pool = jaxcnn.max_pool if layer.pool == "max" else jaxcnn.avg_pool
    return pool(x, layer.window, strides=layer.strides, padding=layer.padding)


def _flax_pool(x: jax.Array, layer: Layer) -> jax.Array:
    from flax import linen

    pool = linen.max_pool if layer.pool == "max" else linen.avg_pool
    return pool(x, layer.window, (layer.strides,) * 2, layer.padding)


def _our_conv(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    if layer.transposed:
        return jaxcnn.conv_transpose(x, kernel, strides=layer.strides, padding=layer.padding)
    return jaxcnn.conv(x, kernel, strides=layer.strides, padding=layer.padding, feature_group_count=layer.groups)


_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _padding_of_adjoint(layer: Layer) -> list[tuple[int, int]]:
    """What lax calls the padding of a transposed convolution: that of the image with its pixels spread out."""
    return [(w - 1 - pad, w - 1 - pad) for w, pad in zip(layer.window, layer.pads, strict=True)]


def _plain_conv(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    strides = (layer.strides,) * 2
    if layer.transposed:
        padding = _padding_of_adjoint(layer)
        return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=_NUMBERS, transpose_kernel=True)
    return lax.conv_general_dilated(
        x, kernel, strides, layer.padding, dimension_numbers=_NUMBERS, feature_group_count=layer.groups
    )


def _flax_conv(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    from flax import linen

    options = {"features": layer.features, "kernel_size": layer.window, "strides": layer.strides, "use_bias": False}
    if layer.transposed:
        module = linen.ConvTranspose(**options, padding=_padding_of_adjoint(layer), transpose_kernel=True)
    else:
        module = linen.Conv(**options, padding=layer.padding, feature_group_count=layer.groups)
    return module.apply({"params": {"kernel": kernel}}, x)


def _to_torch(x: Any, axes: tuple[int, ...]) -> Any:
    torch = torch_or_none()
    tensor = torch.from_numpy(np.array(x)).permute(axes)
    return tensor.contiguous(memory_format=torch.channels_last)


def _torch_functions(layer: Layer, x: Any, kernel: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Forward and gradient by PyTorch, channels-last."""
    torch = torch_or_none()
    functional = torch.nn.functional
    images = _to_torch(x, (0, 3, 1, 2))
    cotangent = _to_torch(y, (0, 3, 1, 2))
    if layer.pool:
        pool = functional.max_pool2d if layer.pool == "max" else functional.avg_pool2d
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()

        def forward() -> Any:
            with torch.no_grad():
                return pool(images, layer.window, layer.strides, layer.pads)

        def gradient() -> Any:
            return torch.autograd.grad(pool(leaf, layer.window, layer.strides, layer.pads), leaf, cotangent)

        return {"forward": forward, "gradient": gradient}
    weight = _to_torch(kernel, (3, 2, 0, 1))
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

    return {"forward": forward, "gradient": gradient}


def _filter_functions(x: np.ndarray, kernel: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same image filter by SciPy and OpenCV, where they are installed."""
    image, taps = x[0, :, :, 0], kernel[:, :, 0, 0]
    functions: dict[str, Callable[[], Any]] = {}
    try:
        from scipy import ndimage, signal
    except ImportError:
        pass
    else:
        functions["scipy"] = lambda: ndimage.correlate(image, taps, mode="constant")
        functions["scipy fft"] = lambda: signal.fftconvolve(image, taps[::-1, ::-1], mode="same")
    try:
        import cv2
    except ImportError:
        pass
    else:
        functions["opencv"] = lambda: cv2.filter2D(image, -1, taps, borderType=cv2.BORDER_CONSTANT)
    return functions


def _flax_installed() -> bool:
    return importlib.util.find_spec("flax") is not None


def functions(layer: Layer, role: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Program]]:
    """By library: what is timed; and the programs of jaxcnn and lax."""
    x = _draw(layer.x, 0)
    kernel = None if layer.pool else _draw(layer.kernel, 1)
    forms = {"jaxcnn": _our_pool, "lax": _plain_pool} if layer.pool else {"jaxcnn": _our_conv, "lax": _plain_conv}
    if _flax_installed():
        forms["flax"] = _flax_pool if layer.pool else _flax_conv
    operands = (x,) if layer.pool else (x, kernel)
    y = _draw(jax.eval_shape(lambda *a: forms["lax"](*a, layer), *operands).shape, 2)
    programs: dict[str, Program] = {}
    for name, function in forms.items():
        jax.clear_caches()  # equal layers of another library, or of the row before, would be found traced

        def forward(*args: Any, function: Callable = function) -> Any:
            return function(*args, layer)

        def gradient(cotangent: Any, *args: Any, forward: Callable = forward) -> Any:
            return jax.vjp(forward, *args)[1](cotangent)

        programs[name] = program(forward, *operands) if role == "forward" else program(gradient, y, *operands)
    calls = {name: each.call for name, each in programs.items()}
    if torch_or_none() is not None:
        calls["torch"] = _torch_functions(layer, x, kernel, y)[role]
    if role == "forward" and not layer.pool and layer.x[-1] == layer.features == 1:
        calls |= _filter_functions(np.asarray(x), np.asarray(kernel))
    return calls, {name: programs[name] for name in ("jaxcnn", "lax")}


def ceilings() -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second of a copy from memory, on this machine."""
    a = _draw((2048, 2048), 0)
    product = milliseconds({"product": program(lambda a: a @ a, a).call}, 2.0)["product"]
    b = jnp.zeros((64, 1 << 20))
    copy = milliseconds({"copy": program(lambda b: b + 1, b).call}, 2.0)["copy"]
    return 2 * 2048**3 / product * 1e3, 2 * b.nbytes / copy * 1e3


def _roofline_milliseconds(layer: Layer, role: str, peak: float, bandwidth: float) -> float:
    times = 1 if role == "forward" else 2
    if layer.pool:
        cost = jaxcnn.pool_cost(layer.x, layer.window, strides=layer.strides, padding=layer.padding)
    else:
        cost = jaxcnn.conv_cost(
            layer.x,
            layer.kernel,
            strides=layer.strides,
            padding=layer.padding,
            feature_group_count=layer.groups,
            transposed=layer.transposed,
        )
    return times * max(cost.flops / peak, cost.bytes / bandwidth) * 1e3


def measure(
    layer: Layer, role: str, seconds: float, peak: float, bandwidth: float, statistic: Statistic = statistics.median
) -> dict[str, Any]:
    """Milliseconds by library, memory, seconds of the first call, and the share of the machine's ceilings."""
    calls, programs = functions(layer, role)
    times = milliseconds(calls, seconds, statistic)
    roofline = _roofline_milliseconds(layer, role, peak, bandwidth) / times["jaxcnn"]
    return {
        "milliseconds": times,
        "megabytes": {name: each.megabytes for name, each in programs.items()},
        "first_seconds": {name: each.first_seconds for name, each in programs.items()},
        "roofline": roofline,
    }
