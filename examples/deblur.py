"""Deblur a picture: undo a convolution with the operator of a layer and SciPy's lsqr.

Run from the repository root, with the extra ``plot``: ``python examples/deblur.py [FILE]`` prints
the error before and after, and writes a figure.

A camera that moves while it takes a picture convolves it with its path. Knowing the path, w, and
the blurred picture, y, we look for the x with A x = y in the sense of least squares, where A is the
layer: ``conv_operator`` runs it forward, and backward for its adjoint, and never forms the matrix.
The blurred picture is smaller than the sharp one, as a "valid" convolution is, and has 256 levels,
as a file has: both lose something, and ``damp`` keeps the search from following what the rounding
left. The colours are three images of one channel.

The picture is ``grace_hopper.jpg`` from Matplotlib's sample data, Grace Hopper in uniform, which is
in the public domain (Matplotlib's pull request 1599, which brought it, says so).
"""

from __future__ import annotations

import sys

import numpy as np
from matplotlib import cbook, image, pyplot
from numpy.typing import NDArray
from scipy.sparse.linalg import lsqr

import im2col_conv as ic

Pictures = NDArray[np.float64]  # (3, 1, H, W), from 0 to 1

FACE = (slice(20, 300), slice(110, 390))
DAMP = 0.01
STEPS = 120


def picture(every: int = 1) -> Pictures:
    """Return the picture, of which a smaller one keeps every so many pixels."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = image.imread(file, format="jpg")[FACE][::every, ::every]
    return pixels.transpose(2, 0, 1)[:, None] / 255.0


def path(height: int = 4, width: int = 13) -> Pictures:
    """Return the weights of a camera that moves down and right at an even pace.

    >>> 5 * path(2, 5)[0, 0]
    array([[1., 1., 1., 0., 0.],
           [0., 0., 0., 1., 1.]])
    """
    w = np.zeros((1, 1, height, width))
    columns = np.arange(width)
    w[0, 0, columns * height // width, columns] = 1 / width
    return w


def blurred(x: Pictures, w: Pictures) -> Pictures:
    """Return what the moving camera takes, rounded to 256 levels."""
    return np.round(255 * ic.conv(x, w)) / 255


def deblurred(y: Pictures, w: Pictures, x_shape: tuple[int, ...]) -> Pictures:
    """Return the x that makes |A x - y|^2 + |DAMP x|^2 least, seen as departures from grey."""
    A = ic.conv_operator(w, x_shape)
    grey = 0.5 * np.ones(A.shape[1])
    x, *_ = lsqr(A, y.ravel() - A @ grey, damp=DAMP, iter_lim=STEPS)
    return (grey + x).reshape(x_shape).clip(0, 1)


def middle(x: Pictures, w: Pictures) -> Pictures:
    """Return the part of x that the blurred picture shows, under the middle of each window."""
    height, width = (size - k + 1 for size, k in zip(x.shape[2:], w.shape[2:], strict=True))
    top, left = (k // 2 for k in w.shape[2:])
    return x[:, :, top : top + height, left : left + width]


def error(x: Pictures, wanted: Pictures) -> float:
    """Return the root of the mean square of the difference, in levels of 255."""
    return float(255 * np.sqrt(np.mean((x - wanted) ** 2)))


def draw(pictures: dict[str, Pictures], file: str) -> None:
    """Write the pictures side by side."""
    figure, panels = pyplot.subplots(1, len(pictures), figsize=(12, 4.4), layout="constrained")
    for panel, (title, x) in zip(panels, pictures.items(), strict=True):
        panel.imshow(x[:, 0].transpose(1, 2, 0))
        panel.set_title(title)
        panel.axis("off")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(file: str = "deblur.png", every: int = 1) -> tuple[float, float]:
    """Blur, deblur, print, draw; return the error before and after."""
    x, w = picture(every), path()
    y = blurred(x, w)
    found = middle(deblurred(y, w, x.shape), w)
    before, after = error(y, middle(x, w)), error(found, middle(x, w))
    print(f"root mean square error, of 255 levels: {before:.2f} blurred, {after:.2f} deblurred")
    draw(
        {"sharp": middle(x, w), f"blurred: {before:.1f}": y, f"deblurred: {after:.1f}": found}, file
    )
    return before, after


if __name__ == "__main__":
    main(*sys.argv[1:2])
