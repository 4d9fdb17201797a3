"""Parts that the tests of `substitute` share: a network, its substitutions, and what must be true of each of them."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from support.arrays import normal, relative_error
from support.chains import is_chain
from support.planted import conv, network, planted

F, PARAMS, X = network()
SMALL = {"first": planted(5, 5, 4, 4, 1, noise=0.1), "second": planted(5, 5, 4, 4, 1, seed=5, noise=0.1)}
"""The parameters of `two_layers`, for what would take long with the network."""
IMAGE, OTHER_IMAGE = (jnp.asarray(normal((1, 8, 8, 4), seed)) for seed in (1, 2))


def two_layers(params, x):
    return conv(jax.nn.relu(conv(x, params["first"])), params["second"])


@cache
def substituted(**budget):
    """Returns a substitution of that network; many tests look at the same one."""
    return jaxcnn.substitute(F, PARAMS, X, **budget)


def row_of(result, name):
    return next(row for row in result.report.rows if row.name == name)


def verified(result, f=F, params=PARAMS, args=(X,)):
    """The substitution, of which the report's figures are checked."""
    report = result.report
    expected, actual = f(params, *args), result.apply(result.params, *args)
    assert relative_error(actual, expected) == pytest.approx(report.error, rel=1e-3, abs=1e-6)
    left = (
        jaxcnn.summarize(result.apply, result.params, *args).total.macs - jaxcnn.summarize(f, params, *args).total.macs
    )
    assert left == report.macs_after - report.macs_before
    chains = [leaf for leaf in jax.tree.leaves(result.params, is_leaf=is_chain) if is_chain(leaf)]
    assert len(chains) == sum(row.scheme != "dense" for row in report.rows)
    return result
