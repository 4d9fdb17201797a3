"""A whole network through `jaxcnn.substitute`: what its chains gain on the clock, and at what error."""

from typing import ClassVar

import jax
import jax.numpy as jnp

import jaxcnn
from benchmarks.shared.arrays import array
from benchmarks.shared.environment import require
from benchmarks.shared.small_network import LAYERS, SIZE, any_result, kernels, network

from .suite import Case, ConvComparison

QUICK = {"layers": [(3, 3, 6)], "size": 12}


class SubstituteNetwork(ConvComparison):
    """Four layers with chains in place of kernels, fitted to weights or to responses, against the dense ones in lax."""

    layers, size = LAYERS, SIZE
    quick: ClassVar = QUICK
    params: ClassVar = [["macs 0.25", "macs 0.25 calibrated", "tolerance 0.05"]]
    param_names: ClassVar = ["budget"]
    timeout = 600

    def case(self, budget):
        require("substitute")
        name, value, *calibrated = budget.split()
        shape = (1, self.size, self.size, 3)
        x, dense = array(*shape), kernels(self.layers)
        calibration = [(array(*shape, seed=1),)] if calibrated else None
        substitution = jaxcnn.substitute(
            network, dense, x, calibration=calibration, **{name: float(value)}, **any_result()
        )
        return Case(
            lambda dense, chains, x: substitution.apply(chains, x),
            lambda dense, chains, x: network(dense, x),
            (dense, substitution.params, x),
            jaxcnn.summarize(substitution.apply, substitution.params, x).total,
        )


class FindSubstitution:
    """Time to find the chains of that network by their weights."""

    layers, size = LAYERS, SIZE
    quick: ClassVar = QUICK
    timeout = 600

    def setup(self):
        require("substitute")
        self.x, self.dense = array(1, self.size, self.size, 3), kernels(self.layers)
        jax.block_until_ready(jnp.ones(1))

    def time_substitute(self):
        jaxcnn.substitute(network, self.dense, self.x, macs=0.25, **any_result())
