"""The two commands from their options to the report; what can be refused is refused before any work begins."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.console
import rich.markup

from jaxcnn.demo import DemoError, report, timing
from jaxcnn.demo.layer import DEFINITIONS as LAYER_DEFINITIONS
from jaxcnn.demo.layer import SingleLayer, check_layer, run_layer

MACS = (
    "MACs",
    "Multiplications each with an addition, counted by formula: output pixels x kernel taps x input channels of a "
    "group x output channels, taps on padding included. For a chain, the sum over its kernels. FLOPs would be "
    "twice that.",
)
TIME = ("Time", timing.HOW_TIMED)
BASELINE = (
    "Times faster",
    "Time of the dense network written with jax.lax.conv_general_dilated, divided by the time after substitution.",
)


@dataclass(frozen=True)
class DemoOptions:
    """The options of `jaxcnn demo`, as its help describes them."""

    part: str = "all"
    image: str = "astronaut"
    long_side: int = 512
    share: float = 0.25
    epochs: int = 10
    seed: int = 0
    output: str = "jaxcnn-demo.html"


def run_demo(options: DemoOptions) -> None:
    """Run the demo, show its report on the terminal and write it as one HTML page.

    Raises:
      DemoError: if the image, the weights or the folder of the output are not there.
    """
    # Here, not above: `jaxcnn layer` has to run without the packages that these files import.
    import threadpoolctl

    # The fits are many small solves: with a BLAS thread on each core, on a busy machine, they wait for each other
    # (31 s instead of 1 for one kernel of LeNet-5).
    with threadpoolctl.threadpool_limits(1, "blas"):
        _run_parts(options)


def _run_parts(options: DemoOptions) -> None:
    from jaxcnn.demo import digits, edges, hed, images

    start = time.perf_counter()
    output = check_output(options.output)
    console = rich.console.Console()
    sections: list[report.Section] = []
    definitions: list[tuple[str, str]] = [MACS, BASELINE, TIME]

    if options.part in ("edges", "all"):
        photograph = images.load_image(options.image, long_side=options.long_side)
        network = hed.load_network(hed.find_weights())
        with report.progress_bars(console) as bars:
            section = edges.run_edges(
                photograph,
                network,
                name=Path(options.image).name,
                share=options.share,
                seed=options.seed,
                bars=bars,
            )
        report.print_section(section, console)
        sections.append(section)
        definitions.extend(edges.DEFINITIONS)

    if options.part in ("digits", "all"):
        train, test = digits.load_digits(options.seed)
        console.print()
        with report.progress_bars(console) as bars:
            section = digits.run_digits(train, test, epochs=options.epochs, seed=options.seed, bars=bars)
        report.print_section(section, console)
        sections.append(section)
        definitions.extend(digits.DEFINITIONS)

    summary = report.Section(
        title="Summary",
        text="Trained networks, their kernels replaced by chains of smaller ones, measured on this machine.",
        figures=(
            *(figure for section in sections for figure in section.figures[:2]),
            ("Total time of the demo", f"{time.perf_counter() - start:.0f} s"),
        ),
    )
    page = report.Report(
        title="jaxcnn demo: small kernels in place of large ones",
        machine=report.describe_machine(),
        sections=(summary, *sections),
        definitions=tuple(definitions),
    )
    report.print_definitions(page, console)
    report.print_section(summary, console)
    write_page(output, report.render_html(page))
    console.print(f"Report with pictures: {rich.markup.escape(str(output))}", highlight=False, soft_wrap=True)


def run_single_layer(layer: SingleLayer, *, ranks: Sequence[int], seed: int) -> None:
    """Measure one layer and show the comparison on the terminal.

    Raises:
      DemoError: if the layer is not one that `jaxcnn.conv` accepts.
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
    """The path of the report, if a file can be written there."""
    path = Path(name)
    if not path.parent.is_dir():
        raise DemoError(f"the output folder {path.parent} does not exist")
    if path.is_dir():
        raise DemoError(f"the output {path} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DemoError(f"the output {path} cannot be written: permission denied")
    return path


def write_page(path: Path, page: str) -> None:
    """Write the HTML page."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DemoError(f"the output {path} cannot be written: {error.strerror}") from None
