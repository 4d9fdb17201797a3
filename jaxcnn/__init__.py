"""Convolution, pooling and small-kernel substitution for JAX."""

from jaxcnn.adaptive_pooling import adaptive_avg_pool as adaptive_avg_pool
from jaxcnn.adaptive_pooling import adaptive_max_pool as adaptive_max_pool
from jaxcnn.adaptive_pooling import global_avg_pool as global_avg_pool
from jaxcnn.adaptive_pooling import global_max_pool as global_max_pool
from jaxcnn.chain import KernelChain as KernelChain
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
from jaxcnn.geometry import Layer as Layer
from jaxcnn.geometry import ReceptiveField as ReceptiveField
from jaxcnn.geometry import receptive_field as receptive_field
from jaxcnn.lowering.tuning_table import TuningTable as TuningTable
from jaxcnn.pooling import avg_pool as avg_pool
from jaxcnn.pooling import lp_pool as lp_pool
from jaxcnn.pooling import max_pool as max_pool
from jaxcnn.pooling import max_pool_with_indices as max_pool_with_indices
from jaxcnn.pooling import max_unpool as max_unpool
from jaxcnn.pooling import min_pool as min_pool
from jaxcnn.pooling import sum_pool as sum_pool
from jaxcnn.shapes import conv_output_shape as conv_output_shape
from jaxcnn.shapes import pool_output_shape as pool_output_shape
from jaxcnn.transform.acceleration.accelerate import accelerate as accelerate
from jaxcnn.transform.chains.with_chains import with_chains as with_chains
from jaxcnn.transform.substitution.report import LayerReport as LayerReport
from jaxcnn.transform.substitution.report import Report as Report
from jaxcnn.transform.substitution.substitute import Substitution as Substitution
from jaxcnn.transform.substitution.substitute import TradeOff as TradeOff
from jaxcnn.transform.substitution.substitute import substitute as substitute
from jaxcnn.transform.summary.row import Row as Row
from jaxcnn.transform.summary.summarize import Summary as Summary
from jaxcnn.transform.summary.summarize import summarize as summarize
from jaxcnn.transform.tuning import tune as tune

__all__ = [
    "Cost",
    "KernelChain",
    "Layer",
    "LayerReport",
    "RankCurve",
    "ReceptiveField",
    "Report",
    "Row",
    "Substitution",
    "Summary",
    "TradeOff",
    "TuningTable",
    "accelerate",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "compose",
    "conv",
    "conv_cost",
    "conv_output_shape",
    "conv_transpose",
    "cp",
    "curve",
    "depthwise_conv",
    "depthwise_separable",
    "extract_patches",
    "factorize",
    "fold_scale",
    "global_avg_pool",
    "global_max_pool",
    "low_rank",
    "lp_pool",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "merge",
    "min_pool",
    "pool_cost",
    "pool_output_shape",
    "receptive_field",
    "select_rank",
    "separable",
    "split",
    "stack",
    "substitute",
    "sum_pool",
    "summarize",
    "tucker2",
    "tune",
    "with_chains",
]

__version__ = "0.1.0"
