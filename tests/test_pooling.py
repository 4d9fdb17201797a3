"""The pools against loops, against PyTorch, and in the corners where other libraries went wrong."""

from __future__ import annotations

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcnn
from support import oracles
from support.arrays import assert_close, integers, normal
from support.cases import SPATIAL, arranged, pool_cases
from support.drawn import drawn

POOLS = [jaxcnn.max_pool, jaxcnn.min_pool, jaxcnn.sum_pool, jaxcnn.avg_pool, jaxcnn.lp_pool]


@drawn(15, 40, pool_cases())
def test_pools_equal_loops(case):
    x, geometry, arrange = case["x"], case["oracle"], case["arrange"]
    highest, indices = oracles.extremum(x, "max", -np.inf, **geometry)
    expected = {
        "max": highest,
        "indices": indices,
        "values": highest,
        "min": oracles.extremum(x, "min", np.inf, **geometry)[0],
        "sum": oracles.total(x, **geometry),
        "avg": oracles.average(x, True, **geometry),
        "avg_valid": oracles.average(x, False, **geometry),
        "l3": oracles.norm(x, 3, **geometry),
        "l1": oracles.norm(x, 1, **geometry),
        "linf": oracles.norm(x, math.inf, **geometry),
    }
    window, given_x, options = case["window_shape"], case["given_x"], case["given"]
    assert jaxcnn.pool_output_shape(given_x.shape, window, **options) == arrange(highest).shape

    @jax.jit
    def run(x):
        values, indices = jaxcnn.max_pool_with_indices(x, window, **options)
        return {
            "max": jaxcnn.max_pool(x, window, **options),
            "values": values,
            "indices": indices,
            "min": jaxcnn.min_pool(x, window, **options),
            "sum": jaxcnn.sum_pool(x, window, **options),
            "avg": jaxcnn.avg_pool(x, window, **options),
            "avg_valid": jaxcnn.avg_pool(x, window, count_include_pad=False, **options),
            "l3": jaxcnn.lp_pool(x, window, p=3, **options),
            "l1": jaxcnn.lp_pool(x, window, p=1, **options),
            "linf": jaxcnn.lp_pool(x, window, p=math.inf, **options),
        }

    results = run(given_x)
    for name, result in results.items():
        assert result.dtype == (np.int32 if name == "indices" else np.float32), name
        exact = name in ("max", "min", "values", "indices", "sum")
        if exact:
            np.testing.assert_array_equal(result, arrange(expected[name]), name)
        else:
            assert_close(result, arrange(expected[name]), 2e-6, name)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("rank", "window", "stride", "padding", "dilation"),
    [(1, 3, 2, 1, 2), (1, 4, 3, 2, 1), (2, (3, 2), (2, 3), (1, 0), (1, 2)), (2, 2, 2, 0, 1), (3, 2, 2, 1, 1)],
)
def test_pools_equal_torch(rng, rank, window, stride, padding, dilation, ceil_mode):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = normal((2, 3, *(9, 8, 5)[:rank]), rng)
    tensor = torch.from_numpy(x)
    layout = "NC" + SPATIAL[rank]
    options = {"strides": stride, "padding": padding, "ceil_mode": ceil_mode, "layout": layout}
    values, indices = getattr(functional, f"max_pool{rank}d")(
        tensor, window, stride, padding, dilation, ceil_mode, return_indices=True
    )
    dilated = {**options, "window_dilation": dilation}
    ours = jaxcnn.max_pool_with_indices(x, window, **dilated)
    np.testing.assert_array_equal(ours[0], values.numpy())
    np.testing.assert_array_equal(ours[1], indices.numpy())
    np.testing.assert_array_equal(jaxcnn.max_pool(x, window, **dilated), values.numpy())
    sizes = x.shape[2:]
    unpooled = jaxcnn.max_unpool(*ours, sizes, layout=layout)
    flat = np.zeros((2, 3, math.prod(sizes)), np.float32)
    np.put_along_axis(flat, indices.numpy().reshape(2, 3, -1), values.numpy().reshape(2, 3, -1), 2)
    np.testing.assert_array_equal(unpooled, flat.reshape(x.shape))
    average = getattr(functional, f"avg_pool{rank}d")
    for count_include_pad in (True, False):
        expected = average(tensor, window, stride, padding, ceil_mode, count_include_pad).numpy()
        assert_close(jaxcnn.avg_pool(x, window, count_include_pad=count_include_pad, **options), expected)
    if rank < 3 and padding == 0:
        expected = getattr(functional, f"lp_pool{rank}d")(tensor, 2, window, stride, ceil_mode).numpy()
        if not ceil_mode:  # there PyTorch multiplies by the window size what it averaged over fewer
            assert_close(jaxcnn.lp_pool(x, window, **options), expected)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, np.float16, np.float32, np.int8, np.uint8, np.int16, np.int32, np.bool_]
)
def test_dtypes(rng, dtype):
    x = jnp.asarray(rng.integers(0, 2 if dtype is np.bool_ else 100, (1, 5, 6, 2)), dtype)
    wide = np.asarray(x).astype(np.float64)
    geometry = {
        "window": (3, 3),
        "strides": (2, 1),
        "padding": ((1, 1), (3, 0)),
        "dilation": (1, 1),
        "ceil_mode": False,
    }
    options = {"strides": (2, 1), "padding": ((1, 1), (3, 0))}
    floating = jnp.issubdtype(dtype, jnp.floating)
    for mode, function in (("max", jaxcnn.max_pool), ("min", jaxcnn.min_pool)):
        if dtype is np.bool_:
            identity = mode == "min"
        elif floating:
            identity = -np.inf if mode == "max" else np.inf
        else:
            identity = getattr(np.iinfo(dtype), {"max": "min", "min": "max"}[mode])
        expected, index = oracles.extremum(wide, mode, identity, **geometry)
        result = function(x, 3, **options)
        assert result.dtype == dtype
        np.testing.assert_array_equal(np.asarray(result).astype(np.float64), expected)
        if mode == "max":
            values, indices = jaxcnn.max_pool_with_indices(x, 3, **options)
            assert values.dtype == dtype
            assert indices.dtype == np.int32
            np.testing.assert_array_equal(values, result)
            np.testing.assert_array_equal(indices, index)
    total = jaxcnn.sum_pool(x, 3, **options)
    assert total.dtype == (dtype if floating else np.int32)
    exact = oracles.total(wide, **geometry)
    assert_close(np.asarray(total, np.float64), exact, float(jnp.finfo(dtype).eps) / 2 if floating else 0)
    for include in (True, False):
        average = jaxcnn.avg_pool(x, 3, count_include_pad=include, **options)
        assert average.dtype == (dtype if floating else np.float32)
        eps = float(jnp.finfo(average.dtype).eps)
        assert_close(np.asarray(average, np.float64), oracles.average(wide, include, **geometry), 2 * eps)
    for function, output in ((jaxcnn.adaptive_avg_pool, average.dtype), (jaxcnn.adaptive_max_pool, dtype)):
        assert function(x, 2).dtype == output
    assert jaxcnn.global_avg_pool(x).dtype == average.dtype
    assert jaxcnn.global_max_pool(x).dtype == dtype
    np.testing.assert_array_equal(np.asarray(jaxcnn.global_max_pool(x), np.float64), wide.max((1, 2)))


@pytest.mark.usefixtures("x64")
def test_64_bits():
    x = np.full((1, 4, 4, 1), 1 + 1e-12)
    for function in (*POOLS, jaxcnn.adaptive_avg_pool, jaxcnn.adaptive_max_pool):
        assert function(x, 2).dtype == np.float64
    assert float(jaxcnn.avg_pool(x, 2)[0, 0, 0, 0]) == 1 + 1e-12
    large = np.full((1, 4, 4, 1), 2**40, np.int64)
    assert int(jaxcnn.sum_pool(large, 2)[0, 0, 0, 0]) == 2**42
    assert int(jaxcnn.max_pool(large, 2)[0, 0, 0, 0]) == 2**40


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_16_bit_sums_accumulate_in_float32(dtype):
    # lax's own window sum of 1024 bfloat16 ones is 256.
    x = jnp.ones((1, 32, 32, 1), dtype)
    assert float(jaxcnn.sum_pool(x, 32)[0, 0, 0, 0]) == 1024
    assert float(jaxcnn.avg_pool(x, 32)[0, 0, 0, 0]) == 1
    assert float(jaxcnn.global_avg_pool(x)[0, 0]) == 1
    assert float(jaxcnn.adaptive_avg_pool(x, 1)[0, 0, 0, 0]) == 1
    assert float(jaxcnn.lp_pool(x, 32)[0, 0, 0, 0]) == 32
    assert jaxcnn.lp_pool(x, 32).dtype == dtype
    large = jnp.full((1, 4, 4, 1), 300, np.float16)  # its square is beyond float16
    assert float(jaxcnn.lp_pool(large, 4)[0, 0, 0, 0]) == 1200


def test_narrow_integers_do_not_wrap():
    x = np.full((1, 4, 4, 1), 100, np.int8)
    assert int(jaxcnn.sum_pool(x, 4)[0, 0, 0, 0]) == 1600
    assert float(jaxcnn.avg_pool(x, 4)[0, 0, 0, 0]) == 100
    assert float(jaxcnn.global_avg_pool(x)[0, 0]) == 100
    assert float(jaxcnn.adaptive_avg_pool(x, 2)[0, 1, 1, 0]) == 100


def test_nan_wins_in_every_position_of_the_window():
    ordinary = np.arange(9.0, dtype=np.float32) - 4
    images = np.stack([ordinary] * 10)
    for position in range(9):
        images[position, position] = np.nan
    images[9, [2, 7]] = np.nan
    x = images.reshape(10, 3, 3, 1)
    for function in POOLS:
        assert np.isnan(function(x, 3)).all(), function.__name__
    for function in (jaxcnn.global_max_pool, jaxcnn.global_avg_pool):
        assert np.isnan(function(x)).all()
    for function in (jaxcnn.adaptive_max_pool, jaxcnn.adaptive_avg_pool):
        assert np.isnan(function(x, 1)).all()
    values, indices = jaxcnn.max_pool_with_indices(x, 3)
    assert np.isnan(values).all()
    np.testing.assert_array_equal(indices.ravel(), [*range(9), 2])
    # A window without the NaN does not see it.
    result = np.asarray(jaxcnn.max_pool(x[:1], 2))[0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(result), [[True, False], [False, False]])


def test_pixels_of_minus_infinity_beat_the_padding():
    # Traps 5: the identity as a pixel must give its own index, and padding none.
    x = np.full((1, 3, 3, 1), -np.inf, np.float32)
    values, indices = jaxcnn.max_pool_with_indices(x, 2, padding=1)
    assert (np.asarray(values) == -np.inf).all()
    np.testing.assert_array_equal(indices[0, :, :, 0], [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]])
    x = np.full((1, 3, 1), -128, np.int8)
    np.testing.assert_array_equal(jaxcnn.max_pool_with_indices(x, 2, padding=1)[1].ravel(), [0, 0, 1, 2])
    negative = np.full((1, 3, 3, 1), -5.0, np.float32)
    assert (np.asarray(jaxcnn.max_pool(negative, 3, padding=1)) == -5).all()
    assert (np.asarray(jaxcnn.min_pool(-negative, 3, padding=1)) == 5).all()


def test_a_window_wholly_on_padding():
    x = np.array([3.0, 5.0], np.float32).reshape(2, 1)
    padding = ((3, 0),)
    pool = {"window_shape": (2,), "padding": padding}
    np.testing.assert_array_equal(jaxcnn.max_pool(x, **pool).ravel(), [-np.inf, -np.inf, 3, 5])
    np.testing.assert_array_equal(jaxcnn.min_pool(x, **pool).ravel(), [np.inf, np.inf, 3, 3])
    np.testing.assert_array_equal(jaxcnn.sum_pool(x, **pool).ravel(), [0, 0, 3, 8])
    np.testing.assert_array_equal(jaxcnn.avg_pool(x, **pool).ravel(), [0, 0, 1.5, 4])
    np.testing.assert_array_equal(jaxcnn.avg_pool(x, count_include_pad=False, **pool).ravel(), [0, 0, 3, 4])
    np.testing.assert_array_equal(jaxcnn.lp_pool(x, p=math.inf, **pool).ravel(), [0, 0, 3, 5])
    np.testing.assert_array_equal(jaxcnn.max_pool_with_indices(x, **pool)[1].ravel(), [-1, -1, 0, 1])
    for function in POOLS:
        gradient = jax.grad(lambda x, f=function: jnp.where(jnp.isfinite(y := f(x, **pool)), y, 0.0).sum())(x)
        assert np.isfinite(gradient).all(), function.__name__
    counted = jax.grad(lambda x: jaxcnn.avg_pool(x, count_include_pad=False, **pool).sum())(x)
    np.testing.assert_allclose(counted.ravel(), [1.5, 0.5])


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_padding_never_wins_in_8_bit_floats(rng, dtype):
    """The first of these dtypes has no infinity."""
    x = jnp.asarray(rng.integers(-9, 9, (1, 4, 5, 2)), dtype)
    for function, sign in ((jaxcnn.max_pool, -1), (jaxcnn.min_pool, 1)):
        result = function(x, 3, padding=1)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result.astype(np.float32), function(x.astype(np.float32), 3, padding=1))
        limit = sign * (448 if dtype is jnp.float8_e4m3fn else np.inf)
        assert function(x[:, :2, :2], 1, padding=1)[0, 0, 0, 0] == jnp.asarray(limit, dtype)
    values, _ = jaxcnn.max_pool_with_indices(x, 3, padding=1)
    np.testing.assert_array_equal(values.astype(np.float32), jaxcnn.max_pool(x.astype(np.float32), 3, padding=1))


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "expected"),
    [
        (5, 2, 2, 0, [[0, 1], [2, 3], [4]]),
        (6, 3, 2, 0, [[0, 1, 2], [2, 3, 4], [4, 5]]),
        (4, 2, 2, 1, [[0], [1, 2], [3]]),  # exact fit
        (5, 2, 3, 1, [[0], [2, 3]]),  # a third window would start in the right padding: dropped
        (7, 1, 2, 0, [[0], [2], [4], [6]]),
        (2, 3, 2, 0, [[0, 1]]),  # the window hangs over from the start
        (3, 3, 4, 1, [[0, 1]]),
    ],
)
def test_ceil_mode(size, window, stride, padding, expected):
    x = 10.0 ** np.arange(size, dtype=np.float32).reshape(1, size, 1)
    options = {"strides": stride, "padding": padding, "ceil_mode": True}
    result = jaxcnn.sum_pool(x, window, **options)
    np.testing.assert_array_equal(result.ravel(), [sum(10.0**i for i in pixels) for pixels in expected])
    assert jaxcnn.pool_output_shape(x.shape, window, **options) == result.shape
    averages = jaxcnn.avg_pool(x, window, count_include_pad=False, **options).ravel()
    np.testing.assert_allclose(averages, [sum(10.0**i for i in p) / len(p) for p in expected], rtol=1e-6)
    # Declared padding counts, what hangs over does not.
    counts = [
        sum(-padding <= o * stride - padding + tap < size + padding for tap in range(window))
        for o in range(len(expected))
    ]
    averages = jaxcnn.avg_pool(x, window, **options).ravel()
    np.testing.assert_allclose(
        averages, [sum(10.0**i for i in p) / c for p, c in zip(expected, counts, strict=True)], rtol=1e-6
    )


def test_cropped_pixels_are_not_there():
    x = np.array([9.0, 1, 2, 3, 4, 9], np.float32).reshape(1, 6, 1)
    pool = {"window_shape": 2, "strides": 2, "padding": ((-1, -1),)}
    np.testing.assert_array_equal(jaxcnn.max_pool(x, **pool).ravel(), [2, 4])
    values, indices = jaxcnn.max_pool_with_indices(x, **pool)
    np.testing.assert_array_equal(values.ravel(), [2, 4])
    np.testing.assert_array_equal(indices.ravel(), [2, 4])
    # Nor for a window that hangs over the end in ceil_mode: 1 2 | 3 4 | 5 and a 9 that is cropped.
    x = np.array([1.0, 2, 3, 4, 5, 9], np.float32).reshape(1, 6, 1)
    pool = {"window_shape": 2, "strides": 2, "padding": ((0, -1),), "ceil_mode": True}
    np.testing.assert_array_equal(jaxcnn.sum_pool(x, **pool).ravel(), [3, 7, 5])
    np.testing.assert_array_equal(jaxcnn.max_pool(x, **pool).ravel(), [2, 4, 5])
    for include in (True, False):
        np.testing.assert_array_equal(jaxcnn.avg_pool(x, count_include_pad=include, **pool).ravel(), [1.5, 3.5, 5])
    # A window that would start in what is cropped is dropped.
    assert jaxcnn.pool_output_shape((1, 6, 1), 1, strides=4, padding=((0, -2),), ceil_mode=True) == (1, 1, 1)
    cropped = jaxcnn.sum_pool(x, (1,), padding=((-8, 4),))
    assert cropped.shape == (1, 2, 1)
    assert not np.asarray(cropped).any()


def test_indices_lie_in_the_unpadded_plane(rng):
    x = integers((2, 6, 7, 3), rng)
    for options in (
        {"padding": "SAME"},
        {"padding": ((2, 1), (0, 3)), "window_dilation": (2, 1)},
        {"padding": ((-1, 2), (1, -2)), "strides": (1, 2)},
        {"padding": ((-2, -1), (-1, 0)), "window_dilation": 2, "strides": 2},
    ):
        values, indices = jaxcnn.max_pool_with_indices(x, (2, 2), **options)
        assert indices.dtype == np.int32
        flat = np.take_along_axis(x.reshape(2, 42, 3), np.maximum(indices, 0).reshape(2, -1, 3), 1).reshape(
            values.shape
        )
        seen = np.asarray(indices) >= 0
        np.testing.assert_array_equal(np.asarray(values)[seen], flat[seen])


def test_ties_go_to_the_first_maximum():
    _, indices = jaxcnn.max_pool_with_indices(np.zeros((1, 4, 4, 1), np.float32), 2)
    np.testing.assert_array_equal(indices[0, :, :, 0], [[0, 1, 2], [4, 5, 6], [8, 9, 10]])
    _, indices = jaxcnn.max_pool_with_indices(np.zeros((1, 3, 3, 1), np.float32), 3, padding=1, window_dilation=2)
    np.testing.assert_array_equal(indices.ravel(), [4])
    _, indices = jaxcnn.max_pool_with_indices(np.array([False, True, True]).reshape(3, 1), (2,))
    np.testing.assert_array_equal(indices.ravel(), [1, 1])
    _, indices = jaxcnn.max_pool_with_indices(np.array([-0.0, 0.0], np.float32).reshape(2, 1), (2,))
    np.testing.assert_array_equal(indices.ravel(), [0])


def test_unpool_inverts_max_pool(rng):
    for layout in (None, "NCHW"):
        x = rng.permutation(2 * 4 * 6 * 3).astype(np.float32).reshape(2, 4, 6, 3) + 1
        x = arranged(x, "NHWC", layout or "NHWC")
        values, indices = jaxcnn.max_pool_with_indices(x, (2, 3), strides=(2, 3), layout=layout)
        back = np.asarray(jaxcnn.max_unpool(values, indices, (4, 6), layout=layout))
        np.testing.assert_array_equal(back[back > 0], x[back > 0])
        assert (back > 0).sum() == values.size
        again, _ = jaxcnn.max_pool_with_indices(back, (2, 3), strides=(2, 3), layout=layout)
        np.testing.assert_array_equal(again, values)


def test_unpool_with_duplicates_padding_and_other_sizes(rng):
    # Overlapping windows give the same index several times; the value is put once, not added.
    x = integers((2, 3, 5, 5, 2), rng)
    values, indices = jaxcnn.max_pool_with_indices(x, (3, 3), padding=1)
    back = jaxcnn.max_unpool(values, indices, (5, 5))
    merged = (np.asarray(a).reshape(6, 5, 5, 2) for a in (values, indices))
    np.testing.assert_array_equal(np.asarray(back).reshape(6, 5, 5, 2), oracles.unpool(*merged, (5, 5)))
    # An index of -1 puts nothing, nor does one past the plane.
    result = jaxcnn.max_unpool(np.ones((3, 1), np.float32), np.array([[-1], [2], [9]], np.int32), (4,))
    np.testing.assert_array_equal(result.ravel(), [0, 0, 1, 0])
    integer = jaxcnn.max_unpool(np.ones((1, 2, 1), np.int8), np.array([[[1], [3]]], np.int16), 4)
    assert integer.dtype == np.int8
    np.testing.assert_array_equal(integer.ravel(), [0, 1, 0, 1])


@settings(max_examples=20)
@given(
    st.integers(1, 3).flatmap(
        lambda rank: st.tuples(
            st.tuples(*[st.integers(1, 7 - rank)] * rank), st.tuples(*[st.integers(1, 9 - 2 * rank)] * rank)
        )
    ),
    st.integers(0, 99),
)
def test_adaptive_pools_equal_loops(shapes, seed):
    sizes, outputs = shapes
    x = normal((2, *sizes, 2), np.random.default_rng(seed))
    results = jax.jit(
        lambda x: (jaxcnn.adaptive_avg_pool(x, outputs), jaxcnn.adaptive_max_pool(x, outputs)), inline=True
    )(x)
    assert_close(results[0], oracles.adaptive(x, "avg", outputs))
    np.testing.assert_array_equal(results[1], oracles.adaptive(x, "max", outputs).astype(np.float32))


@pytest.mark.parametrize(("size", "output"), [(71, 37), (6, 4), (6, 9), (5, 12)])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_gradients_equal_loops(rng, kind, size, output):
    x, y = normal((2, size, 3), rng), normal((2, output, 3), rng)
    function = getattr(jaxcnn, f"adaptive_{kind}_pool")
    result, vjp = jax.vjp(lambda x: function(x, (output,)), x)
    assert_close(result, oracles.adaptive(x, kind, (output,)))
    expected = np.zeros(x.shape)
    for place in range(output):
        start, stop = place * size // output, -(-(place + 1) * size // output)
        for image, channel in itertools.product(range(2), range(3)):
            seen = x[image, start:stop, channel]
            weights = np.full(stop - start, 1 / (stop - start))
            if kind == "max":
                weights = np.eye(stop - start)[seen.argmax()]
            expected[image, start:stop, channel] += weights * y[image, place, channel]
    assert_close(vjp(jnp.asarray(y))[0], expected)


@pytest.mark.parametrize(
    ("size", "window", "padding"), [(9, 2, (0, 0)), (9, 3, (1, 2)), (9, 4, (3, 0)), (8, 3, (-1, 2)), (9, 1, (1, 1))]
)
def test_sums_over_windows_that_tile_the_image_spread_back(rng, size, window, padding):
    x = normal((2, size, size + 2, 3), rng)
    function = partial(jaxcnn.sum_pool, window_shape=window, strides=window, padding=(padding, padding))
    result, vjp = jax.vjp(function, x)
    y = normal(result.shape, rng)
    expected = np.zeros(x.shape)
    for row, column in np.ndindex(*result.shape[1:3]):
        starts = (place * window - padding[0] for place in (row, column))
        # What the padding crops gets nothing.
        kept = [max(-pair[0], 0) for pair in (padding, padding)]
        rows, columns = (
            slice(max(start, low), max(start + window, low)) for start, low in zip(starts, kept, strict=True)
        )
        expected[:, rows, columns] += y[:, row : row + 1, column : column + 1]
    assert_close(vjp(jnp.asarray(y))[0], expected)


@pytest.mark.parametrize(
    ("size", "outputs"), [((5, 7), (2, 3)), ((5, 7), (8, 10)), ((6, 4), (3, 4)), ((10, 9), (1, 1))]
)
def test_adaptive_pools_equal_torch(rng, size, outputs):
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    x = normal((2, 3, *size), rng)
    for name in ("avg", "max"):
        expected = getattr(functional, f"adaptive_{name}_pool2d")(torch.from_numpy(x), outputs).numpy()
        result = getattr(jaxcnn, f"adaptive_{name}_pool")(x, outputs, layout="NCHW")
        assert_close(result, expected)


def test_adaptive_pools_keep_the_axes_that_are_none(rng):
    x = normal((3, 2, 6, 5, 2), rng)
    for function in (jaxcnn.adaptive_avg_pool, jaxcnn.adaptive_max_pool):
        np.testing.assert_array_equal(function(x, (None, 2)), function(x, (6, 2)))
        np.testing.assert_array_equal(function(x, [3, None]), function(x, (3, 5)))
        assert_close(function(x, (None, None)), x)
        first = np.moveaxis(x[0], -1, 1)
        np.testing.assert_allclose(
            function(first, (4, None), layout="NCHW"), np.moveaxis(function(x[0], (4, 5)), -1, 1)
        )


def test_the_adaptive_max_takes_the_first_of_several(rng):
    x = integers((1, 6, 7, 2), rng, low=0, high=2)
    gradient = jax.grad(lambda x: jaxcnn.adaptive_max_pool(x, (2, 1)).sum())(x)
    expected = np.zeros_like(x)
    for half, channel in itertools.product(range(2), range(2)):
        block = x[0, 3 * half : 3 * half + 3, :, channel]
        at = np.unravel_index(block.argmax(), block.shape)
        expected[0, 3 * half + at[0], at[1], channel] = 1
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("layout", [None, "NHWC", "NCHW", "CHWN", "WNHC", ("NHWC", "HWIO", "NCHW")])
def test_global_pools(rng, layout):
    x = normal((2, 4, 5, 3), rng)
    names_in, names_out = (layout or "NHWC",) * 2 if not isinstance(layout, tuple) else (layout[0], layout[2])
    given_x = arranged(x, "NHWC", names_in)
    for function, reduced in (
        (jaxcnn.global_avg_pool, x.mean((1, 2), keepdims=True)),
        (jaxcnn.global_max_pool, x.max((1, 2), keepdims=True)),
    ):
        expected = arranged(reduced, "NHWC", names_out)
        kept = function(given_x, layout=layout, keepdims=True)
        assert_close(kept, expected)
        axes = tuple(axis for axis, name in enumerate(names_out) if name in "HW")
        assert_close(function(given_x, layout=layout), expected.squeeze(axes))


def test_global_pools_of_other_ranks(rng):
    for shape in ((2, 4, 3), (2, 4, 3, 2, 3)):
        x = normal(shape, rng)
        axes = tuple(range(1, len(shape) - 1))
        assert_close(jaxcnn.global_avg_pool(x), x.mean(axes))
        assert_close(jaxcnn.global_max_pool(x), x.max(axes))
    x = normal((2, 3, 4, 5, 3), rng)
    assert_close(jaxcnn.global_avg_pool(x, layout="NHWC"), x.mean((2, 3)))
    assert_close(jaxcnn.global_max_pool(x[0, 0], layout="NHWC", keepdims=True), x[0, 0].max((0, 1), keepdims=True))


@pytest.mark.parametrize("function", [*POOLS, jaxcnn.max_pool_with_indices], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(0, 5, 5, 2), (2, 5, 5, 0), (0, 3, 5, 5, 0)])
def test_empty_axes_give_empty_results(function, shape):
    results = function(np.ones(shape, np.float32), (2, 2))
    for result in results if isinstance(results, tuple) else (results,):
        assert result.shape == (*shape[:-3], 4, 4, shape[-1])
    gradient = jax.grad(lambda x: jax.tree.leaves(function(x, (2, 2)))[0].sum())(np.ones(shape, np.float32))
    assert gradient.shape == shape


def test_an_empty_plane_is_all_padding():
    x = np.ones((1, 0, 2), np.float32)
    values, indices = jaxcnn.max_pool_with_indices(x, (2,), padding=2)
    assert values.shape == indices.shape == (1, 3, 2)
    assert (np.asarray(indices) == -1).all()
    assert (np.asarray(values) == -np.inf).all()
    assert not np.asarray(jaxcnn.avg_pool(x, (2,), padding=2)).any()
    assert jax.grad(lambda x: jaxcnn.max_pool(x, (2,), padding=2).sum())(x).shape == x.shape


def test_windows_given_as_an_int_mean_one_batch_axis(rng):
    x = normal((2, 6, 5, 3), rng)
    np.testing.assert_array_equal(jaxcnn.max_pool(x, 2), jaxcnn.max_pool(x, (2, 2)))
    np.testing.assert_array_equal(jaxcnn.max_pool(x, 2, layout="WC"), jaxcnn.max_pool(x, (2,)))
    assert jaxcnn.max_pool(x, (2,)).shape == (2, 6, 4, 3)  # two batch axes, one spatial axis
    assert jaxcnn.max_pool(x[0], [2, 3]).shape == (5, 3, 3)
    assert jaxcnn.max_pool(x, np.array([2, 3])).shape == (2, 5, 3, 3)


def test_dilated_windows_beyond_the_lax_gradient(rng):
    # The gradient of a dilated max pool is compared with the index of each maximum.
    x = rng.permutation(2 * 7 * 8).astype(np.float32).reshape(1, 7, 8, 2)
    options = {"strides": (1, 2), "padding": "SAME", "window_dilation": (2, 3)}
    _, index = jaxcnn.max_pool_with_indices(x, (3, 2), **options)
    gradient = jax.grad(lambda x: jaxcnn.max_pool(x, (3, 2), **options).sum())(x)
    expected = np.zeros((1, 56, 2), np.float32)
    index = np.asarray(index).reshape(1, -1, 2)
    for place, channel in itertools.product(range(index.shape[1]), range(2)):
        expected[0, index[0, place, channel], channel] += 1
    np.testing.assert_array_equal(gradient.reshape(1, 56, 2), expected)


def test_small_windows_on_large_images():
    # XLA ignores a base dilation, which a gradient would use, where window and stride are 1 and the array is large.
    x = np.random.default_rng(3).permutation(64 * 128).astype(np.float32).reshape(1, 64, 128, 1)
    for function in (jaxcnn.max_pool, jaxcnn.sum_pool, jaxcnn.avg_pool):
        gradient = np.asarray(jax.grad(lambda x, f=function: f(x, (1, 1), strides=2).sum())(x))
        expected = np.zeros_like(x)
        expected[:, ::2, ::2] = 1
        np.testing.assert_array_equal(gradient, expected, function.__name__)
        rows = np.asarray(jax.grad(lambda x, f=function: f(x, (1, 2), strides=(2, 2)).sum())(x))
        assert not rows[:, 1::2].any()
        assert rows.sum() == (1 if function is not jaxcnn.sum_pool else 2) * 32 * 64


IMAGE = np.ones((1, 5, 6, 2), np.float32)
ALL = [*POOLS, jaxcnn.max_pool_with_indices]


@pytest.mark.parametrize("function", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"window_shape": 6},
            ValueError,
            r"the window is larger than its padded input on spatial axis 0: it spans 6 .* 5",
        ),
        ({"window_shape": (2, 3, 4, 5)}, ValueError, r"x must have 4 spatial axes and a feature axis, 5 in all"),
        (
            {"window_shape": (2, 2), "layout": "NCW"},
            ValueError,
            r"layout 'NCW' has 1 spatial axes, but the kernel, window",
        ),
        ({"window_shape": 0}, ValueError, r"window_shape must be at least 1 on every axis, got 0"),
        ({"window_shape": 2.0}, TypeError, r"window_shape must be an int or a sequence of 2 ints, got 2.0"),
        ({"strides": (1,)}, ValueError, r"strides must be .* with 1 values, one for each of 2 spatial axes needed"),
        ({"window_dilation": 0}, ValueError, r"window_dilation must be at least 1"),
        ({"padding": "same?"}, ValueError, r"padding must be one of 'SAME', 'SAME_LOWER', 'VALID', .*got 'same\?'"),
        ({"padding": "CAUSAL"}, ValueError, r"padding 'CAUSAL' is for one spatial axis, but there are 2"),
        ({"layout": "NCABDH"}, ValueError, r"x must have 4 spatial axes and a feature axis, 5 in all"),
        ({"layout": 1}, TypeError, r"layout must be None, a string such as 'NCHW'"),
        (
            {"window_shape": 7, "ceil_mode": True},
            ValueError,
            r"with ceil_mode no window starts inside the input on spatial axis 0: it spans 7",
        ),
        (
            {"x": IMAGE[0, 0]},
            ValueError,
            r"without a layout or one int for each spatial axis, x must have one batch axis",
        ),
    ],
    ids=lambda value: None,
)
def test_errors_in_the_terms_of_the_user(function, changed, error, message):
    operation = function.__name__
    with pytest.raises(error, match=rf"^{operation}: .*({message})"):
        function(**{"x": IMAGE, "window_shape": 2, **changed})


def test_errors_of_single_functions():
    for function in (jaxcnn.max_pool, jaxcnn.min_pool, jaxcnn.max_pool_with_indices, jaxcnn.adaptive_max_pool):
        with pytest.raises(TypeError, match=rf"{function.__name__}: complex numbers have no order"):
            function(IMAGE.astype(np.complex64), 2)
    with pytest.raises(TypeError, match="global_max_pool: complex numbers have no order"):
        jaxcnn.global_max_pool(IMAGE.astype(np.complex64))
    with pytest.raises(ValueError, match=r"lp_pool: p must be at least 1, got 0\.5"):
        jaxcnn.lp_pool(IMAGE, 2, p=0.5)
    with pytest.raises(ValueError, match="lp_pool: p must be at least 1, got nan"):
        jaxcnn.lp_pool(IMAGE, 2, p=math.nan)
    with pytest.raises(TypeError, match="lp_pool: x must be of real floats, got dtype int32"):
        jaxcnn.lp_pool(IMAGE.astype(np.int32), 2)
    index = np.zeros((1, 5, 6, 2), np.int32)
    with pytest.raises(ValueError, match=r"max_unpool: values \(1, 5, 6, 2\) and indices \(1, 5, 6, 1\) must have"):
        jaxcnn.max_unpool(IMAGE, index[..., :1], 9)
    with pytest.raises(TypeError, match="max_unpool: indices must be integers, got dtype float32"):
        jaxcnn.max_unpool(IMAGE, IMAGE, 9)
    for function in (jaxcnn.adaptive_avg_pool, jaxcnn.adaptive_max_pool):
        name = function.__name__
        with pytest.raises(ValueError, match=rf"{name}: output_shape must be at least 1"):
            function(IMAGE, 0)
        with pytest.raises(ValueError, match=rf"{name}: x has an empty spatial axis, sizes \(0, 6\)"):
            function(IMAGE[:, :0], 2)
        with pytest.raises(ValueError, match=rf"{name}: without a layout"):
            function(IMAGE[0, 0], 2)
    for function in (jaxcnn.global_avg_pool, jaxcnn.global_max_pool):
        with pytest.raises(ValueError, match=rf"{function.__name__}: x has an empty spatial axis, sizes \(5, 0\)"):
            function(IMAGE[:, :, :0])
        with pytest.raises(ValueError, match=rf"{function.__name__}: x must have a batch axis, at least one spatial"):
            function(IMAGE[0, 0])


def test_complex_sums_and_averages():
    x = (np.arange(4.0) + 1j).astype(np.complex64).reshape(4, 1)
    np.testing.assert_allclose(jaxcnn.sum_pool(x, (2,)).ravel(), [1 + 2j, 3 + 2j, 5 + 2j])
    np.testing.assert_allclose(jaxcnn.avg_pool(x, (2,)).ravel(), [0.5 + 1j, 1.5 + 1j, 2.5 + 1j])
    np.testing.assert_allclose(jaxcnn.adaptive_avg_pool(x, (2,)).ravel(), [0.5 + 1j, 2.5 + 1j])


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_lp_pool_of_zeros_has_a_gradient(p):
    gradient = jax.grad(lambda x: jaxcnn.lp_pool(x, 2, p=p).sum())(np.zeros((1, 3, 3, 1), np.float32))
    assert np.isfinite(gradient).all()


def test_lp_pool_of_negative_and_odd_powers():
    x = np.array([-3.0, 4.0, -5.0], np.float32).reshape(3, 1)
    np.testing.assert_allclose(jaxcnn.lp_pool(x, (2,), p=1).ravel(), [7, 9])
    np.testing.assert_allclose(jaxcnn.lp_pool(x, (2,), p=3).ravel(), [91 ** (1 / 3), 189 ** (1 / 3)], rtol=1e-6)
    np.testing.assert_allclose(jaxcnn.lp_pool(x, (2,), p=math.inf).ravel(), [4, 5])


def test_average_keeps_a_constant_image_constant(rng):
    # The divisor counts pixels, so that a constant image stays constant at its borders.
    x = np.full((1, 6, 7, 1), 3.0, np.float32)
    for strides, padding, ceil_mode in itertools.product((1, 2), ("SAME", 1, ((1, 0), (2, 1))), (False, True)):
        options = {"strides": strides, "padding": padding, "ceil_mode": ceil_mode}
        result = np.asarray(jaxcnn.avg_pool(x, 3, count_include_pad=False, **options))
        np.testing.assert_allclose(result, 3, rtol=1e-6)


def test_average_needs_no_second_window_sum(rng):
    text = str(jax.make_jaxpr(partial(jaxcnn.avg_pool, window_shape=3, padding=1, count_include_pad=False))(IMAGE))
    assert text.count("jaxcnn_window_sum") == 1
    assert "iota" not in text


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_max_unpool_takes_indices_narrower_than_the_plane(dtype):
    indices = jnp.array([[100], [3]], dtype)
    result = jaxcnn.max_unpool(jnp.array([[2.0], [5.0]]), indices, (70_000,))
    assert (result[100, 0], result[3, 0], result.sum()) == (2, 5, 7)
    if np.issubdtype(dtype, np.signedinteger):
        assert not jaxcnn.max_unpool(jnp.ones((2, 1)), jnp.full((2, 1), -1, dtype), (70_000,)).any()
