"""The depthwise 5x5 kernels of EfficientNet-Lite0 as separable pairs, of its weights or of its responses."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.demo import lite0

#: The rank of each 5x5 kernel's pair: two products of a column and a row, 20 multiplications for 25.
RANK = 2

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
      network: the layers.
      x: preprocessed photograph, on which the result is verified.
      calibration: photographs, uint8 RGB, to whose responses the pairs are fitted; not those on which the result is
        judged. If there are none, the pairs are fitted to the weights.
      seed: seed for the parts of photographs, and for the places where responses are taken.
      progress: as `jaxcnn.substitute` takes it.
    """
    generator = np.random.default_rng(seed)
    seen = [lite0.preprocess(square) for photograph in calibration for square in squares(photograph, generator)]

    def is_left_alone(parameter: str) -> bool:
        name = parameter.partition("/")[0]
        return not (name.startswith("depthwise") and network[name].kernel.shape[:2] == (5, 5))

    return jaxcnn.substitute(
        lite0.class_scores,
        dict(network),
        x,
        rank=RANK,
        schemes="separable",
        skip=is_left_alone,
        calibration=[jnp.concatenate(seen)] if seen else None,
        seed=seed,
        progress=progress,
    )
