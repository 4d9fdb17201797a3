"""Fused convolutions in jaxprs, and a method that applies epilogues by their definition."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn import epilogue
from jaxcnn.lowering import choice
from jaxcnn.lowering.methods import direct
from jaxcnn.transform.jaxpr.equations import inner_jaxpr, sub_jaxprs


def walk(jaxpr):
    """The equations of a jaxpr and of those it holds, of fused convolutions as well."""
    for equation in inner_jaxpr(jaxpr).eqns:
        yield equation
        for inner in sub_jaxprs(equation):
            yield from walk(inner)


def fused(f, *args):
    """The recipes of the fused convolutions that f binds, in order."""
    equations = walk(jax.make_jaxpr(f)(*args))
    return [equation.params["recipe"] for equation in equations if equation.primitive is epilogue.fused_conv_p]


ACTIVATIONS = {
    "none": lambda y, alpha: y,
    "relu": lambda y, alpha: jax.nn.relu(y),
    "relu6": lambda y, alpha: jax.nn.relu6(y),
    "leaky_relu": jax.nn.leaky_relu,
    "silu": lambda y, alpha: jax.nn.silu(y),
    "hard_sigmoid": lambda y, alpha: jax.nn.hard_sigmoid(y),
    "hard_swish": lambda y, alpha: jax.nn.hard_swish(y),
    "gelu": lambda y, alpha: jax.nn.gelu(y),
    "gelu_exact": lambda y, alpha: jax.nn.gelu(y, approximate=False),
    "sigmoid": lambda y, alpha: jax.nn.sigmoid(y),
    "tanh": lambda y, alpha: jnp.tanh(y),
}


class Reference:
    """A stand-in for the library of kernels: what epilogues mean, operation by operation, and a list of its calls."""

    def __init__(self):
        self.calls = []

    def supports_fused(self, spec, epilogue):
        return None

    def lower_fused(self, lhs, rhs, scale, bias, residual, spec, epilogue):
        given = (scale is not None, bias is not None, residual is not None)
        assert given == (epilogue.has_scale, epilogue.has_bias, epilogue.has_residual)
        for vector in (scale, bias):
            assert vector is None or vector.dtype == jnp.float32
            assert vector is None or vector.shape in ((1,), spec.result_shape[-1:])
        assert residual is None or (residual.shape, residual.dtype) == (spec.result_shape, jnp.float32)
        self.calls.append((spec, epilogue))
        y = direct.lower(lhs, rhs, dataclasses.replace(spec, platform="cpu"))
        channel = (y.ndim - 1,)
        y = y if scale is None else y * lax.broadcast_in_dim(scale, y.shape, channel)
        y = y if bias is None else y + lax.broadcast_in_dim(bias, y.shape, channel)
        y = y if residual is None else y + residual
        return ACTIVATIONS[epilogue.activation](y, epilogue.alpha)


def use(monkeypatch, what):
    """Lets `accelerate` fuse; `what` computes it: "separate" equations, the "reference", or the "native" kernels.

    Returns the reference, or None where there are no native kernels.
    """
    monkeypatch.setattr(epilogue, "has_fusing_methods", lambda: True)
    reference = Reference()
    if what == "native":
        return reference if any(hasattr(module, "lower_fused") for module in choice.METHODS.values()) else None
    for module in choice.METHODS.values():
        for name in ("lower_fused", "supports_fused"):
            if what == "reference":
                monkeypatch.setattr(module, name, getattr(reference, name), raising=False)
            else:
                monkeypatch.delattr(module, name, raising=False)
    return reference
