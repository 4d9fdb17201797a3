"""Parts that the tests of all schemes share: kernels, the kernel by groups, a chain's error by loops."""

import string

import numpy as np

from support.arrays import normal
from support.counting import loop_compose

FAST = ("separable", "low_rank", "tucker2", "depthwise_separable")
ROUNDING = 2e-6  # of float32 chains, relative to the kernel


def falling(rng, shape, power=0.7):
    """A kernel whose channels are of unequal strength, as a trained one's."""
    kernel = normal(shape, rng, dtype=np.float64)
    for axis in (-1, -2):
        size = shape[axis]
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        mixing = (basis / np.arange(1, size + 1) ** power) @ basis.T
        kernel = np.swapaxes(np.swapaxes(kernel, axis, -1) @ mixing, axis, -1)
    return kernel.astype(np.float32)


# The result of cancelling terms: there are sums of two products as near to it as one likes, but none equals it.
UNREACHABLE = np.zeros((2, 2, 2), np.float32)
UNREACHABLE[0, 0, 1] = UNREACHABLE[0, 1, 0] = UNREACHABLE[1, 0, 0] = 1


def terms(factors, weights=None):
    """The sum of outer products of vectors (n, R) of each axis, by one einsum."""
    letters = string.ascii_lowercase[: len(factors)]
    weights = np.ones(factors[0].shape[1]) if weights is None else weights
    return np.einsum(",".join(f"{letter}z" for letter in letters) + ",z->" + letters, *factors, weights)


def blocks_of(kernel, groups):
    """The kernel (*window, I, O) of each group."""
    return np.split(np.asarray(kernel), groups, axis=-1)


def dense_of(chain):
    """The dense kernel with one group, float64 or complex128, by loops."""
    kernels = [np.asarray(link) for link in chain.kernels]
    if any(np.iscomplexobj(link) for link in kernels):
        raise TypeError("the loops are for real kernels")
    return loop_compose([link.astype(np.float64) for link in kernels], list(chain.feature_group_counts))


def block_diagonal(kernel, groups):
    """A grouped kernel as the one with one group that does the same."""
    blocks = [np.asarray(block, np.float64) for block in blocks_of(kernel, groups)]
    *window, rows, columns = blocks[0].shape
    dense = np.zeros((*window, rows * groups, columns * groups))
    for group, block in enumerate(blocks):
        dense[..., group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = block
    return dense


def error_of(chain, kernel, groups=1):
    """The chain's relative error, by loops in float64; of everything that the dense kernel is, zeros included."""
    expected = block_diagonal(kernel, groups)
    return np.linalg.norm(dense_of(chain) - expected) / np.linalg.norm(expected)


def discarded(matrices, rank):
    """Norm of the singular values after `rank`, of all matrices together, relative to all of them."""
    values = np.array([np.linalg.svd(matrix, compute_uv=False) for matrix in matrices])
    return np.linalg.norm(values[:, rank:]) / np.linalg.norm(values)


def unfoldings(kernel):
    """(*window, I, O) as the matrices of its input and of its output channels."""
    wide = np.asarray(kernel, np.float64)
    return [np.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1) for axis in (-2, -1)]


def start_error(kernel, ranks):
    """Error of the projection on the leading singular vectors of both unfoldings, by NumPy alone."""
    wide = np.asarray(kernel, np.float64)
    bases = [np.linalg.svd(matrix)[0][:, :rank] for matrix, rank in zip(unfoldings(kernel), ranks, strict=True)]
    left, right = (basis @ basis.T for basis in bases)
    return np.linalg.norm(np.einsum("...io,ij,op->...jp", wide, left, right) - wide) / np.linalg.norm(wide)
