r"""Few channels: each tap of the last axis has a copy of the line, so that a window is one matrix.

.. math:: y_{line}\,(F \times L) = W\,(F \times K) \; x_{rows}\,(K \times L), \quad
          dx_{rows} \mathrel{+}= W^T \, dout_{line}, \quad
          dW^T \mathrel{+}= x_{rows} \, dout_{line}^T

Row (h, j, c) of a tile holds, of channel c, the cells that tap j of the last axis meets on line h
of the axis before it, output by output. The rows of neighbouring lines follow one another, so that
one product takes all taps of both axes: its depth K is their number times the channels. This is
MEC's lowering along one axis (Cho and Brand, 2017). Where lines are short, the images of a tile lie
cell by cell; then y and dout, if their channels are innermost in memory, stay where they are, and a
product takes one output of all images. dx is added up in such rows, and then tap by tap.

The lines of y and dout are used where they are, if they are long; only for dw, and with more than
one axis, long lines of dout are copied with their channels innermost, since short products with a
transposed right side are slow.
As in ``outer``, y may be made with its filters innermost, and turned.
Padding is stored, as zeros. Zero times infinity would be NaN: where dout is not finite, dw is made
tap by tap of the outputs that meet a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT, is_finite, sums_of
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.implicit.lines import (
    BLOCK,
    OUTPUTS,
    axes_outside,
    blocks,
    group_of,
    grouped,
    images_inner,
    lines_at,
    load_outputs,
    load_rows,
    output_numbers,
    room_for_outputs,
    room_for_rows,
    row_steps,
    steps,
    store_outputs,
    store_rows,
)
from im2col_conv.engine.implicit.moves import move_images
from im2col_conv.engine.implicit.pairs import Axis, meetings, pairs_of
from im2col_conv.engine.implicit.tile import (
    KEPT,
    Shape,
    Tile,
    row_of,
    sums_of_rows,
)
from im2col_conv.engine.implicit.weights import Arranged, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Bias, Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = ["Spread"]

FEW_IMAGES = 8  # for a loop of NumPy, so that one along a line takes less time


@dataclass(frozen=True)
class Spread:
    """The arrangement for layers with few channels.

    Attributes
    ----------
    interleaved : bool
        Whether the images of a tile lie cell by cell.
    kernel, stride, reach : int
        Taps of the last axis, its stride, and the cells from the first tap to the last.
    by_rows : bool
        Whether y and dout have a row for each output, as where channels are innermost in memory, or
        y until it is stored.
    """

    tile_bytes: ClassVar[int] = 2**22
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = False
    joins_groups: ClassVar[bool] = True

    interleaved: bool
    kernel: int
    stride: int
    reach: int
    by_rows: bool

    def chunk(self, channels: int) -> int:
        return channels

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        if name in OUTPUTS:
            if self.by_rows:
                return output_numbers("dout.T", False, c, n, outs)
            return output_numbers(_where_it_is(name, len(outs)), self.interleaved, c, n, outs)
        rows = math.prod(self._order(c, n, cells[:-1], outs[-1]))
        margins = 2 * n * self.reach * (c if self.by_rows else 1)
        return rows + c * n * math.prod(cells[:-1]) * (cells[-1] + self.stride) + margins

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
        if name in OUTPUTS and self.by_rows:
            return load_rows(blas, scratch, name, image, dtype)
        if name in OUTPUTS:
            name = _where_it_is(name, len(tile.axes))
            return load_outputs(blas, scratch, name, self.interleaved, image, dtype)
        image = grouped(image, tile.groups)
        memory = self._rows(scratch, name, tile, dtype)
        rows, axis = self._by_tap(memory, tile), tile.axes[-1]
        outs = _meeting(axis)
        if outs.start < outs.stop and image.size:
            windows = self._windows(blas, scratch, image, axis, outs, dtype)
            for turn, view in enumerate(windows):
                copy_lines(view, rows[turn :: len(windows), ..., outs])
        for tap, _, _, paddings in meetings(axis):
            for padding in paddings:
                rows[tap][..., padding] = 0
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        if name in OUTPUTS and self.by_rows:
            return room_for_rows(scratch, name, image, dtype)
        if name in OUTPUTS:
            return room_for_outputs(scratch, name, self.interleaved, image, dtype)
        return self._rows(scratch, name, tile, dtype)

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
        if name in OUTPUTS and self.by_rows:
            store_rows(blas, memory, image)
            return
        if name in OUTPUTS:
            store_outputs(blas, self.interleaved, memory, image)
            return
        target = image = grouped(image, tile.groups)
        if self.interleaved:
            numbers = scratch.array("images", (image.size,), memory.dtype)
            target = images_inner(numbers, image.shape, by_rows=self.by_rows)
        per_channel = None if b is None else b.reshape(-1, 1, *[1] * len(tile.axes))
        target[...] = 0 if per_channel is None else grouped(per_channel, tile.groups)
        rows = self._by_tap(memory, tile)
        for n in self._added_at_once(tile.images):
            for tap, outs, cells, _ in meetings(tile.axes[-1]):
                target[:, n, ..., cells] += rows[tap][:, n, ..., outs]
        if self.interleaved:
            move_images(blas, target, image)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of_rows(memory) if self.by_rows else sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, 1, F, other taps, taps of the last axis, C), by rows with F at the end."""
        g, F, C, *_, last = w.shape
        rows = w.reshape(g, 1, F, C, -1, last)
        order = (0, 1, 4, 5, 3, 2) if self.by_rows else (0, 1, 2, 4, 5, 3)
        return Whole(np.ascontiguousarray(rows.transpose(order), dtype))

    input_grad_weights = forward_weights

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *outer, last = shape
        return (g, 1, math.prod(outer), last, C, F)

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        g, _, outer, last, C, F = sums.shape
        dw.reshape(g, F, C, outer, last)[...] = sums[:, 0].transpose(0, 4, 3, 1, 2)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        if self.by_rows:
            products = _forward_by_rows(tile, self.interleaved, row_steps(y), b is not None)
        else:
            products = _forward(tile, self.interleaved, steps(y), b is not None)
        if not products.overwrites:
            filters_last = y if self.by_rows else y.transpose(*range(1, y.ndim), 0)
            filters_last[...] = 0 if b is None else b
        left, right = (x, W) if self.by_rows else (W, x)
        blas.run(products, left, right, y, b)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        dx[...] = 0
        if self.by_rows:
            products = _input_grad_by_rows(tile, self.interleaved, row_steps(dout))
        else:
            products = _input_grad(tile, self.interleaved, steps(dout))
        blas.run(products, W, dout, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        finite = is_finite(dout)
        if not self.by_rows and (self.interleaved or len(tile.axes) == 1):
            products = _weight_grad_by_lines(tile, self.interleaved, steps(dout), finite)
        else:
            products = _weight_grad(tile, self.interleaved, row_steps(dout), finite)
        blas.run(products, x, dout, dw)

    def _order(self, c: int, n: int, outer: Shape, outs: int) -> Shape:
        """Return the shape of the memory of x or dx: (image, *outer, tap, c, line)."""
        together = n if self.interleaved else 1
        return (n // together, *outer, self.kernel, c, row_of(outs * together))

    def _rows(self, scratch: Scratch, name: str, tile: Tile, dtype: np.dtype[Any]) -> Array:
        *outer, last = tile.axes
        cells = [axis.cells for axis in outer]
        lines = (tile.groups, *cells) if tile.groups > 1 else tuple(cells)
        return scratch.array(name, self._order(tile.C, tile.images, lines, last.outs), dtype)

    def _windows(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        image: Array,
        axis: Axis,
        outs: slice,
        dtype: np.dtype[Any],
    ) -> list[Array]:
        """Return views [tap, c, n, *outer, out] of the cells that outputs meet, of taps in turn.

        They are views of a copy in which the images lie cell by cell, or else cells that are a
        stride apart lie side by side. Where an output meets no cell, they show any number.
        """
        phases = 1 if self.interleaved else axis.stride
        line = -(-axis.cells // phases)
        step, turns = axis.stride // phases, phases // math.gcd(phases, axis.dilation)
        firsts = [
            divmod(outs.start * axis.stride + tap * axis.dilation + axis.lead, phases)
            for tap in range(axis.kernel)
        ]
        size = math.prod(image.shape[:-1]) * phases * line
        each = self._numbers_of_a_cell(image.shape)
        before = max(0, -firsts[0][0]) * each
        after = max(0, firsts[-1][0] + (outs.stop - outs.start - 1) * step + 1 - line) * each
        numbers = scratch.array("cells", (before + size + after,), dtype)
        copy = numbers[before : before + size]
        if self.interleaved:
            cells = images_inner(copy, image.shape, by_rows=self.by_rows)
            move_images(blas, image, cells)
        else:
            cells = _by_phase(copy, image, phases, line)
        *lines, item = cells.strides
        return [
            np.ndarray(
                (-(-(axis.kernel - turn) // turns), *image.shape[:-1], outs.stop - outs.start),
                dtype,
                numbers,
                (before + phase * (size // phases) + place * each) * dtype.itemsize,
                (turns * axis.dilation // phases * item, *lines, step * item),
            )
            for turn, (place, phase) in enumerate(firsts[:turns])
        ]

    def _numbers_of_a_cell(self, shape: Shape) -> int:
        """Return the numbers from one cell of a line to the next, in a copy of an image."""
        c, n, *_ = shape
        if not self.interleaved:
            return 1
        return c * n if self.by_rows else n

    def _added_at_once(self, images: int) -> Sequence[int | slice]:
        """Return the images of a tile that dx is added to at once, for NumPy's loops to be long.

        Its innermost loop goes over the images where they lie cell by cell, and no further where
        only cells that are a stride apart are added to.
        """
        scattered = self.interleaved and not self.by_rows and self.stride > 1
        return range(images) if scattered and images < FEW_IMAGES else (slice(None),)

    def _by_tap(self, memory: Array, tile: Tile) -> Array:
        """Return the view [tap, c, n, *outer, out] of the memory of x or dx."""
        together, outs = tile.images if self.interleaved else 1, tile.axes[-1].outs
        lines = memory[..., : outs * together]
        lines = lines.reshape(*lines.shape[:-1], outs, together)
        # (n // together, *outer, tap, c, outs, together)
        tap = lines.ndim - 4
        n, rest = (tap + 3, 0) if self.interleaved else (0, tap + 3)
        return lines.transpose(tap, tap + 1, n, *range(1, tap), tap + 2, rest)[..., 0]


def _where_it_is(name: str, axes: int) -> str:
    """Return the name of dout as it is for its transpose, if there is but one axis."""
    return "dout" if name == "dout.T" and axes == 1 else name


@lru_cache(maxsize=KEPT)
def _meeting(axis: Axis) -> slice:
    """Return the outputs from the first to the last that meet a cell."""
    met = [outs for _, outs, _, _ in meetings(axis) if outs.start < outs.stop]
    return slice(min((o.start for o in met), default=0), max((o.stop for o in met), default=0))


def _by_phase(copy: Array, image: Array, phases: int, line: int) -> Array:
    """Fill ``copy`` phase by phase, and return the view [c, n, *cells] of the first."""
    planes = copy.reshape(phases, *image.shape[:-1], line)
    for phase in range(phases):
        part = image[..., phase::phases]
        planes[phase, ..., : part.shape[-1]] = part
    first: Array = planes[0]
    return first


class _Lines:
    """The lines of a tile as operands, to be broadcast as (blocks of F, runs of taps, pieces).

    Where images are interleaved and results have rows, a piece is one output of all images.
    """

    def __init__(self, tile: Tile, interleaved: bool, by_rows: bool) -> None:
        *outer, last = tile.axes
        self._together = together = tile.images if interleaved else 1
        self._across = interleaved and by_rows
        self._tile, self._outer = tile, (*axes_outside(tile, together), *outer)
        self._window = last.kernel * tile.C  # rows of one line
        self._row = row_of(last.outs * together)
        taps = self._taps_of_a_run()
        runs = pairs_of((*self._outer, Axis(1, 1, 0, 1, 1, 1)), 1, run=taps)
        self._out, self._cell, self._tap = (n[:, None] for n in (runs.out, runs.cell, runs.tap))
        self._group = group_of(self._out, self._outer)
        self.depth = (runs.taps * self._window)[:, None]
        met, first = np.unique(runs.out, return_index=True)
        covered = len(met) == math.prod(axis.outs for axis in self._outer)
        self.leads = (np.isin(np.arange(len(runs.out)), first) & covered)[:, None]
        most = SMALL_PRODUCT // (int(self.depth.max(initial=1)) * min(tile.F, BLOCK))
        piece = together if self._across else max(most // BLOCK, 1) * BLOCK
        self._at = np.arange(0, last.outs * together, piece)
        self.length = np.minimum(last.outs * together - self._at, piece)

    def _taps_of_a_run(self) -> int:
        """Return how many taps of the axis before the last are one product of 64 outputs."""
        each = BLOCK * min(self._tile.F, BLOCK) * self._window
        taps, most = self._outer[-1].kernel, max(SMALL_PRODUCT // max(each, 1), 1)
        return -(-taps // -(-taps // most))

    def x(self) -> Operand:
        """Return the cells of each run: a row for each tap and channel."""
        return Operand(self._cell * self._window * self._row + self._at, self._row)

    def y(self, f: Array, apart: Shape) -> Operand:
        """Return the outputs of each run: a row for each filter from ``f``."""
        lines = lines_at(self._out, self._outer, apart)
        return Operand(lines + self.filters(f) * apart[0] + self._at, apart[0])

    def y_rows(self, f: Array, apart: Shape) -> Operand:
        """Return the outputs of each run: a row for each of them, columns from ``f``."""
        lines = lines_at(self._out, self._outer, apart) + self._at // self._together * apart[0]
        return Operand(lines + self.filters(f), apart[1] if self._across else apart[0])

    def filters(self, f: Array) -> Array:
        """Return filter ``f`` of each run's group, as counted through all groups."""
        return self._group * self._tile.F + f

    def weights(self, f: Array) -> Operand:
        """Return each run's matrix in weights (g, F, other taps, last taps, C)."""
        row = self._tile.taps * self._tile.C
        return Operand(self.filters(f) * row + self._tap * self._window, row)

    def weight_columns(self, f: Array) -> Operand:
        """Return each run's matrix in weights or their sums (g, other taps, last taps, C, F)."""
        F = self._tile.F
        row = self._group * self._tile.taps * self._tile.C + self._tap * self._window
        return Operand(row * F + f, F)


class _Taps:
    """The same, of single taps and the outputs at which they meet a cell."""

    def __init__(self, tile: Tile, interleaved: bool, by_rows: bool) -> None:
        *outer, last = tile.axes
        self._together = together = tile.images if interleaved else 1
        self._across = interleaved and by_rows
        self._tile, self._outer = tile, (*axes_outside(tile, together), *outer)
        self._row = row_of(last.outs * together)
        self._pairs = pairs = pairs_of(
            (*self._outer, last), 1 if self._across else max(last.outs, 1)
        )
        self._group = group_of(pairs.out, self._outer)
        self.depth, self.length = tile.C, pairs.length * together
        self._tap = pairs.tap * last.kernel + pairs.last_tap

    def x(self) -> Operand:
        pairs, last = self._pairs, self._tile.axes[-1]
        first = (pairs.cell * last.kernel + pairs.last_tap) * self._tile.C * self._row
        return Operand(first + pairs.at * self._together, self._row)

    def y(self, f: Array, apart: Shape) -> Operand:
        first = lines_at(self._pairs.out, self._outer, apart) + self._filters(f) * apart[0]
        return Operand(first + self._pairs.at * self._together, apart[0])

    def y_rows(self, f: Array, apart: Shape) -> Operand:
        lines = lines_at(self._pairs.out, self._outer, apart) + self._pairs.at * apart[0]
        return Operand(lines + self._filters(f), apart[1] if self._across else apart[0])

    def weight_columns(self, f: Array) -> Operand:
        F = self._tile.F
        return Operand((self._group * self._tile.taps + self._tap) * self._tile.C * F + f, F)

    def _filters(self, f: Array) -> Array:
        return self._group * self._tile.F + f


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, interleaved: bool, apart: Shape, biased: bool) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, by_rows=False), blocks(tile.F, 3)
    b = Bias(lines.filters(f), by_rows=True) if biased else None
    # y line (F, L) += W (F, K) @ x rows (K, L)
    W, x, y = lines.weights(f), lines.x(), lines.y(f, apart)
    return Products(F, lines.length, lines.depth, W, x, y, fresh=lines.leads, bias=b)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, interleaved: bool, apart: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, by_rows=False), blocks(tile.F, 3)
    # dx rows (K, L) += W.T (K, F) @ dout line (F, L)
    W, dout = lines.weights(f), lines.y(f, apart)
    return Products(lines.depth, lines.length, F, W, dout, lines.x(), transposed="a")


@lru_cache(maxsize=KEPT)
def _forward_by_rows(tile: Tile, interleaved: bool, apart: Shape, biased: bool) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, by_rows=True), blocks(tile.F, 3)
    L, K = lines.length, lines.depth
    # y rows (L, F) += x rows.T (L, K) @ W.T (K, F)
    x, W, y = lines.x(), lines.weight_columns(f), lines.y_rows(f, apart)
    b = Bias(lines.filters(f), by_rows=False) if biased else None
    return Products(L, F, K, x, W, y, transposed="a", fresh=lines.leads, bias=b)


@lru_cache(maxsize=KEPT)
def _input_grad_by_rows(tile: Tile, interleaved: bool, apart: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, by_rows=True), blocks(tile.F, 3)
    # dx rows (K, L) += W.T (K, F) @ dout rows.T (F, L)
    W, dout = lines.weight_columns(f), lines.y_rows(f, apart)
    return Products(lines.depth, lines.length, F, W, dout, lines.x(), transposed="b")


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, interleaved: bool, apart: Shape, finite: bool) -> Products:
    lines = (_Lines if finite else _Taps)(tile, interleaved, by_rows=True)
    f, F = blocks(tile.F, 3 if finite else 2)
    # dW.T (K, F) += x rows (K, L) @ dout (L, F)
    x, dout, dW = lines.x(), lines.y_rows(f, apart), lines.weight_columns(f)
    return Products(lines.depth, F, lines.length, x, dout, dW)


@lru_cache(maxsize=KEPT)
def _weight_grad_by_lines(tile: Tile, interleaved: bool, apart: Shape, finite: bool) -> Products:
    lines = (_Lines if finite else _Taps)(tile, interleaved, by_rows=False)
    f, F = blocks(tile.F, 3 if finite else 2)
    # dW.T (K, F) += x rows (K, L) @ dout line.T (L, F)
    x, dout, dW = lines.x(), lines.y(f, apart), lines.weight_columns(f)
    return Products(lines.depth, F, lines.length, x, dout, dW, transposed="b")
