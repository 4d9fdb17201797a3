"""Summaries of programs over several devices: each device's part, and what it receives."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn.transform.summary.shards import received_bytes

FLOAT_BYTES = 4
ROW = 2 * 8 * 4 * FLOAT_BYTES
"""Bytes of a row of the image."""


def sharded(shape, *spec, kind=AxisType.Auto):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(kind,))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def network(x, kernel):
    return jaxcnn.max_pool(jax.nn.relu(jaxcnn.conv(x, kernel)), 2, strides=2)


KERNEL = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)


def test_each_row_has_the_part_of_a_device():
    summary = jaxcnn.summarize(network, sharded((2, 32, 8, 4), None, "a"), KERNEL)
    conv, pool = (row.shards for row in summary.rows)
    assert [(shard.input_shape, shard.output_shape) for shard in conv] == [((2, 8, 8, 4), (2, 8, 8, 4))]
    assert [shard.received for shard in conv] == [(("collective-permute", ROW),) * 2]
    assert [(shard.output_shape, shard.received) for shard in pool] == [((2, 4, 4, 4), ())]
    assert [row.method for row in summary.rows] == [shard.method for (shard,) in (conv, pool)]
    assert summary.rows[0].output_shape == (2, 32, 8, 4)
    assert summary.received == (("collective-permute", ROW),) * 2
    text = str(summary)
    assert "2x8x8x4" in text
    assert "each device receives 2 collective-permute (512 B)" in text
    assert json.loads(summary.to_json())["rows"][0]["shards"][0]["output_shape"] == [2, 8, 8, 4]


def test_the_gradient_of_a_kernel_is_one_sum():
    def loss(kernel, x):
        return (network(x, kernel) ** 2).sum()

    summary = jaxcnn.summarize(jax.grad(loss), KERNEL, sharded((4, 8, 8, 4), "a"))
    (gradient,) = (row for row in summary.rows if row.kind == "kernel gradient")
    (shard,) = gradient.shards
    assert shard.received == (("all-reduce", 3 * 3 * 4 * 4 * FLOAT_BYTES),)
    assert shard.input_shape == (1, 8, 8, 4)


def test_one_operation_that_is_split_in_two_ways_has_two_parts():
    def f(x, y, kernel):
        return jaxcnn.conv(x, kernel), jaxcnn.conv(y, kernel)

    by_batch, by_rows = sharded((4, 8, 8, 4), "a"), sharded((4, 8, 8, 4), None, "a")
    rows = jaxcnn.summarize(f, by_batch, by_rows, KERNEL).rows
    for row in rows:
        assert {shard.output_shape for shard in row.shards} == {(1, 8, 8, 4), (4, 2, 8, 4)}
    assert " or " in str(jaxcnn.summarize(f, by_batch, by_rows, KERNEL))


def test_arrays_of_one_device_have_no_parts(compilations):
    summary = jaxcnn.summarize(network, jax.ShapeDtypeStruct((2, 32, 8, 4), jnp.float32), KERNEL)
    assert not any(row.shards for row in summary.rows)
    assert summary.received == ()
    assert not compilations[0]


def test_operations_of_lax_have_no_parts_but_are_counted():
    def f(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    summary = jaxcnn.summarize(f, sharded((2, 32, 8, 4), None, "a"), KERNEL)
    assert summary.rows[0].shards == ()
    assert summary.received


@pytest.mark.parametrize(
    ("line", "received"),
    [
        ("%a = f32[8,1,16,8]{3,2,1,0} collective-permute(%b), channel_id=5", (("collective-permute", 4096),)),
        ("%a = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%b, %c)", (("all-reduce", 28),)),
        ("%a = (f32[4], f32[4]) all-gather-start(%b)\n%c = f32[8]{0} all-gather-done(%a)", (("all-gather", 32),)),
        ("%a = pred[7]{0} all-to-all(%b)\n%s = f32[] all-reduce(%d)", (("all-reduce", 4), ("all-to-all", 7))),
        ("%a = f32[8] add(%b, %all-reduce)", ()),
    ],
)
def test_bytes_are_those_of_the_results(line, received):
    assert received_bytes(line) == received


@pytest.mark.parametrize("transform", [jaxcnn.summarize, jaxcnn.tune])
def test_a_mesh_without_devices_is_refused(transform):
    mesh = jax.sharding.AbstractMesh((4,), ("a",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((4, 8, 8, 4), jnp.float32, sharding=NamedSharding(mesh, P("a")))
    with pytest.raises(ValueError, match=rf"^{transform.__name__}: an argument is split over .*, which has no devices"):
        transform(jaxcnn.conv, x, KERNEL)
