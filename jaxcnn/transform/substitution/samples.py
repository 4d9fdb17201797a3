"""Samples of what a layer meets and of its responses, at random places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.transform.chains.convolve import direction, is_forward
from jaxcnn.transform.chains.find_kernels import KernelUses
from jaxcnn.transform.jaxpr.convolutions import forward_axes, forward_options
from jaxcnn.transform.jaxpr.equations import avals


def is_fitted(uses: KernelUses) -> bool:
    """Returns whether a kernel's chain can be fitted: calibration reaches all convolutions, and all use one kernel."""
    if uses.refusal or any(site.hidden for site in uses.sites):
        return False
    # Convolutions in opposite directions have no samples in common.
    return len({direction(site, uses.placement) for site in uses.sites}) == 1


def chosen_places(equation: JaxprEqn, count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns the numbers of at most `count` output pixels of a convolution, at random and in order."""
    total = math.prod(_places(equation))
    return np.arange(total) if total <= count else np.sort(generator.choice(total, count, replace=False))


def _places(equation: JaxprEqn) -> tuple[int, ...]:
    """Returns the number of images, and of output pixels on each axis."""
    shape = avals(equation)[-1].shape
    return tuple(shape[axis] for axis in forward_axes(equation)[2][:-1])


def responses_at(equation: JaxprEqn, response: Any, chosen: np.ndarray) -> np.ndarray:
    """Returns the responses at some output pixels, (count, C_out)."""
    array = np.asarray(response).transpose(forward_axes(equation)[2])
    return array[np.unravel_index(chosen, array.shape[:-1])].astype(np.float32)


def patches_at(equation: JaxprEqn, image: Any, chosen: np.ndarray) -> np.ndarray:
    """Returns the patches of the image under the kernel at some output pixels, (count, *window, C_in).

    A convolution that is the transpose of another one sees its image with zeros between the pixels.
    """
    array = np.asarray(image).transpose(forward_axes(equation)[0])
    batch, *outputs = np.unravel_index(chosen, _places(equation))
    rank = len(outputs)
    index: list[np.ndarray] = [batch.reshape(-1, *(1,) * rank)]
    inside = np.ones((len(chosen), *(1,) * rank), bool)
    for axis in range(rank):
        pixels, exists = _pixels(equation, axis, outputs[axis], array.shape[axis + 1])
        shape = (len(chosen), *(1,) * axis, -1, *(1,) * (rank - axis - 1))
        index.append(pixels.reshape(shape))
        inside = inside & exists.reshape(shape)
    return array[tuple(index)].astype(np.float32) * inside[..., None]


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
