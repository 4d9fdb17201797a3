"""The parts of a jaxpr's equations: operands, and the jaxprs that they hold.

Only this module and the two walks of this folder know the names and the order of the parameters of `scan`, `while`,
`cond` and calls; all features ask these modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as lax_primitives
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcnn._compat import computes_on, custom_vmap_primitive, is_explicit, shard_map_primitive
from jaxcnn.epilogue import fused_conv_p

V = TypeVar("V")

CALLS: frozenset[Primitive] = frozenset(
    {
        lax_primitives.jit_p,
        lax_primitives.closed_call_p,
        lax_primitives.custom_jvp_call_p,
        lax_primitives.custom_vjp_call_p,
        lax_primitives.remat_p,
        fused_conv_p,
    }
)
"""Primitives whose one jaxpr is executed once, with the operands for its arguments."""

LOOPS_AND_BRANCHES: frozenset[Primitive] = frozenset(
    {lax_primitives.scan_p, lax_primitives.while_p, lax_primitives.cond_p}
)
"""Primitives whose jaxprs are executed any number of times, or one of several."""


_LINES_OF_LIBRARIES = re.compile(r"[/\\]site-packages[/\\](flax|haiku|equinox|keras)[/\\]")
"""Pattern of lines inside of libraries of layers: the user's line is the one that calls the layer."""

_MAX_FRAMES = 200
"""Largest number of frames of a call that are looked through for the user's line."""

_UNCHANGING_NAMES = frozenset(
    {"copy", "copy_p", "device_put", "name", "optimization_barrier", "sharding_constraint", "reshard", "mesh_cast"}
    | {"layout_constraint", "pvary"}
)
"""Names of primitives whose results are their operands. Some of these primitives have no public name in JAX."""


def returns_operands(equation: JaxprEqn) -> bool:
    """Returns whether an equation's results have the values of its operands, in order: copies, names, placements."""
    same_number = len(equation.invars) == len(equation.outvars)
    return same_number and equation.primitive.name in _UNCHANGING_NAMES


def is_entered(primitive: Primitive) -> bool:
    """Returns whether every walk enters the jaxprs that equations of a primitive hold."""
    if primitive in CALLS or primitive in LOOPS_AND_BRANCHES:
        return True
    return primitive is shard_map_primitive() or primitive is custom_vmap_primitive()


def avals(equation: JaxprEqn) -> list[Any]:
    """Returns the abstract values of an equation's operands, then those of its results."""
    return [variable.aval for variable in (*equation.invars, *equation.outvars)]


def shape_of(atom: Any) -> tuple[Any, ...]:
    """Returns the shape of a variable or a literal; that of a token is empty."""
    return getattr(atom.aval, "shape", ())


def has_known_sizes(aval: Any) -> bool:
    """Returns whether all sizes of an abstract value are known and positive."""
    return all(isinstance(size, int) and size > 0 for size in aval.shape)


def is_computable(aval: Any) -> bool:
    """Returns whether jaxcnn's primitives take an abstract value: no size is 0, and it lies on no mesh that they lack.

    Sizes may be symbolic.
    """
    if any(isinstance(size, int) and size < 1 for size in aval.shape):
        return False
    mesh = aval.sharding.mesh
    return not is_explicit(aval) or (computes_on(mesh) and AxisType.Manual not in mesh.axis_types)


def explicit_sharding(aval: Any, axes: Sequence[int]) -> NamedSharding | None:
    """Returns the sharding of a value with its axes in another order, on an Explicit mesh; None elsewhere."""
    if not is_explicit(aval):
        return None
    return NamedSharding(aval.sharding.mesh, PartitionSpec(*(aval.sharding.spec[axis] for axis in axes)))


def inner_jaxpr(jaxpr: Any) -> Any:
    """Returns the open jaxpr of a closed one, or an open one itself (from jax 0.12 on they are one class)."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def consts_of(jaxpr: Any) -> Sequence[Any]:
    """Returns the values of a closed jaxpr's constants; an open one has none."""
    return getattr(jaxpr, "consts", ())


def sub_jaxprs(equation: JaxprEqn) -> list[Any]:
    """Returns the jaxprs among an equation's parameters, open or closed, in order."""
    jaxprs: list[Any] = []
    for value in equation.params.values():
        items = value if isinstance(value, tuple | list) else (value,)
        jaxprs += [item for item in items if hasattr(inner_jaxpr(item), "eqns")]
    return jaxprs


def all_equations(jaxpr: Any) -> Iterator[JaxprEqn]:
    """Yields the equations of a jaxpr and of those that it holds, at any depth."""
    for equation in inner_jaxpr(jaxpr).eqns:
        yield equation
        for inner in sub_jaxprs(equation):
            yield from all_equations(inner)


def loop_parts(equation: JaxprEqn, operands: Sequence[V]) -> tuple[list[V], list[V], list[V]]:
    """Splits values of a scan's operands into constants, carry, and the values that the scan slices."""
    # The scan's parameters for this differ by JAX release, so ranks decide: an operand that the scan slices and a
    # result that it stacks have one axis more outside than inside.
    body = inner_jaxpr(equation.params["jaxpr"])
    slicing = sum(len(shape_of(a)) > len(shape_of(b)) for a, b in zip(equation.invars, body.invars, strict=True))
    stacking = sum(len(shape_of(a)) > len(shape_of(b)) for a, b in zip(equation.outvars, body.outvars, strict=True))
    last = len(operands) - slicing
    first = last - (len(equation.outvars) - stacking)
    return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def while_parts(equation: JaxprEqn, operands: Sequence[V]) -> tuple[list[V], list[V], list[V]]:
    """Splits values of a while's operands into constants of its condition, constants of its body, and carry."""
    first = equation.params["cond_nconsts"]
    last = first + equation.params["body_nconsts"]
    return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def rebind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Computes the results of an equation by its own primitive and parameters."""
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


def same_source(equation: JaxprEqn) -> Any:
    """Returns a context in which everything bound carries the equation's name stack and source line."""
    info = equation.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    return source_info_util.user_context(info.traceback, name_stack=stack)


def user_line(equation: JaxprEqn) -> str:
    """Returns the innermost line of an equation's call outside of libraries of layers, such as `net.py:7:8 (block)`.

    The innermost line of all if there is no other; empty if none is known.
    """
    lines = source_info_util.summarize(equation.source_info, num_frames=_MAX_FRAMES).split("\n")[::-1]
    return next((line for line in lines if not _LINES_OF_LIBRARIES.search(line)), lines[0])


class JaxprValues(Generic[V]):
    """The values of a jaxpr's variables, during a pass over its equations in order.

    Args:
      jaxpr: jaxpr, open or closed.
      inputs: values of the jaxpr's constants, then of its arguments.
      of_literal: function from a literal to its value; by default the literal's number.
    """

    def __init__(self, jaxpr: Any, inputs: Sequence[V], of_literal: Callable[[Literal], V] | None = None) -> None:
        self.jaxpr = inner_jaxpr(jaxpr)
        self.of_literal: Callable[[Any], Any] = of_literal or (lambda literal: literal.val)
        self.known: dict[Any, V] = dict(zip((*self.jaxpr.constvars, *self.jaxpr.invars), inputs, strict=True))

    def read(self, atoms: Sequence[Any]) -> list[V]:
        """Returns the values of variables and literals."""
        return [self.of_literal(atom) if isinstance(atom, Literal) else self.known[atom] for atom in atoms]

    def write(self, equation: JaxprEqn, results: Sequence[V]) -> None:
        """Sets the values of an equation's results."""
        self.known.update(zip(equation.outvars, results, strict=True))

    def outputs(self) -> list[V]:
        """Returns the values of the jaxpr's results."""
        return self.read(self.jaxpr.outvars)
