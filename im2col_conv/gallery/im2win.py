r"""im2win: bands as tall as the kernel are unrolled, as wide as the image.

The rows that one output row sees are flattened column by column:

.. math:: T[i, \; l, \; (t, c)] = x[c, \; i s_h + t d_h, \; l], \qquad
          Y_i = \sum_u T[i, \; j s_w + u d_w]_{o_w \times k_h c} \; W_u \; {}_{k_h c \times f}

A window is one run of T; windows that overlap sideways share their cells. Its authors multiply by
loops of vector instructions. A matrix of overlapping rows is none that BLAS takes, so here each
kernel column u is a product of its own, and they add.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image
from im2col_conv.geometry import ConvGeometry

__all__ = ["IM2WIN"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    image = padded_image(x, geometry, "channels_last")
    (_, width), (oh, ow), (kh, kw) = geometry.padded, geometry.out, geometry.kernel
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    bands = np.empty((oh, width, kh, len(x)), x.dtype)
    for t in range(kh):
        bands[:, :, t] = image[t * dh : t * dh + (oh - 1) * sh + 1 : sh]
    T = bands.reshape(oh, width, -1)
    # W (kw, kh c, f)
    W = np.ascontiguousarray(w.transpose(3, 2, 1, 0)).reshape(kw, -1, len(w))
    part = np.empty((ow, len(w)), x.dtype)
    y[...] = 0
    for i in range(oh):
        for u in range(kw):
            # part (ow, f) = T_iu (ow, kh c) @ W_u (kh c, f)
            np.matmul(T[i, u * dw : u * dw + (ow - 1) * sw + 1 : sw], W[u], out=part)
            y[i] += part


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    M, _, K = geometry.gemm
    c = geometry.C // geometry.groups
    T = math.prod((geometry.out[0], geometry.padded[1], geometry.kernel[0], c))
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "T": T * dtype.itemsize,
        "weights": M * K * dtype.itemsize,
        "one product": geometry.out[1] * M * dtype.itemsize,
    }


def _refuses(geometry: ConvGeometry) -> str | None:
    return None if geometry.ndim == 2 else f"it needs 2 spatial axes, got {geometry.ndim}"


IM2WIN = Lowering(
    name="im2win",
    source="Lu, Chu and Liu (2023), Im2win: Memory Efficient Convolution On SIMD Architectures",
    matrices="Y_i (ow, f) += T_iu (ow, kh c) @ W_u (kh c, f), for each output row i, column u",
    layout="channels_last",
    one=_one,
    gemms_of_one=lambda geometry, dtype: geometry.out[0] * geometry.kernel[1],
    buffers=_buffers,
    refuses=_refuses,
)
