"""The walk of a summary: what runs in loops and branches, and which weights are the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn import accelerate, summarize
from support import architectures


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_scan_multiplies_and_its_weights_are_counted_once_or_for_each_step():
    def shared(x, kernel):
        return lax.scan(lambda x, _: (jaxcnn.conv(x, kernel), None), x, length=5)[0]

    def stacked(x, kernels):
        return lax.scan(lambda x, k: (jaxcnn.conv(x, k), None), x, kernels)[0]

    one = jaxcnn.conv_cost((1, 8, 8, 2), (3, 3, 2, 2))
    (row,) = summarize(shared, shape(1, 8, 8, 2), shape(3, 3, 2, 2)).rows
    assert (row.count, row.cost.macs, row.cost.params) == (5, 5 * one.macs, one.params)
    assert row.receptive_field.size == (11, 11)
    (row,) = summarize(stacked, shape(1, 8, 8, 2), shape(5, 3, 3, 2, 2)).rows
    assert (row.cost.macs, row.cost.params) == (5 * one.macs, 5 * one.params)


SHARED = {
    "twice": lambda x, w: jaxcnn.conv(jaxcnn.conv(x, w), w),
    "in loops": lambda x, w: lax.fori_loop(0, 3, lambda _, x: jaxcnn.conv(x, w), jaxcnn.conv(x, w)),
    "in jitted functions": lambda x, w: jax.jit(jaxcnn.conv)(jax.jit(lambda x: jaxcnn.conv(x, w))(x), w),
    "transposed": lambda x, w: jaxcnn.conv_transpose(jaxcnn.conv(x, w), w),
    "scaled, cast and moved": lambda x, w: lax.conv(
        jnp.moveaxis(jaxcnn.conv(x, w / jnp.linalg.norm(w)), 3, 1),
        jnp.transpose(w, (3, 2, 0, 1)).astype(np.float16).astype(np.float32),
        (1, 1),
        "SAME",
    ),
    "gradient": jax.grad(lambda x, w: jnp.sum(jaxcnn.conv(x, w) ** 2), (0, 1)),
    "accelerated": accelerate(jax.grad(lambda x, w: jnp.sum(jaxcnn.conv(jaxcnn.conv(x, w), w) ** 2), (0, 1))),
    "carried": lambda x, w: lax.scan(lambda c, _: ((jaxcnn.conv(*c), c[1]), None), (jaxcnn.conv(x, w), w), length=2)[0],
}


@pytest.mark.parametrize("name", SHARED)
def test_a_weight_that_is_used_often_is_counted_once(name):
    x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 2))
    for f, arguments in ((SHARED[name], (x, kernel)), (lambda x: SHARED[name](x, kernel), (x,))):
        summary = summarize(f, *arguments)
        assert [row.cost.params for row in summary.rows] == [36] + [0] * (len(summary.rows) - 1)
        assert summary.total.params == 36


def test_a_product_that_is_used_twice_is_counted_once():
    tied = summarize(lambda x, w: jnp.tanh(x @ w) @ w.T, shape(4, 3), shape(3, 5))
    assert [row.cost.params for row in tied.rows] == [15, 0]


def test_weights_that_are_not_the_same_are_each_counted():
    x, kernels = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 3, 2, 2))

    def drawn(x, key):
        for index in range(3):
            x = jaxcnn.conv(x, jax.random.normal(jax.random.fold_in(key, index), (3, 3, 2, 2)))
        return x

    def sliced(x, kernels):
        for kernel in (kernels[0], kernels[1], kernels[2], kernels[1]):
            x = jaxcnn.conv(x, kernel)
        return x

    def picked(x, kernels):
        return lax.fori_loop(0, 1, lambda i, x: jaxcnn.conv(jaxcnn.conv(x, kernels[i]), kernels[i + 1]), x)

    assert summarize(sliced, x, kernels).total.params == 3 * 36
    assert summarize(picked, x, kernels).total.params == 2 * 36
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert summarize(drawn, x, key).total.params == 3 * 36
    ones = summarize(lambda x: jaxcnn.conv(jaxcnn.conv(x, jnp.ones((3, 3, 2, 2))), jnp.ones((3, 3, 2, 2))), x)
    assert ones.total.params == 2 * 36


def test_cond_counts_the_most_expensive_branch_and_while_its_body_once():
    kernel = jnp.ones((3, 3, 1, 1))

    def branched(flag, x):
        return lax.cond(
            flag, lambda x: jaxcnn.conv(x, kernel), lambda x: jaxcnn.conv(jaxcnn.conv(x, kernel), kernel), x
        )

    summary = summarize(branched, shape(dtype=np.bool_), shape(1, 8, 8, 1))
    assert len(summary.rows) == 2
    assert summary.notes == ("cond at the top: the branch with the most MACs is counted",)

    def looped(n, x):
        with jax.named_scope("loop"):
            return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jaxcnn.conv(s[1], kernel)), (0, x))[1]

    summary = summarize(looped, shape(dtype=np.int32), shape(1, 8, 8, 1))
    assert len(summary.rows) == 1
    assert summary.notes == ("while at loop: its body is counted once",)


def test_names_and_source_lines():
    @jax.jit
    def f(x, kernel):
        with jax.named_scope("stem"):
            x = jaxcnn.conv(x, kernel)

        def body(x, _):
            with jax.named_scope("block"):
                return architectures.conv(lambda _: kernel, x, 1, 3), None

        with jax.named_scope("body"):
            return lax.scan(body, x, length=2)[0]

    for g in (f, accelerate(f)):
        rows = summarize(g, shape(1, 8, 8, 1), shape(3, 3, 1, 1)).rows
        assert [row.name for row in rows] == ["stem", "body/block"]
        assert "architectures.py" in rows[1].source
