"""Seeded families of layers, on which the cost model is fitted, and on which the model and the kernels are judged.

Layer number `index` of a family depends on the family's name, the seed and the index alone: a longer list starts with
the shorter one, and lists of two seeds have nothing in common. Sizes, channels and windows are drawn log-uniformly over
the ranges of published networks. Half of the channel counts are multiples of 16, a quarter are multiples of 4, and a
quarter are any number. A layer that would take far less or far more time than the others is drawn again.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from jaxcnn.geometry import dilated_size
from jaxcnn.lowering.spec import ConvSpec, Role

Ints = tuple[int, ...]

ROLES: tuple[Role, ...] = get_args(Role)
BATCHES = (1, 8)
"""Numbers of images, which take turns."""
MACS = (2e6, 1.2e9)
"""Fewest and most multiply-accumulates of a layer whose arithmetic is products of matrices."""
NARROW_MACS = (5e5, 1.5e8)
"""Fewest and most multiply-accumulates of a layer with few channels in each group, whose time is bound by memory."""
NARROW_CHANNELS = 4
"""Channels of a group, in or out, below which `NARROW_MACS` holds."""
MAX_ELEMENTS = 6_000_000
"""Most elements of the input, of the output and of the kernel of a layer, each by itself."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """Holds one layer before the choice of a role and a batch.

    Args:
      sizes: pixels on each spatial axis of the convolution's input.
      window: taps on each spatial axis.
      c_in: input channels.
      c_out: output channels.
      strides: step of the window on each spatial axis.
      dilation: distance between the kernel's taps on each spatial axis.
      groups: number of groups.
      pads: padding at both ends of each spatial axis.
    """

    sizes: Ints
    window: Ints
    c_in: int
    c_out: int
    strides: Ints
    dilation: Ints
    groups: int
    pads: Ints


def macs(spec: ConvSpec) -> int:
    """Returns the multiply-accumulates of a layer, those on padding included."""
    return math.prod(spec.output_shape) * math.prod(spec.kernel_shape[:-1])


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """Draws a whole number between `low` and `high`, log-uniformly."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def _channels(rng: np.random.Generator, low: int, high: int) -> int:
    """Draws a number of channels: half are multiples of 16, a quarter multiples of 4, a quarter any number."""
    count = _log_uniform(rng, low, high)
    step = (16, 16, 4, 1)[rng.integers(4)]
    return max(step * round(count / step), 1) if count >= step else count


def _pair(rng: np.random.Generator, low: int, high: int, ratio: float = 4.0) -> Ints:
    """Draws input and output channels, of which neither is more than about `ratio` times the other."""
    c_in = _channels(rng, low, high)
    return c_in, _channels(rng, max(low, round(c_in / ratio)), min(high, round(c_in * ratio)))


def _pick(rng: np.random.Generator, *values: int) -> int:
    """Draws one of the values; a repeated value is more likely."""
    return values[rng.integers(len(values))]


def _image(rng: np.random.Generator, low: int, high: int, rank: int = 2) -> Ints:
    """Draws the pixels on each axis: three times out of four equal, else of different sizes."""
    size = _log_uniform(rng, low, high)
    if rng.random() < 0.75:
        return (size,) * rank
    return tuple(max(low, round(size * rng.uniform(0.6, 1.4))) for _ in range(rank))


def _layer(
    rng: np.random.Generator,
    sizes: Ints,
    window: Ints,
    c_in: int,
    c_out: int,
    strides: int = 1,
    dilation: Ints | None = None,
    groups: int = 1,
) -> Draft:
    """Returns the layer: one in six without padding, the others with the padding that keeps the size at stride 1."""
    dilation = dilation or (1,) * len(window)
    pads = tuple((dilated_size(w, d) - 1) // 2 for w, d in zip(window, dilation, strict=True))
    if rng.random() < 1 / 6:
        pads = (0,) * len(window)
    return Draft(sizes, window, c_in, c_out, (strides,) * len(window), dilation, groups, pads)


def _depthwise(rng: np.random.Generator) -> Draft:
    channels, multiplier = _channels(rng, 8, 1280), _pick(rng, 1, 1, 1, 1, 1, 2)
    window = _pick(rng, 3, 3, 3, 5, 5, 7, 9, 13)
    strides = _pick(rng, 1, 1, 1, 2)
    return _layer(rng, _image(rng, 7, 192), (window,) * 2, channels, channels * multiplier, strides, groups=channels)


def _grouped(rng: np.random.Generator) -> Draft:
    groups, width = _log_uniform(rng, 2, 64), _log_uniform(rng, 2, 64)
    out = max(1, width * _pick(rng, 2, 2, 2, 1, 4) // 2)
    window, strides = _pick(rng, 1, 3, 3, 3, 5), _pick(rng, 1, 1, 1, 2)
    return _layer(rng, _image(rng, 7, 96), (window,) * 2, groups * width, groups * out, strides, groups=groups)


def _dense(rng: np.random.Generator) -> Draft:
    window = _pick(rng, 2, 3, 3, 3, 3, 5, 5, 7, 11)
    channels = (3, _channels(rng, 8, 96)) if rng.random() < 1 / 8 else _pair(rng, 8, 640)
    return _layer(rng, _image(rng, 7, 224), (window,) * 2, *channels)


def _square(rng: np.random.Generator) -> Draft:
    """Draws a layer of the kind that most networks have, which the method `winograd` supports."""
    window = _pick(rng, 3, 3, 3, 5)
    return _layer(rng, _image(rng, 7, 112), (window,) * 2, *_pair(rng, 16, 512, ratio=2.0))


def _pointwise(rng: np.random.Generator) -> Draft:
    strides = _pick(rng, 1, 1, 1, 2)
    return _layer(rng, _image(rng, 7, 128), (1, 1), *_pair(rng, 16, 2048, ratio=6.0), strides)


def _one_dimensional(rng: np.random.Generator) -> Draft:
    taps = _log_uniform(rng, 3, 15)
    window = (1, taps) if rng.random() < 0.5 else (taps, 1)
    return _layer(rng, _image(rng, 7, 128), window, *_pair(rng, 8, 512))


def _strided(rng: np.random.Generator) -> Draft:
    strides = _pick(rng, 2, 2, 2, 3, 4)
    window = (max(strides, _pick(rng, 2, 3, 3, 3, 5, 7, 11)),) * 2
    if rng.random() < 1 / 3:
        channels = _channels(rng, 16, 768)
        return _layer(rng, _image(rng, 14, 224), window, channels, channels, strides, groups=channels)
    pair = (3, _channels(rng, 16, 96)) if rng.random() < 1 / 4 else _pair(rng, 8, 512)
    return _layer(rng, _image(rng, 14, 256), window, *pair, strides)


def _dilated(rng: np.random.Generator) -> Draft:
    window, distance = _pick(rng, 3, 3, 3, 5, 7), _pick(rng, 2, 2, 3, 4, 6)
    sizes = _image(rng, max(14, dilated_size(window, distance)), 128)
    if rng.random() < 1 / 3:
        c_in = c_out = groups = _channels(rng, 16, 512)
    else:
        (c_in, c_out), groups = _pair(rng, 8, 512), 1
    return _layer(rng, sizes, (window,) * 2, c_in, c_out, dilation=(distance,) * 2, groups=groups)


def _one_axis(rng: np.random.Generator) -> Draft:
    taps, strides, distance = _log_uniform(rng, 2, 64), _pick(rng, 1, 1, 1, 2, 4), _pick(rng, 1, 1, 1, 2, 4)
    distance = 1 if taps > 9 or strides > 1 else distance
    if rng.random() < 1 / 3:
        c_in = c_out = groups = _channels(rng, 16, 512)
    else:
        (c_in, c_out), groups = _pair(rng, 4, 512), 1
    sizes = _image(rng, 128, 16384, rank=1)
    return _layer(rng, sizes, (taps,), c_in, c_out, strides, (distance,), groups)


def _three_axes(rng: np.random.Generator) -> Draft:
    window = [(3, 3, 3), (3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 5, 5), (2, 2, 2)][rng.integers(6)]
    strides = 2 if rng.random() < 1 / 4 and min(window) > 1 else 1
    if rng.random() < 1 / 4:
        c_in = c_out = groups = _channels(rng, 8, 256)
    else:
        (c_in, c_out), groups = _pair(rng, 3, 256, ratio=8.0), 1
    depth, *plane = _image(rng, 8, 64, rank=3)
    return _layer(rng, (max(6, depth // 2), *plane), window, c_in, c_out, strides, groups=groups)


def _transposed(rng: np.random.Generator) -> Draft:
    """Draws the forward convolution of a transposed one: the role `input` computes the transposed convolution."""
    strides = _pick(rng, 2, 2, 2, 2, 3, 4)
    taps = strides * _pick(rng, 1, 1, 2, 2) + (strides == 2) * _pick(rng, 0, 0, 1)
    small = _image(rng, 5, 64)
    pad = (taps - strides + 1) // 2
    sizes = tuple(n * strides for n in small)
    return Draft(sizes, (taps,) * 2, *_pair(rng, 3, 512, ratio=8.0), (strides,) * 2, (1, 1), 1, (pad,) * 2)


FAMILIES: dict[str, Callable[[np.random.Generator], Draft]] = {
    "depthwise": _depthwise,
    "grouped": _grouped,
    "dense": _dense,
    "square": _square,
    "pointwise": _pointwise,
    "one_dimensional": _one_dimensional,
    "strided": _strided,
    "dilated": _dilated,
    "one_axis": _one_axis,
    "three_axes": _three_axes,
    "transposed": _transposed,
}
"""The families by name, each a function that draws a layer.

Windows of `one_dimensional` are 1xk and kx1; `one_axis` and `three_axes` are 1-D and 3-D convolutions. In all families
but `transposed` the role `output` is a forward pass and the two others are its gradients.
"""


def _spec(draft: Draft, batch: int, role: Role) -> ConvSpec:
    """Returns the spec of a drafted layer."""
    extents = map(dilated_size, draft.window, draft.dilation)
    sizes = tuple(
        (n + 2 * pad - extent) // stride + 1
        for n, pad, extent, stride in zip(draft.sizes, draft.pads, extents, draft.strides, strict=True)
    )
    single = np.dtype(np.float32)
    return ConvSpec(
        role=role,
        input_shape=(batch, *draft.sizes, draft.c_in),
        kernel_shape=(*draft.window, draft.c_in // draft.groups, draft.c_out),
        output_shape=(batch, *sizes, draft.c_out),
        strides=draft.strides,
        padding=tuple((pad, pad) for pad in draft.pads),
        input_dilation=(1,) * len(sizes),
        kernel_dilation=draft.dilation,
        feature_group_count=draft.groups,
        lhs_dtype=single,
        rhs_dtype=single,
        out_dtype=single,
        precision=None,
        stacked=None,
    )


def within_limits(spec: ConvSpec) -> bool:
    """Returns whether a layer has a result and is neither too small nor too large for the measurements."""
    shapes = (spec.input_shape, spec.kernel_shape, spec.output_shape)
    if min(map(min, shapes)) < 1 or max(map(math.prod, shapes)) > MAX_ELEMENTS:
        return False
    kernel_in, kernel_out = spec.kernel_shape[-2], spec.kernel_shape[-1] // spec.feature_group_count
    low, high = NARROW_MACS if min(kernel_in, kernel_out) < NARROW_CHANNELS else MACS
    return low <= macs(spec) <= high


def layer(name: str, seed: int, index: int, role: Role) -> ConvSpec:
    """Returns one layer of a family.

    Args:
      name: a key of `FAMILIES`.
      seed: seed for the whole list.
      index: position in the list; even positions have the first of `BATCHES`, odd ones the second.
      role: array that is computed.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    while True:
        spec = _spec(FAMILIES[name](rng), BATCHES[index % len(BATCHES)], role)
        if within_limits(spec):
            return spec


def family(name: str, seed: int, count: int, roles: Sequence[Role] = ROLES) -> list[ConvSpec]:
    """Returns the first `count` layers of a family.

    The batch changes with every layer and the role with every second one. So any batch occurs in any role if there are
    at least twice as many layers as roles.

    Args:
      name: a key of `FAMILIES`.
      seed: seed for the list.
      count: number of layers.
      roles: roles that take turns.

    Raises:
      ValueError: there is no family of this name.
    """
    if name not in FAMILIES:
        raise ValueError(f"family: name must be one of {', '.join(FAMILIES)}, got {name!r}")
    return [layer(name, seed, index, roles[index // len(BATCHES) % len(roles)]) for index in range(count)]
