"""Convolutions of lax in every layout and as every derivative: recognised, and computed as they were."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

import jaxcnn
from jaxcnn.primitives import conv_p
from jaxcnn.transform.acceleration.accelerate import accelerate
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from support.arrays import assert_same, jax_normal
from support.cropping import assert_cropped
from support.drawn import drawn
from support.jaxprs import equations_of

pytestmark = pytest.mark.leaks


def roles(f, *args):
    """How often each role is bound in the accelerated function, and how many convolutions are left to lax."""
    counts = Counter()
    for equation in equations_of(accelerate(f), *args):
        if equation.primitive is conv_p:
            counts[equation.params["spec"].role] += 1
        elif equation.primitive is jax.extend.core.primitives.conv_general_dilated_p:
            counts["lax"] += 1
    return dict(counts)


def permutation(draw, letters):
    return "".join(draw(st.permutations(letters)))


@st.composite
def convolutions(draw):
    """(x, kernel, options of `lax.conv_general_dilated`) in any layout."""
    rank = draw(st.sampled_from([1, 2, 2]))
    space = "HW"[:rank]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel_in, kernel_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sizes = [draw(st.integers(5, 8)) for _ in space]
    taps = [draw(st.integers(1, 3)) for _ in space]
    shapes = (
        {"N": draw(st.integers(1, 3)), "C": groups * kernel_in, **dict(zip(space, sizes, strict=True))},
        {"I": kernel_in, "O": groups * kernel_out, **dict(zip(space, taps, strict=True))},
    )
    layout = (permutation(draw, "NC" + space), permutation(draw, "IO" + space), permutation(draw, "NC" + space))
    explicit = st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * rank)
    input_dilation = draw(st.sampled_from([(1,) * rank, (1,) * rank, (2,) * rank]))
    strides = tuple(draw(st.integers(1, 3)) for _ in space)
    options = {
        "window_strides": strides if max(input_dilation) == 1 else draw(st.sampled_from([(1,) * rank, strides])),
        "padding": draw(explicit if max(input_dilation) > 1 else st.sampled_from(["SAME", "VALID"]) | explicit),
        "lhs_dilation": input_dilation,
        "rhs_dilation": tuple(draw(st.integers(1, 2)) for _ in space),
        "dimension_numbers": layout,
        "feature_group_count": groups,
    }
    x, kernel = (
        jax_normal(tuple(sizes[letter] for letter in order), seed)
        for seed, (sizes, order) in enumerate(zip(shapes, layout, strict=False))
    )
    return x, kernel, options


@drawn(6, 50, convolutions())
def test_any_layout_and_its_derivatives(case):
    x, kernel, options = case

    def forward(x, kernel):
        return lax.conv_general_dilated(x, kernel, **options)

    y = jax.eval_shape(forward, x, kernel)
    if 0 in y.shape:
        return
    cotangent = jax_normal(y.shape, 3)

    def backward(x, kernel, cotangent):
        return jax.vjp(forward, x, kernel)[1](cotangent)

    assert_same(accelerate(forward)(x, kernel), jax.jit(forward)(x, kernel))
    assert_same(accelerate(backward)(x, kernel, cotangent), jax.jit(backward)(x, kernel, cotangent))
    through = jax.jit(lambda *a: jax.vjp(accelerate(forward), *a[:2])[1](a[2]))
    assert_same(through(x, kernel, cotangent), jax.jit(backward)(x, kernel, cotangent))


def _loss_gradient(**options):
    def loss(x, kernel):
        return jnp.sum(lax.conv_general_dilated(x, kernel, **options) ** 2)

    return jax.grad(loss, (0, 1))


LAYOUT = ("NCHW", "OIHW", "NCHW")


@pytest.mark.parametrize(
    ("groups", "strides", "expected"),
    [
        (1, 1, {"output": 2, "kernel": 1}),  # the input's gradient at stride 1 is a plain convolution
        (1, 2, {"output": 1, "kernel": 1, "input": 1}),
        (4, 1, {"output": 2, "kernel": 1}),
        (8, 2, {"output": 1, "kernel": 1, "input": 1}),
    ],
)
def test_derivatives_of_lax_become_roles(groups, strides, expected):
    x, kernel = jnp.ones((2, 8, 9, 9)), jnp.ones((8, 8 // groups, 3, 3))
    gradient = _loss_gradient(
        window_strides=(strides,) * 2, padding="SAME", feature_group_count=groups, dimension_numbers=LAYOUT
    )
    assert roles(gradient, x, kernel) == expected


@pytest.mark.parametrize(("window", "dilation"), [(2, 1), (4, 1), (3, 2)])
def test_derivatives_of_a_transposed_convolution_become_roles(window, dilation):
    x, kernel = jax_normal((2, 7, 6, 5), 0), jax_normal((window, window, 5, 3), 1)

    def loss(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(
            lax.conv_transpose(x, kernel, (2, 2), "SAME", rhs_dilation=(dilation, dilation), dimension_numbers=numbers)
            ** 2
        )

    gradient = jax.grad(loss, (0, 1))
    assert roles(gradient, x, kernel) == {"input": 1, "output": 1, "kernel": 1}
    assert_same(accelerate(gradient)(x, kernel), jax.jit(gradient)(x, kernel))


def test_complex_convolutions_are_left_to_lax():
    def f(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID")

    x, kernel = jnp.ones((1, 2, 5, 5), np.complex64), jnp.ones((2, 2, 3, 3), np.complex64)
    assert roles(f, x, kernel) == {"lax": 1}
    assert_same(accelerate(f)(x, kernel), f(x, kernel))


def test_negative_padding_of_lax_crops():
    def convolve(x, kernel, strides, padding, input_dilation, kernel_dilation, groups):
        space = "HW"[: len(strides)]
        layout = (f"N{space}C", f"{space}IO", f"N{space}C")
        return lax.conv_general_dilated(
            x, kernel, strides, padding, input_dilation, kernel_dilation, layout, feature_group_count=groups
        )

    assert_cropped(convolve, jit=accelerate)


def test_kernel_gradients_of_negative_padding_become_roles():
    gradient = _loss_gradient(window_strides=(2, 1), padding=[(-1, 2), (0, -2)], dimension_numbers=LAYOUT)
    assert roles(gradient, jnp.ones((2, 4, 9, 9)), jnp.ones((6, 4, 3, 3))) == {"output": 2, "kernel": 1}


def test_empty_results_are_left_to_lax():
    def f(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID")

    x, kernel = jnp.ones((1, 2, 2, 2)), jnp.ones((2, 2, 3, 3))
    assert accelerate(f)(x, kernel).shape == (1, 2, 0, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8])
def test_integers_are_equal_bit_for_bit(dtype, rng):
    x = jnp.asarray(rng.integers(-100, 100, (1, 6, 6, 4)).astype(dtype))
    kernel = jnp.asarray(rng.integers(-100, 100, (3, 3, 1, 4)).astype(dtype))

    def f(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    np.testing.assert_array_equal(accelerate(f)(x, kernel), f(x, kernel))
    assert roles(f, x, kernel) == {"output": 1}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_floats_are_no_less_accurate(dtype):
    x, kernel = jax_normal((2, 9, 9, 4), 0), jax_normal((3, 3, 1, 4), 1)
    x, kernel = x.astype(dtype), kernel.astype(dtype)

    def f(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    exact = np.asarray(f(x.astype(np.float32), kernel.astype(np.float32)), np.float64)
    ours, lax_own = (np.asarray(g(x, kernel), np.float64) for g in (accelerate(f), f))
    assert accelerate(f)(x, kernel).dtype == dtype
    assert np.abs(ours - exact).max() <= np.abs(lax_own - exact).max() * (1 + 1e-6)


@pytest.mark.parametrize("weak", [(True, False), (False, True), (True, True)])
def test_weak_types(weak):
    def f(x, kernel):
        x, kernel = (jnp.full(a.shape, 0.5) if is_weak else a for a, is_weak in zip((x, kernel), weak, strict=True))
        return lax.conv_general_dilated(x, kernel, (1,), "SAME")

    x, kernel = jax_normal((1, 2, 8)), jax_normal((2, 2, 3))
    assert_same(accelerate(f)(x, kernel), f(x, kernel))
    assert_same(jax.jit(accelerate(f))(x, kernel), jax.jit(f)(x, kernel))
    assert roles(f, x, kernel) == ({"lax": 1} if all(weak) else {"output": 1})


def test_preferred_element_type_and_precision_are_kept():
    def f(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1,), "SAME", precision="highest", preferred_element_type=np.float32)

    x, kernel = jnp.ones((1, 2, 8), jnp.bfloat16), jnp.ones((2, 2, 3), jnp.bfloat16)
    (equation,) = (e for e in equations_of(accelerate(f), x, kernel) if e.primitive is conv_p)
    assert as_convolution(equation, "compute").spec.out_dtype == np.float32
    assert equation.params["spec"].precision == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    assert accelerate(f)(x, kernel).dtype == np.float32


@pytest.mark.parametrize("dilation", [2, (1, 3), (2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_own_convolution_of_a_dilated_input_is_one_transposed(dilation, groups):
    x, kernel = jax_normal((2, 5, 6, 4), 0), jax_normal((3, 3, 4 // groups, 6), 1)

    def f(x, kernel):
        options = {"padding": ((1, 2), (2, 1)), "input_dilation": dilation, "feature_group_count": groups}
        return jaxcnn.conv(x, kernel, **options)

    result = [equation.params["spec"].role for equation in bound(accelerate(f), x, kernel)]
    assert result == ["input"]
    assert_same(accelerate(f)(x, kernel), f(x, kernel))


def bound(f, *args):
    """The equations of `conv_p` in a function, at any depth."""
    return [equation for equation in equations_of(f, *args) if equation.primitive is conv_p]


def test_own_convolution_of_a_dilated_input_with_strides_stays():
    x, kernel = jax_normal((2, 5, 6, 4), 0), jax_normal((3, 3, 4, 6), 1)

    def f(x, kernel):
        return jaxcnn.conv(x, kernel, strides=2, input_dilation=3)

    assert [equation.params["spec"].role for equation in bound(accelerate(f), x, kernel)] == ["output"]
    assert_same(accelerate(f)(x, kernel), f(x, kernel))
