import base64
import html.parser
import io

import numpy as np
import rich.console

from jaxcnn.demo import images, report

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
