"""Convolution, pooling and small-kernel substitution for JAX.

A public name is imported from its module when it is first used, so that `import jaxcnn` is quick.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

# These three are imported at once. The chain registers itself with JAX, for programs that are read from files; the
# tuning table makes a context, which JAX forbids while another thread compiles; and the last has its module's name.
from jaxcnn.chain import KernelChain as KernelChain
from jaxcnn.lowering.tuning_table import TuningTable as TuningTable
from jaxcnn.receptive_field import receptive_field as receptive_field

if TYPE_CHECKING:
    from jaxcnn.adaptive_pooling import adaptive_avg_pool as adaptive_avg_pool
    from jaxcnn.adaptive_pooling import adaptive_max_pool as adaptive_max_pool
    from jaxcnn.adaptive_pooling import global_avg_pool as global_avg_pool
    from jaxcnn.adaptive_pooling import global_max_pool as global_max_pool
    from jaxcnn.chain import compose as compose
    from jaxcnn.convolution import conv as conv
    from jaxcnn.convolution import conv_transpose as conv_transpose
    from jaxcnn.convolution import depthwise_conv as depthwise_conv
    from jaxcnn.convolution import extract_patches as extract_patches
    from jaxcnn.cost import Cost as Cost
    from jaxcnn.cost import conv_cost as conv_cost
    from jaxcnn.cost import pool_cost as pool_cost
    from jaxcnn.factorization.exact.fold_scale import fold_scale as fold_scale
    from jaxcnn.factorization.exact.merge import merge as merge
    from jaxcnn.factorization.exact.split import split as split
    from jaxcnn.factorization.schemes.cp import cp as cp
    from jaxcnn.factorization.schemes.depthwise_separable import depthwise_separable as depthwise_separable
    from jaxcnn.factorization.schemes.low_rank import low_rank as low_rank
    from jaxcnn.factorization.schemes.separable import separable as separable
    from jaxcnn.factorization.schemes.stack import stack as stack
    from jaxcnn.factorization.schemes.tucker2 import tucker2 as tucker2
    from jaxcnn.factorization.selection.error_curve import RankCurve as RankCurve
    from jaxcnn.factorization.selection.error_curve import curve as curve
    from jaxcnn.factorization.selection.factorize import factorize as factorize
    from jaxcnn.factorization.selection.select_rank import select_rank as select_rank
    from jaxcnn.pooling import avg_pool as avg_pool
    from jaxcnn.pooling import lp_pool as lp_pool
    from jaxcnn.pooling import max_pool as max_pool
    from jaxcnn.pooling import max_pool_with_indices as max_pool_with_indices
    from jaxcnn.pooling import max_unpool as max_unpool
    from jaxcnn.pooling import min_pool as min_pool
    from jaxcnn.pooling import sum_pool as sum_pool
    from jaxcnn.receptive_field import FieldLayer as FieldLayer
    from jaxcnn.receptive_field import ReceptiveField as ReceptiveField
    from jaxcnn.shapes import conv_output_shape as conv_output_shape
    from jaxcnn.shapes import pool_output_shape as pool_output_shape
    from jaxcnn.transform.acceleration.accelerate import accelerate as accelerate
    from jaxcnn.transform.chains.explicit_kernels import ComputedKernels as ComputedKernels
    from jaxcnn.transform.chains.with_chains import with_chains as with_chains
    from jaxcnn.transform.substitution.report import LayerReport as LayerReport
    from jaxcnn.transform.substitution.report import SubstitutionReport as SubstitutionReport
    from jaxcnn.transform.substitution.result import Substitution as Substitution
    from jaxcnn.transform.substitution.substitute import substitute as substitute
    from jaxcnn.transform.substitution.tradeoff import TradeOff as TradeOff
    from jaxcnn.transform.summary.row import SummaryRow as SummaryRow
    from jaxcnn.transform.summary.summarize import Summary as Summary
    from jaxcnn.transform.summary.summarize import summarize as summarize
    from jaxcnn.transform.tuning import tune as tune

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "adaptive_pooling": ("adaptive_avg_pool", "adaptive_max_pool", "global_avg_pool", "global_max_pool"),
    "chain": ("KernelChain", "compose"),
    "convolution": ("conv", "conv_transpose", "depthwise_conv", "extract_patches"),
    "cost": ("Cost", "conv_cost", "pool_cost"),
    "factorization.exact.fold_scale": ("fold_scale",),
    "factorization.exact.merge": ("merge",),
    "factorization.exact.split": ("split",),
    "factorization.schemes.cp": ("cp",),
    "factorization.schemes.depthwise_separable": ("depthwise_separable",),
    "factorization.schemes.low_rank": ("low_rank",),
    "factorization.schemes.separable": ("separable",),
    "factorization.schemes.stack": ("stack",),
    "factorization.schemes.tucker2": ("tucker2",),
    "factorization.selection.error_curve": ("RankCurve", "curve"),
    "factorization.selection.factorize": ("factorize",),
    "factorization.selection.select_rank": ("select_rank",),
    "lowering.tuning_table": ("TuningTable",),
    "pooling": ("avg_pool", "lp_pool", "max_pool", "max_pool_with_indices", "max_unpool", "min_pool", "sum_pool"),
    "receptive_field": ("FieldLayer", "ReceptiveField", "receptive_field"),
    "shapes": ("conv_output_shape", "pool_output_shape"),
    "transform.acceleration.accelerate": ("accelerate",),
    "transform.chains.explicit_kernels": ("ComputedKernels",),
    "transform.chains.with_chains": ("with_chains",),
    "transform.substitution.report": ("LayerReport", "SubstitutionReport"),
    "transform.substitution.result": ("Substitution",),
    "transform.substitution.substitute": ("substitute",),
    "transform.substitution.tradeoff": ("TradeOff",),
    "transform.summary.row": ("SummaryRow",),
    "transform.summary.summarize": ("Summary", "summarize"),
    "transform.tuning": ("tune",),
}
"""Public names of each module."""

_MODULES = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

_RENAMED = {"Curve": "RankCurve", "Layer": "FieldLayer", "Report": "SubstitutionReport", "Row": "SummaryRow"}
"""Former public names, and the names that replace them."""

_SUBMODULES = (
    *("adaptive_pooling", "convolution", "cost", "dtypes", "epilogue", "factorization", "geometry", "layout", "links"),
    *("lowering", "native", "options", "pooling", "primitives", "shapes", "transform"),
)
"""Modules that are attributes of the package without an import of their own."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"jaxcnn.{name} is now jaxcnn.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name in _MODULES:
        value = getattr(importlib.import_module(f"jaxcnn.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"jaxcnn.{name}")
    raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
