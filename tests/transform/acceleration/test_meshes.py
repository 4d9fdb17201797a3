"""Accelerated functions on meshes, Auto and Explicit: jaxcnn's forms, with one device's values and gradients."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn import native
from jaxcnn.transform.jaxpr.equations import all_equations
from support.arrays import normal

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
BATCH, ROWS, BOTH, CHANNELS = P("a"), P(None, "a"), P("a", "b"), P("b", None, None, "a")


def conv(numbers=NHWC, groups=1, strides=(1, 1)):
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def pool(reducer, initial, window, strides):
    return lambda x: lax.reduce_window(x, initial, reducer, window, strides, "VALID")


def block(x, kernel, bias):
    return jax.nn.relu(conv()(x, kernel) + bias[None, None, None])


MAX = pool(lax.max, -np.inf, (1, 2, 2, 1), (1, 2, 2, 1))
MAX_OF_PLANES = pool(lax.max, -np.inf, (1, 1, 3, 3), (1, 1, 1, 1))
CASES = {
    # name: (function, shapes, shardings)
    "3x3, batch": (conv(), [(4, 8, 8, 8), (3, 3, 8, 4)], [BATCH, P()]),
    "3x3 strided, batch and rows": (conv(strides=(2, 2)), [(4, 8, 8, 8), (3, 3, 8, 4)], [BOTH, P()]),
    "depthwise 3x3, rows": (conv(groups=8), [(4, 8, 8, 8), (3, 3, 1, 8)], [ROWS, P()]),
    "2 groups, batch": (conv(groups=2), [(4, 8, 8, 8), (3, 3, 4, 8)], [BATCH, P()]),
    "channels first, batch and rows": (conv(NCHW), [(4, 8, 8, 8), (4, 8, 3, 3)], [P("a", None, "b"), P()]),
    "with bias and relu, batch": (block, [(4, 8, 8, 8), (3, 3, 8, 4), (4,)], [BATCH, P(), P()]),
    "max pool, batch and channels": (MAX, [(4, 8, 8, 8)], [CHANNELS]),
    "max pool, rows": (MAX, [(4, 8, 8, 8)], [ROWS]),
    "max pool of channels first, batch": (MAX_OF_PLANES, [(4, 8, 8, 8)], [BATCH]),
    "sums of windows, batch": (pool(lax.add, 0.0, (1, 3, 3, 1), (1, 1, 1, 1)), [(4, 8, 8, 8)], [BATCH]),
}
OF_LAX = {
    "conv_general_dilated",
    *("reduce_window_max", "reduce_window_sum", "select_and_scatter_add", "select_and_gather_add"),
}


def value_and_gradients(function):
    def run(*args):
        return function(*args), jax.grad(lambda *args: (function(*args) ** 2).sum(), range(len(args)))(*args)

    return run


def context_of(mesh):
    return jax.set_mesh(mesh) if AxisType.Explicit in mesh.axis_types else contextlib.nullcontext()


def check_values_and_gradients(name, kinds):
    """Compares a case on a mesh, two axes of some kinds, with one device."""
    function, shapes, specs = CASES[name]
    arrays = [jnp.asarray(normal(shape)) for shape in shapes]
    expected = jax.jit(value_and_gradients(function))(*arrays)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=tuple(getattr(AxisType, kind) for kind in kinds))
    accelerated = jaxcnn.accelerate(value_and_gradients(function))
    with context_of(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]
        primitives = {equation.primitive.name for equation in all_equations(jax.make_jaxpr(accelerated)(*placed))}
        actual = accelerated(*placed)
        if "Explicit" in kinds:
            # A gradient has its argument's sharding, as lax's would.
            assert [jax.typeof(g) for g in actual[1]] == [jax.typeof(array) for array in placed]
    assert not primitives & OF_LAX
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(float(jnp.abs(theirs).max()), 1.0)
        np.testing.assert_allclose(np.asarray(ours) / scale, np.asarray(theirs) / scale, atol=2e-5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_one_devices_by_the_fast_forms(name, kind):
    check_values_and_gradients(name, (kind, kind))


@pytest.mark.parametrize("kinds", [("Explicit", "Auto"), ("Auto", "Explicit")])
@pytest.mark.parametrize("name", ["3x3 strided, batch and rows", "depthwise 3x3, rows", "max pool, rows"])
def test_so_they_are_on_a_mesh_of_both_kinds_of_axes(name, kinds):
    check_values_and_gradients(name, kinds)


def test_planes_over_devices_by_channel_stay_with_lax():
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Explicit,))
    with context_of(mesh):
        x = jax.device_put(jnp.asarray(normal((4, 8, 8, 8))), NamedSharding(mesh, P(None, "a")))
        text = jax.jit(jaxcnn.accelerate(MAX_OF_PLANES)).lower(x).compile().as_text()
    assert "reduce-window" in text
    assert "all-" not in text


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_mesh_of_one_device_keeps_the_native_kernels(kind):
    if not native.is_available():
        pytest.skip("needs the native kernels")
    x, kernel = jnp.ones((2, 32, 32, 64)), jnp.ones((3, 3, 1, 64))
    function = jaxcnn.accelerate(lambda x, kernel: jax.nn.relu(conv(groups=64)(x, kernel)))
    mesh = jax.make_mesh((1,), ("a",), axis_types=(getattr(AxisType, kind),))
    with context_of(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, BATCH)) for array in (x, kernel)]
        assert "jaxcnn_slide" in jax.jit(function).lower(*placed).as_text()
        if kind == "Explicit":
            assert jax.typeof(jaxcnn.conv(*placed, feature_group_count=64)) == jax.typeof(placed[0])
