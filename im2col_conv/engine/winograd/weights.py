r"""The weights of Winograd's way, :math:`U_{fc} = G g_{fc} G^T`, packed for the products.

Both sides of G at once are one matrix of n² rows, which multiplies the nine taps::

    U (n², C 64) = G (n², 9) @ taps (9, C 64)      for each block of 64 filters

U has n² / 9 times the numbers of w, four times with tiles of four outputs, and is worth keeping:
where images are small, to make it takes as long as to use it.

dx is the convolution of dout with w flipped, its channels and filters exchanged. To flip the taps
is to reverse the columns of G.
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


def transform(
    w: Array, groups: int, tile: int, dtype: np.dtype[Any], room: Room, *, adjoint: bool
) -> Blockwise:
    """Return U (groups, blocks of F, n * n, C, 64) of ``w`` (F, C // groups, 3, 3) in ``dtype``.

    Of the ``adjoint``, w flipped, it is (groups, blocks of C, n * n, F, 64). What is past the last
    filter may be any number, and is never read.
    """
    weights = w.reshape(groups, len(w) // groups, w.shape[1], TAPS)
    _, F, C, _ = weights.shape
    rows, columns = (F, C) if adjoint else (C, F)
    G = arrays_for(tile, dtype).G
    if adjoint:
        G = np.ascontiguousarray(G[:, ::-1])
    width = min(columns, BLOCK)
    U = room("weights", (groups, blocks(columns), len(G), rows, width), dtype)

    def make(blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
        part = slice(block * BLOCK, min((block + 1) * BLOCK, columns))
        taps = scratch.array("taps", (TAPS, rows, width), dtype)
        if adjoint:
            taps[..., : part.stop - part.start] = weights[group, :, part].transpose(2, 0, 1)
        else:
            _turn_taps(blas, scratch, weights[group, part], taps)
        blas.run(_products(len(G), rows * width), G, taps, U[group, block])

    return Blockwise(U, make)


def _turn_taps(blas: OpenBlas, scratch: Scratch, part: Array, taps: Array) -> None:
    """Fill ``taps`` (9, C, 64) from some filters (f, C, 9)."""
    many, C, _ = part.shape
    turned = scratch.array("W", (C * TAPS, taps.shape[-1]), taps.dtype)
    turn(blas, scratch, part.reshape(many, 1, -1), turned.T[:many, None])
    copy_lines(turned.reshape(C, TAPS, -1).swapaxes(0, 1), taps)


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
