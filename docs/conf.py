"""Settings of the documentation: `make docs`."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import notebook_pages  # noqa: E402

import jaxcnn  # noqa: E402

project = "jaxcnn"
author = "The jaxcnn authors"
copyright = author
release = version = jaxcnn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "myst_parser"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
exclude_patterns = ["_build"]
EXTRA = HERE / "_build" / "extra"
EXTRA.mkdir(parents=True, exist_ok=True)
html_extra_path = [str(EXTRA)]
linkcheck_timeout = 20
html_theme = "furo"
html_title = f"jaxcnn {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
highlight_language = "none"

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings say what the annotations say, and more
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

WIDE_POINTS = 500
"""Width of the pictures that a phone shows in parts."""

NAPOLEON = Config(napoleon_use_rtype=False)


class Markdown(SphinxDirective):
    """A docstring in the Markdown of the pages, in which public names are links."""

    has_content = True
    required_arguments = 1  # the documented name, which is not linked to itself

    def run(self):
        """Returns the nodes of the docstring, without one around them: Sphinx looks for `Args` below the signature."""
        document = new_document("docstring", self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        for code in list(document.findall(nodes.literal)):
            name = code.astext()
            if name in jaxcnn.__all__ and f"jaxcnn.{name}" != self.arguments[0]:
                link = addnodes.pending_xref(
                    "", code.deepcopy(), refdomain="py", reftype="obj", reftarget=f"jaxcnn.{name}"
                )
                code.replace_self(link)
        return document.children


class NotebookParser(MystParser):
    """The parser of notebooks, which are run and read as Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        """Parses the notebook of a file's text."""
        notebook = notebook_pages.read(inputstring, HERE / "_build" / "notebooks")
        super().parse(notebook_pages.to_markdown(notebook), document)


def read_docstring(app, what, name, obj, options, lines):
    """Turns the sections of a docstring into fields, and hands the text to `Markdown`.

    Sphinx's napoleon reads the sections; the headings and doctests that it leaves in reStructuredText become Markdown.
    """
    # Without a colon in front, what stands before the first colon of "Returns" would be its type.
    text = re.sub(r"^( *Returns:\n *)", r"\1: ", "\n".join(lines), flags=re.MULTILINE)
    text = str(GoogleDocstring(text, NAPOLEON, app, what, name, obj, options))
    text = re.sub(r"^\.\. rubric:: (.*)$", r"```{rubric} \1\n```", text, flags=re.MULTILINE)
    text = re.sub(r"(^>>> .*\n(?:.+\n)*)", r"```pycon\n\1```\n", text + "\n", flags=re.MULTILINE)
    lines[:] = [f".. markdown:: {name}", "", *("   " + line for line in text.split("\n"))]


def trim_code(app, doctree):
    """Takes away the empty line that ends an example, which is there for doctest."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = block.rawsource.rstrip("\n")
        block[:] = [nodes.Text(block.rawsource)]


def mark_wide_pictures(app, doctree):
    """Marks the pictures that would be too small to read if a phone showed all of them at once."""
    for image in doctree.findall(nodes.image):
        path = HERE / image["uri"]
        width = re.search(r'<svg[^>]* width="([\d.]+)pt"', path.read_text()) if path.suffix == ".svg" else None
        if width and float(width[1]) > WIDE_POINTS:
            image["classes"].append("wide")


def make_pictures(app):
    """Draws the pictures of the pages into `_build/pictures`."""
    import make_pictures

    make_pictures.main(HERE / "_build" / "pictures")


def write_substitution_page(app):
    """Writes the page of recorded results that stands beside the others."""
    from benchmarks.substitution_page.page import write_page

    write_page(EXTRA / "substitutions.html", back=("benchmarks.html", "How speed is measured"))


def setup(app):
    """Registers the above."""
    app.add_directive("markdown", Markdown)
    app.add_source_parser(NotebookParser)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("doctree-read", trim_code)
    app.connect("doctree-read", mark_wide_pictures)
    app.connect("builder-inited", make_pictures)
    app.connect("builder-inited", write_substitution_page)
