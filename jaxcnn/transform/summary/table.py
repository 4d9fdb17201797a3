"""A summary as a table: text of at most 100 columns, and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from jaxcnn.cost import Cost
from jaxcnn.transform.summary.row import SummaryRow

_WIDTH = 100
_HEADER = ("layer", "kind", "output", "kernel", "MACs", "params", "field", "method")
_RIGHT = (4, 5, 6)


def _sizes(values: Sequence[object]) -> str:
    return "x".join(map(str, values))


def short(number: int) -> str:
    """A count to three digits: 4.09 G."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(number)


def _line(row: SummaryRow) -> str:
    """The file's name and the line."""
    return ":".join(row.source.split(" ")[0].rsplit("/", 1)[-1].split(":")[:2])


def _kernel(row: SummaryRow) -> str:
    text = _sizes(row.kernel)
    if row.strides and max(row.strides) > 1:
        text += "/" + (str(row.strides[0]) if len({*row.strides}) == 1 else _sizes(row.strides))
    if row.dilation and max(row.dilation) > 1:
        text += " d" + (str(row.dilation[0]) if len({*row.dilation}) == 1 else _sizes(row.dilation))
    return text + (f" g{row.groups}" if row.groups > 1 else "")


def _cells(row: SummaryRow) -> tuple[str, ...]:
    sizes = row.receptive_field.size if row.receptive_field else ()
    field = "" if not sizes else str(sizes[0]) if len({*sizes}) == 1 else _sizes(sizes)
    return (
        (f"{row.count} of " if row.count > 1 else "") + (row.name or _line(row)),
        row.kind,
        _sizes(row.output_shape),
        _kernel(row),
        short(row.cost.macs),
        short(row.cost.params),
        field,
        row.method,
    )


def _totals(total: Cost) -> str:
    return (
        f"{short(total.macs)} MACs ({short(total.macs_valid)} on pixels), {short(total.flops)} FLOPs, "
        f"{short(total.params)} parameters, {short(total.bytes)} bytes"
    )


def text_table(rows: Sequence[SummaryRow], total: Cost, notes: Sequence[str]) -> str:
    """The table as text; what is too long for 100 columns loses its beginning."""
    cells = [_HEADER, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    # Of the columns, the layer's name gives way first, then kernel, kind and output.
    for column, least in ((0, 12), (3, 10), (1, 10), (2, 10), (6, 5)):
        excess = sum(widths) + 2 * (len(widths) - 1) - _WIDTH
        widths[column] -= max(0, min(excess, widths[column] - least))
    lines = []
    for line in cells:
        parts = []
        for column, (text, width) in enumerate(zip(line, widths, strict=True)):
            fitted = text if len(text) <= width else "…" + text[len(text) - width + 1 :]
            parts.append(fitted.rjust(width) if column in _RIGHT else fitted.ljust(width))
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines += ["", _totals(total)]
    lines += [note if len(note) <= _WIDTH else note[: _WIDTH - 1] + "…" for note in notes]
    return "\n".join(lines)


def html_table(rows: Sequence[SummaryRow], total: Cost, notes: Sequence[str]) -> str:
    """The table as HTML, each row with its source line and the reason of its method as tooltips."""
    head = "".join(f"<th>{name}</th>" for name in _HEADER)
    body = []
    for row in rows:
        titles = {0: row.source, len(_HEADER) - 1: row.reason}
        parts = []
        for column, text in enumerate(_cells(row)):
            title = f' title="{html.escape(titles[column])}"' if column in titles else ""
            align = ' style="text-align:right"' if column in _RIGHT else ""
            parts.append(f"<td{title}{align}>{html.escape(text)}</td>")
        body.append(f"<tr>{''.join(parts)}</tr>")
    tail = "".join(f"<p>{html.escape(line)}</p>" for line in (_totals(total), *notes))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{tail}"
