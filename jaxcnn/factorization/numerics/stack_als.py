"""Fits small kernels in a row to a dense kernel: the numerical core of `stack`.

Convolutions in a row are one convolution, whose kernel is a product of matrix polynomials:

    K[w] = sum over w1 + ... + wn = w of  k1[w1] @ k2[w2] @ ... @ kn[wn]

`fit_links` looks for links of given windows and widths whose product is closest to K in the Frobenius norm, in NumPy
and float64. Plain alternation from random starts stops at local minima, also where an exact product exists. So a start
is found by least squares on the lifted problem, which is linear (`_leading_link`); sweeps over the links follow, with
Anderson's acceleration (`_Problem.alternate`); a small and nearly exact fit is finished by Levenberg-Marquardt
(`_Problem.refine`). The hardest kernels have as many unknowns as equations: isolated solutions among many local minima.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from jaxcnn.factorization.numerics.link_products import (
    Links,
    add_ridge,
    adjoint,
    balance,
    compose_links,
    flatten,
    shifted_by,
    transpose_links,
    unflatten,
    widen,
)

EXACT_ERROR = 1e-7
"""Relative error below which a fit counts as exact, and the search ends."""

_RIDGE = 1e-13
"""Ridge of normal equations, relative to their mean diagonal. With the ridge a filter of zeros can be solved for."""

_MAX_LIFTED_ROWS = 2000
"""Most rows of the square matrix of a lifted problem. For larger kernels the search starts from random links."""


def fit_links(
    kernel: np.ndarray,
    windows: tuple[tuple[int, ...], ...],
    features: tuple[int, ...],
    *,
    seed: int = 0,
    starts: int = 6,
    sweeps: int = 200,
    initial: Sequence[np.ndarray] | None = None,
) -> tuple[Links, float]:
    """Returns links of the given windows and widths whose product is close to a dense kernel, and the relative error.

    Minimises `norm(compose_links(links) - kernel)`. The problem has local minima, so the best of several starts is
    kept; the result depends on `seed` and on nothing else. The links are float64, and balanced: no pair of neighbours
    could have a smaller sum of squares. A kernel of zeros has links of zeros and the error 0.

    Args:
      kernel: Ungrouped dense kernel (*window, I, O).
      windows: Window of each link; along each axis `1 + sum(size - 1)` must be the kernel's size.
      features: Width of each gap between two links.
      seed: Seed for the random starts.
      starts: Largest number of starts for a kernel that no start brings below a relative error of 0.1. A nearly exact
        kernel gets up to 10000 / (number of unknowns) starts, and at most 100, because a start may reach the exact
        product.
      sweeps: Largest number of sweeps over the links for each start.
      initial: Links of the same windows and of at most these widths, for the first start. The result is never worse
        than these links: pass the result for narrower widths and the error cannot grow with the width.

    Raises:
      ValueError: If the windows do not compose to the kernel's, a width is missing or below 1, `starts` is below 1, or
        the kernel has NaN or infinite entries.

    Example:
      >>> generator = np.random.default_rng(0)
      >>> dense = compose_links([generator.normal(size=(3, 3, 2, 2)), generator.normal(size=(3, 3, 2, 3))])
      >>> links, error = fit_links(dense, ((3, 3), (3, 3)), (2,))
      >>> [link.shape for link in links], error < 1e-4
      ([(3, 3, 2, 2), (3, 3, 2, 3)], True)

    References:
      Kuemmerle and Sigl, "Harmonic mean iteratively reweighted least squares for low-rank matrix recovery", 2018.
      Walker and Ni, "Anderson acceleration for fixed-point iterations", 2011.
      Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares", 1973.
    """
    kernel = np.asarray(kernel, np.float64)
    widths = (kernel.shape[-2], *features, kernel.shape[-1])
    _check(kernel, windows, features, starts)
    norm = np.linalg.norm(kernel)
    shapes = [(*w, i, o) for w, i, o in zip(windows, widths, widths[1:], strict=False)]
    if norm == 0:
        return [np.zeros(shape) for shape in shapes], 0.0
    if len(windows) == 1:
        return [kernel.copy()], 0.0
    generator = np.random.default_rng(seed)
    initial_links = [] if initial is None else [widen(initial, shapes, generator)]
    # The search is cheaper with the smaller end first; transposing every matrix reverses the order of a product.
    reverse = prod(shapes[0][:-1]) > prod(windows[-1]) * widths[-1]
    if reverse:
        kernel, windows, widths = kernel.swapaxes(-1, -2), windows[::-1], widths[::-1]
        initial_links = [transpose_links(links) for links in initial_links]
    problem = _Problem(kernel / norm, windows)
    unknowns = sum(prod(shape) for shape in shapes)
    best: Links = []
    lowest = np.inf
    number = 0
    while number < (max(2, min(100, 10000 // unknowns)) if lowest < 0.1 else min(starts, max(2, 3000 // unknowns))):
        links = initial_links.pop() if initial_links else problem.start(widths, generator, number)
        # A step of refining costs head**3, so a larger problem must be closer to exact before it is refined.
        head = sum(link.size for link in links[:-1])
        limit = min(0.1, 8000 / head**2) if head <= 1200 else 0.0
        links, error = problem.alternate(links, min(sweeps, 20))
        if error > max(limit, EXACT_ERROR):
            links, error = problem.alternate(links, sweeps)
        if EXACT_ERROR < error < limit:
            links, error = problem.refine(links, 100)
        if error < lowest:
            best, lowest = links, error
        if lowest < EXACT_ERROR:
            break
        number += 1
    best = balance([*best[:-1], best[-1] * norm])
    return (transpose_links(best) if reverse else best), lowest


class _Problem:
    """Holds a dense kernel of norm 1 and the windows of the links, and takes the steps of the search."""

    def __init__(self, kernel: np.ndarray, windows: Sequence[tuple[int, ...]]):
        self.kernel = kernel
        self.windows = windows
        self.dense = kernel.shape[:-2]
        self.axes = tuple(range(len(self.dense)))
        self.spectrum = self.transform(kernel)

    # The spectrum of a product of links is the product of their spectra, a product of matrices at each frequency. The
    # dense window is as large as the product, so the circular convolutions never wrap around.
    def transform(self, array: np.ndarray) -> np.ndarray:
        """Returns the spectrum of a link, zero-padded to the dense window."""
        return np.fft.rfftn(array, self.dense, self.axes)

    def inverse(self, spectrum: np.ndarray) -> np.ndarray:
        """Returns the array of the dense window's size that has a spectrum."""
        return np.fft.irfftn(spectrum, self.dense, self.axes)

    def error(self, links: Sequence[np.ndarray]) -> float:
        """Returns the norm of the difference between the kernel and the links' product."""
        return float(np.linalg.norm(self.kernel - compose_links(links)))

    def start(self, widths: Sequence[int], generator: np.random.Generator, number: int) -> Links:
        """Returns links to start from: numbers 0 and 1 peel off either end, 2 is random, others peel at random.

        All starts are random where a kernel is too large to peel from either end.
        """
        rows = [prod(self.dense) * width for width in (widths[0], widths[-1])]
        if number == 2 or min(rows) > _MAX_LIFTED_ROWS:
            scales = [1 / np.sqrt(prod(window) * width) for window, width in zip(self.windows, widths, strict=False)]
            return [
                scale * generator.standard_normal((*window, i, o))
                for scale, window, i, o in zip(scales, self.windows, widths, widths[1:], strict=False)
            ]
        randomness = generator if number > 2 else None
        if rows[0] > _MAX_LIFTED_ROWS or (number % 2 and rows[1] <= _MAX_LIFTED_ROWS):
            mirrored = _Problem(self.kernel.swapaxes(-1, -2), self.windows[::-1])
            return transpose_links(mirrored.peel(widths[::-1], randomness))
        return self.peel(widths, randomness)

    def peel(self, widths: Sequence[int], generator: np.random.Generator | None) -> Links:
        """Returns links found one by one from the first: `_leading_link` of the kernel, then of what is left of it."""
        first = _leading_link(self.kernel, self.windows[0], widths[1], generator)
        remainder_window = tuple(full - size + 1 for full, size in zip(self.dense, self.windows[0], strict=False))
        pair = _Problem(self.kernel, (self.windows[0], remainder_window))
        second = pair.solve([first, np.zeros((*remainder_window, widths[1], widths[-1]))], 1)
        if len(self.windows) == 2:
            return [first, second]
        (first, second), _ = pair.alternate([first, second], 100)
        return [first, *_Problem(second, self.windows[1:]).peel(widths[1:], generator)]

    def solve(self, links: Sequence[np.ndarray], position: int) -> np.ndarray:
        """Returns the best link at `position` with the others held, by linear least squares."""
        left, right = self.sides([self.transform(link) for link in links], position)
        crop = tuple(slice(size) for size in self.windows[position])
        target = self.inverse(adjoint(left) @ self.spectrum @ adjoint(right))[crop]
        if position == len(links) - 1:
            return self.solve_end(self.inverse(adjoint(left) @ left), target)
        if position == 0:
            correlations = self.inverse(right.conj() @ right.swapaxes(-1, -2))
            return self.solve_end(correlations, target.swapaxes(-1, -2)).swapaxes(-1, -2)
        return self.solve_middle(adjoint(left) @ left, right @ adjoint(right), target, links[position], crop)

    def sides(self, spectra: Sequence[np.ndarray], position: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the spectra of the products of all links before and after a position; the identity for no links."""
        left, right = (np.eye(width) for width in self.kernel.shape[-2:])
        for spectrum in spectra[:position]:
            left = left @ spectrum
        for spectrum in spectra[:position:-1]:
            right = spectrum @ right
        return left, right

    def solve_end(self, correlations: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns the first or last link from its normal equations, whose block (s, t) is the correlation at lag s - t.

        Args:
          correlations: Correlation matrix at each lag of the product of the other links, (*dense, features, features).
          target: Right-hand side, (*window, features, outputs). The result has this shape.
        """
        window, (features, outputs) = target.shape[:-2], target.shape[-2:]
        offsets = np.array(list(np.ndindex(*window)))
        difference = (offsets[:, None] - offsets[None]) % np.array(self.dense)
        blocks = correlations[tuple(np.moveaxis(difference, -1, 0))]
        normal = add_ridge(blocks.swapaxes(1, 2).reshape(len(offsets) * features, -1), _RIDGE)
        return np.linalg.solve(normal, target.reshape(-1, outputs)).reshape(target.shape)

    def solve_middle(
        self,
        left_gram: np.ndarray,
        right_gram: np.ndarray,
        target: np.ndarray,
        link: np.ndarray,
        crop: tuple[slice, ...],
    ) -> np.ndarray:
        """Solves for a link between others by conjugate gradients, as its normal equations couple all its entries.

        Args:
          left_gram, right_gram: Spectra of the Gram matrices of the products before and after the link.
          target: Right-hand side of the normal equations.
          link: Link at which the iteration starts.
          crop: Index of the link's window in the dense one.
        """
        origin = (0,) * len(self.dense)
        left_scale = np.linalg.inv(add_ridge(self.inverse(left_gram)[origin], 1e-10))
        right_scale = np.linalg.inv(add_ridge(self.inverse(right_gram)[origin], 1e-10))

        def normal_product(x: np.ndarray) -> np.ndarray:
            """Returns the matrix of the normal equations times a link."""
            return self.inverse(left_gram @ self.transform(x) @ right_gram)[crop]

        residual = target - normal_product(link)
        scaled = left_scale @ residual @ right_scale
        direction, size = scaled, np.vdot(residual, scaled)
        floor = 1e-18 * np.vdot(target, left_scale @ target @ right_scale)
        for _ in range(30):
            if not size > floor:
                break
            product = normal_product(direction)
            step = size / np.vdot(direction, product)
            link = link + step * direction
            residual = residual - step * product
            scaled = left_scale @ residual @ right_scale
            size, previous = np.vdot(residual, scaled), size
            direction = scaled + size / previous * direction
        return link

    def alternate(self, links: Links, sweeps: int, memory: int = 8, patience: int = 20) -> tuple[Links, float]:
        """Runs alternating least squares with Anderson's acceleration; returns the best links and their error."""
        links = list(links)
        best, lowest = links, self.error(links)
        points: list[np.ndarray] = []
        images: list[np.ndarray] = []
        history: list[float] = []
        for _ in range(sweeps):
            links = [*links[:-1], self.solve(links, len(links) - 1)]
            error = self.error(links)
            if len(points) > 1 and not error < lowest:  # the extrapolation failed, so the plain sweep is taken
                links, points, images = unflatten(images[-1], links), [], []
                continue
            if error < lowest:
                best, lowest = links, error
            history.append(lowest)
            if lowest < EXACT_ERROR or (len(history) > patience and lowest > 0.99 * history[-1 - patience]):
                break
            points = [*points[1 - memory :], flatten(links)]
            for position in range(len(links) - 2, -1, -1):
                links[position] = self.solve(links, position)
            images = [*images[1 - memory :], flatten(links)]
            if len(points) > 1:
                links = unflatten(_anderson_step(np.array(points), np.array(images)), links)
        return best, lowest

    def refine(self, links: Links, iterations: int, patience: int = 10) -> tuple[Links, float]:
        """Runs Levenberg-Marquardt with variable projection: each step solves for the last link and moves the others.

        Returns the links and their error; the given links if no step lowers the error.
        """
        error_before = self.error(links)
        head = balance(links)[:-1]
        basis, last, residual = self.project(head)
        error = np.linalg.norm(residual)
        history = [error]
        damping = 1e-3
        for _ in range(iterations):
            jacobian = self.jacobian([*head, last])
            flat = jacobian.reshape(len(basis), -1)
            jacobian = (flat - basis @ (basis.T @ flat)).reshape(-1, jacobian.shape[-1])
            normal = jacobian.T @ jacobian
            gradient = jacobian.T @ residual.ravel()
            while damping < 1e3:
                step = np.linalg.solve(add_ridge(normal, damping), gradient)
                trial = unflatten(flatten([*head, last]) + step, [*head, last])[:-1]
                projection = self.project(trial)
                if np.linalg.norm(projection[-1]) < error:
                    break
                damping *= 8
            else:
                break
            damping = max(damping / 8, 1e-12)
            head, (basis, last, residual) = trial, projection
            error = np.linalg.norm(residual)
            history.append(error)
            if error < EXACT_ERROR or (len(history) > patience and error > 0.9 * history[-1 - patience]):
                break
        refined = [*head, last]
        error_after = self.error(refined)
        return (refined, error_after) if error_after < error_before else (links, error_before)

    def project(self, head: Links) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns an orthonormal basis of the kernels that the head can reach, the best last link, and the residual."""
        left = self.inverse(self.sides([self.transform(link) for link in head], len(head))[0])
        window = self.windows[-1]
        design = np.stack([np.roll(left, offset, self.axes) for offset in np.ndindex(*window)], -2)
        targets = self.kernel.reshape(-1, self.kernel.shape[-1])
        basis, triangle = np.linalg.qr(design.reshape(len(targets), -1))
        moments = basis.T @ targets
        last = np.linalg.lstsq(triangle, moments, rcond=1e-13)[0]
        return basis, last.reshape(*window, left.shape[-1], -1), targets - basis @ moments

    def jacobian(self, links: Links) -> np.ndarray:
        """Returns the derivative (*dense, I, O, unknowns) of the product by all links but the last."""
        spectra = [self.transform(link) for link in links]
        columns = []
        for position in range(len(links) - 1):
            left, right = self.sides(spectra, position)
            outer = left[..., :, None, :, None] * right.swapaxes(-1, -2)[..., None, :, None, :]
            at_origin = self.inverse(outer)
            by_tap = [np.roll(at_origin, offset, self.axes) for offset in np.ndindex(*self.windows[position])]
            columns.append(np.stack(by_tap, -3).reshape(*self.kernel.shape, -1))
        return np.concatenate(columns, -1)


def _leading_link(
    kernel: np.ndarray, window: tuple[int, ...], features: int, generator: np.random.Generator | None
) -> np.ndarray:
    """Returns a first link for the kernel, found by lifting.

    K is linear in M[(u, i), (v, o)] = sum over f of first[u, i, f] second[v, f, o], because K[w] sums M over u + v = w,
    and M has rank `features`. Iteratively reweighted least squares looks for the M of lowest rank that gives K exactly:
    each step minimises trace(M' inverse(weight) M), where weight = M M' + smoothing * identity is that of the step
    before. The smoothing is the least value so far of the eigenvalue number `features` + 1 of M M', which is 0 when M
    has the wanted rank. The link is M's leading column space.

    Args:
      kernel: Kernel K.
      window: Window of the link.
      features: Width of the gap after the link.
      generator: Source of a random first weight and number of steps; None for the identity and all steps.
    """
    channels, outputs = kernel.shape[-2:]
    dense = kernel.shape[:-2]
    size = prod(window) * channels
    remainder_window = tuple(full - extent + 1 for full, extent in zip(dense, window, strict=False))
    rows = np.arange(prod(dense) * channels).reshape(*dense, channels)
    # Each step solves for `rows.size` unknowns, so large problems get fewer steps.
    iterations = 30 if rows.size <= 800 else 10
    row_indices = [rows[shifted_by(offset, window)].ravel() for offset in np.ndindex(*remainder_window)]
    targets = kernel.reshape(-1, outputs)
    weight = np.eye(size)
    if generator is not None:
        iterations = int(generator.integers(3, iterations + 1))  # fewer steps vary the start more
        noise = generator.standard_normal((size, size))
        weight = noise @ noise.T / size
    smoothing = np.inf
    for _ in range(iterations):
        normal = np.zeros((rows.size, rows.size))
        for index in row_indices:
            normal[np.ix_(index, index)] += weight
        multipliers = np.linalg.solve(add_ridge(normal, 1e-14), targets)
        lifted = np.concatenate([weight @ multipliers[index] for index in row_indices], axis=1)
        gram = lifted @ lifted.T
        values, vectors = np.linalg.eigh(gram)
        tail = values[-features - 1] if features < size else 0.0
        if tail < 1e-14 * values[-1]:
            break
        smoothing = min(smoothing, tail)
        weight = gram + smoothing * np.eye(size)
        weight /= np.trace(weight)
    link = np.zeros((size, features))
    count = min(size, features)
    link[:, :count] = vectors[:, ::-1][:, :count]
    return link.reshape(*window, channels, features)


def _anderson_step(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns Anderson's step: the combination of `images` with the smallest combined `images - points`.

    The coefficients of the combination add up to 1.

    Args:
      points: Weights of the links before each of the past sweeps.
      images: Weights after each of these sweeps.
    """
    moves = images - points
    mix = np.linalg.lstsq(np.diff(moves, axis=0).T, moves[-1], rcond=1e-10)[0]
    return np.asarray(images[-1] - mix @ np.diff(images, axis=0))


def _check(kernel: np.ndarray, windows: Sequence[tuple[int, ...]], features: Sequence[int], starts: int) -> None:
    if len(features) != len(windows) - 1 or any(width < 1 for width in features):
        raise ValueError(f"features must be {len(windows) - 1} positive widths, one for each inner gap, got {features}")
    if any(len(window) != kernel.ndim - 2 for window in windows):
        raise ValueError(f"each window must have {kernel.ndim - 2} axes like the kernel {kernel.shape}, got {windows}")
    composed = tuple(1 + sum(size - 1 for size in sizes) for sizes in zip(*windows, strict=False))
    if composed != kernel.shape[:-2]:
        raise ValueError(f"windows {windows} compose to {composed}, but the kernel's window is {kernel.shape[:-2]}")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    if not np.isfinite(kernel).all():
        raise ValueError(f"kernel {kernel.shape} has NaN or infinite entries")
