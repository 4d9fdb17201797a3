"""`summarize`: the convolutions, pools and dense products of a function, what they cost, and how they are computed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as lax_primitives

from jaxcnn.cost import Cost
from jaxcnn.geometry import ReceptiveField
from jaxcnn.transform.arguments import split
from jaxcnn.transform.fields import Value, argument, through
from jaxcnn.transform.interpreter import held_jaxprs, is_entered, opened
from jaxcnn.transform.rows import Place, Row, row_of
from jaxcnn.transform.table import html_table, text_table

_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
_LONGEST_LOOP = 1000
"""Steps of a scan after which a receptive field that still grows is given up."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The convolutions, pools and dense products of a function, in order of execution; `print` shows a table.

    Args:
      rows: one `Row` for each.
      notes: what was counted once although it may be executed more or less often, and what was not looked into.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> f = lambda x, kernel: jaxcnn.max_pool(jaxcnn.conv(x, kernel, strides=2), 2)
      >>> summary = jaxcnn.summarize(f, jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))
      >>> [(row.kind, row.output_shape, row.cost.macs) for row in summary.rows]
      [('conv', (1, 4, 4, 4), 1728), ('max pool', (1, 3, 3, 4), 0)]
      >>> summary.total
      Cost(macs=1728, macs_valid=1452, flops=3564, params=108, bytes=1856)
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        """The cost of all rows."""
        return sum((row.cost for row in self.rows), Cost())

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """The union of the receptive fields of all rows, at the stride of the widest; None if none is known."""
        known = [row.receptive_field for row in self.rows if row.receptive_field]
        if len({len(field.size) for field in known}) != 1:
            return None
        offset = tuple(map(max, zip(*(field.offset for field in known), strict=True)))
        ends = ((size - low for size, low in zip(field.size, field.offset, strict=True)) for field in known)
        size = tuple(low + max(end) for low, end in zip(offset, zip(*ends, strict=True), strict=True))
        return ReceptiveField(size, max(known, key=lambda field: field.size).stride, offset)

    def to_json(self) -> str:
        """All rows, totals and notes as JSON."""
        content = {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "total": dataclasses.asdict(self.total),
            "notes": self.notes,
        }
        return json.dumps(content)

    def __str__(self) -> str:
        return text_table(self.rows, self.total, self.notes)

    def _repr_html_(self) -> str:
        return html_table(self.rows, self.total, self.notes)


def summarize(f: Callable[..., Any], *args: Any, platform: str | None = None) -> Summary:
    """Each convolution, transposed convolution, pool and dense product of a function: where, its cost, the method.

    f is traced, not run: nothing is compiled and no device is needed. Bodies of `scan` are multiplied by their length,
    of a `cond` the branch with the most MACs is counted, and the body of a `while` once. A weight is the operand that
    does not depend on what was convolved before. The receptive field is that of the whole graph: parallel branches
    give their union; it is not known any more behind a reshape or a sum over the image.

    Args:
      f: a function of arrays: a model, a loss, a gradient, a training step, accelerated or not.
      *args: its arguments; `jax.ShapeDtypeStruct`s may stand for arrays, and what is not an array reaches f unchanged.
      platform: for which the method is told, `"cpu"` (if left out), `"gpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    Returns:
      A `Summary`: `.rows`, `.total`, `.to_json()`, and a table when printed or shown in a notebook.

    Raises:
      ValueError: an unknown platform.
      TypeError: f is no function, or an argument that is not an array is not hashable.

    Example:
      >>> import jaxcnn
      >>> x, kernel = jax.ShapeDtypeStruct((1, 32, 32, 8), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 8), "float32")
      >>> summary = jaxcnn.summarize(lambda x, kernel: jaxcnn.conv(x, kernel, feature_group_count=8), x, kernel)
      >>> summary.rows[0].method, summary.rows[0].cost.macs, summary.rows[0].receptive_field.size
      ('shift', 73728, (3, 3))

    References:
      Receptive fields as in Araujo, Norris and Sim, Distill 2019; MACs as in `conv_cost`.
    """
    if not callable(f):
        raise TypeError(f"summarize: f must be a function, got {f!r}")
    if platform is not None and platform not in _PLATFORMS:
        known = ", ".join(map(repr, _PLATFORMS))
        raise ValueError(f"summarize: platform must be one of {known}, got {platform!r}")
    signature, arrays = split("summarize", args, {})
    closed = jax.make_jaxpr(signature.flat(f))(*arrays)
    walk = _Walk()
    variables = (*opened(closed).constvars, *opened(closed).invars)
    values = [argument(number, _ndim(variable)) for number, variable in enumerate(variables)]
    rows, _ = walk.rows(closed, values, Place("", 1, platform or "cpu"))
    return Summary(tuple(rows), tuple(dict.fromkeys(walk.notes)))


def _ndim(variable: Any) -> int:
    return len(getattr(variable.aval, "shape", ()))


@dataclasses.dataclass
class _Walk:
    """A walk over a jaxpr and those it holds, which collects notes."""

    notes: list[str] = dataclasses.field(default_factory=list)

    def rows(self, jaxpr: Any, values: Sequence[Value], place: Place) -> tuple[list[Row], list[Value]]:
        """The rows of a jaxpr and what is known of its results; `values`: of its constants, then its arguments."""
        jaxpr = opened(jaxpr)
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), values, strict=True))

        def read(atom: Any) -> Value:
            return Value((None,) * _ndim(atom)) if isinstance(atom, Literal) else known[atom]

        rows: list[Row] = []
        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            found = row_of(equation, operands, place)
            if found is not None:
                rows.append(found[0])
                results = [found[1]]
            else:
                inner, results = self._held(equation, operands, place)
                rows += inner
            known.update(zip(equation.outvars, results, strict=True))
        return rows, [read(atom) for atom in jaxpr.outvars]

    def _inner(self, jaxpr: Any, operands: Sequence[Value], place: Place) -> tuple[list[Row], list[Value]]:
        constants = [Value((None,) * _ndim(variable)) for variable in opened(jaxpr).constvars]
        return self.rows(jaxpr, [*constants, *operands], place)

    def _held(self, equation: JaxprEqn, operands: list[Value], place: Place) -> tuple[list[Row], list[Value]]:
        held = held_jaxprs(equation)
        if not held:
            return [], through(equation, operands)
        inside = place.inside(equation)
        if equation.primitive is lax_primitives.scan_p:
            return self._scan(equation, operands, place)
        if equation.primitive is lax_primitives.while_p:
            return self._while(equation, operands, inside)
        if equation.primitive is lax_primitives.cond_p:
            branches = [self._inner(branch, operands[1:], inside) for branch in held]
            if any(rows for rows, _ in branches):
                self.notes.append(f"cond at {inside.name or 'the top'}: the branch with the most MACs is counted")
            return max(branches, key=lambda branch: sum(row.cost.macs for row in branch[0]))
        if is_entered(equation.primitive):
            # Of the jaxprs of an equation of any other primitive there is one.
            return self._inner(held[0], operands, inside)
        unknown = [[Value((None,) * _ndim(variable)) for variable in opened(jaxpr).invars] for jaxpr in held]
        if any(self._inner(jaxpr, values, inside)[0] for jaxpr, values in zip(held, unknown, strict=True)):
            self.notes.append(f"{equation.primitive} at {inside.name or 'the top'} is not looked into")
        return [], through(equation, operands)

    def _scan(self, equation: JaxprEqn, operands: list[Value], place: Place) -> tuple[list[Row], list[Value]]:
        params = equation.params
        length, body = params["length"], params["jaxpr"]
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        constants, carry = operands[:first], operands[first:last]
        slices = [Value(value.axes[1:], value.image, value.copies * length) for value in operands[last:]]
        rows: list[Row] = []
        results = [*carry]
        for step in range(min(length, _LONGEST_LOOP)):
            rows, results = self._inner(body, [*constants, *carry, *slices], place.inside(equation, length))
            before, carry = carry, results[: len(carry)]
            if before == carry:
                break
            if step == _LONGEST_LOOP - 1:
                carry = [Value((None,) * len(value.axes), value.image) for value in carry]
        stacked = [Value((None, *value.axes), value.image) for value in results[len(carry) :]]
        if not length:
            stacked = [Value((None,) * _ndim(variable)) for variable in equation.outvars[len(carry) :]]
        return rows, [*carry, *stacked]

    def _while(self, equation: JaxprEqn, operands: list[Value], inside: Place) -> tuple[list[Row], list[Value]]:
        params = equation.params
        of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
        carry = operands[of_condition + of_body :]
        tested, _ = self._inner(params["cond_jaxpr"], [*operands[:of_condition], *carry], inside)
        rows, results = self._inner(
            params["body_jaxpr"], [*operands[of_condition : of_condition + of_body], *carry], inside
        )
        if tested or rows:
            self.notes.append(f"while at {inside.name or 'the top'}: its body is counted once")
        # How far the field grows depends on the number of steps.
        after = [
            value if value == old else Value((None,) * len(value.axes), value.image)
            for value, old in zip(results, carry, strict=True)
        ]
        return [*tested, *rows], after
