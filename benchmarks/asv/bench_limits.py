"""Limits of what must stay quick on the host: decompositions of large layers, calls of an accelerated function.

A regression here is what a user waits for, so that each benchmark names the limit that it is read against.
"""

import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from benchmarks.shared.arrays import array
from benchmarks.shared.environment import require


class LargeKernels:
    """Decomposition of a 3x3 kernel, on the host and in float64: 10 s at 512 channels, 60 s of cp at 128."""

    calls: ClassVar = {
        "cp rank 064": (128, lambda kernel: jaxcnn.cp(kernel, rank=64)),
        "depthwise_separable multiplier 002": (512, lambda kernel: jaxcnn.depthwise_separable(kernel, multiplier=2)),
        "low_rank rank 128": (512, lambda kernel: jaxcnn.low_rank(kernel, rank=128)),
        "separable rank 256": (512, lambda kernel: jaxcnn.separable(kernel, rank=256)),
        "tucker2 ranks 128": (512, lambda kernel: jaxcnn.tucker2(kernel, ranks=128)),
        "tucker2 tolerance 0.2": (512, lambda kernel: jaxcnn.tucker2(kernel, tolerance=0.2)),
    }
    params: ClassVar = [sorted(calls)]
    param_names: ClassVar = ["scheme"]
    timeout = 300
    rounds = 1
    repeat = 1
    number = 1
    quick: ClassVar = {
        "calls": {"separable rank 002": (6, lambda kernel: jaxcnn.separable(kernel, rank=2))},
        "params": [["separable rank 002"]],
    }

    def setup(self, scheme):
        channels, self.decompose = self.calls[scheme]
        # Output channels of falling strength, as in a trained layer.
        mixing = array(channels, channels, seed=1) / jnp.arange(1, channels + 1, dtype=np.float32)[:, None]
        self.kernel = np.asarray(array(3, 3, channels, channels) @ mixing)

    def time_decompose(self, scheme):
        jax.block_until_ready(self.decompose(self.kernel))


class AcceleratedCall:
    """A call of an accelerated function with as many parameters as ResNet-50 has: 100 microseconds over jitted."""

    timeout = 120

    def setup(self):
        require("accelerate")

        def f(params, x):
            return x + params["0"][0, 0, 0, 0]

        self.args = {str(index): jnp.ones((1, 1, 1, 1)) for index in range(160)}, jnp.ones(())
        self.accelerated, self.jitted = jaxcnn.accelerate(f), jax.jit(f)
        jax.block_until_ready((self.accelerated(*self.args), self.jitted(*self.args)))

    def time_accelerated(self):
        jax.block_until_ready(self.accelerated(*self.args))

    def track_microseconds_over_jitted(self):
        return max(0.0, 1e6 * (self._seconds(self.accelerated) - self._seconds(self.jitted)))

    def _seconds(self, function, calls=50):
        """Seconds of a call, of which a tenth of all calls are faster."""
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            function(*self.args)
            times.append(time.perf_counter() - start)
        return sorted(times)[calls // 10]

    track_microseconds_over_jitted.unit = "microseconds more than jitted"


class MeasuredRanks:
    """The clock that `select_rank` asks: the rank that a time allows, which a slower machine makes smaller."""

    params: ClassVar = [["1x32x32x32", "1x64x64x32"]]
    param_names: ClassVar = ["image"]
    quick: ClassVar = {"params": [["1x8x8x4"]]}
    timeout = 120
    rounds = 1
    repeat = 1
    number = 1

    def setup(self, image):
        self.shape = tuple(map(int, image.split("x")))
        self.kernel = np.asarray(array(3, 3, self.shape[-1], self.shape[-1]))

    def time_select_rank(self, image):
        self.track_rank_within_a_millisecond(image)

    def track_rank_within_a_millisecond(self, image):
        return jaxcnn.select_rank(self.kernel, "low_rank", milliseconds=1.0, input_shape=self.shape)

    track_rank_within_a_millisecond.unit = "channels between the links"
