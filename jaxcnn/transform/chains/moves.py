"""The moves through which a kernel may pass on its way from a parameter to a convolution.

`find_kernels` follows the moves without values, and `ChainWalker` applies them to the links of a chain. Both use this
module, so both accept the same moves.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.chains.axis_views import Ints, View, view_after
from jaxcnn.transform.chains.placement import Placement

Effect = Literal["nothing", "cast", "stop gradient", "negate", "scale", "index"]


@dataclasses.dataclass(frozen=True)
class Move:
    """One move of an array that is a view of a parameter.

    Args:
      view: view of the parameter after the move.
      effect: change of the links of a chain in the parameter's place.
      axis: axis of the array that is indexed, if the effect is "index".
    """

    view: View
    effect: Effect = "nothing"
    axis: int = 0


def move_of(equation: JaxprEqn, position: int, view: View) -> Move | None:
    """Returns the move of an equation whose operand at a position is a view of a parameter; else None."""
    primitive = equation.primitive
    if primitive is lax_primitives.neg_p:
        return Move(view, "negate")
    if primitive is lax_primitives.mul_p or primitive is lax_primitives.div_p:
        return Move(view, "scale") if _is_scaling(equation, position, view) else None
    if primitive is lax_primitives.slice_p or primitive is lax_primitives.dynamic_slice_p:
        return _index(equation, view)
    after = view_after(equation, view)
    if after is None:
        return None
    if primitive is lax_primitives.convert_element_type_p:
        return Move(after, "cast") if jnp.issubdtype(equation.params["new_dtype"], jnp.inexact) else None
    return Move(after, "stop gradient" if primitive is lax_primitives.stop_gradient_p else "nothing")


def _is_scaling(equation: JaxprEqn, position: int, view: View) -> bool:
    """Returns whether a product or quotient scales a view entry by entry, so that a link can be scaled in its place."""
    operand: Any = equation.invars[position].aval
    result: Any = equation.outvars[0].aval
    if result.shape != view.sizes:
        return False  # the factor is larger than the array
    # A quotient of integers is rounded, but a quotient of a link is not.
    is_quotient = equation.primitive is lax_primitives.div_p
    return not is_quotient or (position == 0 and jnp.issubdtype(operand.dtype, jnp.inexact))


def _index(equation: JaxprEqn, view: View) -> Move | None:
    """Returns the move to a slice of length 1 along one axis, or to the whole array; None for any other slice."""
    result: Any = equation.outvars[0].aval
    axes = [axis for axis, (size, whole) in enumerate(zip(result.shape, view.sizes, strict=True)) if size != whole]
    if not axes:
        return Move(view)
    if len(axes) > 1 or result.shape[axes[0]] != 1 or equation.params.get("strides") is not None:
        return None
    indexed = view.index_axis(axes[0])
    return None if indexed is None else Move(indexed, "index", axes[0])


def factor_by_feature(placement: Placement, view: View, shape: Ints) -> np.ndarray | None:
    """Returns the position of the factor's entry that multiplies an output feature, for each output feature.

    None if a feature meets several entries, so that no link of a chain can take the factor.

    Args:
      placement: axes of the kernel in the parameter.
      view: array that is multiplied.
      shape: shape of the factor, with as many axes as the array, or none.
    """
    stack = [placement.shape[axis] for axis in placement.stack if axis not in view.sliced]
    features = placement.kernel_shape[-1]
    numbered = np.broadcast_to(np.arange(features), (*stack, *placement.kernel_shape))
    of_array = view.apply_to(placement.parameter(numbered, view.sliced))
    entries = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape), of_array.shape)
    by_feature = np.zeros(features, int)
    by_feature[of_array] = entries
    return by_feature if (by_feature[of_array] == entries).all() else None


def spread_shape(equation: JaxprEqn) -> Ints:
    """Returns the shape of a `broadcast_in_dim`'s operand with the axes of the result."""
    operand: Any = equation.invars[0].aval
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], operand.shape, strict=True):
        shape[axis] = size
    return tuple(shape)
