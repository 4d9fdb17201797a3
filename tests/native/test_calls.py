"""Calls of the native kernels from several threads, in loops, with donated operands and in batches."""

from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import native

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")

conv = functools.partial(jaxcnn.conv, method="native")


def integers(*shape):
    """Small whole numbers, whose sums of products are exact."""
    return jnp.asarray(np.random.default_rng(0).integers(-3, 4, shape), jnp.float32)


def test_concurrent_callers_get_the_results_of_one():
    f = jax.jit(conv)
    images, kernel = [integers(1, 40, 40, 8) + i for i in range(8)], integers(3, 3, 8, 24)
    wanted = [np.asarray(jaxcnn.conv(image, kernel, method="direct")) for image in images]
    barrier, equal = threading.Barrier(len(images)), []

    def call(image, result):
        barrier.wait()
        equal.extend(np.array_equal(f(image, kernel), result) for _ in range(10))

    threads = [threading.Thread(target=call, args=pair) for pair in zip(images, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80


@pytest.mark.parametrize("groups", [1, 8])
def test_in_the_body_of_a_loop(groups):
    kernel = integers(3, 3, 8 // groups, 8)

    def f(x, method):
        def body(x, _):
            return jnp.clip(jaxcnn.conv(x, kernel, feature_group_count=groups, method=method), -3, 3), None

        return jax.lax.scan(body, x, length=4)[0]

    x = integers(2, 12, 12, 8)
    np.testing.assert_array_equal(jax.jit(f, static_argnums=1)(x, "native"), f(x, "direct"))


def test_a_donated_operand_is_read_before_it_is_overwritten():
    x, kernel = integers(1, 24, 24, 8), integers(5, 5, 8, 8)
    wanted = jaxcnn.conv(x, kernel, method="direct")
    np.testing.assert_array_equal(jax.jit(conv, donate_argnums=0)(x.copy(), kernel), wanted)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_batches(axes):
    x, kernel = integers(3, 2, 9, 9, 4), integers(3, 3, 3, 4, 6)
    operands = tuple(array if axis == 0 else array[0] for array, axis in zip((x, kernel), axes, strict=True))
    f, g = (jax.vmap(functools.partial(jaxcnn.conv, method=method), axes) for method in ("native", "direct"))
    np.testing.assert_array_equal(f(*operands), g(*operands))
