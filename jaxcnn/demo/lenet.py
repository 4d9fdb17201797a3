"""LeNet-5 for 28x28 digits: network, training and cost, with dense kernels or chains.

The network is LeCun et al.'s (1998): 5x5 convolutions of 6 and 16 features, a 2x2 average pool after each, and
full layers of 120, 84 and 10 features.  Activations are ReLU, which trains faster than the tanh of the original.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcnn
from jaxcnn.demo.network import Layer

Network = Mapping[str, Layer]

#: Convolutions by name: the shape of one input image, the kernel's shape, and the padding.
CONVOLUTIONS = {
    "conv1": ((1, 28, 28, 1), (5, 5, 1, 6), "SAME"),
    "conv2": ((1, 14, 14, 6), (5, 5, 6, 16), "VALID"),
}
#: Numbers of inputs and outputs of the full layers.
FULL_LAYERS = {"full1": (400, 120), "full2": (120, 84), "full3": (84, 10)}

BATCH_SIZE = 50


@dataclass(frozen=True)
class Digits:
    """Holds images of shape (number, 28, 28, 1), from 0 to 1, and the digit that each shows."""

    images: np.ndarray
    labels: np.ndarray


def split_digits(images: np.ndarray, labels: np.ndarray, *, test_share: float, seed: int) -> tuple[Digits, Digits]:
    """Splits images into those to train on and those to test with, at one share for each digit.

    An image is a row of 784 grey values from 0 to 255.

    Returns:
      (train, test), each in a random but seeded order.
    """
    random = np.random.default_rng(seed)
    train, test = [], []
    for digit in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == digit))
        count = round(test_share * len(rows))
        test.append(rows[:count])
        train.append(rows[count:])

    def pick(parts: list[np.ndarray]) -> Digits:
        rows = random.permutation(np.concatenate(parts))
        pixels = images[rows].reshape(-1, 28, 28, 1).astype(np.float32) / np.float32(255)
        return Digits(pixels, labels[rows].astype(np.int32))

    return pick(train), pick(test)


def initialize(seed: int) -> dict[str, Layer]:
    """Returns random dense layers: normal kernels of variance 2 / inputs, zero biases."""
    shapes = {name: kernel for name, (_, kernel, _) in CONVOLUTIONS.items()} | FULL_LAYERS
    random = np.random.default_rng(seed)
    layers = {}
    for name, shape in shapes.items():
        kernel = random.normal(scale=math.sqrt(2 / math.prod(shape[:-1])), size=shape)
        layers[name] = Layer(jnp.asarray(kernel, jnp.float32), jnp.zeros(shape[-1], jnp.float32))
    return layers


def scores(network: Network, images: Any, *, convolution: Callable[..., Any] = jaxcnn.conv) -> jax.Array:
    """Returns the network's score for each digit: images (number, 28, 28, 1) to (number, 10).

    `convolution` is called as ``convolution(x, kernel, padding=...)`` for both convolutions.
    """
    x = images
    for name, (_, _, padding) in CONVOLUTIONS.items():
        layer = network[name]
        x = jax.nn.relu(convolution(x, layer.kernel, padding=padding) + layer.bias[None, None, None, :])
        x = jaxcnn.avg_pool(x, (2, 2), strides=2)
    x = x.reshape(x.shape[0], -1)
    for name in FULL_LAYERS:
        layer = network[name]
        x = x @ layer.kernel + layer.bias[None, :]
        x = x if name == "full3" else jax.nn.relu(x)
    return x


_predict = jax.jit(lambda network, images: jnp.argmax(scores(network, images), axis=-1))


def predict(network: Network, digits: Digits) -> np.ndarray:
    """Returns the digit that the network reads in each image."""
    return np.asarray(_predict(network, digits.images))


def accuracy(network: Network, digits: Digits) -> float:
    """Returns the share of digits that the network reads correctly."""
    return float((predict(network, digits) == digits.labels).mean())


def steps_in(digits: Digits, epochs: int) -> int:
    """Returns the number of training steps of `train`: whole batches only."""
    return epochs * (len(digits.labels) // min(BATCH_SIZE, len(digits.labels)))


@functools.cache
def _make_training_step(learning_rate: float, steps: int) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Returns the optimizer and its jitted step, the same for all networks: those of the same shapes compile once."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(network: Network, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(scores(network, images), labels).mean()

    @jax.jit
    def step(network: Network, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        gradients = jax.grad(loss)(network, images, labels)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(dict(network), updates), state

    return optimizer, step


def train(
    network: Network,
    digits: Digits,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, Layer]:
    """Trains a network with Adam on the cross-entropy, the learning rate falling to zero as a cosine.

    Args:
      network: layers at the start; chains are trained kernel by kernel.
      digits: digits to train on, visited in a new seeded order in each epoch.
      epochs: number of passes.
      learning_rate: learning rate at the start.
      seed: seed for the order of the examples.
      after_step: function that is called after each step, for a progress bar.
    """
    optimizer, step = _make_training_step(learning_rate, steps_in(digits, epochs))
    trained, state = dict(network), optimizer.init(dict(network))
    for rows in _batches(len(digits.labels), epochs, seed):
        trained, state = step(trained, state, digits.images[rows], digits.labels[rows])
        after_step()
    return jax.block_until_ready(trained)


def _batches(count: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the rows of each batch, all of one size, so that the step compiles once."""
    random = np.random.default_rng(seed)
    size = min(BATCH_SIZE, count)
    for _ in range(epochs):
        order = random.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def convolution_macs(name: str, kernel: Any) -> int:
    """Returns the MACs of one image in convolution `name`, with this kernel shape or chain."""
    x_shape, _, padding = CONVOLUTIONS[name]
    return jaxcnn.conv_cost(x_shape, kernel, padding=padding).macs


def network_macs(network: Network) -> int:
    """Returns the MACs of one image through the whole network, full layers included."""
    total = sum(math.prod(shape) for shape in FULL_LAYERS.values())
    for name in CONVOLUTIONS:
        kernel = network[name].kernel
        total += convolution_macs(name, kernel if isinstance(kernel, jaxcnn.KernelChain) else kernel.shape)
    return total


def num_params(network: Network) -> int:
    """Returns the number of weights and biases."""
    return sum(leaf.size for leaf in jax.tree.leaves(dict(network)))
