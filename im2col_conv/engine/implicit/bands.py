r"""Planes as they are, for depthwise layers: some output rows are a band matrix times input rows.

A channel sees itself alone, so its plane is the matrix. For each tap j of the last axis, the taps
of the axis before it stand in the diagonals of a band :math:`B_j`, and R rows of outputs are

.. math:: y_{rows}\,(R \times L) \mathrel{+}= B_j\,(R \times K) \; x_{rows}\,(K \times L), \quad
          dx_{rows} \mathrel{+}= B_j^T \, dout_{rows}, \quad
          dB_j \mathrel{+}= dout_{rows} \, x_{rows}^T,

where dw is the sums of the diagonals of dB. The zeros beside the diagonals are multiplied as well,
which is near three times the work for 3x3, and still far faster than anything without a GEMM. Where
all strides are 1, dx is a forward pass of dout with w flipped. Zero times infinity would be NaN:
where x or dout is not finite, each row and tap is a product of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT
from im2col_conv.engine.implicit.moves import move
from im2col_conv.engine.implicit.pairs import Axis, pairs_of
from im2col_conv.engine.implicit.tile import KEPT, Shape, Tile, is_finite, sums_of
from im2col_conv.engine.implicit.weights import Arranged, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room

__all__ = ["Bands", "is_depthwise"]

ROWS = 6  # outputs of one band


def is_depthwise(geometry: ConvGeometry) -> bool:
    """Say whether each channel is made from one plane of its own."""
    return geometry.C == geometry.F == geometry.groups > 1 and geometry.ndim > 1


@dataclass(frozen=True)
class Bands:
    """The arrangement for layers in which each channel sees itself alone.

    Attributes
    ----------
    strides : tuple of int
        Of all axes. Cells that are the last one apart lie side by side.
    dilation : int
        Of the axis before the last, along which a band runs.
    """

    tile_bytes: ClassVar[int] = 2**22
    flop_cost: ClassVar[int] = 8
    chunks_first: ClassVar[bool] = False

    strides: Shape
    dilation: int

    def chunk(self, channels: int) -> int:
        return 1

    def partners(self, channels: slice) -> slice:
        return channels

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        if name in ("x", "dx"):
            return math.prod(_order((c, n, *cells), self.strides[-1]))
        return n * c * math.prod(outs)

    def packing(self, shape: Shape) -> int:
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
        stride = self._stride(name)
        planes = _planes(image, stride, dtype)
        if planes is not None:
            return planes
        memory = scratch.array(name, _order(image.shape, stride), dtype)
        if stride == 1:
            move(blas, image, memory[0].swapaxes(0, 1))
            return memory
        for phase in range(len(memory)):
            part = image[..., phase::stride].swapaxes(0, 1)
            memory[phase, ..., : part.shape[-1]] = part
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        stride = self._stride(name)
        memory = _planes(image, stride, dtype)
        if memory is None:
            memory = scratch.array(name, _order(image.shape, stride), dtype)
        return memory

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
        if b is not None:
            memory += b.reshape(-1, *[1] * (memory.ndim - 3))
        stride = self._stride(name)
        if _planes(image, stride, memory.dtype) is not None:
            return
        if stride == 1:
            move(blas, memory[0].swapaxes(0, 1), image)
            return
        for phase in range(len(memory)):
            part = image[..., phase::stride].swapaxes(0, 1)
            part[...] = memory[phase, ..., : part.shape[-1]]

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return the bands: (1, C, outer taps, taps of the last axis, rows, K)."""
        return Whole(self._bands(w, dtype))

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return the bands of w flipped, or transposed: BLAS need not be told to transpose them."""
        if self._gathers_dx:
            return Whole(self._bands(np.flip(w, tuple(range(3, w.ndim))), dtype))
        return Whole(np.ascontiguousarray(self._bands(w, dtype).swapaxes(-1, -2)))

    def weight_sums(self, shape: Shape) -> Shape:
        _, channels, _, *outer, rows, last = shape
        return (1, channels, math.prod(outer), last, ROWS, self._depth(rows))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        rows, taps = self._diagonals(dw.shape[-2])
        planes = dw.reshape(len(dw), -1, *dw.shape[-2:])
        diagonals = sums.transpose(3, 4, 0, 1, 2)[rows, taps]
        planes.transpose(2, 0, 1, 3)[...] = diagonals.sum(axis=1)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        depth = self._depth(tile.axes[-2].kernel)
        for bands in (True, False):
            products = _forward(tile, depth, bands, b is None)
            if b is not None:
                y[...] = b.reshape(-1, *[1] * (y.ndim - 3))
            elif not products.overwrites:
                y[...] = 0
            blas.run(products, W, x, y)
            if is_finite(y):
                break

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        if self._gathers_dx:
            axes = tuple(axis.adjoint() for axis in tile.axes)
            self.forward(blas, tile._replace(axes=axes), dout, W, dx, None)
            return
        dx[...] = 0
        products = _input_grad(tile, self._depth(tile.axes[-2].kernel), is_finite(dout))
        blas.run(products, W, dout, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        blas.run(_weight_grad(tile, self._depth(tile.axes[-2].kernel)), dout, x, dw)

    @property
    def _gathers_dx(self) -> bool:
        """Whether dx is made as y is, of dout and w flipped: rows of dx are then set but once."""
        return set(self.strides) == {1}

    def _bands(self, w: Array, dtype: np.dtype[Any]) -> Array:
        bands = np.zeros(self.weight_sums(w.shape), dtype)
        rows, taps = self._diagonals(w.shape[-2])
        # (row, tap, 1, C, outer taps, last taps) from (C, outer taps, taps, last taps)
        planes = w.reshape(w.shape[1], -1, *w.shape[-2:])
        bands.transpose(4, 5, 0, 1, 2, 3)[rows, taps] = planes.transpose(2, 0, 1, 3)[:, None, None]
        return bands

    def _stride(self, name: str) -> int:
        return self.strides[-1] if name in ("x", "dx") else 1

    def _depth(self, kernel: int) -> int:
        """Return K, the input rows that ROWS outputs see."""
        return (ROWS - 1) * self.strides[-2] + (kernel - 1) * self.dilation + 1

    def _diagonals(self, kernel: int) -> tuple[Array, Array]:
        """Return where in a band each tap stands: (taps, rows) of row and column."""
        rows = np.arange(ROWS)
        columns = rows * self.strides[-2] + np.arange(kernel)[:, None] * self.dilation
        return np.broadcast_to(rows, columns.shape), columns


def _order(shape: Shape, stride: int) -> Shape:
    """Return the shape of an image's memory: (phase, n, c, *outer, row, line)."""
    c, n, *outer, last = shape
    return (min(stride, max(last, 1)), n, c, *outer, -(-last // stride))


def _planes(image: Array, stride: int, dtype: np.dtype[Any]) -> Array | None:
    """Return ``image[c, n, *cells]`` as memory, if it lies as such."""
    planes = image.swapaxes(0, 1)
    fits = stride == 1 and image.dtype == dtype and planes.flags.c_contiguous
    return planes[None] if fits else None


class _Rows:
    """Rows of outputs and of cells as operands, to be broadcast as (planes, outer, lines, rows).

    With ``bands``, ROWS outputs and all rows of cells that they see are one product; else one row
    and one tap are.
    """

    def __init__(self, tile: Tile, depth: int, *, bands: bool) -> None:
        *outer, middle, last = tile.axes
        single = Axis(1, 1, 0, 1, 1, 1)
        planes = np.arange(tile.images * tile.C).reshape(-1, 1, 1, 1)
        pairs = pairs_of((*outer, single), 1)
        rows = _bands(middle) if bands else _single_rows(middle)
        # A tap that meets all of the last axis comes first, if there is one.
        lines = sorted(last.lines(SMALL_PRODUCT), key=lambda line: line[3] < last.outs)
        first = bool(lines) and lines[0][3] == last.outs and bands and _covers(outer, middle, rows)
        self.leads = (np.arange(len(lines)) == (0 if first else -1))[:, None]
        out, cell, outer_tap = (n.reshape(1, -1, 1, 1) for n in (pairs.out, pairs.cell, pairs.tap))
        first_out, first_row, column, self.rows, self.depth = _columns(rows, 5, (1, 1, 1, -1))
        at, last_cell, tap, self.length = _columns(lines, 4, (1, 1, -1, 1))

        channel = planes % tile.C
        outer_taps = math.prod(axis.kernel for axis in outer)
        band = (channel * outer_taps + outer_tap) * last.kernel + tap
        self.band = Operand(band * ROWS * depth + column, depth)
        self.band_transposed = Operand(band * ROWS * depth + column * ROWS, ROWS)

        outer_outs = math.prod(axis.outs for axis in outer)
        out = ((planes * outer_outs + out) * middle.outs + first_out) * last.outs + at
        self.y = Operand(out, last.outs)

        outer_cells = math.prod(axis.cells for axis in outer)
        line = -(-last.cells // last.stride)
        phase = last_cell % last.stride * tile.images * tile.C
        row = ((phase + planes) * outer_cells + cell) * middle.cells + first_row
        self.x = Operand(row * line + last_cell // last.stride, line)


def _covers(outer: Sequence[Axis], middle: Axis, rows: Sequence[tuple[int, ...]]) -> bool:
    """Say whether each row of outputs is in one band, and meets one tap of every outer axis."""
    single = all(axis.kernel == 1 and len(axis.singles()) == axis.outs for axis in outer)
    return single and sum(outs for *_, outs, _ in rows) == middle.outs


def _bands(axis: Axis) -> list[tuple[int, ...]]:
    """Return (first output, first row of cells, its column, outputs, rows) of each band."""
    found: list[tuple[int, ...]] = []
    for first in range(0, axis.outs, ROWS):
        outs = min(ROWS, axis.outs - first)
        row = first * axis.stride + axis.lead
        end = row + (outs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1
        inside = max(row, 0), min(end, axis.cells)
        if inside[0] < inside[1]:
            found.append((first, inside[0], inside[0] - row, outs, inside[1] - inside[0]))
    return found


def _single_rows(axis: Axis) -> list[tuple[int, ...]]:
    """Return the same of each single row and tap: its numbers stand in the first row of a band."""
    return [(out, row, tap * axis.dilation, 1, 1) for out, row, tap, _ in axis.singles()]


def _columns(table: Sequence[tuple[int, ...]], width: int, shape: Shape) -> list[Array]:
    return [column.reshape(shape) for column in np.array(table, np.int64).reshape(-1, width).T]


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, depth: int, bands: bool, fresh: bool) -> Products:
    rows = _Rows(tile, depth, bands=bands)
    # y rows (R, L) += B (R, K) @ x rows (K, L)
    B, x, y = rows.band, rows.x, rows.y
    return Products(rows.rows, rows.length, rows.depth, B, x, y, fresh=rows.leads & fresh)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, depth: int, bands: bool) -> Products:
    rows = _Rows(tile, depth, bands=bands)
    # dx rows (K, L) += B.T (K, R) @ dout rows (R, L)
    return Products(rows.depth, rows.length, rows.rows, rows.band_transposed, rows.y, rows.x)


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, depth: int) -> Products:
    rows = _Rows(tile, depth, bands=True)
    # dB (R, K) += dout rows (R, L) @ x rows.T (L, K)
    return Products(rows.rows, rows.depth, rows.length, rows.y, rows.x, rows.band, transposed="b")
