"""The squared error of a chain's responses, its distance to a kernel, and the derivatives of both by the links."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxcnn.factorization.numerics.windows import (
    grouped,
    merged_groups,
    product,
    rest_of,
    tap_places,
    window_rows,
)
from jaxcnn.factorization.responses.samples import Samples

Links = list[np.ndarray]


class SquareError:
    r"""Computes $\lVert c(X D) - c(T) \rVert^2 + w \lVert D - K \rVert^2$ and its derivative by the links of D.

    D is the dense kernel of the links, and c clips the responses to the limits of the samples.

    Args:
      samples: Samples, with patches X, targets T and limits of c.
      counts: Numbers of groups of the links.
      centre: Kernel K, HWIO.
      weight: Weight w.
    """

    def __init__(self, samples: Samples, counts: tuple[int, ...], centre: np.ndarray, weight: float):
        self.samples, self.counts, self.weight = samples, counts, weight
        self.groups = math.gcd(*counts)
        self.centre = np.moveaxis(centre.reshape(*centre.shape[:-1], self.groups, -1), -2, 0)  # (G, *window, I, O)

    def value_and_gradient(self, links: Links) -> tuple[float, Links]:
        """Returns the value and the derivative by each link, HWIO, in float32."""
        composition = _Composition(links, self.counts, self.groups)
        missing = composition.dense - self.centre
        value = self.weight * float(np.square(missing).sum(dtype=np.float64))
        by_dense = np.float32(2 * self.weight) * missing
        if self.samples.is_depthwise:
            square, by_responses = self._of_dense(composition.dense)
            return value + square, composition.gradient(by_dense + by_responses)
        square, gradient = self._of_links(links)
        return value + square, [a + b for a, b in zip(gradient, composition.gradient(by_dense), strict=True)]

    def _of_dense(self, dense: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the squared error of the responses and its derivative by the dense kernel, (G, *window, I, O).

        This form is for depthwise kernels, where one product with the dense kernel is faster than one for each link.
        """
        rows = self.samples.rows(dense.shape[1:-2], self.groups)
        square, error = self._error(merged_groups(rows @ dense.reshape(self.groups, -1, dense.shape[-1])))
        by_response = error.reshape(len(error), self.groups, -1).swapaxes(0, 1)
        return square, (rows.swapaxes(1, 2) @ by_response).reshape(dense.shape)

    def _of_links(self, links: Links) -> tuple[float, Links]:
        """Returns the squared error of the responses and its derivative by each link."""
        samples, counts = self.samples, self.counts
        places = [samples.patches.shape[:-1]]
        all_rows = [samples.rows(links[0].shape[:-2], counts[0])]
        for index, (link, groups) in enumerate(zip(links, counts, strict=True)):
            x = product(all_rows[index], link, groups, places[index])
            if index + 1 < len(links):
                places.append(x.shape[:-1])
                all_rows.append(window_rows(x, links[index + 1].shape[:-2], counts[index + 1]))
        square, error = self._error(x.reshape(samples.targets.shape))
        gradient: Links = []
        for index in range(len(links) - 1, -1, -1):
            link, groups, rows = links[index], counts[index], all_rows[index]
            by_result = error.reshape(rows.shape[1], groups, -1).swapaxes(0, 1)  # (G, n, F)
            gradient.insert(0, (rows.swapaxes(1, 2) @ by_result).swapaxes(0, 1).reshape(link.shape))
            if index:
                by_rows = by_result @ grouped(link, groups).swapaxes(1, 2)
                error = _add_rows(by_rows, places[index], link.shape[:-2])
        return square, gradient

    def _error(self, responses: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the squared error of responses (N, O), and its derivative by them."""
        samples = self.samples
        clipped = np.clip(responses, samples.low, samples.high)
        error = clipped - samples.wanted
        square = float(np.vdot(error, error))
        error *= 2 * (clipped == responses)
        return square, error


def _add_rows(rows: np.ndarray, places: Sequence[int], window: Sequence[int]) -> np.ndarray:
    """Returns rows added up at the pixels that they hold, (*spatial, N, I): the transpose of `window_rows`.

    Args:
      rows: Rows (G, n, taps * I / groups), one for each place of the window.
      places: Shape (*spatial, N) of the result without its channels.
      window: Window of the link.
    """
    groups, count = rows.shape[:2]
    *full, samples = places
    taps = math.prod(window)
    parts = rows.reshape(groups, count, taps, -1).transpose(2, 1, 0, 3).reshape(taps, count, -1)
    if taps == 1:
        return parts.reshape(*places, -1)
    total = np.zeros((*places, parts.shape[-1]), rows.dtype)
    for part, place in zip(parts, tap_places(full, window), strict=True):
        total[place] += part.reshape(*rest_of(full, window), samples, -1)
    return total


class _Composition:
    """The dense kernel of a chain, (G, *window, I, O), and the derivative of a function of it by the links.

    Args:
      links: Links, HWIO.
      counts: Numbers of their groups.
      groups: Number of groups of the dense kernel, a divisor of each of `counts`.
    """

    def __init__(self, links: Links, counts: tuple[int, ...], groups: int):
        self.links, self.counts, self.groups = links, counts, groups
        first = links[0]
        inputs = first.shape[-2] * counts[0] // groups
        self.images: list[np.ndarray] = []
        # A first link with the groups of the dense kernel is not multiplied by the identity.
        self.is_first_whole = counts[0] == groups
        if self.is_first_whole:
            dense = np.moveaxis(first.reshape(*first.shape[:-1], groups, -1), -2, 0)
        else:
            dense = np.broadcast_to(np.eye(inputs, dtype=np.float32), (groups, *[1] * (first.ndim - 2), inputs, inputs))
        for link, count in list(zip(links, counts, strict=True))[self.is_first_whole :]:
            subgroups, window = count // groups, link.shape[:-2]
            width, size = link.shape[-2:]
            image = np.swapaxes(dense.reshape(*dense.shape[:-1], subgroups, width), -3, -2)
            self.images.append(image)  # (G, *window, subgroups, I, width)
            extents = dense.shape[1:-2]
            full = tuple(a + b - 1 for a, b in zip(extents, window, strict=True))
            total = np.zeros((groups, *full, inputs, size // groups), np.float32)
            for part, place in zip(self._parts(link, count), tap_places(full, window), strict=True):
                results = np.swapaxes(image @ part, -3, -2)
                total[(slice(None), *place)] += results.reshape(*results.shape[:-2], -1)
            dense = total
        self.dense = dense

    def _parts(self, link: np.ndarray, count: int) -> np.ndarray:
        """Returns the taps of a link, (taps, G, 1, ..., 1, subgroups, width, features of a group).

        Each group of the dense kernel holds `subgroups` groups of the link, and each of those has `width` inputs.
        """
        *window, width, size = link.shape
        subgroups = count // self.groups
        taps = link.reshape(-1, width, self.groups, subgroups, size // count).transpose(0, 2, 3, 1, 4)
        return taps.reshape(len(taps), self.groups, *[1] * len(window), *taps.shape[2:])

    def gradient(self, by_dense: np.ndarray) -> Links:
        """Returns the derivative by each link, from that by the dense kernel."""
        gradient: Links = []
        multiplied = list(zip(self.links, self.counts, strict=True))[self.is_first_whole :]
        for (link, count), image in zip(multiplied[::-1], self.images[::-1], strict=True):
            subgroups, window = count // self.groups, link.shape[:-2]
            parts = self._parts(link, count)
            axes = tuple(range(1, 1 + len(window)))
            by_parts, by_image = [], np.zeros_like(image, np.float32)
            for part, place in zip(parts, tap_places(by_dense.shape[1:-2], window), strict=True):
                by_results = by_dense[(slice(None), *place)]
                by_results = np.swapaxes(by_results.reshape(*by_results.shape[:-1], subgroups, -1), -3, -2)
                by_parts.append((np.swapaxes(image, -1, -2) @ by_results).sum(axes))  # (G, subgroups, width, features)
                if link is not self.links[0]:
                    by_image += by_results @ np.swapaxes(part, -1, -2)
            by_link = np.stack(by_parts).transpose(0, 3, 1, 2, 4)
            gradient.insert(0, by_link.reshape(link.shape))
            features_last = np.swapaxes(by_image, -3, -2)
            by_dense = features_last.reshape(*features_last.shape[:-2], -1)
        if self.is_first_whole:
            gradient.insert(0, np.moveaxis(by_dense, 0, -2).reshape(self.links[0].shape))
        return gradient
