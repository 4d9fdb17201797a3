"""Whole networks in plain lax, as they are and accelerated: a forward pass and the gradient of a training step.

One image of 224x224.
"""

import time
from typing import ClassVar

import jax
import jax.numpy as jnp

import jaxcnn

from .common import Case, Comparison, array, require
from .networks import NETWORKS, parts


class AccelerateNetwork(Comparison):
    """A network in lax against the same through `jaxcnn.accelerate`."""

    params: ClassVar = [sorted(NETWORKS), ["forward", "gradient"]]
    param_names: ClassVar = ["network", "direction"]
    timeout = 600

    def case(self, network, direction):
        require("accelerate")
        f, kernels = parts(network)
        x = array(1, 224, 224, 3)
        if direction == "gradient":
            f = jax.grad(lambda kernels, x, f=f: jax.nn.logsumexp(f(kernels, x)))
        return Case(jaxcnn.accelerate(f), f, (kernels, x))


class SummarizeNetwork:
    """How long a table of a network's layers takes, of shapes alone, and the MACs in it."""

    params: ClassVar = [sorted(NETWORKS)]
    param_names: ClassVar = ["network"]

    def setup(self, network):
        require("summarize")
        self.f, self.kernels = parts(network)
        self.x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def track_seconds(self, network):
        start = time.perf_counter()
        jaxcnn.summarize(self.f, self.kernels, self.x)
        return time.perf_counter() - start

    track_seconds.unit = "s"
