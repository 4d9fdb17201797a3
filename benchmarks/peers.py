"""jaxcnn beside plain lax and PyTorch (and SciPy and OpenCV for image filters), layer by layer: `make peers`.

One process; each library's calls run in blocks that alternate, since thread pools that take turns call by call slow
each other down. Every figure is the median of the blocks' best calls; ratios are to the same layer in the other
library. What is not installed is left out. The last column is the share of the machine's own ceilings, measured at the
start: the larger of operations over its matrix product's rate and bytes over its copying rate, divided by the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn


@functools.cache
def _torch() -> Any:
    """PyTorch, or None where it is not installed; imported when first needed, since asv imports this file too."""
    try:
        import torch
    except ImportError:
        return None
    return torch


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
    """

    name: str
    x: tuple[int, ...]
    window: tuple[int, int]
    features: int = 0
    strides: int = 1
    groups: int = 1
    pool: str = ""

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        return tuple((w // 2, w // 2) for w in self.window)

    @property
    def kernel(self) -> tuple[int, ...]:
        return (*self.window, self.x[-1] // self.groups, self.features)


def _depthwise(name: str, n: int, size: int, channels: int, window: int, strides: int = 1) -> Layer:
    return Layer(name, (n, size, size, channels), (window, window), channels, strides, channels)


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


def median_milliseconds(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median over alternating blocks of the best of a few calls, for each function."""
    once = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        once[name] = time.perf_counter() - start
    rounds = int(np.clip(seconds / (4 * sum(once.values()) + 1e-9), 3, 15))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            best = math.inf
            for _ in range(3):
                start = time.perf_counter()
                function()
                best = min(best, time.perf_counter() - start)
            times[name].append(best * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _jitted(function: Callable, *args: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    return lambda: jax.block_until_ready(compiled(*args))


def _draw(shape: Iterable[int], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(tuple(shape), np.float32))


def _plain_pool(x: jax.Array, layer: Layer) -> jax.Array:
    window, strides = (1, *layer.window, 1), (1, layer.strides, layer.strides, 1)
    padding = ((0, 0), *layer.padding, (0, 0)) if layer.strides != layer.window[0] else "VALID"
    if layer.pool == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / math.prod(layer.window)


def _our_pool(x: jax.Array, layer: Layer) -> jax.Array:
    pool = jaxcnn.max_pool if layer.pool == "max" else jaxcnn.avg_pool
    padding = layer.padding if layer.strides != layer.window[0] else "VALID"
    return pool(x, layer.window, strides=layer.strides, padding=padding)


def _our_conv(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    return jaxcnn.conv(x, kernel, strides=layer.strides, padding=layer.padding, feature_group_count=layer.groups)


def _plain_conv(x: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (layer.strides,) * 2,
        layer.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=layer.groups,
    )


def _to_torch(x: Any, axes: tuple[int, ...]) -> Any:
    torch = _torch()
    tensor = torch.from_numpy(np.array(x)).permute(axes)
    return tensor.contiguous(memory_format=torch.channels_last)


def _torch_functions(layer: Layer, x: Any, kernel: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Forward and gradient by PyTorch, channels-last."""
    torch = _torch()
    functional = torch.nn.functional
    images = _to_torch(x, (0, 3, 1, 2))
    cotangent = _to_torch(y, (0, 3, 1, 2))
    if layer.pool:
        padding = tuple(low for low, _ in layer.padding) if layer.strides != layer.window[0] else 0
        pool = functional.max_pool2d if layer.pool == "max" else functional.avg_pool2d
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()

        def forward() -> Any:
            with torch.no_grad():
                return pool(images, layer.window, layer.strides, padding)

        def gradient() -> Any:
            return torch.autograd.grad(pool(leaf, layer.window, layer.strides, padding), leaf, cotangent)

        return {"forward": forward, "gradient": gradient}
    weight = _to_torch(kernel, (3, 2, 0, 1))
    padding = tuple(low for low, _ in layer.padding)
    options = {"stride": layer.strides, "padding": padding, "groups": layer.groups}

    def forward() -> Any:
        with torch.no_grad():
            return functional.conv2d(images, weight, **options)

    def gradient() -> Any:
        return torch.ops.aten.convolution_backward(
            cotangent,
            images,
            weight,
            None,
            [layer.strides] * 2,
            list(padding),
            [1, 1],
            False,
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


def _functions(layer: Layer, role: str) -> dict[str, Callable[[], Any]]:
    x = _draw(layer.x, 0)
    kernel = None if layer.pool else _draw(layer.kernel, 1)
    ours, plain = (_our_pool, _plain_pool) if layer.pool else (_our_conv, _plain_conv)
    operands = (x,) if layer.pool else (x, kernel)
    y = _draw(jax.eval_shape(lambda *a: ours(*a, layer), *operands).shape, 2)
    functions = {}
    for name, function in (("jaxcnn", ours), ("lax", plain)):

        def forward(*args: Any, function: Callable = function) -> Any:
            return function(*args, layer)

        def gradient(cotangent: Any, *args: Any, forward: Callable = forward) -> Any:
            return jax.vjp(forward, *args)[1](cotangent)

        if role == "forward":
            functions[name] = _jitted(forward, *operands)
        else:
            functions[name] = _jitted(gradient, y, *operands)
    if _torch() is not None:
        functions["torch"] = _torch_functions(layer, x, kernel, y)[role]
    if role == "forward" and not layer.pool and layer.x[-1] == layer.features == 1:
        functions |= _filter_functions(np.asarray(x), np.asarray(kernel))
    return functions


def ceilings() -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second of a copy from memory, on this machine."""
    a = _draw((2048, 2048), 0)
    product = median_milliseconds({"product": _jitted(lambda a: a @ a, a)}, 2.0)["product"]
    b = jnp.zeros((64, 1 << 20))
    copy = median_milliseconds({"copy": _jitted(lambda b: b + 1, b)}, 2.0)["copy"]
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
        )
    return times * max(cost.flops / peak, cost.bytes / bandwidth) * 1e3


def measure(groups: Iterable[str], roles: Iterable[str], seconds: float) -> list[dict[str, Any]]:
    """One record for each layer and role: its group, name, milliseconds by library and share of the ceiling."""
    from rich.console import Console
    from rich.progress import track

    peak, bandwidth = ceilings()
    work = [(group, layer, role) for group in groups for layer in GROUPS[group] for role in roles]
    records = []
    for group, layer, role in track(work, "Measuring", console=Console(stderr=True)):
        if group == "filter" and role == "gradient":
            continue
        times = median_milliseconds(_functions(layer, role), seconds)
        records.append(
            {
                "group": group,
                "role": role,
                "layer": f"{layer.name} {'x'.join(map(str, layer.x))}",
                "milliseconds": times,
                "roofline": _roofline_milliseconds(layer, role, peak, bandwidth) / times["jaxcnn"],
            }
        )
    return records


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


def report(records: list[dict[str, Any]], console: Any) -> None:
    """Prints a table for each group and role, with the geometric means of the ratios."""
    from rich.table import Table

    for group, role in dict.fromkeys((record["group"], record["role"]) for record in records):
        rows = [record for record in records if (record["group"], record["role"]) == (group, role)]
        peers = list(dict.fromkeys(name for row in rows for name in row["milliseconds"] if name != "jaxcnn"))
        table = Table(title=f"{group}, {role}", title_justify="left")
        table.add_column("layer")
        for name in ("jaxcnn ms", *(f"{peer} ms" for peer in peers), *(f"/ {peer}" for peer in peers), "roofline"):
            table.add_column(name, justify="right")
        for row in rows:
            own = row["milliseconds"]["jaxcnn"]
            table.add_row(
                row["layer"],
                f"{own:.3f}",
                *(f"{row['milliseconds'][peer]:.3f}" for peer in peers),
                *(f"{own / row['milliseconds'][peer]:.2f}" for peer in peers),
                f"{row['roofline']:.0%}",
            )
        means = (
            geometric_mean(row["milliseconds"]["jaxcnn"] / row["milliseconds"][peer] for row in rows) for peer in peers
        )
        table.add_section()
        table.add_row("geometric mean", *("" for _ in (0, *peers)), *(f"{mean:.2f}" for mean in means), "")
        console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", action="append", choices=list(GROUPS), help="only this group; may be repeated")
    parser.add_argument("--role", action="append", choices=["forward", "gradient"], help="only this direction")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each layer and direction")
    parser.add_argument("--json", help="also write the records to this file")
    options = parser.parse_args(arguments)
    records = measure(options.group or GROUPS, options.role or ("forward", "gradient"), options.seconds)
    console = Console(width=max(Console().width, 120))
    console.print(f"jax {jax.__version__}, {'torch ' + _torch().__version__ if _torch() else 'no torch'}")
    report(records, console)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
