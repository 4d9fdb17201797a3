"""Files in torch's old format, written opcode by opcode: without torch, and with what it never writes."""

import pickle
import struct

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # the global, an empty tuple, and the call


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def sequence(*items):
    return b"(" + b"".join(items) + b"t"


def tensor(key, shape, strides, *, offset=0, storage=b"ctorch\nFloatStorage\n"):
    """A tensor that looks into the storage `key`."""
    reference = sequence(text("storage"), storage, text(key), text("cpu"), integer(0), b"N") + b"Q"
    arguments = (reference, integer(offset), *(sequence(*map(integer, sizes)) for sizes in (shape, strides)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + sequence(*arguments, b"\x89", ORDERED_DICT) + b"R"


def dictionary(items):
    """A pickle of a dictionary whose values are opcodes already."""
    return b"\x80\x02" + ORDERED_DICT + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def assemble(tensors, storages):
    """The five pickles of a file, and its numbers."""
    pickles = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, 1001, {"little_endian": True})]
    pickles += [tensors, pickle.dumps(list(storages), 2)]
    return pickles, b"".join(struct.pack("<q", numbers.size) + numbers.tobytes() for numbers in storages.values())


def write(path, arrays):
    """A file of these arrays; each tensor has a storage of its own."""
    storages = {str(index): array.ravel() for index, array in enumerate(arrays.values())}
    items = {
        name: tensor(str(index), array.shape, [step // array.itemsize for step in np.ascontiguousarray(array).strides])
        for index, (name, array) in enumerate(arrays.items())
    }
    pickles, numbers = assemble(dictionary(items), storages)
    path.write_bytes(b"".join(pickles) + numbers)
