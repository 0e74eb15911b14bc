r"""Channels before the last axis: a line of cells lies under the line of the next channel.

.. math:: y_{line}\,(F \times L) \mathrel{+}= W_t\,(F \times rC) \; x_{lines}\,(rC \times L), \quad
          dx_{lines} \mathrel{+}= W_t^T \, dout_{line}, \quad
          dW_t^T \mathrel{+}= x_{lines} \, dout_{line}^T

for each tap t of the last axis, where r taps of the axis before it, which meet neighbouring lines,
are one matrix: this makes products of few channels deep enough to pay. With a stride along the last
axis, the cells of x and dx lie in as many phases, so that those that a tap meets are neighbours.
Where lines are short, the images of a tile lie cell by cell.

x and dx are copied to lie so. The lines of y and dout are used where they are, if they are long;
only for dw, long lines of dout are copied with their channels innermost, since products with a
transposed right side are slow. y may be made with its filters innermost, as y_line^T (L, F), and
turned: OpenBLAS is fast where the longer side of what it makes is a multiple of 64, or of 16 at
least, as filters often are and lines are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT, sums_of
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.implicit.lines import (
    BLOCK,
    OUTPUTS,
    axes_outside,
    blocks,
    group_of,
    grouped,
    lines_at,
    load_outputs,
    output_numbers,
    room_for_outputs,
    room_for_rows,
    row_steps,
    steps,
    store_outputs,
    store_rows,
)
from im2col_conv.engine.implicit.moves import move_images
from im2col_conv.engine.implicit.pairs import leaders_first, pairs_of
from im2col_conv.engine.implicit.tile import KEPT, Shape, Tile, row_of
from im2col_conv.engine.implicit.weights import Arranged, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Bias, Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = ["ChannelsOuter"]


@dataclass(frozen=True)
class ChannelsOuter:
    """The arrangement for layers with few channels whose lines lie side by side.

    Attributes
    ----------
    interleaved : bool
        Whether the images of a tile lie cell by cell.
    by_rows : bool
        Whether y has a row for each output, until it is stored.
    stride : int
        Of the last axis.
    """

    tile_bytes: ClassVar[int] = 2**22
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = False
    joins_groups: ClassVar[bool] = True

    interleaved: bool
    by_rows: bool
    stride: int

    def chunk(self, channels: int) -> int:
        return channels

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        if name == "y" and self.by_rows:
            return output_numbers("dout.T", False, c, n, outs)
        if name in OUTPUTS:
            return output_numbers(name, self.interleaved, c, n, outs)
        return math.prod(self._order((c, n, *cells)))

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
        if name in OUTPUTS:
            return load_outputs(blas, scratch, name, self.interleaved, image, dtype)
        image = grouped(image, tile.groups)
        memory = scratch.array(name, self._order(image.shape), dtype)
        for part, view in self._phases(image, memory):
            if self.interleaved:
                move_images(blas, part, view)
            else:
                copy_lines(part, view)
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        if name == "y" and self.by_rows:
            return room_for_rows(scratch, name, image, dtype)
        if name in OUTPUTS:
            return room_for_outputs(scratch, name, self.interleaved, image, dtype)
        return scratch.array(name, self._order(grouped(image, tile.groups).shape), dtype)

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
        if name == "y" and self.by_rows:
            store_rows(blas, memory, image)
            return
        if name in OUTPUTS:
            store_outputs(blas, self.interleaved, memory, image)
            return
        image = grouped(image, tile.groups)
        if b is not None:
            memory += b.reshape(tile.groups, *[1] * (len(tile.axes) - 1), tile.C, 1)
        for part, view in self._phases(image, memory):
            if self.interleaved:
                move_images(blas, view, part)
            else:
                copy_lines(view, part)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, 1, taps of the last axis, F, other taps, C), by rows with F at the end."""
        g, F, C, *_, last = w.shape
        rows = w.reshape(g, 1, F, C, -1, last)
        order = (0, 1, 5, 4, 3, 2) if self.by_rows else (0, 1, 5, 2, 4, 3)
        return Whole(np.ascontiguousarray(rows.transpose(order), dtype))

    input_grad_weights = forward_weights  # by_rows is for y alone

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *outer, last = shape
        return (g, 1, last, math.prod(outer), C, F)

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        g, _, last, outer, C, F = sums.shape
        dw.reshape(g, F, C, outer, last)[...] = sums[:, 0].transpose(0, 4, 3, 2, 1)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        if self.by_rows:
            products = _forward_by_rows(tile, row_steps(y), b is not None)
            if not products.overwrites:
                y[...] = 0 if b is None else b
            blas.run(products, x, W, y, b)
            return
        products = _forward(tile, self.interleaved, steps(y), b is None)
        if b is not None:
            y[...] = b.reshape(-1, *[1] * (y.ndim - 1))
        elif not products.overwrites:
            y[...] = 0
        blas.run(products, W, x, y)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        dx[...] = 0
        blas.run(_input_grad(tile, self.interleaved, steps(dout)), W, dout, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        if self.interleaved:
            blas.run(_weight_grad_by_lines(tile, steps(dout)), x, dout, dw)
        else:
            blas.run(_weight_grad(tile, row_steps(dout)), x, dout, dw)

    def _order(self, shape: Shape) -> Shape:
        """Return the shape of the memory of x or dx: (phase, image, *outer, c, line)."""
        c, n, *outer, last = shape
        together = n if self.interleaved else 1
        row = row_of(_line(last, self.stride) * together)
        return (self.stride, n // together, *outer, c, row)

    def _phases(self, image: Array, memory: Array) -> Iterator[tuple[Array, Array]]:
        """Yield the cells of each phase and the view of its memory, both as [c, n, *cells]."""
        for phase, lines in enumerate(memory):
            part = image[..., phase :: self.stride]
            yield part, self._view(lines, part.shape)

    def _view(self, memory: Array, shape: Shape) -> Array:
        """Return the view [c, n, *cells] of the memory of one phase."""
        _, n, *_, last = shape
        together = n if self.interleaved else 1
        lines = memory[..., : last * together].reshape(*memory.shape[:-1], last, together)
        # (n // together, *outer, c, last, together)
        c = lines.ndim - 3
        n, rest = (c + 2, 0) if self.interleaved else (0, c + 2)
        view: Array = lines.transpose(c, n, *range(1, c), c + 1, rest)[..., 0]
        return view


def _line(cells: int, stride: int) -> int:
    """Return the cells of a line of one phase: those of the first, which has the most."""
    return -(-cells // stride)


class _Lines:
    """The lines of a tile as operands, to be broadcast as (blocks of F, pairs)."""

    def __init__(self, tile: Tile, interleaved: bool, *, fresh: bool = False) -> None:
        last = tile.axes[-1]
        self._tile = tile
        self._together = together = tile.images if interleaved else 1
        outside = axes_outside(tile, together)
        depth = tile.C * tile.axes[-2].kernel if len(tile.axes) > 1 else tile.C
        longest = SMALL_PRODUCT // (depth * min(tile.F, BLOCK) * together)
        axes = (*outside, *tile.axes)
        pairs = pairs_of(axes, max(longest, 1), run=tile.taps)
        led = leaders_first(axes, pairs, "outs") if fresh else None
        self._pairs, self.leads = led or (pairs, np.zeros(len(pairs.out), bool))
        pairs = self._pairs
        self.length = pairs.length * together
        self.depth = pairs.taps * tile.C
        self._outer = axes[:-1]
        self._lines_of_a_phase = math.prod(axis.cells for axis in self._outer)
        self._group = group_of(pairs.out, self._outer)
        self._outer_taps = tile.taps // last.kernel
        self._last_tap = self._group * last.kernel + pairs.last_tap

    def x(self) -> Operand:
        """Return the cells of each pair: a row for each tap and channel."""
        last = self._tile.axes[-1]
        row = row_of(_line(last.cells, last.stride) * self._together)
        place, phase = np.divmod(self._pairs.last_cell, last.stride)
        lines = phase * self._lines_of_a_phase + self._pairs.cell
        return Operand(lines * self._tile.C * row + place * self._together, row)

    def y(self, f: Array, apart: Shape) -> Operand:
        """Return the outputs of each pair: a row for each filter from ``f``."""
        lines = lines_at(self._pairs.out, self._outer, apart)
        first = lines + self.filters(f) * apart[0]
        return Operand(first + self._pairs.at * self._together, apart[0])

    def y_rows(self, f: Array, apart: Shape) -> Operand:
        """Return the outputs of each pair: a row for each of them, columns from ``f``."""
        lines = lines_at(self._pairs.out, self._outer, apart)
        return Operand(lines + self._pairs.at * apart[0] + self.filters(f), apart[0])

    def filters(self, f: Array) -> Array:
        """Return filter ``f`` of each pair's group, as counted through all groups."""
        return self._group * self._tile.F + f

    def weights(self, f: Array) -> Operand:
        """Return each pair's matrix in weights (g, last taps, F, other taps, C)."""
        row = self._outer_taps * self._tile.C
        first = (self._last_tap * self._tile.F + f) * row
        return Operand(first + self._pairs.tap * self._tile.C, row)

    def weight_columns(self, f: Array) -> Operand:
        """Return each pair's matrix in weights or their sums (g, last taps, other taps, C, F)."""
        F, C = self._tile.F, self._tile.C
        lines = (self._last_tap * self._outer_taps + self._pairs.tap) * C
        return Operand(lines * F + f, F)


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, interleaved: bool, apart: Shape, fresh: bool) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, fresh=fresh), blocks(tile.F, 2)
    # y line (F, L) += W (F, rC) @ x lines (rC, L)
    W, x, y = lines.weights(f), lines.x(), lines.y(f, apart)
    return Products(F, lines.length, lines.depth, W, x, y, fresh=lines.leads)


@lru_cache(maxsize=KEPT)
def _forward_by_rows(tile: Tile, apart: Shape, biased: bool) -> Products:
    lines, (f, F) = _Lines(tile, interleaved=False, fresh=True), blocks(tile.F, 2)
    L, K = lines.length, lines.depth
    # y rows (L, F) += x lines.T (L, rC) @ W_t.T (rC, F)
    x, W, y = lines.x(), lines.weight_columns(f), lines.y_rows(f, apart)
    b = Bias(lines.filters(f), by_rows=False) if biased else None
    return Products(L, F, K, x, W, y, transposed="a", fresh=lines.leads, bias=b)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, interleaved: bool, apart: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved), blocks(tile.F, 2)
    # dx lines (rC, L) += W.T (rC, F) @ dout line (F, L)
    W, dout = lines.weights(f), lines.y(f, apart)
    return Products(lines.depth, lines.length, F, W, dout, lines.x(), transposed="a")


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, apart: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved=False), blocks(tile.F, 2)
    # dW.T (rC, F) += x lines (rC, L) @ dout (L, F)
    x, dout, dW = lines.x(), lines.y_rows(f, apart), lines.weight_columns(f)
    return Products(lines.depth, F, lines.length, x, dout, dW)


@lru_cache(maxsize=KEPT)
def _weight_grad_by_lines(tile: Tile, apart: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved=True), blocks(tile.F, 2)
    # dW.T (rC, F) += x lines (rC, L) @ dout line.T (L, F)
    x, dout, dW = lines.x(), lines.y(f, apart), lines.weight_columns(f)
    return Products(lines.depth, F, lines.length, x, dout, dW, transposed="b")
