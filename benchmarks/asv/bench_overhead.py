"""Costs of the library itself: import, compilation, and a call of an array function outside `jit`."""

import subprocess
import sys
from typing import ClassVar

import jax

import jaxcnn
from benchmarks.shared import plain
from benchmarks.shared.arrays import array, kernel
from benchmarks.shared.environment import require
from benchmarks.shared.timing import compile_seconds, speedup

from .suite import Case, Comparison

IMPORT = """
import time, jax
start = time.process_time()
import jaxcnn
print(1000 * (time.process_time() - start))
"""


class Import:
    """Time that `import jaxcnn` adds to `import jax`."""

    timeout = 120
    rounds = 1
    repeat = 5
    number = 1

    def timeraw_import_jaxcnn(self):
        return "import jaxcnn", "import jax"

    def track_import_milliseconds(self):
        # Processor time, the least of several processes: what other programs do to it is always an addition.
        return min(float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(7))

    track_import_milliseconds.unit = "ms of processor time"


class Compile:
    """Time until the first call can run."""

    functions: ClassVar = {
        "chain": (
            lambda x, w: jaxcnn.conv(x, jaxcnn.KernelChain((w[:, :1], w[:1]))),
            lambda x, w: plain.conv(plain.conv(x, w[:, :1]), w[:1]),
        ),
        "conv": (jaxcnn.conv, plain.conv),
        "conv, gradient": (plain.gradient(jaxcnn.conv), plain.gradient(plain.conv)),
        "depthwise conv, gradient": (
            plain.gradient(lambda x, w: jaxcnn.depthwise_conv(x, w[:, :, :, :1])),
            plain.gradient(lambda x, w: plain.depthwise_conv(x, w[:, :, :, :1])),
        ),
        "max pool": (lambda x, w: jaxcnn.max_pool(x, 2, strides=2), lambda x, w: plain.max_pool(x, 2, 2)),
    }
    params: ClassVar = [sorted(functions)]
    param_names: ClassVar = ["function"]
    timeout = 120

    def setup(self, function):
        self.args = array(1, 16, 16, 16), kernel(3, 3, 16, 16)
        jax.block_until_ready(jax.jit(lambda x, w: x + w.sum())(*self.args))

    def track_compile_jaxcnn(self, function):
        return min(compile_seconds(self.functions[function][0], *self.args) for _ in range(3))

    def track_compile_lax(self, function):
        return min(compile_seconds(self.functions[function][1], *self.args) for _ in range(3))

    track_compile_jaxcnn.unit = track_compile_lax.unit = "seconds"


class SpeedupOverItself:
    """The distance from 1 of the ratio that all other benchmarks track, where it should be 1."""

    timeout = 60
    speedup_seconds = 0.8

    def track_speedup(self):
        function = jax.jit(lambda x, w: plain.conv(x, w))
        args = array(1, 28, 28, 32), kernel(3, 3, 32, 32)
        jax.block_until_ready(function(*args))
        return speedup(function, function, *args, seconds=self.speedup_seconds)

    track_speedup.unit = "times faster than itself"


class Eager(Comparison):
    """A call outside `jit`, on an image so small that the call itself is what takes time."""

    functions: ClassVar = {
        "conv": (jaxcnn.conv, jax.jit(plain.conv)),
        "max pool": (lambda x, w: jaxcnn.max_pool(x, 2), jax.jit(lambda x, w: plain.max_pool(x, 2, 1))),
    }
    params: ClassVar = [sorted(functions)]
    param_names: ClassVar = ["function"]

    def case(self, function):
        return Case(*self.functions[function], (array(1, 4, 4, 1), kernel(3, 3, 1, 1)))

    def setup(self, function):
        case = self.case(function)
        self.ours, self.plain, self.args = case.ours, case.plain, case.args
        jax.block_until_ready((self.ours(*self.args), self.plain(*self.args)))


class EagerChain(Comparison):
    """A call of a function of a chain outside `jit`: `with_chains` traces it once."""

    param_names: ClassVar = []

    def setup(self):
        case = self.case()
        self.ours, self.plain, self.args = case.ours, case.plain, case.args
        jax.block_until_ready((self.ours(*self.args), self.plain(*self.args)))

    def case(self):
        require("with_chains")
        chained = jaxcnn.with_chains(plain.conv)
        chain = jaxcnn.KernelChain((kernel(3, 3, 1, 1),))
        return Case(lambda x, w: chained(x, chain), jax.jit(plain.conv), (array(1, 4, 4, 1), chain.kernels[0]))
