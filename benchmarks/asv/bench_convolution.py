"""Is a convolution as fast as it could be?

Classes named `Jax<number>` answer the thread of that number on JAX's tracker.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

import jaxcnn
from benchmarks.shared import plain
from benchmarks.shared.arrays import array, kernel
from benchmarks.shared.layers import FAMILIES, Layer, by_name
from benchmarks.shared.timing import compile_program

from .suite import Case, ConvComparison, LayerComparison

DENSE = Layer("3x3/2", (1, 9, 9, 3), (3, 3), 4, 2)
DEPTHWISE = Layer("3x3/2", (1, 9, 9, 6), (3, 3), 6, 2, 6)
GROUPED = Layer("3x3", (1, 8, 8, 4), (3, 3), 4, 1, 2)
"""Layers for tests."""


class Dense(LayerComparison):
    """The ordinary layers of a CNN, from 1x1 to 11x11."""

    layers: ClassVar = by_name(FAMILIES["dense"])
    quick: ClassVar = {"layers": by_name([DENSE])}
    params: ClassVar = [sorted(layers)]


class DenseGradient(LayerComparison):
    """The gradients of the ordinary layers in image and kernel."""

    layers: ClassVar = by_name(FAMILIES["dense"])
    quick: ClassVar = {"layers": by_name([DENSE])}
    params: ClassVar = [sorted(layers)]
    role = "gradient"


class Lines(LayerComparison):
    """Windows of one row or one column."""

    layers: ClassVar = by_name(FAMILIES["1xk and kx1"])
    quick: ClassVar = {"layers": by_name([Layer("1x3", (1, 8, 8, 3), (1, 3), 4)])}
    params: ClassVar = [sorted(layers)]


class Jax23713Depthwise(LayerComparison):
    """Depthwise convolution on CPU: jax#23713."""

    layers: ClassVar = by_name(FAMILIES["depthwise"])
    quick: ClassVar = {"layers": by_name([DEPTHWISE])}
    params: ClassVar = [sorted(layers)]


class Jax23713DepthwiseGradient(LayerComparison):
    """The gradients of a depthwise convolution on CPU."""

    layers: ClassVar = by_name(FAMILIES["depthwise"])
    quick: ClassVar = {"layers": by_name([DEPTHWISE])}
    params: ClassVar = [sorted(layers)]
    role = "gradient"


class Grouped(LayerComparison):
    """Convolutions in groups, forward."""

    layers: ClassVar = by_name(FAMILIES["grouped"])
    quick: ClassVar = {"layers": by_name([GROUPED])}
    params: ClassVar = [sorted(layers)]


class Jax13800GroupedGradient(LayerComparison):
    """The gradients of a grouped convolution, as slow as the dense one's or slower: jax#13800."""

    layers: ClassVar = by_name(FAMILIES["grouped"])
    quick: ClassVar = {"layers": by_name([GROUPED])}
    params: ClassVar = [sorted(layers)]
    role = "gradient"


class Jax12868LoopLayout(ConvComparison):
    """A channels-first convolution inside a loop: jax#12868."""

    layers: ClassVar = {
        "1-D 3 1x256x256, 2 steps": ((1, 256, 256), 3, 2, "NCH"),
        "2-D 3x3 1x32x32x32, 4 steps": ((1, 32, 32, 32), 3, 4, "NCHW"),
    }
    quick: ClassVar = {"layers": {"1-D 3 1x4x16, 2 steps": ((1, 4, 16), 3, 2, "NCH")}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, steps, layout = self.layers[layer]
        channels, rank = shape[1], len(shape) - 2
        x, w = array(*shape), jnp.moveaxis(kernel(*(size,) * rank, channels, channels), (-1, -2), (0, 1))

        def looped(step):
            return lambda x, w: lax.scan(lambda x, _: (step(x, w), None), x, None, length=steps)[0]

        return Case(
            looped(lambda x, w: jaxcnn.conv(x, w, layout=layout)),
            looped(lambda x, w: plain.conv(x, w, numbers=plain.CHANNELS_FIRST[rank])),
            (x, w),
            sum([jaxcnn.conv_cost(x.shape, w.shape, layout=layout)] * steps, jaxcnn.Cost()),
        )


class Jax5227LargeKernel(LayerComparison):
    """Large kernels, where a direct convolution is far from the fastest: jax#5227."""

    layers: ClassVar = by_name([*FAMILIES["filter"], *FAMILIES["large"]])
    quick: ClassVar = {"layers": by_name([Layer("filter 11x11", (1, 16, 16, 1), (11, 11), 1)])}
    params: ClassVar = [sorted(layers)]


class Jax26266DilatedGrouped(ConvComparison):
    """A grouped 1-D convolution as its dilation grows: jax#26266."""

    layers: ClassVar = {f"4x2048x64, dilation {dilation:02}": dilation for dilation in (1, 8, 64)}
    shape: ClassVar = (4, 2048, 64)
    quick: ClassVar = {"shape": (1, 64, 6)}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        dilation = self.layers[layer]
        x, w, groups = array(*self.shape), kernel(5, 1, self.shape[-1]), self.shape[-1]
        return Case(
            lambda x, w: jaxcnn.conv(x, w, feature_group_count=groups, kernel_dilation=dilation),
            lambda x, w: plain.conv(x, w, feature_group_count=groups, rhs_dilation=(dilation,)),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape, feature_group_count=groups, kernel_dilation=dilation),
        )


class Transposed(LayerComparison):
    """Transposed convolutions of images."""

    layers: ClassVar = by_name(FAMILIES["transposed"])
    quick: ClassVar = {"layers": by_name([Layer("4x4/2", (1, 9, 9, 3), (4, 4), 4, 2, transposed=True)])}
    params: ClassVar = [sorted(layers)]


class Jax23783Transposed(ConvComparison):
    """Transposed convolutions along one axis and three, slow on several devices: jax#23783 and jax#31662."""

    layers: ClassVar = {
        "1-D 16/8 1x512x64": ((1, 512, 64), 16, 8),
        "3-D 3x3x3/2 1x8x8x8x32": ((1, 8, 8, 8, 32), 3, 2),
    }
    quick: ClassVar = {"layers": {"1-D 4/2 1x9x3": ((1, 9, 3), 4, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, strides = self.layers[layer]
        rank, channels = len(shape) - 2, shape[-1]
        x, w = array(*shape), kernel(*(size,) * rank, channels, channels)
        return Case(
            lambda x, w: jaxcnn.conv_transpose(x, w, strides=strides),
            lambda x, w: plain.conv_transpose(x, w, strides),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape, strides=strides, transposed=True),
        )


class Integer(ConvComparison):
    """An int8 convolution that accumulates in int32."""

    layers: ClassVar = {"3x3 1x32x32x64": ((1, 32, 32, 64), 3)}
    quick: ClassVar = {"layers": {"3x3 1x8x8x4": ((1, 8, 8, 4), 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        x = jnp.clip(array(*shape) * 40, -127, 127).astype(jnp.int8)
        w = jnp.clip(array(size, size, shape[-1], shape[-1], seed=1) * 40, -127, 127).astype(jnp.int8)
        return Case(
            jaxcnn.conv,
            lambda x, w: plain.conv(x, w, preferred_element_type=jnp.int32),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape),
        )


class Volume(ConvComparison):
    """A 3-D convolution."""

    layers: ClassVar = {"3x3x3 1x16x32x32x16": ((1, 16, 32, 32, 16), 3)}
    quick: ClassVar = {"layers": {"3x3x3 1x4x6x6x2": ((1, 4, 6, 6, 2), 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        x, w = array(*shape), kernel(size, size, size, shape[-1], shape[-1])
        return Case(
            jaxcnn.conv,
            plain.conv,
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape),
        )


class KernelsUnderVmap(ConvComparison):
    """`vmap` over images and kernels at once, as per-example gradients and ensembles do: jax#3428."""

    layers: ClassVar = {"3x3 8 of 1x16x16x16": ((8, 1, 16, 16, 16), 3)}
    quick: ClassVar = {"layers": {"3x3 2 of 1x6x6x2": ((2, 1, 6, 6, 2), 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        x, w = array(*shape), kernel(shape[0], size, size, shape[-1], shape[-1])
        cost = jaxcnn.conv_cost(x.shape[1:], w.shape[1:])
        return Case(jax.vmap(jaxcnn.conv), jax.vmap(plain.conv), (x, w), sum([cost] * shape[0], jaxcnn.Cost()))


class Jax1606PerExampleGradients(ConvComparison):
    """Gradients of each example's loss by the kernels of two layers: their time, and that of the first call."""

    layers: ClassVar = {"3x3 16 of 28x28x1 to 16 to 32": ((16, 1, 28, 28, 1), 16, 32)}
    quick: ClassVar = {"layers": {"3x3 2 of 6x6x1 to 2 to 3": ((2, 1, 6, 6, 1), 2, 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, hidden, features = self.layers[layer]
        kernels = kernel(3, 3, shape[-1], hidden), kernel(3, 3, hidden, features)

        def gradients(conv):
            def loss(kernels, x):
                first, second = kernels
                return jnp.mean(conv(jax.nn.relu(conv(x, first)), second) ** 2)

            return jax.vmap(jax.grad(loss), (None, 0))

        cost = jaxcnn.conv_cost(shape[1:], kernels[0].shape) + jaxcnn.conv_cost(
            (*shape[1:-1], hidden), kernels[1].shape
        )
        costs = sum([cost] * shape[0], jaxcnn.Cost())
        return Case(gradients(jaxcnn.conv), gradients(plain.conv), (kernels, array(*shape)), costs)

    def track_compile_jaxcnn(self, layer):
        case = self.case(layer)
        return compile_program(case.ours, *case.args).first_seconds

    def track_compile_lax(self, layer):
        case = self.case(layer)
        return compile_program(case.plain, *case.args).first_seconds

    track_compile_jaxcnn.unit = track_compile_lax.unit = "seconds"


class Patches(ConvComparison):
    """Windows as vectors (im2col), and the convolution that is their product with the kernel as a matrix."""

    layers: ClassVar = {"3x3 1x28x28x64": ((1, 28, 28, 64), 3)}
    quick: ClassVar = {"layers": {"3x3 1x8x8x4": ((1, 8, 8, 4), 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        x, w = array(*shape), kernel(size, size, shape[-1], shape[-1])

        def ours(x, w):
            return jaxcnn.extract_patches(x, (size, size)) @ w.reshape(-1, w.shape[-1])

        def in_lax(x, w):
            patches = lax.conv_general_dilated_patches(
                x, (size, size), (1, 1), "VALID", dimension_numbers=plain.CHANNELS_LAST[2]
            )
            return patches @ jnp.moveaxis(w, 2, 0).reshape(-1, w.shape[-1])

        return Case(ours, in_lax, (x, w), jaxcnn.conv_cost(x.shape, w.shape, padding="VALID"))


class Memory:
    """Peak memory of a process that computes a layer once."""

    layers: ClassVar = {
        "dense 3x3 8x112x112x64": ((8, 112, 112, 64), 1),
        "depthwise 3x3 8x112x112x64": ((8, 112, 112, 64), 64),
    }
    quick: ClassVar = {"layers": {"dense 3x3 1x8x8x4": ((1, 8, 8, 4), 1)}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]

    def setup(self, layer):
        shape, self.groups = self.layers[layer]
        self.args = array(*shape), kernel(3, 3, shape[-1] // self.groups, shape[-1])

    def peakmem_jaxcnn(self, layer):
        jax.block_until_ready(jaxcnn.conv(*self.args, feature_group_count=self.groups))

    def peakmem_lax(self, layer):
        jax.block_until_ready(jax.jit(lambda x, w: plain.conv(x, w, feature_group_count=self.groups))(*self.args))
