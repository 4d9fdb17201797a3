"""Fit a chain of small kernels to a dense kernel: the numerical core of ``stack``.

Convolutions in a row are one convolution, whose kernel is a product of matrix polynomials:

    K[w] = sum over w1 + ... + wn = w of  k1[w1] @ k2[w2] @ ... @ kn[wn]

``fit_links`` looks for the links k1 ... kn of given windows and widths that bring the right-hand side closest to K in
the Frobenius norm. Host-side NumPy in float64: this runs once for each trained kernel, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

_EXACT = 1e-7  # a relative error below this counts as an exact factorization and ends the search
_RIDGE = 1e-13  # added to the normal equations, relative to their mean diagonal: keeps dead filters finite


def compose_links(links: Sequence[np.ndarray]) -> np.ndarray:
    """The dense kernel of the links in a row."""
    dense = np.asarray(links[0])
    for link in links[1:]:
        window = tuple(m + n - 1 for m, n in zip(dense.shape[:-2], link.shape[:-2]))
        total = np.zeros((*window, dense.shape[-2], link.shape[-1]), np.result_type(dense, link))
        for offset in np.ndindex(*link.shape[:-2]):
            total[_shifted(offset, dense.shape[:-2])] += dense @ link[offset]
        dense = total
    return dense


def fit_links(
    kernel: np.ndarray,
    windows: tuple[tuple[int, ...], ...],
    features: tuple[int, ...],
    *,
    seed: int = 0,
    starts: int = 6,
    sweeps: int = 300,
    initial: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], float]:
    kernel = np.asarray(kernel, np.float64)
    norm = np.linalg.norm(kernel)
    widths = (kernel.shape[-2], *features, kernel.shape[-1])
    if norm == 0:
        return [np.zeros((*w, i, o)) for w, i, o in zip(windows, widths, widths[1:])], 0.0
    problem = _Problem(kernel / norm, windows)
    generator = np.random.default_rng(seed)
    best: list[np.ndarray] = []
    error = np.inf
    for start in range(starts):
        links = _start(problem.kernel, windows, widths, generator, start)
        links, found = problem.descend(links, min(sweeps, 200))
        if found < error:
            best, error = links, found
        if error < _EXACT:
            break
    best[-1] = best[-1] * norm
    return _balanced(best), error


def _start(kernel, windows, widths, generator, number):
    if len(windows) == 1:
        return [kernel]
    if number % 2:
        return [
            generator.standard_normal((*w, i, o)) / np.sqrt(prod(w) * i) for w, i, o in zip(windows, widths, widths[1:])
        ]
    if prod(windows[0]) * widths[0] > prod(windows[-1]) * widths[-1]:
        return _transposed(_start(kernel.swapaxes(-1, -2), windows[::-1], widths[::-1], generator, number))
    first = _leading_link(kernel, windows[0], widths[1], 30, generator if number else None)
    rest = tuple(full - own + 1 for full, own in zip(kernel.shape[:-2], windows[0]))
    pair = _Problem(kernel, (windows[0], rest))
    second = pair.solve([first, np.zeros((*rest, widths[1], widths[-1]))], 1)
    if len(windows) == 2:
        return [first, second]
    (first, second), _ = pair.descend([first, second], 100)
    return [first, *_start(second, windows[1:], widths[1:], generator, number)]


def _leading_link(kernel, window, features, iterations, generator):
    channels, outputs = kernel.shape[-2:]
    dense = kernel.shape[:-2]
    size = prod(window) * channels
    rest = tuple(full - own + 1 for full, own in zip(dense, window))
    rows = np.arange(prod(dense) * channels).reshape(*dense, channels)
    placed = [rows[_shifted(offset, window)].ravel() for offset in np.ndindex(*rest)]
    targets = kernel.reshape(-1, outputs)
    weight = np.eye(size)
    if generator is not None:
        noise = generator.standard_normal((size, size))
        weight = weight + noise @ noise.T / size
    smoothing = np.inf
    for _ in range(iterations):
        normal = np.zeros((len(targets), len(targets)))
        for index in placed:
            normal[np.ix_(index, index)] += weight
        normal[np.diag_indices_from(normal)] += 1e-14 * np.trace(normal) / len(normal)
        multipliers = np.linalg.solve(normal, targets)
        lifted = np.concatenate([weight @ multipliers[index] for index in placed], axis=1)
        gram = lifted @ lifted.T
        values, vectors = np.linalg.eigh(gram)
        tail = values[-features - 1] if features < size else 0.0
        if tail < 1e-14 * values[-1]:
            break
        smoothing = min(smoothing, tail)
        weight = gram + smoothing * np.eye(size)
        weight /= np.trace(weight)
    link = np.zeros((size, features))
    kept = min(size, features)
    link[:, :kept] = vectors[:, ::-1][:, :kept]
    return link.reshape(*window, channels, features)


class _Problem:
    def __init__(self, kernel, windows):
        self.kernel = kernel
        self.windows = windows
        self.dense = kernel.shape[:-2]
        self.axes = tuple(range(len(self.dense)))
        self.spectrum = self.transform(kernel)

    def transform(self, array):
        return np.fft.rfftn(array, self.dense, self.axes)

    def inverse(self, spectrum):
        return np.fft.irfftn(spectrum, self.dense, self.axes)

    def error(self, links):
        return float(np.linalg.norm(self.kernel - compose_links(links)))

    def solve(self, links, position):
        left, right = None, None
        for link in links[:position]:
            left = self.transform(link) if left is None else left @ self.transform(link)
        for link in links[position + 1 :]:
            right = self.transform(link) if right is None else right @ self.transform(link)
        crop = tuple(slice(n) for n in self.windows[position])
        moment = self.spectrum
        if left is not None:
            moment = _adjoint(left) @ moment
        if right is not None:
            moment = moment @ _adjoint(right)
        target = self.inverse(moment)[crop]
        if right is None:
            return self.closed_form(self.inverse(_adjoint(left) @ left), target)
        if left is None:
            lags = self.inverse(right.conj() @ right.swapaxes(-1, -2))
            return self.closed_form(lags, target.swapaxes(-1, -2)).swapaxes(-1, -2)
        return self.conjugate_gradients(_adjoint(left) @ left, right @ _adjoint(right), target, links[position], crop)

    def closed_form(self, lags, target):
        """lags (*dense, F, F)"""
        window, (features, outputs) = target.shape[:-2], target.shape[-2:]
        offsets = np.array(list(np.ndindex(*window)))
        lag = (offsets[:, None] - offsets[None]) % np.array(self.dense)
        blocks = lags[tuple(np.moveaxis(lag, -1, 0))]
        normal = blocks.swapaxes(1, 2).reshape(len(offsets) * features, -1)
        normal[np.diag_indices_from(normal)] += _RIDGE * np.trace(normal) / len(normal) + 1e-300
        return np.linalg.solve(normal, target.reshape(-1, outputs)).reshape(target.shape)

    def conjugate_gradients(self, left, right, target, link, crop, iterations=30):
        def normal(x):
            return self.inverse(left @ self.transform(x) @ right)[crop]

        origin = (0,) * len(self.dense)
        scale_left = _ridged_inverse(self.inverse(left)[origin])
        scale_right = _ridged_inverse(self.inverse(right)[origin])
        residual = target - normal(link)
        z = scale_left @ residual @ scale_right
        direction, rho = z, np.vdot(residual, z)
        floor = 1e-12 * np.vdot(target, scale_left @ target @ scale_right)
        for _ in range(iterations):
            if not rho > floor * 1e-6:
                break
            image = normal(direction)
            step = rho / np.vdot(direction, image)
            link = link + step * direction
            residual = residual - step * image
            z = scale_left @ residual @ scale_right
            rho, previous = np.vdot(residual, z), rho
            direction = z + rho / previous * direction
        return link

    def descend(self, links, sweeps, memory=8, patience=20):
        best, lowest = links, self.error(links)
        points, images, history = [], [], []
        links, accelerated = list(links), False
        count = len(links)
        for _ in range(sweeps):
            links[-1] = self.solve(links, count - 1)
            error = self.error(links)
            if accelerated and not error < lowest:
                links, accelerated = _unflatten(images[-1], links), False
                points, images = [], []
                continue
            if error < lowest:
                best, lowest = list(links), error
            history.append(lowest)
            if lowest < _EXACT or (len(history) > patience and lowest > 0.99 * history[-1 - patience]):
                break
            points.append(_flatten(links))
            for position in range(count - 2, -1, -1):
                links[position] = self.solve(links, position)
            images.append(_flatten(links))
            points, images = points[-memory:], images[-memory:]
            accelerated = len(points) > 1
            if accelerated:
                links = _unflatten(_extrapolated(np.array(points), np.array(images)), links)
        return best, lowest


def _extrapolated(points, images):
    moves = images - points
    mix = np.linalg.lstsq(np.diff(moves, axis=0).T, moves[-1], rcond=1e-10)[0]
    return images[-1] - mix @ np.diff(images, axis=0)


def _flatten(links):
    return np.concatenate([link.ravel() for link in links[:-1]])


def _unflatten(flat, links):
    new, position = [], 0
    for link in links[:-1]:
        new.append(flat[position : position + link.size].reshape(link.shape))
        position += link.size
    return [*new, links[-1]]


def _adjoint(x):
    return x.conj().swapaxes(-1, -2)


def _ridged_inverse(gram):
    return np.linalg.inv(gram + (1e-10 * np.trace(gram) / len(gram) + 1e-300) * np.eye(len(gram)))


def _transposed(links):
    return [link.swapaxes(-1, -2) for link in links[::-1]]


def _shifted(offset, window):
    return tuple(slice(i, i + n) for i, n in zip(offset, window))


def _balanced(links):
    links = list(links)
    for _ in range(2):
        for j in range(len(links) - 1):
            a, b = links[j], links[j + 1]
            f = a.shape[-1]
            qa, ra = np.linalg.qr(a.reshape(-1, f))
            qb, rb = np.linalg.qr(np.moveaxis(b, -2, -1).reshape(-1, f))
            u, s, v = np.linalg.svd(ra @ rb.T, full_matrices=False)
            r = np.sqrt(s)
            na = np.zeros((len(qa), f))
            na[:, : len(s)] = qa @ u * r
            nb = np.zeros((len(qb), f))
            nb[:, : len(s)] = qb @ v.T * r
            links[j] = na.reshape(a.shape)
            links[j + 1] = np.moveaxis(nb.reshape(*b.shape[:-2], b.shape[-1], f), -1, -2)
    return links
