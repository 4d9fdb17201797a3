"""Chains for the tests of `with_chains`, and what must be equal between a function of them and of dense kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn
from support.arrays import assert_same, jax_normal
from support.jaxprs import equations_of

LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x, kernel, strides=1, padding="SAME", dimension_numbers=None, **options):
    """lax's convolution, channels-last unless said otherwise."""
    rank = x.ndim - 2
    numbers = dimension_numbers or LAYOUTS[rank]
    strides = (strides,) * rank if isinstance(strides, int) else strides
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **options)


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA for programs that run once."""


def chain(*shapes, groups=(), dtype=np.float32):
    """A chain of random links that keeps the variance of what it convolves."""
    links = [jax_normal(shape, seed) / np.sqrt(np.prod(shape[:-1])) for seed, shape in enumerate(shapes, 1)]
    return jaxcnn.KernelChain(tuple(link.astype(dtype) for link in links), groups)


SEPARABLE = chain((3, 1, 4, 5), (1, 2, 5, 6))
SQUARE = chain((3, 1, 4, 5), (1, 2, 5, 4))
GROUPED = chain((3, 1, 2, 6), (1, 2, 3, 8), groups=(2, 2))
DEPTHWISE = chain((3, 1, 1, 4), (1, 2, 1, 4), groups=(4, 4))
MULTIPLIED = chain((3, 1, 1, 8), (1, 2, 2, 12), groups=(4, 4))
STACKED = chain((3, 3, 1, 4, 5), (3, 1, 2, 5, 4))
X, Y = jax_normal((2, 9, 7, 4), 9), jax_normal((2, 5, 4, 6), 9)


def is_chain(value):
    return isinstance(value, jaxcnn.KernelChain)


def dense(chain, stacks=0):
    """The dense kernel, or a stack of them."""
    function = type(chain).dense
    for _ in range(stacks):
        function = jax.vmap(function)
    return function(chain)


def in_order(kernel, order, groups=1):
    """A kernel, HWIO, as a parameter has it."""
    *window, kernel_in, features = kernel.shape
    if order == "OIHW":
        return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    return kernel if order == "HWIO" else kernel.reshape(*window, groups * kernel_in, features // groups)


def variables(f, *args):
    """The shapes of all values that f computes, at any depth."""
    # Those of f's own broadcasts are dead code.
    made = [equation for equation in equations_of(f, *args) if equation.primitive.name != "broadcast_in_dim"]
    return [variable.aval.shape for equation in made for variable in equation.outvars]


def assert_no_kernel(f, chain, *args, parameter):
    """No value in f of the chain has as many elements as the parameter in whose place it is, in shapes like its own."""
    shape = sorted(size for size in parameter.shape if size > 1)
    result = [own for own in variables(f, chain, *args) if sorted(size for size in own if size > 1) == shape]
    assert not result, result


def assert_chained(f, chain, *args, parameter=None, tolerance=1e-5, gradients=False):
    """Values of f, perhaps its derivatives by the links and the other arguments, and that it makes no dense kernel.

    `parameter` maps the chain to what f has in its place.
    """
    parameter = parameter or dense
    transformed = jaxcnn.with_chains(f)

    def loss(f):
        def run(chain, args):
            result = f(chain, *args)
            floats = (leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, np.floating))
            return sum(jnp.sum(jnp.sin(leaf.astype(np.float32))) for leaf in floats), result

        return jax.value_and_grad(run, (0, 1), has_aux=True, allow_int=True) if gradients else run

    def expected(chain, *args):
        return f(parameter(chain), *args)

    compiled = jax.jit(lambda *args: (loss(transformed)(*args), loss(expected)(*args)), compiler_options=QUICK)
    own, others = compiled(chain, args)
    (value, actual), *own = own if gradients else (own,)
    (dense_value, wanted), *others = others if gradients else (others,)
    assert_same(actual, wanted, tolerance)
    np.testing.assert_allclose(value, dense_value, rtol=10 * tolerance, atol=10 * tolerance)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(others), strict=True):
        if b.dtype != jax.dtypes.float0:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.linalg.norm(a - b) <= 5 * tolerance * np.linalg.norm(b)
    assert_no_kernel(transformed, chain, *args, parameter=jax.eval_shape(parameter, chain))
