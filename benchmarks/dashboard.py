"""Turns the recorded results into pages that need no network: `make dashboard-pages`, `make dashboard`.

asv publishes its data into .asv/html. asv-tachyon replaces the page, which loads scripts from the network, by one
that loads none, and a link in it leads to the substitution page.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
from pathlib import Path

from asv.config import Config
from asv_tachyon import cli as tachyon

from .airspeed import ROOT, run_asv
from .substitution_page.page import write_page
from .substitution_page.records import subjects

CONFIG = ROOT / "asv.conf.json"
PORT = 8765
SUBSTITUTIONS = "substitutions.html"
ASKED_FOR = {"profiles.json": "{}", "regressions-ignore.json": "[]"}
"""Files that the shell of asv-tachyon asks for, with what stands for none: a missing one is an error in the browser."""
LINK = f"""<style>
.pages {{ margin: 0; padding: .5rem 1rem; font: 1rem/1.4 system-ui, sans-serif; background: #0b5377; }}
.pages a {{ color: #fff; }}
@media (max-width: 700px) {{
  .bento > .tile {{ grid-column: 1 / -1 !important; }}
  .param-chip {{ max-width: 100%; overflow-wrap: anywhere; white-space: normal; }}
  .spark svg {{ max-width: 100%; }}
  .linkish {{ overflow-wrap: anywhere; text-align: left; }}
}}
</style>
<nav class="pages" aria-label="Pages"><a href="{SUBSTITUTIONS}">Small kernels for large ones, commit by commit</a></nav>
"""
"""Links over the shell of asv-tachyon, and styles that keep its tiles inside of a phone's window."""


def write_pages(config: Path = CONFIG) -> Path:
    """Writes the pages, and returns their folder.

    Args:
      config: File of asv's settings, beside which asv runs.

    Raises:
      SystemExit: asv cannot publish the results.
    """
    if code := run_asv("--config", str(config), "publish"):
        raise SystemExit(code)
    settings = Config.load(str(config))
    pages, results, repository = (
        config.parent / folder for folder in (settings.html_dir, settings.results_dir, settings.repo)
    )
    tachyon.main(["install", "--no-backup", str(pages)])
    say_what_is_better(pages / "index.json")
    (pages / "commits.json").write_text(json.dumps(subjects(repository)))
    for name, empty in ASKED_FOR.items():
        (pages / name).write_text(empty)
    for graph in (pages / "graphs").rglob("*.json"):
        # The shell asks for single measurements of every curve that it draws, which asv does not publish.
        samples = pages / "samples" / graph.relative_to(pages / "graphs")
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text("{}")
    add_link(pages / "index.html")
    write_page(pages / SUBSTITUTIONS, results, repository, back=("index.html", "All tracked values"))
    return pages


def say_what_is_better(index: Path) -> None:
    """Says of every benchmark that less is better: the page would take a tracked value for a rate."""
    content = json.loads(index.read_text())
    for benchmark in content["benchmarks"].values():
        benchmark["less_is_better"] = True
    index.write_text(json.dumps(content))


def add_link(shell: Path) -> None:
    """Puts a link to the substitution page over the shell, and the project's name into its title."""
    head, body, rest = shell.read_text().partition("<body>")
    head = head.replace("<title>asv · tachyon</title>", "<title>jaxcnn: benchmarks commit by commit</title>")
    shell.write_text(f"{head}{body}\n{LINK}{rest}")


def serve(folder: Path, port: int) -> None:
    """Serves the pages to this machine alone, until it is interrupted."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(address, flush=True)
        print(f"{address}{SUBSTITUTIONS}", flush=True)
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
    pages = write_pages()
    if options.serve:
        serve(pages, options.port)


if __name__ == "__main__":
    main()
