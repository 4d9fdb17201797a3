"""An equation that is a convolution, with a chain for its kernel: its result and its multiply-accumulates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn._compat import example
from jaxcnn.chain import KernelChain
from jaxcnn.convolution import conv
from jaxcnn.cost import conv_cost
from jaxcnn.dtypes import floating_at_least_float32
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.primitives import conv_p
from jaxcnn.transform.chains.axis_views import Ints
from jaxcnn.transform.chains.find_kernels import Site
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from jaxcnn.transform.jaxpr.equations import all_equations, avals


def conv_options(equation: JaxprEqn) -> dict[str, Any]:
    """The equation's options as `conv` and `conv_cost` take them, groups aside: a chain has its own."""
    params = equation.params
    names = ("strides", "padding", "input_dilation", "kernel_dilation")
    own = names if equation.primitive is conv_p else ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    return {name: tuple(params[key]) for name, key in zip(names, own, strict=True)}


def image_axes(equation: JaxprEqn) -> tuple[Ints, Ints]:
    """The axes of the equation's image and result that are (N, *spatial, C)."""
    lhs, _, out = avals(equation)
    if equation.primitive is conv_p:
        return tuple(range(lhs.ndim)), tuple(range(out.ndim))
    numbers = equation.params["dimension_numbers"]
    (n, c, *spatial), (out_n, out_c, *out_spatial) = numbers.lhs_spec, numbers.out_spec
    return (n, *spatial, c), (out_n, *out_spatial, out_c)


def is_forward(equation: JaxprEqn) -> bool:
    """Whether the equation computes outputs of its image, and not the other way round."""
    return equation.primitive is not conv_p or equation.params["role"] == "output"


def direction(site: Site, placement: Placement) -> tuple[bool, Ints]:
    """Whether a convolution takes the outputs of the kernel at a placement to its inputs; the axes it reverses."""
    own = site.use.placement
    exchanged = (own.inputs, own.outputs) != (placement.inputs, placement.outputs)
    return exchanged == is_forward(site.equation), site.use.flipped


def as_patches_see_it(site: Site, chain: KernelChain, placement: Placement) -> KernelChain:
    """The links that a convolution's patches meet, of a chain for the kernel at a placement; its own inverse."""
    backward, flipped = direction(site, placement)
    kernels, counts = chain.kernels, chain.feature_group_counts
    if backward:
        kernels = tuple(transposed_kernel(k, n) for k, n in zip(kernels, counts, strict=True))[::-1]
        counts = counts[::-1]
    if flipped:
        kernels = tuple(jnp.flip(kernel, flipped) for kernel in kernels)
    return KernelChain(kernels, counts)


def convolve_with_chain(equation: JaxprEqn, x: jax.Array, chain: KernelChain) -> jax.Array:
    """The equation's result for an image, with a chain for its kernel."""
    out = avals(equation)[-1]
    if 0 in out.shape:
        return jnp.zeros(out.shape, out.dtype)  # which jaxcnn refuses, and lax does not
    options = {**conv_options(equation), "precision": equation.params["precision"]}
    if not is_forward(equation):
        # The transpose of the convolution, which is linear in its image; all of it in the dtype that `conv` keeps
        # between links.
        dtype = floating_at_least_float32(out.dtype)
        wide = jax.tree.map(lambda link: link.astype(dtype), chain)
        (result,) = jax.linear_transpose(
            lambda image: conv(image, wide, **options, preferred_element_type=dtype), example(out.shape, dtype, None, x)
        )(x.astype(dtype))
        return result.astype(out.dtype)
    x_axes, out_axes = image_axes(equation)
    result = conv(x.transpose(x_axes), chain, preferred_element_type=out.dtype, **options)
    return result.transpose(np.argsort(out_axes))


def macs_with_chain(equation: JaxprEqn, chain: KernelChain) -> int:
    """Multiply-accumulates of the equation with a chain for its kernel, as a summary counts them."""
    lhs, _, out = avals(equation)
    options = conv_options(equation)
    if max(options["input_dilation"]) > 1:
        # Not those with the zeros between pixels, which are left out where a convolution is the transpose of another.
        closed = jax.make_jaxpr(lambda x, chain: convolve_with_chain(equation, x, chain))(
            jax.ShapeDtypeStruct(lhs.shape, lhs.dtype), chain
        )
        convolutions = (as_convolution(inner, "describe") for inner in all_equations(closed))
        return sum(conv.spec.macs for conv in convolutions if conv is not None)
    image, axes = (lhs, image_axes(equation)[0]) if is_forward(equation) else (out, range(out.ndim))
    return conv_cost(tuple(image.shape[axis] for axis in axes), chain, **options).macs
