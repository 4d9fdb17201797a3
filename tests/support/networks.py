"""Small networks in each library, with the layers that large ones are made of, as functions of parameters and x.

Each function here returns (f, variables, train_f): `f(variables, x)` is inference, `train_f(variables, x)` gives
outputs and the new statistics of batch normalisation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SHAPE = (2, 16, 16, 3)


def flax_linen():
    from flax import linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            def norm(y):
                return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))

            x = norm(nn.Conv(8, (3, 3), strides=2)(x))
            x = x + norm(nn.Conv(8, (3, 3), feature_group_count=8)(x))  # residual, depthwise
            x = x + norm(nn.Conv(8, (3, 3), kernel_dilation=2, feature_group_count=2)(x))  # dilated, grouped
            branches = [nn.Conv(4, (1, 1))(x), nn.Conv(4, (5, 5))(x), nn.max_pool(x, (3, 3), (1, 1), "SAME")]
            x = jnp.concatenate(branches, -1)  # inception
            weights = nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
            x = x * weights[:, None, None]  # squeeze and excite
            x = nn.avg_pool(x, (3, 3), (2, 2), "SAME")
            x = nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x)
            return nn.Dense(5)(x.mean((1, 2)))

    model = Network()
    variables = model.init(jax.random.key(0), jnp.ones(SHAPE))

    def train(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    return model.apply, variables, train


def flax_nnx():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
            self.grouped = nnx.Conv(8, 8, (3, 3), kernel_dilation=2, feature_group_count=2, rngs=rngs)
            self.up = nnx.ConvTranspose(8, 6, (3, 3), strides=2, rngs=rngs)
            self.head = nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.stem(x)))
            x = x + self.grouped(self.depthwise(x))
            x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
            return self.head(self.up(x).mean((1, 2)))

    graph, state = nnx.split(Network(nnx.Rngs(0)))

    def run(state, x, train):
        model = nnx.merge(graph, state)
        model.train() if train else model.eval()
        result = model(x)
        return result, nnx.state(model, nnx.BatchStat)

    return lambda state, x: run(state, x, False)[0], state, lambda state, x: run(state, x, True)


def haiku():
    import haiku as hk

    def network(x, train=False):
        def norm(y):
            return jax.nn.relu(hk.BatchNorm(True, True, 0.9)(y, train))

        x = norm(hk.Conv2D(8, 3, stride=2)(x))
        x = x + norm(hk.DepthwiseConv2D(1, 3)(x))
        x = x + hk.Conv2D(8, 3, rate=2, feature_group_count=2)(x)
        x = jnp.concatenate([hk.Conv2D(4, 1)(x), hk.Conv2D(4, 5)(x), hk.MaxPool(3, 1, "SAME")(x)], -1)
        x = hk.AvgPool((3, 3, 1), (2, 2, 1), "SAME")(x)
        return hk.Linear(5)(hk.Conv2DTranspose(6, 3, stride=2)(x).mean((1, 2)))

    model = hk.transform_with_state(network)
    params, state = model.init(jax.random.key(0), jnp.ones(SHAPE), True)

    def run(params, x, train):
        return model.apply(params, state, None, x, train)

    return lambda params, x: run(params, x, False)[0], params, lambda params, x: run(params, x, True)


def equinox():
    import equinox as eqx

    keys = iter(jax.random.split(jax.random.key(0), 10))
    layers = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, stride=2, padding=1, key=next(keys)),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(8, 8, 3, groups=8, padding=1, key=next(keys)),
            eqx.nn.Conv2d(8, 8, 3, groups=2, dilation=2, padding=2, key=next(keys)),
            eqx.nn.MaxPool2d(3, 2, padding=1),
            eqx.nn.ConvTranspose2d(8, 6, 3, stride=2, key=next(keys)),
            eqx.nn.AvgPool2d(2, 2),
        ]
    )
    head = eqx.nn.Linear(6, 5, key=next(keys))

    def f(model, x):
        layers, head = model
        return jax.vmap(lambda image: head(layers(image).mean((1, 2))))(jnp.moveaxis(x, -1, 1))

    # The model itself is the argument: its arrays are traced, its activation functions and sizes are not.
    return f, (layers, head), lambda model, x: (f(model, x), None)


def keras():
    import keras as k

    k.utils.set_random_seed(0)
    x = inputs = k.Input(SHAPE[1:])
    x = k.layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = k.layers.ReLU()(k.layers.BatchNormalization()(x))
    x = k.layers.Add()([x, k.layers.DepthwiseConv2D(3, padding="same")(x)])
    x = k.layers.Add()([x, k.layers.Conv2D(8, 3, dilation_rate=2, groups=2, padding="same")(x)])
    branches = [
        k.layers.Conv2D(4, 1)(x),
        k.layers.SeparableConv2D(4, 5, padding="same")(x),
        k.layers.MaxPooling2D(3, 1, padding="same")(x),
    ]
    x = k.layers.Concatenate()(branches)
    weights = k.layers.Dense(16, "sigmoid")(k.layers.Dense(4, "relu")(k.layers.GlobalAveragePooling2D()(x)))
    x = k.layers.Multiply()([x, k.layers.Reshape((1, 1, 16))(weights)])
    x = k.layers.AveragePooling2D(3, 2, padding="same")(x)
    x = k.layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
    x = k.layers.Dense(5)(k.layers.GlobalAveragePooling2D()(x))
    model = k.Model(inputs, x)
    trained = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def run(trained, x, train):
        return model.stateless_call(trained, fixed, x, training=train)

    return lambda trained, x: run(trained, x, False)[0], trained, lambda trained, x: run(trained, x, True)


LIBRARIES = {
    "flax": flax_linen,
    "flax.nnx": flax_nnx,
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
}
