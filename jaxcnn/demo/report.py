"""Reports in two forms: as tables on the terminal, and as one HTML page that holds its pictures.

A report is plain data (`Report`, `Section`, `Table`, `Picture`), so that the two forms cannot disagree.
"""

import base64
import html
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import jax
import rich.box
import rich.console
import rich.markup
import rich.progress
import rich.table

import jaxcnn


@dataclass(frozen=True)
class Table:
    """Holds rows of text under column headings; the first `text_columns` columns are words, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """Holds a PNG file and the words beneath it."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """Holds one part of a report: a sentence or two, figures (the first three are its headline), pictures, tables."""

    title: str
    text: str
    figures: tuple[tuple[str, str], ...] = ()  # (label, value)
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Report:
    """Holds a whole report: a title, the machine, the sections, and the meaning of each term used."""

    title: str
    machine: str
    sections: tuple[Section, ...]
    definitions: tuple[tuple[str, str], ...]


def describe_machine() -> str:
    """Returns one line that describes this machine and the versions of its software."""
    device = jax.devices()[0]
    kind = device.platform if device.device_kind == device.platform else f"{device.device_kind} ({device.platform})"
    return (
        f"jaxcnn {jaxcnn.__version__}, jax {jax.__version__}, jaxlib {metadata.version('jaxlib')}, "
        f"{jax.device_count()} x {kind}, {os.cpu_count()} processor cores, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    )


def progress_bars(console: rich.console.Console, *, transient: bool = False) -> rich.progress.Progress:
    """Returns progress bars with a description, a count and the time taken; use them as a context.

    A spinner and the time show progress during a long step.

    Args:
      console: terminal that shows them.
      transient: flag, True for bars that disappear at the end; then only a terminal shows them.
    """
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(finished_text=" "),
        rich.progress.TextColumn("{task.description}", table_column=rich.table.Column(width=36)),
        rich.progress.BarColumn(bar_width=22),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=transient,
        disable=transient and not console.is_terminal,
    )


@contextmanager
def steps(bars: rich.progress.Progress, description: str) -> Iterator[Callable[[float, float], None]]:
    """Yields a function `(done, total)` that moves one bar; at the end the bar is full, whatever the last total."""
    task = bars.add_task(description, total=None)
    last_done = 0.0

    def move(done: float, total: float) -> None:
        nonlocal last_done
        last_done = done
        bars.update(task, completed=done, total=total)

    yield move
    bars.update(task, completed=max(last_done, 1), total=max(last_done, 1))


def print_section(section: Section, console: rich.console.Console) -> None:
    """Shows a section on the terminal (without its pictures)."""
    console.print()
    console.rule(rich.markup.escape(section.title), align="left")
    console.print(rich.markup.escape(section.text), highlight=False)
    for table in section.tables:
        console.print()
        console.print(terminal_table(table, console))
        for note in table.notes:
            console.print(rich.markup.escape(note), style="dim", highlight=False)
    if section.figures:
        console.print()
    for label, value in section.figures:
        console.print(f"{rich.markup.escape(label)}: [bold]{rich.markup.escape(value)}[/bold]", highlight=False)


def print_definitions(report: Report, console: rich.console.Console) -> None:
    """Shows the machine and the meaning of the terms on the terminal."""
    console.print()
    console.rule("What the figures mean", align="left")
    for term, meaning in report.definitions:
        console.print(f"[bold]{rich.markup.escape(term)}[/bold]: {rich.markup.escape(meaning)}", highlight=False)
    console.print(f"[bold]Machine[/bold]: {rich.markup.escape(report.machine)}", highlight=False)


def terminal_table(table: Table, console: rich.console.Console) -> rich.table.Table:
    """Returns the table for the terminal; where it is too wide, words are folded, but not headings or figures."""
    roomy = _rich_table(table, gap=1)
    unbounded = console.options.update(max_width=10 * console.width)  # else the width is never more than the console's
    fits = console.measure(roomy, options=unbounded).maximum <= console.width
    return roomy if fits else _rich_table(table, gap=0)


def _rich_table(table: Table, *, gap: int) -> rich.table.Table:
    """Returns the table of rich with `gap` more spaces between columns than the box puts there."""
    shown = rich.table.Table(
        title=rich.markup.escape(table.title),
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        show_edge=False,
    )
    for index, column in enumerate(table.columns):
        words = index < table.text_columns
        shown.add_column(
            rich.markup.escape(column),
            justify="left" if words else "right",
            vertical="bottom",
            no_wrap=not words,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(rich.markup.escape(cell) for cell in row))
    return shown


STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1f2328; --dim: #5b636d; --line:
#e0e3e7;
        --accent: #0b63c5; }
@media (prefers-color-scheme: dark) {
  :root { --page: #111417; --card: #191d21; --ink: #e6e8ea; --dim: #9aa3ad; --line: #2e343a; --accent: #6cb2ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.4rem 0; }
.dim, figcaption, dd, .note { color: var(--dim); font-size: 0.9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 1.2rem; margin: 1.4rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.8rem; margin: 1rem 0; }
.figures div { border: 1px solid var(--line); border-radius: 8px; padding: 0.6rem 0.8rem; }
.figures b { display: block; font-size: 1.35rem; color: var(--accent); font-variant-numeric: tabular-nums; }
.figures span { color: var(--dim); font-size: 0.85rem; }
.pictures { display: grid; gap: 0.8rem; margin: 1rem 0; }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; }
img { width: 100%; height: auto; display: block; border-radius: 6px; border: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--dim); font-weight: 600; vertical-align: bottom; }
.word { text-align: left; }
dt { font-weight: 600; margin-top: 0.6rem; }
dd { margin: 0; }
"""


def render_html(report: Report) -> str:
    """Returns the report as one HTML page with style and pictures inside, text escaped."""
    definitions = "".join(f"<dt>{_text(term)}</dt><dd>{_text(text)}</dd>" for term, text in report.definitions)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        f'<h1>{_text(report.title)}</h1>\n<p class="dim">{_text(report.machine)}</p>\n'
        + "".join(_html_section(section) for section in report.sections)
        + f"<section><h2>What the figures mean</h2><dl>{definitions}</dl></section>\n</main></body></html>\n"
    )


def _html_section(section: Section) -> str:
    """Returns one section as HTML: words, headline figures, pictures, tables."""
    figures = "".join(f"<div><b>{_text(value)}</b><span>{_text(what)}</span></div>" for what, value in section.figures)
    pictures = "".join(_html_picture(picture) for picture in section.pictures)
    return (
        f"<section><h2>{_text(section.title)}</h2><p>{_text(section.text)}</p>\n"
        + (f'<div class="figures">{figures}</div>\n' if figures else "")
        + (f'<div class="pictures">{pictures}</div>\n' if pictures else "")
        + "".join(_html_table(table) for table in section.tables)
        + "</section>\n"
    )


def _html_picture(picture: Picture) -> str:
    """Returns a picture as HTML, with its PNG inside."""
    data = base64.b64encode(picture.png).decode("ascii")
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _html_table(table: Table) -> str:
    """Returns a table as HTML; on a narrow screen the table alone scrolls."""

    def row(cells: tuple[str, ...], tag: str) -> str:
        classes = [' class="word"' if index < table.text_columns else "" for index in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{c}>{_text(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True))
            + "</tr>"
        )

    body = "\n".join(row(cells, "td") for cells in table.rows)
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    return (
        f'<h3>{_text(table.title)}</h3><div class="scroll"><table><thead>{row(table.columns, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>{notes}\n"
    )


def _text(text: str) -> str:
    """Returns text escaped for HTML, in an element or in an attribute."""
    return html.escape(text, quote=True)
