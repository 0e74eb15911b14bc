r"""kn2row: a convolution of 1 by 1 for each tap, shifted and added.

.. math:: Y[:, o] = \sum_t P_t[:, \; o s + t d], \qquad
          P_t \; {}_{f \times p} = W_t \; {}_{f \times c} \; X_{c \times p}

with p the cells of the padded image. Nothing is copied: X is the image itself. The products of one
tap at a time are held. Cells that the stride skips are computed and thrown away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["KN2ROW"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    X, f = padded_image(x, geometry).reshape(len(x), -1), len(w)
    P, W = np.empty((f, *geometry.padded), x.dtype), np.empty((f, len(x)), x.dtype)
    y[...] = 0
    for tap in np.ndindex(geometry.kernel):
        W[...] = w[:, :, *tap]
        # P (f, p) = W_t (f, c) @ X (c, p)
        np.matmul(W, X, out=P.reshape(f, -1))
        y += P[:, *tap_cells(geometry, tap)]


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    c, f = geometry.C // geometry.groups, geometry.F // geometry.groups
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "products of a tap": f * math.prod(geometry.padded) * dtype.itemsize,
        "weights": f * c * dtype.itemsize,
    }


KN2ROW = Lowering(
    name="kn2row",
    source="Anderson, Vasudevan, Keane and Gregg (2017), Low-memory GEMM-based convolution "
    "algorithms for deep neural networks",
    matrices="P_t (f, p) = W_t (f, c) @ X (c, p), for each tap t",
    layout="channels_first",
    one=_one,
    gemms_of_one=lambda geometry, dtype: geometry.taps,
    buffers=_buffers,
)
