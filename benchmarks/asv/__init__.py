"""The suites that airspeed velocity runs: `make bench`."""

import importlib.util
import sys
from pathlib import Path

# asv imports this folder alone, as a package of its own. The folder above it becomes importable here, without the
# checkout's jaxcnn beside it: what is measured is the commit that asv has installed.
if "benchmarks" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("benchmarks", Path(__file__).parents[1] / "__init__.py")
    sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["benchmarks"])
