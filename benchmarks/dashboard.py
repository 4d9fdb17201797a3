"""Turns the recorded results into pages that need no network: `make dashboard-pages`, `make dashboard`.

asv publishes its data into .asv/html, and asv-tachyon replaces the page, which loads scripts from the network, by one
that loads none.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import subprocess
from pathlib import Path

from asv_tachyon import cli as tachyon

from .record import ROOT, run_asv

PAGES = ROOT / ".asv/html"
PORT = 8765


def write_pages() -> None:
    """Writes the pages.

    Raises:
      SystemExit: asv cannot publish the results.
    """
    if code := run_asv("publish"):
        raise SystemExit(code)
    tachyon.main(["install", "--no-backup", str(PAGES)])
    say_what_is_better(PAGES / "index.json")
    (PAGES / "commits.json").write_text(json.dumps(subjects()))


def say_what_is_better(index: Path) -> None:
    """Says of every benchmark that less is better: the page would take a tracked value for a rate."""
    content = json.loads(index.read_text())
    for benchmark in content["benchmarks"].values():
        benchmark["less_is_better"] = True
    index.write_text(json.dumps(content))


def subjects() -> dict[str, str]:
    """Returns the first line of each commit's message by its hash, which the page shows beside a point."""
    command = ["git", "log", "--format=%H %s", "HEAD"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def serve(folder: Path, port: int) -> None:
    """Serves the pages to this machine alone, until it is interrupted."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main(arguments: list[str] | None = None) -> None:
    """Writes the pages, and serves them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve the pages on 127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to serve them on ({PORT})")
    options = parser.parse_args(arguments)
    write_pages()
    if options.serve:
        serve(PAGES, options.port)


if __name__ == "__main__":
    main()
