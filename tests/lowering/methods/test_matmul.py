"""`matmul` against `direct` in float64: patches, stacks, and the two ways to a kernel gradient."""

from __future__ import annotations

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
    monkeypatch.setattr(matmul, "_STACKED_BYTES", room)
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


@pytest.mark.without_native
@pytest.mark.parametrize(
    ("shape", "kernel", "wanted"),
    [
        ((1, 14, 14, 256), (3, 3, 256, 256), True),
        ((1, 17, 17, 192), (7, 1, 192, 192), True),  # 1.1, 3.1
        ((1, 56, 56, 64), (3, 3, 64, 64), False),  # 2.8, 2.4
        ((8, 28, 28, 128), (3, 3, 128, 128), False),  # 30, 13
    ],
)
def test_where_a_kernel_gradient_is_one_product(shape, kernel, wanted):
    x, kernel = jnp.zeros(shape), jnp.zeros(kernel)
    rows = jaxcnn.summarize(lambda y: jax.vjp(lambda k: jaxcnn.conv(x, k), kernel)[1](y), jnp.zeros(shape)).rows
    assert [row.method == "matmul" for row in rows if row.kind == "kernel gradient"] == [wanted]


@pytest.mark.parametrize("strides", [1, 2, (3, 1)])
@pytest.mark.parametrize("room", [0, 10**9])
def test_kernel_gradients_of_all_taps_and_of_each(monkeypatch, strides, room):
    monkeypatch.setattr(matmul, "_GATHERED_BYTES", room)
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
