"""The demo's networks with few layers, loaded as the real ones are."""

import pytest

from jaxcnn.demo import hed, lite0
from support import demo_networks, torch_files


@pytest.fixture(scope="session")
def tensors():
    """The tensors of a tiny EfficientNet-Lite0."""
    return demo_networks.lite0_tensors()


@pytest.fixture
def lite0_network(tensors, tmp_path, monkeypatch):
    """A tiny EfficientNet-Lite0."""
    monkeypatch.setattr(lite0, "STRIDES", demo_networks.LITE0_STRIDES)
    torch_files.write(tmp_path / "tiny.pth", tensors)
    return lite0.load_network(tmp_path / "tiny.pth")


@pytest.fixture
def hed_network(tmp_path, monkeypatch):
    """An edge detector of three convolutions in two blocks."""
    monkeypatch.setattr(hed, "CONVOLUTIONS", (1, 2))
    demo_networks.write_hed(tmp_path / "tiny.h5", hed.CONVOLUTIONS)
    return hed.load_network(tmp_path / "tiny.h5")
