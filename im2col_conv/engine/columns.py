"""How the arrays of a pass are cut in groups and tiles, and how a tile's columns lie in memory.

The columns of a tile are always spoken of as ``cols[g, c, *tap, n, *o]``, and always multiplied as
a matrix (g, K, L), K running over a window and L over the tile's positions. In memory a window may
stand upright, K = (c, *tap) rows of L numbers, which suits channels-first images, whose rows are
contiguous; or lie as a row, L rows of K = (*tap, c) numbers, which suits channels-last images,
whose channels are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from im2col_conv.arrays import Array
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices, gather, last, whole

__all__ = ["Columns", "as_matrix", "by_group", "columns_for", "tile_matrix"]

Shape: TypeAlias = tuple[int, ...]

BAND_SHARE = 2  # a padded copy of the input's cells pays where it is at most half the columns
LEAST_ROW = 8  # channels of a group, from which contiguous channels pay


@dataclass(frozen=True)
class Columns:
    """The column matrix of a geometry, with windows as ``rows`` or as columns in memory."""

    geometry: ConvGeometry
    rows: bool

    @property
    def window(self) -> int:
        """K, the numbers in a group's window."""
        return self.geometry.gemm.K

    def empty(
        self, scratch: Scratch, dtype: np.dtype[Any], groups: int, channels: int, positions: Shape
    ) -> tuple[Array, Array]:
        """Return an unfilled buffer as ``cols[g, c, *tap, n, *o]`` and as matrix (g, K, L)."""
        kernel = self.geometry.kernel
        K, L = channels * self.geometry.taps, math.prod(positions)
        if not self.rows:
            cols = scratch.array("cols", (groups, channels, *kernel, *positions), dtype)
            return cols, cols.reshape(groups, K, L)
        rows = scratch.array("cols", (groups, *positions, *kernel, channels), dtype)
        at = 1 + len(positions)
        taps = range(at, at + len(kernel))
        cols = rows.transpose(0, at + len(kernel), *taps, *range(1, at))
        return cols, rows.reshape(groups, L, K).swapaxes(1, 2)

    def gather(
        self, scratch: Scratch, x: Array, dtype: np.dtype[Any], images: slice, box: Slices
    ) -> Array:
        """Return the column matrix (g, K, L) of ``x[g, c, n, *size]`` for one tile.

        It may be a view of ``x``, where that is the column matrix already.
        """
        if self.geometry.taps == 1 and x.dtype == dtype:
            view = self._pointwise(x[:, :, images], box)
            if view is not None:
                return view
        x = x[:, :, images]
        lengths = tuple(o.stop - o.start for o in box)
        cols, matrix = self.empty(scratch, dtype, x.shape[0], x.shape[1], (x.shape[2], *lengths))
        band = self._band(box)
        cells = math.prod(part.stop - part.start for part in band)
        if BAND_SHARE * cells <= self.geometry.taps * math.prod(lengths):
            np.copyto(cols, self._windows(self._padded(scratch, x, dtype, band), lengths))
        else:
            gather(self.geometry, x, cols, box, whole(self.geometry.size))
        return matrix

    def _band(self, box: Slices) -> Slices:
        """Return the cells between the first and the last that ``box`` sees, padding included."""
        return tuple(
            slice(o.start * s - before, (o.stop - 1) * s - before + reach)
            for o, s, reach, (before, _) in zip(
                box,
                self.geometry.stride,
                self.geometry.reach,
                self.geometry.padding,
                strict=True,
            )
        )

    def _padded(self, scratch: Scratch, x: Array, dtype: np.dtype[Any], band: Slices) -> Array:
        """Return the band ``x[g, c, n, *band]`` with its padding: a view where it has none."""
        inside = tuple(
            slice(min(max(part.start, 0), size), max(min(part.stop, size), 0))
            for part, size in zip(band, self.geometry.size, strict=True)
        )
        if inside == band and x.dtype == dtype:
            return x[last(band)]
        g, c, *rest = *x.shape[:3], *(part.stop - part.start for part in band)
        if self.rows:
            padded = np.moveaxis(scratch.array("band", (g, *rest, c), dtype), -1, 1)
        else:
            padded = scratch.array("band", (g, c, *rest), dtype)
        if inside != band:
            padded[...] = 0
        middle = (
            slice(cells.start - part.start, cells.stop - part.start)
            for cells, part in zip(inside, band, strict=True)
        )
        padded[last(middle)] = x[last(inside)]
        return padded

    def _windows(self, band: Array, lengths: Shape) -> Array:
        """Return the read-only view ``cols[g, c, *tap, n, *o]`` of ``band[g, c, n, *cells]``."""
        shape = (*band.shape[:2], *self.geometry.kernel, band.shape[2], *lengths)
        g, c, n, *steps = band.strides
        taps = (step * d for step, d in zip(steps, self.geometry.dilation, strict=True))
        outs = (step * s for step, s in zip(steps, self.geometry.stride, strict=True))
        return as_strided(band, shape, (g, c, *taps, n, *outs), writeable=False)

    def _pointwise(self, x: Array, box: Slices) -> Array | None:
        """Return the cells under a kernel of one tap as a matrix, if none of them is padding."""
        if any(before or after for before, after in self.geometry.padding):
            return None
        cells = (
            slice(o.start * s, (o.stop - 1) * s + 1, s)
            for o, s in zip(box, self.geometry.stride, strict=True)
        )
        return as_matrix(x[last(cells)])

    def weights(self, w: Array, dtype: np.dtype[Any]) -> Array:
        """Return ``w`` as W (g, Fg, K), in the order of the column matrix."""
        G, C = self.geometry.groups, self.geometry.C // self.geometry.groups
        grouped = w.reshape(G, -1, C, *self.geometry.kernel)
        return np.ascontiguousarray(self.packed(grouped), dtype)

    def packed(self, weights: Array) -> Array:
        """Return ``weights[g, f, c, *tap]`` as a matrix (g, f, K), a view where that can be."""
        if self.rows:
            weights = np.moveaxis(weights, 2, -1)
        return weights.reshape(*weights.shape[:2], -1)

    def unpacked(self, weights: Array) -> Array:
        """Return a view (g, Fg, c, *tap) of a matrix (g, Fg, K): :meth:`packed` undone."""
        kernel = self.geometry.kernel
        G, F, K = weights.shape
        if self.rows:
            return np.moveaxis(weights.reshape(G, F, *kernel, -1), -1, 2)
        return weights.reshape(G, F, K // self.geometry.taps, *kernel)


def columns_for(geometry: ConvGeometry, layout: str) -> Columns:
    """Return how the columns of images in ``layout`` lie in memory."""
    wide = geometry.C // geometry.groups >= LEAST_ROW
    return Columns(geometry, rows=layout == "channels_last" and wide)


def by_group(array: Array, groups: int) -> Array:
    """Return a view [g, c, n, *o] of an array (N, C, *o), its channels cut in groups."""
    N, C = array.shape[:2]
    grouped = array.reshape(N, groups, C // groups, *array.shape[2:])
    return np.moveaxis(grouped, 0, 2)


def tile_matrix(scratch: Scratch, name: str, tile: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``tile[g, f, n, *o]`` as a matrix (g, f, L) of ``dtype``: itself, or a copy."""
    view = as_matrix(tile) if tile.dtype == dtype else None
    if view is not None:
        return view
    copy = scratch.array(name, tile.shape, dtype)
    copy[...] = tile
    return copy.reshape(*tile.shape[:2], -1)


def as_matrix(tile: Array) -> Array | None:
    """Return a view (g, f, L) of ``tile[g, f, n, *o]`` that BLAS reads as it is, or None."""
    try:
        view = np.reshape(tile, (*tile.shape[:2], math.prod(tile.shape[2:])), copy=False)
    except ValueError:
        return None
    if not view.flags.aligned or not view.dtype.isnative:
        return None
    (f, L), (f_step, L_step) = view.shape[1:], view.strides[1:]
    item = view.itemsize
    upright = L_step == item and f_step >= L * item and f_step % item == 0
    lying = f_step == item and L_step >= f * item and L_step % item == 0
    return view if upright or lying else None
