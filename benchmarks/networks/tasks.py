"""Scores of tasks, from 0 to 1: agreement of a network's decisions with chains and with its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Outputs = Sequence[Any]
"""Results of a network for each of some inputs."""
Task = Callable[[Outputs, Outputs], float]
"""Function of the results before and after to the share of the task that is kept."""

_BOX_SCORE = 0.1
"""Score from which on a box counts."""
_BOX_OVERLAP = 0.5
"""Intersection over union at which two boxes are the same."""
_STRIDES = (8, 16, 32)


def f1(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the harmonic mean of precision and recall of two masks."""
    both = before.sum() + after.sum()
    return float(2 * (before & after).sum() / both) if both else 1.0


def mask_f1(place: Callable[[Any], Any], threshold: float) -> Task:
    """Returns the F1 score of what is above a threshold, over all inputs together."""

    def task(before: Outputs, after: Outputs) -> float:
        masks = [np.concatenate([np.ravel(place(one)) > threshold for one in outputs]) for outputs in (before, after)]
        return f1(*masks)

    return task


def same_class(place: Callable[[Any], Any]) -> Task:
    """Returns the share of rows whose largest score is in the same place."""

    def task(before: Outputs, after: Outputs) -> float:
        first, second = (np.concatenate([np.argmax(place(one), -1) for one in o]) for o in (before, after))
        return float((first == second).mean())

    return task


def common_classes(count: int) -> Task:
    """Returns the share of the classes of some largest scores that are among those of the other network."""

    def task(before: Outputs, after: Outputs) -> float:
        first, second = (np.concatenate([np.argsort(-one, -1)[:, :count] for one in o]) for o in (before, after))
        return float((first[:, :, None] == second[:, None, :]).any(-1).mean())

    return task


def near_class(distance: int) -> Task:
    """Returns the share of rows whose largest score is at most some places away."""

    def task(before: Outputs, after: Outputs) -> float:
        first, second = (np.concatenate([np.argmax(one, -1) for one in o]) for o in (before, after))
        return float((np.abs(first - second) <= distance).mean())

    return task


def same_text(characters: Sequence[str]) -> Task:
    """Returns the share of lines of which every character is read alike."""

    def task(before: Outputs, after: Outputs) -> float:
        pairs = zip(before, after, strict=True)
        return float(np.mean([read_text(a, characters) == read_text(b, characters) for a, b in pairs]))

    return task


def read_text(scores: Any, characters: Sequence[str]) -> str:
    """Returns the text of (1, columns, characters) scores: repeats are one character, and the first one is none."""
    best = np.argmax(scores[0], -1)
    return "".join(characters[b] for a, b in zip([0, *best[:-1]], best, strict=True) if b and b != a)


def characters_of(path: Path) -> list[str]:
    """Returns the characters that a text recognizer's file names, after the blank and before the space."""
    import onnx

    (text,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "character")
    return ["", *text.splitlines(), " "]


def boxes(output: Any, size: int) -> np.ndarray:
    """Returns the boxes that an anchor-free detector finds, the best first: (count, 4) of left, top, right, bottom."""
    grids, steps = [], []
    for stride in _STRIDES:
        side = size // stride
        columns, rows = np.meshgrid(np.arange(side), np.arange(side))
        grids.append(np.stack((columns, rows), -1).reshape(-1, 2))
        steps.append(np.full((side * side, 1), stride))
    (rows_of_output,) = np.asarray(output)
    grid, step = np.concatenate(grids), np.concatenate(steps)
    center, extent = (rows_of_output[:, :2] + grid) * step, np.exp(np.minimum(rows_of_output[:, 2:4], 20)) * step
    scores = rows_of_output[:, 4] * rows_of_output[:, 5]
    corners = np.concatenate([center - extent / 2, center + extent / 2], -1)
    kept: list[np.ndarray] = []
    for index in np.argsort(-scores):
        if scores[index] < _BOX_SCORE:
            break
        if all(overlap(corners[index], other) < _BOX_OVERLAP for other in kept):
            kept.append(corners[index])
    return np.array(kept).reshape(-1, 4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the intersection over the union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common, 1e-9)


def same_boxes(size: int) -> Task:
    """Returns the F1 score of the boxes that overlap one of the other network."""

    def task(before: Outputs, after: Outputs) -> float:
        matched = total = 0
        for a, b in zip(before, after, strict=True):
            first, second = boxes(a, size), boxes(b, size)
            total += len(first) + len(second)
            matched += sum(any(overlap(box, other) >= _BOX_OVERLAP for other in second) for box in first)
            matched += sum(any(overlap(box, other) >= _BOX_OVERLAP for other in first) for box in second)
        return matched / total if total else 1.0

    return task
