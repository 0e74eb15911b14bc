r"""The weights of Winograd's way, :math:`U_{fc} = G g_{fc} G^T`, packed for the products.

Both sides of G at once are one matrix of n² rows, which multiplies the nine taps::

    U (n², C 64) = G (n², 9) @ taps (9, C 64)      for each block of 64 filters

U has n² / 9 times the numbers of w, four times with tiles of four outputs, and is worth keeping:
where images are small, to make it takes as long as to use it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.implicit.moves import turn
from im2col_conv.engine.implicit.tile import KEPT, row_of
from im2col_conv.engine.implicit.weights import Blockwise
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.winograd.stages import BLOCK, blocks
from im2col_conv.engine.winograd.transforms import KERNEL, arrays_for, transform_for
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room

__all__ = ["scratch_bytes", "transform", "transform_bytes"]

TAPS = KERNEL**2
PIECE = 768  # columns of a product


def transform(w: Array, groups: int, tile: int, dtype: np.dtype[Any], room: Room) -> Blockwise:
    """Return U (groups, blocks of F, n * n, C, 64) of ``w`` (F, C // groups, 3, 3) in ``dtype``.

    What is past the last filter may be any number, and is never read.
    """
    F, C = len(w) // groups, w.shape[1]
    G = arrays_for(tile, dtype).G
    width = min(F, BLOCK)
    U = room("weights", (groups, blocks(F), len(G), C, width), dtype)

    def make(blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
        first = group * F + block * BLOCK
        part = w[first : min(first + BLOCK, (group + 1) * F)]
        turned = scratch.array("W", (C * TAPS, width), dtype)
        turn(blas, scratch, part.reshape(len(part), 1, -1), turned.T[: len(part), None])
        taps = scratch.array("taps", (TAPS, C, width), dtype)
        copy_lines(turned.reshape(C, TAPS, width).swapaxes(0, 1), taps)
        blas.run(_products(len(G), C * width), G, taps, U[group, block])

    return Blockwise(U, make)


@lru_cache(maxsize=KEPT)
def _products(points: int, columns: int) -> Products:
    first = np.arange(0, columns, PIECE)
    taps = Operand(first, columns)
    # U (n², C 64) = G (n², 9) @ taps (9, C 64)
    return Products(
        points, np.minimum(columns - first, PIECE), TAPS, Operand(0, TAPS), taps, taps, fresh=True
    )


def transform_bytes(geometry: ConvGeometry, tile: int, dtype: np.dtype[Any]) -> int:
    """Return the memory of U."""
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    points = transform_for(tile).cells ** 2
    return geometry.groups * blocks(F) * points * C * min(F, BLOCK) * dtype.itemsize


def scratch_bytes(geometry: ConvGeometry, dtype: np.dtype[Any]) -> int:
    """Return the memory of a worker who makes a block of U: three copies of its taps."""
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    return 3 * TAPS * row_of(C) * min(F, BLOCK) * dtype.itemsize
