r"""Planes shifted tap by tap: what a tap of another axis meets of many lines is one long row.

.. math:: y\,(F \times L) \mathrel{+}= W_t\,(F \times kC) \; x_t\,(kC \times L), \quad
          dW_t^T \mathrel{+}= x_t \, dout^T

for each tap t of all axes but the last, whose k taps have a copy of x each, shifted so that cells
lie where they are met. In such a copy the next line of outputs meets the next line of cells, so L
runs over all lines of a plane: long products, for kernels that copy the operands of short ones too.
The copies are as many times smaller than columns as the other axes have taps. This is MEC's
lowering (Cho and Brand, 2017), of all lines at once. With a stride along the axis before the last,
lines lie in as many phases. Where channels come last, the transpose of either side.

dx, for strides of 1, is a forward pass of dout with w flipped. The lines of y and dout are used
where they are, if they follow one another. Padding along the last axis is stored, as zeros. Zero
times infinity would be NaN: where dout is not finite, dw is made tap by tap of the outputs that
meet a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import is_finite, sums_of
from im2col_conv.engine.copies import copy_lines, shadow
from im2col_conv.engine.implicit.moves import last_to, move_images, unpack_taps
from im2col_conv.engine.implicit.pairs import Axis, Pairs, meetings, pairs_of, places_of
from im2col_conv.engine.implicit.tile import KEPT, Shape, Tile, row_of, sums_of_rows
from im2col_conv.engine.implicit.weights import Arranged, Blockwise
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = ["Shifted"]

BLOCK = 128  # channels of a result that one task makes at least
SPREAD = ("x", "dout")  # what is copied tap by tap: x, and dout for dx; not dout.T for dw

_ONE = Axis(1, 1, 0, 1, 1, 1)


@dataclass(frozen=True)
class Shifted:
    """The arrangement for kernels that copy the operands of short products too.

    Attributes
    ----------
    by_rows : bool
        Whether an output is a row, as where channels are innermost in memory.
    kernel, stride : int
        Taps of the last axis; stride of the axis before it.
    """

    tile_bytes: ClassVar[int] = 2**22
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = False
    joins_groups: ClassVar[bool] = False

    by_rows: bool
    kernel: int
    stride: int

    def chunk(self, channels: int) -> int:
        return channels if channels % BLOCK else BLOCK

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        seen, made = (cells, outs) if name in ("x", "dx") else (outs, cells)
        if name not in SPREAD:
            return n * c * math.prod(seen)
        return math.prod(self._order(c, n, seen[:-1], made[-1]))

    def unpacking(self, shape: Shape) -> int:
        f, c, *kernel = shape
        return self.chunk(f) * c * math.prod(kernel)

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        tile: Tile,
        dtype: np.dtype[Any],
    ) -> Array:
        if name in SPREAD:
            return self._spread(scratch, name, image, _axes(tile, name), dtype)
        memory = self.room(scratch, name, image, tile, dtype)
        if not np.may_share_memory(memory, image):
            move_images(blas, image, memory.reshape(image.shape))
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        """Return memory as a view [c, n, *outer, position], of positions along the last two axes.

        It is the image itself, if it can be.
        """
        c, n, *outer, lines, line = image.shape
        shape = (c, n, *outer, lines * line)
        usable = image.dtype == dtype and image.flags.aligned
        if usable and _follow(image.shape, image.strides, dtype, self.by_rows):
            return image.reshape(shape, copy=False)
        if self.by_rows:
            return last_to(0, scratch.array(name, (*shape[1:], c), dtype))
        return scratch.array(name, (n, c, *shape[2:]), dtype).swapaxes(0, 1)

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
            memory += b.reshape(-1, *[1] * (memory.ndim - 1))
        if not np.may_share_memory(memory, image):
            move_images(blas, memory.reshape(image.shape), image)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of_rows(self._lying(memory)) if self.by_rows else sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, chunks, F of a chunk, other taps, taps of the last axis, C).

        By rows, a view (g, chunks, other taps, last taps, C, F of a chunk) of (g, taps, C, F).
        """
        g, F, C, *outer, last = w.shape
        chunk = self.chunk(F)
        chunks = w.reshape(g, F // chunk, chunk, C, math.prod(outer), last)
        if self.by_rows:
            W = room("weights", (g, math.prod(outer), last, C, F // chunk, chunk), dtype)
            W = W.transpose(0, 4, 1, 2, 3, 5)
            order = (2, 3, 1, 0)  # of (F, C, outer, last)
        else:
            W = room("weights", (g, F // chunk, chunk, math.prod(outer), last, C), dtype)
            order = (0, 2, 3, 1)

        def make(blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
            W[group, block] = chunks[group, block].transpose(order)

        return Blockwise(W, make)

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return those of the forward pass that makes dx: of w flipped, C and F exchanged."""
        flipped = np.flip(w, tuple(range(3, w.ndim))).swapaxes(1, 2)
        return self.forward_weights(flipped, dtype, room)

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *outer, last = shape
        return (g, F // self.chunk(F), math.prod(outer), last, C, self.chunk(F))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        _, chunks, outer, last, C, F = sums.shape
        parts = dw.reshape(chunks, F, C, outer * last)
        for part, packed in zip(parts, sums.reshape(chunks, outer * last, C, F), strict=True):
            unpack_taps(blas, scratch, packed, part)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        y[...] = 0 if b is None else b.reshape(-1, *[1] * (y.ndim - 1))
        row = W.strides[-2 if self.by_rows else 2] // W.itemsize
        products = _forward(tile, self, row, _steps(y, self.by_rows))
        left, right = (x, W) if self.by_rows else (W, x)
        blas.run(products, left, right, y)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        tile = tile._replace(axes=_axes(tile, "dout"), C=tile.F, F=tile.C)
        self.forward(blas, tile, dout, W, dx, None)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        steps, finite = _steps(dout, self.by_rows), is_finite(self._lying(dout))
        blas.run(_weight_grad(tile, self, dw.shape[-1], steps, finite), x, dout, dw)

    def _lying(self, memory: Array) -> Array:
        """Return ``memory[c, n, *outer, position]`` with its axes as they lie."""
        if self.by_rows:
            return memory.transpose(*range(1, memory.ndim), 0)
        return memory.swapaxes(0, 1)

    def _order(self, c: int, n: int, lines: Shape, outs: int) -> Shape:
        """Return the shape of what is copied tap by tap: (n, taps and c, row), or by rows."""
        positions = self._stored(lines) * outs
        if self.by_rows:
            return (n, positions, row_of(self.kernel * c))
        return (n, self.kernel * c, row_of(positions))

    def _stored(self, lines: Shape) -> int:
        """Return the lines of a copy: those of all phases are as many as the first's."""
        *outer, last = lines
        return math.prod(outer) * -(-last // self.stride) * self.stride

    def _spread(
        self,
        scratch: Scratch,
        name: str,
        image: Array,
        axes: tuple[Axis, ...],
        dtype: np.dtype[Any],
    ) -> Array:
        """Return memory with the cells of ``image`` that each tap of the last axis meets."""
        c, n, *lines, _ = image.shape
        memory = scratch.array(name, self._order(c, n, tuple(lines), axes[-1].outs), dtype)
        copies = self._by_tap(memory, c, tuple(lines), axes[-1].outs)
        for phase in range(self.stride):
            part = image[..., phase :: self.stride, :]
            for copy, (_, outs, cells, paddings) in zip(copies, meetings(axes[-1]), strict=True):
                target = copy[..., phase, : part.shape[-2], :]
                copy_lines(part[..., cells], target[..., outs])
                for padding in paddings:
                    target[..., padding] = 0
        return memory

    def _by_tap(self, memory: Array, c: int, lines: Shape, outs: int) -> Array:
        """Return the view [tap, c, n, *outer, phase, line, out] of such memory."""
        n, taps = len(memory), self.kernel
        *outer, last = lines
        positions = (*outer, self.stride, -(-last // self.stride), outs)
        if self.by_rows:
            cells = memory[..., : taps * c].reshape(n, *positions, taps, c)
            return cells.transpose(cells.ndim - 2, cells.ndim - 1, *range(cells.ndim - 2))
        cells = memory[..., : math.prod(positions)].reshape(n, taps, c, *positions)
        return cells.transpose(1, 2, 0, *range(3, cells.ndim))


def _axes(tile: Tile, name: str) -> tuple[Axis, ...]:
    """Return the axes along which outputs meet x; or for dx, its cells the outputs of dout."""
    return tile.axes if name == "x" else tuple(axis.adjoint() for axis in tile.axes)


@lru_cache(maxsize=1024)
def _follow(shape: Shape, strides: Shape, dtype: np.dtype[Any], by_rows: bool) -> bool:
    """Say whether lines of ``image[c, n, *outer, line, place]`` follow each other in matrices."""
    c, n, *outer, lines, line = shape
    image = shadow(shape, strides, dtype)
    try:
        steps = image.reshape(c, n, *outer, lines * line, copy=False).strides
    except ValueError:
        return False
    others, (step, inner) = steps[1:-1], (steps[-1], steps[0]) if by_rows else (steps[0], steps[-1])
    rows, row = (lines * line, c) if by_rows else (c, lines * line)
    item = dtype.itemsize
    return (
        (row == 1 or inner == item)
        and (rows == 1 or (step >= row * item and step % item == 0))
        and all(
            size == 1 or (each >= 0 and each % item == 0)
            for size, each in zip((n, *outer), others, strict=True)
        )
    )


def _steps(memory: Array, by_rows: bool) -> Shape:
    """Return the numbers from row to row of memory [c, n, *outer, position], and along others."""
    row, length = (-1, memory.shape[0]) if by_rows else (0, memory.shape[-1])
    steps = [step // memory.itemsize for step in memory.strides]
    return (max(steps[row], length), *steps[1:-1])


class _Runs:
    """Runs of lines as operands, to be broadcast as (chunks, lines of outer axes, runs).

    A run is some lines of outputs and those of cells that a tap of the axis before the last meets,
    of all taps of the last axis. With ``by_tap``, it is of one: the outputs of a line that meet a
    cell there.
    """

    def __init__(self, tile: Tile, lie: Shifted, *, by_tap: bool = False) -> None:
        *self._outer, self._middle, self._last = tile.axes
        self._tile, self._lie = tile, lie
        images = Axis(tile.images, tile.images, 0, 1, 1, 1)
        pairs = pairs_of((images, *self._outer, _ONE), 1)
        self._out, self._cell, tap = (n[:, None] for n in (pairs.out, pairs.cell, pairs.tap))
        lines = (self._middle, self._last)
        self._runs = runs = pairs_of(lines, max(self._last.outs, 1)) if by_tap else _runs(*lines)
        self._tap = (tap * self._middle.kernel + runs.tap) * self._last.kernel + runs.last_tap
        self.length = runs.length
        self.depth = tile.C if by_tap else tile.C * self._last.kernel

    def x(self) -> Operand:
        """Return the cells of each run: a row for each tap of the last axis and channel."""
        stride, outs = self._middle.stride, self._last.outs
        in_phase = -(-self._middle.cells // stride)
        outer = math.prod(axis.cells for axis in self._outer)
        image, place = np.divmod(self._cell, max(outer, 1))
        line = (place * stride + self._runs.cell % stride) * in_phase + self._runs.cell // stride
        position, first = line * outs + self._runs.at, self._runs.last_tap * self._tile.C
        positions, rows = outer * stride * in_phase * outs, self._last.kernel * self._tile.C
        if self._lie.by_rows:
            row = row_of(rows)
            return Operand((image * positions + position) * row + first, row)
        row = row_of(positions)
        return Operand((image * rows + first) * row + position, row)

    def y(self, f: Array | int, steps: Shape) -> Operand:
        """Return the outputs of each run, of filters from ``f``."""
        row, *others = steps
        sizes = [self._tile.images, *(axis.outs for axis in self._outer)]
        places = zip(places_of(self._out, sizes), others, strict=True)
        begin = sum((index * step for index, step in places), np.zeros_like(self._out))
        position = self._runs.out * self._last.outs + self._runs.at
        if self._lie.by_rows:
            return Operand(begin + position * row + f, row)
        return Operand(begin + position + f * row, row)

    def weights(self, ld: int) -> Operand:
        """Return each run's matrix in weights (F, taps, C), or by rows (taps, C, F)."""
        first = self._tap * self._tile.C
        return Operand(first * ld if self._lie.by_rows else first, ld)

    def weight_sums(self, chunk: Array, width: int) -> Operand:
        """Return each run's matrix in sums (chunks, taps, C, F of a chunk)."""
        rows = chunk * self._tile.taps * self._tile.C + self._tap * self._tile.C
        return Operand(rows * width, width)


def _runs(middle: Axis, last: Axis) -> Pairs:
    """Return each run of lines as if it were one line, of the first tap of the last axis."""
    lines = np.array(middle.lines(max(middle.outs, 1)), np.int64).reshape(-1, 4).T
    out, cell, tap, many = lines
    none = np.zeros_like(out)
    return Pairs(
        out=out,
        cell=cell,
        tap=tap,
        taps=none + 1,
        at=none,
        last_cell=none,
        last_tap=none,
        length=many * last.outs,
    )


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, lie: Shifted, ld: int, steps: Shape) -> Products:
    runs = _Runs(tile, lie)
    F, L, K = tile.F, runs.length, runs.depth
    x, W, y = runs.x(), runs.weights(ld), runs.y(0, steps)
    if lie.by_rows:
        # y (L, F) += x_t (L, kC) @ W_t.T (kC, F)
        return Products(L, F, K, x, W, y)
    # y (F, L) += W_t (F, kC) @ x_t (kC, L)
    return Products(F, L, K, W, x, y)


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, lie: Shifted, width: int, steps: Shape, finite: bool) -> Products:
    runs = _Runs(tile, lie, by_tap=not finite)
    chunk = np.arange(tile.F // width).reshape(-1, 1, 1)
    x, dout, dW = runs.x(), runs.y(chunk * width, steps), runs.weight_sums(chunk, width)
    # dW_t.T (kC, F) += x_t (kC, L) @ dout.T (L, F); by rows, both are stored transposed
    transposed = "a" if lie.by_rows else "b"
    return Products(runs.depth, width, runs.length, x, dout, dW, transposed=transposed)
