r"""Depthwise layers along one axis, channels first: a line times the squares of a Toeplitz matrix.

A channel sees itself alone, so y is its line x times a matrix with tap t all along a diagonal.
Cut in squares of S by S, that matrix has the same few squares :math:`T_q` in each of its block
columns, so that with the line as a matrix of rows of S cells

.. math:: y\,(R \times S) = \sum_q x_{q\ldots}\,(R \times S) \; T_q\,(S \times S),

:math:`x_{q\ldots}` being the rows from the q-th on: a view. The images of a channel are one line,
with padding between them, and what comes out there is dropped. With a stride, the cells of each
phase are a line, and their products are added. For 31 taps and S = 16 that is 48 multiplications an
output, where columns copy 31 cells. Zero times infinity would be NaN: where y is not finite, taps
are added one by one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import is_finite
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.im2col.stored import Axis, Turn, axis_of, store
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.tiling import EVEN, Tiling, cut_evenly, is_small
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import tap_slices, whole

__all__ = ["ToeplitzLines", "forward", "toeplitz_lines"]

# Measured: docs/ideas.md.
SIDE = 16  # S
FEW_TAPS, LEAST_COPIED = 4, 1000  # taps that are sooner copied; numbers of a channel that are not
MOST_DEPTH = 8  # rows of all squares for each tap
LEAST_OUTS = 512  # of a line, where it is cut
BUFFERS = 4  # of a line: x, y, a term of y, and of a tap where y is not finite
TILE_BYTES = 2**22
CELL_COST = 30  # operations of a large product while a number is read or written


class ToeplitzLines(NamedTuple):
    """Tiles over (N, groups, out), and what they take.

    Attributes
    ----------
    tiling : Tiling
    tile_bytes, weight_bytes : int
        Memory of a tile, and of all squares.
    work : int
        Operations that columns would be multiplied with in the time of a pass.
    """

    tiling: Tiling
    tile_bytes: int
    weight_bytes: int
    work: int


def toeplitz_lines(
    geometry: ConvGeometry, layout: str, dtype: np.dtype[Any], workspace: int
) -> ToeplitzLines | None:
    """Return the tiles of a layer; None where it is no such layer, or columns are sooner made."""
    if not _covers(geometry, layout, dtype):
        return None
    (out,), (taps,) = geometry.out, geometry.kernel
    axis = _axis(geometry, 0, out)
    squares = sum(_squares(turn, geometry.dilation[0]) for turn in axis.turns)
    if squares * SIDE > MOST_DEPTH * taps:
        return None
    weight_bytes = geometry.C * squares * SIDE**2 * dtype.itemsize
    room = min(TILE_BYTES, max(workspace - weight_bytes, 0) // EVEN) // dtype.itemsize
    work = geometry.flops + CELL_COST * (math.prod(geometry.x_shape) + math.prod(geometry.y_shape))
    shares = 1 if is_small(work) else EVEN
    rests = (3 + squares) * SIDE  # of rows, whatever the images
    reach = axis.length - out
    outs = max(1, min(out, (room - rests) // BUFFERS - reach))
    numbers = BUFFERS * (outs + reach)
    lines = max(1, min(room // (numbers + rests), -(-geometry.N * geometry.C // shares)))
    images = min(geometry.N, lines)
    channels = cut_evenly((geometry.C,), lines // images, shares).step[0]
    tile_bytes = channels * (images * numbers + rests) * dtype.itemsize
    if EVEN * tile_bytes + weight_bytes > workspace or outs < min(out, LEAST_OUTS):
        return None
    tiling = Tiling((geometry.N, geometry.C, out), (images, channels, outs))
    return ToeplitzLines(tiling, tile_bytes, weight_bytes, work)


@lru_cache(maxsize=256)
def _axis(geometry: ConvGeometry, first: int, stop: int) -> Axis:
    """Return how the cells are stored that some outputs see."""
    (size,), (taps,), (stride,), (dilation,), ((before, _),) = (
        geometry.size,
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        geometry.padding,
    )
    return axis_of(size, stop - first, taps, stride, dilation, before - first * stride)


def _covers(geometry: ConvGeometry, layout: str, dtype: np.dtype[Any]) -> bool:
    """Say whether channels are lines that see themselves alone, and columns would be long."""
    alone = geometry.depthwise and geometry.ndim == 1
    copied = geometry.N * geometry.positions * (geometry.taps - FEW_TAPS)
    return alone and layout == "channels_first" and dtype.kind in "fc" and copied >= LEAST_COPIED


def _squares(turn: Turn, dilation: int) -> int:
    """Return how many squares hold the diagonals of some taps."""
    return -(-(SIDE + turn.offset + (turn.many - 1) * dilation) // SIDE)


def forward(
    geometry: ConvGeometry,
    plan: ToeplitzLines,
    dtype: np.dtype[Any],
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
) -> Work:
    """Return what fills ``y`` (N, C, out), by sums of ``dtype``."""
    dilation = geometry.dilation[0]
    turns = _axis(geometry, 0, geometry.out[0]).turns  # the same for all parts of a line
    squares = [_matrix(turn, dilation, w[:, 0], dtype) for turn in turns]
    x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)

    def fill(index: int, scratch: Scratch) -> None:
        images, channels, outs = plan.tiling[index]
        part, seen = y[channels, images, outs], x[channels, images]
        axis = _axis(geometry, outs.start, outs.stop)
        lines = _multiply(axis, scratch, seen, [T[channels] for T in squares])
        shape = (*part.shape[:2], axis.length)
        made = lines[:, : math.prod(shape[1:])].reshape(shape, copy=False)[..., : part.shape[2]]
        if not is_finite(lines):
            _add_taps(geometry, seen, w[channels, 0], outs, made)
        if b is None:
            copy_lines(made, part)
        else:
            np.add(made, b[channels, None, None], out=part)

    return Work(fill)


def _matrix(turn: Turn, dilation: int, w: Array, dtype: np.dtype[Any]) -> Array:
    """Return the squares (C, q S, S) of some taps of w (C, taps), one below the other."""
    taps = w[:, turn.taps]
    T = np.zeros((len(w), _squares(turn, dilation) * SIDE, SIDE), dtype)
    channel, row, column = T.strides
    diagonals = np.ndarray(
        (len(w), SIDE, turn.many),
        dtype,
        T,
        turn.offset * row,
        (channel, row + column, dilation * row),
    )
    diagonals[...] = taps[:, None]
    return T


def _multiply(axis: Axis, scratch: Scratch, x: Array, squares: list[Array]) -> Array:
    """Return the lines (c, p) of the products of ``x[c, n, size]`` and squares."""
    (c, n), dtype = x.shape[:2], squares[0].dtype
    rows = -(-n * axis.length // SIDE)
    y, term = (scratch.array(name, (c, rows, SIDE), dtype) for name in ("y", "term"))
    made = y
    for turn, T in zip(axis.turns, squares, strict=True):
        numbers = rows * SIDE + T.shape[1] - SIDE
        cells, stored = x[..., turn.cells], [turn.stored]
        line = store(scratch, "x", cells, (n, axis.length), stored, numbers, dtype)
        for first in range(0, T.shape[1], SIDE):
            # y (R, S) += x (R, S) @ T (S, S), of each channel
            cut = line[:, first : first + rows * SIDE].reshape(c, rows, SIDE, copy=False)
            np.matmul(cut, T[:, first : first + SIDE], out=made)
            if made is term:
                y += term
            made = term
    return y.reshape(c, rows * SIDE)


def _add_taps(geometry: ConvGeometry, x: Array, w: Array, outs: slice, y: Array) -> None:
    """Set ``y[c, n, outs]`` to sums without padding, whose zeros times infinity make NaN."""
    y[...] = 0
    for (tap,), (part,), (cells,) in tap_slices(geometry, (outs,), whole(geometry.size)):
        y[..., part] += w[:, tap, None, None] * x[..., cells]
