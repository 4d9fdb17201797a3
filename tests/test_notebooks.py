"""The notebooks run, within the time that they promise, and show what they say; they are committed without results."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
LONGEST_SECONDS = 120


def by_name(path):
    return path.name


@pytest.fixture
def pages(monkeypatch):
    """The module of the documentation that runs notebooks and writes them as pages."""
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module("notebook_pages")
    del sys.modules["notebook_pages"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_notebook_is_committed_without_results(path):
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell["metadata"]
    assert set(content["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_notebook_runs_in_two_minutes_and_shows_pictures(path, pages, tmp_path, monkeypatch):
    start = time.perf_counter()
    notebook = pages.read(path.read_text(), tmp_path)
    assert time.perf_counter() - start < LONGEST_SECONDS
    text = pages.to_markdown(notebook)
    assert text.count("](data:image/png;base64,") >= 4
    assert "<table" in text
    assert str(Path.home()) not in text
    assert text.count("\n```text\n") >= 4
    monkeypatch.setattr(pages, "execute", None)
    assert pages.to_markdown(pages.read(path.read_text(), tmp_path)) == text  # runs nothing again


def test_results_of_each_kind_as_markdown(pages):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    def shown(**data):
        return new_output("execute_result", {name.replace("_", "/"): text for name, text in data.items()})

    outputs = [
        new_output("stream", name="stdout", text="printed\n"),
        new_output("stream", name="stderr", text="a warning"),
        shown(text_plain="<Figure>", image_png="aGk=\n"),
        shown(text_plain="table", text_html="<table>\n\n<tr></tr>\n</table>"),
        shown(text_plain="3"),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("f()", outputs=outputs)])
    assert pages.to_markdown(notebook).split("\n\n") == [
        "# Title",
        "```python\nf()\n```",
        "```text\nprinted\n```",
        "![result of the cell above](data:image/png;base64,aGk=)",
        "<table>\n<tr></tr>\n</table>",
        "```text\n3\n```\n",
    ]
