"""Separable pairs for the depthwise 5x5 kernels of EfficientNet-Lite0, fitted to weights or to responses."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.demo import lite0

#: Rank of each pair: two products of a column and a row, 20 multiplications for 25.
RANK = 2

#: Sides of the squares that are cut from each calibration photograph, as shares of its shorter side.
SHARES = (1.0, 0.6)


def squares(photograph: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Returns squares at random places of a photograph, scaled for the network, every other one mirrored."""
    height, width = photograph.shape[:2]
    parts = []
    for number, share in enumerate(SHARES):
        side = max(1, int(share * min(height, width)))
        top, left = (int(generator.integers(0, extent - side + 1)) for extent in (height, width))
        square = lite0.central_square(photograph[top : top + side, left : left + side])
        parts.append(square[:, ::-1] if number % 2 else square)
    return parts


def find_pairs(
    network: lite0.Network,
    x: jax.Array,
    *,
    calibration: Sequence[np.ndarray],
    seed: int,
    progress: Callable[[float, float], None] | bool = False,
) -> jaxcnn.Substitution:
    """Returns the network with the kernel of each depthwise 5x5 layer replaced by a pair of 5x1 and 1x5.

    Args:
      network: layers of the network.
      x: preprocessed photograph, on which the result is verified.
      calibration: photographs, uint8 RGB, to whose responses the pairs are fitted; not those on which the result is
        judged. Without any, the pairs are fitted to the weights.
      seed: seed for the parts of photographs, and for the places where responses are taken.
      progress: option of `jaxcnn.substitute`.
    """
    generator = np.random.default_rng(seed)
    inputs = [lite0.preprocess(square) for photograph in calibration for square in squares(photograph, generator)]

    def is_skipped(parameter: str) -> bool:
        """Returns whether a parameter is not a depthwise 5x5 kernel."""
        name = parameter.partition("/")[0]
        return not (name.startswith("depthwise") and network[name].kernel.shape[:2] == (5, 5))

    return jaxcnn.substitute(
        lite0.class_scores,
        dict(network),
        x,
        rank=RANK,
        schemes="separable",
        skip=is_skipped,
        calibration=[jnp.concatenate(inputs)] if inputs else None,
        seed=seed,
        progress=progress,
    )
