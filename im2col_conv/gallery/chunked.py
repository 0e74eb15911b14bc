r"""Chunked im2col: the columns of some output rows at a time, in one small buffer.

.. math:: Y[:, \text{chunk}]_{f \times p} = W_{f \times ck} \; \mathrm{cols}_{ck \times p}

The products are those of im2col, cut along the outputs; the columns of one chunk are overwritten by
the next, and can stay in a cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_cells, padded_image, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["CHUNK", "CHUNKED"]

CHUNK = 2**18
"""Bytes of columns at a time, as far as one output row fits."""


def _rows(geometry: ConvGeometry, dtype: np.dtype[Any]) -> int:
    """Return how many cells of the first output axis a chunk has."""
    row = geometry.gemm.K * math.prod(geometry.out[1:]) * dtype.itemsize
    return min(max(CHUNK // row, 1), geometry.out[0])


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    image, f = padded_image(x, geometry), len(w)
    rows, (height, *others) = _rows(geometry, x.dtype), geometry.out
    buffer = np.empty(len(x) * geometry.taps * rows * math.prod(others), x.dtype)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        shape = (len(x), *geometry.kernel, stop - start, *others)
        cols = buffer[: math.prod(shape)].reshape(shape)
        for tap in np.ndindex(geometry.kernel):
            cols[:, *tap] = image[:, *tap_cells(geometry, tap)][:, start:stop]
        # Y[:, chunk] (f, p) = W (f, ck) @ cols (ck, p)
        p = slice(start * math.prod(others), stop * math.prod(others))
        out = y.reshape(f, -1)[:, p]
        np.matmul(w.reshape(f, -1), cols.reshape(-1, p.stop - p.start), out=out)


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    cells = geometry.gemm.K * _rows(geometry, dtype) * math.prod(geometry.out[1:])
    return {
        "padded image": padded_cells(geometry) * dtype.itemsize,
        "cols of a chunk": cells * dtype.itemsize,
    }


CHUNKED = Lowering(
    name="chunked",
    source="The TensorFlow Authors (2016), conv_ops_using_gemm.cc, Im2ColConvFunctor",
    matrices="Y[:, p] (f, p) = W (f, ck) @ cols (ck, p), for each chunk of p outputs",
    layout="channels_first",
    one=_one,
    gemms_of_one=lambda geometry, dtype: math.ceil(geometry.out[0] / _rows(geometry, dtype)),
    buffers=_buffers,
)
