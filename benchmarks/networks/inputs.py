"""Inputs such as the trained networks meet: photographs and faces from packages, drawn text, and synthetic signals."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import skimage.data
from sklearn.datasets import load_sample_images

Array = np.ndarray

CALIBRATION_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina")
UNSEEN_PHOTOGRAPHS = ("camera", "stereo_motorcycle", "immunohistochemistry", "china", "flower")
"""Names of photographs of scikit-image, and the two of scikit-learn, that no chain is fitted to."""
TRAINING_PHOTOGRAPHS = (*CALIBRATION_PHOTOGRAPHS, "coins", "hubble_deep_field", "brick", "grass", "gravel", "page")
"""Names of photographs of scikit-image from which pieces for training are cut."""
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif-Italic")
"""Names of fonts that matplotlib brings."""
_TEXT = (
    "the kernel of a layer is small measure twice and cut once rivers carry stones slowly seven bright lanterns hung "
    "over harbour fog travellers counted forty ships at dawn winter markets sell amber honey quiet engines hum below "
    "decks painters mix ochre with linseed oil every signal has its echo"
)
WORDS = tuple(_TEXT.split())


@functools.cache
def photograph(name: str) -> Array:
    """Returns a photograph, uint8 (height, width, 3)."""
    samples = load_sample_images()
    files = {Path(file).stem: image for file, image in zip(samples.filenames, samples.images, strict=True)}
    image = files[name] if name in files else getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image
    image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., :3]
    return np.asarray(image, np.uint8)


def training_photographs() -> list[Array]:
    """Returns the photographs from which pieces for training are cut: of scikit-image, matplotlib and foolbox.

    Foolbox brings twenty of the kind that networks of classes are trained with. None of them is judged by.
    """
    files = [Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"]
    spec = importlib.util.find_spec("foolbox")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        files += sorted(Path(folder).glob("data/imagenet_*.jpg"))
    if len(files) == 1:
        raise FileNotFoundError("foolbox is not installed, whose photographs are trained with")
    pictures = [np.asarray(PIL.Image.open(file).convert("RGB")) for file in files]
    return [*map(photograph, TRAINING_PHOTOGRAPHS), *pictures]


def random_pieces(images: Sequence[Array], size: int, count: int, seed: int) -> Iterator[Array]:
    """Yields batches of random pieces of photographs, scaled, some mirrored, lighter or darker: (count, size, size, 3).

    Args:
      images: photographs, uint8 (height, width, 3).
      size: height and width of the pieces, in pixels.
      count: number of pieces of a batch.
      seed: seed for the pieces.
    """
    random = np.random.default_rng((7, seed))

    def piece() -> Array:
        image = images[random.integers(len(images))]
        height, width = image.shape[:2]
        side = round(min(height, width) * np.sqrt(random.uniform(0.15, 1)))
        part = resized(crop(image, side, (random.random(), random.random())), size, size)
        part = part[:, ::-1] if random.random() < 0.5 else part
        lighter = (part - np.float32(127)) * random.uniform(0.7, 1.3) + 127 + random.uniform(-30, 30)
        return np.clip(lighter, 0, 255).astype(np.uint8)

    while True:
        yield np.stack([piece() for _ in range(count)])


def crop(image: Array, size: int, place: tuple[float, float] = (0.5, 0.5)) -> Array:
    """Returns a square of pixels at a place, which is (0, 0) at the top left and (1, 1) at the bottom right."""
    top, left = (round(part * (side - size)) for part, side in zip(place, image.shape, strict=False))
    return image[top : top + size, left : left + size]


def resized(image: Array, width: int, height: int) -> Array:
    """Returns an image of another size."""
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC))


def faces() -> Array:
    """Returns 100 faces, and 100 pieces of photographs without one, in turn: float (200, 25, 25), from 0 to 1."""
    images = skimage.data.lfw_subset()
    return images.reshape(2, 100, 25, 25).transpose(1, 0, 2, 3).reshape(200, 25, 25)


def _font(name: str, size: int) -> Any:
    return PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/{name}.ttf"), size)


def text_line(seed: int, width: int, height: int) -> Array:
    """Returns a drawn line of words, as large as fits, uint8 (height, width, 3)."""
    random = np.random.default_rng((1, seed))
    text = " ".join(random.choice(WORDS, 3))
    font = _font(FONTS[seed % len(FONTS)], 32)
    left, top, right, bottom = font.getbbox(text)
    paper, ink = random.integers(170, 256, 3), random.integers(0, 90, 3)
    picture = PIL.Image.new("RGB", (right - left + 16, bottom - top + 12), tuple(map(int, paper)))
    PIL.ImageDraw.Draw(picture).text((8 - left, 6 - top), text, fill=tuple(map(int, ink)), font=font)
    image = np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC), np.float32)
    return np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def text_scene(seed: int, size: int) -> Array:
    """Returns a piece of a photograph with lines of text over it, uint8 (size, size, 3)."""
    random = np.random.default_rng((2, seed))
    names = [*CALIBRATION_PHOTOGRAPHS, *UNSEEN_PHOTOGRAPHS]
    piece = crop(photograph(names[seed % len(names)]), 256, tuple(random.random(2)))
    image = PIL.Image.fromarray(resized(piece, size, size))
    draw = PIL.ImageDraw.Draw(image)
    for row in range(4):
        place = int(random.integers(8, size // 4)), int(size * row / 4 + random.integers(4, 24))
        font = _font(str(random.choice(FONTS)), int(random.integers(18, 34)))
        ink = tuple(int(value) for value in random.integers(0, 256, 3))
        draw.text(place, " ".join(random.choice(WORDS, 2)), fill=ink, font=font, stroke_width=1, stroke_fill="white")
    return np.asarray(image)


def characters(seed: int, size: int, names: Sequence[str] = (*CALIBRATION_PHOTOGRAPHS, *UNSEEN_PHOTOGRAPHS)) -> Array:
    """Returns single characters scattered over a piece of one of some photographs, uint8 (size, size, 3)."""
    random = np.random.default_rng((3, seed))
    piece = crop(photograph(names[seed % len(names)]), 256, tuple(random.random(2)))
    image = PIL.Image.fromarray(resized(piece, size, size))
    draw = PIL.ImageDraw.Draw(image)
    for column in range(4):
        place = int(size * column / 4 + random.integers(4, 24)), int(random.integers(20, size - 110))
        ink = tuple(int(value) for value in random.integers(0, 256, 3))
        font = _font(str(random.choice(FONTS)), int(random.integers(56, 84)))
        draw.text(place, chr(int(random.integers(65, 91))), fill=ink, font=font, stroke_width=3, stroke_fill="white")
    return np.asarray(image)


def notes(seed: int, samples: int, rate: int) -> Array:
    """Returns the sound of some notes that are struck one after the other, float32 (samples,)."""
    random = np.random.default_rng((4, seed))
    time = np.arange(samples) / rate
    sound = random.normal(0, 1e-3, samples)
    for _ in range(8):
        frequency, start = 440 * 2 ** (random.integers(-24, 16) / 12), random.random() * samples / rate
        envelope = np.exp(-(time - start) / random.uniform(0.2, 1.0)) * (time > start)
        for harmonic in range(1, 7):
            phase = 2 * np.pi * (frequency * harmonic * time + random.random())
            sound += 0.2 * envelope * np.sin(phase) * random.uniform(0.3, 1) / harmonic**1.3
    return (sound / np.abs(sound).max() * 0.8).astype(np.float32)


def sung_frames(seed: int, count: int, samples: int, rate: int) -> Array:
    """Returns frames of a tone whose pitch glides, each of mean zero and deviation one, float32 (count, samples)."""
    random = np.random.default_rng((5, seed))
    hop = rate // 100
    length = hop * (count - 1) + samples
    places = np.linspace(0, length, 8)
    octaves = np.interp(np.arange(length), places, random.uniform(np.log2(90), np.log2(700), 8))
    phase = np.cumsum(2**octaves) / rate
    sound = random.normal(0, 0.02, length)
    for harmonic in range(1, 9):
        sound += np.sin(2 * np.pi * (harmonic * phase + random.random())) * random.uniform(0.3, 1) / harmonic
    frames = np.stack([sound[hop * frame : hop * frame + samples] for frame in range(count)])
    frames = frames - frames.mean(1, keepdims=True)
    return (frames / frames.std(1, keepdims=True)).astype(np.float32)


def sleep_signal(seed: int, samples: int, rate: int) -> Array:
    """Returns a signal like an electroencephalogram in sleep: noise of slow waves, with spindles of 11 to 15 Hz."""
    random = np.random.default_rng((6, seed))
    spectrum = np.fft.rfft(random.normal(size=samples))
    frequencies = np.fft.rfftfreq(samples, 1 / rate)
    signal = np.fft.irfft(spectrum / np.maximum(frequencies, 0.5) ** 1.1, samples)
    signal /= signal.std()
    time = np.arange(samples) / rate
    for _ in range(6):
        center, width = random.uniform(1.5, samples / rate - 1.5), random.uniform(0.25, 0.5)
        tone = np.sin(2 * np.pi * random.uniform(11, 15) * time + random.uniform(0, 6))
        signal += random.uniform(0.7, 1.5) * np.exp(-(((time - center) / width) ** 2)) * tone
    return signal


def normalized(rows: Array) -> Array:
    """Returns rows of mean zero and deviation one, float32."""
    return ((rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)).astype(np.float32)


def module_from(path: Path) -> Any:
    """Returns the module in a file of a package whose other modules need what is not installed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(arrays: Sequence[Array]) -> list[tuple[Array, ...]]:
    """Returns each array as a batch of one argument."""
    return [(array,) for array in arrays]
