"""`tune`: which convolutions it finds, what it measures, and what it leaves alone."""

from __future__ import annotations

from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxcnn
from jaxcnn import timing
from jaxcnn.lowering import choice
from jaxcnn.lowering import tuning_table as table
from jaxcnn.lowering.methods import direct
from jaxcnn.transform import tuning

pytestmark = pytest.mark.optimized


X, KERNEL = np.ones((1, 8, 8, 8), np.float32), np.ones((3, 3, 8, 1), np.float32)


SHORT = 0.02


def network(kernels, x, flag=True, name=None, activation=jax.nn.relu, slope=2, power=1.0):
    # What is not an array arrives as it was given.
    assert flag is True
    assert name is None
    assert slope == 2
    assert type(slope) is int
    assert type(power) is float
    hidden = activation(jaxcnn.depthwise_conv(x, kernels["depthwise"]))
    hidden = jaxcnn.conv(hidden, kernels["dense"], strides=slope)
    return jaxcnn.depthwise_conv(hidden, kernels["depthwise"]), name


KERNELS = {"depthwise": KERNEL, "dense": np.ones((3, 3, 8, 8), np.float32)}


def roles(result):
    return sorted((entry.spec.role, entry.spec.feature_group_count) for entry in result.entries)


def test_each_distinct_convolution_is_found_once():
    tuned = jaxcnn.tune(network, KERNELS, X, True, None, jax.nn.relu, 2, 1.0, seconds=SHORT)
    assert roles(tuned) == [("output", 1), ("output", 8), ("output", 8)]  # on 8x8 and on 4x4
    repeated = jaxcnn.tune(lambda x: jaxcnn.depthwise_conv(jaxcnn.depthwise_conv(x, KERNEL), KERNEL), X, seconds=SHORT)
    assert len(repeated.entries) == 1


def test_convolutions_of_lax_are_found():
    def f(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8
        )

    (entry,) = jaxcnn.tune(f, X, np.ones((3, 3, 1, 8), np.float32), seconds=SHORT).entries
    assert entry.spec.strides == (2, 2)
    assert entry.spec.feature_group_count == 8


def test_derivatives_are_found_by_role():
    gradient = jax.value_and_grad(lambda kernels: network(kernels, X)[0].sum())
    expected = [(role, groups) for role in ("kernel", "output") for groups in (1, 8, 8)]
    assert roles(jaxcnn.tune(gradient, KERNELS, seconds=SHORT)) == sorted([*expected, ("input", 1), ("input", 8)])


def test_shapes_are_enough_and_nothing_is_run():
    def f(x, kernel):
        jax.debug.callback(lambda: ran.append(None))
        return jaxcnn.depthwise_conv(x, kernel)

    ran = []
    structs = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in (X, KERNEL)]
    (entry,) = jaxcnn.tune(f, *structs, seconds=SHORT).entries
    assert not ran
    assert entry.spec.input_shape == X.shape
    assert entry.spec.lhs_dtype == entry.spec.out_dtype == jnp.bfloat16


def test_scans_branches_stacks_and_integers():
    def f(x, kernels):
        y, _ = jax.lax.scan(lambda c, _: (jaxcnn.depthwise_conv(c, KERNEL), None), x, None, length=2)
        y = jax.lax.cond(x.sum() > 0, lambda v: jaxcnn.conv(v, KERNELS["dense"]), lambda v: v, y)
        return jax.vmap(jaxcnn.conv)(jnp.stack([y, y]), kernels)

    tuned = jaxcnn.tune(f, X, np.ones((2, 1, 1, 8, 8), np.float32), seconds=SHORT)
    assert [entry.spec.stacked for entry in tuned.entries] == [None, None, 2]
    integers = jaxcnn.tune(jaxcnn.conv, X.astype(np.int8), np.ones((3, 3, 8, 8), np.int8), seconds=SHORT)
    assert integers.entries[0].spec.out_dtype == np.int32


def test_what_needs_no_choice_is_left_out():
    assert jaxcnn.tune(lambda x: x + 1, X, seconds=SHORT).entries == ()
    asked = jaxcnn.tune(lambda x: jaxcnn.depthwise_conv(x, KERNEL, method="shift"), X, seconds=SHORT)
    assert asked.entries == ()
    assert jaxcnn.tune(jaxcnn.depthwise_conv, X[:0], KERNEL, seconds=SHORT).entries == ()


def test_a_table_that_is_active_does_not_hide_anything():
    first = jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT)
    with first:
        again = jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT)
        assert table.active_table() is first
    assert [entry.spec for entry in again.entries] == [entry.spec for entry in first.entries]


def test_an_error_of_the_function_is_passed_on():
    with pytest.raises(ValueError, match="conv: x has 7 channels"):
        jaxcnn.tune(jaxcnn.conv, X[..., :7], KERNEL, seconds=SHORT)
    assert table.active_table() is None
    with pytest.raises(TypeError, match="tune: f must be a function, got 3"):
        jaxcnn.tune(3, X)
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        jaxcnn.tune(jaxcnn.conv, X, KERNEL, seconds=0)


def test_every_method_is_measured_if_there_is_time_and_the_result_is_taken(monkeypatch):
    monkeypatch.setattr(timing, "MAX_ROUNDS", 3)
    tuned = jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=60)
    (entry,) = tuned.entries
    supporting = {name for name, module in choice.METHODS.items() if module.refusal(entry.spec) is None}
    assert {name for name, _ in entry.milliseconds} == supporting
    assert entry.method == tuning.fastest(dict(entry.milliseconds))
    with tuned:
        assert choice.choose(entry.spec, "auto", "cpu").method == entry.method
        np.testing.assert_allclose(jaxcnn.depthwise_conv(X, KERNEL)[0, 3, 3], 9, rtol=1e-5)


def test_direct_is_measured_as_it_is_computed_on_this_device(monkeypatch):
    lower, platforms = direct.lower, []

    def noted(lhs, rhs, spec):
        platforms.append(spec.platform)
        return lower(lhs, rhs, spec)

    monkeypatch.setattr(direct, "lower", noted)
    gradient = jax.grad(lambda kernel: jaxcnn.conv(X, kernel, strides=2).sum())
    (entry,) = jaxcnn.tune(gradient, KERNELS["dense"], seconds=SHORT).entries
    assert entry.spec.role == "kernel"
    assert platforms
    assert set(platforms) <= {None, jax.default_backend()}
    assert platforms[-1] == jax.default_backend()


def test_direct_is_kept_where_it_is_as_fast():
    assert tuning.fastest({"direct": 1.04, "shift": 1.0}) == "direct"
    assert tuning.fastest({"direct": 1.06, "shift": 1.0}) == "shift"
    assert tuning.fastest({"direct": 1.0}) == "direct"


def test_programs_that_take_absurdly_long_to_compile_are_not_measured(monkeypatch):
    monkeypatch.setattr(tuning, "_MAX_PROGRAM_EQUATIONS", 0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 3)
    (entry,) = jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=60).entries
    assert {name for name, _ in entry.milliseconds} == {"direct", choice.choose(entry.spec, "auto", "cpu").method}


def split_arrays(*spec):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    x = jax.device_put(np.ones((4, 8, 8, 8), np.float32), NamedSharding(mesh, PartitionSpec(*spec)))
    return x, np.ones((3, 3, 8, 4), np.float32)


@pytest.mark.parametrize(
    ("spec", "shape"), [(("a",), (1, 8, 8, 8)), ((None, "a"), (4, 4, 8, 8))], ids=["batch", "rows"]
)
def test_of_split_arrays_the_parts_are_measured(spec, shape):
    tuned = jaxcnn.tune(jaxcnn.conv, *split_arrays(*spec), seconds=SHORT)
    assert [entry.spec.input_shape for entry in tuned.entries] == [shape]  # rows come with a neighbour's on each side


@pytest.mark.parametrize("installed", [False, True])
def test_a_table_of_one_device_serves_several(installed):
    x, kernel = split_arrays("a")
    (entry,) = jaxcnn.tune(jaxcnn.conv, np.asarray(x)[:1], kernel, seconds=SHORT).entries
    parts = table.Recorder()
    with table.table_context(parts):
        jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel) + 1).lower(x, kernel).compile()
    assert list(parts.specs) == [entry.spec]
    names = "cpu", table.device_kind(jax.devices()[0]), metadata.version("jaxlib")
    tables = {
        method: table.TuningTable((table.Measurement(entry.spec, method, (("direct", 1.0),)),), *names)
        for method in ("fft", "direct")
    }
    programs = {}
    for method, of_method in tables.items():
        lowered = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel) * 2).lower
        if installed:
            of_method.install()
            programs[method] = lowered(x, kernel).compile().as_text()
            of_method.uninstall()
        else:
            with of_method:
                programs[method] = lowered(x, kernel).compile().as_text()
    assert "fft(" in programs["fft"]
    assert "fft(" not in programs["direct"]
