"""Counters that walk every loop of a convolution, for the formulas of `jaxcnn.cost` to be compared with.

Nothing here calls jaxcnn's arithmetic: `walk_conv` and `walk_transposed` count one output pixel, one tap, one channel
at a time, and `executed_convolutions` reads what a traced function really does.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from support.jaxprs import equations_of


class Count(NamedTuple):
    macs: int
    valid: int
    outputs: tuple[int, ...]


def walk_axis(
    size: int, window: int, stride: int = 1, low: int = 0, high: int = 0, dilation: int = 1, input_dilation: int = 1
) -> list[list[bool]]:
    """For each output of one axis and each tap, whether the tap reads a pixel (or padding, or a hole of the input)."""
    line = [False] * max(low, 0)
    for pixel in range(size):
        line += [True] + ([False] * (input_dilation - 1) if pixel < size - 1 else [])
    line += [False] * max(high, 0)
    line = line[max(-low, 0) : len(line) - max(-high, 0)]
    outputs, start = [], 0
    while start + (window - 1) * dilation < len(line):
        outputs.append([line[start + tap * dilation] for tap in range(window)])
        start += stride
    return outputs


def walk_conv(
    batch: int,
    sizes: tuple[int, ...],
    window: tuple[int, ...],
    in_features: int,
    out_features: int,
    groups: int = 1,
    strides: tuple[int, ...] = (),
    padding: tuple[tuple[int, int], ...] = (),
    kernel_dilation: tuple[int, ...] = (),
    input_dilation: tuple[int, ...] = (),
) -> Count:
    """Multiplications of a convolution, one at a time."""
    rank = len(sizes)
    ones = (1,) * rank
    axes = [
        walk_axis(size, taps, stride, low, high, dilation, holes)
        for size, taps, stride, (low, high), dilation, holes in zip(
            sizes,
            window,
            strides or ones,
            padding or ((0, 0),) * rank,
            kernel_dilation or ones,
            input_dilation or ones,
            strict=True,
        )
    ]
    macs = valid = 0
    for _ in range(batch):
        for output_channel in range(out_features):
            group = output_channel * groups // out_features
            for input_channel in range(in_features):
                if input_channel * groups // in_features != group:
                    continue
                for pixel in itertools.product(*axes):
                    for taps in itertools.product(*pixel):
                        macs += 1
                        valid += all(taps)
    return Count(macs, valid, tuple(len(axis) for axis in axes))


def walk_transposed(
    batch: int,
    sizes: tuple[int, ...],
    window: tuple[int, ...],
    in_features: int,
    out_features: int,
    groups: int,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    kernel_dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
) -> Count:
    """Multiplications of a transposed convolution of `out_features` channels: each pixel is spread over its window."""
    rank = len(sizes)
    results = tuple(
        (sizes[a] - 1) * strides[a] + (window[a] - 1) * kernel_dilation[a] + 1 - sum(padding[a]) + output_padding[a]
        for a in range(rank)
    )
    macs = valid = 0
    for pixel in itertools.product(*map(range, sizes)):
        for taps in itertools.product(*map(range, window)):
            at = [pixel[a] * strides[a] + taps[a] * kernel_dilation[a] - padding[a][0] for a in range(rank)]
            inside = all(0 <= at[a] < results[a] for a in range(rank))
            for _ in range(batch):
                for source in range(out_features):
                    for target in range(in_features):
                        if source * groups // out_features == target * groups // in_features:
                            macs += 1
                            valid += inside
    return Count(macs, valid, results)


def executed_convolutions(f: Any, *args: Any) -> list[Any]:
    """The equations of every `jaxcnn_conv` in f's jaxpr, in order."""
    return [equation for equation in equations_of(f, *args) if equation.primitive.name == "jaxcnn_conv"]


def walk_executed(f: Any, *args: Any) -> tuple[int, int]:
    """(macs, valid) of all convolutions that f executes, forward or transposed, by walking the loops of each."""
    macs = valid = 0
    equations = executed_convolutions(f, *args)
    if not equations:
        raise LookupError("the function executes no convolution")
    for equation in equations:
        spec, (lhs, kernel) = equation.params["spec"], (operand.aval.shape for operand in equation.invars)
        role, groups, (*window, kernel_in, out_features) = spec.role, spec.feature_group_count, kernel
        options = {name: getattr(spec, name) for name in ("strides", "padding", "kernel_dilation", "input_dilation")}
        image = lhs if role == "output" else equation.outvars[0].aval.shape
        count = walk_conv(image[0], image[1:-1], tuple(window), kernel_in * groups, out_features, groups, **options)
        output = equation.outvars[0].aval.shape if role == "output" else lhs
        if count.outputs != tuple(output[1:-1]):
            raise AssertionError(f"{count.outputs} outputs were walked, {output[1:-1]} were executed")
        macs, valid = macs + count.macs, valid + count.valid
    return macs, valid


def seen_pixels(layers: list[Any], outputs: set[int]) -> set[int]:
    """Input positions on an endless line that some outputs of the last layer see.

    A layer is (window, stride, low padding, dilation), or a list of branches, each a list of layers.
    """
    for layer in reversed(layers):
        if isinstance(layer, list):
            outputs = set().union(*(seen_pixels(branch, outputs) for branch in layer))
        else:
            window, stride, low, dilation = layer
            outputs = {output * stride - low + tap * dilation for output in outputs for tap in range(window)}
    return outputs


def seen_field(layers: list[Any]) -> tuple[int, int, int]:
    """(size, stride, offset) of the receptive field, read off the pixels that the first two outputs see."""
    first, second = seen_pixels(layers, {0}), seen_pixels(layers, {1})
    return max(first) - min(first) + 1, min(second) - min(first), -min(first)


def loop_compose(kernels: list[np.ndarray], counts: list[int]) -> np.ndarray:
    """The dense kernel, with one group, of convolutions in a row, (*window, I, O), by loops over windows."""
    dense = None
    for kernel, groups in zip(kernels, counts, strict=True):
        *window, kernel_in, out_features = kernel.shape
        full = np.zeros((*window, kernel_in * groups, out_features), np.float64)
        for group in range(groups):
            rows = slice(group * kernel_in, (group + 1) * kernel_in)
            columns = slice(group * out_features // groups, (group + 1) * out_features // groups)
            full[..., rows, columns] = kernel[..., columns]
        if dense is None:
            dense = full
            continue
        shape = [a + b - 1 for a, b in zip(dense.shape[:-2], window, strict=True)]
        total = np.zeros((*shape, dense.shape[-2], out_features))
        for u in itertools.product(*map(range, dense.shape[:-2])):
            for v in itertools.product(*map(range, window)):
                total[tuple(map(sum, zip(u, v, strict=True)))] += dense[u] @ full[v]
        dense = total
    return dense


def block_diagonal_to_grouped(dense: np.ndarray, groups: int) -> np.ndarray:
    """(*window, I, O) of block-diagonal structure as (*window, I / groups, O); raises if a block off it is not zero."""
    in_features, out_features = dense.shape[-2:]
    rows, columns = in_features // groups, out_features // groups
    grouped = np.zeros((*dense.shape[:-2], rows, out_features), dense.dtype)
    rest = dense.copy()
    for group in range(groups):
        row, column = (slice(group * n, (group + 1) * n) for n in (rows, columns))
        grouped[..., column] = dense[..., row, column]
        rest[..., row, column] = 0
    if rest.any():
        raise AssertionError(f"the kernel is not block-diagonal with {groups} blocks")
    return grouped


@st.composite
def drawn_chains(draw: Any, ranks: tuple[int, ...] = (1, 2, 3), features: tuple[int, ...] = (1, 2, 4)) -> Any:
    """Shapes of the links of a chain, HWIO, and their group counts."""
    rank = draw(st.sampled_from(ranks))
    links = draw(st.integers(1, 3 if rank < 3 else 2))
    widths = [draw(st.sampled_from(features)) for _ in range(links + 1)]
    shapes, counts = [], []
    for into, out in itertools.pairwise(widths):
        groups = draw(st.sampled_from([n for n in (1, 2, 4) if into % n == 0 and out % n == 0]))
        shapes.append((*(draw(st.integers(1, 3)) for _ in range(rank)), into // groups, out))
        counts.append(groups)
    return shapes, tuple(counts)


def drawn_padding(rank: int) -> Any:
    """Returns a strategy for values of `padding=`, negative ones included."""
    names = ["SAME", "same", "SAME_LOWER", "VALID"] + (["CAUSAL"] if rank == 1 else [])
    pairs = st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * rank)
    ints = [st.integers(0, 2)] + ([st.tuples(*[st.integers(0, 2)] * rank)] if rank > 1 else [])
    return st.one_of(st.sampled_from(names), pairs, pairs, *ints)


@st.composite
def drawn_options(draw: Any, rank: int, padding_modes: bool = True) -> dict[str, Any]:
    """Options of `conv` for that many spatial axes."""
    options = {
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "kernel_dilation": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "padding": draw(drawn_padding(rank)),
    }
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    if padding_modes and mode != "zeros":
        options["padding_mode"] = mode
    else:
        options["input_dilation"] = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    return options


def elements(*shapes: tuple[int, ...]) -> int:
    return sum(math.prod(shape) for shape in shapes)
