"""The batches of calibration inputs that `substitute` takes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_BATCHES = 16
"""Largest number of batches that are kept of an iterator; layers are fitted to a few thousand positions in any case."""
_MIN_FILE_BYTES = 1 << 16
"""Size of an array from which a file of its own is worth its while."""


def batches_of(calibration: Any, seed: int) -> list[tuple[Any, ...]]:
    """Returns the batches of calibration inputs, each a tuple of the arguments after the parameters.

    Of an iterator that yields more than `MAX_BATCHES` a random sample of this size is returned, every batch with the
    same probability. Their arrays are in files, so that one batch at a time needs memory, however long the iterator is.

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
    sample: list[Any] = []
    for number, batch in enumerate(iterator):
        if number < MAX_BATCHES:
            sample.append(jax.tree.map(in_a_file, batch))
        elif (position := int(generator.integers(number + 1))) < MAX_BATCHES:
            sample[position] = jax.tree.map(in_a_file, batch)
    return sample


def in_a_file(value: Any) -> Any:
    """Returns an array as a map of a temporary file, which is deleted with it; small arrays and others as they are.

    The system keeps the parts of a file in memory that are read, as long as there is room.
    """
    if not _is_on_one_device(value) or value.nbytes < _MIN_FILE_BYTES:
        return value
    array = np.asarray(value)
    with tempfile.TemporaryFile() as file:
        filed = np.memmap(file, array.dtype, "w+", shape=array.shape)
    filed[...] = array
    return filed


def _is_on_one_device(value: Any) -> bool:
    if not isinstance(value, jax.Array):
        return type(value) is np.ndarray
    is_number = not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return is_number and value.is_fully_addressable and len(value.sharding.device_set) == 1
