"""Pictures of convolution arithmetic, with matplotlib: `pip install "jaxcnn[plot]"`.

Every function returns a `matplotlib.figure.Figure` and, given a path, also saves it. No window is opened and no global
state of matplotlib is touched; the same arguments give the same file, byte for byte.
"""

try:
    import matplotlib as matplotlib
except ImportError as error:
    raise ImportError('jaxcnn.drawing needs matplotlib: pip install "jaxcnn[plot]"') from error

from jaxcnn.drawing.arithmetic import draw_arrays as draw_arrays
from jaxcnn.drawing.arithmetic import draw_convolution as draw_convolution
from jaxcnn.drawing.arithmetic import draw_receptive_field as draw_receptive_field
from jaxcnn.drawing.curves import draw_curves as draw_curves
from jaxcnn.drawing.curves import draw_tradeoff as draw_tradeoff

__all__ = ["draw_arrays", "draw_convolution", "draw_curves", "draw_receptive_field", "draw_tradeoff"]
