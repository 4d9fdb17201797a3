"""Writes the substitution page: one file with its data, its style, its scripts and Plotly's."""

from __future__ import annotations

import json
import re
from pathlib import Path

from plotly.offline import get_plotlyjs

from .records import ROOT, read_records, subjects

HERE = Path(__file__).parent
RESULTS = ROOT / "benchmarks/results"


def write_page(path: Path, results: Path = RESULTS, root: Path = ROOT, back: tuple[str, str] | None = None) -> None:
    """Writes the page.

    Args:
      path: File to write.
      results: Folder of asv's results.
      root: Repository whose messages name the commits.
      back: Address and text of a link to the pages around this one.
    """
    parts = {
        "style": (HERE / "page.css").read_text(),
        "plotly": get_plotlyjs(),
        "data": as_script_data(read_records(results, subjects(root))),
        **{name: (HERE / f"{name}.js").read_text() for name in ("charts", "view", "content", "page")},
        "back": f'<a href="{back[0]}">{back[1]}</a>' if back else "",
    }
    template = (HERE / "page.html").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


def as_script_data(content: object) -> str:
    """Returns JSON that can stand inside of an HTML script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
