"""Small real data that the package ships: handwritten digits (licence: LICENSE-digits.md)."""

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_digits"]

_INK_LEVELS = 16


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load 1,797 handwritten digits of 8x8 pixels.

    They are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
    C. Kaynak (UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), CC BY 4.0.

    Returns
    -------
    images : ndarray of float32, shape (1797, 1, 8, 8)
        Ink from 0 (paper) to 1.
    labels : ndarray of int64, shape (1797,)
        The digit that each image shows.

    Examples
    --------
    >>> images, labels = load_digits()
    >>> images.shape, labels[:4].tolist()
    ((1797, 1, 8, 8), [0, 1, 2, 3])
    """
    with files(__name__).joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        ink, labels = stored["images"], stored["labels"]
    images = ink[:, np.newaxis].astype(np.float32) / np.float32(_INK_LEVELS)
    return images, labels.astype(np.int64)
