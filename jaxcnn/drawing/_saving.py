"""Figures as files, alone or as an animation: the same file byte for byte each time."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxcnn.saving import whole_file

ANIMATIONS = (".gif", ".svg")
"""Endings of files of animations."""
MAX_FRAMES = 400
"""Largest number of frames of an animation."""
PIXELS_PER_INCH = 150
ANIMATION_PIXELS_PER_INCH = 100
SVG = "http://www.w3.org/2000/svg"
LINK = "http://www.w3.org/1999/xlink"
"""Namespaces of SVG and of its links."""

Path = str | os.PathLike[str]
"""Path of a file."""


def save_if_path(figure: Figure, path: Path | None) -> Figure:
    """Returns the figure, and saves it if there is a path."""
    FigureCanvasAgg(figure)
    if path is not None:
        ending = os.path.splitext(os.fspath(path))[1][1:] or "png"
        content = io.BytesIO()
        _write(figure, content, ending in ("svg", "pdf"), ending)
        _write_whole(path, content.getvalue())
    return figure


def _write_whole(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _write(figure: Figure, target: io.BytesIO, has_date: bool, ending: str) -> None:
    """Writes a figure; `has_date` says that the format would hold the date."""
    # Without the date and random identifiers, the file depends on the arguments alone.
    with matplotlib.rc_context({"svg.hashsalt": "jaxcnn"}):
        figure.savefig(target, metadata={"Date": None} if has_date else None, dpi=PIXELS_PER_INCH, format=ending)


def save_animation(operation: str, figures: Sequence[Figure], path: Path, milliseconds: int) -> None:
    """Saves figures of one size as the frames of an animation without end.

    Args:
      operation: name of the function for messages.
      figures: frames in order.
      path: file to save to, `.gif` or `.svg`.
      milliseconds: time that each frame is shown; the last one is shown three times as long.

    Raises:
      ValueError: another ending, or a time below 20 ms.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in ANIMATIONS:
        raise ValueError(f"{operation}: an animation must be a .gif or .svg file, got {os.fspath(path)!r}")
    if milliseconds < 20:
        raise ValueError(f"{operation}: milliseconds must be at least 20, got {milliseconds}")
    if ending == ".gif":
        _save_gif(figures, path, milliseconds)
    else:
        _write_whole(path, _animated_svg(figures, milliseconds))


def _save_gif(figures: Sequence[Figure], path: Path, milliseconds: int) -> None:
    """Saves figures as a GIF, see `save_animation`."""
    from PIL import Image  # comes with matplotlib

    images = []
    for figure in figures:
        figure.set_dpi(ANIMATION_PIXELS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    # All frames share one palette. With a palette for each frame, the colours of still parts would flicker.
    palette = images[-1].quantize(255)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    times = [milliseconds] * (len(frames) - 1) + [3 * milliseconds]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, disposal=1)
    _write_whole(path, content.getvalue())


def _animated_svg(figures: Sequence[Figure], milliseconds: int) -> bytes:
    """Returns one SVG whose groups are shown in turn; a reader who asks for less motion gets the last frame."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    shared = ElementTree.Element(f"{{{SVG}}}defs")
    identifiers: set[str] = set()
    steps = []
    root = None
    for index, figure in enumerate(figures):
        FigureCanvasAgg(figure)
        content = io.BytesIO()
        _write(figure, content, True, "svg")
        root = ElementTree.fromstring(content.getvalue())
        step = ElementTree.Element(
            f"{{{SVG}}}g", {"class": "step", "style": f"animation-delay:{index * milliseconds}ms"}
        )
        step.extend(child for child in list(root) if not child.tag.endswith(("metadata", "defs")))
        # The identifiers of glyphs and clipping paths depend on their content alone, so one copy serves all frames.
        for parent in step.iter():
            for definitions in parent.findall(f"{{{SVG}}}defs"):
                parent.remove(definitions)
                for item in definitions:
                    if item.get("id") not in identifiers:
                        identifiers.add(item.get("id", ""))
                        shared.append(item)
        for item in step.iter():
            item.attrib.pop("id", None)
        for item in (child for definitions in root.findall(f"{{{SVG}}}defs") for child in definitions):
            if item.tag != f"{{{SVG}}}style" and item.get("id") not in identifiers:
                identifiers.add(item.get("id", ""))
                shared.append(item)
        steps.append(step)
    if root is None:
        raise ValueError("an animation must have at least one frame")
    picture = ElementTree.Element(
        root.tag, {key: root.attrib[key] for key in ("width", "height", "viewBox", "version")}
    )
    whole = (len(steps) + 2) * milliseconds
    percent = 100 * milliseconds / whole
    style = ElementTree.SubElement(picture, f"{{{SVG}}}style")
    style.text = (
        "*{stroke-linejoin:round;stroke-linecap:butt}"
        f".step{{visibility:hidden;animation:step {whole}ms step-end infinite}}"
        f".step:last-of-type{{animation-name:last}}"
        f"@keyframes step{{0%{{visibility:visible}}{percent:.4f}%{{visibility:hidden}}}}"
        f"@keyframes last{{0%{{visibility:visible}}{3 * percent:.4f}%{{visibility:hidden}}}}"
        "@media(prefers-reduced-motion:reduce){.step{animation:none}.step:last-of-type{visibility:visible}}"
    )
    picture.append(shared)
    picture.extend(steps)
    return ElementTree.tostring(picture)
