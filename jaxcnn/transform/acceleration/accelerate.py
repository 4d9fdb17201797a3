"""`accelerate`: any JAX function, with its convolutions and pools computed by jaxcnn's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from jaxcnn.errors import ErrorPrefix
from jaxcnn.lowering.choice import check_method
from jaxcnn.transform.acceleration.rules import walker
from jaxcnn.transform.jaxpr.signature import Outputs, Signature, cache_programs

P = ParamSpec("P")
T = TypeVar("T")


def accelerate(f: Callable[P, T], *, method: str = "auto") -> Callable[P, T]:
    """Returns a function with every convolution, pool and pool gradient in it computed by jaxcnn's choice.

    f is traced, and its convolutions and pools, of `jax.lax` or of jaxcnn, become jaxcnn's own primitives, also inside
    `jit`, `scan`, `while_loop`, `cond`, `checkpoint`, `shard_map` and the rules of custom derivatives. f may be a
    model, a loss, a gradient or a whole training step, and `accelerate` works inside and outside of `jax.jit`,
    `jax.grad` and `jax.vmap`. Convolutions in any layout are computed channels-last, derivatives included. On GPU and
    TPU the convolutions stay unchanged.

    A convolution in float32 is bound together with the operations that follow, if nothing else reads its result: a
    bias, the normalization of inference, a residual, an activation. A method may apply these before the result is
    stored. Derivatives stay those of the operations.

    Shapes, dtypes and weak types are f's; integers are equal bit for bit; 16-bit floats accumulate in float32; other
    values differ by rounding, as `method` says. Ties in the gradient of a max pool go to the first maximum, as in JAX;
    a NaN counts as the maximum, but in JAX the result depends on the order. A policy of `jax.checkpoint` decides about
    the results of convolutions as it does about those of `jax.lax`. Negative padding crops, where XLA:CPU reads other
    memory for some. In a program over several CPU devices each one computes its own part, on meshes of Auto axes, of
    Explicit axes, or of both. Left as they are: complex and empty convolutions, those without spatial axes, those whose
    image or channels are of symbolic size, arrays in a `jax.shard_map` over some axes of an Explicit mesh, pools of
    planes whose channels an Explicit mesh splits, and other primitives that hold functions.

    Called outside of a trace the function runs through one cached `jax.jit`: as there, arrays that f closes over and
    the attributes of objects are constants of the compiled program. Inside of a trace f is traced at each call. An
    argument that f itself donates is donated only if the outer function does:
    `jax.jit(accelerate(f), donate_argnums=...)`.

    Args:
      f: function of arrays, or of pytrees of arrays. Other leaves of its arguments (bool, int, float, str, None,
        functions) reach f unchanged, and f is traced for each of their values.
      method: method as in `conv`, for all convolutions that the method supports; calls of jaxcnn that name another
        method keep theirs.

    Returns:
      A function of the same arguments.

    Raises:
      ValueError: the method is unknown.
      TypeError: f is no function; when called, an argument that is neither an array nor hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> def blur(x):
      ...     kernel = jnp.full((3, 3, 1, x.shape[-1]), 1 / 9)
      ...     return jax.lax.conv_general_dilated(
      ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
      ...     )
      >>> x = jnp.ones((1, 64, 64, 8))
      >>> fast = jaxcnn.accelerate(blur)
      >>> bool(jnp.allclose(fast(x), blur(x)))
      True
      >>> [row.method for row in jaxcnn.summarize(jaxcnn.accelerate(blur, method="shift"), x).rows]
      ['shift']

    References:
      The slow cases on CPU are jax-ml/jax issues 12868, 13800 and 23713.
    """
    with ErrorPrefix("accelerate"):
        check_method(method)
    if not callable(f):
        raise TypeError(f"accelerate: f must be a function, got {f!r}")

    return accelerated("accelerate", f, method)


def accelerated(operation: str, f: Callable[P, T], method: str = "auto") -> Callable[P, T]:
    """Returns what `accelerate` returns.

    Args:
      operation: name of the public function, for error texts.
      f: function as `accelerate` takes it.
      method: known method.
    """

    def program_of(signature: Signature) -> Callable[..., Outputs]:
        def accelerated(*arrays: Any) -> Outputs:
            # `signature.flat` makes a new function at each call. JAX would cache the trace of an old one, and with the
            # trace any values of another trace in f's closure or in an object's attributes.
            jaxpr, shapes = jax.make_jaxpr(signature.flat(f), return_shape=True)(*arrays)
            results = walker(method).evaluate(jaxpr, jaxpr.consts, *arrays)
            return jax.tree.unflatten(jax.tree.structure(shapes), results)

        return accelerated

    return cache_programs(operation, f, program_of)
