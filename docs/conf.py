"""Settings of the documentation: `make docs`."""

import re
import sys
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jaxcnn  # noqa: E402

project = "jaxcnn"
author = "The jaxcnn authors"
copyright = author
release = version = jaxcnn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxcnn {release}"
html_show_sourcelink = False
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings say what the annotations say, and more
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def as_rst(app, what, name, obj, options, lines):
    """Turns the few Markdown forms of the docstrings into reStructuredText: `code`, $math$, and plain asterisks."""
    public = {*jaxcnn.__all__}
    in_returns = in_doctest = False

    def convert(match):
        math, code, other = match["math"], match["code"], match["other"]
        if other:
            return "\\" + other
        end = "\\ " if match.string[match.end() :][:1].isalnum() else ""
        if math:
            return f":math:`{math}`{end}"
        is_link = code in public and code != name.split(".")[-1]
        return (f":py:obj:`~jaxcnn.{code}`" if is_link else f"``{code}``") + end

    # Formulas and code may go over the end of a line, so whole paragraphs are converted; doctests are left as they are.
    pattern = re.compile(r"\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|(?P<other>(?<![\w\\])[*|](?=\w))")
    paragraph, converted = [], []

    def flush():
        if paragraph:
            converted.extend(pattern.sub(convert, "\n".join(paragraph)).split("\n"))
            paragraph.clear()

    for line in lines:
        stripped = line.strip()
        if stripped.startswith(">>>"):
            flush()
            in_doctest = True
        if not stripped:
            flush()
            in_doctest = False
        if in_doctest or not stripped:
            converted.append(line)
            continue
        if in_returns:
            # Without a colon in front napoleon takes what stands before the first one for a type.
            line = re.sub(r"^(\s*)", r"\1: ", line, count=1)
        in_returns = stripped == "Returns:"
        paragraph.append(line)
    flush()
    lines[:] = converted


def trim_code(app, doctree):
    """Takes away the empty line that ends an example, which is there for doctest."""
    for block in doctree.findall(nodes.literal_block):
        block.rawsource = block.rawsource.rstrip("\n")
        block[:] = [nodes.Text(block.rawsource)]


def make_pictures(app):
    """Draws the pictures of the pages into `_build/pictures`."""
    import make_pictures

    make_pictures.main(HERE / "_build" / "pictures")


def setup(app):
    """Before napoleon reads the docstrings, which it does at priority 500."""
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    app.connect("doctree-read", trim_code)
    app.connect("builder-inited", make_pictures)
