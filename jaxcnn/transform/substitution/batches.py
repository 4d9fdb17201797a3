"""The batches of calibration inputs that `substitute` takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_BATCHES = 16
"""Largest number of batches that are kept of an iterator; layers are fitted to a few thousand positions in any case."""


def batches_of(calibration: Any, seed: int) -> list[tuple[Any, ...]]:
    """Returns the batches of calibration inputs, each a tuple of the arguments after the parameters.

    Of an iterator that yields more than `MAX_BATCHES` a random sample of this size is returned, every batch with the
    same probability. No more are held at a time, however long the iterator is.

    Args:
      calibration: list or iterator of batches, one batch, or None.
      seed: seed for the sample.
    """
    if calibration is None:
        return []
    if isinstance(calibration, Iterator):
        batches = _sample(calibration, np.random.default_rng(seed))
    else:
        batches = calibration if isinstance(calibration, list) else [calibration]
    if not batches:
        raise ValueError("substitute: calibration must hold at least one batch of inputs, got none")
    return [batch if isinstance(batch, tuple) else (batch,) for batch in batches]


def _sample(iterator: Iterator[Any], generator: np.random.Generator) -> list[Any]:
    """Returns a random sample of what an iterator yields, in the iterator's order as long as all of it is held."""
    kept: list[Any] = []
    for number, batch in enumerate(iterator):
        if number < MAX_BATCHES:
            kept.append(batch)
        elif (position := int(generator.integers(number + 1))) < MAX_BATCHES:
            kept[position] = batch
    return kept
