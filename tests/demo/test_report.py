import base64
import html.parser
import io

import numpy as np
import pytest
import rich.console

from jaxcnn.demo import images, report
from support import terminal_tables

NASTY = '<script>alert("x")</script> & [bold]'


def page():
    table = report.Table(NASTY, ("layer", NASTY), (("conv1", NASTY), ("conv2", "1.0")), notes=(NASTY,))
    picture = report.Picture(NASTY, images.to_png(np.zeros((4, 6, 3), np.uint8)))
    section = report.Section(NASTY, NASTY, figures=((NASTY, NASTY),), pictures=(picture,), tables=(table,))
    return report.Report(NASTY, NASTY, (section,), ((NASTY, NASTY),))


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and the balance of opened and closed ones."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained():
    tags = Tags(report.render_html(page()))
    assert tags.open == []
    assert not {tag for tag, _ in tags.tags} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for _, attributes in tags.tags if "src" in attributes]
    assert len(sources) == 1
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any("href" in attributes for _, attributes in tags.tags)
    assert "url(" not in report.STYLE
    assert "@import" not in report.STYLE


def test_picture_in_the_page_is_the_png():
    png = page().sections[0].pictures[0].png
    (source,) = (attributes["src"] for tag, attributes in Tags(report.render_html(page())).tags if tag == "img")
    assert base64.b64decode(source.split(",")[1]) == png
    assert png.startswith(b"\x89PNG")


def test_page_escapes_text_everywhere():
    text = report.render_html(page())
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; [bold]") >= 12


def test_terminal_shows_text_as_it_is():
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=400)
    report.print_section(page().sections[0], console)
    report.print_definitions(page(), console)
    assert stream.getvalue().count(NASTY) >= 9


def test_machine_names_versions_and_device():
    machine = report.describe_machine()
    assert "jaxcnn " in machine
    assert "jax " in machine
    assert "cpu" in machine


def test_bar_moves_with_what_is_told_and_is_full_at_the_end():
    with report.progress_bars(rich.console.Console(file=io.StringIO(), width=80)) as bars:
        with report.steps(bars, "Searching") as move:
            (task,) = bars.tasks
            assert task.total is None  # a bar that pulses: nothing was told yet
            move(2.5, 7)
            assert (task.completed, task.total) == (2.5, 7)
            assert not task.finished
        assert task.finished
        assert task.completed == 2.5
        with report.steps(bars, "Nothing told"):
            pass
        assert bars.tasks[-1].finished


def test_a_step_that_takes_long_still_shows_that_time_goes_on():
    """Between two steps nobody tells anything: what is drawn changes by itself."""
    now = 0.0
    console = rich.console.Console(file=io.StringIO(), width=80, force_terminal=True)
    bars = report.progress_bars(console)
    bars.get_time = console.get_time = lambda: now
    bars.add_task("Compiling", total=1)

    def drawn():
        stream = io.StringIO()
        drawing = rich.console.Console(file=stream, width=80, force_terminal=True, color_system=None)
        drawing.get_time = lambda: now
        drawing.print(bars.get_renderable())
        return stream.getvalue()

    lines = []
    for now in (0.0, 1.25, 2.5):  # noqa: B007
        lines.append(drawn())
    assert len(set(lines)) == 3
    assert "0:00:02" in lines[-1]
    assert all(len(line.rstrip("\n")) <= 80 for line in lines)


def test_words_are_folded_where_a_table_is_too_wide():
    table = report.Table("t", ("what there is", "how\nmany"), (("word " * 40, "1,234"),))
    lines = terminal_tables.shown(table).splitlines()
    assert sum(line.count("word") for line in lines) == 40
    terminal_tables.assert_whole(table)


def test_a_wide_table_gives_up_the_room_between_columns_before_it_folds_words():
    table = report.Table("t", ("way", *["m"] * 6), (("two words", *["10,000,000"] * 6),))
    assert 80 - 7 < 9 + 6 * 11 <= 80  # one space before each figure fits, two do not
    (row,) = [line for line in terminal_tables.shown(table).splitlines() if "10,000,000" in line]
    assert row.startswith("two words 10,000,000 ")
    narrow = report.Table("t", ("way", "m"), (("two words", "10"),))
    assert "two words  10" in terminal_tables.shown(narrow)


def test_a_heading_that_is_cut_off_is_seen():
    columns = tuple(f"heading-{number}-that-is-long" for number in range(6))
    with pytest.raises(AssertionError):
        terminal_tables.assert_whole(report.Table("t", columns, (("1",) * 6,)))
