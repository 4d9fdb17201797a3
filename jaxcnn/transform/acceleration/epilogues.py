"""The search for epilogues in a jaxpr: operations after a convolution that are the only ones to use its result.

The search starts from the result of a convolution and goes on as long as one equation alone reads the last result. It
takes arithmetic with one number for each channel (a bias, the normalization of inference), moves that keep the channels
together, one addition of an array of the same shape, and an activation at the end.
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
_IDENTITY_NAMES = {"copy", "copy_p", "convert_element_type", "stop_gradient"}
_SUM_NAMES = {"add", "add_any"}
_MAX_ACTIVATION_EQUATIONS = 12
"""Largest number of equations that an activation may have."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A convolution and the equations that are computed with it.

    Args:
      equation: equation of the convolution.
      convolution: description of the convolution.
      tail: equations that follow, in order.
      members: numbers of the equations, the convolution's among them, that only the group needs, without `last`.
      last: number of the last equation, whose result is the group's.
      operands: variables that the tail reads, at the positions to which the recipe refers.
      recipe: operations of the tail.
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
            values_by_variable = dict(zip(self.operands, operands, strict=True))
            with _source_context(self.equation):
                values_by_variable[self.equation.outvars[0]] = self.convolution.restore(conv_p.bind(lhs, rhs, **params))
            for equation in self.tail:
                read = [atom.val if isinstance(atom, Literal) else values_by_variable[atom] for atom in equation.invars]
                with _source_context(equation):
                    values_by_variable.update(zip(equation.outvars, rebind(equation, read), strict=True))
            return values_by_variable[self.tail[-1].outvars[0]]

        operands = (lhs, rhs, *values[2:])
        unfused = jax.make_jaxpr(separate)(*operands)
        return fused_conv_p.bind(*operands, unfused=unfused, recipe=self.recipe)


def _source_context(equation: JaxprEqn) -> Any:
    # JAX prepends the fused equation's name stack to those inside, so theirs are empty.
    empty = source_info_util.new_name_stack()
    return source_info_util.user_context(equation.source_info.traceback, name_stack=empty)


def fusible_groups(jaxpr: Any) -> Iterator[Group]:
    """Yields the groups of a jaxpr, without those of inner jaxprs; no equation is in two groups."""
    equations = inner_jaxpr(jaxpr).eqns
    starts = [number for number, equation in enumerate(equations) if _can_start_group(equation)]
    if not starts:
        return
    uses, used_numbers = _Uses(inner_jaxpr(jaxpr)), set(starts)
    for start in starts:
        search = _TailSearch(uses, used_numbers, equations[start])
        search.follow()
        if not search.useful_lengths[0]:
            continue
        conv = as_convolution(equations[start], "compute")
        if conv is None or conv.spec.role == "kernel" or conv.spec.stacked is not None:
            continue
        group = search.group(start, conv)
        used_numbers |= {*group.members, group.last}
        yield group


def _can_start_group(equation: JaxprEqn) -> bool:
    """Returns whether an equation is a float32 convolution of known shapes, no kernel gradient and not stacked."""
    if not is_convolution(equation) or role_of(equation) == "kernel" or is_stacked(equation):
        return False
    return all(has_known_sizes(aval) and aval.dtype == _FLOAT32 for aval in avals(equation))


class _Uses:
    """The uses of each variable of a jaxpr: its readers, and the `broadcast_in_dim` that makes it."""

    def __init__(self, jaxpr: Any) -> None:
        self.equations: Sequence[JaxprEqn] = jaxpr.eqns
        self.readers: dict[Any, list[int]] = defaultdict(list)
        self.broadcasts: dict[Any, int] = {}
        for number, equation in enumerate(self.equations):
            for atom in equation.invars:
                if not isinstance(atom, Literal):
                    self.readers[atom].append(number)
            if equation.primitive.name == "broadcast_in_dim":
                self.broadcasts[equation.outvars[0]] = number
        self.returned = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}

    def count(self, variable: Any) -> int:
        """Returns the number of uses of a variable: operands, and one more for a result of the jaxpr."""
        return len(self.readers.get(variable, ())) + (variable in self.returned)


class _TailSearch:
    """A search for the equations that follow one convolution and can be computed with it.

    `value` is the variable that the search has reached, with its `shape` and the `axis` of the channels in it;
    `tail_numbers` are the numbers of the equations before it. `useful_lengths` are the numbers of equations and of
    moves up to the last operation that is no move.

    Args:
      uses: uses of the jaxpr's variables.
      used_numbers: numbers of the equations that are part of a group, or start one.
      equation: equation of the convolution.
    """

    def __init__(self, uses: _Uses, used_numbers: set[int], equation: JaxprEqn) -> None:
        self.uses, self.used_numbers, self.equation = uses, used_numbers, equation
        self.value: Any = equation.outvars[0]
        self.shape = tuple(avals(equation)[-1].shape)
        numbers = equation.params.get("dimension_numbers")
        self.axis = len(self.shape) - 1 if numbers is None else numbers.out_spec[1]
        self.channels = self.shape[self.axis]
        self.tail_numbers: list[int] = []
        self.broadcasts: list[int] = []
        self.operands: dict[Var, int] = {}
        self.steps: list[tuple[str, int | float]] = []
        self.residual: tuple[int, int] | None = None
        self.moves: list[Move] = []
        self.activation = ("none", 0.0)
        self.useful_lengths = (0, 0)

    def follow(self) -> None:
        """Extends the tail as far as possible."""
        while self.value not in self.uses.returned:
            readers = self.uses.readers.get(self.value, [])
            if len(readers) == 1 and self._is_free(readers[0]):
                equation = self.uses.equations[readers[0]]
                arithmetic = self._take_arithmetic(equation)
                if arithmetic or self._take_move(equation):
                    self._append([readers[0]], equation.outvars[0], arithmetic)
                    continue
            self._take_activation()
            return

    def _is_free(self, number: int) -> bool:
        """Returns whether an equation is in no group yet, and has the same JAX context (`ctx`) as the convolution."""
        return number not in self.used_numbers and self.uses.equations[number].ctx is self.equation.ctx

    def _append(self, numbers: list[int], value: Any, useful: bool) -> None:
        """Adds equations to the tail, whose result is now `value`; a tail may end only after `useful` ones."""
        self.tail_numbers += numbers
        self.value = value
        if useful:
            self.useful_lengths = (len(self.tail_numbers), len(self.moves))

    # Arithmetic.

    def _take_arithmetic(self, equation: JaxprEqn) -> bool:
        """Adds a negation, an operation (+, -, *, /) with one number for each channel, or a sum with a full array.

        A full array minus the value counts as such a sum, and no arithmetic follows it. Returns whether the equation is
        one of these.
        """
        name, aval = equation.primitive.name, avals(equation)[-1]
        if self.residual is not None or aval.shape != self.shape or aval.dtype != _FLOAT32:
            return False
        if name == "neg":
            self.steps.append(("mul", -1.0))
            return True
        if name not in ("sub", "mul", "div") and name not in _SUM_NAMES:
            return False
        is_first = equation.invars[0] is self.value
        if name == "div" and not is_first:
            return False
        other: Any = equation.invars[1 if is_first else 0]
        step = "add" if name in _SUM_NAMES else "rsub" if name == "sub" and not is_first else name
        vector = self._channel_operand(other)
        if vector is not None:
            self.steps.append((step, vector))
            return True
        # A smaller array that is broadcast over the image would have to be stored at full size first.
        is_whole_array = isinstance(other, Var) and other not in self.uses.broadcasts
        if not is_whole_array or other.aval.shape != self.shape or step not in ("add", "rsub"):
            return False
        if step == "rsub":
            self.steps.append(("mul", -1.0))
        self.residual = self._operand_number(other), len(self.moves)
        return True

    def _operand_number(self, variable: Var) -> int:
        """Returns the position of a variable among the group's operands, which a new one joins."""
        return self.operands.setdefault(variable, len(self.operands))

    def _channel_operand(self, atom: Any) -> int | float | None:
        """Returns a literal number, a float, or the position, an int, of an operand with one number for each channel.

        None for any other array. The operands are those of the group: an array that is new to the group becomes one,
        and a `broadcast_in_dim` that makes the array is computed with the group.
        """
        aval = atom.aval
        if isinstance(atom, Literal):
            return float(atom.val) if aval.shape == () else None
        if aval.shape == () or (len(aval.shape) == len(self.shape) and _is_along_axis(aval.shape, self.axis)):
            return self._operand_number(atom)
        number = self.uses.broadcasts.get(atom)
        if number is None or aval.shape != self.shape or len(self.uses.equations[number].invars) != 1:
            return None
        broadcast = self.uses.equations[number]
        source: Any = broadcast.invars[0]
        dims = broadcast.params["broadcast_dimensions"]
        if any(size > 1 and dims[axis] != self.axis for axis, size in enumerate(source.aval.shape)):
            return None
        self.broadcasts.append(number)
        return float(source.val) if isinstance(source, Literal) else self._operand_number(source)

    # Moves.

    def _take_move(self, equation: JaxprEqn) -> bool:
        """Adds to the recipe a reshape or transpose that keeps an axis of the channels.

        Returns whether the equation is one of these, or leaves the array as it is, such as a copy.
        """
        name, aval = equation.primitive.name, avals(equation)[-1]
        if aval.dtype != _FLOAT32 or math.prod(aval.shape) != math.prod(self.shape):
            return False
        if name in _IDENTITY_NAMES:
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

    def _take_activation(self) -> None:
        """Adds the equations of the longest activation that holds all readers of the value, if there is one."""
        expressions: dict[Any, Any] = {self.value: X}
        waiting = sorted(set(self.uses.readers.get(self.value, ())))
        unread = {self.value: self.uses.count(self.value)}
        visited: list[int] = []
        best = 0
        while waiting and len(visited) < _MAX_ACTIVATION_EQUATIONS:
            number = heapq.heappop(waiting)
            equation = self.uses.equations[number]
            if not self._is_free(number):
                break
            form = expression(equation, [operand_of(atom, expressions) for atom in equation.invars])
            if form is None:
                break
            for atom in equation.invars:
                if not isinstance(atom, Literal):
                    unread[atom] -= 1
            result: Any = equation.outvars[0]
            expressions[result], unread[result] = form, self.uses.count(result)
            visited.append(number)
            inner = any(count for variable, count in unread.items() if variable is not result)
            match = None if inner or result.aval.shape != self.shape else activation(form)
            if match is not None:
                best, self.activation = len(visited), match
            for reader in self.uses.readers.get(result, ()):
                if reader not in waiting:
                    heapq.heappush(waiting, reader)
        if best:
            self._append(visited[:best], self.uses.equations[visited[best - 1]].outvars[0], True)

    def group(self, start: int, conv: Convolution) -> Group:
        """Returns the group, without the moves at the end that no other operation follows.

        The tail must have an operation that is no move: see `useful_lengths`.

        Args:
          start: number of the convolution's equation.
          conv: description of the convolution.
        """
        count, moves = self.useful_lengths
        tail_numbers, equations = self.tail_numbers[:count], self.uses.equations
        last = tail_numbers[-1]
        unshared_broadcasts = [
            number for number in self.broadcasts if self.uses.count(equations[number].outvars[0]) == 1
        ]
        restoring_axes = tuple(map(int, np.argsort(conv.axes[2])))
        first: tuple[Move, ...] = () if restoring_axes == tuple(range(len(restoring_axes))) else (restoring_axes,)
        residual = None if self.residual is None else (self.residual[0], self.residual[1] + len(first))
        return Group(
            equation=self.equation,
            convolution=conv,
            tail=tuple(equations[number] for number in sorted({*tail_numbers, *self.broadcasts})),
            members=frozenset((start, *tail_numbers[:-1], *unshared_broadcasts)),
            last=last,
            operands=tuple(self.operands),
            recipe=Recipe(tuple(self.steps), residual, (*first, *self.moves[:moves]), *self.activation),
        )


def _is_along_axis(shape: Sequence[int], axis: int) -> bool:
    """Returns whether an array has size 1 along all other axes."""
    return all(size == 1 for other, size in enumerate(shape) if other != axis)
