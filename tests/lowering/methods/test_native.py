"""The compiled kernels: values in every role, threads, transformations, and what is left to XLA's forms."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxcnn
from jaxcnn import native as library
from jaxcnn.lowering import choice
from jaxcnn.lowering.methods import native
from jaxcnn.lowering.spec import ConvSpec
from support import oracles
from support.arrays import assert_close, integers, jax_normal, normal, relative_error
from support.methods import roles

needs_library = pytest.mark.skipif(not library.is_available(), reason=f"needs the compiled library: {library.status()}")

ROOT = Path(__file__).parents[2]
ROLES = ("output", "input", "kernel")
EPSILON = float(np.finfo(np.float32).eps)


def float32_specs(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], **options: object) -> list[ConvSpec]:
    """Returns the three roles of a convolution of float32."""
    float32 = dict.fromkeys(("lhs_dtype", "rhs_dtype", "out_dtype"), np.dtype(np.float32))
    return [dataclasses.replace(spec, **float32) for spec, _, _ in roles(x_shape, kernel_shape, **options)]


def assert_values(specs: list[ConvSpec], seed: int = 0) -> None:
    """The results equal those of plain loops in float64, within epsilons of the sum of the products' magnitudes."""
    operands = [[normal(shape, seed + n) for n, shape in enumerate(spec.operand_shapes)] for spec in specs]
    assert [native.refusal(spec) for spec in specs] == [None] * len(specs)
    results = jax.jit(lambda pairs: [native.lower(*pair, spec) for spec, pair in zip(specs, pairs, strict=True)])(
        operands
    )
    for spec, (lhs, rhs), result in zip(specs, operands, results, strict=True):
        exact = oracles.trilinear(spec, lhs.astype(np.float64), rhs.astype(np.float64))
        sums = oracles.trilinear(spec, abs(lhs).astype(np.float64), abs(rhs).astype(np.float64))
        assert (result.shape, result.dtype) == (spec.result_shape, np.float32)
        assert np.all(abs(np.asarray(result, np.float64) - exact) <= 4 * EPSILON * sums), spec


# Shape of the image, shape of the kernel, and the options that differ from stride 1 and no padding.
SHAPES = {
    "dense": ((2, 9, 11, 32), (3, 3, 32, 48), {"padding": ((1, 1), (1, 1))}),
    "prime channels": ((1, 10, 7, 13), (3, 2, 13, 19), {}),
    "one channel in and out": ((2, 9, 8, 1), (3, 3, 1, 1), {}),
    "one channel in": ((1, 9, 8, 1), (5, 5, 1, 37), {"padding": ((2, 2), (2, 2))}),
    "one channel out": ((1, 9, 8, 37), (3, 3, 37, 1), {}),
    "many channels": ((1, 5, 5, 401), (3, 3, 401, 7), {"padding": ((1, 1), (1, 1))}),
    "pointwise": ((2, 7, 9, 67), (1, 1, 67, 130), {}),
    "pointwise, strided": ((2, 7, 9, 16), (1, 1, 16, 24), {"strides": (2, 3)}),
    "row": ((1, 6, 20, 24), (1, 11, 24, 40), {"padding": ((0, 0), (5, 5))}),
    "column": ((1, 20, 6, 24), (11, 1, 24, 40), {"padding": ((5, 5), (0, 0))}),
    "strided": ((2, 11, 14, 17), (3, 4, 17, 33), {"strides": (2, 3), "padding": ((1, 0), (2, 1))}),
    "strides beyond the window": ((1, 17, 19, 6), (2, 3, 6, 8), {"strides": (5, 7)}),
    "dilated": ((1, 15, 14, 9), (3, 3, 9, 16), {"kernel_dilation": (2, 3), "padding": ((2, 2), (3, 3))}),
    "dilated and strided": ((1, 15, 14, 9), (3, 2, 9, 8), {"kernel_dilation": (3, 2), "strides": (2, 3)}),
    "padding beyond the window": ((1, 4, 5, 8), (3, 3, 8, 8), {"padding": ((7, 5), (4, 9))}),
    "padding at one end": ((1, 6, 5, 8), (3, 3, 8, 16), {"padding": ((0, 4), (6, 0))}),
    "window as large as the image": ((3, 7, 6, 20), (7, 6, 20, 35), {}),
    "window larger than the image": ((2, 3, 2, 20), (5, 7, 20, 9), {"padding": ((2, 2), (3, 4))}),
    "one pixel": ((2, 1, 1, 5), (1, 1, 5, 3), {}),
    "groups of 1 to 2": ((1, 9, 8, 20), (3, 3, 1, 40), {"feature_group_count": 20, "padding": ((1, 1), (1, 1))}),
    "groups of 2": ((2, 9, 8, 14), (3, 3, 2, 14), {"feature_group_count": 7}),
    "groups of 3 to 5": ((1, 8, 8, 12), (3, 2, 3, 20), {"feature_group_count": 4}),
    "groups of 4": ((1, 9, 8, 128), (3, 3, 4, 128), {"feature_group_count": 32, "padding": ((1, 1), (1, 1))}),
    "groups of 8, strided": ((1, 9, 9, 64), (3, 3, 8, 64), {"feature_group_count": 8, "strides": (2, 2)}),
    "groups of 17": ((1, 8, 8, 34), (3, 3, 17, 42), {"feature_group_count": 2, "padding": ((1, 1), (1, 1))}),
    "groups of 64": ((1, 7, 7, 128), (3, 3, 64, 160), {"feature_group_count": 2}),
    "grouped, pointwise": ((2, 5, 5, 24), (1, 1, 6, 36), {"feature_group_count": 4}),
    "depthwise": ((2, 12, 13, 48), (3, 3, 1, 48), {"feature_group_count": 48, "padding": ((1, 1), (1, 1))}),
    "depthwise, prime": ((1, 12, 13, 23), (5, 4, 1, 23), {"feature_group_count": 23, "padding": ((2, 2), (1, 2))}),
    "depthwise, strided": ((1, 15, 14, 40), (5, 5, 1, 40), {"feature_group_count": 40, "strides": (2, 3)}),
    "depthwise, dilated": ((1, 15, 14, 16), (3, 3, 1, 16), {"feature_group_count": 16, "kernel_dilation": (3, 2)}),
    "depthwise, large": ((1, 20, 21, 33), (17, 19, 1, 33), {"feature_group_count": 33, "padding": ((8, 8), (9, 9))}),
    "depthwise, times three": ((1, 8, 9, 11), (3, 3, 1, 33), {"feature_group_count": 11}),
    "image filter": ((1, 16, 17, 3), (5, 5, 1, 3), {"feature_group_count": 3, "padding": ((2, 2), (2, 2))}),
    "1-D": ((3, 41, 19), (5, 19, 23), {"strides": (2,), "padding": ((2, 3),)}),
    "1-D, depthwise": ((2, 41, 29), (7, 1, 29), {"feature_group_count": 29, "padding": ((6, 0),)}),
    "1-D, as long as the image": ((1, 64, 5), (64, 5, 7), {"padding": ((31, 32),)}),
    "3-D": ((1, 5, 6, 7, 10), (3, 2, 3, 10, 17), {"padding": ((1, 1), (0, 1), (1, 1)), "strides": (1, 2, 1)}),
    "3-D, depthwise": ((1, 5, 6, 7, 18), (3, 3, 3, 1, 18), {"feature_group_count": 18, "padding": ((1, 1),) * 3}),
    "3-D, grouped": ((1, 4, 6, 5, 12), (2, 3, 2, 3, 16), {"feature_group_count": 4, "kernel_dilation": (1, 2, 1)}),
}


@needs_library
@pytest.mark.parametrize("name", SHAPES)
def test_values_in_every_role(name):
    x_shape, kernel_shape, options = SHAPES[name]
    assert_values(float32_specs(x_shape, kernel_shape, **options))


def drawn(seed: int) -> list[ConvSpec]:
    """Returns the three roles of a convolution of any options."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))

    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high + 1, rank).tolist())

    groups, kernel_in, kernel_out = (
        int(rng.choice(sizes)) for sizes in ([1, 1, 2, 5, 16, 24], [1, 2, 4, 7], [1, 3, 8])
    )
    if groups == 1:
        kernel_in, kernel_out = int(rng.integers(1, 70)), int(rng.integers(1, 70))
    window, dilation = ints(1, 4), ints(1, 2)
    extents = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
    padding = tuple(tuple(rng.integers(0, n + 3, 2).tolist()) for n in extents)
    size = tuple(max(int(rng.integers(1, 9)), n - low - high) for n, (low, high) in zip(extents, padding, strict=True))
    return float32_specs(
        (int(rng.integers(1, 4)), *size, groups * kernel_in),
        (*window, kernel_in, groups * kernel_out),
        strides=ints(1, 4),
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )


@needs_library
@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(16, 256, 16))])
def test_values_of_drawn_convolutions(first):
    for seed in range(first, first + 16):
        assert_values(drawn(seed), seed)


# Threads.

PROGRAM = """
import hashlib, json, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import jax, numpy as np
from jaxcnn.lowering.methods import native
from jaxcnn.lowering.spec import spec_from_plain
digests = []
for plain in json.load(sys.stdin):
    spec = spec_from_plain(plain)
    assert native.refusal(spec) is None
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.standard_normal(shape).astype(np.float32) for shape in spec.operand_shapes)
    result = jax.jit(lambda a, b: native.lower(a, b, spec))(lhs, rhs)
    digests.append(hashlib.sha256(np.asarray(result).tobytes()).hexdigest())
print(json.dumps([len(os.sched_getaffinity(0)), digests]))
"""

LAYERS = [
    ((2, 40, 40, 64), (3, 3, 64, 64), {"padding": ((1, 1), (1, 1))}),
    ((1, 56, 56, 96), (7, 7, 1, 96), {"padding": ((3, 3), (3, 3)), "feature_group_count": 96}),
    ((4, 28, 28, 128), (3, 3, 4, 128), {"padding": ((1, 1), (1, 1)), "feature_group_count": 32}),
    ((2, 28, 28, 128), (1, 1, 128, 96), {}),
    ((1, 64, 64, 3), (7, 7, 3, 32), {"strides": (2, 2), "padding": ((3, 3), (3, 3))}),
]


@needs_library
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="needs two processors")
def test_one_thread_and_two_give_the_same_bits():
    from jaxcnn.lowering.spec import spec_to_plain

    specs = [spec_to_plain(spec) for layer in LAYERS for spec in float32_specs(layer[0], layer[1], **layer[2])]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    digests = {}
    for threads in (1, 2):
        command = [sys.executable, "-c", PROGRAM, str(threads)]
        run = subprocess.run(
            command, env=environment, input=json.dumps(specs), capture_output=True, text=True, check=True
        )
        processors, digests[threads] = json.loads(run.stdout)
        assert processors == threads
    assert digests[1] == digests[2]
    assert len(set(digests[1])) == len(specs)


@needs_library
def test_concurrent_callers():
    calls = {}
    for layer in LAYERS:
        for spec in float32_specs(layer[0], layer[1], **layer[2]):
            lhs, rhs = (jax_normal(shape, n) for n, shape in enumerate(spec.operand_shapes))
            call = partial(jax.jit(partial(native.lower, spec=spec)), lhs, rhs)
            calls[spec] = call, np.asarray(call())
    differences = []
    barrier = threading.Barrier(4)

    def caller(order: int) -> None:
        barrier.wait()
        pairs = list(calls.values())
        for call, expected in pairs[order:] + pairs[:order]:
            if not np.array_equal(call(), expected):
                differences.append(order)

    threads = [threading.Thread(target=caller, args=(3 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == []


# Transformations. Every function below goes through `auto`, and each test sees that kernels are called.

X, KERNEL, DEPTHWISE = (
    jax_normal((2, 9, 8, 16), 0),
    jax_normal((3, 3, 16, 16), 1) / 12,
    jax_normal((3, 3, 1, 16), 2) / 3,
)


def network(x, kernel, depthwise, method="native"):
    y = jaxcnn.conv(x, kernel, method=method)
    return jaxcnn.conv(jnp.tanh(y), depthwise, feature_group_count=16, method=method)


reference = partial(network, method="direct")


def kernels_called(function, *args) -> int:
    return jax.jit(function).lower(*args).as_text().count("custom_call @jaxcnn_")


@needs_library
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_padding_times_a_kernel_that_is_not_finite(value):
    # The first row of a kernel of 3 rows meets nothing but zeros in the first row of the output.
    spec = float32_specs((1, 30, 30, 16), (3, 3, 16, 20), padding=((1, 1), (1, 1)))[0]
    x, kernel = jax_normal(spec.input_shape), jax_normal(spec.kernel_shape, 1).at[0, 1, 3, 5].set(value)
    assert np.isfinite(np.asarray(native.lower(x, kernel.at[0, 1, 3, 5].set(0), spec))).all()
    first_row = np.asarray(native.lower(x, kernel, spec))[0, 0]
    assert np.isnan(first_row[:, 5]).all()
    assert np.isfinite(np.delete(first_row, 5, axis=-1)).all()


@needs_library
def test_derivatives():
    def loss(function, *args):
        return (function(*args) ** 2).sum()

    gradient = jax.grad(partial(loss, network), (0, 1, 2))
    assert kernels_called(network, X, KERNEL, DEPTHWISE) == 2
    assert kernels_called(gradient, X, KERNEL, DEPTHWISE) == 6
    expected = jax.jit(jax.grad(partial(loss, reference), (0, 1, 2)))(X, KERNEL, DEPTHWISE)
    assert relative_error(jax.jit(gradient)(X, KERNEL, DEPTHWISE), expected) < 1e-5
    primals = X, KERNEL, DEPTHWISE
    tangents = tuple(jax_normal(a.shape, 3 + n) for n, a in enumerate(primals))
    forward = [jax.jit(lambda p, t, f=f: jax.jvp(f, p, t))(primals, tangents) for f in (network, reference)]
    assert relative_error(*forward) < 1e-5
    small = X[:1, :4, :3], KERNEL, DEPTHWISE
    check_grads(jax.jit(network), small, order=2, modes=("fwd", "rev"), atol=3e-2, rtol=3e-2)


def second_derivative(function):
    return jax.jit(jax.grad(lambda x: (jax.grad(lambda x: (function(x, KERNEL, DEPTHWISE) ** 3).sum())(x) ** 2).sum()))


@needs_library
def test_second_order():
    assert kernels_called(second_derivative(network), X) >= 6
    assert relative_error(second_derivative(network)(X), second_derivative(reference)(X)) < 1e-5


@needs_library
@pytest.mark.parametrize(
    ("axes", "count"), [((0, None, None), 2), ((None, 0, None), 1), ((0, 0, 0), 0), ((0, None, 0), 1)]
)
def test_vmap(axes, count):
    stacked = [
        a if axis is None else jnp.stack([a, 2 * a, -a]) for a, axis in zip((X, KERNEL, DEPTHWISE), axes, strict=True)
    ]
    mapped, expected = (jax.vmap(f, in_axes=axes) for f in (network, reference))
    assert kernels_called(mapped, *stacked) >= count
    assert relative_error(jax.jit(mapped)(*stacked), jax.jit(expected)(*stacked)) < 1e-5


@needs_library
def test_inside_loops():
    def scanned(function):
        return lambda x: jax.lax.scan(lambda x, _: (function(x, KERNEL, DEPTHWISE), x.sum()), x, None, length=3)

    def repeated(function):
        return lambda x: jax.lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, function(s[1], KERNEL, DEPTHWISE)), (0, x)
        )

    for loop in (scanned, repeated):
        assert kernels_called(loop(network), X) == 2
        assert relative_error(jax.jit(loop(network))(X), jax.jit(loop(reference))(X)) < 1e-5


@needs_library
def test_donated_buffers():
    expected = np.asarray(reference(X, KERNEL, DEPTHWISE))
    for _ in range(3):
        x, kernel = X + 0, KERNEL + 0
        result = jax.jit(network, donate_argnums=0)(x, kernel, DEPTHWISE)
        assert x.is_deleted()
        assert_close(result, expected, 1e-5)


@needs_library
def test_without_jit():
    expected = network(X, KERNEL, DEPTHWISE)
    with jax.disable_jit():
        assert_close(network(X, KERNEL, DEPTHWISE), expected, 1e-6)


@needs_library
def test_each_device_of_a_shard_map_calls_kernels():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.concatenate([X, 2 * X])

    def step(function, x, kernel, depthwise):
        gradients = jax.grad(lambda k, d: (function(x, k, d) ** 2).sum(), (0, 1))(kernel, depthwise)
        return function(x, kernel, depthwise), gradients

    def mapped(x, kernel, depthwise):
        local = partial(step, network)
        return jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=(P("d"), P()))(
            x, kernel, depthwise
        )

    assert kernels_called(mapped, x, KERNEL, DEPTHWISE) >= 4
    y, gradients = jax.jit(mapped)(x, KERNEL, DEPTHWISE)
    expected, summed = step(reference, x, KERNEL, DEPTHWISE)
    assert_close(y, expected, 1e-5)
    assert relative_error(gradients, summed) < 1e-5


# What is left to XLA's forms.


@needs_library
def test_a_partitioned_program_calls_none():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.concatenate([X, X]), NamedSharding(mesh, P("d")))
    kernels = [jax.device_put(kernel, NamedSharding(mesh, P())) for kernel in (KERNEL, DEPTHWISE)]
    assert kernels_called(network, X, KERNEL, DEPTHWISE) == 2
    assert kernels_called(network, x, *kernels) == 0
    result = jax.jit(network)(x, *kernels)
    assert len(result.sharding.device_set) == 4
    assert_close(result[:2], reference(X, KERNEL, DEPTHWISE), 1e-5)


@needs_library
def test_an_exported_program_calls_none():
    exported = jax.export.export(jax.jit(network))(X, KERNEL, DEPTHWISE)
    assert "custom_call @jaxcnn_" not in exported.mlir_module()
    assert_close(exported.call(X, KERNEL, DEPTHWISE), reference(X, KERNEL, DEPTHWISE), 1e-5)


@needs_library
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "int8"])
def test_another_dtype_is_left_to_a_form_and_the_summary_says_why(dtype):
    x, kernel = integers((1, 6, 6, 16), 0, dtype=jnp.dtype(dtype)), integers((3, 3, 16, 16), 1, dtype=jnp.dtype(dtype))
    (row,) = jaxcnn.summarize(jaxcnn.conv, x, kernel).rows
    assert row.method != "native"
    assert f"no compiled kernel: its operands are {dtype} and {dtype}" in row.reason
    assert kernels_called(jaxcnn.conv, x, kernel) == 0
    np.testing.assert_array_equal(jaxcnn.conv(x, kernel), jaxcnn.conv(x, kernel, method="direct"))


@needs_library
def test_float64_is_left_to_a_form(x64):
    x, kernel = normal((1, 6, 6, 16), 0, np.float64), normal((3, 3, 16, 16), 1, np.float64)
    (row,) = jaxcnn.summarize(jaxcnn.conv, x, kernel).rows
    assert row.method != "native"
    assert "no compiled kernel: its operands are float64 and float64" in row.reason
    assert jaxcnn.conv(x, kernel).dtype == np.float64


@needs_library
def test_forced_where_it_does_not_go():
    with pytest.raises(ValueError, match=r"conv: method 'native' does not support .* bfloat16 .* not float32"):
        jaxcnn.conv(X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), method="native")
    with pytest.raises(ValueError, match=r"method 'native' .* 4 spatial axes, more than 3"):
        jaxcnn.conv(jnp.ones((1, 3, 3, 3, 3, 1)), jnp.ones((2, 2, 2, 2, 1, 1)), method="native")


@pytest.mark.without_native
def test_forced_without_the_library_says_that_there_is_none():
    with pytest.raises(ValueError, match=r"conv: method 'native' does not support .*: native kernels: no: "):
        jaxcnn.conv(X, KERNEL, method="native")
    with pytest.raises(ValueError, match=r"conv_transpose: method 'native' does not .*: native kernels: no: "):
        jaxcnn.conv_transpose(X, KERNEL, method="native")
    assert kernels_called(partial(network, method="auto"), X, KERNEL, DEPTHWISE) == 0
    for spec in float32_specs((1, 9, 8, 16), (3, 3, 16, 16)):
        assert choice.choose(spec, "auto", "cpu").method != "native"


@needs_library
def test_forced():
    for forced in (X, X[..., :3]):
        kernel = jax_normal((3, 3, forced.shape[-1], 1), 4)
        f = partial(jaxcnn.depthwise_conv, strides=2, method="native")
        assert kernels_called(f, forced, kernel) == 1
        assert_close(f(forced, kernel), jaxcnn.depthwise_conv(forced, kernel, strides=2, method="direct"), 1e-5)


@needs_library
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "groups"), [((1, 130, 129, 3), (3, 3, 3, 8), 1), ((2, 70, 71, 20), (3, 5, 1, 20), 20)]
)
def test_the_kernel_gradient_of_a_large_image_is_a_sum_of_parts(x_shape, kernel_shape, groups):
    # Enough pixels, and few enough channels, that the pixels are divided into parts that are summed up at the end.
    x, kernel = jax_normal(x_shape, 0), jax_normal(kernel_shape, 1)
    y = jax_normal(jaxcnn.conv(x, kernel, feature_group_count=groups).shape, 2)

    def gradient(method):
        f = partial(jaxcnn.conv, x, feature_group_count=groups, method=method)
        return jax.linear_transpose(f, kernel)(y)[0]

    assert_close(gradient("native"), gradient("direct"), 2e-5)
