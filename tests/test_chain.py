"""`KernelChain`: a pytree, its dense kernel, and convolutions with it, against loops and against the dense kernel."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxcnn import KernelChain, compose, conv, conv_output_shape, conv_transpose, depthwise_conv
from support.arrays import integers
from support.counting import block_diagonal_to_grouped, drawn_chains, drawn_options, loop_compose
from support.drawn import drawn


def chain_of(rng, shapes, counts=(), largest=4, dtype=np.float32):
    links = [integers(shape, rng, low=-largest, high=largest + 1, dtype=dtype) for shape in shapes]
    return KernelChain(tuple(map(jnp.asarray, links)), counts)


def random_chain(rng, shapes, counts=(), dtype=np.float32):
    return KernelChain(tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes), counts)


def looped_dense(chain):
    """The chain's dense kernel by loops, which saves compiling `dense`."""
    full = loop_compose(list(map(np.asarray, chain.kernels)), list(chain.feature_group_counts))
    return block_diagonal_to_grouped(full, chain.feature_group_count).astype(np.float32)


PAIR = ((3, 1, 2, 4), (1, 3, 4, 6))
MIXED = (((3, 3, 1, 8), (1, 1, 8, 6)), (8, 1))  # depthwise, then 1x1
BOTTLENECK = (((1, 1, 4, 6), (3, 1, 1, 6), (1, 3, 1, 6), (1, 1, 6, 5)), (1, 6, 6, 1))


# A pytree


def test_leaves_are_the_kernels_and_groups_are_structure(rng):
    chain = chain_of(rng, *MIXED)
    leaves, structure = jax.tree.flatten(chain)
    assert len(leaves) == 2
    assert all(leaf is kernel for leaf, kernel in zip(leaves, chain.kernels, strict=True))
    back = jax.tree.unflatten(structure, leaves)
    assert back.feature_group_counts == (8, 1)
    assert isinstance(back, KernelChain)
    other = jax.tree.structure(KernelChain(tuple(np.zeros((3, 3, 8, n), np.float32) for n in (8,)), (1,)))
    assert structure != other
    one = KernelChain((np.zeros((3, 3, 2, 4), np.float32),), (1,))
    two = KernelChain((np.zeros((3, 3, 2, 4), np.float32),), (2,))
    assert jax.tree.structure(one) != jax.tree.structure(two)


def test_any_leaves_may_stand_in_a_chain(rng):
    structure = jax.tree.structure(chain_of(rng, PAIR))
    marks = [object(), None]
    chain = jax.tree.unflatten(structure, marks)
    assert list(chain.kernels) == marks
    shapes = jax.tree.map(lambda kernel: kernel.shape, chain_of(rng, PAIR))
    assert shapes.kernels == PAIR
    assert jax.tree.map(str, chain_of(rng, PAIR), is_leaf=lambda leaf: isinstance(leaf, KernelChain))


def test_paths_are_the_positions_of_the_links(rng):
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": chain_of(rng, PAIR)})]
    assert paths == ["['a'][0]", "['a'][1]"]


def test_tree_map_changes_the_links(rng):
    chain = chain_of(rng, PAIR)
    doubled = jax.tree.map(lambda kernel: 2 * kernel, chain)
    np.testing.assert_array_equal(doubled.dense(), 4 * chain.dense())
    total = jax.tree.map(jnp.add, chain, doubled)
    np.testing.assert_array_equal(total.kernels[1], 3 * chain.kernels[1])


def test_a_chain_goes_through_jit_and_comes_out(rng):
    chain, x = chain_of(rng, *MIXED), integers((1, 6, 6, 8), rng)
    out = jax.jit(lambda chain: jax.tree.map(lambda kernel: -kernel, chain))(chain)
    assert out.feature_group_counts == (8, 1)
    np.testing.assert_array_equal(out.kernels[0], -chain.kernels[0])
    np.testing.assert_array_equal(jax.jit(conv)(x, chain), conv(x, chain))


def test_a_chain_may_be_closed_over_by_jit(rng):
    chain, x = chain_of(rng, PAIR), integers((1, 6, 6, 2), rng)
    np.testing.assert_array_equal(jax.jit(lambda x: conv(x, chain))(x), conv(x, chain))


def test_vmap_over_a_batch_of_chains(rng):
    chains = [chain_of(rng, *MIXED) for _ in range(3)]
    stacked = jax.tree.map(lambda *kernels: jnp.stack(kernels), *chains)
    x = integers((1, 6, 6, 8), rng)
    result = jax.vmap(lambda chain: conv(x, chain, strides=2))(stacked)
    np.testing.assert_array_equal(result, jnp.stack([conv(x, chain, strides=2) for chain in chains]))
    dense = jax.vmap(lambda chain: chain.dense())(stacked)
    np.testing.assert_array_equal(dense, jnp.stack([chain.dense() for chain in chains]))


@pytest.mark.parametrize(("shapes", "counts"), [(PAIR, (1, 1)), MIXED])
def test_the_gradient_of_a_chain_is_that_through_its_dense_kernel(shapes, counts, rng):
    chain = chain_of(rng, shapes, counts, largest=1)
    x = integers((1, 6, 7, shapes[0][-2] * counts[0]), rng, low=-2, high=3)
    weights = integers(conv_output_shape(x.shape, chain, strides=2), rng, low=-2, high=3)

    def by_links(chain, x):
        return jnp.sum(weights * conv(x, chain, strides=2))

    def by_dense(chain, x):
        groups = chain.feature_group_count
        return jnp.sum(weights * conv(x, chain.dense(), strides=2, feature_group_count=groups))

    result, expected = (jax.grad(f, (0, 1))(chain, x) for f in (by_links, by_dense))
    assert result[0].feature_group_counts == counts
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), result, expected)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(result))


def test_a_chain_can_be_trained(rng):
    target = random_chain(rng, PAIR).dense()
    chain = random_chain(rng, PAIR)

    @jax.jit
    def step(chain):
        loss, slopes = jax.value_and_grad(lambda chain: jnp.mean((chain.dense() - target) ** 2))(chain)
        return loss, jax.tree.map(lambda kernel, slope: kernel - 0.5 * slope, chain, slopes)

    first, chain = step(chain)
    for _ in range(200):
        last, chain = step(chain)
    assert last < first / 20


# What a chain says about itself


@pytest.mark.parametrize(
    ("shapes", "counts", "shape", "groups", "params"),
    [
        (PAIR, (), (3, 3, 2, 6), 1, 24 + 72),
        (((5, 2, 3),), (), (5, 2, 3), 1, 30),
        (((3, 3, 3, 3, 4), (2, 1, 3, 4, 2)), (), (4, 3, 5, 3, 2), 1, 324 + 48),
        (*MIXED, (3, 3, 8, 6), 1, 72 + 48),
        (*BOTTLENECK, (3, 3, 4, 5), 1, 24 + 18 + 18 + 30),
        (((3, 1, 1, 4), (1, 3, 2, 8)), (4, 2), (3, 3, 2, 8), 2, 12 + 48),
        (((3, 3, 2, 8), (3, 3, 2, 8)), (4, 4), (5, 5, 2, 8), 4, 288),
        (((3, 3, 2, 12), (1, 1, 2, 12)), (4, 6), (3, 3, 4, 12), 2, 216 + 24),
    ],
)
def test_shape_groups_and_parameters(shapes, counts, shape, groups, params, rng):
    chain = chain_of(rng, shapes, counts)
    assert (chain.shape, chain.feature_group_count, chain.num_params) == (shape, groups, params)
    assert chain.ndim == len(shape)
    assert chain.windows == tuple(link[:-2] for link in shapes)
    assert chain.dense().shape == shape
    assert chain.feature_group_counts == (counts or (1,) * len(shapes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
def test_dtype_is_the_links(dtype, rng):
    chain = chain_of(rng, PAIR, largest=1, dtype=dtype)
    assert chain.dtype == chain.dense().dtype == dtype
    expected = loop_compose([np.asarray(kernel, np.float64) for kernel in chain.kernels], [1, 1])
    np.testing.assert_array_equal(np.asarray(chain.dense(), np.float64), expected)


def test_float64_chains_stay_float64(x64, rng):
    chain = random_chain(rng, PAIR, dtype=np.float64)
    dense = chain.dense()
    assert chain.dtype == dense.dtype == np.float64
    np.testing.assert_allclose(
        dense, loop_compose(list(map(np.asarray, chain.kernels)), [1, 1]), rtol=1e-12, atol=1e-12
    )
    x = rng.standard_normal((1, 7, 7, 2))
    result = conv(x, chain)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, conv(x, dense), rtol=1e-12, atol=1e-12)


def test_links_of_several_dtypes_promote_by_the_users_setting(rng, standard_promotion):
    chain = KernelChain(
        (jnp.asarray(integers(PAIR[0], rng, dtype=ml_dtypes.bfloat16)), jnp.asarray(integers(PAIR[1], rng)))
    )
    assert chain.dtype == chain.dense().dtype == np.float32
    assert conv(integers((1, 5, 5, 2), rng), chain).dtype == np.float32


@pytest.mark.parametrize(
    ("shapes", "counts", "message"),
    [
        ((), (), r"KernelChain: there must be at least one kernel"),
        (PAIR, (1,), r"KernelChain: 2 kernels need as many feature_group_counts, got (1,)"),
        (((3, 3, 2, 4), (3, 4, 6)), (), r"KernelChain: all kernels must have the same number of axes"),
        (((2, 4),), (), r"at least one window axis and two feature axes, got [(2, 4)]"),
        (
            ((3, 1, 2, 4), (1, 3, 5, 6)),
            (),
            r"kernel 0 gives 4 channels, but kernel 1 takes 5 * 1 groups = 5 ([(3, 1, 2, 4), (1, 3, 5, 6)])",
        ),
        (((3, 1, 2, 4), (1, 3, 4, 6)), (1, 2), r"kernel 0 gives 4 channels, but kernel 1 takes 4 * 2 groups = 8"),
        (((3, 1, 2, 4),), (3,), r"kernel 0 has 4 output channels, which do not divide into 3 groups"),
        (((3, 1, 2, 4),), (0,), r"kernel 0 has 4 output channels, which do not divide into 0 groups"),
    ],
)
def test_links_that_do_not_fit_are_refused(shapes, counts, message):
    kernels = tuple(np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=re.escape(message)):
        KernelChain(kernels, counts)


def test_lists_of_kernels_become_tuples(rng):
    chain = KernelChain([integers(shape, rng) for shape in PAIR], [1, 1])
    assert isinstance(chain.kernels, tuple)
    assert chain.feature_group_counts == (1, 1)
    np.testing.assert_array_equal(chain.dense(), compose(*chain.kernels))


# Dense kernels


@settings(max_examples=12)
@given(drawn_chains(), st.integers(0, 2**32 - 1))
def test_dense_is_what_the_loops_compose(drawn, seed):
    shapes, counts = drawn
    chain = chain_of(np.random.default_rng(seed), shapes, counts)
    np.testing.assert_array_equal(chain.dense(), looped_dense(chain), strict=True)


@pytest.mark.parametrize(
    ("shapes", "counts"),
    [
        MIXED,
        BOTTLENECK,
        (((1, 1, 8, 6), (3, 3, 1, 12)), (1, 6)),  # a 1x1, then depthwise with a multiplier of 2
        (((3, 3, 2, 12), (1, 1, 2, 12)), (4, 6)),  # group counts of which neither divides the other
        (((1, 1, 2, 4), (3, 3, 1, 4), (2, 2, 2, 8)), (2, 4, 2)),
    ],
)
def test_dense_of_mixed_groups(shapes, counts, rng):
    chain = chain_of(rng, shapes, counts)
    expected = looped_dense(chain)
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(chain.dense(), expected, strict=True)


def test_dense_of_16_bit_links_is_rounded_once(rng):
    chain = random_chain(rng, [(3, 3, 8, 16), (3, 3, 16, 16), (3, 3, 16, 8)], dtype=ml_dtypes.bfloat16)
    expected = loop_compose([np.asarray(kernel, np.float64) for kernel in chain.kernels], [1, 1, 1])
    error = np.abs(np.asarray(chain.dense(), np.float64) - expected)
    bound = 2.0**-8 * np.abs(expected) + 1e-6 * np.abs(expected).max()
    assert (error <= bound).all()
    # Rounding after each composition, as in `compose(compose(a, b), c)`, misses that bound.
    twice = np.asarray(compose(compose(*chain.kernels[:2]), chain.kernels[2]), np.float64)
    assert (np.abs(twice - expected) > bound).any()


def test_compose_in_numbers():
    row = jnp.array([1.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
    column = jnp.array([1.0, 0.0, -1.0]).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(compose(row, row)[0, :, 0, 0], [1, 4, 6, 4, 1])
    np.testing.assert_array_equal(compose(column, row)[:, :, 0, 0], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    # Matrix products over channels, the first link's first.
    a, b = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [5.0, 0.0]])
    np.testing.assert_array_equal(compose(a[None], b[None])[0], [[10, 1], [20, 3]])


def test_compose_errors_are_the_chains(rng):
    with pytest.raises(ValueError, match=r"kernel 0 gives 4 channels, but kernel 1 takes 2 \* 1 groups = 2"):
        compose(integers(PAIR[0], rng), integers(PAIR[0], rng))


def test_compose_is_associative(rng):
    a, b, c = (jnp.asarray(integers(shape, rng)) for shape in ((2, 3, 1, 2), (3, 1, 2, 3), (2, 2, 3, 2)))
    np.testing.assert_array_equal(compose(a, b, c), compose(compose(a, b), c))
    np.testing.assert_array_equal(compose(a, b, c), compose(a, compose(b, c)))


# Relative error


def test_relative_error_is_that_of_the_norms(rng):
    chain = random_chain(rng, PAIR)
    kernel = np.asarray(chain.dense()) + rng.standard_normal(chain.shape).astype(np.float32)
    dense = loop_compose([np.asarray(kernel, np.float64) for kernel in chain.kernels], [1, 1])
    expected = np.linalg.norm(dense - kernel) / np.linalg.norm(kernel)
    assert 0.1 < expected < 10
    np.testing.assert_allclose(chain.relative_error(kernel), expected, rtol=1e-5)
    assert chain.relative_error(chain.dense()) == 0
    assert chain.relative_error(-chain.dense()) == pytest.approx(2, rel=1e-6)


def test_relative_error_of_zero_kernels(rng):
    zero = jax.tree.map(jnp.zeros_like, chain_of(rng, PAIR))
    assert zero.relative_error(np.zeros(zero.shape, np.float32)) == 0
    assert chain_of(rng, PAIR).relative_error(np.zeros(zero.shape, np.float32)) == np.inf
    assert zero.relative_error(np.ones(zero.shape, np.float32)) == 1


def test_relative_error_of_16_bit_kernels_is_computed_in_float32(rng):
    chain = random_chain(rng, [(3, 1, 32, 32), (1, 3, 32, 32)], dtype=ml_dtypes.bfloat16)
    kernel = jnp.asarray(rng.standard_normal(chain.shape), jnp.bfloat16)
    dense = np.asarray(chain.dense(), np.float64)
    expected = np.linalg.norm(dense - np.asarray(kernel, np.float64)) / np.linalg.norm(np.asarray(kernel, np.float64))
    error = chain.relative_error(kernel)
    assert error.dtype == np.float32
    np.testing.assert_allclose(error, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("links", "given"),
    [("float32", "int32"), ("bfloat16", "float16"), ("float16", "bfloat16"), ("int8", "float32"), ("float32", "int8")],
)
def test_relative_error_of_kernels_of_another_dtype(links, given):
    chain = KernelChain((np.full((3, 1, 1), 2, links),))
    error = chain.relative_error(jnp.full((3, 1, 1), 4, given))
    assert error == 0.5
    assert error.dtype == np.float32


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_relative_error_of_kernels_whose_squares_are_out_of_range(size):
    chain = KernelChain((jnp.full((3, 1, 1), size, np.float32),))
    assert chain.relative_error(2 * chain.kernels[0]) == 0.5


def test_what_is_no_array_is_no_kernel(rng):
    chain = chain_of(rng, PAIR)
    for kernel, kind in ((chain, "KernelChain"), ([[[1.0]]], "list")):
        with pytest.raises(TypeError, match=f"relative_error: kernel must be an array, got {kind}"):
            chain.relative_error(kernel)
        with pytest.raises(TypeError, match=f"KernelChain: kernel 0 must be an array, got {kind}"):
            KernelChain((kernel,))
    with pytest.raises(TypeError, match="KernelChain: kernel 1 must be an array, got KernelChain"):
        compose(np.ones((1, 1, 2, 2), np.float32), chain)


@pytest.mark.parametrize(("counts", "kind"), [(1, "int"), ((2.0, 1.0), "tuple"), (np.ones((3, 3, 2, 2)), "ndarray")])
def test_group_counts_are_ints(counts, kind, rng):
    with pytest.raises(TypeError, match=f"feature_group_counts must be ints, one for each kernel.* got {kind}"):
        KernelChain(chain_of(rng, PAIR).kernels, counts)


def test_relative_error_refuses_another_shape(rng):
    message = re.escape("relative_error: the chain stands for a kernel of shape (3, 3, 2, 6), got (3, 3, 6, 2)")
    with pytest.raises(ValueError, match=message):
        chain_of(rng, PAIR).relative_error(np.zeros((3, 3, 6, 2), np.float32))


# Convolutions


def equal_to_dense(function, x, chain, options, dense=None):
    """conv(x, chain) and conv(x, chain.dense()) of whole numbers are the same to the last bit."""
    dense = chain.dense() if dense is None else dense
    result = function(x, chain, **options)
    expected = function(x, dense, feature_group_count=chain.feature_group_count, **options)
    np.testing.assert_array_equal(result, expected, strict=True)
    return np.asarray(result)


def drawn_image(data, shapes, counts, seed, smallest=2):
    rank = len(shapes[0]) - 2
    largest = {1: 9, 2: 6, 3: 4}[rank]
    sizes = tuple(data.draw(st.integers(smallest, largest)) for _ in range(rank))
    return integers((1, *sizes, shapes[0][-2] * counts[0]), np.random.default_rng(seed))


@drawn(10, 30, st.data(), drawn_chains(), st.integers(0, 2**32 - 1))
def test_a_chain_convolves_as_its_dense_kernel(data, drawn, seed):
    shapes, counts = drawn
    options = data.draw(drawn_options(len(shapes[0]) - 2))
    chain = chain_of(np.random.default_rng(seed), shapes, counts, largest=2)
    x = drawn_image(data, shapes, counts, seed)
    try:
        conv_output_shape(x.shape, chain, **options)
    except ValueError as error:
        assert "larger than its padded input" in str(error)  # noqa: PT017 - a draw without output
        assume(False)
    equal_to_dense(conv, x, chain, options, looped_dense(chain))


@drawn(8, 20, st.data(), drawn_chains(), st.integers(0, 2**32 - 1))
def test_a_chain_convolves_transposed_as_its_dense_kernel(data, drawn, seed):
    shapes, counts = drawn
    rank = len(shapes[0]) - 2
    options = data.draw(drawn_options(rank, padding_modes=False))
    options.pop("input_dilation")
    if not (isinstance(options["padding"], str) and options["padding"].upper().startswith("SAME")):
        options["output_padding"] = tuple(
            data.draw(st.integers(0, max(stride, dilation) - 1))
            for stride, dilation in zip(options["strides"], options["kernel_dilation"], strict=True)
        )
    chain = chain_of(np.random.default_rng(seed), shapes, counts, largest=2)
    rng = np.random.default_rng(seed)
    x = integers((1, *(data.draw(st.integers(1, {1: 6, 2: 4, 3: 3}[rank])) for _ in range(rank)), shapes[-1][-1]), rng)
    try:
        result = equal_to_dense(conv_transpose, x, chain, options, looped_dense(chain))
    except ValueError as error:
        assert "no output is left" in str(error)  # noqa: PT017 - a draw without output
        assume(False)
    # The adjoint identity, <conv(u), x> = <u, conv_transpose(x)>, wherever conv gives that many pixels again.
    extra = options.pop("output_padding", (0,) * rank)
    if all(more < stride for more, stride in zip(extra, options["strides"], strict=True)):
        u = integers(result.shape, rng)
        forward = np.asarray(conv(u, chain, **options))
        assert forward.shape == x.shape
        assert np.vdot(forward, x) == np.vdot(u, result)


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", 1, ((3, 0), (-1, 2))])
@pytest.mark.parametrize("strides", [1, (2, 3)])
@pytest.mark.parametrize(("shapes", "counts"), [(((3, 3, 2, 4), (3, 3, 4, 3)), (1, 1)), BOTTLENECK])
def test_borders_are_exact(shapes, counts, strides, padding, rng):
    """Padding between the links would be wrong at the borders, and a stride on the first link everywhere."""
    chain = chain_of(rng, shapes, counts)
    x = integers((2, 9, 8, chain.shape[-2]), rng)
    result = equal_to_dense(conv, x, chain, {"strides": strides, "padding": padding})
    assert np.abs(result).max() > 0


@pytest.mark.parametrize("layout", ["NCHW", "HWNC", ("NCHW", "OIHW", "NHWC"), ("NWHC", "WHIO", "NCHW")])
def test_layout_describes_the_images_and_not_the_links(layout, rng):
    chain = chain_of(rng, ((3, 1, 2, 4), (1, 2, 4, 6)))
    x = integers((2, 7, 8, 2), rng)
    expected = np.asarray(conv(x, chain, strides=(2, 1)))
    names_in, names_out = (layout, layout) if isinstance(layout, str) else (layout[0], layout[2])
    # Links are HWIO always: their axes, strides and padding are the layout's spatial axes in the kernel's order.
    spatial = "HW" if isinstance(layout, str) else "".join(name for name in layout[1] if name not in "IO")
    last = f"N{spatial}C"
    moved = x.transpose([last.index(name) for name in names_in])
    result = conv(moved, chain, strides=(2, 1), layout=layout)
    np.testing.assert_array_equal(result, expected.transpose([last.index(name) for name in names_out]), strict=True)
    y = integers((2, 4, 8, 6), rng)
    expected = np.asarray(conv_transpose(y, chain, strides=(2, 1)))
    moved = y.transpose([last.index(name) for name in names_in])
    result = conv_transpose(moved, chain, strides=(2, 1), layout=layout)
    np.testing.assert_array_equal(result, expected.transpose([last.index(name) for name in names_out]), strict=True)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_batch_axes(batch, rng):
    chain = chain_of(rng, PAIR)
    x = integers((*batch, 5, 6, 2), rng)
    result = conv(x, chain)
    assert result.shape == (*batch, 5, 6, 6)
    np.testing.assert_array_equal(result, conv(x, chain.dense()))


def test_depthwise_conv_takes_a_chain_of_as_many_groups(rng):
    chain = chain_of(rng, ((3, 1, 1, 4), (1, 3, 1, 8)), (4, 4))
    x = integers((1, 6, 6, 4), rng)
    result = depthwise_conv(x, chain, strides=2)
    np.testing.assert_array_equal(result, conv(x, chain.dense(), strides=2, feature_group_count=4))
    dense = np.asarray(chain.dense()).reshape(3, 3, 4, 2)
    np.testing.assert_array_equal(result, depthwise_conv(x, dense, strides=2))


SIXTEEN_BITS = [(ml_dtypes.bfloat16, 8), (np.float16, 11)]


@pytest.mark.parametrize(("dtype", "digits"), SIXTEEN_BITS)
def test_16_bit_chains_round_once(dtype, digits, rng):
    """Half a unit in the last place of the exact result, and float32's own rounding; two roundings would be more."""
    shapes = [(3, 3, 16, 32), (3, 3, 32, 32), (3, 3, 32, 16)]
    chain = random_chain(rng, shapes, dtype=dtype)
    chain = jax.tree.map(lambda kernel: kernel / jnp.asarray(16, dtype), chain)
    x = jnp.asarray(rng.standard_normal((1, 9, 9, 16)), dtype)
    for function, image in ((conv, x), (conv_transpose, x)):
        result = function(image, chain)
        assert result.dtype == dtype
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (image, chain))
            expected = np.asarray(function(*wide))
        assert expected.dtype == np.float64
        error = np.abs(np.asarray(result, np.float64) - expected)
        bound = 2.0**-digits * np.abs(expected) + 1e-5 * np.abs(expected).max()
        assert (error <= bound).all(), float((error / bound).max())
        # The bound can be missed: rounding between the links, as a row of plain convolutions does, misses it.
        y = image
        for kernel in chain.kernels if function is conv else chain.kernels[::-1]:
            y = function(y, kernel, padding="SAME")
        inner = np.asarray(y, np.float64)[:, 3:-3, 3:-3]
        assert (np.abs(inner - expected[:, 3:-3, 3:-3]) > bound[:, 3:-3, 3:-3]).any()


def test_int8_chains_are_exact_in_int32(rng):
    shapes, counts = ((3, 3, 8, 16), (3, 3, 16, 4)), (1, 1)
    chain = chain_of(rng, shapes, counts, largest=127, dtype=np.int8)
    x = integers((1, 6, 6, 8), rng, low=-127, high=128, dtype=np.int8)
    wide = loop_compose(list(map(np.asarray, chain.kernels)), [1, 1])
    padded = np.pad(x.astype(np.float64), ((0, 0), (2, 2), (2, 2), (0, 0)))
    exact = np.zeros((1, 6, 6, 4))
    for row, column in np.ndindex(5, 5):
        exact += padded[:, row : row + 6, column : column + 6] @ wide[row, column]
    assert 2**15 < np.abs(exact).max() < 2**31
    result = conv(x, chain)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, exact)


def test_int8_chains_are_exact_in_int32_transposed(rng):
    chain = chain_of(rng, PAIR, largest=127, dtype=np.int8)
    x = integers((1, 5, 5, 6), rng, low=-127, high=128, dtype=np.int8)
    result = conv_transpose(x, chain, padding="VALID")
    assert result.dtype == np.int32
    dense = loop_compose(list(map(np.asarray, chain.kernels)), [1, 1])
    exact = np.zeros((1, 7, 7, 2))
    for row, column in np.ndindex(3, 3):
        exact[:, row : row + 5, column : column + 5] += x.astype(np.float64) @ dense[row, column].T
    np.testing.assert_array_equal(result, exact)
    assert np.abs(exact).max() > 2**15


@pytest.mark.parametrize(
    ("chain", "groups", "chain_groups"),
    [((((3, 3, 1, 4), (3, 3, 1, 4)), (4, 4)), 2, 4), ((PAIR, (1, 1)), 2, 1), (MIXED, 8, 1)],
)
def test_another_group_count_than_the_chains_is_refused(chain, groups, chain_groups, rng):
    chain = chain_of(rng, *chain)
    features = chain.shape[-2] * chain.feature_group_count
    x = integers((1, 6, 6, features), rng)
    message = f"conv: the chain has a feature_group_count of its own, {chain_groups}, got {groups}"
    with pytest.raises(ValueError, match=message):
        conv(x, chain, feature_group_count=groups)
    with pytest.raises(
        ValueError, match=f"conv_transpose: the chain has a feature_group_count of its own, {chain_groups}"
    ):
        conv_transpose(integers((1, 6, 6, chain.shape[-1]), rng), chain, feature_group_count=groups)
    np.testing.assert_array_equal(conv(x, chain, feature_group_count=chain_groups), conv(x, chain), strict=True)


def test_a_chain_for_other_channels_is_refused(rng):
    chain = chain_of(rng, PAIR)
    with pytest.raises(
        ValueError, match=r"conv: x has 3 channels .* must have 3 input channels, got 2 .*\(3, 3, 2, 6\)"
    ):
        conv(integers((1, 5, 5, 3), rng), chain)
    with pytest.raises(
        ValueError, match=r"conv_transpose: x has 3 channels, so kernel must have 3 output channels, got 6"
    ):
        conv_transpose(integers((1, 5, 5, 3), rng), chain)


def test_a_chain_larger_than_its_padded_input_is_refused(rng):
    chain = chain_of(rng, ((3, 3, 2, 2), (3, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"it spans 5 \(dilation included\), the input has 4"):
        conv(integers((1, 4, 4, 2), rng), chain, padding="VALID")


def test_a_chain_never_turns_back_into_a_dense_kernel(rng):
    chain = chain_of(rng, PAIR)
    x = integers((1, 6, 6, 2), rng)
    text = str(jax.make_jaxpr(conv)(x, chain))
    assert text.count("jaxcnn_conv") == 2
    assert "f32[3,3," not in text


def test_dense_of_groups_has_no_convolution(rng):
    # Its gradient takes a second for 672 channels, in which a fit takes dozens of steps.
    chain = KernelChain((rng.normal(size=(5, 1, 2, 8)), rng.normal(size=(1, 5, 2, 12))), (4, 4))
    gradient = jax.make_jaxpr(jax.grad(lambda chain: jnp.sum(chain.dense() ** 2)))(chain)
    assert "conv_general_dilated" not in str(gradient)
