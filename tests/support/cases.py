"""Drawn configurations, arrays in any layout, and one call of each public array function."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

import jaxcnn
from support import oracles
from support.arrays import integers, normal

SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
SIZES = {1: 10, 2: 6, 3: 4}  # largest image of each spatial rank, so that loops stay short
WINDOWS = {1: 5, 2: 4, 3: 3}


def arranged(array: np.ndarray, canonical: str, wanted: str, batch_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array whose axes are named by `canonical` with its axes in the order `wanted`, N split into `batch_shape`."""
    array = array.transpose([canonical.index(name) for name in wanted])
    if batch_shape is None:
        return array
    at = wanted.index("N")
    return array.reshape(*array.shape[:at], *batch_shape, *array.shape[at + 1 :])


def _per_axis(draw: Any, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


def _spelled(draw: Any, values: tuple[int, ...]) -> Any:
    """Draws one of the ways in which an option may be given."""
    ways = [values, list(values), np.array(values)]
    if len(set(values)) == 1:
        ways.append(values[0])
    return draw(st.sampled_from(ways))


def _case(draw: Any, name: str) -> str:
    return draw(st.sampled_from([name, name.lower()]))


def _padding(draw: Any, sizes: Any, spans: Any, names: list[str], low: int, most: Any) -> Any:
    """A padding under which every window fits: `low` is the least value, `most` the largest on each axis."""
    named = draw(st.sampled_from([*names, None, None, None]))
    if named == "VALID" and any(size < span for size, span in zip(sizes, spans, strict=True)):
        named = None
    if named is not None:
        return _case(draw, named)
    pairs = []
    for size, span, limit in zip(sizes, spans, most, strict=True):
        first, last = draw(st.integers(low, limit)), draw(st.integers(low, limit))
        lacking = max(span - size - first - last, 0)
        pairs.append((first + (lacking + 1) // 2, last + (lacking + 1) // 2))
    same_ends = all(first == last for first, last in pairs)
    if same_ends and draw(st.booleans()):
        values = tuple(first for first, _ in pairs)
        return _spelled(draw, values)
    return tuple(pairs) if draw(st.booleans()) else [list(pair) for pair in pairs]


def _layouts(draw: Any, rank: int) -> tuple[Any, str, str, str]:
    """A layout argument and the axes of input, kernel and output that it means."""
    spatial = SPATIAL[rank]
    canonical = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    kind = draw(st.sampled_from(["none", "string", "first", "strings", "numbers"]))
    if kind == "none":
        return None, *canonical
    if kind in ("string", "first"):
        names = f"NC{spatial}" if kind == "first" else "".join(draw(st.permutations(f"N{spatial}C")))
        # The options follow the letters as they stand, so a permuted string names its own spatial axes.
        letters = iter(spatial)
        meant = "".join(name if name in "NC" else next(letters) for name in names)
        channels_first = names.index("C") < min(names.index(letter) for letter in spatial)
        return _case(draw, names), meant, f"OI{spatial}" if channels_first else f"{spatial}IO", meant
    orders = ["".join(draw(st.permutations(names))) for names in canonical]
    if kind == "strings":
        # lax: the options follow the letters of the kernel.
        letters = [name for name in orders[1] if name not in "IO"]
        table = str.maketrans("".join(letters), spatial)
        return tuple(orders), *(names.translate(table) for names in orders)
    numbers = lax.ConvDimensionNumbers(
        tuple(orders[0].index(name) for name in f"NC{spatial}"),
        tuple(orders[1].index(name) for name in f"OI{spatial}"),
        tuple(orders[2].index(name) for name in f"NC{spatial}"),
    )
    return numbers if draw(st.booleans()) else tuple(numbers), *orders


@st.composite
def conv_cases(draw: Any, transposed: bool = False) -> dict[str, Any]:
    """One convolution: the arrays in canonical and in the drawn layout, its options, and the same for the oracle."""
    rank = draw(st.integers(1, 3))
    sizes = _per_axis(draw, rank, 1, SIZES[rank])
    # One in three has odd windows, one group and no steps but 1, as most convolutions of networks: of 90 drawn without
    # this `winograd` computed none.
    plain = draw(st.integers(0, 2)) == 0
    window = tuple(draw(st.sampled_from([1, 3, 5])) if plain else draw(st.integers(1, WINDOWS[rank])) for _ in sizes)
    strides = (1,) * rank if plain else _per_axis(draw, rank, 1, 3)
    kernel_dilation = (1,) * rank if plain else _per_axis(draw, rank, 1, 2)
    mode = "zeros" if transposed else draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    dilates = mode == "zeros" and not transposed and not plain and draw(st.booleans())
    input_dilation = _per_axis(draw, rank, 1, 2) if dilates else (1,) * rank
    groups = 1 if plain else draw(st.integers(1, 4))
    kernel_in, multiplier = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    spans = [oracles.extent(taps, d) for taps, d in zip(window, kernel_dilation, strict=True)]
    dilated = [oracles.extent(size, d) for size, d in zip(sizes, input_dilation, strict=True)]
    names = ["SAME", "SAME_LOWER", "VALID", *(["CAUSAL"] if rank == 1 else [])]
    options = {"strides": strides, "kernel_dilation": kernel_dilation}
    if transposed:
        # No more padding than leaves one pixel of the result.
        most = [((size - 1) * s + span - 1) // 2 for size, s, span in zip(sizes, strides, spans, strict=True)]
        padding = _padding(draw, [10**6] * rank, spans, names, -1, most)
        limits = [max(s, d) for s, d in zip(strides, kernel_dilation, strict=True)]
        extra = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
        if isinstance(padding, str) and padding.upper().startswith("SAME"):
            extra = (0,) * rank
        if isinstance(padding, str) and padding.upper() == "CAUSAL" and sizes[0] == 1:
            padding = "VALID"
        options["output_padding"] = extra
    else:
        low = -2 if draw(st.booleans()) else 0
        padding = _padding(draw, dilated, spans, names, low, [span + 1 for span in spans])
        options |= {"input_dilation": input_dilation, "padding_mode": mode}
    batch_shape = draw(st.sampled_from([(), (1,), (2,), (2,), (2, 1), (1, 2, 2)]))
    layout, names_in, names_kernel, names_out = _layouts(draw, rank)
    if not isinstance(layout, str | None):
        batch_shape = (math.prod(batch_shape),)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    features = groups * (multiplier if transposed else kernel_in)
    x = normal((math.prod(batch_shape), *sizes, features), rng)
    kernel = normal((*window, kernel_in, groups * multiplier), rng)
    spatial = SPATIAL[rank]
    return {
        "x": x,
        "kernel": kernel,
        "oracle": {**options, "padding": padding, "groups": groups},
        "given_x": arranged(x, f"N{spatial}C", names_in, batch_shape),
        "given_kernel": arranged(kernel, f"{spatial}IO", names_kernel),
        "given": {
            **{name: _spelled(draw, value) if isinstance(value, tuple) else value for name, value in options.items()},
            "padding": padding,
            "feature_group_count": groups,
            "layout": layout,
        },
        "arrange": lambda y: arranged(y, f"N{spatial}C", names_out, batch_shape),
    }


@st.composite
def pool_cases(draw: Any) -> dict[str, Any]:
    """One pool: x in canonical and in the drawn layout, its options, and the same for the oracle."""
    rank = draw(st.integers(1, 3))
    sizes = _per_axis(draw, rank, 1, SIZES[rank])
    window = _per_axis(draw, rank, 1, WINDOWS[rank])
    strides, dilation = _per_axis(draw, rank, 1, 3), _per_axis(draw, rank, 1, 2)
    spans = [oracles.extent(taps, d) for taps, d in zip(window, dilation, strict=True)]
    names = ["SAME", "SAME_LOWER", "VALID", *(["CAUSAL"] if rank == 1 else [])]
    ceil_mode = draw(st.booleans())
    low = -2 if draw(st.booleans()) else 0
    # In ceil mode at most half a window, as in PyTorch: more makes windows that start in the high padding.
    most = [span // 2 if ceil_mode else span + 1 for span in spans]
    padding = _padding(draw, sizes, spans, names, min(low, *most), most)
    pairs = oracles.explicit_padding(padding, sizes, window, strides, dilation)
    ceil_mode = ceil_mode and all(high <= span // 2 for (_, high), span in zip(pairs, spans, strict=True))
    batch_shape = draw(st.sampled_from([(), (1,), (2,), (2, 1), (1, 2, 2)]))
    layout, names_in, _, names_out = _layouts(draw, rank)
    if not isinstance(layout, str | None):
        batch_shape = (math.prod(batch_shape),)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    # Few values, so that many windows have several maxima.
    x = integers((math.prod(batch_shape), *sizes, draw(st.integers(1, 3))), rng, low=-2, high=3)
    spatial = SPATIAL[rank]
    options = {"strides": strides, "window_dilation": dilation}
    return {
        "x": x,
        "oracle": {
            "window": window,
            "strides": strides,
            "padding": padding,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
        },
        "given_x": arranged(x, f"N{spatial}C", names_in, batch_shape),
        # An int for the window means one batch axis where no layout says the rank.
        "window_shape": _spelled(draw, window) if layout is not None or len(batch_shape) == 1 else window,
        "given": {
            **{name: _spelled(draw, value) for name, value in options.items()},
            "padding": padding,
            "ceil_mode": ceil_mode,
            "layout": layout,
        },
        "arrange": lambda y: arranged(y, f"N{spatial}C", names_out, batch_shape),
    }


def _image(*shape: int) -> np.ndarray:
    return normal(shape, np.random.default_rng(1))


def _chain() -> jaxcnn.KernelChain:
    return jaxcnn.KernelChain((_image(3, 1, 2, 3), _image(1, 3, 3, 4)))


# One call of each public function from arrays to arrays: the function with its options, and the arrays. The first array
# has a batch axis, which the result keeps in front.
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "conv": (partial(jaxcnn.conv, strides=2, feature_group_count=2), (_image(4, 6, 7, 4), _image(3, 3, 2, 4))),
    "conv_chain": (partial(jaxcnn.conv, strides=[1, 2]), (_image(4, 6, 7, 2), _chain())),
    "conv_reflect": (
        partial(jaxcnn.conv, padding_mode="reflect", kernel_dilation=2),
        (_image(4, 6, 7, 2), _image(3, 2, 2, 3)),
    ),
    "conv_cropped": (
        partial(jaxcnn.conv, padding=((-1, 2), (1, -1)), input_dilation=2, layout="NCHW"),
        (_image(4, 2, 6, 7), _image(3, 2, 3, 3)),
    ),
    "depthwise_conv": (partial(jaxcnn.depthwise_conv, padding=1), (_image(4, 6, 7, 3), _image(3, 3, 3, 2))),
    "conv_transpose": (
        partial(jaxcnn.conv_transpose, strides=2, padding=1, output_padding=1, feature_group_count=2),
        (_image(4, 4, 5, 4), _image(3, 3, 1, 4)),
    ),
    "conv_transpose_chain": (
        partial(jaxcnn.conv_transpose, strides=2),
        (_image(4, 4, 5, 4), _chain()),
    ),
    "extract_patches": (partial(jaxcnn.extract_patches, window_shape=(2, 3), padding=1), (_image(4, 6, 7, 2),)),
    "max_pool": (partial(jaxcnn.max_pool, window_shape=3, strides=2, window_dilation=2), (_image(4, 6, 7, 2),)),
    "min_pool": (partial(jaxcnn.min_pool, window_shape=3, padding="SAME"), (_image(4, 6, 7, 2),)),
    "sum_pool": (partial(jaxcnn.sum_pool, window_shape=3, padding="SAME", layout="NCHW"), (_image(4, 2, 6, 7),)),
    "avg_pool": (
        partial(jaxcnn.avg_pool, window_shape=3, strides=2, padding=1, ceil_mode=True, count_include_pad=False),
        (_image(4, 6, 8, 2),),
    ),
    "lp_pool": (partial(jaxcnn.lp_pool, window_shape=2, p=3), (_image(4, 6, 7, 2),)),
    "max_pool_with_indices": (
        partial(jaxcnn.max_pool_with_indices, window_shape=2, padding=((-1, 1), (1, 0))),
        (_image(4, 6, 7, 2),),
    ),
    "max_unpool": (
        partial(jaxcnn.max_unpool, output_shape=(6, 7)),
        (_image(4, 2, 3, 2), np.arange(48, dtype=np.int32).reshape(4, 2, 3, 2) % 42),
    ),
    "adaptive_avg_pool": (partial(jaxcnn.adaptive_avg_pool, output_shape=(4, None)), (_image(4, 6, 7, 2),)),
    "adaptive_max_pool": (partial(jaxcnn.adaptive_max_pool, output_shape=4), (_image(4, 6, 7, 2),)),
    "global_avg_pool": (partial(jaxcnn.global_avg_pool, keepdims=True), (_image(4, 6, 7, 2),)),
    "global_max_pool": (jaxcnn.global_max_pool, (_image(4, 6, 7, 2),)),
}


def as_jax(value: Any) -> Any:
    """A NumPy array, or a chain of them, as JAX arrays."""
    if isinstance(value, jaxcnn.KernelChain):
        return jaxcnn.KernelChain(tuple(map(jnp.asarray, value.kernels)), value.feature_group_counts)
    return jnp.asarray(value)
