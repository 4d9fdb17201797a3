import re

import numpy as np
import pytest

from jaxcnn.demo import DemoError, images, lite0, naming
from support import demo_networks, terminal_tables


def test_photograph_of_the_user_comes_first(tmp_path):
    assert list(naming.load_photographs(None, long_side=32)) == list(naming.PHOTOGRAPHS)
    assert list(naming.load_photographs("rocket", long_side=32))[:2] == ["rocket", "coffee"]
    images.PIL.Image.new("RGB", (40, 20)).save(tmp_path / "mine.png")
    photographs = naming.load_photographs(str(tmp_path / "mine.png"), long_side=32)
    assert list(photographs) == ["mine.png", *naming.PHOTOGRAPHS]
    assert photographs["mine.png"].shape == (16, 32, 3)
    with pytest.raises(DemoError, match="no image nothing"):
        naming.load_photographs("nothing", long_side=32)


def run_on_noise(network, **options):
    random = np.random.default_rng(0)
    photographs = {name: random.integers(0, 256, (9, 7, 3)).astype(np.uint8) for name in ("first", "second")}
    with demo_networks.quiet_bars() as bars:
        section = naming.run_naming(photographs, network, bars=bars, rounds=1, **options)
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    return section


def test_whole_part_on_a_tiny_network(lite0_network, monkeypatch):
    monkeypatch.setattr(lite0, "SIDE", 32)
    section = run_on_noise(lite0_network)
    answers, times = section.tables
    assert len(answers.rows) == naming.BEST
    terminal_tables.assert_whole(answers, ("coral fungus " * 8, "991", "100.000%", "100.000%"))
    terminal_tables.assert_whole(times, ("training gradient", "12555.2", "11166.3", "132.6x", "118.9", "139.6"))
    assert [row[0] for row in times.rows] == ["naming it", "training gradient"]
    assert [picture.caption.split(":")[0] for picture in section.pictures] == ["first", "second"]
    figures = dict(section.figures)
    assert float(figures["Naming a photograph, accelerated: times faster"].rstrip("x")) > 0
    assert float(figures["Largest difference of the probabilities"]) < 1e-3
    assert float(figures["Relative difference of the gradient"]) < 1e-3
    result = next(what for what in figures if what.startswith("What is in first"))
    assert re.fullmatch(r"What is in first: (\d+\.\d%) plain, \1 accelerated", result)
    assert figures[result] == answers.rows[0][0]


@pytest.mark.slow
@pytest.mark.optimized
def test_pairs_stand_beside_it_in_the_longer_form(lite0_network, monkeypatch):
    monkeypatch.setattr(lite0, "SIDE", 32)
    *_, with_pairs = run_on_noise(lite0_network, with_pairs=True).tables
    assert with_pairs.title == "Its depthwise 5x5 kernels as pairs of rank 2"
    assert [row[0] for row in with_pairs.rows] == ["first", "second"]
    terminal_tables.assert_whole(with_pairs, ("motorcycle", *["American Staffordshire terrier 38.5%"] * 3))


def test_different_answers_are_both_told():
    one, other = np.zeros(1000), np.zeros(1000)
    one[967], other[281] = 0.75, 0.5
    result = naming._content_figure("x", {naming.PLAIN: one, naming.ACCELERATED: other})
    assert result == ("What is in x: 75.0% plain, 50.0% accelerated", "espresso / tabby")
