"""The cells of a summary's table."""

from __future__ import annotations

from collections.abc import Sequence

from jaxcnn.cost import Cost
from jaxcnn.transform.summary.row import SummaryRow
from jaxcnn.transform.tables import Table, with_unit

_HEADER = ("layer", "kind", "output", "kernel", "MACs", "params", "field", "method")
_NUMBERS = (4, 5, 6)
_SHRINKING = ((0, 12), (3, 10), (1, 10), (2, 10), (6, 5))
"""The layer's name gives way first, then kernel, kind, output and field."""


def summary_table(rows: Sequence[SummaryRow]) -> Table:
    """Returns the table of some rows, in HTML with source line and reason of the method as tooltips."""
    tooltips = [{0: row.source, len(_HEADER) - 1: row.reason} for row in rows]
    return Table(_HEADER, [_cells(row) for row in rows], _NUMBERS, _SHRINKING, tooltips)


def totals_line(total: Cost) -> str:
    """Returns the cost of all rows as one line."""
    return (
        f"{with_unit(total.macs)} MACs ({with_unit(total.macs_valid)} on pixels), {with_unit(total.flops)} FLOPs, "
        f"{with_unit(total.params)} parameters, {with_unit(total.bytes)} bytes"
    )


def _cells(row: SummaryRow) -> tuple[str, ...]:
    return (
        (f"{row.count} of " if row.count > 1 else "") + (row.name or _file_and_line(row)),
        row.kind,
        _by_x(row.output_shape),
        _kernel(row),
        with_unit(row.cost.macs),
        with_unit(row.cost.params),
        _once_if_equal(row.receptive_field.size) if row.receptive_field else "",
        row.method,
    )


def _by_x(sizes: Sequence[object]) -> str:
    return "x".join(map(str, sizes))


def _once_if_equal(sizes: Sequence[object]) -> str:
    return str(sizes[0]) if len({*sizes}) == 1 else _by_x(sizes)


def _file_and_line(row: SummaryRow) -> str:
    return ":".join(row.source.split(" ")[0].rsplit("/", 1)[-1].split(":")[:2])


def _kernel(row: SummaryRow) -> str:
    strides = f"/{_once_if_equal(row.strides)}" if row.strides and max(row.strides) > 1 else ""
    dilation = f" d{_once_if_equal(row.dilation)}" if row.dilation and max(row.dilation) > 1 else ""
    groups = f" g{row.groups}" if row.groups > 1 else ""
    return _by_x(row.kernel) + strides + dilation + groups
