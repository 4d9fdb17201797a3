"""`summarize`: published counts and receptive fields, loops and branches, and what is told of each row."""

from __future__ import annotations

import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn import Cost, accelerate, summarize
from support import architectures
from support.arrays import jax_normal


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def summary_of(network, size=224, **options):
    """The summary of a network of the literature."""

    def f(x):
        return network(lambda sizes: jnp.zeros(sizes), x, **options)

    return summarize(f, shape(1, size, size, 3))


# MACs of convolutions and dense layers, biases, normalisation and pools left out: torchvision's and the papers' figures
# for one image of 224 pixels, and millions of weights of the same layers.
PUBLISHED = {
    "resnet50": (4.09, 25.5),
    "vgg16": (15.47, 138.3),
    "mobilenet_v2": (0.30, 3.47),
    "alexnet": (0.71, 61.1),
    "mobilenet_v1": (0.57, 4.21),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    total = summary_of(getattr(architectures, name)).total
    macs, params = PUBLISHED[name]
    assert round(total.macs / 1e9, 2) == macs
    assert round(total.params / 1e6, 2 if params < 10 else 1) == params
    assert 0.9 * total.macs < total.macs_valid <= total.macs
    assert total.flops >= 2 * total.macs


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (architectures.resnet50, {"stride_in_last_block": True}, (483, 32, 239)),
        (architectures.inception_v3, {}, (1311, 32, 618)),
        (architectures.mobilenet_v1, {}, (315, 32, 126)),
        (architectures.vgg16, {}, (212, 32, 90)),
    ],
)
def test_published_receptive_fields(network, options, expected):
    size = 299 if network is architectures.inception_v3 else 224
    field = summary_of(network, size, **options).receptive_field
    assert (field.size, field.stride, field.offset) == tuple((value,) * 2 for value in expected)


def test_keras_applications():
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.check_tracer_leaks(False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
        model = keras.applications.MobileNetV2(weights=None)
        trained = [variable.value for variable in model.trainable_variables]
        fixed = [variable.value for variable in model.non_trainable_variables]
        summary = summarize(lambda w, x: model.stateless_call(w, fixed, x)[0], trained, shape(1, 224, 224, 3))
    assert round(summary.total.macs / 1e9, 2) == 0.30
    assert summary.rows[1].name.endswith("expanded_conv_depthwise")


def test_costs_are_those_of_conv_cost():
    options = {"strides": (2, 1), "padding": ((2, 1), (0, 1)), "kernel_dilation": (1, 2), "feature_group_count": 2}
    sizes, kernel = (2, 9, 8, 4), (3, 2, 2, 6)
    expected = jaxcnn.conv_cost(sizes, kernel, **options)
    summary = summarize(lambda x, k: jaxcnn.conv(x, k, **options), shape(*sizes), shape(*kernel))
    assert summary.total == expected
    (row,) = summary.rows
    assert (row.kernel, row.strides, row.padding, row.dilation, row.groups) == (
        (3, 2),
        (2, 1),
        ((2, 1), (0, 1)),
        (1, 2),
        2,
    )
    pooled = summarize(lambda x: jaxcnn.max_pool(x, 3, strides=2), shape(*sizes))
    assert pooled.total == jaxcnn.pool_cost(sizes, 3, strides=2)


def test_layouts_keep_the_functions_own_shapes():
    def f(x, kernel):
        return jaxcnn.conv(x, kernel, layout="NCHW")

    for g in (f, lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME")):
        (row,) = summarize(g, shape(1, 3, 8, 9), shape(5, 3, 3, 3)).rows
        assert row.cost.macs == 8 * 9 * 9 * 3 * 5
        assert row.receptive_field.size == (3, 3)
    assert (row.input_shape, row.output_shape) == ((1, 3, 8, 9), (1, 5, 8, 9))


def training_loss(kernel, x):
    y = architectures.conv(lambda _: kernel, x, 4, 3, 2)
    return jnp.sum(architectures.max_pool(y, 3, 2) ** 2)


def test_gradients_and_accelerated_functions():
    gradient = jax.grad(training_loss, (0, 1))
    arguments = shape(3, 3, 4, 4), shape(1, 17, 17, 4)
    plain, fast = summarize(gradient, *arguments), summarize(accelerate(gradient), *arguments)
    kinds = ["conv", "max pool", "max pool gradient", "kernel gradient", "transposed conv"]
    assert [row.kind for row in plain.rows] == [row.kind for row in fast.rows] == kinds
    for a, b in zip(plain.rows, fast.rows, strict=True):
        assert (a.cost.macs, a.cost.macs_valid, a.cost.flops) == (b.cost.macs, b.cost.macs_valid, b.cost.flops)
        assert (a.method, a.reason) == (b.method, b.reason)
    assert len({row.cost.macs for row in plain.rows if "pool" not in row.kind}) == 1  # each costs what forward costs


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(
    ("dilation", "padding"), [((2, 2), ((1, 1), (1, 1))), ((1, 1), ((-1, 0), (0, 2))), ((2, 1), ((-1, 3), (0, 2)))]
)
def test_kernel_gradients_in_groups_of_a_dilated_or_cropped_input_are_counted(groups, dilation, padding):
    def f(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            padding,
            lhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 3, 4 // groups, 2 * groups))
    (forward,) = summarize(f, x, kernel).rows
    rows = summarize(jax.grad(lambda x, kernel: jnp.sum(f(x, kernel) ** 2), (0, 1)), x, kernel).rows
    (gradient,) = (row for row in rows if row.kind == "kernel gradient")
    assert (gradient.cost.macs, gradient.cost.macs_valid) == (forward.cost.macs, forward.cost.macs_valid)
    # Of an input that is cropped first it is computed as any other; of a dilated one lax alone computes it.
    method = "shift" if min(map(min, padding)) < 0 else "direct"
    assert (gradient.cost.params, gradient.method, gradient.output_shape) == (0, method, kernel.shape)
    assert len(rows) == 3


@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
@pytest.mark.parametrize(("size", "padding"), [(5, "VALID"), (2, "SAME")])
def test_a_window_larger_than_its_result_is_no_gradient(layout, size, padding):
    shapes = {"NHWC": (2, size, size, 4), "NCHW": (2, 4, size, size), "HWIO": (5, 5, 4, 8), "OIHW": (8, 4, 5, 5)}
    x, kernel = (jnp.ones(shapes[name]) for name in layout[:2])
    f = partial(lax.conv_general_dilated, window_strides=(1, 1), padding=padding, dimension_numbers=layout)
    (row,) = summarize(f, x, kernel).rows
    assert (row.kind, row.kernel, row.cost.params) == ("conv", (5, 5), 5 * 5 * 4 * 8)
    assert row.receptive_field.size == (5, 5)


def test_weights_of_a_stack_of_kernels():
    x, kernels = jnp.ones((5, 6, 6, 2)), jnp.ones((5, 3, 3, 2, 3))
    (row,) = summarize(jax.vmap(lambda x, kernel: jaxcnn.conv(x[None], kernel)), x, kernels).rows
    assert row.cost.params == kernels.size


def test_a_convolution_of_symbolic_shape_is_noted():
    (batch,) = jax.export.symbolic_shape("b")
    summary = summarize(
        lambda x: jaxcnn.conv(x, jnp.ones((3, 3, 2, 3))), jax.ShapeDtypeStruct((batch, 6, 6, 2), np.float32)
    )
    assert summary.rows == ()
    (note,) = summary.notes
    assert note.startswith("a convolution of symbolic shape at ")
    assert note.endswith("is not counted")


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


def test_without_a_name_the_table_has_the_users_line():
    summary = summarize(lambda x: jaxcnn.max_pool(x, 2), shape(1, 4, 4, 1))
    assert "test_summary.py:" in summary.rows[0].source
    assert "test_summary.py:" in str(summary)


def test_methods_and_platforms():
    def f(x, kernel):
        return jaxcnn.conv(x, kernel, feature_group_count=8)

    arguments = shape(1, 16, 16, 8), shape(3, 3, 1, 8)
    assert summarize(f, *arguments).rows[0].method == "shift"
    row = summarize(f, *arguments, platform="gpu").rows[0]
    assert (row.method, row.reason) == ("direct", "the platform's own convolution is used on GPU and TPU")
    row = summarize(accelerate(f, method="matmul"), *arguments).rows[0]
    assert (row.method, row.reason) == ("matmul", "asked for")
    row = summarize(lambda x, k: lax.conv(x, k, (1, 1), "SAME"), *(shape(1, 2, 5, 5, dtype=np.complex64),) * 2).rows[0]
    assert (row.method, row.reason) == ("direct", "left to XLA: only it takes these operands")


def test_statics_reach_the_function():
    def f(x, train, name):
        assert train is True
        assert name == "a"
        return jaxcnn.max_pool(x, 2)

    assert len(summarize(f, shape(1, 4, 4, 1), True, "a").rows) == 1


def test_nothing_is_compiled(compilations):
    compiled, _ = compilations
    summary_of(architectures.mobilenet_v2)
    # zeros and other constants of the function may be made, but no convolution
    assert not [name for name in compiled if name and ("conv" in name or name in ("f", "flat"))]


def test_table_and_json():
    summary = summary_of(architectures.inception_v3, 299)
    lines = str(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["layer", "kind", "output", "kernel", "MACs", "params", "field", "method"]
    assert "MACs (" in lines[-1]
    content = json.loads(summary.to_json())
    assert len(content["rows"]) == len(summary.rows)
    assert Cost(**content["total"]) == summary.total
    text = summary._repr_html_()
    assert text.count("<tr>") == len(summary.rows) + 1
    assert str(summarize(lambda x: x, 1.0)).splitlines()[-1].startswith("0 MACs")


def test_long_names_are_cut_from_the_left():
    def f(x):
        with jax.named_scope("a" * 200 + "/layer"):
            return jaxcnn.max_pool(x, 2)

    text = str(summarize(f, shape(1, 4, 4, 1)))
    assert max(map(len, text.splitlines())) <= 100
    assert "aaa/layer" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (4_089_184_256, "4.09 G"), (99_960, "100 k"), (9_996, "10.0 k")],
)
def test_counts_have_three_digits(number, text):
    from jaxcnn.transform.table import short

    assert short(number) == text


def test_errors():
    with pytest.raises(TypeError, match="summarize: f must be a function, got 3"):
        summarize(3)
    with pytest.raises(ValueError, match=r"summarize: platform must be one of 'cpu', .*, got 'npu'"):
        summarize(lambda x: x, jax_normal((2,)), platform="npu")
