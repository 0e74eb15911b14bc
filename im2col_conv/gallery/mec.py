r"""MEC: strips as wide as the kernel are unrolled, as tall as the image.

Along the width alone every window gets a copy of its own:

.. math:: L[j, \; (h, u, c)] = x[c, \; h, \; j s_w + u d_w], \qquad
          Y_i = L[:, \; \text{rows } i s_h \text{ to } i s_h + k_h]_{o_w \times k_h k_w c} \;
          W_{k_h k_w c \times f}

The windows of output row i are adjacent columns of L, so each product reads a part of L where it
lies: windows that overlap downwards share their cells.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.im2row import weights_last
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image
from im2col_conv.geometry import ConvGeometry

__all__ = ["MEC"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    image, W = padded_image(x, geometry, "channels_last"), weights_last(w)
    (height, _), (oh, ow), (kh, kw) = geometry.padded, geometry.out, geometry.kernel
    (sh, sw), (_, dw) = geometry.stride, geometry.dilation
    strips = np.empty((ow, height, kw, len(x)), x.dtype)
    for u in range(kw):
        strip = image[:, u * dw : u * dw + (ow - 1) * sw + 1 : sw]
        strips[:, :, u] = strip.swapaxes(0, 1)
    L, row = strips.reshape(ow, -1), kw * len(x)
    for i in range(oh):
        # Y_i (ow, f) = L[:, part] (ow, kh kw c) @ W (kh kw c, f)
        part = slice(i * sh * row, (i * sh + kh) * row)
        np.matmul(L[:, part], W, out=y[i])


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    M, _, K = geometry.gemm
    c = geometry.C // geometry.groups
    L = math.prod((geometry.out[1], geometry.padded[0], geometry.kernel[1], c))
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "L": L * dtype.itemsize,
        "weights": M * K * dtype.itemsize,
    }


def _refuses(geometry: ConvGeometry) -> str | None:
    if geometry.ndim != 2:
        return f"it needs 2 spatial axes, got {geometry.ndim}"
    if geometry.dilation[0] != 1:
        return (
            "the rows of a window must be adjacent, dilation 1 on the first axis, "
            f"got dilation {geometry.dilation}"
        )
    return None


MEC = Lowering(
    name="mec",
    source="Cho and Brand (2017), MEC: Memory-efficient Convolution for Deep Neural Network",
    matrices="Y_i (ow, f) = L_i (ow, kh kw c) @ W (kh kw c, f), for each output row i",
    layout="channels_last",
    one=_one,
    gemms_of_one=lambda geometry, dtype: geometry.out[0],
    buffers=_buffers,
    refuses=_refuses,
)
