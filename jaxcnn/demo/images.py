"""Photographs read as red, green and blue bytes of a bounded size, and arrays written as PNG."""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import PIL.Image
import PIL.ImageOps
import skimage.data
import skimage.io

from jaxcnn.demo import DemoError

#: Names of pictures that are part of scikit-image, so that no download is needed.
BUNDLED = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "motorcycle",
    "camera",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
)


def load_image(name: str, *, long_side: int = 512) -> np.ndarray:
    """Reads a photograph from a file, or by the name of a picture in scikit-image.

    Grey, palette, CMYK and 16-bit pictures become 8-bit red, green and blue; transparent parts become white; of
    several frames or pages the first is taken; a photograph held sideways is turned upright (EXIF).  A picture
    whose long side exceeds `long_side` pixels is scaled down to it; a smaller one keeps its size.

    Args:
      name: path of a file, or one of scikit-image's names such as ``"astronaut"``.
      long_side: largest height or width allowed, in pixels.

    Returns:
      uint8 array of shape (height, width, 3).

    Raises:
      DemoError: if there is no such picture, or it cannot be read as one.
    """
    path = Path(name)
    if path.is_dir():
        raise DemoError(f"{name} is a folder, not an image")
    if path.is_file():
        picture = _read_file(path)
    elif name in BUNDLED:
        picture = PIL.Image.fromarray(to_rgb(_bundled_picture(name)))
    else:
        raise DemoError(f"no image {name}: neither a file nor a picture of scikit-image ({', '.join(BUNDLED)})")
    if max(picture.size) > long_side:
        scale = long_side / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        # reducing_gap first shrinks by whole factors, which keeps a picture of 100 megapixels quick.
        picture = picture.resize((width, height), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)


def _bundled_picture(name: str) -> np.ndarray:
    """Returns one of scikit-image's pictures."""
    if name == "motorcycle":
        left, _right, _disparity = skimage.data.stereo_motorcycle()
        return left
    picture: np.ndarray = getattr(skimage.data, name)()
    return picture


def _read_file(path: Path) -> PIL.Image.Image:
    """Returns the picture in a file, upright, as 8-bit RGB."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):  # Pillow cannot read a TIFF of 16 bits and three channels
            return PIL.Image.fromarray(to_rgb(skimage.io.imread(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # a large picture is welcome here
            with PIL.Image.open(path) as picture:
                return _picture_to_rgb(PIL.ImageOps.exif_transpose(picture))
    except PIL.UnidentifiedImageError:
        raise DemoError(f"{path} is not an image that can be read") from None
    except DemoError as error:
        raise DemoError(f"{path}: {error}") from None
    except MemoryError:
        raise DemoError(f"{path}: too large for this machine's memory") from None
    except Exception as error:  # readers of broken files raise whatever they met
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DemoError(f"{path} is not an image that can be read ({reason})") from None


def _picture_to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Returns a Pillow picture of any mode as RGB, with white in its transparent parts."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # where Pillow would clip, not scale
        return PIL.Image.fromarray(to_rgb(np.asarray(picture)))
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", layered.size, "white")
        return PIL.Image.alpha_composite(white, layered).convert("RGB")
    return picture.convert("RGB")


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Returns pixels of any depth and number of channels as uint8 of shape (height, width, 3).

    Unsigned integers are scaled from their full range, except integers of 32 or 64 bits (in which readers hand
    over 16-bit pictures) and floating numbers beyond [0, 1], which are scaled from the range that occurs.  One
    channel is grey, two are grey and opacity, four are RGB and opacity.

    Raises:
      DemoError: if the array is not a picture.
    """
    while array.ndim > 3:  # several pages: the first
        array = array[0]
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise DemoError(f"an array of shape {array.shape} and type {array.dtype} is not a picture")
    if array.shape[2] > 4:  # not channels but pages of grey
        array = array[0][:, :, None]
    bright = _to_unit_range(array)
    if bright.shape[2] in (2, 4):
        opacity = bright[:, :, -1:]
        bright = bright[:, :, :-1] * opacity + (1 - opacity)
    if bright.shape[2] == 1:
        bright = np.repeat(bright, 3, axis=2)
    return np.round(bright * 255).astype(np.uint8)


def _to_unit_range(array: np.ndarray) -> np.ndarray:
    """Returns pixel values as float32 from 0 to 1."""
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    bright = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = bright.min(), bright.max()
    if low < 0 or high > 1:
        bright = (bright - low) / (high - low) if high > low else np.zeros_like(bright)
    return bright.astype(np.float32)


def to_png(array: np.ndarray, *, low: float = 0.0, high: float = 1.0, colours: str = "gray_r") -> bytes:
    """Returns the PNG file of an RGB picture (height, width, 3), or of a map (height, width) in colours of matplotlib.

    Args:
      array: pixels, uint8 RGB, or a map of numbers.
      low: number that has the colour map's first colour.
      high: number that has the colour map's last colour.
      colours: name of the colour map; the default draws 0 as white and 1 as black.
    """
    buffer = io.BytesIO()
    scale: dict[str, Any] = {"vmin": low, "vmax": high, "cmap": colours} if array.ndim == 2 else {}
    matplotlib.image.imsave(buffer, array, format="png", **scale)
    return buffer.getvalue()
