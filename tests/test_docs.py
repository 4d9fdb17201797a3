"""The documentation: every public name is in the reference, every picture is drawn, every page is listed.

And what the pages say of other libraries, against those that are installed. pytest runs the examples themselves, as
`pyproject.toml` tells it to.
"""

import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from benchmarks import tables

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_the_readme_is_short():
    lines = (DOCS.parent / "README.md").read_text().splitlines()
    assert len(lines) < 120


def test_pages_have_examples():
    counts = {page.relative_to(DOCS).as_posix(): page.read_text().count(">>> ") for page in PAGES}
    for page in (
        "quickstart.md",
        "worked_examples.md",
        "small_kernels.md",
        "arithmetic.md",
        "chains.md",
        "pooling.md",
        "coming_from.md",
        "zh/quickstart.md",
        "zh/worked_examples.md",
        "zh/small_kernels.md",
    ):
        assert counts[page] >= 8, page


def test_reference_names_every_public_name():
    reference = (DOCS / "api.md").read_text()
    main, pictures = reference.split(".. currentmodule:: jaxcnn.drawing")
    directive = re.compile(r"^\.\. auto(?:function|class):: (\w+)$", re.MULTILINE)
    assert sorted(directive.findall(main)) == sorted(jaxcnn.__all__)
    pytest.importorskip("matplotlib")
    from jaxcnn import drawing

    assert sorted(directive.findall(pictures)) == sorted(drawing.__all__)


def test_every_page_is_in_one_table_of_contents():
    listed = []
    for page in PAGES:
        for contents in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = re.findall(r"^[\w/]+$", contents, re.MULTILINE)
            listed += [(page.parent / name).relative_to(DOCS).as_posix() for name in names]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in (*PAGES, *NOTEBOOKS)]
    assert sorted(listed) == sorted(set(pages) - {"index"})


def test_tables_are_those_of_the_committed_measurement():
    measurement = json.loads(tables.MEASUREMENT.read_text())
    pages = [page.read_text() for page in tables.PAGES]
    for page, text in zip(tables.PAGES, pages, strict=True):
        assert tables.written(text, measurement) == text, f"{page.name} is not what `make tables` writes"
    marked = {name for text in pages for name in re.findall(r"<!-- table: ([\w ]+) -->", text)}
    assert marked == set(tables.BLOCKS)


def test_measuring_a_part_keeps_the_others(tmp_path, monkeypatch):
    file = tmp_path / "performance.json"
    file.write_text(json.dumps({"families": {"dense": 1.0}, "layers": "old", "environment": {}}))
    monkeypatch.setattr(tables, "MEASUREMENT", file)
    monkeypatch.setitem(tables.PARTS, "layers", lambda seconds: {"dense": {"jaxcnn": seconds / 3}})
    monkeypatch.setattr(tables, "environment", lambda: {"jax": "1"})
    tables.measure(["layers"], 1.0)
    expected = {"layers": {"dense": {"jaxcnn": 0.3333}}, "families": {"dense": 1.0}, "environment": {"jax": "1"}}
    assert json.loads(file.read_text()) == expected


@pytest.mark.slow
def test_every_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    make_pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_pictures)
    make_pictures.main(tmp_path)
    shown = {
        name for page in PAGES for name in re.findall(r"\]\((?:\.\./)?_build/pictures/([\w.]+)\)", page.read_text())
    }
    assert {path.name for path in tmp_path.iterdir()} == shown


def test_each_chinese_page_and_its_english_one_link_to_each_other():
    for page in (DOCS / "zh").glob("*.md"):
        assert f"[English](../{page.name}) · *中文*" in page.read_text()
        assert f"*English* · [中文](zh/{page.name})" in (DOCS / page.name).read_text()


MODELS = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!##|```).)*```python\n(.*?)```", (DOCS / "accelerate.md").read_text(), re.M | re.S)
)
"""The models of the page on `accelerate`, by library."""


@pytest.mark.optimized
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("library", MODELS)
def test_accelerated_models_of_the_page_have_the_values_of_plain_ones(library, monkeypatch):
    for module in re.findall(r"^(?:import|from) (\w+)", MODELS[library], re.MULTILINE):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"could not import {module!r}")
    calls, accelerate = [], jaxcnn.accelerate

    def accelerate_and_compare(f):
        def call(*args, **options):
            fast, plain = accelerate(f)(*args, **options), f(*args, **options)
            assert jax.tree.structure(fast) == jax.tree.structure(plain)
            for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
                if isinstance(theirs, jax.Array):
                    close(ours, theirs)
            calls.append(f)
            return fast

        return call

    monkeypatch.setattr(jaxcnn, "accelerate", accelerate_and_compare)
    with jax.numpy_rank_promotion("allow"):
        exec(compile(MODELS[library], "accelerate.md", "exec"), {"__name__": "accelerate"})
    assert calls


@pytest.mark.usefixtures("standard_promotion")
def test_a_chain_trains_with_optax(rng):
    optax = pytest.importorskip("optax")
    kernel = jnp.asarray(rng.standard_normal((5, 5, 3, 4)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 9, 9, 3)), jnp.float32)
    target, optimizer = jaxcnn.conv(x, kernel), optax.adam(1e-2)
    pair = jaxcnn.separable(kernel, rank=3)
    state = optimizer.init(pair)

    @jax.jit
    def step(pair, state):
        loss, gradient = jax.value_and_grad(lambda pair: jnp.mean((jaxcnn.conv(x, pair) - target) ** 2))(pair)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(pair, updates), state, loss

    losses = []
    for _ in range(20):
        pair, state, loss = step(pair, state)
        losses.append(float(loss))
    assert isinstance(pair, jaxcnn.KernelChain)
    assert losses[-1] < losses[0]


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-4)


def test_what_is_said_of_torch(rng):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x = rng.standard_normal((2, 4, 10, 9)).astype(np.float32)
    w = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    options = {"strides": 2, "padding": 1, "feature_group_count": 2, "layout": "NCHW"}
    close(jaxcnn.conv(x, w, kernel_dilation=2, **options), F.conv2d(tx, tw, stride=2, padding=1, dilation=2, groups=2))
    y = rng.standard_normal((2, 6, 5, 5)).astype(np.float32)
    transposed = F.conv_transpose2d(torch.from_numpy(y), tw, stride=2, padding=1, output_padding=1, groups=2)
    close(jaxcnn.conv_transpose(y, w, output_padding=1, **options), transposed)
    pools = {"strides": 2, "layout": "NCHW"}
    close(jaxcnn.max_pool(x, 2, **pools), F.max_pool2d(tx, 2))
    values, indices = jaxcnn.max_pool_with_indices(x, 2, **pools)
    torch_values, torch_indices = F.max_pool2d(tx, 2, return_indices=True)
    close(values, torch_values)
    np.testing.assert_array_equal(indices, torch_indices)
    assert (indices.dtype, torch_indices.dtype) == (jnp.int32, torch.int64)
    close(jaxcnn.avg_pool(x, 3, strides=3, padding=1, layout="NCHW"), F.avg_pool2d(tx, 3, padding=1))
    close(jaxcnn.adaptive_avg_pool(x, 3, layout="NCHW"), F.adaptive_avg_pool2d(tx, 3))
    patches = jaxcnn.extract_patches(x, 3, layout="NCHW")
    close(patches.reshape(2, 36, -1), F.unfold(tx, 3))
    with pytest.raises(ValueError, match="same"):
        torch.nn.Conv2d(4, 6, 3, stride=2, padding="same")


@pytest.mark.usefixtures("standard_promotion")
def test_what_is_said_of_flax(rng):
    linen = pytest.importorskip("flax.linen")
    x = jnp.asarray(rng.standard_normal((2, 8, 9, 4)), jnp.float32)
    key = jax.random.key(0)

    def layer(module):
        variables = module.init(key, x)
        return variables["params"]["kernel"], module.apply(variables, x)

    kernel, theirs = layer(linen.Conv(6, (3, 3), strides=2, use_bias=False))
    assert kernel.shape == (3, 3, 4, 6)
    close(jaxcnn.conv(x, kernel, strides=2), theirs)
    for mode in ("circular", "reflect"):
        kernel, theirs = layer(linen.Conv(6, (3, 3), padding=mode.upper(), use_bias=False))
        close(jaxcnn.conv(x, kernel, padding_mode=mode), theirs)
    kernel, theirs = layer(linen.ConvTranspose(6, (3, 3), strides=(2, 2), transpose_kernel=True, use_bias=False))
    close(jaxcnn.conv_transpose(x, kernel, strides=2), theirs)
    kernel, theirs = layer(linen.ConvTranspose(6, (3, 3), strides=(2, 2), use_bias=False))
    close(jaxcnn.conv_transpose(x, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), strides=2), theirs)
    close(jaxcnn.max_pool(x, (3, 3)), linen.max_pool(x, (3, 3)))
    for counted in (True, False):
        theirs = linen.avg_pool(x, (3, 3), padding="SAME", count_include_pad=counted)
        close(jaxcnn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=counted), theirs)
    close(jaxcnn.avg_pool(x, (3, 3), padding="SAME"), linen.avg_pool(x, (3, 3), padding="SAME"))
    half = x.astype(jnp.bfloat16)
    assert jaxcnn.avg_pool(half, (3, 3), padding="SAME", count_include_pad=False).dtype == jnp.bfloat16


@pytest.mark.usefixtures("standard_promotion")
def test_what_is_said_of_keras(rng):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("could not import 'keras'")
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    x = jnp.asarray(rng.standard_normal((2, 8, 9, 4)), jnp.float32)

    def layer(module):
        theirs = module(x)
        return module.kernel.value, theirs

    kernel, theirs = layer(keras.layers.Conv2D(6, 3, strides=2, padding="same", groups=2, use_bias=False))
    assert kernel.shape == (3, 3, 2, 6)
    close(jaxcnn.conv(x, kernel, strides=2, feature_group_count=2), theirs)
    kernel, theirs = layer(keras.layers.Conv2D(6, 3, dilation_rate=2, use_bias=False))
    close(jaxcnn.conv(x, kernel, padding="VALID", kernel_dilation=2), theirs)
    kernel, theirs = layer(keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False))
    assert kernel.shape == (3, 3, 4, 2)
    close(jaxcnn.depthwise_conv(x, kernel, padding="VALID"), theirs)
    for padding in ("same", "valid"):
        kernel, theirs = layer(keras.layers.Conv2DTranspose(6, 3, strides=2, padding=padding, use_bias=False))
        assert kernel.shape == (3, 3, 6, 4)
        close(jaxcnn.conv_transpose(x, kernel, strides=2, padding=padding), theirs)
    close(jaxcnn.max_pool(x, 2, strides=2), keras.layers.MaxPooling2D(2)(x))
    theirs = keras.layers.AveragePooling2D(3, padding="same")(x)
    close(jaxcnn.avg_pool(x, 3, strides=3, padding="SAME", count_include_pad=False), theirs)
    close(jaxcnn.global_avg_pool(x), keras.layers.GlobalAveragePooling2D()(x))
