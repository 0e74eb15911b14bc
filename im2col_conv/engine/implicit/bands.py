r"""Planes as they are, for depthwise layers: some output rows are a band matrix times input rows.

A channel sees itself alone, so its plane is the matrix. For each tap j of the last axis, the taps
of the axis before it stand in the diagonals of a band :math:`B_j`, and R rows of outputs are

.. math:: y_{rows}\,(R \times L) \mathrel{+}= B_j\,(R \times K) \; x_{rows}\,(K \times L), \quad
          dx_{rows} \mathrel{+}= B_j^T \, dout_{rows}, \quad
          dB_j \mathrel{+}= dout_{rows} \, x_{rows}^T,

where dw is the sums of the diagonals of dB. The zeros beside the diagonals are multiplied as well,
which is near three times the work for 3x3, and still far faster than anything without a GEMM. Where
lines are short, the images of a tile lie cell by cell, so that L counts the outputs of them all.
Where all strides are 1, dx is a forward pass of dout with w flipped. Zero times infinity would be
NaN: where x or dout is not finite, each row and tap is a product of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT, is_finite, sums_of
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.implicit.lines import images_inner
from im2col_conv.engine.implicit.moves import last_to, move, move_images
from im2col_conv.engine.implicit.pairs import Axis, pairs_of
from im2col_conv.engine.implicit.tile import KEPT, Shape, Tile
from im2col_conv.engine.implicit.weights import Arranged, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room

__all__ = ["Bands", "bands_for", "is_depthwise"]

# Measured: docs/ideas.md.
SHORT_LINE, SHORT_LINE_READ = 20, 30  # outputs, below which images lie cell by cell; for dw
MANY_IMAGES = 16  # that make large matrices of the channels of a cell, to be turned at once
# Outputs of a band; where a line has all images; where they see half of the plane or more; but for
# dw, where a kernel copies the operands of each product.
MOST_ROWS, MOST_ROWS_INTERLEAVED, MOST_ROWS_NEAR, MOST_ROWS_PACKED = 6, 8, 12, 4


def is_depthwise(geometry: ConvGeometry) -> bool:
    """Say whether each channel is made from one plane of its own."""
    return geometry.depthwise and geometry.ndim > 1


def bands_for(geometry: ConvGeometry, layout: str, *, for_dw: bool, packs: bool) -> Bands:
    """Return bands of nearly as many rows each, by whether the library's kernel ``packs``."""
    interleaved = geometry.out[-1] < (SHORT_LINE_READ if for_dw else SHORT_LINE)
    most, outs = MOST_ROWS_INTERLEAVED if interleaved else MOST_ROWS, geometry.out[-2]
    if not for_dw and geometry.stride[-2] == 1 and 2 * geometry.reach[-2] >= outs:
        most = MOST_ROWS_NEAR
    if packs and not for_dw:
        most = MOST_ROWS_PACKED
    return Bands(
        interleaved=interleaved,
        turned=layout == "channels_last" and geometry.N < MANY_IMAGES,
        rows=-(-outs // -(-outs // most)),
        strides=geometry.stride,
        dilation=geometry.dilation[-2],
    )


@dataclass(frozen=True)
class Bands:
    """The arrangement for layers in which each channel sees itself alone.

    Attributes
    ----------
    interleaved : bool
        Whether the images of a tile lie cell by cell.
    turned : bool
        Whether planes are turned first where channels come last in an image.
    rows : int
        R, the outputs of one band.
    strides : tuple of int
        Of all axes. Cells that are the last one apart lie side by side.
    dilation : int
        Of the axis before the last, along which a band runs.
    """

    tile_bytes: ClassVar[int] = 2**22
    cell_cost: ClassVar[int] = 30
    chunks_first: ClassVar[bool] = False
    joins_groups: ClassVar[bool] = False

    interleaved: bool
    turned: bool
    rows: int
    strides: Shape
    dilation: int

    def chunk(self, channels: int) -> int:
        return 1

    def partners(self, channels: slice) -> slice:
        return channels

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        stride = self._stride(name)
        positions = cells if name in ("x", "dx") else outs
        own = math.prod(self._order((c, n, *positions), stride))
        between = self.interleaved and (self.turned or stride > 1)
        return own + between * c * n * math.prod(positions)

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
        memory = self.room(scratch, name, image, tile, dtype)
        if not np.may_share_memory(memory, image):
            self._copy(blas, scratch, name, image, memory, back=False)
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        stride, planes = self._stride(name), image.swapaxes(0, 1)
        as_it_is = stride == 1 and (not self.interleaved or len(planes) == 1)
        if as_it_is and image.dtype == dtype and planes.flags.c_contiguous:
            return planes[None]
        return scratch.array(name, self._order(image.shape, stride), dtype)

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
        if not np.may_share_memory(memory, image):
            self._copy(blas, scratch, name, image, memory, back=True)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return the bands: (1, C, outer taps, taps of the last axis, rows, K)."""
        return Whole(self._bands(w, dtype, room))

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return the bands of w flipped, or transposed: BLAS need not be told to transpose them."""
        if self._gathers_dx:
            return Whole(self._bands(np.flip(w, tuple(range(3, w.ndim))), dtype, room))
        return Whole(self._bands(w, dtype, room, transposed=True))

    def weight_sums(self, shape: Shape) -> Shape:
        _, channels, _, *outer, taps, last = shape
        return (1, channels, math.prod(outer), last, self.rows, self.depth(taps))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        diagonals = self._diagonals(sums[0], dw.shape[-2])
        planes = dw.reshape(dw.shape[1], -1, *dw.shape[-2:])
        planes.swapaxes(-1, -2)[...] = diagonals.sum(axis=-2)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        for bands in (True, False):
            products = _forward(tile, self, bands, b is None)
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
        products = _input_grad(tile, self, is_finite(dout))
        blas.run(products, W, dout, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        blas.run(_weight_grad(tile, self), dout, x, dw)

    @property
    def _gathers_dx(self) -> bool:
        """Whether dx is made as y is, of dout and w flipped: rows of dx are then set but once."""
        return set(self.strides) == {1}

    def _bands(
        self, w: Array, dtype: np.dtype[Any], room: Room, *, transposed: bool = False
    ) -> Array:
        shape = self.weight_sums(w.shape)
        order = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
        bands = room("weights", order, dtype)
        bands[...] = 0
        planes = w.reshape(w.shape[1], -1, *w.shape[-2:])
        columns = np.ascontiguousarray(planes.swapaxes(-1, -2), dtype)
        diagonals = self._diagonals(bands[0], w.shape[-2], transposed=transposed)
        copy_lines(np.broadcast_to(columns[..., None, :], diagonals.shape), diagonals)
        return bands

    def _diagonals(self, bands: Array, taps: int, *, transposed: bool = False) -> Array:
        """Return the view (..., rows, taps) of where in a band (..., rows, K) the taps stand."""
        *others, row, column = bands.strides
        if transposed:
            row, column = column, row
        steps = (row + self.strides[-2] * column, self.dilation * column)
        shape = (*bands.shape[:-2], self.rows, taps)
        return np.ndarray(shape, bands.dtype, bands, strides=(*others, *steps))

    def _copy(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        memory: Array,
        *,
        back: bool,
    ) -> None:
        """Copy the cells of ``image[c, n, *cells]`` to their memory, or back."""
        steps = list(self._steps(scratch, image, memory, self._stride(name)))
        for copy, near, far in reversed(steps) if back else steps:
            copy(blas, *((far, near) if back else (near, far)))

    def _steps(
        self, scratch: Scratch, image: Array, memory: Array, stride: int
    ) -> Iterator[tuple[Callable[[OpenBlas, Array, Array], None], Array, Array]]:
        """Yield what copies from one array [c, n, *cells] to the next, from an image to its memory.

        Both ways between rows of channels and images that lie cell by cell lead over planes: each
        of two steps is a transposed copy of large matrices.
        """
        by_phase = stride > 1 and self.interleaved and not self.turned
        if by_phase:
            numbers = scratch.array("between", (image.size,), memory.dtype)
            cells = images_inner(numbers, image.shape, by_rows=False)
            yield move_images, image, cells
            image = cells
        for phase, lines in enumerate(memory):
            part = image[..., phase::stride]
            view = self._view(lines, image.shape)[..., : part.shape[-1]]
            if by_phase:
                yield _copy_lines, part, view
            elif self.interleaved and self.turned:
                c, n, *positions = part.shape
                planes = scratch.array("between", (n, c, *positions), memory.dtype).swapaxes(0, 1)
                yield move, part, planes
                yield move_images, planes, view
            else:
                yield move_images if self.interleaved else move, part, view

    def _view(self, memory: Array, shape: Shape) -> Array:
        """Return the view [c, n, *cells] of the memory of one phase."""
        if not self.interleaved:
            return memory.swapaxes(0, 1)
        c, n, *outer, _ = shape
        return last_to(1, memory.reshape(c, *outer, memory.shape[-1] // n, n))

    def _order(self, shape: Shape, stride: int) -> Shape:
        """Return the shape of an image's memory: (phase, n, c, *outer, row, line)."""
        c, n, *outer, last = shape
        together = n if self.interleaved else 1
        phases = min(stride, max(last, 1))
        return (phases, n // together, c, *outer, -(-last // stride) * together)

    def _stride(self, name: str) -> int:
        return self.strides[-1] if name in ("x", "dx") else 1

    def depth(self, kernel: int) -> int:
        """Return K, the input rows that the outputs of a band see."""
        return (self.rows - 1) * self.strides[-2] + (kernel - 1) * self.dilation + 1


def _copy_lines(blas: OpenBlas, source: Array, target: Array) -> None:
    copy_lines(source, target)


class _Rows:
    """Rows of outputs and of cells as operands, to be broadcast as (planes, outer, lines, rows).

    With ``bands``, R outputs and all rows of cells that they see are one product; else one row
    and one tap are.
    """

    def __init__(self, tile: Tile, lie: Bands, *, bands: bool) -> None:
        *outer, middle, last = tile.axes
        single = Axis(1, 1, 0, 1, 1, 1)
        together = tile.images if lie.interleaved else 1
        count = tile.images // together * tile.C
        planes = np.arange(count).reshape(-1, 1, 1, 1)
        pairs = pairs_of((*outer, single), 1)
        rows = _bands(middle, lie.rows) if bands else _single_rows(middle)
        depth = lie.depth(middle.kernel)
        longest = max(SMALL_PRODUCT // (lie.rows * depth * together), 1)
        # A tap that meets all of the last axis comes first, if there is one.
        lines = sorted(last.lines(longest), key=lambda line: line[3] < last.outs)
        first = bool(lines) and lines[0][3] == last.outs and bands and _covers(outer, middle, rows)
        self.leads = (np.arange(len(lines)) == (0 if first else -1))[:, None]
        out, cell, outer_tap = (n.reshape(1, -1, 1, 1) for n in (pairs.out, pairs.cell, pairs.tap))
        first_out, first_row, column, self.rows, self.depth = _columns(rows, 5, (1, 1, 1, -1))
        at, last_cell, tap, length = _columns(lines, 4, (1, 1, -1, 1))
        self.length = length * together

        channel = planes % tile.C
        outer_taps = math.prod(axis.kernel for axis in outer)
        band = (channel * outer_taps + outer_tap) * last.kernel + tap
        self.band = Operand(band * lie.rows * depth + column, depth)
        self.band_transposed = Operand(band * lie.rows * depth + column * lie.rows, lie.rows)

        outer_outs = math.prod(axis.outs for axis in outer)
        row = (planes * outer_outs + out) * middle.outs + first_out
        self.y = Operand((row * last.outs + at) * together, last.outs * together)

        outer_cells = math.prod(axis.cells for axis in outer)
        line = -(-last.cells // last.stride)
        phase = last_cell % last.stride * count
        row = ((phase + planes) * outer_cells + cell) * middle.cells + first_row
        self.x = Operand((row * line + last_cell // last.stride) * together, line * together)


def _covers(outer: Sequence[Axis], middle: Axis, rows: Sequence[tuple[int, ...]]) -> bool:
    """Say whether each row of outputs is in one band, and meets one tap of every outer axis."""
    single = all(axis.kernel == 1 and len(axis.singles()) == axis.outs for axis in outer)
    return single and sum(outs for *_, outs, _ in rows) == middle.outs


def _bands(axis: Axis, most: int) -> list[tuple[int, ...]]:
    """Return (first output, first row of cells, its column, outputs, rows) of each band."""
    found: list[tuple[int, ...]] = []
    for first in range(0, axis.outs, most):
        outs = min(most, axis.outs - first)
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
def _forward(tile: Tile, lie: Bands, bands: bool, fresh: bool) -> Products:
    rows = _Rows(tile, lie, bands=bands)
    # y rows (R, L) += B (R, K) @ x rows (K, L)
    B, x, y = rows.band, rows.x, rows.y
    return Products(rows.rows, rows.length, rows.depth, B, x, y, fresh=rows.leads & fresh)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, lie: Bands, bands: bool) -> Products:
    rows = _Rows(tile, lie, bands=bands)
    # dx rows (K, L) += B.T (K, R) @ dout rows (R, L)
    return Products(rows.depth, rows.length, rows.rows, rows.band_transposed, rows.y, rows.x)


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, lie: Bands) -> Products:
    rows = _Rows(tile, lie, bands=True)
    # dB (R, K) += dout rows (R, L) @ x rows.T (L, K)
    return Products(rows.rows, rows.depth, rows.length, rows.y, rows.x, rows.band, transposed="b")
