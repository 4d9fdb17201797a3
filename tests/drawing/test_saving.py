"""Pictures as files: the same call gives the same file, and an animation has all steps."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from jaxcnn.drawing import _saving, draw_convolution, draw_pooling


@pytest.mark.parametrize("ending", ["svg", "png", "gif"])
def test_the_same_call_gives_the_same_file(ending, tmp_path):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        draw_convolution((5, 5), (3, 3), padding=1, path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 1000
    other = tmp_path / f"c.{ending}"
    draw_convolution((5, 5), (3, 3), padding=2, path=other)
    assert other.read_bytes() != paths[0].read_bytes()


def test_a_gif_has_a_frame_for_each_step_and_stays_longer_on_the_last(tmp_path):
    draw_convolution((4, 4), (3, 3), strides=2, path=tmp_path / "a.gif", milliseconds=100)
    with Image.open(tmp_path / "a.gif") as image:
        times = []
        for index in range(image.n_frames):
            image.seek(index)
            times.append(image.info["duration"])
        assert times == [100, 100, 100, 300]
        assert image.info["loop"] == 0


def test_an_animated_svg_has_a_group_for_each_step_and_needs_nothing_from_outside(tmp_path):
    draw_pooling((4, 4), 2, strides=2, path=tmp_path / "a.svg", animate=True, milliseconds=100)
    root = ElementTree.fromstring((tmp_path / "a.svg").read_bytes())
    groups = [item for item in root if item.get("class") == "step"]
    assert [group.get("style") for group in groups] == [f"animation-delay:{delay}ms" for delay in (0, 100, 200, 300)]
    names = [item.get("id") for item in root.iter() if item.get("id")]
    assert len(names) == len(set(names))
    links = {value for item in root.iter() for key, value in item.attrib.items() if key.endswith("href")}
    assert links
    assert links <= {f"#{name}" for name in names}
    # Six steps of time: the last one is shown for three.
    style = root.find(f"{{{_saving.SVG}}}style").text
    assert "animation:step 600ms" in style
    assert "50.0000%" in style
    assert "prefers-reduced-motion" in style


def test_all_steps_have_pictures_of_one_size(tmp_path):
    sizes = set()
    for step in range(9):
        draw_pooling(
            [[1, 20, 3.25, 4], [-1000, 3, 4, 5], [1, 2, 3, 4], [0, 0, 0, 0]],
            2,
            kind="avg",
            step=step,
            path=tmp_path / "a.png",
        )
        with Image.open(tmp_path / "a.png") as image:
            sizes.add(image.size)
    assert len(sizes) == 1


def test_without_matplotlib_one_line_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import jaxcnn.drawing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == 'ImportError: jaxcnn.drawing needs matplotlib: pip install "jaxcnn[plot]"'


def test_no_window_and_no_matplotlib_without_a_picture():
    code = (
        "import sys, jaxcnn; before = 'matplotlib' in sys.modules; import jaxcnn.drawing as drawing; "
        "drawing.draw_convolution(5, 3); print(before, 'matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
