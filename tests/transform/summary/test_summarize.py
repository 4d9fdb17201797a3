"""`summarize`: published counts and receptive fields, loops and branches, and what is told of each row."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import summarize
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


@pytest.mark.slow
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


def test_errors():
    with pytest.raises(TypeError, match="summarize: f must be a function, got 3"):
        summarize(3)
    with pytest.raises(ValueError, match=r"summarize: platform must be one of 'cpu', .*, got 'npu'"):
        summarize(lambda x: x, jax_normal((2,)), platform="npu")
