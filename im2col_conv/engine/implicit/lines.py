"""How a tile lies in memory: channels innermost, so that a line of cells is a matrix.

A row has some numbers more than channels. Without them the rows of 1024 channels would all begin
in the same few sets of the cache: a product then takes up to twice as long (docs/performance.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch

__all__ = ["BLOCK", "blocks", "move", "new_lines", "row_length"]

BLOCK = 64  # channels or filters of one product
SPARE = 16


def row_length(channels: int) -> int:
    """Return the numbers from one row of a tile to the next."""
    return channels + SPARE


def blocks(channels: int) -> list[tuple[int, int]]:
    """Return (first, how many) of each block of channels.

    Examples
    --------
    >>> blocks(150)
    [(0, 64), (64, 64), (128, 22)]
    """
    return [(first, min(BLOCK, channels - first)) for first in range(0, channels, BLOCK)]


def new_lines(
    scratch: Scratch, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], interleaved: bool
) -> tuple[Array, Array]:
    """Return an unfilled tile as a view [c, n, *cells], and its memory.

    Where images are ``interleaved``, a cell of all of them comes before the next cell: a line is
    then as many times longer. Else one image follows the other.
    """
    c, n, *cells = shape
    order = (*cells, n) if interleaved else (n, *cells)
    memory = scratch.array(name, (*order, row_length(c)), dtype)
    tile = np.moveaxis(memory[..., :c], -1, 0)
    return (np.moveaxis(tile, -1, 1) if interleaved else tile), memory


def move(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[c, n, *cells]`` to ``target``, whose memory order may be another."""
    if source.dtype == target.dtype and source.size:
        for image in range(source.shape[1]):
            _move_image(blas, source[:, image], target[:, image])
    else:
        target[...] = source


def _move_image(blas: OpenBlas, source: Array, target: Array) -> None:
    """Copy ``source[c, *cells]``; as one transposed matrix where both can be seen as matrices."""
    a, out = _matrix(source), _matrix(target)
    if a is None or out is None:
        for cells in range(source.shape[1]):
            _move_image(blas, source[:, cells], target[:, cells])
    elif _lies(a.T) and _lies(out):
        blas.transpose(a.T, out)
    elif _lies(a) and _lies(out.T):
        blas.transpose(a, out.T)
    else:
        out[...] = a


def _matrix(array: Array) -> Array | None:
    """Return a view (c, cells) of ``array[c, *cells]``, or None where there is none."""
    try:
        return np.reshape(array, (array.shape[0], math.prod(array.shape[1:])), copy=False)
    except ValueError:
        return None


def _lies(matrix: Array) -> bool:
    """Say whether the rows of a matrix are contiguous and do not overlap."""
    step, item = matrix.strides
    rows, columns = matrix.shape
    size = matrix.itemsize
    return (columns == 1 or item == size) and (rows == 1 or (step >= columns * size and step % size == 0))
