"""Is a large kernel replaced by small ones faster on the clock, and at what error?

The plain form is the dense layer in lax, so `track_speedup` is what the substitution gains.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from benchmarks.shared import plain
from benchmarks.shared.arrays import array, decaying_kernel, kernel
from benchmarks.shared.environment import require

from .suite import Case, ConvComparison


def substituted(x, dense, chain):
    """A layer computed by a chain, against lax with the dense kernel; kernels are arguments, as in training."""
    return Case(
        lambda x, dense, chain: jaxcnn.conv(x, chain),
        lambda x, dense, chain: plain.conv(x, dense),
        (x, dense, chain),
        jaxcnn.conv_cost(x.shape, chain),
    )


class Separable(ConvComparison):
    """A dense layer as columns and rows, by rank: 1/r spectrum, so the error falls with the rank."""

    layers: ClassVar = {
        "03x03 1x56x56x64": ((1, 56, 56, 64), (3, 3)),
        "11x11 1x56x56x64": ((1, 56, 56, 64), (11, 11)),
    }
    quick: ClassVar = {"layers": {"03x03 1x8x8x6": ((1, 8, 8, 6), (3, 3))}}
    params: ClassVar = [sorted(layers), ["rank 016", "rank 064"]]
    param_names: ClassVar = ["layer", "rank"]

    def case(self, layer, rank):
        shape, window = self.layers[layer]
        dense = decaying_kernel(*window, shape[-1], shape[-1])
        return substituted(array(*shape), dense, jaxcnn.separable(dense, rank=int(rank.split()[1])))


class Schemes(ConvComparison):
    """Each scheme at a quarter of the layer's multiply-accumulates: which of them the clock rewards."""

    schemes: ClassVar = ["cp", "depthwise_separable", "low_rank", "separable", "tucker2"]
    options: ClassVar = {"depthwise_separable": "multiplier", "tucker2": "ranks"}
    layers: ClassVar = {"03x03 1x56x56x64": ((1, 56, 56, 64), (3, 3)), "05x05 1x56x56x64": ((1, 56, 56, 64), (5, 5))}
    quick: ClassVar = {"layers": {"03x03 1x8x8x6": ((1, 8, 8, 6), (3, 3))}}
    params: ClassVar = [sorted(layers), schemes]
    param_names: ClassVar = ["layer", "scheme"]

    def case(self, layer, scheme):
        shape, window = self.layers[layer]
        require(scheme, "select_rank")
        dense = decaying_kernel(*window, shape[-1], shape[-1])
        rank = jaxcnn.select_rank(dense, scheme, macs=0.25, input_shape=shape)
        chain = getattr(jaxcnn, scheme)(dense, **{self.options.get(scheme, "rank"): rank})
        return substituted(array(*shape), dense, chain)


class SeparableFilter(ConvComparison):
    """An image filter as a column and a row: 121 multiplications a pixel or 22, exactly the same values."""

    quick: ClassVar = {"params": [["5x5 1x16x16x1"]]}
    params: ClassVar = [["11x11 1x512x512x1", "31x31 1x256x256x1"]]

    def case(self, layer):
        size = int(layer.split("x")[0])
        shape = tuple(map(int, layer.split()[1].split("x")))
        profile = np.hanning(size + 2)[1:-1].astype(np.float32)
        dense = jnp.asarray(np.outer(profile, profile).reshape(size, size, 1, 1))
        return substituted(array(*shape), dense, jaxcnn.separable(dense, rank=1))


class LeNet(ConvComparison):
    """LeNet's two 5x5 layers at batch 256, as 3x3 after 3x3 and as 1x5 after 5x1, at widths with fewer MACs."""

    layers: ClassVar = {"conv1": ((256, 28, 28, 1), 6), "conv2": ((256, 14, 14, 6), 16)}
    widths: ClassVar = {
        ("conv1", "columns and rows"): 2,
        ("conv1", "stack of 3x3"): 2,
        ("conv2", "columns and rows"): 12,
        ("conv2", "stack of 3x3"): 8,
    }
    quick: ClassVar = {"layers": {"conv1": ((2, 8, 8, 1), 6)}}
    params: ClassVar = [sorted(layers), ["columns and rows", "stack of 3x3"]]
    param_names: ClassVar = ["layer", "substitution"]

    def case(self, layer, substitution):
        shape, outputs = self.layers[layer]
        width = self.widths[layer, substitution]
        dense = decaying_kernel(5, 5, shape[-1], outputs)
        if substitution == "stack of 3x3":
            chain = jaxcnn.stack(dense, features=width)
        else:
            chain = jaxcnn.separable(dense, rank=width)
        return substituted(array(*shape), dense, chain)


class ChainGradient(ConvComparison):
    """Time of a step of training: the gradients in the image and in the links, against the dense layer's."""

    layers: ClassVar = {"11x11 1x14x14x64, rank 32": ((1, 14, 14, 64), 11, 32)}
    quick: ClassVar = {"layers": {"5x5 1x8x8x4, rank 3": ((1, 8, 8, 4), 5, 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, rank = self.layers[layer]
        dense = decaying_kernel(size, size, shape[-1], shape[-1])
        chain = jaxcnn.separable(dense, rank=rank)

        def gradient(function):
            return jax.grad(lambda x, links: 0.5 * jnp.sum(function(x, links) ** 2), (0, 1))

        ours, in_lax = gradient(jaxcnn.conv), gradient(plain.conv)
        once = jaxcnn.conv_cost(shape, chain)
        return Case(
            # Only the images' gradients can be compared: the others have the shapes of their kernels.
            lambda x, dense, chain: _first_with_rest(*ours(x, chain)),
            lambda x, dense, chain: _first_with_rest(*in_lax(x, dense)),
            (array(*shape), dense, chain),
            once + once + once,
        )


def _first_with_rest(first, rest):
    """The first array, made to depend on the rest so that computing the rest is not left out."""
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rest))
    return first + jnp.where(jnp.isnan(total), total, 0)


class Factorize:
    """Time to find a substitution, which is spent once, before anything runs; and its error."""

    schemes: ClassVar = {
        "cp 03x03x064x064, rank 128": ((3, 3, 64, 64), "cp", {"rank": 128}),
        "depthwise_separable 03x03x512x512, multiplier 002": (
            (3, 3, 512, 512),
            "depthwise_separable",
            {"multiplier": 2},
        ),
        "low_rank 03x03x512x512, rank 128": ((3, 3, 512, 512), "low_rank", {"rank": 128}),
        "separable 03x03x064x064, rank 048": ((3, 3, 64, 64), "separable", {"rank": 48}),
        "separable 11x11x064x064, rank 064": ((11, 11, 64, 64), "separable", {"rank": 64}),
        "stack 05x05x006x016, features 008": ((5, 5, 6, 16), "stack", {"features": 8}),
        "stack 05x05x016x016, features 016": ((5, 5, 16, 16), "stack", {"features": 16}),
        "tucker2 03x03x512x512, ranks 128": ((3, 3, 512, 512), "tucker2", {"ranks": 128}),
    }
    quick: ClassVar = {"schemes": {"cp 03x03x003x004, rank 002": ((3, 3, 3, 4), "cp", {"rank": 2})}}
    params: ClassVar = [sorted(schemes)]
    param_names: ClassVar = ["scheme"]
    timeout = 120
    rounds = 1
    repeat = (1, 3, 2.0)
    warmup_time = 0.0

    def setup(self, scheme):
        shape, name, self.options = self.schemes[scheme]
        require(name)
        self.function = getattr(jaxcnn, name)
        self.dense = decaying_kernel(*shape)

    def time_factorize(self, scheme):
        jax.block_until_ready(self.function(self.dense, **self.options))

    def track_error(self, scheme):
        return float(self.function(self.dense, **self.options).relative_error(self.dense))

    def track_macs_ratio(self, scheme):
        chain = self.function(self.dense, **self.options)
        shape = (1, 56, 56, self.dense.shape[-2])
        return jaxcnn.conv_cost(shape, self.dense.shape).macs / jaxcnn.conv_cost(shape, chain).macs

    track_error.unit = "relative error"
    track_macs_ratio.unit = "times fewer MACs"


class Search:
    """Time to choose among all schemes, to choose a rank, and to draw its curve."""

    functions: ClassVar = {
        "curve, tucker2": lambda dense: jaxcnn.curve(dense, "tucker2", points=8),
        "factorize within the error": lambda dense: jaxcnn.factorize(dense, tolerance=0.1),
        "factorize within the cost": lambda dense: jaxcnn.factorize(dense, cost=dense.size / 4),
        "select_rank above noise": lambda dense: jaxcnn.select_rank(dense, "tucker2"),
    }
    shape: ClassVar = (3, 3, 128, 128)
    quick: ClassVar = {"shape": (3, 3, 4, 4)}
    params: ClassVar = [sorted(functions)]
    param_names: ClassVar = ["what"]
    timeout = 120
    rounds = 1
    repeat = (1, 3, 2.0)
    warmup_time = 0.0

    def setup(self, what):
        self.dense = decaying_kernel(*self.shape)

    def time_search(self, what):
        self.functions[what](self.dense)


class Merge(ConvComparison):
    """Parallel 3x3, 1x3, 3x1 and identity in one kernel, against the branches in lax side by side: RepVGG, ACNet."""

    quick: ClassVar = {"params": [["1x8x8x4"]]}
    params: ClassVar = [["1x56x56x64"]]

    def case(self, layer):
        shape = tuple(map(int, layer.split("x")))
        branches = tuple(kernel(*window, shape[-1], shape[-1]) for window in ((3, 3), (1, 3), (3, 1)))
        merged = jaxcnn.merge(*branches, identity=1.0)
        return Case(
            lambda x, merged, *branches: jaxcnn.conv(x, merged),
            lambda x, merged, *branches: sum((plain.conv(x, branch) for branch in branches), x),
            (array(*shape), merged, *branches),
            jaxcnn.conv_cost(shape, merged.shape),
        )


class FoldScale(ConvComparison):
    """A batch norm in the kernel, against the convolution in lax and the batch norm after it."""

    quick: ClassVar = {"params": [["1x8x8x4"]]}
    params: ClassVar = [["1x56x56x64"]]

    def case(self, layer):
        shape = *_, channels = tuple(map(int, layer.split("x")))
        dense, scale, offset = kernel(3, 3, channels, channels), array(channels, seed=2), array(channels, seed=3)
        folded, bias = jaxcnn.fold_scale(dense, scale=scale, offset=offset)
        return Case(
            lambda x, folded, bias, dense, scale, offset: jaxcnn.conv(x, folded) + bias,
            lambda x, folded, bias, dense, scale, offset: plain.conv(x, dense) * scale + offset,
            (array(*shape), folded, bias, dense, scale, offset),
            jaxcnn.conv_cost(shape, folded.shape, bias=True),
        )


class Split(ConvComparison):
    """A 13x13 as 5x5 pieces side by side, against lax with the 13x13: as many multiplications, smaller windows."""

    layers: ClassVar = {"13x13 1x56x56x16": ((1, 56, 56, 16), 13)}
    quick: ClassVar = {"layers": {"7x7 1x8x8x2": ((1, 8, 8, 2), 7)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        dense = kernel(size, size, shape[-1], shape[-1])
        pieces, paddings = zip(*jaxcnn.split(dense, 5), strict=True)

        def ours(x, dense, *pieces):
            parts = zip(pieces, paddings, strict=True)
            return sum(jaxcnn.conv(x, piece, padding=padding) for piece, padding in parts)

        return Case(
            ours,
            lambda x, dense, *pieces: plain.conv(x, dense),
            (array(*shape), dense, *pieces),
            jaxcnn.conv_cost(shape, dense.shape),
        )


class Compose(ConvComparison):
    """The dense kernel of three 3x3 in a row, against the same sum over taps in `jnp`."""

    kernels: ClassVar = {"7x7 of 64": 64}
    quick: ClassVar = {"kernels": {"7x7 of 3": 3}}
    params: ClassVar = [sorted(kernels)]
    param_names: ClassVar = ["kernel"]

    def case(self, layer):
        features = self.kernels[layer]
        links = tuple(kernel(3, 3, features, features, seed=seed) for seed in range(3))

        def pair(a, b):
            dense = jnp.zeros((a.shape[0] + b.shape[0] - 1, a.shape[1] + b.shape[1] - 1, a.shape[2], b.shape[3]))
            for i, j in np.ndindex(*b.shape[:2]):
                dense = dense.at[i : i + a.shape[0], j : j + a.shape[1]].add(a @ b[i, j])
            return dense

        # Composing A (3x3) with B is a convolution of images of A's window with B, fully padded.
        shapes = [(features, size, size, features) for size in (3, 5)]
        once = [jaxcnn.conv_cost(shape, (3, 3, features, features), padding=2) for shape in shapes]
        return Case(jaxcnn.compose, lambda a, b, c: pair(pair(a, b), c), links, sum(once, jaxcnn.Cost()))
