"""Commands `jaxcnn demo` and `jaxcnn layer`, from their options to the report; bad options are refused first."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rich.console
import rich.markup
import rich.progress

from jaxcnn.demo import DemoError, report, timing
from jaxcnn.demo.layer import DEFINITIONS as LAYER_DEFINITIONS
from jaxcnn.demo.layer import SingleLayer, check_layer, run_layer
from jaxcnn.saving import whole_file

#: Definition of MACs in reports.
MACS = (
    "MACs",
    "Multiplications each with an addition, counted by formula: output pixels x kernel taps x input channels of a "
    "group x output channels, taps on padding included. For a chain, the sum over its kernels. FLOPs would be "
    "twice that.",
)
#: Photograph whose edges are found, unless the user has another.
EDGES_IMAGE = "astronaut"

#: Definitions of times in reports.
TIME = ("Time", timing.HOW_TIMED)
BASELINE = (
    "Times faster",
    "Time of the network as it was, its convolutions written with jax.lax.conv_general_dilated and compiled by "
    "jax.jit, divided by the time of what is compared with it.",
)


@dataclass(frozen=True)
class Sizes:
    """Holds the amount of work of a form of the demo, on which its time depends.

    Args:
      long_side: pixels to which the longer side of the photograph whose edges are found shrinks.
      epochs: number of training epochs of the digit reader.
      fine_tuning_epochs: number of training epochs after the digit reader's 5x5 kernels are replaced.
      small_kernels: names of `digits.SCHEMES`, the ways to replace the digit reader's 5x5 kernels.
      calibration_images: number of digits: the small kernels are fitted to the digit reader's responses to them.
      rounds: number of blocks of calls for each timing.
      with_pairs: flag that adds the pairs of EfficientNet-Lite0's depthwise kernels.
    """

    long_side: int
    epochs: int
    fine_tuning_epochs: int
    small_kernels: tuple[str, ...]
    calibration_images: int
    rounds: int
    with_pairs: bool


QUICK = Sizes(
    long_side=224,
    epochs=4,
    fine_tuning_epochs=2,
    small_kernels=("3x3 after 3x3",),
    calibration_images=64,
    rounds=5,
    with_pairs=False,
)
FULL = Sizes(
    long_side=512,
    epochs=10,
    fine_tuning_epochs=3,
    small_kernels=("3x3 after 3x3", "1x5 after 5x1"),
    calibration_images=256,
    rounds=9,
    with_pairs=True,
)

#: Pixels at the longer side of a photograph to name, of which the network takes 224x224.
NAMED_LONG_SIDE = 512


@dataclass(frozen=True)
class DemoOptions:
    """Holds the options of `jaxcnn demo`, see its help; `long_side` and `epochs` replace those of the sizes."""

    part: str = "all"
    full: bool = False
    image: str | None = None  # each part has its own
    long_side: int | None = None
    share: float = 0.25
    calibrate: bool = False
    epochs: int | None = None
    seed: int = 0
    output: str = "jaxcnn-demo.html"

    @property
    def sizes(self) -> Sizes:
        """Returns the sizes of the quick or the full demo, with those that the user sets."""
        sizes = FULL if self.full else QUICK
        return replace(sizes, long_side=self.long_side or sizes.long_side, epochs=self.epochs or sizes.epochs)


def run_demo(options: DemoOptions) -> None:
    """Runs the demo, shows its report on the terminal and writes it as one HTML page.

    Raises:
      DemoError: if the image, the weights or the folder of the output do not exist.
    """
    import threadpoolctl  # here, because `jaxcnn layer` has to run without this package

    # The fits are many small solves. With a BLAS thread on each core, on a busy machine, threads wait for each other.
    with threadpoolctl.threadpool_limits(1, "blas"):
        _run_parts(options)


def _run_parts(options: DemoOptions) -> None:
    """Runs the parts of the demo and writes the report, with the number of BLAS threads that the caller sets."""
    start = time.perf_counter()
    output = check_output(options.output)
    console = rich.console.Console()
    # These bars show on a terminal alone, and disappear before the first result.
    with report.progress_bars(console, transient=True) as bars:
        parts, definitions = _load_parts(options, bars)

    sections: list[report.Section] = []
    for part in parts:
        if sections:
            console.print()
        with report.progress_bars(console) as bars:
            section = part(bars=bars)
        report.print_section(section, console)
        sections.append(section)

    summary = report.Section(
        title="Summary",
        text=(
            "Trained networks measured on this machine: computed better by jaxcnn, and with their kernels replaced by "
            "chains of smaller ones."
        ),
        figures=(
            *(figure for section in sections for figure in section.figures[:3]),
            ("Total time of the demo", f"{time.perf_counter() - start:.0f} s"),
        ),
    )
    page = report.Report(
        title="jaxcnn demo: trained networks, faster",
        machine=report.describe_machine(),
        sections=(summary, *sections),
        definitions=(MACS, BASELINE, TIME, *definitions),
    )
    report.print_definitions(page, console)
    report.print_section(summary, console)
    write_page(output, report.render_html(page))
    console.print(f"Report with pictures: {rich.markup.escape(str(output))}", highlight=False, soft_wrap=True)


def _load_parts(
    options: DemoOptions, bars: rich.progress.Progress
) -> tuple[list[Callable[..., report.Section]], list[tuple[str, str]]]:
    """Returns the parts, ready to run, and the definitions of their terms.

    Raises:
      DemoError: if an image or weights are missing.
    """
    with report.steps(bars, "Loading packages"):
        # These imports are here because `jaxcnn layer` has to run without the packages that the files import.
        from jaxcnn.demo import digits, edges, hed, images, lite0, naming

    sizes, seed = options.sizes, options.seed
    settings: dict[str, Any]
    parts: list[Callable[..., report.Section]] = []
    definitions: list[tuple[str, str]] = []

    if options.part in ("edges", "all"):
        name = options.image or EDGES_IMAGE
        with report.steps(bars, "Loading the edge detector"):
            photograph = images.load_image(name, long_side=sizes.long_side)
            network = hed.load_network(hed.find_weights())
        settings = {"share": options.share, "calibrate": options.calibrate, "rounds": sizes.rounds, "seed": seed}
        parts.append(partial(edges.run_edges, photograph, network, name=Path(name).name, **settings))
        definitions.extend(edges.DEFINITIONS)

    if options.part in ("naming", "all"):
        with report.steps(bars, "Loading EfficientNet-Lite0"):
            photographs = naming.load_photographs(options.image, long_side=options.long_side or NAMED_LONG_SIDE)
            lite = lite0.load_network(lite0.find_weights())
        settings = {"rounds": sizes.rounds, "seed": seed, "with_pairs": sizes.with_pairs}
        parts.append(partial(naming.run_naming, photographs, lite, **settings))
        definitions.extend(naming.DEFINITIONS)

    if options.part in ("digits", "all"):
        with report.steps(bars, "Loading digits"):
            train, test = digits.load_digits(seed)
        settings = {
            "epochs": sizes.epochs,
            "fine_tuning_epochs": sizes.fine_tuning_epochs,
            "small_kernels": sizes.small_kernels,
            "calibration_images": sizes.calibration_images,
            "rounds": sizes.rounds,
            "seed": seed,
        }
        parts.append(partial(digits.run_digits, train, test, **settings))
        definitions.extend(digits.DEFINITIONS)
    return parts, definitions


def run_single_layer(layer: SingleLayer, *, ranks: Sequence[int], seed: int) -> None:
    """Measures one layer and shows the comparison on the terminal.

    Raises:
      DemoError: if `jaxcnn.conv` would refuse the layer.
    """
    try:
        check_layer(layer)
    except ValueError as error:
        raise DemoError(" ".join(str(error).removeprefix("conv_output_shape: ").split())) from None
    console = rich.console.Console()
    with report.progress_bars(console) as bars:
        section = run_layer(layer, ranks=ranks, seed=seed, bars=bars)
    report.print_section(section, console)
    page = report.Report("", report.describe_machine(), (section,), (MACS, *LAYER_DEFINITIONS, TIME))
    report.print_definitions(page, console)


def check_output(name: str) -> Path:
    """Returns the path of the report; refuses a path at which no file can be written.

    Raises:
      DemoError: if the folder does not exist, or the path is a folder or not writable.
    """
    path = Path(name)
    if not path.parent.is_dir():
        raise DemoError(f"the output folder {path.parent} does not exist")
    if path.is_dir():
        raise DemoError(f"the output {path} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DemoError(f"the output {path} cannot be written: permission denied")
    return path


def write_page(path: Path, page: str) -> None:
    """Writes the HTML page."""
    try:
        with whole_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise DemoError(f"the output {path} cannot be written: {error.strerror}") from None
