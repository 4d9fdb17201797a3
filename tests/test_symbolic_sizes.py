"""Exported programs of a symbolic batch keep the fast forms; other symbolic sizes are left to XLA, or refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import STAND_IN_BATCH, conv_spec
from support.arrays import assert_close, normal

SIZES = (3, 1)
"""Batches for which each exported program runs."""


def lax_conv(x, kernel, groups=1, strides=(1, 1)):
    return lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def lax_max(x):
    return lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def images_first(function):
    """Each image with a kernel of its own, which a gradient for each example computes."""
    return lambda x, kernel: jax.vmap(lambda x: jax.grad(lambda k: (function(x[None], k) ** 2).sum())(kernel))(x)


SCALE = (1, 1, 1, 8)
CONVOLUTIONS, POOLS = ("convolution", "dynamic_conv"), ("reduce_window", "select_and_scatter", "scatter")
CASES = {
    # name: (jaxcnn's, lax's, shape of the kernel, operations that the program must not hold)
    "dense": (partial(jaxcnn.conv, method="matmul"), lax_conv, (3, 3, 8, 16), CONVOLUTIONS),
    "depthwise": (partial(jaxcnn.conv, feature_group_count=8), partial(lax_conv, groups=8), (3, 3, 1, 8), CONVOLUTIONS),
    "grouped": (partial(jaxcnn.conv, feature_group_count=4), partial(lax_conv, groups=4), (3, 3, 2, 16), CONVOLUTIONS),
    "strided": (
        *(partial(jaxcnn.conv, feature_group_count=8, strides=2), partial(lax_conv, groups=8, strides=(2, 2))),
        *((3, 3, 1, 8), CONVOLUTIONS),
    ),
    "spectra": (
        *(partial(jaxcnn.conv, feature_group_count=8, method="fft"), partial(lax_conv, groups=8)),
        *((5, 5, 1, 8), CONVOLUTIONS),
    ),
    "accelerated": (
        *(jaxcnn.accelerate(lambda x, kernel: jax.nn.relu(lax_conv(x, kernel, 8))),),
        *(lambda x, kernel: jax.nn.relu(lax_conv(x, kernel, 8)), (3, 3, 1, 8), CONVOLUTIONS),
    ),
    "max": (lambda x, kernel: jaxcnn.max_pool(x * kernel, 2, strides=2), lambda x, k: lax_max(x * k), SCALE, POOLS),
    "accelerated max": (
        *(jaxcnn.accelerate(lambda x, kernel: lax_max(x * kernel)), lambda x, k: lax_max(x * k), SCALE),
        ("reduce_window",),
    ),
}


def value_and_gradients(function):
    def run(x, kernel):
        return function(x, kernel), jax.grad(lambda *args: (function(*args) ** 2).sum(), (0, 1))(x, kernel)

    return run


def exported(function, *shapes):
    return jax.export.export(jax.jit(function))(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize("name", CASES)
def test_a_symbolic_batch_keeps_the_fast_forms(name):
    function, of_lax, kernel_shape, unwanted = CASES[name]
    (batch,) = jax.export.symbolic_shape("b")
    program = exported(value_and_gradients(function), (batch, 6, 6, 8), kernel_shape)
    text = program.mlir_module()
    assert "stablehlo." in text
    assert not [operation for operation in unwanted if f"stablehlo.{operation}" in text]
    kernel, images = normal(kernel_shape, 1), normal((max(SIZES), 6, 6, 8))
    reference = jax.jit(value_and_gradients(of_lax))
    for size in SIZES:
        images[size:] = 0  # images of zeros add nothing to the gradient of the kernel
        value, (of_images, of_kernel) = program.call(images[:size], kernel)
        expected, (expected_of_images, expected_of_kernel) = reference(images, kernel)
        assert_close(value, expected[:size], 4e-6)
        assert_close(of_images, expected_of_images[:size], 4e-6)
        assert_close(of_kernel, expected_of_kernel, 4e-6)


def test_gradients_of_each_example_of_a_symbolic_batch():
    function = images_first(partial(jaxcnn.conv, feature_group_count=8))
    program = exported(function, (*jax.export.symbolic_shape("b"), 6, 6, 8), (3, 3, 1, 8))
    assert not [name for name in CONVOLUTIONS if f"stablehlo.{name}" in program.mlir_module()]
    x, kernel = normal((3, 6, 6, 8)), normal((3, 3, 1, 8), 1)
    assert_close(program.call(x, kernel), jax.jit(images_first(partial(lax_conv, groups=8)))(x, kernel), 4e-6)


@pytest.mark.parametrize("shape", ["b, h, 6, 8", "b, 6, 6, c"])
def test_other_symbolic_sizes_are_left_to_xla(shape):
    shape = jax.export.symbolic_shape(shape)
    text = exported(partial(jaxcnn.conv, feature_group_count=1), shape, (3, 3, shape[-1], 8)).mlir_module()
    assert any(f"stablehlo.{name}" in text for name in CONVOLUTIONS)


def test_a_symbolic_program_holds_no_compiled_kernels():
    (batch,) = jax.export.symbolic_shape("b")
    structs = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((batch, 32, 32, 64), (3, 3, 1, 64)))
    assert "jaxcnn_" not in jax.jit(partial(jaxcnn.conv, feature_group_count=64)).lower(*structs).as_text()


def test_a_symbolic_batch_counts_as_one_image_in_the_choice():
    def spec(batch, groups):
        lhs, rhs = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((batch, 9, 9, 8), (3, 3, 8 // groups, 8)))
        options = {"strides": (1, 1), "padding": ((1, 1),) * 2, "input_dilation": (1, 1), "kernel_dilation": (1, 1)}
        return conv_spec(
            *(lhs, rhs),
            **options,
            **{"role": "output", "stacked": False, "input_size": None, "window": None, "precision": None},
            feature_group_count=groups,
            preferred_element_type=np.float32,
        )

    (batch,) = jax.export.symbolic_shape("b")
    for groups in (1, 8):
        assert choice.choose(spec(2 * batch, groups), "auto", "cpu") == choice.choose(
            spec(STAND_IN_BATCH, groups), "auto", "cpu"
        )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_of_a_symbolic_image(mode):
    def gradient(x, kernel):
        conv = partial(jaxcnn.conv, padding_mode=mode, padding=((2, 2), (3, 0)))
        return conv(x, kernel), jax.grad(lambda x: (conv(x, kernel) ** 2).sum())(x)

    batch, height, width = jax.export.symbolic_shape("b, h, w")
    program = exported(gradient, (batch, height, width, 2), (4, 3, 2, 3))
    kernel = normal((4, 3, 2, 3), 1)
    for shape in ((1, 5, 6, 2), (2, 1, 2, 2)):
        x = normal(shape)
        for result, reference in zip(program.call(x, kernel), gradient(x, kernel), strict=True):
            assert_close(result, reference, 4e-6)


@pytest.mark.parametrize("pool", [jaxcnn.adaptive_avg_pool, jaxcnn.adaptive_max_pool])
def test_adaptive_pools_of_symbolic_sizes(pool):
    (batch, size) = jax.export.symbolic_shape("b, h")
    program = exported(lambda x: pool(x, (4, 3)), (batch, 6, 7, 2))
    x = normal((3, 6, 7, 2))
    assert_close(program.call(x), pool(jnp.asarray(x), (4, 3)))
    with pytest.raises(ValueError, match=r"windows of an adaptive pool depend on the image, .* got \(h, 7\)"):
        exported(lambda x: pool(x, (4, 3)), (batch, size, 7, 2))
