"""Samples of what a layer meets and of its responses, at random places."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.transform.chains.convolve import direction, is_forward
from jaxcnn.transform.chains.find_kernels import KernelUses, Site
from jaxcnn.transform.jaxpr.convolutions import forward_axes, forward_options
from jaxcnn.transform.jaxpr.equations import avals


@dataclasses.dataclass(frozen=True)
class Stop:
    """A convolution that uses a layer's kernel, and what it computes.

    Args:
      index: position of the argument that holds the kernel.
      number: number of the kernel among those that the argument stacks.
      site: convolution.
      image: input of the convolution in the substituted function.
      response: result of the convolution in the dense function.
      low, high: responses, by output feature, below and above which the operations that follow are constant.
    """

    index: int
    number: int
    site: Site
    image: Any
    response: Any
    low: np.ndarray
    high: np.ndarray


def is_fitted(uses: KernelUses) -> bool:
    """Returns whether a kernel's chain can be fitted: calibration reaches all convolutions, and all use one kernel."""
    if uses.refusal or any(site.hidden or site.scaled for site in uses.sites):
        return False
    # Convolutions in opposite directions have no samples in common.
    return len({direction(site, uses.placement) for site in uses.sites}) == 1


def samples(stop: Stop, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches of the image, (count, *window, C_in), and responses to them, (count, C_out), at random places.

    A convolution that is the transpose of another one sees its image with zeros between the pixels.
    """
    equation = stop.site.equation
    image_order, _, result_order = forward_axes(equation)
    image = np.asarray(stop.image).astype(np.float32, copy=False).transpose(image_order)
    response = np.asarray(stop.response).astype(np.float32, copy=False).transpose(result_order)
    places = response.shape[:-1]
    total = math.prod(places)
    chosen = np.arange(total) if total <= count else np.sort(generator.choice(total, count, replace=False))
    batch, *outputs = np.unravel_index(chosen, places)
    rank = len(outputs)
    index: list[np.ndarray] = [batch.reshape(-1, *(1,) * rank)]
    inside = np.ones((len(chosen), *(1,) * rank), bool)
    for axis in range(rank):
        pixels, exists = _pixels(equation, axis, outputs[axis], image.shape[axis + 1])
        shape = (len(chosen), *(1,) * axis, -1, *(1,) * (rank - axis - 1))
        index.append(pixels.reshape(shape))
        inside = inside & exists.reshape(shape)
    return image[tuple(index)] * inside[..., None], response.reshape(total, -1)[chosen]


def _pixels(equation: JaxprEqn, axis: int, outputs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of an axis under each tap for some outputs, (count, taps), and a mask of those that exist."""
    options = forward_options(equation)
    steps, gaps = (options[name][axis] for name in ("strides", "input_dilation"))
    low, _ = options["padding"][axis]
    window = avals(equation)[1].shape[forward_axes(equation)[1][axis]]
    taps = np.arange(window) * options["kernel_dilation"][axis]
    if is_forward(equation):
        place = outputs[:, None] * steps - low + taps
    else:
        # y[o] k[t] is added to input pixel p with o s + t d = p e + low.
        place, gaps = outputs[:, None] * gaps + low - taps, steps
    pixels, between = np.divmod(place, gaps)
    exists = (between == 0) & (pixels >= 0) & (pixels < size)
    return np.where(exists, pixels, 0), exists
