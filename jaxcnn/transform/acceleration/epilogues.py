"""The search for epilogues in a jaxpr: operations that follow a convolution, whose result nothing else uses.

From the result of a convolution a chain is followed through equations that read it alone: arithmetic with one number
for each channel (a bias, the normalization of inference), moves that keep the channels together, one addition of an
array of the same shape, and an activation at the end.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Var

from jaxcnn.epilogue import Move, Recipe, fused_conv_p
from jaxcnn.primitives import conv_p
from jaxcnn.transform.acceleration.activations import X, activation, expression, operand_of
from jaxcnn.transform.jaxpr.convolutions import Convolution, as_convolution, is_convolution, is_stacked, role_of
from jaxcnn.transform.jaxpr.equations import avals, has_known_sizes, inner_jaxpr, rebind

_FLOAT32 = np.dtype(np.float32)
_IDENTITIES = {"copy", "copy_p", "convert_element_type", "stop_gradient"}
_SUMS = {"add", "add_any"}
_MAX_ACTIVATION_EQUATIONS = 12
"""Most equations of which an activation is looked for."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A convolution and the equations that are computed with it.

    Args:
      equation: equation of the convolution.
      convolution: description of it.
      tail: equations that follow, in order.
      members: numbers of all equations that nothing else needs, the last one's aside.
      last: number of the last one, whose result is the group's.
      operands: variables that the tail reads, in the order of the recipe's numbers.
      recipe: meaning of the tail.
    """

    equation: JaxprEqn
    convolution: Convolution
    tail: tuple[JaxprEqn, ...]
    members: frozenset[int]
    last: int
    operands: tuple[Var, ...]
    recipe: Recipe

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Operands of the convolution, then those of the tail."""
        return (*self.equation.invars, *self.operands)

    def bind(self, values: Sequence[Any], method: str) -> jax.Array:
        """Binds `fused_conv_p` for values of the inputs."""
        lhs, rhs = self.convolution.arrange(*values[:2])
        params = self.convolution.conv_params(method)

        def separate(lhs: jax.Array, rhs: jax.Array, *operands: Any) -> Any:
            known = dict(zip(self.operands, operands, strict=True))
            with _at(self.equation):
                known[self.equation.outvars[0]] = self.convolution.restore(conv_p.bind(lhs, rhs, **params))
            for equation in self.tail:
                read = [atom.val if isinstance(atom, Literal) else known[atom] for atom in equation.invars]
                with _at(equation):
                    known.update(zip(equation.outvars, rebind(equation, read), strict=True))
            return known[self.tail[-1].outvars[0]]

        operands = (lhs, rhs, *values[2:])
        unfused = jax.make_jaxpr(separate)(*operands)
        return fused_conv_p.bind(*operands, unfused=unfused, recipe=self.recipe)


def _at(equation: JaxprEqn) -> Any:
    # The name stack is that of the fused equation, which comes before those inside.
    empty = source_info_util.new_name_stack()
    return source_info_util.user_context(equation.source_info.traceback, name_stack=empty)


def groups(jaxpr: Any) -> Iterator[Group]:
    """Yields the groups of a jaxpr, not of those that it holds; no equation is in two of them."""
    equations = inner_jaxpr(jaxpr).eqns
    starts = [number for number, equation in enumerate(equations) if _may_start(equation)]
    if not starts:
        return
    uses, taken = _Uses(inner_jaxpr(jaxpr)), set(starts)
    for start in starts:
        chain = _Chain(uses, taken, equations[start])
        chain.follow()
        if not chain.useful[0]:
            continue
        conv = as_convolution(equations[start], "compute")
        if conv is None or conv.spec.role == "kernel" or conv.spec.stacked is not None:
            continue
        group = chain.group(start, conv)
        taken |= {*group.members, group.last}
        yield group


def _may_start(equation: JaxprEqn) -> bool:
    if not is_convolution(equation) or role_of(equation) == "kernel" or is_stacked(equation):
        return False
    return all(has_known_sizes(aval) and aval.dtype == _FLOAT32 for aval in avals(equation))


class _Uses:
    """The readers of each variable of a jaxpr, and the equations that spread one array over another shape."""

    def __init__(self, jaxpr: Any) -> None:
        self.equations: Sequence[JaxprEqn] = jaxpr.eqns
        self.readers: dict[Any, list[int]] = defaultdict(list)
        self.spreads: dict[Any, int] = {}
        for number, equation in enumerate(self.equations):
            for atom in equation.invars:
                if not isinstance(atom, Literal):
                    self.readers[atom].append(number)
            if equation.primitive.name == "broadcast_in_dim":
                self.spreads[equation.outvars[0]] = number
        self.returned = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}

    def count(self, variable: Any) -> int:
        """Returns how often a variable is read, once more for a result of the jaxpr."""
        return len(self.readers.get(variable, ())) + (variable in self.returned)


class _Chain:
    """The equations that follow one convolution, as far as they were followed."""

    def __init__(self, uses: _Uses, taken: set[int], equation: JaxprEqn) -> None:
        self.uses, self.taken, self.equation = uses, taken, equation
        self.value: Any = equation.outvars[0]
        self.shape = tuple(avals(equation)[-1].shape)
        numbers = equation.params.get("dimension_numbers")
        self.axis = len(self.shape) - 1 if numbers is None else numbers.out_spec[1]
        self.channels = self.shape[self.axis]
        self.chained: list[int] = []
        self.spreads: list[int] = []
        self.operands: dict[Var, int] = {}
        self.steps: list[tuple[str, int | float]] = []
        self.residual: tuple[int, int] | None = None
        self.moves: list[Move] = []
        self.activation = ("none", 0.0)
        self.useful = (0, 0)

    def follow(self) -> None:
        """Follows the convolution's result as far as possible."""
        while self.value not in self.uses.returned:
            readers = self.uses.readers.get(self.value, [])
            if len(readers) == 1 and self._is_free(readers[0]):
                equation = self.uses.equations[readers[0]]
                arithmetic = self._arithmetic(equation)
                if arithmetic or self._move(equation):
                    self._take([readers[0]], equation.outvars[0], arithmetic)
                    continue
            self._activation()
            return

    def _is_free(self, number: int) -> bool:
        return number not in self.taken and self.uses.equations[number].ctx is self.equation.ctx

    def _take(self, numbers: list[int], value: Any, useful: bool) -> None:
        self.chained += numbers
        self.value = value
        if useful:
            self.useful = (len(self.chained), len(self.moves))

    # Arithmetic.

    def _arithmetic(self, equation: JaxprEqn) -> bool:
        """Takes a sum, difference, product or quotient with numbers by channel, or a sum with a whole array."""
        name, aval = equation.primitive.name, avals(equation)[-1]
        if self.residual is not None or aval.shape != self.shape or aval.dtype != _FLOAT32:
            return False
        if name == "neg":
            self.steps.append(("mul", -1.0))
            return True
        if name not in ("sub", "mul", "div") and name not in _SUMS:
            return False
        first = equation.invars[0] is self.value
        if name == "div" and not first:
            return False
        other: Any = equation.invars[1 if first else 0]
        step = "add" if name in _SUMS else "rsub" if name == "sub" and not first else name
        vector = self._by_channel(other)
        if vector is not None:
            self.steps.append((step, vector))
            return True
        # A smaller array that is spread over the image would have to be written out first.
        whole = isinstance(other, Var) and other not in self.uses.spreads
        if not whole or other.aval.shape != self.shape or step not in ("add", "rsub"):
            return False
        if step == "rsub":
            self.steps.append(("mul", -1.0))
        self.residual = self._operand(other), len(self.moves)
        return True

    def _operand(self, variable: Var) -> int:
        return self.operands.setdefault(variable, len(self.operands))

    def _by_channel(self, atom: Any) -> int | float | None:
        """Returns the position of an operand with one number, or one for each channel, or the number; None if not."""
        aval = atom.aval
        if isinstance(atom, Literal):
            return float(atom.val) if aval.shape == () else None
        if aval.shape == () or (len(aval.shape) == len(self.shape) and _varies_along(aval.shape, self.axis)):
            return self._operand(atom)
        number = self.uses.spreads.get(atom)
        if number is None or aval.shape != self.shape or len(self.uses.equations[number].invars) != 1:
            return None
        spread = self.uses.equations[number]
        source: Any = spread.invars[0]
        dims = spread.params["broadcast_dimensions"]
        if any(size > 1 and dims[axis] != self.axis for axis, size in enumerate(source.aval.shape)):
            return None
        self.spreads.append(number)
        return float(source.val) if isinstance(source, Literal) else self._operand(source)

    # Moves.

    def _move(self, equation: JaxprEqn) -> bool:
        """Takes a change of shape or of the order of axes that leaves an axis of the channels."""
        name, aval = equation.primitive.name, avals(equation)[-1]
        if aval.dtype != _FLOAT32 or math.prod(aval.shape) != math.prod(self.shape):
            return False
        if name in _IDENTITIES:
            return True
        if name == "transpose":
            permutation = tuple(map(int, equation.params["permutation"]))
            self.moves.append(permutation)
            self.axis = permutation.index(self.axis)
        elif name in ("reshape", "squeeze", "broadcast_in_dim") and len(equation.invars) == 1:
            before = math.prod(self.shape[: self.axis])
            axes = [
                axis
                for axis, size in enumerate(aval.shape)
                if size == self.channels and math.prod(aval.shape[:axis]) == before
            ]
            if not axes:
                return False
            self.moves.append((self.shape, tuple(aval.shape)))
            self.axis = axes[0]
        else:
            return False
        self.shape = tuple(aval.shape)
        return True

    # Activations.

    def _activation(self) -> None:
        """Takes the equations of the longest activation of the value, if all that reads it belongs to one."""
        known: dict[Any, Any] = {self.value: X}
        waiting = sorted(set(self.uses.readers.get(self.value, ())))
        unread = {self.value: self.uses.count(self.value)}
        visited: list[int] = []
        best = 0
        while waiting and len(visited) < _MAX_ACTIVATION_EQUATIONS:
            number = heapq.heappop(waiting)
            equation = self.uses.equations[number]
            if not self._is_free(number):
                break
            form = expression(equation, [operand_of(atom, known) for atom in equation.invars])
            if form is None:
                break
            for atom in equation.invars:
                if not isinstance(atom, Literal):
                    unread[atom] -= 1
            result: Any = equation.outvars[0]
            known[result], unread[result] = form, self.uses.count(result)
            visited.append(number)
            inner = any(count for variable, count in unread.items() if variable is not result)
            match = None if inner or result.aval.shape != self.shape else activation(form)
            if match is not None:
                best, self.activation = len(visited), match
            for reader in self.uses.readers.get(result, ()):
                if reader not in waiting:
                    heapq.heappush(waiting, reader)
        if best:
            self._take(visited[:best], self.uses.equations[visited[best - 1]].outvars[0], True)

    def group(self, start: int, conv: Convolution) -> Group:
        """Returns the group, without the equations that were followed to no use."""
        count, moves = self.useful
        chained, equations = self.chained[:count], self.uses.equations
        last = chained[-1]
        alone = [number for number in self.spreads if self.uses.count(equations[number].outvars[0]) == 1]
        back = tuple(map(int, np.argsort(conv.axes[2])))
        first: tuple[Move, ...] = () if back == tuple(range(len(back))) else (back,)
        residual = None if self.residual is None else (self.residual[0], self.residual[1] + len(first))
        return Group(
            equation=self.equation,
            convolution=conv,
            tail=tuple(equations[number] for number in sorted({*chained, *self.spreads})),
            members=frozenset((start, *chained[:-1], *alone)),
            last=last,
            operands=tuple(self.operands),
            recipe=Recipe(tuple(self.steps), residual, (*first, *self.moves[:moves]), *self.activation),
        )


def _varies_along(shape: Sequence[int], axis: int) -> bool:
    """Returns whether an array has more than one entry along no other axis."""
    return all(size == 1 for other, size in enumerate(shape) if other != axis)
