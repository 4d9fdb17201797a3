"""Tables of results, as text of at most 100 columns and as HTML."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Collection, Mapping, Sequence

_MAX_LINE_CHARACTERS = 100


def with_unit(number: int) -> str:
    """Returns a count to three digits, with its unit: 4.09 G."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(number)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of cells.

    Args:
      header: titles of the columns.
      rows: cells of each row.
      right: columns that are aligned to the right.
      shrinking: columns that get narrower if a line is too long, first to last, each with its least width.
      tooltips: text that HTML shows over a cell, by column, for each row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[int]
    shrinking: Sequence[tuple[int, int]]
    tooltips: Sequence[Mapping[int, str]]

    def text(self, remarks: Sequence[str]) -> str:
        """Returns the table as text, with remarks below; a cell that is too long loses its beginning."""
        cells = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for column, least in self.shrinking:
            excess = sum(widths) + 2 * (len(widths) - 1) - _MAX_LINE_CHARACTERS
            widths[column] -= max(0, min(excess, widths[column] - least))
        lines = []
        for row in cells:
            parts = []
            for column, (text, width) in enumerate(zip(row, widths, strict=True)):
                fitted = text if len(text) <= width else "…" + text[len(text) - width + 1 :]
                parts.append(fitted.rjust(width) if column in self.right else fitted.ljust(width))
            lines.append("  ".join(parts).rstrip())
        lines = [lines[0], "-" * max(map(len, lines)), *lines[1:], "", *remarks]
        return "\n".join(
            line if len(line) <= _MAX_LINE_CHARACTERS else line[: _MAX_LINE_CHARACTERS - 1] + "…" for line in lines
        )

    def html(self, remarks: Sequence[str]) -> str:
        """Returns the table as HTML, with remarks below."""
        head = "".join(f"<th>{name}</th>" for name in self.header)
        body = []
        for row, tooltips in zip(self.rows, self.tooltips, strict=True):
            parts = []
            for column, text in enumerate(row):
                title = f' title="{html.escape(tooltips[column])}"' if tooltips.get(column) else ""
                align = ' style="text-align:right"' if column in self.right else ""
                parts.append(f"<td{title}{align}>{html.escape(text)}</td>")
            body.append(f"<tr>{''.join(parts)}</tr>")
        tail = "".join(f"<p>{html.escape(line)}</p>" for line in remarks)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{tail}"
