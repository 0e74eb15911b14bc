r"""The weights of Winograd's way, :math:`U_{fc} = G g_{fc} G^T`, packed for the products.

Both sides of G at once are one matrix of n² rows, which multiplies the nine taps of each channel::

    U (n², 64) = G (n², 9) @ taps (9, 64)      for each block of 64 filters and each channel

U has n² / 9 times the numbers of w, four times with tiles of four outputs, and is worth keeping:
where images are small, to make it takes as long as to use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.moves import move
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.winograd.stages import BLOCK, blocks
from im2col_conv.engine.winograd.transforms import KERNEL, arrays_for, transform_for
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room

__all__ = ["transform", "transform_bytes"]

TAPS = KERNEL**2


def transform(
    blas: OpenBlas, w: Array, groups: int, tile: int, dtype: np.dtype[Any], room: Room
) -> Array:
    """Return U (groups, blocks of F, n * n, C, 64) of ``w`` (F, C // groups, 3, 3) in ``dtype``.

    What is past the last filter is zero.
    """
    F, C = len(w) // groups, w.shape[1]
    G = arrays_for(tile, dtype).G
    width = min(F, BLOCK)
    U = room("weights", (groups, blocks(F), len(G), C, width), dtype)
    U[...] = 0
    taps = np.zeros((C, TAPS, width), dtype)
    c = np.arange(C) * width
    products = Products(
        len(G), width, TAPS, Operand(0, TAPS), Operand(c * TAPS, width), Operand(c, C * width)
    )
    for g, block in np.ndindex(*U.shape[:2]):
        first = g * F + block * BLOCK
        part = w[first : min(first + BLOCK, (g + 1) * F)]
        columns = taps.reshape(C * TAPS, width).T
        columns[len(part) :] = 0
        move(blas, part.reshape(len(part), 1, -1), columns[: len(part), None])
        blas.run(products, G, taps, U[g, block])
    return U


def transform_bytes(geometry: ConvGeometry, tile: int, dtype: np.dtype[Any]) -> int:
    """Return the memory that :func:`transform` takes, U itself and the taps of a block."""
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    points = transform_for(tile).cells ** 2
    # The taps of a block may be there twice, where w has gaps.
    numbers = (geometry.groups * blocks(F) * points + 2 * TAPS) * C * min(F, BLOCK)
    return numbers * dtype.itemsize
