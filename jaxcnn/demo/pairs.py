"""The depthwise 5x5 kernels of EfficientNet-Lite0 as separable pairs, fitted to its responses to photographs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.demo import lite0
from jaxcnn.factorization.response import Responses, last_link_solved, response_start

#: The rank of each 5x5 kernel's pair: two products of a column and a row, 20 multiplications for 25.
RANK = 2

#: Places in all photographs together at which the responses of a layer are taken, for 25 unknowns of each channel.
SAMPLES = 1500

#: How often each of the two links is solved for, the other one given.
ROUNDS = 2

#: What each calibration photograph gives: squares of these shares of its shorter side, each at a place of its own.
SHARES = (1.0, 0.6)


def squares(photograph: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Parts of a photograph as the network sees them, every other one mirrored."""
    height, width = photograph.shape[:2]
    found = []
    for number, share in enumerate(SHARES):
        side = max(1, int(share * min(height, width)))
        top, left = (int(generator.integers(0, extent - side + 1)) for extent in (height, width))
        square = lite0.central_square(photograph[top : top + side, left : left + side])
        found.append(square[:, ::-1] if number % 2 else square)
    return found


def is_replaced(name: str, layer: Any) -> bool:
    """Whether a layer is one of the depthwise 5x5."""
    return name.startswith("depthwise") and layer.kernel.shape[:2] == (5, 5)


def pairs_of_weights(network: lite0.Network) -> dict[str, Any]:
    """The network with the kernel of each depthwise 5x5 layer replaced by the pair that is nearest to it."""
    return {
        name: layer._replace(
            kernel=jaxcnn.separable(layer.kernel, rank=RANK, feature_group_count=layer.kernel.shape[-1])
        )
        if is_replaced(name, layer)
        else layer
        for name, layer in network.items()
    }


def fitted_pairs(network: lite0.Network, photographs: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """The same with the pairs whose responses to photographs are nearest to the kernels', as ReLU6 lets them through.

    The dense network and the one of pairs see the photographs side by side, and each pair makes up for what those
    before it changed.

    Args:
      network: the layers.
      photographs: uint8 RGB; not those on which the result is judged.
      seed: of the parts of photographs, and of the places where responses are taken.
    """
    generator = np.random.default_rng(seed)
    names = {id(layer.kernel): name for name, layer in network.items()}
    substituted = dict(network)

    def convolution(both: jax.Array, kernel: Any, *, strides: int, feature_group_count: int) -> jax.Array:
        options: dict[str, Any] = {"strides": strides, "feature_group_count": feature_group_count}
        name = names[id(kernel)]
        if not is_replaced(name, network[name]):
            return jaxcnn.conv(both, kernel, **options)
        plain, other = jnp.split(both, 2)
        wanted = jaxcnn.conv(plain, kernel, **options)
        pair = _fitted(network[name], other, wanted, strides, generator)
        substituted[name] = network[name]._replace(kernel=pair)
        return jnp.concatenate([wanted, jaxcnn.conv(other, pair, **options)])

    seen = [lite0.preprocess(square) for photograph in photographs for square in squares(photograph, generator)]
    lite0.class_scores(network, jnp.concatenate([*seen, *seen]), convolution=convolution)
    return substituted


def _fitted(
    layer: lite0.NormalizedLayer, x: jax.Array, wanted: jax.Array, strides: int, generator: np.random.Generator
) -> jaxcnn.KernelChain:
    """The pair for one layer, from what enters it and what should leave it."""
    count = layer.kernel.shape[-1]
    patches, targets = [], []
    for image, response in zip(x, np.asarray(wanted), strict=True):  # one by one: of all, 25 times as much memory
        rows = jaxcnn.extract_patches(image[None], (5, 5), strides=strides, padding="SAME").reshape(-1, 5, 5, count)
        chosen = np.sort(generator.permutation(len(rows))[: -(-SAMPLES // len(x))])
        patches.append(np.asarray(rows)[chosen])
        targets.append(response.reshape(-1, count)[chosen])
    # ReLU6 shows the responses y for which scale * y + bias is between 0 and 6.
    scale, bias = (np.asarray(array, np.float64) for array in (layer.scale, layer.bias))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.nan_to_num(np.stack([-bias / scale, (6 - bias) / scale]), nan=0.0)
    responses = Responses(np.concatenate(patches), np.concatenate(targets), ends.min(0), ends.max(0))
    pair = response_start(layer.kernel, "separable", RANK, responses, feature_group_count=count)
    for _ in range(2 * ROUNDS):
        pair = _exchanged(last_link_solved(pair, responses))
    return pair


def _exchanged(pair: jaxcnn.KernelChain) -> jaxcnn.KernelChain:
    """The same sum of products of a column and a row for each channel, the row first."""
    first, last = pair.kernels
    *window, rank, count = last.shape
    row = jnp.swapaxes(last, -1, -2).reshape(*window, 1, count * rank)
    column = jnp.swapaxes(first.reshape(*first.shape[:2], count, rank), -1, -2)
    return jaxcnn.KernelChain((row, column), pair.feature_group_counts)
