"""Whole networks in plain lax, as they are and accelerated: a forward pass and the gradient of a training step.

One image, of 224x224 or as large as the network is published for.
"""

import time
from typing import ClassVar

import jax
import jax.numpy as jnp

import jaxcnn
from benchmarks.shared.arrays import array
from benchmarks.shared.environment import require
from benchmarks.shared.networks import NETWORKS, QUICK
from benchmarks.shared.timing import compile_program

from .suite import Case, Comparison


class AccelerateNetwork(Comparison):
    """A network in lax against the same through `jaxcnn.accelerate`."""

    networks: ClassVar = NETWORKS
    quick: ClassVar = {"networks": QUICK}
    params: ClassVar = [sorted(networks), ["forward", "gradient"]]
    param_names: ClassVar = ["network", "direction"]
    timeout = 600
    version = "2"  # 1 were networks without norms and biases, whose times are not to be drawn in one curve with these

    def case(self, name, direction):
        require("accelerate")
        network = self.networks[name]
        f = network.lax(direction)
        return Case(jaxcnn.accelerate(f), f, (network.weights(), array(1, network.size, network.size, 3)))


class FirstCallNetwork:
    """Time of a network's first call: tracing, compiling and running."""

    networks: ClassVar = NETWORKS
    quick: ClassVar = {"networks": QUICK}
    params: ClassVar = [sorted(networks), ["forward", "gradient"]]
    param_names: ClassVar = ["network", "direction"]
    timeout = 600

    def setup(self, name, direction):
        require("accelerate")
        network = self.networks[name]
        self.plain = network.lax(direction)
        self.args = network.weights(), array(1, network.size, network.size, 3)

    def first_call_seconds(self, f):
        jax.clear_caches()  # or what one has traced is known to the other
        return compile_program(f, *self.args).first_seconds

    def track_compile_jaxcnn(self, name, direction):
        return self.first_call_seconds(jaxcnn.accelerate(self.plain))

    def track_compile_lax(self, name, direction):
        return self.first_call_seconds(self.plain)

    track_compile_jaxcnn.unit = track_compile_lax.unit = "seconds"


class SummarizeNetwork:
    """Time to make the table of a network's layers from shapes alone."""

    networks: ClassVar = NETWORKS
    quick: ClassVar = {"networks": QUICK}
    params: ClassVar = [sorted(networks)]
    param_names: ClassVar = ["network"]
    version = "2"

    def setup(self, name):
        require("summarize")
        network = self.networks[name]
        self.f, self.weights = network.lax("forward"), network.weights()
        self.x = jax.ShapeDtypeStruct((1, network.size, network.size, 3), jnp.float32)

    def track_seconds(self, name):
        start = time.perf_counter()
        jaxcnn.summarize(self.f, self.weights, self.x)
        return time.perf_counter() - start

    track_seconds.unit = "s"
