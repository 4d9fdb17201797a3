"""The tables of a report as a terminal of 80 columns shows them."""

from __future__ import annotations

import dataclasses
import io

import rich.console

from jaxcnn.demo import report

WIDTH = 80


def shown(table):
    """The table as text, 80 columns wide."""
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=WIDTH)
    console.print(report.terminal_table(table, console))
    return stream.getvalue()


def assert_whole(table, *widest):
    """Asserts that no heading and no figure of a table is cut off, also with the widest rows that it may have."""
    table = dataclasses.replace(table, rows=(*table.rows, *widest))
    assert all(len(row) == len(table.columns) for row in table.rows)
    lines = shown(table).splitlines()
    assert max(map(len, lines)) <= WIDTH, lines
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines), lines
    rule = next(
        number for number, line in enumerate(lines) if set(line.strip()) == {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"}
    )
    # The lines of the headings stand under each other, in columns of which none is narrower than its heading.
    words = " ".join(lines[:rule]).split()
    for column in table.columns:
        for line in column.splitlines():
            assert any(line in shown_line for shown_line in lines[:rule]), (line, lines[:rule])
            assert all(word in words for word in line.split())
    body = " ".join(lines[rule:]).split()
    for row in table.rows:
        for figure in row[table.text_columns :]:
            assert all(word in body for word in figure.split()), (figure, lines)
