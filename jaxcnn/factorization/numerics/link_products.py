"""Products of small kernels in a row, and other forms of links that have the same product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Links = list[np.ndarray]


def compose_links(links: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the dense kernel (*window, I, O) of links (*window, I, F1), (*window, F1, F2), ..., (*window, F, O).

    Example:
      >>> compose_links([np.ones((3, 1, 1)), np.ones((3, 1, 1))]).ravel().tolist()
      [1.0, 2.0, 3.0, 2.0, 1.0]
    """
    dense = np.asarray(links[0])
    for link in links[1:]:
        window = tuple(m + n - 1 for m, n in zip(dense.shape[:-2], link.shape[:-2], strict=False))
        total = np.zeros((*window, dense.shape[-2], link.shape[-1]), np.result_type(dense, link))
        for offset in np.ndindex(*link.shape[:-2]):
            total[shifted_by(offset, dense.shape[:-2])] += dense @ link[offset]
        dense = total
    return dense


def balance(links: Links) -> Links:
    """Returns links of the same product and the least sum of squares: neighbours become U sqrt(S) and sqrt(S) V."""
    links = list(links)
    for _ in range(2):
        for position in range(len(links) - 1):
            a, b = links[position], links[position + 1]
            features = a.shape[-1]
            basis_a, factor_a = np.linalg.qr(a.reshape(-1, features))
            basis_b, factor_b = np.linalg.qr(np.moveaxis(b, -2, -1).reshape(-1, features))
            u, values, v = np.linalg.svd(factor_a @ factor_b.T, full_matrices=False)
            root = np.zeros((len(values), features))
            np.fill_diagonal(root, np.sqrt(values))
            links[position] = (basis_a @ u @ root).reshape(a.shape)
            second = (basis_b @ v.T @ root).reshape(*b.shape[:-2], b.shape[-1], features)
            links[position + 1] = np.moveaxis(second, -1, -2)
    return links


def widen(links: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], generator: np.random.Generator) -> Links:
    """Returns wider links of the same product: new filters are random, and the next link's weights for them zero."""
    wide = []
    for link, shape in zip(links, shapes, strict=False):
        new = np.zeros(shape)
        old = np.asarray(link, np.float64)
        i, o = old.shape[-2:]
        new[..., :i, :o] = old
        new[..., :, o:] = generator.standard_normal(new[..., :, o:].shape) * (np.linalg.norm(old) / np.sqrt(old.size))
        wide.append(new)
    return wide


def flatten(links: Links) -> np.ndarray:
    """Returns the weights of all links but the last as one vector."""
    return np.concatenate([link.ravel() for link in links[:-1]])


def unflatten(flat: np.ndarray, links: Links) -> Links:
    """Returns links with the weights of a vector that `flatten` made; the last link is that of `links`."""
    ends = np.cumsum([link.size for link in links[:-1]])
    parts = np.split(flat, ends[:-1])
    return [*(part.reshape(link.shape) for part, link in zip(parts, links, strict=False)), links[-1]]


def add_ridge(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Returns a Gram matrix plus `ridge` times its mean diagonal, positive definite even for zeros."""
    amount = ridge * np.trace(gram) / len(gram) + 1e-300
    return np.asarray(gram + amount * np.eye(len(gram)))


def adjoint(spectrum: np.ndarray) -> np.ndarray:
    """Returns the conjugate transpose of each matrix in (..., m, n)."""
    return spectrum.conj().swapaxes(-1, -2)


def transpose_links(links: Links) -> Links:
    """Returns the links whose product is the transpose of the product: each transposed, in reverse order."""
    return [link.swapaxes(-1, -2) for link in links[::-1]]


def shifted_by(offset: tuple[int, ...], window: tuple[int, ...]) -> tuple[slice, ...]:
    """Returns the index of a window's place in a larger one, at an offset along each axis."""
    return tuple(slice(start, start + size) for start, size in zip(offset, window, strict=False))
