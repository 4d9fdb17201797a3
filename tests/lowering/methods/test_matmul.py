"""`matmul` against `direct` in float64: gathered and spread taps, stacks, and the two ways to a kernel gradient."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering.methods import matmul
from support.arrays import normal, relative_error
from support.methods import Case, assert_equals_direct, roles

CASES: dict[str, Case] = {
    "pointwise": ((2, 4, 5, 3), (1, 1, 3, 4), {}),
    "patches, strided and dilated": (
        (2, 9, 8, 3),
        (3, 2, 3, 5),
        {"strides": (2, 3), "kernel_dilation": (2, 1), "padding": ((0, 2), (1, 3))},
    ),
    "groups": ((2, 6, 7, 6), (3, 2, 2, 12), {"feature_group_count": 3, "padding": ((1, 1), (0, 1))}),
    "one channel at a time": ((1, 6, 7, 4), (3, 3, 1, 8), {"feature_group_count": 4, "strides": (2, 1)}),
    "one axis": ((2, 12, 3), (4, 3, 2), {"strides": (3,), "padding": ((2, 1),)}),
    "three axes": ((1, 5, 6, 4, 2), (3, 2, 2, 2, 3), {"strides": (2, 1, 1), "padding": ((1, 1), (0, 1), (0, 0))}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_roles_equal_direct(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(matmul, roles(x_shape, kernel_shape, **options))


@pytest.mark.parametrize("room", [0, 10**6])
def test_a_stack_is_one_product_or_a_loop(monkeypatch, room):
    monkeypatch.setattr(matmul, "MAX_PRODUCT_BYTES", room)
    x, kernels = normal((3, 1, 6, 6, 2), 0), normal((3, 3, 3, 2, 4), 1)
    convolved = jax.vmap(lambda x, kernel: jaxcnn.conv(x, kernel, strides=2, method="matmul"))
    jax.clear_caches()
    expected = np.stack([jaxcnn.conv(*pair, strides=2, method="direct") for pair in zip(x, kernels, strict=True)])
    assert relative_error(convolved(x, kernels), expected) < 1e-6
    text = jax.jit(convolved).lower(x, kernels).as_text()
    assert ("while" in text) == (room == 0)
    jax.clear_caches()


def test_refusals():
    with pytest.raises(ValueError, match=r"method 'matmul' does not support .*its operands are complex"):
        jaxcnn.conv(jnp.ones((4, 4, 1), np.complex64), jnp.ones((2, 2, 1, 1), np.complex64), method="matmul")


@pytest.mark.parametrize("strides", [1, 2, (3, 1)])
@pytest.mark.parametrize("room", [0, 10**9])
def test_kernel_gradients_of_all_taps_and_of_each(monkeypatch, strides, room):
    monkeypatch.setattr(matmul, "MAX_GATHERED_BYTES", room)
    x, kernel = normal((2, 9, 8, 3), 0), normal((3, 4, 3, 5), 1)

    def gradient(x, kernel, method):
        y, pull = jax.vjp(lambda k: jaxcnn.conv(x, k, method=method, strides=strides, kernel_dilation=(1, 2)), kernel)
        return pull(jnp.asarray(normal(y.shape, 2), y.dtype))[0]

    jax.clear_caches()
    text = jax.jit(lambda k: gradient(x, k, "matmul")).lower(kernel).as_text()
    assert (text.count("dot_general") < 4) == (room > 0)  # one for each of twelve taps otherwise
    expected = gradient(x.astype(np.float64), kernel.astype(np.float64), "direct")
    assert relative_error(gradient(x, kernel, "matmul"), expected) < 1e-6
    jax.clear_caches()


SPREAD_OPTIONS = {
    "same": {},
    "uneven padding": {"padding": ((0, 3), (2, 1))},
    "cropped": {"padding": ((-1, 2), (3, -2))},
    "dilated": {"kernel_dilation": (2, 3), "padding": ((4, 1), (0, 5))},
    "valid": {"padding": "VALID"},
}


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("room", [0, 10**9])
def test_every_split_of_the_axes_at_once_and_image_by_image(monkeypatch, axes, room):
    x, kernel = normal((4, 9, 8, 3), 0), normal((3, 4, 3, 5), 1)

    def by_options(x, kernel, method):
        options = SPREAD_OPTIONS.items()
        return {name: jaxcnn.conv(x, kernel, method=method, **given) for name, given in options}

    expected = jax.jit(partial(by_options, method="direct"))(x, kernel)
    monkeypatch.setattr(matmul, "MAX_PRODUCT_BYTES", room)
    monkeypatch.setattr(matmul, "gathered_axes", lambda *_: axes)
    jax.clear_caches()
    lowered = jax.jit(partial(by_options, method="matmul")).lower(x, kernel)
    assert ("while" in lowered.as_text()) == (room == 0)
    actual = lowered.compile()(x, kernel)
    for name in SPREAD_OPTIONS:
        assert actual[name].shape == expected[name].shape
        assert relative_error(actual[name], expected[name]) < 1e-6, name
    jax.clear_caches()


@pytest.mark.parametrize("spatial", [1, 3])
def test_one_and_three_axes(spatial):
    x, kernel = normal((2, *[7] * spatial, 3), 0), normal((*(3, 2, 4)[:spatial], 3, 5), 1)
    actual = jaxcnn.conv(x, kernel, method="matmul")
    expected = jaxcnn.conv(x.astype(np.float64), kernel.astype(np.float64), method="direct")
    assert relative_error(actual, expected) < 1e-6


def test_integers_are_exact():
    generator = np.random.default_rng(0)
    x, kernel = (generator.integers(-128, 127, shape, np.int8) for shape in ((1, 9, 8, 30), (5, 3, 30, 4)))
    np.testing.assert_array_equal(jaxcnn.conv(x, kernel, method="matmul"), jaxcnn.conv(x, kernel, method="direct"))


def test_a_nan_stays_in_the_outputs_that_see_it(monkeypatch):
    monkeypatch.setattr(matmul, "MAX_PRODUCT_BYTES", 0)
    jax.clear_caches()
    x, kernel = normal((2, 16, 8, 3), 0), normal((3, 3, 3, 5), 1)
    x[0, 0, 0, 0] = np.nan
    y = np.asarray(jaxcnn.conv(x, kernel, method="matmul"))
    assert np.isnan(y[0, :2, :2]).all()
    assert np.isfinite(y[0, 2:]).all()
    assert np.isfinite(y[1]).all()
    jax.clear_caches()


def test_the_fewest_numbers_are_moved():
    assert matmul.gathered_axes((11, 1), 64, 64) == ()
    assert matmul.gathered_axes((1, 3), 64, 512) == (1,)
    assert matmul.gathered_axes((11, 11), 64, 64) == (0,)
    assert matmul.gathered_axes((7, 7), 64, 10) == ()
    for window, features in itertools.product([(3, 3), (5, 1), (2, 3, 4)], [(1, 100), (100, 1), (8, 8)]):
        fewest = matmul.moved_numbers(window, *features, matmul.gathered_axes(window, *features))
        for axes in ((), (0,), tuple(range(len(window)))):
            assert fewest <= matmul.moved_numbers(window, *features, axes)
