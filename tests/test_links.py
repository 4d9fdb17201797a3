"""Every link of README, changelog, pages, notebooks and docstrings leads to a file, a heading or a valid address.

No address is asked here: `make linkcheck` does that.
"""

import ast
import inspect
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import jaxcnn

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*")
    if page.suffix in (".md", ".ipynb") and not {"_build", ".ipynb_checkpoints"} & set(page.parts)
)
FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES]
LINK = re.compile(r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)|<(https?:[^>\s]*)>|^\[[^]]+\]: (\S+)", re.MULTILINE)


def prose(text):
    """The text of a page without its code."""
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)[^`]+\1", "", text)


def markdown(path):
    """The text of a page, or of a notebook's cells."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return path.read_text()


def links(text):
    """The targets of all links and pictures."""
    return ["".join(groups) for groups in LINK.findall(prose(text))]


def anchors(text):
    """The anchors of a page: those that it sets, and those of its headings."""
    headings = re.findall(
        r"^#+ +(.*?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE), *slugs}


def fault(link, path):
    """Returns the fault of a link of a file; an empty text if there is none."""
    address = urlsplit(link)
    if address.scheme or address.netloc:
        host = address.hostname or ""
        valid = address.scheme == "https" and re.fullmatch(r"[a-z\d-]+(\.[a-z\d-]+)*\.[a-z]{2,}", host)
        return "" if valid else "is no https address"
    if address.path.startswith("/"):
        return "is not relative to the page"
    target = (path.parent / address.path).resolve() if address.path else path
    if "_build/pictures/" in address.path:
        return ""  # drawn with the pages; test_docs.py compares the names
    if not target.is_file() or not target.is_relative_to(ROOT):
        return "leads to no file"
    if address.fragment and address.fragment not in anchors(markdown(target)):
        return "leads to no heading"
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    faults = {link: fault(link, path) for link in links(markdown(path))}
    assert not {link: text for link, text in faults.items() if text}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_roles_are_in_the_reference(path):
    for role, name in re.findall(r"\{(func|class)\}`~?([^`]+)`", markdown(path)):
        public = name.removeprefix("jaxcnn.")
        assert public in jaxcnn.__all__, name
        assert inspect.isclass(getattr(jaxcnn, public)) == (role == "class"), name


def test_addresses_in_docstrings_are_valid():
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for path in (ROOT / "jaxcnn").rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
        for address in re.findall(r"https?:[^\s`>]+", "\n".join(ast.get_docstring(node) or "" for node in nodes)):
            assert not fault(address.rstrip(".,;)"), path), f"{path.name}: {address}"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("methods.md", ""),
        ("benchmarks.md#over-time", ""),
        ("benchmarks.md#seeded-families-of-layers", ""),
        ("#beside-other-libraries", ""),
        ("https://asv.readthedocs.io", ""),
        ("method.md", "leads to no file"),
        ("../../else.md", "leads to no file"),
        ("benchmarks.md#under-time", "leads to no heading"),
        ("http://asv.readthedocs.io", "is no https address"),
        ("https://localhost/page", "is no https address"),
        ("/docs/methods.md", "is not relative to the page"),
    ],
)
def test_faults_of_links(link, expected):
    assert fault(link, ROOT / "docs/benchmarks.md") == expected


def test_links_are_found_in_prose_alone():
    text = "[a](b.md) <https://c.org> ![p](q_(1).svg)\n\n[d]: e.md\n\n```python\nx[0](no.md)\n```\n`f[1](no.md)`\n"
    assert links(text) == ["b.md", "https://c.org", "q_(1).svg", "e.md"]
