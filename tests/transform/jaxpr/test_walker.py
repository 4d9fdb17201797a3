"""The walker: every primitive that holds a jaxpr is entered, and everything it does not compute stays as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core.primitives import conv_general_dilated_p
from jax.sharding import PartitionSpec as P

from jaxcnn.transform.acceleration.accelerate import accelerate
from support.arrays import assert_same, jax_normal
from support.jaxprs import equations, equations_of

pytestmark = pytest.mark.leaks

KERNEL = jax_normal((3, 3, 1, 4), 1) / 3
X = jax_normal((2, 6, 6, 4))


def conv(x, kernel=KERNEL):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )


@jax.custom_jvp
def with_jvp(x):
    return conv(x)


with_jvp.defjvp(lambda primals, tangents: (conv(*primals), 3 * conv(*tangents)))


@jax.custom_vjp
def with_vjp(x):
    return conv(x)


with_vjp.defvjp(lambda x: (conv(x), x), lambda x, cotangent: (5 * conv(cotangent) + x,))


@jax.custom_vjp
def with_vjp_of_integers(x, n):
    return conv(x) * n.astype(x.dtype), n + 1


with_vjp_of_integers.defvjp(
    lambda x, n: (with_vjp_of_integers(x, n), n),
    lambda n, cotangents: (7 * n.astype(KERNEL.dtype) * conv(cotangents[0]), None),
)


@jax.custom_vjp
def only_backward(x):
    return 2 * x


only_backward.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (conv(cotangent),))


@custom_vmap
def with_vmap(x):
    return conv(x)


@with_vmap.def_vmap
def _(size, batched, x):
    del size, batched
    return jax.vmap(conv)(x) + 1, True


def switched(x):
    return lax.switch(jnp.int32(1), [jnp.sin, lambda x: conv(jnp.cos(x)), lambda x: x], x)


def in_while(x):
    return lax.while_loop(
        lambda state: jnp.abs(conv(state[1])).sum() * 0 + state[0] < 3,
        lambda state: (state[0] + 1, conv(state[1])),
        (0.0, x),
    )[1]


def in_scan(x):
    def body(carry, k):
        return conv(carry, k), carry.sum()

    return lax.scan(body, x, jnp.stack([KERNEL, 2 * KERNEL]))


def in_fori(x):
    return lax.fori_loop(0, 3, lambda i, x: conv(x) + i, x)


def in_map(x):
    return lax.map(lambda x: conv(x[None])[0], x)


def in_shard_map(x):
    # Manual on a mesh of one device, and two shards on two.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    f = jax.shard_map(
        lambda x: (conv(x), lax.psum(conv(x).sum(), "data")), mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P())
    )
    return f(x)


def in_pmap(x):
    return jax.pmap(lambda x: conv(x) + lax.axis_index("i").astype(x.dtype), axis_name="i")(x[:, None])


def closing_over_an_argument(x):
    scale = lax.stop_gradient(x.sum() / 100)

    @jax.custom_vjp
    def f(y):
        return conv(y) * scale

    f.defvjp(lambda y: (f(y), y), lambda y, cotangent: (2 * conv(cotangent) * y,))
    return lax.scan(lambda carry, _: (f(carry), None), x, length=2)[0]


HOLDERS = {
    "jit": jax.jit(conv),
    "nested jit": jax.jit(lambda x: jax.jit(conv)(x) + 1),
    "remat": jax.checkpoint(lambda x: jnp.sin(conv(x))),
    "remat with policy": jax.checkpoint(
        lambda x: jnp.sin(conv(x)), policy=jax.checkpoint_policies.everything_saveable, prevent_cse=False
    ),
    "scan": in_scan,
    "while": in_while,
    "fori": in_fori,
    "map": in_map,
    "cond": switched,
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "custom_vjp of integers": lambda x: with_vjp_of_integers(x, jnp.int32(3)),
    "custom_vjp that closes over": closing_over_an_argument,
    "custom_vmap": with_vmap,
    "shard_map": in_shard_map,
    "pmap": in_pmap,
}


def left(jaxpr):
    """How many of lax's convolutions there are in a jaxpr, at any depth."""
    return sum(equation.primitive is conv_general_dilated_p for equation in equations(jaxpr))


@pytest.fixture(autouse=True)
def leaks(request):
    """Two holders refer to tracers by themselves: JAX's gradient of a shard_map, and a user's closure."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    with jax.check_tracer_leaks(name not in ("shard_map", "custom_vjp that closes over")):
        yield


@pytest.mark.parametrize("name", HOLDERS)
def test_every_holder_is_entered(name):
    f = HOLDERS[name]
    assert left(jax.make_jaxpr(f)(X)) > 0
    assert left(jax.make_jaxpr(accelerate(f))(X)) == 0
    assert_same(accelerate(f)(X), f(X))
    assert_same(jax.jit(accelerate(f))(X), f(X))


# A rule that closes over a tracer cannot be differentiated once its trace has ended, as in `jax.grad(jax.jit(f))`.
DIFFERENTIABLE = [
    name for name in HOLDERS if name not in ("while", "custom_vmap", "pmap", "custom_vjp that closes over")
]


def loss(f):
    return lambda x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(x)) if jnp.issubdtype(y.dtype, jnp.floating))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_inside_and_outside(name):
    f = HOLDERS[name]
    expected = jax.jit(jax.grad(loss(f)))(X)
    assert_same(jax.jit(jax.grad(loss(accelerate(f))))(X), expected)
    assert_same(accelerate(jax.grad(loss(f)))(X), expected)
    assert left(jax.make_jaxpr(accelerate(jax.grad(loss(f))))(X)) == 0
    # the rules of custom derivatives are entered as well
    assert left(jax.make_jaxpr(jax.grad(loss(accelerate(f))))(X)) == 0


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name not in ("shard_map", "remat with policy")])
def test_second_derivatives_and_vmap(name):
    f = HOLDERS[name]

    def twice(f):
        return jax.grad(lambda x: jnp.sum(jax.grad(loss(f))(x) ** 2))

    assert_same(jax.jit(twice(accelerate(f)))(X), jax.jit(twice(f))(X))
    stacked = jnp.stack([X, 2 * X])
    assert_same(jax.vmap(accelerate(f))(stacked), jax.vmap(f)(stacked))
    assert_same(
        jax.jit(accelerate(jax.vmap(jax.grad(loss(f)))))(stacked), jax.jit(jax.vmap(jax.grad(loss(f))))(stacked)
    )


def test_a_rule_with_a_convolution_backward_alone_is_entered():
    f = loss(accelerate(only_backward))
    assert left(jax.make_jaxpr(jax.grad(f))(X)) == 0
    assert_same(jax.grad(f)(X), jax.grad(loss(only_backward))(X))


def test_forward_mode_of_a_custom_vjp_is_refused_as_without():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(accelerate(with_vjp), (X,), (X,))


def test_rules_of_custom_vmap_are_kept_and_entered():
    stacked = jnp.stack([X, 2 * X])
    f = jax.vmap(accelerate(with_vmap))
    assert_same(f(stacked), jax.vmap(with_vmap)(stacked))
    assert left(jax.make_jaxpr(f)(stacked)) == 0
    twice = jnp.stack([stacked, stacked + 1])
    assert_same(jax.vmap(f)(twice), jax.vmap(jax.vmap(with_vmap))(twice))


def test_a_rule_of_custom_vmap_for_some_of_its_arguments():
    @custom_vmap
    def f(x, y):
        return conv(x) + y, 2 * y

    @f.def_vmap
    def _(size, batched, x, y):
        assert (size, batched) == (2, [True, False])
        return (jax.vmap(conv)(x) - y[None], 2 * y), (True, False)

    stacked = jnp.stack([X, 2 * X])
    y = conv(X)
    assert_same(jax.vmap(accelerate(f), (0, None))(stacked, y), jax.vmap(f, (0, None))(stacked, y))
    assert left(jax.make_jaxpr(jax.vmap(accelerate(f), (0, None)))(stacked, y)) == 0


def test_remat_stays_differentiated():
    f = accelerate(jax.grad(loss(HOLDERS["remat"])))
    remats = [eqn for eqn in equations_of(f, X) if eqn.primitive is jax.extend.core.primitives.remat_p]
    assert [equation.params["differentiated"] for equation in remats] == [True]


def test_constants_made_while_rewriting_a_remat_become_operands():
    table = np.arange(4, dtype=np.float32)

    @jax.checkpoint
    def f(x):
        return conv(x) * jnp.asarray(table)[None, None, None] + jnp.asarray(np.ones((1, 6, 6, 4), np.float32))

    assert_same(accelerate(f)(X), f(X))
    assert_same(accelerate(jax.grad(loss(f)))(X), jax.grad(loss(f))(X))


def test_what_is_not_touched_is_bound_with_its_own_jaxpr():
    def f(x):
        return conv(jax.nn.gelu(jax.nn.relu(x))) + lax.scan(lambda c, _: (c + 1, None), x, length=3)[0]

    before = {id(e.params["jaxpr"]) for e in _equations(f) if e.primitive.name == "scan"}
    assert before
    text = str(jax.make_jaxpr(accelerate(f))(X))
    assert "custom_jvp_call" in text
    assert "relu" in text


def _equations(f):
    return jax.make_jaxpr(f)(X).jaxpr.eqns


def test_a_function_called_twice_is_lowered_once():
    block = jax.jit(lambda x: jnp.sin(conv(x)))

    def f(x):
        return block(block(block(x)))

    assert jax.jit(accelerate(f)).lower(X).as_text().count("func.func private") == 1


def test_names_and_source_lines_survive():
    def f(x):
        with jax.named_scope("stem"):
            x = conv(x)

        def body(x, _):
            with jax.named_scope("block"):
                return conv(x), None

        with jax.named_scope("body"):
            return lax.scan(body, x, length=2)[0]

    def where(f):
        lowered = jax.jit(f).lower(X).as_text(debug_info=True)
        return {name for name in ("stem", "body", "block") if f"{name}/" in lowered}, "test_walker.py" in lowered

    assert where(f) == where(accelerate(f)) == ({"stem", "body", "block"}, True)
    for equation in jax.make_jaxpr(accelerate(f))(X).jaxpr.eqns:
        if equation.primitive.name == "jaxcnn_conv":
            assert str(equation.source_info.name_stack) == "stem"
            frames = jax.extend.source_info_util.summarize(equation.source_info)
            assert "test_walker.py" in frames


def test_side_effects_happen_once():
    values = []

    def f(x):
        jax.debug.callback(lambda y: values.append(float(y)), x.sum())
        return conv(x)

    jax.block_until_ready(accelerate(f)(X))
    jax.effects_barrier()
    assert len(values) == 1


def test_random_keys_and_collectives_pass_through():
    def f(key, x):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.where(keep, conv(x), 0), jax.random.split(key)

    key = jax.random.key(0)
    assert_same(jax.random.key_data(accelerate(f)(key, X)[1]), jax.random.key_data(f(key, X)[1]))
    assert_same(accelerate(f)(key, X)[0], f(key, X)[0])

    def mean(x):
        return lax.pmean(conv(x), "batch")

    assert_same(
        jax.vmap(accelerate(mean), axis_name="batch")(X[:, None]), jax.vmap(mean, axis_name="batch")(X[:, None])
    )


def test_an_explicit_mesh_keeps_the_types():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, jax.sharding.NamedSharding(mesh, P("data")))
        y = jax.jit(accelerate(conv))(x)
        assert jax.typeof(y) == jax.typeof(jax.jit(conv)(x))
        assert_same(y, conv(x))


def test_symbolic_images_are_left_to_lax():
    shape = jax.export.symbolic_shape("b, h, h, 4")
    exported = jax.export.export(jax.jit(accelerate(conv)))(jax.ShapeDtypeStruct(shape, np.float32))
    assert_same(exported.call(X), conv(X))
