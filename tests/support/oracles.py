"""The results that every function should give, written as plain loops in NumPy over positions in the image.

Arrays are (N, *spatial, C), kernels (*window, C_in / groups, C_out), options one value for each spatial axis, padding
one (low, high) pair for each. A window's tap t of output o reads position o * stride - low + t * dilation; a position
outside the image is padding. Nothing here uses JAX or jaxcnn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Ints = Sequence[int]
Pairs = Sequence[tuple[int, int]]


def extent(taps: int, dilation: int) -> int:
    """Pixels that a dilated window spans."""
    return (taps - 1) * dilation + 1


def explicit_padding(padding: Any, sizes: Ints, window: Ints, strides: Ints, dilation: Ints) -> list[tuple[int, int]]:
    """(low, high) for each axis; `sizes` after input dilation."""
    pairs = []
    for axis, size in enumerate(sizes):
        span = extent(window[axis], dilation[axis])
        name = padding.upper() if isinstance(padding, str) else None
        if name in ("SAME", "SAME_LOWER"):
            outputs = math.ceil(size / strides[axis])
            total = max((outputs - 1) * strides[axis] + span - size, 0)
            few, many = total // 2, total - total // 2
            pairs.append((few, many) if name == "SAME" else (many, few))
        elif name == "VALID":
            pairs.append((0, 0))
        elif name == "CAUSAL":
            pairs.append((span - 1, 0))
        elif isinstance(padding, int):
            pairs.append((padding, padding))
        elif isinstance(padding[axis], int):
            pairs.append((padding[axis], padding[axis]))
        else:
            pairs.append(tuple(padding[axis]))
    return pairs


def _floor_outputs(size: int, pair: tuple[int, int], span: int, stride: int) -> int:
    return (size + sum(pair) - span) // stride + 1


def _taps(output: Ints, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> Iterator[tuple[Any, Any]]:
    """Each tap of a window and the position that it reads."""
    for tap in np.ndindex(*window):
        yield (
            tap,
            tuple(o * s - p[0] + t * d for o, t, s, p, d in zip(output, tap, strides, padding, dilation, strict=True)),
        )


def _group(group: int, size: int) -> slice:
    """The channels of a group."""
    return slice(group * size, (group + 1) * size)


def _source(position: int, size: int, mode: str) -> int | None:
    """The pixel whose value stands at a position, on the image or on its padding."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    if size == 1:
        return 0
    position %= 2 * (size - 1)  # reflect: there and back, the ends once
    return position if position < size else 2 * (size - 1) - position


def dilated(x: np.ndarray, dilation: Ints) -> np.ndarray:
    """x with zeros between its pixels."""
    sizes = [extent(size, d) for size, d in zip(x.shape[1:-1], dilation, strict=True)]
    result = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
    for at in np.ndindex(*x.shape[1:-1]):
        result[(slice(None), *(i * d for i, d in zip(at, dilation, strict=True)))] = x[(slice(None), *at)]
    return result


def conv(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Ints,
    padding: Any,
    padding_mode: str = "zeros",
    input_dilation: Ints,
    kernel_dilation: Ints,
    groups: int = 1,
) -> np.ndarray:
    """Convolution, accumulated in the dtype of the operands."""
    x = dilated(x, input_dilation)
    *window, kernel_in, features = kernel.shape
    sizes = x.shape[1:-1]
    pairs = explicit_padding(padding, sizes, window, strides, kernel_dilation)
    spans = [extent(taps, d) for taps, d in zip(window, kernel_dilation, strict=True)]
    outputs = [_floor_outputs(*all_) for all_ in zip(sizes, pairs, spans, strides, strict=True)]
    result = np.zeros((x.shape[0], *outputs, features), np.result_type(x, kernel))
    for output in np.ndindex(*outputs):
        for tap, position in _taps(output, window, strides, pairs, kernel_dilation):
            source = [_source(p, size, padding_mode) for p, size in zip(position, sizes, strict=True)]
            if None in source:
                continue
            for group in range(groups):
                inputs, channels = _group(group, kernel_in), _group(group, features // groups)
                pixel = x[(slice(None), *source, inputs)]
                result[(slice(None), *output, channels)] += pixel @ kernel[(*tap, slice(None), channels)]
    return result


def conv_transpose(
    y: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: Ints,
    padding: Any,
    output_padding: Ints,
    kernel_dilation: Ints,
    groups: int = 1,
) -> np.ndarray:
    """Transposed convolution: each pixel of y adds the kernel, times its value, to the result."""
    *window, kernel_in, features = kernel.shape
    pixels = y.shape[1:-1]
    spans = [extent(taps, d) for taps, d in zip(window, kernel_dilation, strict=True)]
    if isinstance(padding, str) and padding.upper().startswith("SAME"):
        sizes = [pixel * s for pixel, s in zip(pixels, strides, strict=True)]
        pairs = explicit_padding(padding, sizes, window, strides, kernel_dilation)
    else:
        pairs = explicit_padding(padding, pixels, window, strides, kernel_dilation)
        sizes = [
            (pixel - 1) * s + span - sum(pair) + extra
            for pixel, s, span, pair, extra in zip(pixels, strides, spans, pairs, output_padding, strict=True)
        ]
    result = np.zeros((y.shape[0], *sizes, kernel_in * groups), np.result_type(y, kernel))
    for pixel in np.ndindex(*pixels):
        for tap, position in _taps(pixel, window, strides, pairs, kernel_dilation):
            if not all(0 <= p < size for p, size in zip(position, sizes, strict=True)):
                continue
            for group in range(groups):
                inputs, channels = _group(group, kernel_in), _group(group, features // groups)
                value = y[(slice(None), *pixel, channels)]
                result[(slice(None), *position, inputs)] += value @ kernel[(*tap, slice(None), channels)].T
    return result


def pool_outputs(sizes: Ints, pairs: Pairs, spans: Ints, strides: Ints, ceil_mode: bool) -> list[int]:
    """Windows on each axis, found by placing one after the other."""
    outputs = []
    for size, (low, high), span, stride in zip(sizes, pairs, spans, strides, strict=True):
        count, start = 0, -low
        end = size + high  # past the last padded pixel; cropped pixels do not exist
        while start + span <= end or (ceil_mode and start < min(size, end) and start - stride + span < end):
            count, start = count + 1, start + stride
        outputs.append(count)
    return outputs


def windows(
    sizes: Ints, window: Ints, strides: Ints, padding: Any, dilation: Ints, ceil_mode: bool
) -> tuple[list[int], dict[tuple[int, ...], list[tuple[int, ...]]], dict[tuple[int, ...], int]]:
    """The output sizes, and for each output the pixels that it reads and the taps that lie on the padded image."""
    pairs = explicit_padding(padding, sizes, window, strides, dilation)
    spans = [extent(taps, d) for taps, d in zip(window, dilation, strict=True)]
    outputs = pool_outputs(sizes, pairs, spans, strides, ceil_mode)
    pixels, padded = {}, {}
    for output in np.ndindex(*outputs):
        positions = [position for _, position in _taps(output, window, strides, pairs, dilation)]
        pixels[output] = [
            position
            for position in positions
            if all(
                max(0, -low) <= p < size + min(0, high)
                for p, size, (low, high) in zip(position, sizes, pairs, strict=True)
            )
        ]
        padded[output] = sum(
            all(-low <= p < size + high for p, size, (low, high) in zip(position, sizes, pairs, strict=True))
            for position in positions
        )
    return outputs, pixels, padded


def first_extremum(values: np.ndarray, mode: str) -> int:
    """Index of the first NaN, or else of the first maximum or minimum."""
    best = 0
    for index, value in enumerate(values):
        if np.isnan(values[best]):
            break
        better = value > values[best] if mode == "max" else value < values[best]
        if better or np.isnan(value):
            best = index
    return best


def extremum(x: np.ndarray, mode: str, identity: Any, **geometry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values of a max or min pool, and the flat index of each in its plane: -1 where there is no pixel."""
    sizes = x.shape[1:-1]
    outputs, pixels, _ = windows(sizes, **geometry)
    values = np.full((x.shape[0], *outputs, x.shape[-1]), identity, x.dtype)
    indices = np.full(values.shape, -1)
    for output, read in pixels.items():
        for image in range(x.shape[0]):
            for channel in range(x.shape[-1]):
                if read:
                    taps = np.array([x[(image, *pixel, channel)] for pixel in read])
                    best = first_extremum(taps, mode)
                    values[(image, *output, channel)] = taps[best]
                    indices[(image, *output, channel)] = np.ravel_multi_index(read[best], sizes)
    return values, indices


def total(x: np.ndarray, **geometry: Any) -> np.ndarray:
    """Sum of each window."""
    outputs, pixels, _ = windows(x.shape[1:-1], **geometry)
    result = np.zeros((x.shape[0], *outputs, x.shape[-1]), x.dtype)
    for output, read in pixels.items():
        for pixel in read:
            result[(slice(None), *output)] += x[(slice(None), *pixel)]
    return result


def average(x: np.ndarray, count_include_pad: bool, **geometry: Any) -> np.ndarray:
    """Sum of each window over the number of its taps on the image, or on the padded image; 0 if there is none."""
    outputs, pixels, padded = windows(x.shape[1:-1], **geometry)
    result = np.zeros((x.shape[0], *outputs, x.shape[-1]), np.float64)
    for output, read in pixels.items():
        count = padded[output] if count_include_pad else len(read)
        for pixel in read:
            result[(slice(None), *output)] += x[(slice(None), *pixel)] / count
    return result


def norm(x: np.ndarray, p: float, **geometry: Any) -> np.ndarray:
    """p-norm of each window."""
    if math.isinf(p):
        return extremum(np.abs(x), "max", 0, **geometry)[0]
    return total(np.abs(x.astype(np.float64)) ** p, **geometry) ** (1 / p)


def adaptive(x: np.ndarray, kind: str, outputs: Ints) -> np.ndarray:
    """Average or maximum of windows from floor(o n / q) up to ceil((o + 1) n / q)."""
    sizes = x.shape[1:-1]
    result = np.zeros((x.shape[0], *outputs, x.shape[-1]), np.float64)
    for output in np.ndindex(*outputs):
        window = tuple(
            slice(math.floor(o * n / q), math.ceil((o + 1) * n / q))
            for o, n, q in zip(output, sizes, outputs, strict=True)
        )
        block = x[(slice(None), *window)]
        axes = tuple(range(1, x.ndim - 1))
        result[(slice(None), *output)] = block.mean(axes) if kind == "avg" else block.max(axes)
    return result


def unpool(values: np.ndarray, indices: np.ndarray, sizes: Ints) -> np.ndarray:
    """The values at their indices, zeros elsewhere."""
    result = np.zeros((values.shape[0], *sizes, values.shape[-1]), values.dtype)
    for at in np.ndindex(*values.shape):
        if indices[at] >= 0:
            result[(at[0], *np.unravel_index(indices[at], sizes), at[-1])] = values[at]
    return result


def patches(x: np.ndarray, **geometry: Any) -> np.ndarray:
    """The taps of each window side by side, (N, *output, *window, C); zeros on padding."""
    window, padding, strides, dilation = (geometry[name] for name in ("window", "padding", "strides", "dilation"))
    sizes = x.shape[1:-1]
    pairs = explicit_padding(padding, sizes, window, strides, dilation)
    spans = [extent(taps, d) for taps, d in zip(window, dilation, strict=True)]
    outputs = pool_outputs(sizes, pairs, spans, strides, False)
    result = np.zeros((x.shape[0], *outputs, *window, x.shape[-1]), x.dtype)
    for output in np.ndindex(*outputs):
        for tap, position in _taps(output, window, strides, pairs, dilation):
            if all(0 <= p < size for p, size in zip(position, sizes, strict=True)):
                result[(slice(None), *output, *tap)] = x[(slice(None), *position)]
    return result


def trilinear(spec: Any, lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """The array that a `ConvSpec` names by its role, in the operands' own dtype, tap by tap."""
    if spec.stacked is not None:
        return np.stack([_trilinear(spec, a, b) for a, b in zip(lhs, rhs, strict=True)])
    return _trilinear(spec, lhs, rhs)


def _trilinear(spec: Any, lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    groups = spec.feature_group_count
    kernel_in, features = spec.kernel_shape[-2:]
    padded = [n + low + high for n, (low, high) in zip(spec.input_shape[1:-1], spec.padding, strict=True)]
    image = np.zeros((spec.input_shape[0], *padded, groups, kernel_in), lhs.dtype)
    inside = tuple(slice(low, low + n) for n, (low, _) in zip(spec.input_shape[1:-1], spec.padding, strict=True))
    if spec.role != "input":
        image[(slice(None), *inside)] = lhs.reshape(*spec.input_shape[:-1], groups, kernel_in)
    y_shape = (*spec.output_shape[:-1], groups, features // groups)
    y = np.zeros(y_shape, lhs.dtype) if spec.role == "output" else (lhs, rhs)[spec.role == "kernel"].reshape(y_shape)
    kernel_shape = (*spec.window, kernel_in, groups, features // groups)
    kernel = np.zeros(kernel_shape, lhs.dtype) if spec.role == "kernel" else rhs.reshape(kernel_shape)
    for tap in np.ndindex(*spec.window):
        seen = tuple(
            slice(tap[a] * dilation, tap[a] * dilation + (spec.output_shape[1 + a] - 1) * stride + 1, stride)
            for a, (dilation, stride) in enumerate(zip(spec.kernel_dilation, spec.strides, strict=True))
        )
        pixels = image[(slice(None), *seen)]  # a view, (N, *outputs, G, I)
        if spec.role == "output":
            y += np.einsum("...gi,igo->...go", pixels, kernel[tap])
        elif spec.role == "input":
            pixels += np.einsum("...go,igo->...gi", y, kernel[tap])
        else:
            kernel[tap] = np.einsum("pgi,pgo->igo", pixels.reshape(-1, groups, kernel_in), y.reshape(-1, *y.shape[-2:]))
    full = {"output": y, "input": image[(slice(None), *inside)], "kernel": kernel}[spec.role]
    return full.reshape(spec.result_shape)
