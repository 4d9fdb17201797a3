"""A network of four layers in plain lax, whose large kernels `substitute` can replace."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import jax

import jaxcnn

from . import plain
from .arrays import decaying_kernel

LAYERS = ((5, 3, 32), (5, 32, 64), (3, 64, 64), (3, 64, 64))
"""Window, input channels and output channels of each layer; the first two are followed by pools."""
SIZE = 96
"""Rows and columns of the network's images."""


def network(kernels: Sequence[Any], x: Any) -> Any:
    """Computes the network."""
    for index, kernel in enumerate(kernels):
        x = jax.nn.relu(plain.conv(x, kernel))
        if index < 2:
            x = plain.max_pool(x, 2, 2)
    return x


def any_result() -> dict[str, Any]:
    """Returns the options by which `substitute` refuses no result, where this commit of jaxcnn has them."""
    options = {"count": "macs", "max_error": math.inf}
    known = inspect.signature(jaxcnn.substitute).parameters
    return {name: value for name, value in options.items() if name in known}


def kernels(layers: Sequence[tuple[int, int, int]] = LAYERS) -> list[jax.Array]:
    """Returns kernels with spectra that fall off as 1/r: the error falls with the rank, as for trained kernels."""
    return [3 * decaying_kernel(size, size, *features, seed=seed) for seed, (size, *features) in enumerate(layers)]
