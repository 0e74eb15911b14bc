r"""im2row: the columns lie down, for images whose channels come last.

.. math:: Y_{o \times f} = \mathrm{rows}_{o \times kc} \; W_{kc \times f}

Row o holds the window of output o, tap by tap, all channels of a tap side by side: they are copied
in runs of c cells, and the result has its channels last too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["IM2ROW", "weights_last"]


def weights_last(w: Array) -> Array:
    """Return W (kc, f): the filters are its columns, the channels of a tap side by side."""
    return np.ascontiguousarray(np.moveaxis(w, (0, 1), (-1, -2))).reshape(-1, len(w))


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    image, W = padded_image(x, geometry, "channels_last"), weights_last(w)
    rows = np.empty((*geometry.out, *geometry.kernel, len(x)), x.dtype)
    every = (slice(None),) * geometry.ndim
    for tap in np.ndindex(geometry.kernel):
        rows[*every, *tap] = image[tap_cells(geometry, tap)]
    # Y (o, f) = rows (o, kc) @ W (kc, f), a stack of rows of the last axis
    np.matmul(rows.reshape(geometry.positions, -1), W, out=y.reshape(-1, len(w), copy=False))


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    M, _, K = geometry.gemm
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "rows": K * geometry.positions * dtype.itemsize,
        "weights": M * K * dtype.itemsize,
    }


IM2ROW = Lowering(
    name="im2row",
    source="Chellapilla, Puri and Simard (2006), with TensorFlow's order of the axes",
    matrices="Y (o, f) = rows (o, kc) @ W (kc, f)",
    layout="channels_last",
    one=_one,
    gemms_of_one=lambda geometry, dtype: 1,
    buffers=_buffers,
)
