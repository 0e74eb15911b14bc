"""Copies from one memory order to another: transposed matrices where both are matrices."""

from __future__ import annotations

import math

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.tile import row_of
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch

__all__ = [
    "as_matrix",
    "last_to",
    "lies",
    "move",
    "move_images",
    "move_matrix",
    "span",
    "turn",
    "turning",
]

FAR = 1024  # positions of a channel that put the next one on another page
WORTH_A_CALL = 4096  # numbers; below, one copy by NumPy is faster than many calls


def move(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[c, n, *cells]`` to ``target``, image by image."""
    for image in range(source.shape[1]):
        move_matrix(blas, source[:, image], target[:, image])


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
    """Copy ``source[row, *columns]`` to ``target``, in parts where it is no matrix as a whole."""
    if source.dtype != target.dtype or not source.size:
        target[...] = source
        return
    pair = _transposed(source, target)
    if pair is not None:
        blas.transpose(*pair)
    elif source.ndim > 2 and _is_worth_calls(source[:, 0], target[:, 0]):
        for cells in range(source.shape[1]):
            move_matrix(blas, source[:, cells], target[:, cells])
    else:
        target[...] = source


def _transposed(source: Array, target: Array) -> tuple[Array, Array] | None:
    """Return views of which the second is the transpose of the first, both with contiguous rows."""
    a, out = as_matrix(source), as_matrix(target)
    if a is None or out is None:
        return None
    if lies(a) and lies(out.T):
        return a, out.T
    if lies(a.T) and lies(out):
        return a.T, out
    return None


def _is_worth_calls(source: Array, target: Array) -> bool:
    """Say whether an array is made of matrices so large that calls are sooner than one by NumPy."""
    if source.size < WORTH_A_CALL:
        return False
    if _transposed(source, target) is not None:
        return True
    return source.ndim > 2 and _is_worth_calls(source[:, 0], target[:, 0])


def last_to(axis: int, array: Array) -> Array:
    """Return a view with the last axis moved to ``axis``, sooner than np.moveaxis would."""
    axes = list(range(array.ndim - 1))
    axes.insert(axis, array.ndim - 1)
    return array.transpose(axes)


def as_matrix(array: Array) -> Array | None:
    """Return a view (row, columns) of ``array[row, *columns]``, or None where there is none."""
    try:
        return array.reshape(array.shape[0], math.prod(array.shape[1:]), copy=False)
    except ValueError:
        return None


def lies(matrix: Array) -> bool:
    """Say whether the rows of a matrix are contiguous and do not overlap."""
    step, item = matrix.strides
    rows, columns = matrix.shape
    size = matrix.itemsize
    return (columns == 1 or item == size) and (
        rows == 1 or (step >= columns * size and step % size == 0)
    )


def span(memory: Array) -> Array:
    """Return all numbers from the first of ``memory`` to its last, as a view of one axis."""
    if memory.flags.c_contiguous:
        return memory.reshape(-1)
    reach = sum((n - 1) * step for n, step in zip(memory.shape, memory.strides, strict=True))
    numbers = reach // memory.itemsize + 1
    return np.lib.stride_tricks.as_strided(memory, (numbers,), (memory.itemsize,))
