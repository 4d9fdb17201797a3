"""Writes the page: `python -m benchmarks.substitution_page page.html`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .page import write_page


def main(arguments: list[str] | None = None) -> None:
    """Writes the page where the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.substitution_page", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="file to write")
    write_page(parser.parse_args(arguments).path)


if __name__ == "__main__":
    main()
