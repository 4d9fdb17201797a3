"""`jaxcnn layer`: the cost and the gain of each substitution of one convolution, on this device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import rich.progress

import jaxcnn
from jaxcnn.demo import timing
from jaxcnn.demo.chains import chain_shapes, widest_within
from jaxcnn.demo.network import plain_convolution
from jaxcnn.demo.report import Section, Table
from jaxcnn.timing import median_seconds

#: Shares of the dense layer's MACs for which a rank or a width is chosen, where the user names no rank.
SHARES = (1 / 8, 1 / 4, 1 / 2)

DEFINITIONS = (
    (
        "Times faster",
        "Milliseconds of jax.lax.conv_general_dilated with the dense kernel, divided by milliseconds of this way.",
    ),
    (
        "No error is shown",
        "The kernels here are random numbers: a random kernel is no model of a trained one, so the error of "
        "replacing it would say nothing. The speed depends on the shapes alone. For the error, give "
        "jaxcnn.separable or jaxcnn.stack your own kernel and ask the chain for its relative_error(kernel).",
    ),
)


@dataclass(frozen=True)
class SingleLayer:
    """Holds one convolution: channels-last input shape, window, output channels, and options of `jaxcnn.conv`."""

    x_shape: tuple[int, ...]
    window: tuple[int, ...]
    features: int
    strides: int | tuple[int, ...] = 1
    padding: Any = "SAME"
    groups: int = 1
    dtype: str = "float32"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Returns the shape of the dense kernel, (*window, channels / groups, features)."""
        return (*self.window, self.x_shape[-1] // self.groups, self.features)

    @property
    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `jaxcnn.conv` without the number of groups."""
        return {"strides": self.strides, "padding": self.padding}

    def cost(self, kernel: Sequence[int] | jaxcnn.KernelChain) -> jaxcnn.Cost:
        """Returns the cost of this layer with a kernel of that shape, or with a chain."""
        groups = 1 if isinstance(kernel, jaxcnn.KernelChain) else self.groups
        return jaxcnn.conv_cost(
            self.x_shape, kernel, feature_group_count=groups, preferred_element_type=self.dtype, **self.options
        )


@dataclass(frozen=True)
class Candidate:
    """Holds one way to compute the layer: its name in the table, its kernels in words, and a chain of their shapes."""

    name: str
    kernels: str
    chain: jaxcnn.KernelChain


def check_layer(layer: SingleLayer) -> tuple[int, ...]:
    """Returns the shape of the layer's result.

    Raises:
      ValueError: if `jaxcnn.conv` would refuse the layer, in its words.
    """
    if len(layer.x_shape) != len(layer.window) + 2:
        raise ValueError(
            f"a window of {len(layer.window)} axes needs an input of {len(layer.window) + 2} numbers (batch, "
            f"{len(layer.window)} spatial sizes, channels), got {_times(layer.x_shape)}"
        )
    if layer.x_shape[-1] % layer.groups or layer.features % layer.groups:
        raise ValueError(
            f"{layer.x_shape[-1]} input channels and {layer.features} features must both divide into "
            f"{layer.groups} groups"
        )
    return jaxcnn.conv_output_shape(
        layer.x_shape, layer.kernel_shape, feature_group_count=layer.groups, **layer.options
    )


def separable_candidates(layer: SingleLayer, ranks: Sequence[int]) -> tuple[list[Candidate], list[str]]:
    """Returns separable chains of the ranks, and reasons for those left out.

    Without ranks, the chains are those at `SHARES` of the dense MACs.
    """
    if sum(size > 1 for size in layer.window) < 2:
        return [], ["separable: it needs a window with extent along two axes or more"]
    *window, channels, features = layer.kernel_shape
    in_words = " ".join(_window_words(axis, window) for axis in range(len(window)))
    chain = partial(chain_shapes, "separable", layer.kernel_shape, groups=layer.groups)
    exact = min(
        min(math.prod(window[: gap + 1]) * channels, math.prod(window[gap + 1 :]) * features // layer.groups)
        for gap in range(len(window) - 1)
    )
    notes = [f"separable R={rank}: the kernel's rank is at most {exact}" for rank in ranks if rank > exact]
    if not ranks:
        ranks = [min(rank, exact) for rank in _widths_at_shares(layer, chain)]
    chosen = [rank for rank in dict.fromkeys(ranks) if rank <= exact]
    return [Candidate(f"separable R={rank}", in_words, chain(rank)) for rank in chosen], notes


def stack_candidates(layer: SingleLayer) -> tuple[list[Candidate], list[str]]:
    """Returns chains of 3x3 kernels, at `SHARES` of the MACs and at the layer's width, or why there are none."""
    size = layer.window[0]
    if set(layer.window) != {size} or size % 2 == 0 or size < 5:
        supported = "an odd window of 5 or more, the same along each axis"
        return [], [f"stack: 3-wide kernels in a row make up {supported}; this one is {_times(layer.window)}"]
    chain = partial(chain_shapes, "stack", layer.kernel_shape, groups=layer.groups)
    *_, channels, features = layer.kernel_shape
    widths = sorted({*_widths_at_shares(layer, chain), min(channels, features // layer.groups)})
    in_words = f"{(size - 1) // 2} of {_times((3,) * len(layer.window))}"
    return [Candidate(f"stack F={width}", in_words, chain(width)) for width in widths], []


def _widths_at_shares(layer: SingleLayer, chain: Callable[[int], jaxcnn.KernelChain]) -> list[int]:
    """Returns the greatest width within each of `SHARES` of the dense MACs, at least 1, ascending, without repeats."""
    dense = layer.cost(layer.kernel_shape).macs
    widths = (widest_within(lambda width: layer.cost(chain(width)).macs, share * dense) for share in SHARES)
    return sorted({max(1, width) for width in widths})


def plain_layer(layer: SingleLayer) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the layer as a user of `jax.lax` would write it."""
    padding = layer.padding
    if isinstance(padding, int):
        padding = (padding,) * len(layer.window)
    if padding == "CAUSAL":
        padding = tuple((size - 1, 0) for size in layer.window)
    elif not isinstance(padding, str):
        padding = tuple((item, item) if isinstance(item, int) else item for item in padding)
    return partial(plain_convolution, strides=layer.strides, padding=padding, feature_group_count=layer.groups)


def run_layer(
    layer: SingleLayer, *, ranks: Sequence[int], seed: int, bars: rich.progress.Progress, rounds: int = 7
) -> Section:
    """Measures the layer dense and with every substitution that applies to it.

    Args:
      layer: convolution to measure.
      ranks: ranks of the separable chains; empty for ranks at `SHARES` of the dense MACs.
      seed: seed for the random input and kernels.
      bars: progress bars.
      rounds: number of blocks of calls for each timing.
    """
    result_shape = check_layer(layer)
    separable, separable_notes = separable_candidates(layer, ranks)
    stacked, stack_notes = stack_candidates(layer)
    candidates = separable + stacked

    keys = iter(jax.random.split(jax.random.key(seed), 2 + sum(len(c.chain.kernels) for c in candidates)))

    def random(shape: Sequence[int]) -> jax.Array:
        """Returns random numbers of a scale that keeps the result of a convolution near 1, within 16-bit floats."""
        scale = 1.0 if shape == layer.x_shape else math.prod(shape[:-1]) ** -0.5
        return (jax.random.normal(next(keys), tuple(shape)) * scale).astype(layer.dtype)

    x, kernel = random(layer.x_shape), random(layer.kernel_shape)
    plain = jax.jit(plain_layer(layer))
    dense = jax.jit(partial(jaxcnn.conv, feature_group_count=layer.groups, **layer.options))
    chained = jax.jit(partial(jaxcnn.conv, **layer.options))
    calls: dict[str, Callable[[], Any]] = {
        "lax, dense": partial(plain, x, kernel),
        "jaxcnn, dense": partial(dense, x, kernel),
    }
    for candidate in candidates:
        links = tuple(random(link.shape) for link in candidate.chain.kernels)
        chain = jaxcnn.KernelChain(links, candidate.chain.feature_group_counts)
        calls[candidate.name] = partial(chained, x, chain)
    timing.compile_all(calls, bars, "each way")
    task = bars.add_task("Timing", total=rounds)
    seconds = median_seconds(calls, rounds=rounds, after_round=lambda: bars.advance(task))

    dense_words = _times(layer.window)
    dense_cost = layer.cost(layer.kernel_shape)
    costs = {"lax, dense": (dense_words, dense_cost), "jaxcnn, dense": (dense_words, dense_cost)}
    costs |= {candidate.name: (candidate.kernels, layer.cost(candidate.chain)) for candidate in candidates}
    rows = tuple(
        (
            name,
            words,
            f"{cost.macs / 1e6:,.2f}",
            f"{cost.macs / dense_cost.macs:.0%}" if dense_cost.macs else "-",
            f"{cost.params:,}",
            f"{cost.bytes / 1e6:,.2f}",
            f"{1e3 * seconds[name]:.3f}",
            f"{seconds['lax, dense'] / seconds[name]:.2f}x",
        )
        for name, (words, cost) in costs.items()
    )
    fastest = min(seconds, key=lambda name: seconds[name])
    return Section(
        title=f"One layer: {_times(layer.x_shape)} with {dense_words} to {layer.features} features",
        text=(
            f"Result {_times(result_shape)}; strides {layer.strides}, padding {layer.padding}, groups "
            f"{layer.groups}, {layer.dtype}, channels last. The numbers are random: the speed is real, but an "
            "error of replacing them would mean nothing, and is not shown."
        ),
        figures=(("Fastest here", f"{fastest}, {seconds['lax, dense'] / seconds[fastest]:.2f}x"),),
        tables=(
            Table(
                "Ways to compute it",
                ("way", "kernels", "M MACs", "of\ndense", "params", "MB", "ms", "times\nfaster"),
                rows,
                text_columns=2,
                notes=(
                    "M MACs: million multiplications each with an addition. MB: inputs, kernels and results. R "
                    "and F: channels (of each group) between the kernels of a chain.",
                    *(f"Left out: {note}." for note in separable_notes + stack_notes),
                ),
            ),
        ),
    )


def _window_words(axis: int, window: Sequence[int]) -> str:
    """Returns the window with extent along one axis alone in words, as in 1x11."""
    return _times([size if index == axis else 1 for index, size in enumerate(window)])


def _times(sizes: Sequence[int]) -> str:
    """Returns sizes in words, as in 1x56x56x64."""
    return "x".join(map(str, sizes))
