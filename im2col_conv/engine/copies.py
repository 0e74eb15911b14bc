"""Copies from one memory order to another: transposed matrices, or line by line.

Where the matrices or lines of a copy are follows from the shape and the strides of both arrays. So
it is worked out once for all arrays that lie alike. Each matrix is a part of a view, and so inside
whatever arrays lie the same way; others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, address

__all__ = ["Copies", "as_matrix", "copies_for", "copy_lines", "lies", "shadow"]

KEPT = 1024
# Numbers of an image, and of any other matrix, below which one copy by NumPy is sooner than calls.
WORTH_A_CALL, WORTH_MANY_CALLS = 256, 4096
WORTH_LINES = 512  # numbers that take as long to copy as to see how they lie
LONG_LINE = 1024  # bytes that NumPy copies as fast number by number

_ROW_MAJOR, _TRANSPOSED = 101, 112  # the numbers that CBLAS has for these words


class Lie(NamedTuple):
    """How both arrays of a copy lie in memory."""

    shape: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    dtype: np.dtype[Any]


class Loop(NamedTuple):
    """Matrices that follow one another, so many bytes apart."""

    times: int
    source: int
    target: int


class Copies:
    """Matrices of one size, each of which is copied to become its transpose.

    Parameters
    ----------
    lie : Lie
        How the arrays lie.
    matrix : tuple of ndarray
        The first matrix and its transpose, as rows of contiguous numbers: views of arrays that lie
        so and begin at the same addresses.
    loops : list of Loop
        Where the others are.
    """

    def __init__(self, lie: Lie, matrix: tuple[Array, Array], loops: list[Loop]) -> None:
        a, out = matrix
        self._lie = lie
        self._loops = loops
        self._sizes = a.shape
        self._ld = _leading_dimension(a), _leading_dimension(out)
        self.size: int = a.size  # numbers of a matrix

    def run(self, omatcopy: Callable[..., None], source: Array, target: Array) -> None:
        """Copy them all with CBLAS's ``omatcopy`` of the arrays' type."""
        lie = Lie(source.shape, source.strides, target.strides, source.dtype)
        if lie != self._lie or target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(f"these copies are of arrays that lie as {self._lie}, got {lie}")
        if not target.flags.writeable:
            raise ValueError("the copies need a writeable array for their results")
        places = [(address(source), address(target))]
        for times, a, b in self._loops:
            places = [(at + i * a, to + i * b) for at, to in places for i in range(times)]
        rows, columns = self._sizes
        ld, out_ld = self._ld
        for at, to in places:
            omatcopy(_ROW_MAJOR, _TRANSPOSED, rows, columns, 1.0, at, ld, to, out_ld)


def copy_lines(source: Array, target: Array) -> None:
    """Copy ``source`` to ``target``; if both have lines of contiguous numbers, line by line.

    NumPy copies the numbers of a line one after the other, but an item of as many bytes at once.
    Where lines are of a few hundred bytes, that takes half the time (docs/ideas.md).
    """
    if source.size < WORTH_LINES or source.dtype != target.dtype:
        target[...] = source
        return
    lie = Lie(source.shape, source.strides, target.strides, source.dtype)
    lines = _lines_of(lie)
    if lines is None:
        target[...] = source
        return
    order, item = lines
    target.transpose(order).view(item)[...] = source.transpose(order).view(item)


@lru_cache(maxsize=KEPT)
def _lines_of(lie: Lie) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Return the axes, that of the lines last, and a line as an item; None without lines."""
    size = lie.dtype.itemsize
    if 0 in lie.shape:
        return None
    for axis, many in enumerate(lie.shape):
        contiguous = lie.source[axis] == lie.target[axis] == size
        if contiguous and many > 1 and many * size <= LONG_LINE:
            others = (each for each in range(len(lie.shape)) if each != axis)
            return (*others, axis), np.dtype((np.void, many * size))
    return None


def copies_for(source: Array, target: Array, *, each_image: bool) -> Copies | None:
    """Return what copies ``source[row, *columns]`` to ``target``, or None: NumPy does it as soon.

    With ``each_image``, the first of the columns' axes is no part of the matrices.
    """
    lie = Lie(source.shape, source.strides, target.strides, source.dtype)
    return _copies_for(lie, each_image) if source.dtype == target.dtype else None


@lru_cache(maxsize=KEPT)
def _copies_for(lie: Lie, each_image: bool) -> Copies | None:
    if 0 in lie.shape:
        return None
    source, target = (shadow(lie.shape, strides, lie.dtype) for strides in (lie.source, lie.target))
    loops: list[Loop] = []
    least = 1
    if each_image:
        least = WORTH_A_CALL
        source, target = _first(loops, source, target)
    while source.size >= least:
        matrix = _transposed(source, target)
        if matrix is not None:
            return Copies(lie, matrix, loops)
        if source.ndim < 3:
            break
        least = WORTH_MANY_CALLS
        source, target = _first(loops, source, target)
    return None


def _first(loops: list[Loop], source: Array, target: Array) -> tuple[Array, Array]:
    """Return the first of the parts along the second axis, and note where the others are."""
    loops.append(Loop(source.shape[1], source.strides[1], target.strides[1]))
    return source[:, 0], target[:, 0]


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


def shadow(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array that lies so and has no numbers: to reason about, never to be read."""
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)


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


def _leading_dimension(matrix: Array) -> int:
    """Return the numbers from one row of a matrix that :func:`lies` to the next."""
    rows, columns = matrix.shape
    ld: int = matrix.strides[0] // matrix.itemsize if rows > 1 else columns
    return max(ld, 1)
