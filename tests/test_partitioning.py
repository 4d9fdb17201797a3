"""Programs over several devices: one device's values, and no more communication than the algebra needs."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn.partitioning import Split, Window, _image_of_outputs, _outputs_that_reach
from support.arrays import normal

FLOAT_BYTES = 4
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
KINDS = ("Auto", "Explicit")


def mesh_of(kind, *sizes):
    """A mesh with axes a, b, ... of four devices or fewer, and the context in which its arrays are used."""
    names = "ab"[: len(sizes)]
    mesh = jax.make_mesh(sizes, tuple(names), axis_types=(getattr(AxisType, kind),) * len(sizes))
    return mesh, jax.set_mesh(mesh) if kind == "Explicit" else contextlib.nullcontext()


def moved_bytes(function, *args):
    """Bytes of the results of each kind of collective on one device, in the compiled program."""
    text = jax.jit(function).lower(*args).compile().as_text()
    moved = {}
    for kind in COLLECTIVES:
        for shape in re.findall(rf"= (\S+?)(?:\{{[^}}]*\}})? {kind}(?:-start)?\(", text):
            for sizes in re.findall(r"\w\d+\[([\d,]*)\]", shape):
                moved[kind] = moved.get(kind, 0) + FLOAT_BYTES * int(np.prod([int(n) for n in sizes.split(",") if n]))
    return moved


def depthwise(x, kernel, **options):
    return jaxcnn.conv(x, kernel, feature_group_count=x.shape[-1], **options)


def grouped(x, kernel):
    return jaxcnn.conv(x, kernel, feature_group_count=4)


def transposed(x, kernel):
    return jaxcnn.conv_transpose(x, kernel, strides=2)


def kernel_gradient(function):
    return lambda x, kernel: jax.grad(lambda kernel: (function(x, kernel) ** 2).sum())(kernel)


def image_gradient(function):
    return lambda x, *rest: jax.grad(lambda x: (function(x, *rest) ** 2).sum())(x)


def max_pool(x):
    return jaxcnn.max_pool(x, 3, padding="SAME")


def halo(*shape):
    """Bytes of some rows of an image from each of two sides."""
    return {"collective-permute": 2 * FLOAT_BYTES * int(np.prod(shape))}


def max_pool_5(x):
    return jaxcnn.max_pool(x, 5, padding="SAME")


BATCH, ROWS, COLUMNS, CHANNELS = P("a"), P(None, "a"), P(None, None, "a"), P(None, None, None, "a")
X = (4, 16, 8, 16)
LAYERS = {
    # name: (function, shapes, sharding of the image, sharding of the kernel, bytes that may move)
    "1x1, batch": (jaxcnn.conv, (X, (1, 1, 16, 8)), BATCH, P(), {}),
    "1x1, rows": (jaxcnn.conv, (X, (1, 1, 16, 8)), ROWS, P(), {}),
    "1x1, columns": (jaxcnn.conv, (X, (1, 1, 16, 8)), COLUMNS, P(), {}),
    "3x3, batch": (jaxcnn.conv, (X, (3, 3, 16, 8)), BATCH, P(), {}),
    "3x3, rows": (jaxcnn.conv, (X, (3, 3, 16, 8)), ROWS, P(), halo(4, 8, 16)),
    "3x3, channels of the result": (jaxcnn.conv, (X, (3, 3, 16, 8)), P(), CHANNELS, {}),
    "3x3, channels that are summed up": (
        *(jaxcnn.conv, (X, (3, 3, 16, 8)), CHANNELS, P(None, None, "a")),
        {"all-reduce": 4 * 16 * 8 * 8 * FLOAT_BYTES},
    ),
    "gradient by the image of 3x3, channels of the result": (
        *(image_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), P(), CHANNELS),
        {"all-reduce": 4 * 16 * 8 * 16 * FLOAT_BYTES},
    ),
    "gradient by the kernel of 3x3, channels of the result": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), P(), CHANNELS, {}),
    ),
    # The result, of which the derivative is, is summed up; the gradients are not.
    "gradient by the image of 3x3, channels that are summed up": (
        *(image_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), CHANNELS, P(None, None, "a")),
        {"all-reduce": 4 * 16 * 8 * 8 * FLOAT_BYTES},
    ),
    "gradient by the kernel of 3x3, channels that are summed up": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), CHANNELS, P(None, None, "a")),
        {"all-reduce": 4 * 16 * 8 * 8 * FLOAT_BYTES},
    ),
    "gradient by the image of 3x3, batch": (image_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), BATCH, P(), {}),
    "gradient by the kernel of 3x3, batch": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), BATCH, P()),
        {"all-reduce": 9 * 16 * 8 * FLOAT_BYTES},
    ),
    "gradient by the kernel of 3x3, rows": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), ROWS, P()),
        {"all-reduce": 9 * 16 * 8 * FLOAT_BYTES, "collective-permute": 4 * FLOAT_BYTES * 4 * 8 * 16},
    ),
    "depthwise 7x7, batch": (depthwise, (X, (7, 7, 1, 16)), BATCH, P(), {}),
    "depthwise 3x3, rows": (depthwise, (X, (3, 3, 1, 16)), ROWS, P(), halo(4, 8, 16)),
    "depthwise 3x3, channels": (depthwise, (X, (3, 3, 1, 16)), CHANNELS, CHANNELS, {}),
    "depthwise 13x13, batch": (depthwise, (X, (13, 13, 1, 16)), BATCH, P(), {}),
    "depthwise 13x13, channels": (depthwise, (X, (13, 13, 1, 16)), CHANNELS, CHANNELS, {}),
    # Six rows from each side are one and a half times a device's four.
    "depthwise 13x13, rows": (depthwise, (X, (13, 13, 1, 16)), ROWS, P(), halo(6, 4, 8, 16)),
    "depthwise 7x7, rows": (depthwise, (X, (7, 7, 1, 16)), ROWS, P(), halo(3, 4, 8, 16)),
    "gradient by the image of depthwise 7x7, rows": (
        # Rows of the image for the result, of which the derivative is, and rows of the result's cotangent.
        *(image_gradient(depthwise), (X, (7, 7, 1, 16)), ROWS, P()),
        {"collective-permute": 2 * halo(3, 4, 8, 16)["collective-permute"]},
    ),
    "gradient by the kernel of depthwise 7x7, rows": (
        *(kernel_gradient(depthwise), (X, (7, 7, 1, 16)), ROWS, P()),
        {
            "all-reduce": 49 * 16 * FLOAT_BYTES,
            "collective-permute": 2 * halo(3, 4, 8, 16)["collective-permute"],
        },
    ),
    "gradient by the kernel of depthwise 7x7, batch": (
        *(kernel_gradient(depthwise), (X, (7, 7, 1, 16)), BATCH, P()),
        {"all-reduce": 49 * 16 * FLOAT_BYTES},
    ),
    "4 groups, batch": (grouped, (X, (3, 3, 4, 16)), BATCH, P(), {}),
    "gradient by the kernel of 4 groups, batch": (
        *(kernel_gradient(grouped), (X, (3, 3, 4, 16)), BATCH, P()),
        {"all-reduce": 9 * 4 * 16 * FLOAT_BYTES},
    ),
    "4 groups, groups": (grouped, (X, (3, 3, 4, 16)), CHANNELS, CHANNELS, {}),
    "gradient by the image of 4 groups, groups": (
        *(image_gradient(grouped), (X, (3, 3, 4, 16)), CHANNELS, CHANNELS, {}),
    ),
    "gradient by the kernel of 4 groups, groups": (
        *(kernel_gradient(grouped), (X, (3, 3, 4, 16)), CHANNELS, CHANNELS, {}),
    ),
    "max pool 3x3, batch": (max_pool, (X,), BATCH, P(), {}),
    "max pool 3x3, rows": (max_pool, (X,), ROWS, P(), halo(4, 8, 16)),
    "gradient of max pool 3x3, batch": (image_gradient(max_pool), (X,), BATCH, P(), {}),
    "gradient of max pool 3x3, rows": (
        *(image_gradient(max_pool), (X,), ROWS, P()),
        # Values and winners for the pool, cotangents and winners for its gradient.
        {"collective-permute": 4 * 2 * FLOAT_BYTES * 4 * 8 * 16},
    ),
    "gradient of max pool 5x5, rows": (
        *(image_gradient(max_pool_5), (X,), ROWS, P()),
        {"collective-permute": 4 * halo(2, 4, 8, 16)["collective-permute"]},
    ),
    "transposed 3x3, stride 2, rows": (
        *(transposed, (X, (3, 3, 8, 16)), ROWS, P()),
        {"collective-permute": FLOAT_BYTES * 4 * 8 * 16},  # a row from one side
    ),
    "average pool 3x3, rows": (
        *(lambda x: jaxcnn.avg_pool(x, 3, padding="SAME"), (X,), ROWS, P()),
        halo(4, 8, 16),
    ),
}


@pytest.mark.optimized
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_moves_no_more_than_it_needs(name, kind):
    function, shapes, *shardings, allowed = LAYERS[name]
    arrays = [jnp.asarray(normal(shape)) for shape in shapes]
    expected = function(*arrays)
    mesh, context = mesh_of(kind, 4)
    with context:
        placed = [
            jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, shardings, strict=False)
        ]
        actual = jax.jit(function)(*placed)
        moved = moved_bytes(function, *placed)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=2e-4, atol=2e-4)
    assert {kind: size for kind, size in moved.items() if size > allowed.get(kind, 0)} == {}


def uneven(x, first, second):
    return jaxcnn.conv(jaxcnn.conv(x, first, padding="VALID"), second).sum((1, 2))


BOTH = {
    # name: (function, shapes, bytes that may move), on 2 by 2 devices, by batch and by rows
    "3x3": (jaxcnn.conv, (X, (3, 3, 16, 8)), halo(2, 8, 16)),
    "gradient by the kernel of 3x3": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8))),
        {"all-reduce": 9 * 16 * 8 * FLOAT_BYTES, "collective-permute": 2 * halo(2, 8, 16)["collective-permute"]},
    ),
    "depthwise 7x7": (depthwise, (X, (7, 7, 1, 16)), halo(3, 2, 8, 16)),
    "max pool 3x3": (max_pool, (X,), halo(2, 8, 16)),
    "5x5 with a stride that does not divide": (
        *(lambda x, kernel: jaxcnn.conv(x, kernel, strides=3), (X, (5, 5, 16, 8))),
        halo(2, 8, 16),
    ),
    # 13 rows are 7 and 6: one row goes on and two come back, then a row of 5 pixels each way; the sum is over rows.
    "sizes that do not divide": (
        *(uneven, (X, (4, 4, 16, 16), (3, 3, 16, 8))),
        {
            "collective-permute": (3 * 2 * 8 * 16 + 2 * 2 * 5 * 16) * FLOAT_BYTES,
            "all-reduce": 2 * 8 * FLOAT_BYTES,
        },
    ),
    "3-D, depth": (jaxcnn.conv, ((4, 8, 4, 4, 8), (3, 3, 3, 8, 8)), halo(2, 4, 4, 8)),
    "1-D": (jaxcnn.conv, ((4, 16, 8), (5, 8, 8)), halo(2, 2, 8)),
}


@pytest.mark.optimized
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_batch_and_rows_are_split_together(name, kind):
    function, shapes, allowed = BOTH[name]
    arrays = [jnp.asarray(normal(shape)) for shape in shapes]
    expected = function(*arrays)
    mesh, context = mesh_of(kind, 2, 2)
    specs = [P("a", "b"), P(), P()]
    with context:
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=False)]
        actual = jax.jit(function)(*placed)
        moved = moved_bytes(function, *placed)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=2e-4, atol=2e-4)
    if kind == "Explicit" and name == "sizes that do not divide":
        allowed = {**allowed, "all-gather": 2 * 13 * 5 * 16 * FLOAT_BYTES * 2}  # the first result is whole there
    assert {kind: size for kind, size in moved.items() if size > allowed.get(kind, 0)} == {}


@pytest.mark.parametrize("sharded", [BATCH, ROWS])
def test_settings_of_the_users_thread_hold_where_xla_splits_a_program(sharded):
    """XLA does so in another thread, where neither contexts of 64-bit types nor of precision hold."""
    x, kernel = np.random.default_rng(0).standard_normal((4, 8, 8, 8)), normal((3, 3, 8, 4)).astype(np.float64)
    mesh, _ = mesh_of("Auto", 4)
    with jax.enable_x64(True):
        expected = jaxcnn.conv(x, kernel)
        actual = jax.jit(jaxcnn.conv)(jax.device_put(x, NamedSharding(mesh, sharded)), kernel)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-13)


MIXED = {
    # name: (function, shapes, sharding of the image, bytes that may move), on 2 Explicit by 2 Auto devices
    "gradient by the kernel of depthwise 3x3, batch": (
        *(kernel_gradient(depthwise), (X, (3, 3, 1, 16)), P("a")),
        {"all-reduce": 9 * 16 * FLOAT_BYTES},
    ),
    "gradient by the kernel of 3x3, rows": (
        *(kernel_gradient(jaxcnn.conv), (X, (3, 3, 16, 8)), P(None, "a")),
        {"all-reduce": 9 * 16 * 8 * FLOAT_BYTES, "collective-permute": 2 * halo(4, 8, 16)["collective-permute"]},
    ),
    "transposed 3x3, stride 2, rows": (transposed, (X, (3, 3, 8, 16)), P(None, "a"), halo(4, 8, 16)),
    # Three images are not split over two devices.
    "gradient of max pool 3x3, rows, 3 images": (
        *(image_gradient(max_pool), ((3, 16, 8, 16),), P(None, "a")),
        {"collective-permute": 4 * halo(3, 8, 16)["collective-permute"]},
    ),
    # Columns come from the neighbours, or each device gets whole images of others.
    "3x3, batch and columns": (
        *(jaxcnn.conv, (X, (3, 3, 16, 8)), P("a", None, "b")),
        {"all-to-all": 2 * 16 * 8 * 16 * FLOAT_BYTES, **halo(2, 16, 16)},
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_mesh_of_both_kinds_of_axes(name):
    function, shapes, spec, allowed = MIXED[name]
    arrays = [jnp.asarray(normal(shape)) for shape in shapes]
    expected = function(*arrays)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Auto))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(array, NamedSharding(mesh, spec if place == 0 else P()))
            for place, array in enumerate(arrays)
        ]
        actual = jax.jit(function)(*placed)
        moved = moved_bytes(function, *placed)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=2e-4, atol=2e-4)
    assert {kind: size for kind, size in moved.items() if size > allowed.get(kind, 0)} == {}


def drawn(rng):
    """A random convolution or pool, and how its image and kernel lie on a 2 by 2 mesh."""
    rank, groups = int(rng.integers(1, 3)), int(rng.choice([1, 1, 4]))
    group_in, group_out = (int(rng.choice([1, 2, 3] if groups > 1 else [3, 4, 8])) for _ in range(2))
    sizes = tuple(int(size) for size in rng.choice([8, 10, 12, 16], rank))
    window, strides, dilation = (tuple(int(n) for n in rng.integers(1, top, rank)) for top in (6, 4, 3))
    padding = str(rng.choice(["SAME", "VALID"]))
    if rng.random() < 0.3:
        padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 4, (rank, 2)))
    x, kernel = (4, *sizes, groups * group_in), (*window, group_in, groups * group_out)
    last = (None,) * (rank + 1)
    specs = [P("a"), P("b"), P(("a", "b")), P(None, "b"), P("a", "b"), P(*last, "a"), P("b", *last[1:], "a")]
    kernels = [P(), P(), P(*last, "a"), P(*last[1:], "b")]
    options = {"strides": strides, "padding": padding, "kernel_dilation": dilation, "feature_group_count": groups}
    return x, kernel, options, specs[rng.integers(len(specs))], kernels[rng.integers(len(kernels))]


def fits(shape, spec):
    parts = [1 if entry is None else 2 if isinstance(entry, str) else 4 for entry in spec]
    return all(size % part == 0 for size, part in zip(shape, parts, strict=False))


def value_and_gradients(operation, options, x, kernel):
    """The result of an operation, and the gradients of the sum of its squares."""

    def function(x, kernel):
        if operation == "conv":
            return jaxcnn.conv(x, kernel, **options)
        window = {"strides": options["strides"], "padding": options["padding"]}
        return getattr(jaxcnn, operation)(x, kernel.shape[:-2], window_dilation=options["kernel_dilation"], **window)

    return function(x, kernel), jax.grad(lambda x, kernel: (function(x, kernel) ** 2).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("operation", ["conv", "max_pool", "avg_pool"])
def test_values_and_gradients_are_one_devices(operation, seed, kind):
    rng = np.random.default_rng([seed, *operation.encode()])
    compared = 0
    while compared < 3:
        x_shape, kernel_shape, options, *specs = drawn(rng)
        if not all(map(fits, (x_shape, kernel_shape), specs)):
            continue

        everything = partial(value_and_gradients, operation, options)
        # A window on padding alone has no finite maximum, and no gradient to compare.
        arrays = [jnp.asarray(normal(x_shape)), jnp.asarray(normal(kernel_shape))]
        try:
            expected = jax.jit(everything)(*arrays)
        except ValueError:
            continue  # the window is larger than the image
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected)):
            continue
        mesh, context = mesh_of(kind, 2, 2)
        with context:
            placed = [
                jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)
            ]
            actual = jax.jit(everything)(*placed)
        for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            scale = max(float(jnp.abs(theirs).max(initial=0)), 1.0)
            np.testing.assert_allclose(
                np.asarray(ours) / scale, np.asarray(theirs) / scale, atol=2e-5, err_msg=str(options)
            )
        compared += 1


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_the_winner_is_the_first_real_pixel_on_every_device(value):
    x = jnp.full((1, 8, 4, 1), value, jnp.float32)
    expected = jaxcnn.max_pool_with_indices(x, (3, 3), padding=1)
    mesh, _ = mesh_of("Auto", 4)
    placed = jax.device_put(x, NamedSharding(mesh, ROWS))
    actual = jax.jit(lambda x: jaxcnn.max_pool_with_indices(x, (3, 3), padding=1))(placed)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_gradients_of_infinite_windows_go_where_those_of_one_device_go():
    x = jnp.where(jnp.asarray(normal((2, 8, 4, 3))) > 1, 1.0, -jnp.inf)

    def gradient(x):
        return jax.vjp(lambda x: jaxcnn.max_pool(x, (3, 3), padding=1), x)[1](jnp.ones(x.shape))[0]

    mesh, _ = mesh_of("Auto", 4)
    actual = jax.jit(gradient)(jax.device_put(x, NamedSharding(mesh, ROWS)))
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(gradient(x)))


def test_max_unpool_gathers_nothing():
    values, indices = jaxcnn.max_pool_with_indices(jnp.asarray(normal((4, 8, 8, 4))), 2, strides=2)
    mesh, _ = mesh_of("Auto", 4)
    placed = [jax.device_put(array, NamedSharding(mesh, BATCH)) for array in (values, indices)]

    def unpool(values, indices):
        return jaxcnn.max_unpool(values, indices, (8, 8))

    assert moved_bytes(unpool, *placed) == {}
    np.testing.assert_array_equal(np.asarray(jax.jit(unpool)(*placed)), np.asarray(unpool(values, indices)))


@pytest.mark.parametrize("method", ["shift", "matmul", "winograd", "fft"])
@pytest.mark.parametrize("kind", KINDS)
def test_methods_that_are_asked_for_work_on_every_mesh(method, kind):
    x, kernel = jnp.asarray(normal((4, 12, 12, 8))), jnp.asarray(normal((3, 3, 8, 8)))
    expected = jaxcnn.conv(x, kernel)
    mesh, context = mesh_of(kind, 4)
    with context:
        placed = jax.device_put(x, NamedSharding(mesh, BATCH)), jax.device_put(kernel, NamedSharding(mesh, P()))
        actual = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method=method))(*placed)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=2e-4, atol=2e-4)


def test_sums_over_devices_are_rounded_once():
    """Three devices count 257 images each: 771, for bfloat16 772. Rounded on each device they are 256, in all 768."""
    x = jnp.ones((4 * 257, 1, 1), jnp.bfloat16).at[3 * 257 :].set(0)
    mesh, _ = mesh_of("Auto", 4)
    placed = jax.device_put(x, NamedSharding(mesh, BATCH))
    kernel = jnp.ones((1, 1, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda kernel, x: jaxcnn.conv(x, kernel).astype(jnp.float32).sum()))(kernel, placed)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[0, 0, 0]) == 772


def windows(count=200):
    """Random windows with at least one place."""
    rng = np.random.default_rng(0)
    while count:
        image, reach, stride = int(rng.integers(1, 40)), int(rng.integers(0, 9)), int(rng.integers(1, 5))
        padding = int(rng.integers(0, 6)), int(rng.integers(0, 6))
        outputs = (image + sum(padding) - reach - 1) // stride + 1
        if outputs > 0:
            count -= 1
            yield Window(image, outputs, reach, stride, padding), int(rng.integers(2, 9))


def test_each_device_has_the_pixels_of_its_outputs():
    for window, devices in windows():
        slab, local = _image_of_outputs(window, devices)
        for device, start in enumerate(slab.starts):
            for output in range(local.outputs):
                first = (device * local.outputs + output) * window.stride - window.padding[0]
                assert output * local.stride == first - start
        assert (local.outputs - 1) * local.stride + local.reach < slab.length == local.image


def test_each_device_has_the_outputs_that_reach_its_pixels():
    for window, devices in windows():
        slab, local, skipped = _outputs_that_reach(window, devices)
        size = -(-window.image // devices)
        assert min(local.padding) >= 0
        assert (local.image + sum(local.padding) - local.reach - 1) // local.stride + 1 == local.outputs == slab.length
        for device, (start, skip) in enumerate(zip(slab.starts, skipped, strict=True)):
            for pixel in range(device * size, (device + 1) * size):
                reaching = {
                    output
                    for output in range(window.outputs)
                    if 0 <= pixel - output * window.stride + window.padding[0] <= window.reach
                }
                assert reaching <= set(range(start, start + slab.length))
                for output in reaching:
                    tap = pixel - output * window.stride + window.padding[0]
                    place = pixel - device * size + skip
                    assert place - (output - start) * local.stride + local.padding[0] == tap


def test_the_result_of_uneven_parts_is_whole_on_an_explicit_mesh():
    mesh, context = mesh_of("Explicit", 4)
    window, unused = Window(8, 6, 2, 1, (0, 0)), lambda *_: None
    split = Split((("n", "x0"),), ("n", "y0"), {}, (window,), (0,), jnp.float32, unused, None, unused)
    with context:
        x = jax.typeof(jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, P(None, "a"))))
        assert split.result_sharding([x], (4, 6)).spec == P(None, None)
        assert split.result_sharding([x], (4, 8)).spec == P(None, ("a",))
