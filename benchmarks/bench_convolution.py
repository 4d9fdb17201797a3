"""Is a convolution as fast as it could be?

Classes named `Jax<number>` answer the thread of that number on JAX's tracker.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

import jaxcnn

from .common import Case, ConvComparison, array, kernel
from .timing import program

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
NHC = ("NHC", "HIO", "NHC")
NCH = ("NCH", "OIH", "NCH")


def lax_conv(x, w, strides=1, padding="SAME", numbers=NHWC, **options):
    """A convolution as it is written without jaxcnn."""
    return lax.conv_general_dilated(x, w, (strides,) * (x.ndim - 2), padding, dimension_numbers=numbers, **options)


def gradient(function):
    """The gradients of a convolution in both operands, of a loss whose own gradient is the result."""

    def loss(x, w):
        return 0.5 * jnp.sum(function(x, w) ** 2)

    return jax.grad(loss, (0, 1))


class Dense(ConvComparison):
    """The ordinary layers of a CNN, from 1x1 to 11x11."""

    layers: ClassVar = {
        "01x01 8x56x56x64 to 128": ((8, 56, 56, 64), (1, 1), 128, 1),
        "03x03 1x14x14x512": ((1, 14, 14, 512), (3, 3), 512, 1),
        "03x03 1x56x56x64": ((1, 56, 56, 64), (3, 3), 64, 1),
        "03x03 8x28x28x128": ((8, 28, 28, 128), (3, 3), 128, 1),
        "03x03/2 1x56x56x128": ((1, 56, 56, 128), (3, 3), 128, 2),
        "05x05 1x56x56x64": ((1, 56, 56, 64), (5, 5), 64, 1),
        "07x07/2 1x224x224x3 to 64": ((1, 224, 224, 3), (7, 7), 64, 2),
        "11x11 1x56x56x64": ((1, 56, 56, 64), (11, 11), 64, 1),
    }
    quick: ClassVar = {"layers": {"03x03/2 1x9x9x3 to 4": ((1, 9, 9, 3), (3, 3), 4, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, window, features, strides = self.layers[layer]
        x, w = array(*shape), kernel(*window, shape[-1], features)
        return Case(
            lambda x, w: jaxcnn.conv(x, w, strides=strides),
            lambda x, w: lax_conv(x, w, strides),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape, strides=strides),
        )


class DenseGradient(ConvComparison):
    """What training adds to the ordinary layers: the gradients in image and kernel, and the forward pass they need."""

    layers: ClassVar = {
        "1x1 8x56x56x64 to 128": ((8, 56, 56, 64), (1, 1), 128),
        "3x3 4x28x28x64": ((4, 28, 28, 64), (3, 3), 64),
        "5x5 1x28x28x64": ((1, 28, 28, 64), (5, 5), 64),
    }
    quick: ClassVar = {"layers": {"3x3 1x8x8x3 to 4": ((1, 8, 8, 3), (3, 3), 4)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, window, features = self.layers[layer]
        x, w = array(*shape), kernel(*window, shape[-1], features)
        once = jaxcnn.conv_cost(x.shape, w.shape)
        return Case(gradient(jaxcnn.conv), gradient(lax_conv), (x, w), once + once + once)


class Jax23713Depthwise(ConvComparison):
    """Depthwise convolution on CPU: jax#23713, whose own shape is the first."""

    layers: ClassVar = {
        "3x3 1x124x124x256": ((1, 124, 124, 256), 3, 1),
        "3x3 8x14x14x512": ((8, 14, 14, 512), 3, 1),
        "3x3 8x56x56x64": ((8, 56, 56, 64), 3, 1),
        "3x3/2 1x56x56x144": ((1, 56, 56, 144), 3, 2),
        "5x5 1x28x28x256": ((1, 28, 28, 256), 5, 1),
        "7x7 1x56x56x64": ((1, 56, 56, 64), 7, 1),
    }
    quick: ClassVar = {"layers": {"3x3/2 1x9x9x6": ((1, 9, 9, 6), 3, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, strides = self.layers[layer]
        x, w = array(*shape), kernel(size, size, shape[-1], 1)
        return Case(
            lambda x, w: jaxcnn.depthwise_conv(x, w, strides=strides),
            lambda x, w: lax_conv(x, w.swapaxes(2, 3), strides, feature_group_count=shape[-1]),
            (x, w),
            jaxcnn.conv_cost(x.shape, (size, size, 1, shape[-1]), strides=strides, feature_group_count=shape[-1]),
        )


class Jax23713DepthwiseGradient(ConvComparison):
    """The gradients of a depthwise convolution on CPU."""

    layers: ClassVar = {
        "3x3 1x62x62x64": ((1, 62, 62, 64), 3),
        "3x3 4x14x14x256": ((4, 14, 14, 256), 3),
        "7x7 1x28x28x64": ((1, 28, 28, 64), 7),
    }
    quick: ClassVar = {"layers": {"3x3 1x9x9x6": ((1, 9, 9, 6), 3)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size = self.layers[layer]
        x, w = array(*shape), kernel(size, size, shape[-1], 1)
        once = jaxcnn.conv_cost(x.shape, (size, size, 1, shape[-1]), feature_group_count=shape[-1])
        return Case(
            gradient(jaxcnn.depthwise_conv),
            gradient(lambda x, w: lax_conv(x, w.swapaxes(2, 3), feature_group_count=shape[-1])),
            (x, w),
            once + once + once,
        )


class Jax13800GroupedGradient(ConvComparison):
    """The gradients of a grouped convolution, as slow as the dense one's or slower: jax#13800."""

    layers: ClassVar = {
        "3x3 1x28x28x64 in 02 groups": ((1, 28, 28, 64), 3, 2),
        "3x3 1x28x28x64 in 08 groups": ((1, 28, 28, 64), 3, 8),
        "3x3 4x14x14x256 in 32 groups": ((4, 14, 14, 256), 3, 32),
    }
    quick: ClassVar = {"layers": {"3x3 1x8x8x4 in 2 groups": ((1, 8, 8, 4), 3, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, groups = self.layers[layer]
        x, w = array(*shape), kernel(size, size, shape[-1] // groups, shape[-1])
        once = jaxcnn.conv_cost(x.shape, w.shape, feature_group_count=groups)
        return Case(
            gradient(lambda x, w: jaxcnn.conv(x, w, feature_group_count=groups)),
            gradient(lambda x, w: lax_conv(x, w, feature_group_count=groups)),
            (x, w),
            once + once + once,
        )


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
        numbers = NCHW if rank == 2 else NCH

        def looped(step):
            return lambda x, w: lax.scan(lambda x, _: (step(x, w), None), x, None, length=steps)[0]

        return Case(
            looped(lambda x, w: jaxcnn.conv(x, w, layout=layout)),
            looped(lambda x, w: lax_conv(x, w, numbers=numbers)),
            (x, w),
            sum([jaxcnn.conv_cost(x.shape, w.shape, layout=layout)] * steps, jaxcnn.Cost()),
        )


class Jax5227LargeKernel(ConvComparison):
    """Large kernels, where a direct convolution is far from the fastest: jax#5227."""

    layers: ClassVar = {
        "dense 31x31 1x28x28x8": ((1, 28, 28, 8), 31, 1),
        "depthwise 31x31 1x28x28x64": ((1, 28, 28, 64), 31, 64),
        "filter 11x11 1x512x512x1": ((1, 512, 512, 1), 11, 1),
        "filter 31x31 1x256x256x1": ((1, 256, 256, 1), 31, 1),
    }
    quick: ClassVar = {"layers": {"filter 11x11 1x16x16x1": ((1, 16, 16, 1), 11, 1)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, groups = self.layers[layer]
        x, w = array(*shape), kernel(size, size, shape[-1] // groups, shape[-1])
        return Case(
            lambda x, w: jaxcnn.conv(x, w, feature_group_count=groups),
            lambda x, w: lax_conv(x, w, feature_group_count=groups),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape, feature_group_count=groups),
        )


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
            lambda x, w: lax_conv(x, w, numbers=NHC, feature_group_count=groups, rhs_dilation=(dilation,)),
            (x, w),
            jaxcnn.conv_cost(x.shape, w.shape, feature_group_count=groups, kernel_dilation=dilation),
        )


class Jax23783Transposed(ConvComparison):
    """Transposed convolutions, slow on several devices: jax#23783 (1-D) and jax#31662 (3-D)."""

    layers: ClassVar = {
        "1-D 16/8 1x512x64": ((1, 512, 64), 16, 8),
        "2-D 4x4/2 1x16x16x64": ((1, 16, 16, 64), 4, 2),
        "2-D 2x2/2 1x64x64x64": ((1, 64, 64, 64), 2, 2),
        "3-D 3x3x3/2 1x8x8x8x32": ((1, 8, 8, 8, 32), 3, 2),
    }
    quick: ClassVar = {"layers": {"1-D 4/2 1x9x3": ((1, 9, 3), 4, 2)}}
    params: ClassVar = [sorted(layers)]

    def case(self, layer):
        shape, size, strides = self.layers[layer]
        rank, channels = len(shape) - 2, shape[-1]
        x, w = array(*shape), kernel(*(size,) * rank, channels, channels)

        def plain(x, w):
            return lax.conv_transpose(x, w, (strides,) * rank, "SAME", transpose_kernel=True)

        return Case(
            lambda x, w: jaxcnn.conv_transpose(x, w, strides=strides),
            plain,
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
            lambda x, w: lax_conv(x, w, preferred_element_type=jnp.int32),
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
            lambda x, w: lax_conv(x, w, numbers=("NDHWC", "DHWIO", "NDHWC")),
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
        return Case(jax.vmap(jaxcnn.conv), jax.vmap(lax_conv), (x, w), sum([cost] * shape[0], jaxcnn.Cost()))


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
        return Case(gradients(jaxcnn.conv), gradients(lax_conv), (kernels, array(*shape)), costs)

    def track_compile_jaxcnn(self, layer):
        case = self.case(layer)
        return program(case.ours, *case.args).first_seconds

    def track_compile_lax(self, layer):
        case = self.case(layer)
        return program(case.plain, *case.args).first_seconds

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

        def plain(x, w):
            patches = lax.conv_general_dilated_patches(x, (size, size), (1, 1), "VALID", dimension_numbers=NHWC)
            return patches @ jnp.moveaxis(w, 2, 0).reshape(-1, w.shape[-1])

        return Case(ours, plain, (x, w), jaxcnn.conv_cost(x.shape, w.shape, padding="VALID"))


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
        jax.block_until_ready(jax.jit(lambda x, w: lax_conv(x, w, feature_group_count=self.groups))(*self.args))
