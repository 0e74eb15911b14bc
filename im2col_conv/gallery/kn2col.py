r"""kn2col: all taps in one product with the image, then shifted and added; channels last.

.. math:: Y[o, :] = \sum_t P[o s + t d, \; t, \; :], \qquad
          P_{p \times kf} = X_{p \times c} \; W_{c \times kf}

with p the cells of the padded image. The products of all taps are held: where there are more
filters than channels, they take more than the columns of im2col.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["KN2COL"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    c, f = len(x), len(w)
    X = padded_image(x, geometry, "channels_last").reshape(-1, c)
    W = np.ascontiguousarray(np.moveaxis(w, (1, 0), (0, -1))).reshape(c, -1)
    P = np.empty((*geometry.padded, *geometry.kernel, f), x.dtype)
    # P (p, kf) = X (p, c) @ W (c, kf)
    np.matmul(X, W, out=P.reshape(len(X), -1))
    y[...] = 0
    for tap in np.ndindex(geometry.kernel):
        y += P[*tap_cells(geometry, tap), *tap]


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    M, _, K = geometry.gemm
    products = math.prod(geometry.padded) * geometry.taps * M
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "products": products * dtype.itemsize,
        "weights": M * K * dtype.itemsize,
    }


KN2COL = Lowering(
    name="kn2col",
    source="Vasudevan, Anderson and Gregg (2017), Parallel Multi Channel Convolution using General "
    "Matrix Multiplication",
    matrices="P (p, kf) = X (p, c) @ W (c, kf)",
    layout="channels_last",
    one=_one,
    gemms_of_one=lambda geometry, dtype: 1,
    buffers=_buffers,
)
