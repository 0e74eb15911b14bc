"""Fill a tile's columns from the input: as a view, in one strided copy, or tap by tap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from im2col_conv.arrays import Array
from im2col_conv.engine.columns import Columns, Shape, as_matrix
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices, gather, last, whole

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
    lengths = tuple(o.stop - o.start for o in box)
    cols, matrix = columns.empty(scratch, dtype, x.shape[0], x.shape[1], (x.shape[2], *lengths))
    band = _band(geometry, box)
    cells = math.prod(part.stop - part.start for part in band)
    if BAND_SHARE * cells <= geometry.taps * math.prod(lengths):
        padded = _padded(columns, scratch, x, dtype, band)
        np.copyto(cols, _windows(geometry, padded, lengths))
    else:
        gather(geometry, x, cols, box, whole(geometry.size))
    return matrix


def column_bytes(columns: Columns, dtype: np.dtype[Any]) -> int:
    """Return what the column of one position takes, with its share of the largest band."""
    nbytes = columns.window * dtype.itemsize
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


def _band(geometry: ConvGeometry, box: Slices) -> Slices:
    """Return the cells from the first to the last that ``box`` sees, padding included."""
    return tuple(
        slice(o.start * s - before, (o.stop - 1) * s - before + reach)
        for o, s, reach, (before, _) in zip(
            box, geometry.stride, geometry.reach, geometry.padding, strict=True
        )
    )


def _padded(
    columns: Columns, scratch: Scratch, x: Array, dtype: np.dtype[Any], band: Slices
) -> Array:
    """Return ``x[g, c, n, *band]`` in ``dtype``, zero where that is padding."""
    inside = tuple(
        slice(min(max(part.start, 0), size), max(min(part.stop, size), 0))
        for part, size in zip(band, columns.geometry.size, strict=True)
    )
    if inside == band and x.dtype == dtype:
        view: Array = x[last(inside)]
        return view
    lengths = tuple(part.stop - part.start for part in band)
    padded = columns.like_image(scratch, "band", (*x.shape[:3], *lengths), dtype)
    if inside != band:
        padded[...] = 0
    middle = (
        slice(cells.start - part.start, cells.stop - part.start)
        for cells, part in zip(inside, band, strict=True)
    )
    padded[last(middle)] = x[last(inside)]
    return padded


def _windows(geometry: ConvGeometry, band: Array, lengths: Shape) -> Array:
    """Return the read-only view ``cols[g, c, *tap, n, *o]`` of ``band[g, c, n, *cells]``."""
    g, c, n, *steps = band.strides
    taps = _strides(steps, geometry.dilation, geometry.kernel)
    outs = _strides(steps, geometry.stride, lengths)
    shape = (*band.shape[:2], *geometry.kernel, band.shape[2], *lengths)
    windows: Array = as_strided(band, shape, (g, c, *taps, n, *outs), writeable=False)
    return windows


def _strides(steps: Sequence[int], apart: Shape, lengths: Shape) -> Iterator[int]:
    """Yield the strides of axes whose entries are so many cells ``apart``.

    One entry is apart from none, and its stride or dilation may be larger than any array.
    """
    for step, cells, length in zip(steps, apart, lengths, strict=True):
        yield step * cells if length > 1 else 0
