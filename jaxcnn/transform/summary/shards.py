"""The parts of a function's operations that each device computes, read from the program that XLA splits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxcnn import primitives as jaxcnn_primitives
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import ConvSpec
from jaxcnn.partitioning import Part, record_parts
from jaxcnn.transform.jaxpr.signature import compile_uncached
from jaxcnn.transform.summary.row import Shard, SummaryRow

_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclasses.dataclass(frozen=True)
class SplitProgram:
    """A program that XLA split over several devices.

    Args:
      parts: one device's parts of jaxcnn's operations, by the whole operation; several if one is split in several ways.
      received: pairs of a collective operation's name and the bytes of the results on a device, for the whole program.
    """

    parts: Mapping[Hashable, Sequence[Part]]
    received: tuple[tuple[str, int], ...]

    def with_shards(self, row: SummaryRow, equation: JaxprEqn) -> SummaryRow:
        """Returns the row of an equation with one device's parts, and the method by which a device computes."""
        operation = jaxcnn_primitives.operation_of(equation)
        shards = tuple(_shard(part, equation) for part in self.parts.get(operation, ()))
        if not shards:
            return row
        return dataclasses.replace(row, shards=shards, method=shards[0].method, reason=shards[0].reason)


def split_program(f: Callable[..., Any], arrays: Sequence[Any]) -> SplitProgram:
    """Returns what is known of the program of a function for arrays that lie on several devices; compiles it.

    Args:
      f: function of arrays.
      arrays: arguments, or their types with shardings.
    """
    with record_parts() as recorded:
        compiled = compile_uncached("summarize", f, arrays)
    parts: dict[Hashable, list[Part]] = {}
    for part in recorded:
        alike = parts.setdefault(part.operation, [])
        if part not in alike:
            alike.append(part)
    return SplitProgram(parts, received_bytes(compiled.as_text()))


def received_bytes(program: str) -> tuple[tuple[str, int], ...]:
    """Returns the collective operations of a compiled program, given as HLO text, with the bytes of their results."""
    received = []
    for name in _COLLECTIVES:
        # An asynchronous operation has its result at its end.
        for result in re.findall(rf"= (\(.*?\)|\S+) {name}(?:-done)?\(", program):
            arrays = re.findall(r"([a-z]+)(\d*)\w*\[([\d,]*)\]", result)
            sizes = (math.prod(int(n) for n in shape.split(",") if n) * _bytes(bits) for _, bits, shape in arrays)
            received.append((name, sum(sizes)))
    return tuple(received)


def _bytes(bits: str) -> int:
    """Returns the bytes of a number of a type with so many bits in its name; pred has none."""
    return max(1, int(bits or 8) // 8)


def _shard(part: Part, equation: JaxprEqn) -> Shard:
    if isinstance(part.spec, ConvSpec):
        chosen = choice.choose(part.spec, equation.params["method"], "cpu")
        method, reason = chosen.method, chosen.reason
    else:
        selects = equation.primitive in (jaxcnn_primitives.select_p, jaxcnn_primitives.scatter_p)
        method = choice.pool_method(part.spec, "cpu", selects=selects).NAME
        reason = ""
    return Shard(part.shapes[0], part.shapes[-1], method, reason, part.received)
