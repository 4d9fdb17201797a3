"""Convolutions of a jaxpr with a chain for their kernel: results and multiply-accumulates."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn._compat import example
from jaxcnn.chain import KernelChain
from jaxcnn.convolution import conv
from jaxcnn.cost import conv_cost
from jaxcnn.dtypes import floating_at_least_float32
from jaxcnn.transform.chains.axis_views import Ints
from jaxcnn.transform.chains.find_kernels import Site
from jaxcnn.transform.chains.placement import Placement, turn
from jaxcnn.transform.jaxpr.convolutions import as_convolution, forward_axes, forward_options, option, role_of
from jaxcnn.transform.jaxpr.equations import all_equations, avals

_MAX_GEOMETRIES = 4096
"""Largest number of convolutions and windows of links whose counts of multiply-accumulates are kept."""


def is_forward(equation: JaxprEqn) -> bool:
    """Returns whether the equation has the role `"output"`: image to outputs, not outputs to image."""
    return role_of(equation) == "output"


def direction(site: Site, placement: Placement) -> tuple[bool, Ints]:
    """Returns whether a convolution takes outputs of the kernel at a placement to inputs, and the flipped axes."""
    kernel = site.use.placement
    exchanged = (kernel.inputs, kernel.outputs) != (placement.inputs, placement.outputs)
    return exchanged == is_forward(site.equation), site.use.flipped


def as_patches_see_it(site: Site, chain: KernelChain, placement: Placement) -> KernelChain:
    """Returns the chain that multiplies the patches of a convolution, from a chain of the kernel at a placement.

    The function is its own inverse. NumPy computes it, since JAX would compile programs for each rank.
    """
    exchanged, flipped = direction(site, placement)
    if not exchanged and not flipped:
        return chain
    on_host = KernelChain(tuple(map(np.asarray, chain.kernels)), chain.feature_group_counts)
    turned = turn(on_host, exchanged, flipped)
    return KernelChain(tuple(map(jax.device_put, turned.kernels)), turned.feature_group_counts)


def convolve_with_chain(equation: JaxprEqn, x: jax.Array, chain: KernelChain) -> jax.Array:
    """Returns the equation's result for an image, with a chain for its kernel."""
    out = avals(equation)[-1]
    if 0 in out.shape:
        return jnp.zeros(out.shape, out.dtype)  # jaxcnn refuses empty results, lax does not
    options = {**forward_options(equation), "precision": option(equation, "precision")}
    if not is_forward(equation):
        # A transposed convolution, in the dtype that `conv` keeps between links.
        dtype = floating_at_least_float32(out.dtype)
        wide = jax.tree.map(lambda link: link.astype(dtype), chain)
        (result,) = jax.linear_transpose(
            lambda image: conv(image, wide, **options, preferred_element_type=dtype), example(out.shape, dtype, None, x)
        )(x.astype(dtype))
        return result.astype(out.dtype)
    x_axes, _, out_axes = forward_axes(equation)
    result = conv(x.transpose(x_axes), chain, preferred_element_type=out.dtype, **options)
    return result.transpose(np.argsort(out_axes))


def macs_with_chain(equation: JaxprEqn, chain: KernelChain) -> int:
    """Returns the multiply-accumulates of the equation with a chain for its kernel, counted as in a summary."""
    lhs, _, out = avals(equation)
    options = forward_options(equation)
    if max(options["input_dilation"]) > 1:
        links, counts = chain.kernels, chain.feature_group_counts
        features = links[0].shape[-2] * counts[0], links[-1].shape[-1]
        uses = _uses_of_a_weight(equation, chain.windows, counts, *features)
        return sum(round(times * math.prod(link.shape)) for times, link in zip(uses, links, strict=True))
    image, axes = (lhs, forward_axes(equation)[0]) if is_forward(equation) else (out, range(out.ndim))
    return conv_cost(tuple(image.shape[axis] for axis in axes), chain, **options).macs


@lru_cache(maxsize=_MAX_GEOMETRIES)
def _uses_of_a_weight(
    equation: JaxprEqn, windows: tuple[Ints, ...], counts: Ints, inputs: int, outputs: int
) -> tuple[float, ...]:
    """Returns the multiply-accumulates of each link for each of its weights, which do not depend on a chain's ranks.

    Products with the zeros between pixels do not count where the convolution is the transpose of another, so these are
    counted in the program of the narrowest chain.
    """
    image = avals(equation)[0]
    width = math.lcm(*counts)
    widths = (inputs, *(width for _ in windows[1:]), outputs)
    chain = KernelChain.of_shapes(
        *(
            ((*window, before // count, after), count)
            for window, (before, after), count in zip(windows, pairwise(widths), counts, strict=True)
        ),
        dtype=image.dtype,
    )
    closed = jax.make_jaxpr(lambda x, chain: convolve_with_chain(equation, x, chain))(
        jax.ShapeDtypeStruct(image.shape, image.dtype), chain
    )
    convolutions = (as_convolution(inner, "describe") for inner in all_equations(closed))
    macs = [conv.spec.macs for conv in convolutions if conv is not None]
    in_order = macs if is_forward(equation) else macs[::-1]
    sizes = [math.prod(link.shape) for link in chain.kernels]
    return tuple(total / size for total, size in zip(in_order, sizes, strict=True))
