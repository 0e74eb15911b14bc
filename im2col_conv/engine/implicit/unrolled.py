r"""Many weights for few outputs: whole windows are columns, and W stays as it is.

.. math:: y\,(F \times L) = W\,(F \times K) \; cols\,(K \times L), \quad
          dcols = W^T \, dout, \quad
          dW \mathrel{+}= dout\,(F \times L) \; rows\,(L \times K), \; rows = cols^T

K runs over channels and taps, as in W, and L over all outputs of a tile. Other arrangements copy W
tap by tap. Where there are fewer outputs than filters, columns are fewer numbers than weights, and
sooner made than W is arranged. Padding is stored, as zeros. Zero times infinity would be NaN: where
dout is not finite, dw is made tap by tap of the outputs that meet a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import is_finite, sums_of
from im2col_conv.engine.copies import as_matrix, copy_lines, lies
from im2col_conv.engine.implicit.moves import move, move_matrix
from im2col_conv.engine.implicit.pairs import Axis
from im2col_conv.engine.implicit.tile import (
    KEPT,
    Shape,
    Tile,
    even_pieces,
    row_of,
)
from im2col_conv.engine.implicit.weights import Arranged, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Bias, Operand, Products
from im2col_conv.engine.tiling import EVEN
from im2col_conv.engine.workers import Scratch
from im2col_conv.lowering import last
from im2col_conv.prepared import Room

__all__ = ["Unrolled"]

BLOCK, DEPTH, LINE = 64, 96, 112  # rows of a result, terms and columns of one product


@dataclass(frozen=True)
class Unrolled:
    """The arrangement for layers with many weights and few outputs.

    Attributes
    ----------
    kernel, stride, reach : tuple of int
        Taps of each axis, its stride, and the cells from the first tap to the last.
    by_rows : bool
        Whether a window of x is a row, as dw reads it.
    """

    tile_bytes: ClassVar[int] = 2**23
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = True
    joins_groups: ClassVar[bool] = False

    kernel: Shape
    stride: Shape
    reach: Shape
    by_rows: bool

    def chunk(self, channels: int) -> int:
        return channels if channels % EVEN else channels // EVEN

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        L = n * math.prod(outs)
        if name not in ("x", "dx"):
            return c * row_of(L)
        seen = map(_seen, outs, self.stride, self.reach)
        K = c * math.prod(self.kernel)
        return K * row_of(L) + self.by_rows * L * row_of(K) + c * n * math.prod(seen)

    def unpacking(self, shape: Shape) -> int:
        return 0

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        tile: Tile,
        dtype: np.dtype[Any],
    ) -> Array:
        if name != "x":
            memory = self.room(scratch, name, image, tile, dtype)
            if not np.may_share_memory(memory, image):
                move(blas, image, memory.reshape(image.shape))
            return memory
        windows = _Windows(scratch, image.shape[:2], tile.axes, dtype)
        windows.fill(image)
        cols = self.room(scratch, name, image, tile, dtype)
        copy_lines(windows.view, cols.reshape(windows.view.shape))
        if not self.by_rows:
            return cols
        rows = scratch.array("rows", (cols.shape[1], row_of(len(cols))), dtype)[:, : len(cols)]
        move_matrix(blas, cols, rows.T)
        return rows

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        rows, L = len(image), tile.images * math.prod(axis.outs for axis in tile.axes)
        if name in ("x", "dx"):
            rows *= tile.taps
        elif (matrix := _in_place(image, dtype)) is not None:
            return matrix
        return scratch.array(name, (rows, row_of(L)), dtype)[:, :L]

    def store(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        memory: Array,
        image: Array,
        tile: Tile,
        b: Array | None,
    ) -> None:
        if name == "dx":
            windows = _Windows(scratch, image.shape[:2], tile.axes, memory.dtype)
            windows.add(memory)
            image[...] = 0 if b is None else b.reshape(-1, *[1] * (image.ndim - 1))
            windows.add_to(image)
        elif not np.may_share_memory(memory, image):
            move(blas, memory.reshape(image.shape), image)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, chunks of F, F of a chunk, K): w itself, if it is of the type."""
        return Whole(np.ascontiguousarray(w, dtype).reshape(self.weight_sums(w.shape)))

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, chunks of C, F, K of a chunk), likewise."""
        g, F, C = w.shape[:3]
        chunks = C // self.chunk(C)
        return Whole(np.ascontiguousarray(w, dtype).reshape(g, F, chunks, -1).swapaxes(1, 2))

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *kernel = shape
        chunk = self.chunk(F)
        return (g, F // chunk, chunk, C * math.prod(kernel))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        dw[...] = sums.reshape(dw.shape)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        blas.run(_forward(tile.F, x.shape, (_ld(x), _ld(y)), b is not None), W, x, y, b)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        ld = W.strides[2] // W.itemsize, _ld(dout), _ld(dx)
        blas.run(_input_grad(tile.F, dx.shape, ld), W, dout, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        if is_finite(dout):
            blas.run(_weight_grad(tile.F, x.shape, (_ld(dout), _ld(x))), dout, x, dw)
        else:
            _add_by_taps(tile, dout, x, dw)


class _Windows:
    """Cells from the first that a tile's windows see to the last, padding included.

    Attributes
    ----------
    view : ndarray
        (c, *tap, n, *out), of the same memory.
    """

    def __init__(
        self, scratch: Scratch, channels: Shape, axes: tuple[Axis, ...], dtype: np.dtype[Any]
    ) -> None:
        seen = [_seen(a.outs, a.stride, (a.kernel - 1) * a.dilation + 1) for a in axes]
        self._cells = cells = scratch.array("cells", (*channels, *seen), dtype)
        here = [_overlap(axis, many) for axis, many in zip(axes, seen, strict=True)]
        there = [slice(i.start + a.lead, i.stop + a.lead) for i, a in zip(here, axes, strict=True)]
        self._middle, self._of_image = last(tuple(here)), last(tuple(there))
        c, n, *steps = cells.strides
        taps = [step * axis.dilation for step, axis in zip(steps, axes, strict=True)]
        outs = [step * axis.stride for step, axis in zip(steps, axes, strict=True)]
        self._kernel = [axis.kernel for axis in axes]
        shape = (channels[0], *self._kernel, channels[1], *(axis.outs for axis in axes))
        self.view = np.ndarray(shape, dtype, cells, strides=(c, *taps, n, *outs))

    def fill(self, image: Array) -> None:
        """Take the cells from ``image[c, n, *cells]``."""
        self._cells[...] = 0
        copy_lines(image[self._of_image], self._cells[self._middle])

    def add(self, cols: Array) -> None:
        """Set each cell to the sum of what the columns (K, L) have for it."""
        self._cells[...] = 0
        each = cols.reshape(self.view.shape)
        for tap in np.ndindex(*self._kernel):
            self.view[:, *tap] += each[:, *tap]

    def add_to(self, image: Array) -> None:
        """Add the cells to those of ``image[c, n, *cells]``."""
        image[self._of_image] += self._cells[self._middle]


def _seen(outs: int, stride: int, reach: int) -> int:
    """Return the cells along an axis from the first that some outputs see to the last."""
    return max(outs - 1, 0) * stride + reach


def _overlap(axis: Axis, seen: int) -> slice:
    """Return which of the cells that are seen along an axis, from its first, an image has."""
    start = max(-axis.lead, 0)
    return slice(start, max(start, min(axis.cells - axis.lead, seen)))


def _in_place(image: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return ``image[c, n, *outs]`` as a matrix (c, L), if it can be multiplied where it lies."""
    matrix = as_matrix(image)
    if matrix is None or matrix.dtype != dtype or not image.flags.aligned:
        return None
    return matrix if lies(matrix) else None


def _ld(matrix: Array) -> int:
    ld: int = max(matrix.strides[0] // matrix.itemsize, matrix.shape[1])
    return ld


def _add_by_taps(tile: Tile, dout: Array, rows: Array, dw: Array) -> None:
    """Add to dw (1, chunks, f, K) what outputs have that meet a cell, which padding is not."""
    kernel, outs = zip(*((axis.kernel, axis.outs) for axis in tile.axes), strict=True)
    douts = dout.reshape(tile.F, tile.images, *outs)
    cells = rows.T.reshape(tile.C, *kernel, tile.images, *outs)
    sums = dw.reshape(tile.F, tile.C, *kernel)
    for met in product(*(axis.lines(max(axis.outs, 1)) for axis in tile.axes)):
        tap: Any = tuple(each[2] for each in met)
        inside = last([slice(out, out + length) for out, _, _, length in met])
        part = douts[inside].reshape(tile.F, -1)
        # dW_t (F, C) += dout (F, L') @ x_t.T (L', C)
        sums[:, :, *tap] += part @ cells[:, *tap][inside].reshape(tile.C, -1).T


@lru_cache(maxsize=KEPT)
def _forward(filters: int, shape: Shape, ld: tuple[int, int], biased: bool) -> Products:
    (f, F), (k, K), (at, L) = _pieces(filters, *shape)
    x, y = Operand(k * ld[0] + at, ld[0]), Operand(f * ld[1] + at, ld[1])
    b = Bias(f, by_rows=True) if biased else None
    # y (F, L) += W (F, K) @ cols (K, L)
    W = Operand(f * shape[0] + k, shape[0])
    return Products(F, L, K, W, x, y, fresh=k == 0, bias=b)


@lru_cache(maxsize=KEPT)
def _input_grad(filters: int, shape: Shape, ld: tuple[int, int, int]) -> Products:
    (k, K), (f, F), (at, L) = _pieces(shape[0], filters, shape[1])
    dout, dx = Operand(f * ld[1] + at, ld[1]), Operand(k * ld[2] + at, ld[2])
    # dcols (K, L) += W.T (K, F) @ dout (F, L)
    W = Operand(f * ld[0] + k, ld[0])
    return Products(K, L, F, W, dout, dx, transposed="a", fresh=f == 0)


@lru_cache(maxsize=KEPT)
def _weight_grad(filters: int, shape: Shape, ld: tuple[int, int]) -> Products:
    (f, F), (at, L), (k, K) = _pieces(filters, *shape)
    dout, x = Operand(f * ld[0] + at, ld[0]), Operand(at * ld[1] + k, ld[1])
    # dW (F, K) += dout (F, L) @ rows (L, K)
    return Products(F, K, L, dout, x, Operand(f * shape[1] + k, shape[1]))


def _pieces(rows: int, terms: int, columns: int) -> tuple[tuple[Array, Array], ...]:
    """Return first and how many of pieces of each side, to be broadcast as (terms, rows, columns).

    So what a term multiplies stays in the second cache for all rows of the result.
    """
    (m, M), (k, K) = even_pieces(rows, BLOCK), even_pieces(terms, DEPTH)
    return (
        (m[:, None], M[:, None]),
        (k[:, None, None], K[:, None, None]),
        even_pieces(columns, LINE),
    )
