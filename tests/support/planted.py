"""Networks whose kernels are of known rank, so that what a substitution must find is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxcnn
from jaxcnn.transform.substitution import problem
from support.arrays import normal

NUMBERS = ("NHWC", "HWIO", "NHWC")


def planted(height, width, inputs, outputs, rank, seed=0, noise=0.0):
    """A kernel that is a separable pair of that rank, and noise of that relative norm."""
    pair = jaxcnn.KernelChain((normal((height, 1, inputs, rank), seed), normal((1, width, rank, outputs), seed + 1)))
    kernel = np.asarray(pair.dense())
    kernel = kernel / np.linalg.norm(kernel)
    extra = normal(kernel.shape, seed + 2)
    return jnp.asarray(kernel + noise * extra / np.linalg.norm(extra), jnp.float32)


def conv(x, kernel, strides=1, **options):
    return lax.conv_general_dilated(x, kernel, (strides, strides), "SAME", dimension_numbers=NUMBERS, **options)


def network():
    """(f, params, x): three layers, of which the second is of rank 2 and the third of rank 4, and noise."""
    params = {
        "stem": {"kernel": jnp.asarray(normal((3, 3, 3, 16))), "bias": jnp.asarray(normal((16,), 1))},
        "low": {"kernel": planted(5, 5, 16, 16, 2, seed=2, noise=0.02), "bias": jnp.asarray(normal((16,), 3))},
        "high": {"kernel": planted(5, 5, 16, 16, 4, seed=4, noise=0.05), "bias": jnp.asarray(normal((16,), 5))},
        "head": jnp.asarray(normal((16, 4), 6)),
    }

    def f(params, x):
        x = jax.nn.relu(conv(x, params["stem"]["kernel"], 2) + params["stem"]["bias"][None, None, None])
        for name in ("low", "high"):
            x = jax.nn.relu(conv(x, params[name]["kernel"]) + params[name]["bias"][None, None, None])
        return x.mean((1, 2)) @ params["head"]

    return f, params, jnp.asarray(normal((2, 24, 24, 3), 7))


def clock_by_arithmetic(monkeypatch):
    """A clock for single layers that goes by multiply-accumulates: on the real one such small layers are a lottery."""

    def estimated(self, index, shapes):
        layer = self.layers[index]
        return layer.dense.macs / 1e6, layer.macs(shapes) / 1e6

    def milliseconds(self, index, chain):
        return estimated(self, index, self.layers[index].shapes(chain))

    monkeypatch.setattr(problem.Problem, "estimated_milliseconds", estimated)
    monkeypatch.setattr(problem.Problem, "milliseconds", milliseconds)


def clock_by_layer(monkeypatch, milliseconds):
    """A clock for single layers on which a kernel takes 1 ms, and a chain what a function of the layer's name says."""

    def times(self, index, chain):
        return 1.0, milliseconds(self.layers[index].name)

    monkeypatch.setattr(problem.Problem, "clock_key", lambda self, index, chain: self.layers[index].name)
    monkeypatch.setattr(problem.Problem, "estimated_milliseconds", times)
    monkeypatch.setattr(problem.Problem, "milliseconds", times)
