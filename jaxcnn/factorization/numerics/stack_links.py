"""Small kernels in a row: their product, and what the fit of them needs of linear algebra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Links = list[np.ndarray]


def compose_links(links: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply the links out to the dense kernel of the convolutions in a row (the formula above).

    Args:
        links: Kernels (*window, I, F1), (*window, F1, F2), ..., (*window, F, O).

    Returns:
        The kernel (*window, I, O), whose window is ``1 + sum(window - 1)`` along each axis.

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


def balanced(links: Links) -> Links:
    """The same product with every neighbouring pair brought to U sqrt(S) and sqrt(S) V, the least sum of norms."""
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


def widened(links: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]], generator: np.random.Generator) -> Links:
    """The same product at greater widths: new output filters random, and the next link's weights for them zero."""
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
    return np.concatenate([link.ravel() for link in links[:-1]])


def unflatten(flat: np.ndarray, links: Links) -> Links:
    ends = np.cumsum([link.size for link in links[:-1]])
    parts = np.split(flat, ends[:-1])
    return [*(part.reshape(link.shape) for part, link in zip(parts, links, strict=False)), links[-1]]


def ridged(gram: np.ndarray, ridge: float) -> np.ndarray:
    amount = ridge * np.trace(gram) / len(gram) + 1e-300
    return np.asarray(gram + amount * np.eye(len(gram)))


def adjoint(spectrum: np.ndarray) -> np.ndarray:
    return spectrum.conj().swapaxes(-1, -2)


def transposed(links: Links) -> Links:
    return [link.swapaxes(-1, -2) for link in links[::-1]]


def shifted_by(offset: tuple[int, ...], window: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offset, window, strict=False))
