"""Operations that follow a convolution and alone use its result: found, computed with it, with the same values."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn import accelerate
from jaxcnn.epilogue import Epilogue
from jaxcnn.lowering.methods import direct
from support.arrays import assert_same
from support.arrays import jax_normal as normal
from support.fusing import fused, walk

X, KERNEL, BIAS = normal((2, 5, 6, 4), 1), normal((3, 3, 4, 4), 2) / 6, normal((4,), 3)
conv = partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def block(x, kernel, bias):
    return jax.nn.relu(conv(x, kernel) * 2.0 + bias[None, None, None] + x)


def check(f, *args, count=1, tolerance=1e-5):
    """As many fused convolutions as expected; values and gradients of the function."""
    recipes = fused(accelerate(f), *args)
    assert len(recipes) == count

    @partial(jax.jit, static_argnums=0)
    def both(f, *args):
        every = tuple(range(len(args)))
        return f(*args), jax.grad(lambda *args: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(*args))), every)(
            *args
        )

    assert_same(both(accelerate(f), *args), both(f, *args), tolerance)
    return recipes


# What is fused, and in which order.

STEPS = {
    "add": (lambda y: y + BIAS[None, None, None], (("add", 0),), False),
    "add on the left": (lambda y: BIAS[None, None, None] + y, (("add", 0),), False),
    "sub": (lambda y: y - BIAS[None, None, None], (("sub", 0),), False),
    "sub on the left": (lambda y: BIAS[None, None, None] - y, (("rsub", 0),), False),
    "mul": (lambda y: y * BIAS[None, None, None], (("mul", 0),), False),
    "div": (lambda y: y / BIAS[None, None, None], (("div", 0),), False),
    "neg": (lambda y: -y, (("mul", -1.0),), False),
    "numbers": (lambda y: (1 - 2 * y) / 4 + 3, (("mul", 2.0), ("rsub", 1.0), ("div", 4.0), ("add", 3.0)), False),
    "one vector twice": (lambda y: (lambda v: (y + v) * v)(BIAS[None, None, None]), (("add", 0), ("mul", 0)), False),
    "a whole array of a vector": (
        lambda y: y + lax.broadcast_in_dim(BIAS, y.shape, (3,)),
        (("add", 0),),
        False,
    ),
    "residual": (lambda y: y + X, (), True),
    "residual on the left": (lambda y: X + y, (), True),
    "subtracted from a residual": (lambda y: X - (y + 1), (("add", 1.0), ("mul", -1.0)), True),
    "residual after moves": (lambda y: (y.reshape(2, 30, 4) + X.reshape(2, 30, 4)).transpose(2, 0, 1) * 3, (), True),
}


@pytest.mark.parametrize("step", STEPS)
def test_arithmetic_by_channel_and_residuals(step, fusing_on):
    g, steps, residual = STEPS[step]
    (recipe,) = fused(accelerate(lambda x: g(conv(x, KERNEL))), X)
    assert recipe.steps == steps
    assert (recipe.residual is not None) is residual


def test_values_of_all_steps(fusion):
    def every(x, wrap):
        return {name: wrap(lambda x, g=g: g(conv(x, KERNEL)))(x) for name, (g, *_) in STEPS.items()}

    actual = jax.jit(partial(every, wrap=accelerate))(X)
    assert_same(actual, jax.jit(partial(every, wrap=lambda f: f))(X))


UNFUSED = {
    "a residual subtracted": lambda y: y - X,
    "a product with an image": lambda y: y * X,
    "a quotient of a bias": lambda y: BIAS[None, None, None] / y,
    "a bias along another axis": lambda y: y + normal((1, 1, 6, 1)),
    "by channel and by image": lambda y: y + normal((2, 1, 1, 4)),
    "a spread along another axis": lambda y: y + lax.broadcast_in_dim(normal((6,)), y.shape, (2,)),
    "its own square": lambda y: y * y,
    "twice itself": lambda y: y + y,
    "a use beside": lambda y: (y + BIAS[None, None, None]) * y.mean(),
    "a reduction": lambda y: y.sum(-1),
    "channels that are torn apart": lambda y: y.reshape(2, 5, 6, 2, 2) + 1,
    "another dtype": lambda y: y.astype(jnp.bfloat16) + jnp.bfloat16(1),
    "nothing": lambda y: y,
    "moves alone": lambda y: y.transpose(3, 0, 1, 2).reshape(4, -1),
}


@pytest.mark.parametrize("case", UNFUSED)
def test_what_is_left_alone(case, fusing_on):
    assert not fused(accelerate(lambda x: UNFUSED[case](conv(x, KERNEL))), X)


def test_a_convolution_that_is_used_twice_or_returned(fusing_on):
    def returned(x):
        y = conv(x, KERNEL)
        return y, jax.nn.relu(y)

    def returned_after_its_bias(x):
        y = conv(x, KERNEL) + BIAS[None, None, None]
        return y, jax.nn.relu(y)

    assert not fused(accelerate(returned), X)
    (recipe,) = fused(accelerate(returned_after_its_bias), X)  # as far as it is used once
    assert (recipe.steps, recipe.activation) == ((("add", 0),), "none")


def test_other_dtypes_are_left_alone(fusing_on, x64):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
        args = [array.astype(dtype) for array in (X, KERNEL)]
        assert not fused(accelerate(lambda x, kernel: jax.nn.relu(conv(x, kernel))), *args)
    mixed = partial(conv, preferred_element_type=np.float32)
    args = [array.astype(jnp.bfloat16) for array in (X, KERNEL)]
    assert not fused(accelerate(lambda x, kernel: jax.nn.relu(mixed(x, kernel))), *args)


def test_of_two_convolutions_that_are_added_one_takes_the_sum(fusion):
    def f(x, kernel):
        return jax.nn.relu((conv(x, kernel) + 1) + (conv(x, 2 * kernel) * 3))

    recipes = check(f, X, KERNEL, count=2)
    assert sorted(recipe.residual is not None for recipe in recipes) == [False, True]


def random_chain(seed):
    """A function of an image, a kernel and operands, in a random layout, with random things after the convolution."""
    generator = np.random.default_rng(seed)
    first = bool(generator.integers(2))
    kind = ("dense", "depthwise", "strided", "transposed")[generator.integers(4)]
    names = generator.choice(
        ["bias", "scale", "shift", "spread", "number", "move", "back", "unit"], generator.integers(6)
    )
    residual, activation = generator.integers(3), generator.integers(6)
    activations = [None, jax.nn.relu, jax.nn.silu, jax.nn.gelu, jnp.tanh, jax.nn.hard_swish]

    def f(x, kernel, vector, other):
        layout = ("NCHW", "HWIO", "NCHW") if first else ("NHWC", "HWIO", "NHWC")
        options = {"strided": {"window_strides": (2, 1)}, "transposed": {"lhs_dilation": (2, 2)}}.get(kind, {})
        if kind == "depthwise":
            kernel, options = kernel[:, :, :1], {"feature_group_count": 4}
        x = x.transpose(0, 3, 1, 2) if first else x
        y = conv(x, kernel, padding=((1, 1), (1, 2)), dimension_numbers=layout, **options)
        axis = 1 if first else 3
        for name in names:
            shape = tuple(4 if place == axis else 1 for place in range(y.ndim))
            if name == "bias":
                y = vector.reshape(shape) + y
            elif name == "scale":
                y = y * vector.reshape(shape)
            elif name == "shift":
                y = vector.reshape(shape) - y
            elif name == "spread":
                y = y - lax.broadcast_in_dim(vector, y.shape, (axis,))
            elif name == "number":
                y = y / 3
            elif name == "move":
                y, axis = jnp.moveaxis(y, axis, 0), 0
            elif name == "back":
                y, axis = jnp.moveaxis(y, axis, -1), y.ndim - 1
            else:
                y, axis = y[None], axis + 1
        if residual:
            image = jnp.resize(other, y.shape)
            y = y + image if residual == 1 else image - y
        return y if activations[activation] is None else activations[activation](y)

    return f


def test_random_chains(fusion):
    functions = [random_chain(seed) for seed in range(24)]
    args = (X, KERNEL, BIAS + 2, normal((97,), 5))
    result = [fused(accelerate(f), *args) for f in functions]
    assert sum(map(len, result)) >= 20
    assert any(recipe.moves and recipe.residual for recipes in result for recipe in recipes)

    @partial(jax.jit, static_argnums=0)
    def run(wrap, *args):
        return [wrap(f)(*args) for f in functions]

    assert_same(run(accelerate, *args), run(lambda f: f, *args), 1e-5)


# Where.


def test_channels_first(fusion):
    x, kernel = X.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1)

    def f(x, kernel, bias):
        return jax.nn.silu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME") + bias[None, :, None, None] + x)

    (recipe,) = check(f, x, kernel, BIAS)
    assert recipe.moves == ((0, 3, 1, 2),)


def test_a_convolution_of_jaxcnn_in_any_layout(fusing_on):
    def f(layout, x, kernel, bias):
        return jax.nn.relu(jaxcnn.conv(x, kernel, layout=layout) + bias + x)

    first = X.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1), BIAS[None, :, None, None]
    for layout, args in ((None, (X, KERNEL, BIAS[None, None, None])), ("NCHW", first)):
        g = partial(f, layout)
        (recipe,) = fused(accelerate(g), *args)
        assert (recipe.residual is not None, recipe.activation) == (True, "relu")
        assert_same(accelerate(g)(*args), g(*args))


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank, fusion):
    x, kernel = normal((2, *(4,) * rank, 3)), normal((*(3,) * rank, 3, 5)) / 9
    numbers = ("N" + "DHW"[-rank:] + "C", "DHW"[-rank:] + "IO", "N" + "DHW"[-rank:] + "C")

    def f(x, kernel):
        return jax.nn.relu6(lax.conv_general_dilated(x, kernel, (1,) * rank, "SAME", dimension_numbers=numbers) + 1)

    check(f, x, kernel)


def bodies():
    def scanned(x, kernel, bias):
        return lax.scan(lambda x, bias: (block(x, kernel, bias), None), x, jnp.stack([bias, 2 * bias]))[0]

    def branched(x, kernel, bias):
        return lax.cond(bias[0] > 0, lambda x: block(x, kernel, bias), lambda x: x, x)

    def looped(x, kernel, bias):
        return lax.fori_loop(0, 2, lambda _, x: block(x, kernel, bias), x)

    @jax.custom_vjp
    def with_rule(x, kernel, bias):
        return block(x, kernel, bias)

    with_rule.defvjp(lambda *args: (block(*args), args), lambda args, dy: tuple(2 * array for array in args))
    return {
        "jit": jax.jit(block),
        "checkpoint": jax.checkpoint(block),
        "scan": scanned,
        "cond": branched,
        "fori_loop": looped,
        "custom_vjp": with_rule,
    }


@pytest.mark.parametrize("body", bodies())
def test_inside_other_primitives(body, fusion):
    check(bodies()[body], X, KERNEL, BIAS, tolerance=1e-4)


def test_batched_from_inside_and_from_outside(fusion):
    many = jnp.stack([X, 2 * X, -X])
    outside, inside = jax.vmap(accelerate(block), (0, None, None)), accelerate(jax.vmap(block, (0, None, None)))
    expected = jax.jit(jax.vmap(block, (0, None, None)))(many, KERNEL, BIAS)
    for f in (outside, inside):
        assert len(fused(f, many, KERNEL, BIAS)) == 1
        assert_same(jax.jit(f)(many, KERNEL, BIAS), expected)


def test_a_batch_of_kernels_or_of_biases(fusing_on):
    kernels, biases = jnp.stack([KERNEL, 2 * KERNEL]), jnp.stack([BIAS, 2 * BIAS])
    for axes, args in (((None, 0, None), (X, kernels, BIAS)), ((None, None, 1), (X, KERNEL, biases.T))):
        accelerated, plain = jax.jit(jax.vmap(accelerate(block), axes)), jax.jit(jax.vmap(block, axes))
        assert_same(accelerated(*args), plain(*args))


def test_in_shard_map_and_partitioned(fusing_on):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    mapped = jax.shard_map(
        accelerate(block), mesh=mesh, in_specs=(P("batch"), P(), P()), out_specs=P("batch"), check_vma=True
    )
    assert len(fused(mapped, X, KERNEL, BIAS)) == 1
    assert len(fused(accelerate(mapped), X, KERNEL, BIAS)) == 1
    expected = jax.jit(block)(X, KERNEL, BIAS)
    assert_same(jax.jit(mapped)(X, KERNEL, BIAS), expected)
    assert len(fusing_on.calls) == 1  # each device's program is its own
    x = jax.device_put(X, NamedSharding(mesh, P("batch")))
    assert_same(jax.jit(accelerate(block))(x, KERNEL, BIAS), expected)
    assert len(fusing_on.calls) == 1  # XLA cannot partition what it does not see into


def test_in_another_context_than_it_was_traced_in(fusing_on):
    def f(x, kernel, bias):
        return jnp.tanh(conv(x, kernel) + bias[None, None, None] + x)

    closed = jax.make_jaxpr(accelerate(f))(X[:1], KERNEL, BIAS)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))

    def again(x, kernel, bias):
        varied = (lax.pcast(array, ("batch",), to="varying") for array in (kernel, bias))
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x, *varied)[0]

    mapped = jax.shard_map(again, mesh=mesh, in_specs=(P("batch"), P(), P()), out_specs=P("batch"))
    assert_same(jax.jit(mapped)(X, KERNEL, BIAS), jax.jit(f)(X, KERNEL, BIAS))


def test_a_method_that_refuses_an_epilogue_leaves_it_to_the_operations(fusing_on, monkeypatch):
    asked = []

    def supports_fused(spec, epilogue):
        asked.append(epilogue)
        return "no residuals" if epilogue.has_residual else None

    monkeypatch.setattr(direct, "supports_fused", supports_fused)
    assert_same(accelerate(block, method="direct")(X, KERNEL, BIAS), jax.jit(block)(X, KERNEL, BIAS))
    assert asked == [Epilogue(has_scale=True, has_bias=True, has_residual=True, activation="relu", alpha=0.0)]
    assert not fusing_on.calls


def test_nothing_is_fused_without_a_method_that_takes_it(monkeypatch):
    monkeypatch.setattr("jaxcnn.native.is_available", lambda: False)
    assert not fused(accelerate(block), X, KERNEL, BIAS)


def test_exported_and_for_other_platforms_it_is_the_operations(fusing_on):
    for platform in ("cpu", "tpu"):
        exported = jax.export.export(jax.jit(accelerate(block)), platforms=[platform])(X, KERNEL, BIAS)
        assert "stablehlo" in exported.mlir_module()
    assert not fusing_on.calls


def test_operation_by_operation(fusing_on):
    with jax.disable_jit():
        assert_same(accelerate(block)(X, KERNEL, BIAS), block(X, KERNEL, BIAS))


def test_relu_keeps_its_derivative_at_zero(fusion):
    for relu in (jax.nn.relu, lambda y: jnp.maximum(y, 0)):  # 0 and a half

        def f(x, relu=relu):
            return relu(conv(x, KERNEL) + 0.0)

        zeros = jnp.zeros_like(X)
        slopes = [jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x))))(zeros) for f in (accelerate(f), f)]
        np.testing.assert_allclose(*slopes, 1e-5)
        assert (jnp.abs(slopes[1]).max() > 0) == (relu is not jax.nn.relu)


def test_a_linear_function_keeps_its_transpose(fusing_on):
    def f(x):
        return 2 * conv(x, KERNEL) + x

    for g in (f, accelerate(f)):
        (result,) = jax.jit(jax.linear_transpose(g, X))(X)
        assert_same(result, jax.jit(lambda y: 2 * jax.grad(lambda x: jnp.vdot(conv(x, KERNEL), y))(y) + y)(X), 1e-4)
    assert len(fused(accelerate(f), X)) == 1


# What other transformations make of it.


def test_twice_accelerated(fusing_on):
    once, twice = accelerate(block), accelerate(accelerate(block))
    assert str(jax.make_jaxpr(once)(X, KERNEL, BIAS)) == str(jax.make_jaxpr(twice)(X, KERNEL, BIAS))


def test_a_summary_shows_the_convolution(fusing_on, monkeypatch):
    def named(x, kernel, bias):
        with jax.named_scope("layer"):
            return block(x, kernel, bias)

    summary = jaxcnn.summarize(accelerate(named), X, KERNEL, BIAS)
    monkeypatch.setattr("jaxcnn.epilogue.has_fusing_methods", lambda: False)
    assert summary == jaxcnn.summarize(accelerate(named), X, KERNEL, BIAS)
    (row,) = summary.rows
    assert (row.name, row.cost.params) == ("layer", KERNEL.size)


def test_chains_reach_its_convolution(fusing_on):
    chain = jaxcnn.separable(KERNEL, rank=2)

    def f(params, x):
        return block(x, params["kernel"], BIAS)

    substituted = jaxcnn.with_chains(accelerate(f))({"kernel": chain}, X)
    assert_same(substituted, block(X, chain.dense(), BIAS), 1e-4)
    small = jaxcnn.substitute(accelerate(f), {"kernel": KERNEL}, X, rank=2, schemes=("separable",))
    assert isinstance(small.params["kernel"], jaxcnn.KernelChain)


def test_name_and_line_are_those_of_the_convolution(fusing_on):
    def f(x):
        with jax.named_scope("first"):
            y = conv(x, KERNEL)
        with jax.named_scope("second"):
            return jax.nn.relu(y)

    closed = jax.make_jaxpr(accelerate(f))(X)
    (equation,) = (e for e in closed.eqns if e.primitive.name == "jaxcnn_fused_conv")
    assert str(equation.source_info.name_stack) == "first"
    for inner in walk(equation.params["unfused"]):
        assert not str(inner.source_info.name_stack)
