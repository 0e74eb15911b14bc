r"""Explicit im2col: every window of an image becomes a column.

With k the taps of a kernel and o the outputs of an image,

.. math:: Y_{f \times o} = W_{f \times ck} \; \mathrm{cols}_{ck \times o}

where row (c, t) of cols holds what tap t of channel c meets at each output. An input cell is stored
as many times as windows hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["IM2COL"]


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    image = padded_image(x, geometry)
    cols = np.empty((len(x), *geometry.kernel, *geometry.out), x.dtype)
    for tap in np.ndindex(geometry.kernel):
        cols[:, *tap] = image[:, *tap_cells(geometry, tap)]
    # Y (f, o) = W (f, ck) @ cols (ck, o)
    f, o = len(w), geometry.positions
    np.matmul(w.reshape(f, -1), cols.reshape(-1, o), out=y.reshape(f, o))


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    cols = geometry.gemm.K * geometry.positions
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "cols": cols * dtype.itemsize,
    }


IM2COL = Lowering(
    name="im2col",
    source="Chellapilla, Puri and Simard (2006), High Performance Convolutional Neural Networks "
    "for Document Processing",
    matrices="Y (f, o) = W (f, ck) @ cols (ck, o)",
    layout="channels_first",
    one=_one,
    gemms_of_one=lambda geometry, dtype: 1,
    buffers=_buffers,
)
