"""Agreement of the processes of one program: values compared, and what one process decides taken by all.

Each function here that communicates is called by all processes, in the same order as their other collective operations.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

AGREEMENT_SECONDS = 120.0
"""Time that the processes have to come to a comparison."""


class ProcessesDisagree(ValueError):
    """The processes of a program do not do the same, so that they would wait for each other for ever."""


def bytes_of_all(content: bytes, what: str) -> list[bytes]:
    """Returns the bytes that each process gives, all of one length, by process.

    Args:
      content: bytes of this process.
      what: words for what all processes do here, for the error.

    Raises:
      ProcessesDisagree: some process does not come here in time.
    """
    gathered: list[np.ndarray] = []
    errors: list[Exception] = []

    def gather() -> None:
        try:
            gathered.append(np.asarray(multihost_utils.process_allgather(np.frombuffer(content, np.uint8))))
        except Exception as error:  # of a kind that depends on JAX's transport
            errors.append(error)

    # A collective operation has no time limit, and a thread that traces a program would record it there.
    thread = threading.Thread(target=gather, daemon=True)
    thread.start()
    thread.join(AGREEMENT_SECONDS)
    if not gathered:
        cause = f": {errors[0]}" if errors else f" within {AGREEMENT_SECONDS:g} seconds"
        raise ProcessesDisagree(
            f"process {jax.process_index()} of {jax.process_count()} {what}, and not all others do{cause}"
        ) from next(iter(errors), None)
    return [row.tobytes() for row in gathered[0].reshape(jax.process_count(), len(content))]


def decided_by_first(decide: Callable[[], T]) -> T:
    """Returns on all processes what a function returns on the first one, which alone calls the function.

    Args:
      decide: function whose result, or exception, can be pickled.

    Raises:
      Exception: the function's own, on all processes.
    """
    if jax.process_count() == 1:
        return decide()
    # The first collective operation of a program connects the processes, which wait for each other half a minute only.
    # Later ones wait as long as it takes.
    multihost_utils.broadcast_one_to_all(np.zeros((), np.int32))
    content, failure = b"", None
    if jax.process_index() == 0:
        try:
            content = pickle.dumps((decide(), None))
        except Exception as error:
            failure = error
            content = pickle.dumps((None, _sendable(error)))
    # Without 64-bit types a number of bytes is a pair of numbers.
    high, low = map(int, multihost_utils.broadcast_one_to_all(np.asarray(divmod(len(content), 2**30), np.int32)))
    buffer = np.frombuffer(content or bytes(high * 2**30 + low), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8).tobytes()
    result, sent_failure = pickle.loads(content)
    if failure is not None:
        raise failure
    if sent_failure is not None:
        raise sent_failure
    return result


def _sendable(error: Exception) -> Exception:
    """Returns an exception of the same class and text if such a one can be pickled, else a RuntimeError."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} on process 0: {error}")


def whole(array: Any) -> Any:
    """Returns an array with the parts of all processes; anything else, and an array that is whole here, as it is."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = whole(jax.random.key_data(array))
        return jax.random.wrap_key_data(jax.numpy.asarray(data), impl=jax.random.key_impl(array))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def placed_like(array: Any, sharding: Any) -> jax.Array:
    """Returns an array of one sharding, which may lie on other processes too; every process holds all of the array.

    Args:
      array: array that this process holds as a whole.
      sharding: sharding of the result.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = placed_like(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
