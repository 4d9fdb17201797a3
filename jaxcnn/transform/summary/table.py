"""The cells of a summary's table."""

from __future__ import annotations

from collections.abc import Sequence

from jaxcnn.cost import Cost
from jaxcnn.transform.summary.row import SummaryRow
from jaxcnn.transform.tables import Table, with_unit

_HEADER = ("layer", "kind", "output", "kernel", "MACs", "params", "field", "method")
_SHARD_HEADER = ("part", "receives")
_NUMBER_COLUMNS = (4, 5, 6)
_SHRINKING_COLUMNS = ((0, 12), (3, 10), (1, 10), (2, 10), (6, 5))
"""Columns that give way in a long line, each with its least width: layer, kernel, kind, output, field in this order."""


def summary_table(rows: Sequence[SummaryRow]) -> Table:
    """Returns the table of some rows; its HTML has the source line and the reason of the method as tooltips."""
    method, received = len(_HEADER) - 1, len(_HEADER) + 1
    header: tuple[str, ...] = _HEADER
    cells = [_cells(row) for row in rows]
    tooltips = [{0: row.source, method: row.reason} for row in rows]
    if any(row.shards for row in rows):
        header += _SHARD_HEADER
        cells = [(*of_row, *_shard_cells(row)) for of_row, row in zip(cells, rows, strict=True)]
        for texts, row in zip(tooltips, rows, strict=True):
            texts[received] = " or ".join(_received_text(shard.received) for shard in row.shards)
    return Table(header, cells, _NUMBER_COLUMNS, _SHRINKING_COLUMNS, tooltips)


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
        _join_sizes(row.output_shape),
        _kernel_text(row),
        with_unit(row.cost.macs),
        with_unit(row.cost.params),
        _short_sizes(row.receptive_field.size) if row.receptive_field else "",
        row.method,
    )


def received_line(received: Sequence[tuple[str, int]]) -> str:
    """Returns the collective operations of a program as one line, empty if there are none."""
    return f"each device receives {_received_text(received)}" if received else ""


def _shard_cells(row: SummaryRow) -> tuple[str, ...]:
    """Returns the cells on each device's part: the shape of its result, and the bytes that it receives."""
    shapes = (_join_sizes(shard.output_shape) for shard in row.shards)
    received = (_bytes_text(sum(size for _, size in shard.received)) for shard in row.shards)
    return " or ".join(dict.fromkeys(shapes)), " or ".join(dict.fromkeys(received))


def _received_text(received: Sequence[tuple[str, int]]) -> str:
    counts: dict[str, list[int]] = {}
    for name, size in received:
        counts.setdefault(name, []).append(size)
    return ", ".join(f"{len(sizes)} {name} ({_bytes_text(sum(sizes))})" for name, sizes in counts.items())


def _bytes_text(number: int) -> str:
    text = with_unit(number)
    return f"{text}B" if " " in text else f"{text} B"


def _join_sizes(sizes: Sequence[object]) -> str:
    return "x".join(map(str, sizes))


def _short_sizes(sizes: Sequence[object]) -> str:
    return str(sizes[0]) if len({*sizes}) == 1 else _join_sizes(sizes)


def _file_and_line(row: SummaryRow) -> str:
    return ":".join(row.source.split(" ")[0].rsplit("/", 1)[-1].split(":")[:2])


def _kernel_text(row: SummaryRow) -> str:
    strides = f"/{_short_sizes(row.strides)}" if row.strides and max(row.strides) > 1 else ""
    dilation = f" d{_short_sizes(row.dilation)}" if row.dilation and max(row.dilation) > 1 else ""
    groups = f" g{row.groups}" if row.groups > 1 else ""
    return _join_sizes(row.kernel) + strides + dilation + groups
