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

from im2col_conv.arrays import Array, channels_first
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry

__all__ = [
    "Columns",
    "Shape",
    "as_matrices",
    "as_matrix",
    "columns_for",
    "cut_by_image",
    "pays_by_image",
    "tile_matrices",
]

Shape: TypeAlias = tuple[int, ...]

# Measured: docs/ideas.md.
LEAST_ROW = 20  # channels of a group, from which contiguous channels pay
SHALLOW = 200  # numbers of a window, above which products take far longer than copies
LEAST_IMAGE = 64  # positions that pay for a product of their own


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
        self,
        scratch: Scratch,
        dtype: np.dtype[Any],
        groups: int,
        channels: int,
        positions: Shape,
        *,
        ones: bool = False,
    ) -> tuple[Array, Array]:
        """Return an unfilled buffer as ``cols[g, c, *tap, n, *o]`` and as matrix (g, K, L).

        With ``ones``, the matrix of upright windows has one more row, of ones: what W has beside it
        is added to each product.
        """
        kernel = self.geometry.kernel
        K, L = channels * self.geometry.taps, math.prod(positions)
        if not self.rows:
            matrix = scratch.array("cols", (groups, K + ones, L), dtype)
            upright = matrix
            if ones:
                matrix[:, K] = 1
                upright = matrix[:, :K]
            return upright.reshape(groups, channels, *kernel, *positions, copy=False), matrix
        rows = scratch.array("cols", (groups, *positions, *kernel, channels), dtype)
        at = 1 + len(positions)
        taps = range(at, at + len(kernel))
        cols = rows.transpose(0, at + len(kernel), *taps, *range(1, at))
        return cols, rows.reshape(groups, L, K).swapaxes(1, 2)

    def like_image(self, scratch: Scratch, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return an unfilled array ``[g, c, n, *cells]`` in the memory order of the windows."""
        g, c, *rest = shape
        if not self.rows:
            return scratch.array(name, shape, dtype)
        return channels_first(scratch.array(name, (g, *rest, c), dtype), "channels_last")

    def weights(self, w: Array, dtype: np.dtype[Any]) -> Array:
        """Return ``w`` as W (g, Fg, K), in the order of the column matrix."""
        G, C = self.geometry.groups, self.geometry.C // self.geometry.groups
        if self.rows:
            matrix = self.packed(w.reshape(G, -1, C, *self.geometry.kernel))
        else:
            matrix = w.reshape(G, -1, self.window)
        return np.ascontiguousarray(matrix, dtype)

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
    """Return how the columns of images in ``layout`` lie in memory.

    Windows are rows where enough channels come last. But then weights of several taps are copied to
    lie so too: of fewer positions than filters, upright windows are sooner gathered.
    """
    wide = geometry.C // geometry.groups >= LEAST_ROW
    many = geometry.taps == 1 or geometry.N * geometry.positions >= geometry.F // geometry.groups
    return Columns(geometry, rows=layout == "channels_last" and wide and many)


def tile_matrices(
    scratch: Scratch, name: str, tile: Array, dtype: np.dtype[Any], *, by_image: bool
) -> Array:
    """Return ``tile[g, f, n, *o]`` as matrices (g, m, f, L) of ``dtype``: itself, or a copy."""
    view = as_matrices(tile, dtype, by_image=by_image)
    if view is not None:
        return view
    copy = scratch.array(name, tile.shape, dtype)
    copy[...] = tile
    return copy.reshape(tile.shape[0], 1, tile.shape[1], -1)


def as_matrices(tile: Array, dtype: np.dtype[Any], *, by_image: bool) -> Array | None:
    """Return a view (g, m, f, L) of ``tile[g, f, n, *o]`` that BLAS reads as it is, or None.

    It is one matrix of all images, or ``by_image`` one of each where that cannot be.
    """
    if tile.dtype != dtype:
        return None
    if tile.flags.c_contiguous:
        return tile.reshape(tile.shape[0], 1, tile.shape[1], math.prod(tile.shape[2:]))
    whole = as_matrix(tile)
    if whole is not None:
        return whole[:, None]
    if not by_image:
        return None
    g, f, n, *positions = tile.shape
    try:
        view = tile.swapaxes(1, 2).reshape(g, n, f, math.prod(positions), copy=False)
    except ValueError:
        return None
    return view if _is_matrix(view) else None


def as_matrix(tile: Array) -> Array | None:
    """Return a view (g, f, L) of ``tile[g, f, n, *o]`` that BLAS reads as it is, or None."""
    g, f, *positions = tile.shape
    shape = (g, f, math.prod(positions))
    if tile.flags.c_contiguous:
        return tile.reshape(shape)
    try:
        view = tile.reshape(shape, copy=False)
    except ValueError:
        return None
    return view if _is_matrix(view) else None


def _is_matrix(view: Array) -> bool:
    """Say whether BLAS reads the last two axes as they are."""
    (f, L), (f_step, L_step) = view.shape[-2:], view.strides[-2:]
    item = view.itemsize
    upright = L_step == item and f_step >= L * item and f_step % item == 0
    lying = f_step == item and L_step >= f * item and L_step % item == 0
    return upright or lying


def cut_by_image(cols: Array, images: int) -> Array:
    """Return a matrix (g, K, L) of columns as matrices (g, m, K, L / m), of one image each."""
    if images == 1:
        return cols[:, None]
    g, K, L = cols.shape
    return cols.reshape(g, K, images, L // images, copy=False).swapaxes(1, 2)


def pays_by_image(geometry: ConvGeometry, channels: int) -> bool:
    """Say whether each image of a tile should be a product of its own, if not all can be one.

    Else y and dout, in which images lie one after the other, are copied to lie side by side. Where
    windows of so many channels are shallow, that takes as long as the product.
    """
    several = geometry.F // geometry.groups > 1
    shallow = channels * geometry.taps <= SHALLOW
    return several and shallow and geometry.positions >= LEAST_IMAGE
