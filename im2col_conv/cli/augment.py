"""Draw each digit a little differently every time it is learnt from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["jitter"]

_BEND = 0.15  # largest change of an entry of the 2x2 matrix: turns, slants and scales
_SHIFT = 0.8  # pixels
_MARGIN = 1  # pixels of blank paper around the image


def jitter(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the images, each under a small random affine map of its own.

    Parameters
    ----------
    images : ndarray of float32, shape (N, 1, H, W)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float32, shape (N, 1, H, W)
        Between four pixels the ink is interpolated; outside the image there is none.
    """
    paper = np.pad(images[:, 0], ((0, 0), *((_MARGIN, _MARGIN + 1),) * 2))
    points = _mapped_points(images.shape, rng) + _MARGIN
    # Beyond the margin all is blank, so the margin stands for everything there.
    points = points.clip(0, np.reshape(images.shape[2:], (1, 2, 1, 1)) + 2 * _MARGIN - 1)
    corner = points.astype(np.intp)
    image = np.arange(len(images))[:, np.newaxis, np.newaxis]
    (row, column), (down, right) = corner.swapaxes(0, 1), (points - corner).swapaxes(0, 1)
    upper = (1 - right) * paper[image, row, column] + right * paper[image, row, column + 1]
    row = row + 1
    lower = (1 - right) * paper[image, row, column] + right * paper[image, row, column + 1]
    mixed: NDArray[np.float64] = (1 - down) * upper + down * lower
    return mixed[:, np.newaxis].astype(np.float32)


def _mapped_points(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return where each pixel of each image is read: (N, 2, H, W), rows and columns."""
    N, _, H, W = shape
    matrices = np.eye(2) + rng.uniform(-_BEND, _BEND, (N, 2, 2))
    shifts = rng.uniform(-_SHIFT, _SHIFT, (N, 2, 1))
    centre = np.array([[(H - 1) / 2], [(W - 1) / 2]])
    pixels = np.indices((H, W)).reshape(2, -1)
    mapped: NDArray[np.float64] = matrices @ (pixels - centre) + centre + shifts
    return mapped.reshape(N, 2, H, W)
