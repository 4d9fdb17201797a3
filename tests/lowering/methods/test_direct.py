"""`direct` on a CPU, with channels-last convolutions, equals `direct` elsewhere, which JAX's transposition defines."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxcnn
from jaxcnn.lowering.methods import direct
from jaxcnn.lowering.spec import conv_spec
from support.arrays import normal
from support.cropping import assert_cropped
from support.drawn import drawn


@st.composite
def specs(draw, dtypes=(np.float32, np.float32)):
    """(lhs, rhs, spec) of the role "input" or "kernel"."""
    rank = draw(st.integers(1, 2))

    def ints(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups = draw(st.sampled_from([1, 1, 2]))
    options = {
        "strides": ints(1, 3),
        "padding": tuple(zip(ints(0, 4), ints(0, 4), strict=True)),
        "input_dilation": draw(st.sampled_from([(1,) * rank, (2,) * rank])),
        "kernel_dilation": ints(1, 2),
        "feature_group_count": groups,
        "precision": None,
        "preferred_element_type": np.dtype(np.float32),
    }
    stacked = draw(st.booleans())
    lead = (2,) if stacked else ()
    x, kernel = (2, *ints(5, 8), 2 * groups), (*ints(1, 3), 2, 3 * groups)
    rng = np.random.default_rng(draw(st.integers(0, 9)))

    def operand(shape, dtype):
        return jnp.asarray(normal((*lead, *shape), rng, dtype))

    forward = conv_spec(
        operand(x, np.float32),
        operand(kernel, np.float32),
        role="output",
        stacked=stacked,
        input_size=None,
        window=None,
        **options,
    )
    y = forward.output_shape
    role = draw(st.sampled_from(["input", "kernel"]))
    shapes = (y, kernel) if role == "input" else (x, y)
    lhs, rhs = (operand(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    sizes = {"input_size": x[1:-1] if role == "input" else None, "window": kernel[:-2] if role == "kernel" else None}
    return lhs, rhs, conv_spec(lhs, rhs, role=role, stacked=stacked, **sizes, **options)


def check(case, tolerance):
    lhs, rhs, spec = case
    on_cpu = dataclasses.replace(spec, platform="cpu")
    both = jax.jit(lambda a, b: (direct.lower(a, b, on_cpu), direct.lower(a, b, spec)))
    actual, expected = both(lhs, rhs)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * float(jnp.abs(expected).max()))


@drawn(8, 25, specs())
def test_channels_last_equals_direct(case):
    check(case, 1e-5)


@drawn(8, 25, specs((jnp.float32, jnp.bfloat16)))
def test_mixed_dtypes(case):
    check(case, 1e-5)


@drawn(8, 25, specs((jnp.bfloat16, jnp.bfloat16)))
def test_sixteen_bits(case):
    check(case, 1e-5)


@pytest.mark.parametrize("method", ["auto", "direct"])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_padding_beyond_the_window_and_negative_padding(method, dtype):
    def convolve(x, kernel, groups, **options):
        return jaxcnn.conv(x, kernel, feature_group_count=groups, method=method, **options)

    assert_cropped(convolve, dtype)
