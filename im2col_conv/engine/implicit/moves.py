"""Copies from one memory order to another: transposed matrices where both are matrices."""

from __future__ import annotations

import math

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import copies_for, copy_lines
from im2col_conv.engine.implicit.tile import row_of
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch

__all__ = [
    "TURNED_BACK_AT_ONCE",
    "last_to",
    "move",
    "move_images",
    "move_matrix",
    "turn",
    "turning",
    "unpack_taps",
]

TURNED_BACK_AT_ONCE = 2**16  # numbers of sums for weights that one copy arranges as soon as two
FAR = 1024  # positions of a channel that put the next one on another page


def move(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[c, n, *cells]`` to ``target``, image by image."""
    _move(blas, source, target, each_image=True)


def turn(blas: OpenBlas, scratch: Scratch, source: Array, target: Array) -> None:
    """Do as :func:`move` does, sooner where each channel of ``source`` lies on pages of its own.

    There a transposed copy waits for memory at every step. Rows that are copied as they are do not:
    so they go to the cache first.
    """
    c, n, *cells = source.shape
    if turning(c, math.prod(cells)) == 0 or source.strides[0] < source.strides[-1]:
        move(blas, source, target)
        return
    near = scratch.array("near", (c, row_of(math.prod(cells))), target.dtype)
    rows = near[:, : math.prod(cells)].reshape(c, *cells)
    for image in range(n):
        rows[...] = source[:, image]
        move_matrix(blas, rows, target[:, image])


def turning(channels: int, positions: int) -> int:
    """Return the numbers that :func:`turn` needs between two copies."""
    return channels * row_of(positions) if positions >= FAR else 0


def move_images(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[c, n, *cells]`` to ``target``, all images at once."""
    axes = list(range(source.ndim))
    channels_inner = source.strides[0] < source.strides[-1]
    order = axes[1:] + axes[:1] if channels_inner else [1, 0, *axes[2:]]
    move_matrix(blas, source.transpose(order), target.transpose(order))


def move_matrix(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[row, *columns]`` to ``target``."""
    _move(blas, source, target, each_image=False)


def unpack_taps(blas: OpenBlas, scratch: Scratch, sums: Array, weights: Array) -> None:
    """Fill ``weights[f, c, tap]`` with what was added up as ``sums[tap, c, f]``."""
    if weights.size < TURNED_BACK_AT_ONCE:
        weights[...] = sums.transpose(2, 1, 0)
        return
    order = (*weights.shape[1:], len(weights))
    between = scratch.array("W", order, sums.dtype)  # as (c, tap, f)
    copy_lines(sums.swapaxes(0, 1), between)
    move_matrix(blas, between.transpose(2, 0, 1), weights)


def _move(blas: OpenBlas, source: Array, target: Array, *, each_image: bool) -> None:
    copies = copies_for(source, target, each_image=each_image)
    if copies is None:
        target[...] = source
    else:
        blas.copy(copies, source, target)


def last_to(axis: int, array: Array) -> Array:
    """Return a view with the last axis moved to ``axis``, sooner than np.moveaxis would."""
    axes = list(range(array.ndim - 1))
    axes.insert(axis, array.ndim - 1)
    return array.transpose(axes)
