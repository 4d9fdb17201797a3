"""Products with a matrix as convolutions with a kernel of one tap, for everything that replaces kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import jax
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.jaxpr.equations import avals, inner_jaxpr

_NUMBERS = ("NHC", "HIO", "NHC")


def as_one_tap_convolution(equation: JaxprEqn, position: int) -> Any | None:
    """Returns a closed jaxpr with the operands and the result of a product of matrices, as a convolution.

    The jaxpr is the same object for equal products, so that its equations can be told by their ids. None if the
    equation is no `dot_general`, or one over a batch of matrices.

    Args:
      equation: equation.
      position: position of the operand that is the layer's matrix.
    """
    if equation.primitive is not lax_primitives.dot_general_p:
        return None
    contracted, batch = equation.params["dimension_numbers"]
    shapes = tuple((aval.shape, aval.dtype) for aval in avals(equation))
    features = [size for axis, size in enumerate(shapes[position][0]) if axis not in contracted[position]]
    if any(batch) or not contracted[0] or not features or any(0 in shape for shape, _ in shapes):
        return None
    return _one_tap_convolution(shapes, contracted, position, equation.params["precision"])


def one_tap_convolution_on(equation: JaxprEqn, path: Sequence[int], paths: Iterable[Sequence[int]]) -> Any | None:
    """Returns the jaxpr of `as_one_tap_convolution` that one of some paths leads into; None if none does.

    Args:
      equation: equation.
      path: ids of the equations that hold it, outermost first, then its own id.
      paths: paths of convolutions.
    """
    if equation.primitive is not lax_primitives.dot_general_p:
        return None
    inside = {longer[len(path)] for longer in paths if len(longer) > len(path) and tuple(longer[: len(path)]) == path}
    for position in range(2):
        closed = as_one_tap_convolution(equation, position)
        if closed is not None and any(id(inner) in inside for inner in inner_jaxpr(closed).eqns):
            return closed
    return None


@lru_cache(maxsize=1024)
def _one_tap_convolution(shapes: Any, contracted: Any, position: int, precision: Any) -> Any:
    """Returns the jaxpr for operands and a result of these shapes and dtypes.

    Args:
      shapes: shape and dtype of each operand and of the result.
      contracted: axes of each operand over which the product sums.
      position: position of the matrix.
      precision: precision of the product.
    """
    (out_shape, out_dtype) = shapes[-1]

    def convolve(*operands: jax.Array) -> jax.Array:
        matrix, x = operands[position], operands[1 - position]
        summed, of_x = contracted[position], contracted[1 - position]
        free = [axis for axis in range(matrix.ndim) if axis not in summed]
        free_of_x = [axis for axis in range(x.ndim) if axis not in of_x]
        inputs = math.prod(matrix.shape[axis] for axis in summed)
        kernel = matrix.transpose(*summed, *free).reshape(1, inputs, -1)
        rows = x.transpose(*free_of_x, *of_x).reshape(-1, 1, inputs)
        result = lax.conv_general_dilated(
            rows,
            kernel,
            (1,),
            "VALID",
            dimension_numbers=_NUMBERS,
            precision=precision,
            preferred_element_type=out_dtype,
        )
        # The product has the free axes of its first operand first.
        sizes = [x.shape[axis] for axis in free_of_x], [matrix.shape[axis] for axis in free]
        result = result.reshape(*sizes[0], *sizes[1])
        if position == 1:
            return result
        count = len(sizes[0])
        return result.transpose(*range(count, result.ndim), *range(count))

    closed = jax.make_jaxpr(convolve)(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes[:2]))
    if tuple(closed.out_avals[0].shape) != tuple(out_shape):
        raise ValueError(f"a product of shape {out_shape} became a convolution of shape {closed.out_avals[0].shape}")
    return closed
