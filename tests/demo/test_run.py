import io

import numpy as np
import pytest
import rich.console
import rich.progress

from jaxcnn.demo import DemoError, digits, edges, hed, images, lite0, naming, report, run


def test_the_quick_and_the_full_form():
    assert run.DemoOptions().sizes == run.QUICK
    assert run.DemoOptions(full=True).sizes == run.FULL
    chosen = run.DemoOptions(full=True, long_side=99, epochs=1).sizes
    assert (chosen.long_side, chosen.epochs) == (99, 1)
    assert chosen.rounds == run.FULL.rounds
    assert not run.QUICK.with_pairs
    assert run.FULL.with_pairs
    assert set(run.QUICK.small_kernels) <= set(run.FULL.small_kernels) == set(digits.SCHEMES)
    for name in ("long_side", "epochs", "fine_tuning_epochs", "calibration_images", "rounds"):
        assert getattr(run.QUICK, name) < getattr(run.FULL, name)


@pytest.fixture
def called(monkeypatch):
    """The arguments with which each part is run, in their order; no network is loaded."""
    calls = {}

    def replaced(name):
        def part(*arguments, bars, **options):
            calls[name] = arguments, options
            return report.Section(name, f"This is {name}.", figures=(("how fast", f"{name} 2x"),))

        return part

    monkeypatch.setattr(hed, "find_weights", lambda: None)
    monkeypatch.setattr(hed, "load_network", lambda path: {})
    monkeypatch.setattr(lite0, "find_weights", lambda: None)
    monkeypatch.setattr(lite0, "load_network", lambda path: {})
    monkeypatch.setattr(digits, "load_digits", lambda seed: ("train", "test"))
    monkeypatch.setattr(images, "load_image", lambda name, *, long_side: np.zeros((long_side, 2, 3), np.uint8))
    monkeypatch.setattr(edges, "run_edges", replaced("edges"))
    monkeypatch.setattr(naming, "run_naming", replaced("naming"))
    monkeypatch.setattr(digits, "run_digits", replaced("digits"))
    return calls


@pytest.mark.parametrize(("full", "sizes"), [(False, run.QUICK), (True, run.FULL)])
def test_the_substitution_comes_first_then_one_line_then_the_digits(called, tmp_path, capsys, full, sizes):
    output = tmp_path / "report.html"
    run.run_demo(run.DemoOptions(full=full, seed=5, output=str(output)))
    assert list(called) == ["edges", "naming", "digits"]
    (photograph, _), options = called["edges"]
    assert len(photograph) == sizes.long_side
    assert options == {"name": "astronaut", "share": 0.25, "calibrate": False, "rounds": sizes.rounds, "seed": 5}
    (photographs, _), options = called["naming"]
    assert {len(photograph) for photograph in photographs.values()} == {run.NAMED_LONG_SIDE}
    assert options == {"rounds": sizes.rounds, "seed": 5, "with_pairs": full}
    arguments, options = called["digits"]
    assert arguments == ("train", "test")
    assert options == {
        "epochs": sizes.epochs,
        "fine_tuning_epochs": sizes.fine_tuning_epochs,
        "small_kernels": sizes.small_kernels,
        "calibration_images": sizes.calibration_images,
        "rounds": sizes.rounds,
        "seed": 5,
    }
    for shown in (capsys.readouterr().out, output.read_text()):
        places = [shown.index(f"This is {name}.") for name in called]
        assert places == sorted(places)


@pytest.mark.parametrize("part", ["edges", "naming", "digits"])
def test_one_part_alone(called, tmp_path, part):
    run.run_demo(run.DemoOptions(part=part, long_side=33, output=str(tmp_path / "report.html")))
    assert list(called) == [part]
    if part == "naming":
        (photographs, _), _ = called[part]
        assert {len(photograph) for photograph in photographs.values()} == {33}


def test_outputs_that_cannot_be_written(tmp_path):
    with pytest.raises(DemoError, match="does not exist"):
        run.check_output(str(tmp_path / "no" / "page.html"))
    with pytest.raises(DemoError, match="is a folder"):
        run.check_output(str(tmp_path))
    assert run.check_output(str(tmp_path / "page.html")) == tmp_path / "page.html"


def test_loading_shows_progress_on_a_terminal_and_leaves_nothing(called, monkeypatch):
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=80, force_terminal=True)
    with report.progress_bars(console, transient=True) as bars:
        parts, _ = run._load_parts(run.DemoOptions(), bars)
        assert all(task.finished for task in bars.tasks)
    assert len(parts) == 3
    assert "Loading the edge detector" in stream.getvalue()
    silent = rich.console.Console(file=(other := io.StringIO()), width=80)
    with report.progress_bars(silent, transient=True) as bars:
        run._load_parts(run.DemoOptions(), bars)
    assert other.getvalue() == ""
