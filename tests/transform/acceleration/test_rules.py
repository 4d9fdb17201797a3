"""The rules of `accelerate`: which convolutions it computes, by which method and in which layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxcnn
from jaxcnn import accelerate
from support.accelerated import PARAMS, X, network
from support.arrays import assert_same, jax_normal
from support.counting import executed_convolutions

pytestmark = pytest.mark.leaks


def convolutions(f, *args):
    """The parameters of the convolutions that f binds, in order."""
    return [equation.params for equation in executed_convolutions(f, *args)]


@pytest.mark.parametrize("method", ["direct", "shift", "matmul", "fft"])
def test_forced_methods(method):
    result = convolutions(accelerate(network, method=method), PARAMS, X)
    assert {params["method"] for params in result} <= {method, "auto"}
    assert any(params["method"] == method for params in result)
    assert_same(accelerate(network, method=method)(PARAMS, X), network(PARAMS, X))


def test_functions_that_call_jaxcnn():
    def f(x, kernel):
        y = jaxcnn.conv(x, kernel, strides=2, layout="NCHW", method="matmul")
        y = jaxcnn.conv_transpose(y, kernel, strides=2, layout="NCHW")
        return jaxcnn.max_pool(y, 2, layout="NCHW")

    kernel = jax_normal((3, 3, 3, 3))
    assert_same(accelerate(f)(X, kernel), f(X, kernel))
    assert str(jax.make_jaxpr(accelerate(f))(X, kernel)) == str(jax.make_jaxpr(f)(X, kernel))
    forced = convolutions(accelerate(f, method="shift"), X, kernel)
    assert [params["method"] for params in forced] == ["matmul", "shift"]  # the user's own word stands
    gradient = jax.grad(lambda x, k: jnp.sum(f(x, k) ** 2), (0, 1))
    assert_same(accelerate(gradient)(X, kernel), jax.jit(gradient)(X, kernel), 1e-4)


def test_a_convolution_in_a_loop_is_channels_last():
    def f(x, kernel):
        def body(x, _):
            return lax.conv_general_dilated(x, kernel, (1, 1), "SAME"), None

        return lax.scan(body, x, length=3)[0]

    x, kernel = jax_normal((1, 8, 8, 8)), jax_normal((8, 8, 3, 3)) / 9
    assert_same(accelerate(f)(x, kernel), f(x, kernel))
    text = jax.jit(accelerate(f, method="direct")).lower(x, kernel).as_text()
    (line,) = (line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_on_other_platforms_there_is_one_convolution_for_each(platform):
    def count(f):
        text = jax.export.export(jax.jit(f), platforms=[platform])(PARAMS, X).mlir_module()
        return text.count("stablehlo.convolution"), text.count("reduce_window")

    assert count(accelerate(network)) == count(network)
