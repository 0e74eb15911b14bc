"""Fill a tile's columns from the input: as a view, in one strided copy, or tap by tap."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.im2col.columns import Columns, Shape, as_matrix
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Ends, Slices, ends, gather, last, whole

__all__ = ["column_bytes", "gather_tile"]

BAND_SHARE = 2


def gather_tile(
    columns: Columns, scratch: Scratch, x: Array, dtype: np.dtype[Any], box: Slices
) -> Array:
    """Return the column matrix (g, K, L) of the outputs ``box`` of ``x[g, c, n, *size]``.

    A kernel of one tap may find the matrix in ``x`` as it lies. Else all windows are copied at once
    from the *band* of cells that the tile sees, itself a copy where padding or another type is
    wanted; or, where windows are so sparse that the band would be large, tap by tap.
    """
    geometry = columns.geometry
    if geometry.taps == 1 and x.dtype == dtype:
        view = _pointwise(geometry, x, box)
        if view is not None:
            return view
    band = _band(geometry, ends(box))
    positions = (x.shape[2], *band.lengths)
    cols, matrix = columns.empty(scratch, dtype, x.shape[0], x.shape[1], positions)
    if band.dense:
        band_cells = _padded(columns, scratch, x, dtype, band)
        copy_lines(_windows(geometry, band_cells, band.lengths), cols)
    else:
        gather(geometry, x, cols, box, whole(geometry.size))
    return matrix


def column_bytes(window: int, dtype: np.dtype[Any]) -> int:
    """Return what a column of ``window`` numbers takes, with its share of the largest band."""
    nbytes = window * dtype.itemsize
    return nbytes + nbytes // BAND_SHARE


def _pointwise(geometry: ConvGeometry, x: Array, box: Slices) -> Array | None:
    """Return the cells under a kernel of one tap as a matrix, if none of them is padding."""
    if any(before or after for before, after in geometry.padding):
        return None
    cells = (
        slice(o.start * s, (o.stop - 1) * s + 1, s)
        for o, s in zip(box, geometry.stride, strict=True)
    )
    return as_matrix(x[last(cells)])


class _Band(NamedTuple):
    """The cells from the first to the last that a box of outputs sees, padding included.

    They are worth storing where they are ``dense``, few beside the box's windows.
    """

    lengths: Shape  # of the box
    shape: Shape
    inside: Slices  # which cells of the input are among them
    middle: Slices  # where among them these are
    padded: bool
    dense: bool


@lru_cache(maxsize=64)
def _band(geometry: ConvGeometry, box: Ends) -> _Band:
    """Return what the outputs ``box``, (start, stop) on each axis, see: every call asks anew."""
    lengths = tuple(stop - start for start, stop in box)
    seen = [
        (start * s - before, (stop - 1) * s - before + reach)
        for (start, stop), s, reach, (before, _) in zip(
            box, geometry.stride, geometry.reach, geometry.padding, strict=True
        )
    ]
    inside = tuple(
        slice(min(max(start, 0), size), max(min(stop, size), 0))
        for (start, stop), size in zip(seen, geometry.size, strict=True)
    )
    middle = tuple(
        slice(cells.start - start, cells.stop - start)
        for cells, (start, _) in zip(inside, seen, strict=True)
    )
    shape = tuple(stop - start for start, stop in seen)
    return _Band(
        lengths=lengths,
        shape=shape,
        inside=inside,
        middle=middle,
        padded=middle != whole(shape),
        dense=BAND_SHARE * math.prod(shape) <= geometry.taps * math.prod(lengths),
    )


def _padded(
    columns: Columns, scratch: Scratch, x: Array, dtype: np.dtype[Any], band: _Band
) -> Array:
    """Return ``x[g, c, n, *band]`` in ``dtype``, zero where that is padding."""
    cells: Array = x[last(band.inside)]
    if not band.padded and x.dtype == dtype:
        return cells
    padded = columns.like_image(scratch, "band", (*x.shape[:3], *band.shape), dtype)
    if band.padded:
        padded[...] = 0
    padded[last(band.middle)] = cells
    return padded


def _windows(geometry: ConvGeometry, band: Array, lengths: Shape) -> Array:
    """Return the view ``cols[g, c, *tap, n, *o]`` of ``band[g, c, n, *cells]``."""
    (G, C, N), (g, c, n, *steps) = band.shape[:3], band.strides
    taps = _strides(steps, geometry.dilation, geometry.kernel)
    outs = _strides(steps, geometry.stride, lengths)
    shape, strides = (G, C, *geometry.kernel, N, *lengths), (g, c, *taps, n, *outs)
    if band.flags.c_contiguous:  # NumPy checks that the view stays inside, and is the faster for it
        return np.ndarray(shape, band.dtype, band, strides=strides)
    windows: Array = as_strided(band, shape, strides, writeable=False)
    return windows


def _strides(steps: list[int], apart: Shape, lengths: Shape) -> list[int]:
    """Return the strides of axes whose entries are so many cells ``apart``.

    One entry is apart from none, and its stride or dilation may be larger than any array.
    """
    return [
        step * cells if length > 1 else 0
        for step, cells, length in zip(steps, apart, lengths, strict=True)
    ]
