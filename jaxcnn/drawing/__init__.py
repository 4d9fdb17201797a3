"""Pictures of convolutions, pools, kernels and their costs, with matplotlib: `pip install "jaxcnn[plot]"`.

Every function returns a `matplotlib.figure.Figure` and, given a path, also saves it. No window is opened and no global
state of matplotlib is touched; the same arguments give the same file, byte for byte.
"""

try:
    import matplotlib as matplotlib
except ImportError as error:
    raise ImportError('jaxcnn.drawing needs matplotlib: pip install "jaxcnn[plot]"') from error

from jaxcnn.drawing.arrays import draw_arrays as draw_arrays
from jaxcnn.drawing.convolution import draw_convolution as draw_convolution
from jaxcnn.drawing.curves import draw_curves as draw_curves
from jaxcnn.drawing.curves import draw_tradeoff as draw_tradeoff
from jaxcnn.drawing.kernels import draw_kernels as draw_kernels
from jaxcnn.drawing.pooling import draw_pooling as draw_pooling
from jaxcnn.drawing.receptive_field import draw_receptive_field as draw_receptive_field
from jaxcnn.drawing.summaries import draw_summary as draw_summary

__all__ = [
    "draw_arrays",
    "draw_convolution",
    "draw_curves",
    "draw_kernels",
    "draw_pooling",
    "draw_receptive_field",
    "draw_summary",
    "draw_tradeoff",
]
