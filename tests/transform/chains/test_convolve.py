"""Multiply-accumulates of convolutions with chains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.convolve import convolve_with_chain, macs_with_chain
from jaxcnn.transform.jaxpr.convolutions import as_convolution, is_convolution
from jaxcnn.transform.jaxpr.equations import all_equations
from support.arrays import normal


def dilated(x, kernel, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 2),
        ((2, 1), (1, 2)),
        (3, 2),
        dimension_numbers=("NCHW", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("scheme", ["separable", "low_rank", "tucker2", "depthwise_separable", "cp"])
def test_macs_between_pixels_do_not_depend_on_the_chain_that_was_counted_first(scheme, groups):
    kernel = jnp.asarray(normal((3, 4, 8 // groups, 12)))
    closed = jax.make_jaxpr(lambda x: dilated(x, kernel, groups))(jax.ShapeDtypeStruct((2, 8, 5, 7), "float32"))
    (equation,) = (equation for equation in all_equations(closed) if is_convolution(equation))
    for rank in (1, 2):
        chain = getattr(jaxcnn, scheme)(
            kernel,
            **{"tucker2": {"ranks": rank}, "depthwise_separable": {"multiplier": rank}}.get(scheme, {"rank": rank}),
            feature_group_count=groups,
        )
        with_chain = jax.make_jaxpr(lambda x, chain: convolve_with_chain(equation, x, chain))(
            jax.ShapeDtypeStruct((2, 8, 5, 7), "float32"), chain
        )
        convolutions = [as_convolution(inner, "describe") for inner in all_equations(with_chain)]
        assert macs_with_chain(equation, chain) == sum(conv.spec.macs for conv in convolutions if conv is not None)
