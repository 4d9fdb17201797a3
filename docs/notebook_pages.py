"""Shows notebooks as pages: runs them while the documentation is built, and writes cells and results as Markdown.

The committed notebooks have no results, so that none is older than the code.
"""

import hashlib

import nbformat
from nbclient import NotebookClient

TIMEOUT_SECONDS = 600
"""A cell that takes longer hangs."""


def execute(notebook):
    """Runs all cells in a new process and adds the results to the notebook.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raises an error.
    """
    NotebookClient(notebook, timeout=TIMEOUT_SECONDS, kernel_name="python3").execute()


def read(text, results):
    """Returns the notebook of a file's text with its results, which are kept in a folder until the text changes."""
    path = results / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.ipynb"
    if path.exists():
        return nbformat.read(path, as_version=4)
    notebook = nbformat.reads(text, as_version=4)
    execute(notebook)
    results.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return notebook


def to_markdown(notebook):
    """Returns a notebook as Markdown: pictures as data, tables as HTML, everything else as text."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [part for output in cell.outputs if (part := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output):
    """Returns one result as Markdown; what a program writes to stderr is left out."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![result of the cell above](data:image/png;base64,{data['image/png'].strip()})"
    if "text/html" in data:
        # An empty line would end the block of HTML.
        return "\n".join(line for line in data["text/html"].splitlines() if line.strip())
    return f"```text\n{data.get('text/plain', '')}\n```"
