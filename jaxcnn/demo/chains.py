"""Chains given by their shapes alone: for counting multiplications before, or without, fitting any numbers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import jaxcnn


def _chain(shapes: Sequence[tuple[int, ...]], groups: int) -> jaxcnn.KernelChain:
    return jaxcnn.KernelChain(
        tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes), (groups,) * len(shapes)
    )


def separable_shapes(kernel_shape: Sequence[int], rank: int, *, groups: int = 1) -> jaxcnn.KernelChain:
    """The chain that `jaxcnn.separable` makes: one link for each window axis, `rank` channels a group between them."""
    *window, channels, features = kernel_shape
    shapes = []
    for axis, size in enumerate(window):
        extent = [1] * len(window)
        extent[axis] = size
        last = axis == len(window) - 1
        shapes.append((*extent, channels if axis == 0 else rank, features if last else groups * rank))
    return _chain(shapes, groups)


def stack_shapes(kernel_shape: Sequence[int], width: int, *, groups: int = 1) -> jaxcnn.KernelChain:
    """The chain that `jaxcnn.stack` makes of an odd window: 3x3 links, `width` channels a group between them."""
    *window, channels, features = kernel_shape
    count = (window[0] - 1) // 2
    three = (3,) * len(window)
    shapes = [
        (*three, channels if link == 0 else width, features if link == count - 1 else groups * width)
        for link in range(count)
    ]
    return _chain(shapes, groups)


def widest_within(macs: Callable[[int], int], budget: float) -> int:
    """The greatest width, 0 if there is none, at which a cost that grows with the width is within the budget."""
    if macs(1) > budget:
        return 0
    low, high = 1, 2
    while macs(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) <= budget else (low, middle)
    return low
