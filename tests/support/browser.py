"""Pages in a real browser: what they ask for, what goes wrong in them, and which of their texts overlap."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 300_000
"""Longest time that a page may take, since the machine may do much else."""


def executable() -> str | None:
    """Returns the browser that `CHROMIUM` names or that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder, and gives its address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@contextmanager
def opened(browser: Any, address: str, width: int = 1400, scheme: str = "light", problems: list[str] | None = None):
    """Opens a page, and holds at the end that no script failed and no other host was asked for anything.

    Args:
      browser: Playwright's.
      address: Address or file to open.
      width: Pixels of the window.
      scheme: Colours that the system asks for.
      problems: List that gets the problems; without one the test fails on them.
    """
    result: list[str] = [] if problems is None else problems
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 600)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    host = "/".join(address.split("/")[:3])

    def route(asked: Any) -> None:
        if asked.request.url.startswith((host, "data:", "blob:")):
            asked.continue_()
        else:
            result.append(f"request to {asked.request.url}")
            asked.abort()

    context.route("**/*", route)
    page.on("response", lambda response: response.ok or result.append(f"{response.status} for {response.url}"))
    page.on("pageerror", lambda error: result.append(f"script error: {error}"))
    page.on("console", lambda message: message.type == "error" and result.append(f"console: {message.text}"))
    page.goto(address)
    try:
        yield page
        assert problems is not None or not result, result
    finally:
        context.close()


def screenshot(page: Any, name: str) -> None:
    """Writes a picture of the whole page into build/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


# Rectangles of every visible line of text, without what a scrolling ancestor hides, and those that meet another's.
OVERLAPS = """() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, style, select, noscript") || !parent.checkVisibility({
      opacityProperty: true, visibilityProperty: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const line of range.getClientRects()) {
      let [left, top, right, bottom] = [line.left, line.top, line.right, line.bottom];
      for (let around = parent; around && around !== document.body; around = around.parentElement) {
        const style = getComputedStyle(around);
        if (around instanceof SVGElement || (style.overflowX === "visible" && style.overflowY === "visible")) continue;
        const clip = around.getBoundingClientRect();
        left = Math.max(left, clip.left); right = Math.min(right, clip.right);
        top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom);
      }
      const inset = 0.15 * (bottom - top);  // lines of a font are a little higher than its letters
      if (right - left > 3 && bottom - top > 3) boxes.push(
        {left: left + 1, right: right - 1, top: top + inset, bottom: bottom - inset, node, text: node.data.trim()});
    }
  }
  const found = [];
  boxes.forEach((one, index) => {
    for (const other of boxes.slice(index + 1)) {
      if (one.node !== other.node && one.left < other.right && other.left < one.right && one.top < other.bottom &&
          other.top < one.bottom) found.push(`${one.text} / ${other.text}`);
    }
  });
  return found;
}"""

# Texts of figures that their frames cut.
CUT_TEXTS = """() => [...document.querySelectorAll(".plot svg text")].filter((text) => {
  const box = text.getBoundingClientRect(), frame = text.closest(".plot").getBoundingClientRect();
  return box.width > 0 && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
    box.bottom > frame.bottom + 1);
}).map((text) => text.textContent)"""


def check_layout(page: Any) -> None:
    """Holds that no texts overlap or are cut, and that the page is no wider than the window."""
    overlaps, cut_texts = page.evaluate(OVERLAPS), page.evaluate(CUT_TEXTS)
    assert overlaps == [], overlaps
    assert cut_texts == [], cut_texts
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], width
