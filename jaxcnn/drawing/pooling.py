"""`draw_pooling`: the picture of a pool, of one of its steps, or of all steps in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxcnn import avg_pool, max_pool, min_pool, sum_pool
from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._overview import draw_overview
from jaxcnn.drawing._saving import Path, save_if_path
from jaxcnn.drawing._sliding import Place, Sliding
from jaxcnn.drawing._steps import Row, Step, draw_step, steps_picture
from jaxcnn.errors import ErrorPrefix
from jaxcnn.options import PoolOptions

_OPERATION = "draw_pooling"
"""Name of the function in messages."""
_POOLS: dict[str, Callable[..., Any]] = {"max": max_pool, "min": min_pool, "avg": avg_pool, "sum": sum_pool}


def draw_pooling(
    x: Any,
    window_shape: int | Sequence[int],
    *,
    kind: str = "max",
    strides: int | Sequence[int] = 1,
    padding: Any = "VALID",
    window_dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    step: int | None = None,
    animate: bool | None = None,
    milliseconds: int = 700,
    seed: int = 0,
    path: Path | None = None,
) -> Figure:
    """Draws a pool: all of it, one step of it, or all steps in turn as an animation.

    Without `step` the picture shows the input, its padding, three places of the window and the output, coloured as in
    `draw_convolution`. With `step` the picture shows the computation of one output pixel: the numbers under the
    window, and the one that is taken, or their sum.

    Args:
      x: image of one channel as an array, `(*spatial)` with one or two axes; or its shape, a tuple of ints. An int
        stands for one axis.
      window_shape: number of taps of the window on each axis; an int stands for all axes.
      kind: name of the pool: `"max"`, `"min"`, `"avg"` or `"sum"`.
      strides: step of the window, in pixels; an int or one for each axis.
      padding: padding in any of the forms that `max_pool` takes.
      window_dilation: distance between neighbouring taps, in pixels.
      ceil_mode: flag that keeps a last window that hangs over the end.
      count_include_pad: flag that counts the padding's pixels in the divisor of an average.
      step: number of the output pixel that is drawn, row by row; negative from the end.
      animate: flag that draws all steps. None: only if `path` ends in `.gif` and there is no `step`.
      milliseconds: time that each step of an animation is shown.
      seed: seed of the small integers that are drawn where a step needs numbers and only a shape is known.
      path: file to save the picture to; its ending says the format: `.png`, `.svg`, `.pdf`, and `.gif` or `.svg` of an
        animation.

    Returns:
      The figure; the last step of an animation.

    Raises:
      ValueError: more than two axes; an unknown kind; sizes that the pool refuses; more than 100000 pixels, padding
        included; a step that does not exist.

    Example:
      >>> figure = draw_pooling([[1, 5], [3, 2]], 2, step=0)
      >>> any(text.get_text() == "max = 5" for text in figure.axes[0].texts)
      True
    """
    if kind not in _POOLS:
        raise ValueError(f"{_OPERATION}: kind must be one of {', '.join(map(repr, _POOLS))}, got {kind!r}")
    is_shape = isinstance(x, int) or (isinstance(x, tuple) and all(isinstance(size, int) for size in x))
    values = None if is_shape else np.asarray(x, np.float32)
    sizes = ((x,) if isinstance(x, int) else x) if values is None else values.shape
    rank = len(sizes)
    taps = (window_shape,) * rank if isinstance(window_shape, int) else tuple(window_shape)
    if rank not in (1, 2):
        raise ValueError(f"{_OPERATION}: x must have one or two spatial axes, got {tuple(sizes)}")
    if len(taps) != rank:
        raise ValueError(f"{_OPERATION}: window_shape must have {rank} spatial axes as x, got {taps}")
    options: dict[str, Any] = {"strides": strides, "padding": padding, "window_dilation": window_dilation}
    options["ceil_mode"] = ceil_mode
    with ErrorPrefix(_OPERATION):
        slide = Sliding.of(PoolOptions.of(taps, **options).geometry((1, *sizes, 1)))
    if kind == "avg":
        options["count_include_pad"] = count_include_pad
    if animate is None:
        animate = step is None and path is not None and str(path).lower().endswith(".gif")
    if values is None and (step is not None or animate):
        values = np.random.default_rng(seed).integers(0, 10, sizes).astype(np.float32)
    results = None if values is None else np.asarray(_POOLS[kind](jnp.asarray(values)[..., None], taps, **options))
    if step is None and not animate:
        return save_if_path(draw_overview(slide, values, None if results is None else results[..., 0]), path)
    plane, outputs = np.reshape(values, slide.sizes), np.reshape(results, slide.outputs)  # type: ignore[arg-type]

    pixels = [_step(slide, plane, outputs, kind, count_include_pad, index) for index in range(outputs.size)]
    letters = max(len(pixel.total) for pixel in pixels)
    border = "0" if kind == "sum" or (kind == "avg" and count_include_pad) else ""

    def make(index: int) -> Figure:
        return draw_step(slide, pixels[index], letters=letters, border=border)

    return steps_picture(_OPERATION, outputs.size, make, step, path, milliseconds, animate)


def _step(
    slide: Sliding, plane: np.ndarray, outputs: np.ndarray, kind: str, count_include_pad: bool, index: int
) -> Step:
    """Returns the step that computes one output pixel."""
    place: Place = divmod(index, outputs.shape[1])
    adds_padding = kind == "sum" or (kind == "avg" and count_include_pad)
    border = 0.0 if adds_padding else np.nan
    terms = np.array([plane[pixel] if slide.holds(pixel) else border for pixel in slide.pixels(place)], np.float64)
    outputs_so_far = np.where(np.arange(outputs.size).reshape(outputs.shape) <= index, outputs, np.nan)
    value = draw.number(outputs[place])
    total = f"{kind} = {value}"
    if kind == "avg":
        total = f"{draw.number(np.nansum(terms))} / {np.isfinite(terms).sum()} = {value}"
    return Step(
        [Row(plane, None, terms.reshape(slide.taps))], place, 0, total, outputs_so_far[None], slide.start(place)
    )
