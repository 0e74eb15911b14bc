r"""The indirect buffer: where each row lies is written down, not the row.

.. math:: Y_{o \times f} = \mathrm{rows}_{o \times kc} \; W_{kc \times f}, \qquad
          \mathrm{rows}[o, (t, :)] = X[I[o, t], :]

as in im2row, but what is stored is I alone, one place a tap and output whatever the number of
channels; taps in the padding point to a row of zeros. Its author's GEMM follows the pointers in its
innermost loops, a few rows at a time. BLAS follows none, so here some rows are gathered by I and
multiplied, and then the next.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.im2row import weights_last
from im2col_conv.gallery.interface import Lowering, tap_cells
from im2col_conv.geometry import ConvGeometry

__all__ = ["INDIRECT", "ROWS"]

ROWS = 64
"""Outputs that are gathered and multiplied at a time."""

_INDEX = np.dtype(np.intp)


def _indirection(geometry: ConvGeometry) -> Array:
    """Return I (o, k): the number of the cell under each tap; the one past the last is zeros."""
    inner = tuple(
        slice(before, before + size)
        for (before, _), size in zip(geometry.padding, geometry.size, strict=True)
    )
    zeros = math.prod(geometry.size)
    numbers = np.full(geometry.padded, zeros, _INDEX)
    numbers[inner] = np.arange(zeros, dtype=_INDEX).reshape(geometry.size)
    places = np.empty((*geometry.out, geometry.taps), _INDEX)
    for t, tap in enumerate(np.ndindex(geometry.kernel)):
        places[..., t] = numbers[tap_cells(geometry, tap)]
    return places.reshape(-1, geometry.taps)


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    places, c = _indirection(geometry), len(x)
    X = np.zeros((math.prod(geometry.size) + 1, c), x.dtype)
    X[:-1] = x.reshape(c, -1).T
    W, Y = weights_last(w), y.reshape(-1, len(w), copy=False)
    buffer = np.empty((min(ROWS, len(places)), geometry.taps, c), x.dtype)
    for start in range(0, len(places), ROWS):
        part = places[start : start + ROWS]
        rows = buffer[: len(part)]
        np.take(X, part, axis=0, out=rows, mode="clip")  # "raise" would fill a copy of rows
        # Y[part] (r, f) = rows (r, kc) @ W (kc, f)
        np.matmul(rows.reshape(len(part), -1), W, out=Y[start : start + ROWS])


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    M, _, K = geometry.gemm
    o, c = geometry.positions, geometry.C // geometry.groups
    return {
        "indirection": o * geometry.taps * _INDEX.itemsize,
        "image": (math.prod(geometry.size) + 1) * c * dtype.itemsize,
        "some rows": min(ROWS, o) * K * dtype.itemsize,
        "weights": M * K * dtype.itemsize,
    }


INDIRECT = Lowering(
    name="indirect",
    source="Dukhan (2019), The Indirect Convolution Algorithm",
    matrices="Y[part] (r, f) = X[I[part]] (r, kc) @ W (kc, f), for each part of r outputs",
    layout="channels_last",
    one=_one,
    gemms_of_one=lambda geometry, dtype: math.ceil(geometry.positions / ROWS),
    buffers=_buffers,
)
