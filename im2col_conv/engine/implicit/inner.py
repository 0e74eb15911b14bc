r"""Channels innermost: a line of cells is a matrix with a row for each cell.

.. math:: y_{line}\,(L \times F) \mathrel{+}= x_{line}\,(L \times C) \; W_t\,(C \times F), \quad
          dx_{line} \mathrel{+}= dout_{line}\, W_t^T, \quad
          dW_t \mathrel{+}= x_{line}^T \, dout_{line}

for each tap t, blocks of 64 columns of W_t (or of its transpose) and pieces of up to 128 of its
rows, which lie one after the other. Results lie with their channels innermost, and so do the
filters of dout for dw. What the products read beside that may be the transpose, x_line^T (C, L), at
no cost: where lines are long and images lie channel by channel, rows of positions are copied as
they are, or by phases of the stride. Else channels are innermost there too: with stride 1, the
images of a tile lie cell by cell, so that short lines are as many times longer; with another, one
image follows the other. Images whose channels are innermost already are used where they are, if
lines are long.

Products that are the first to meet a line as a whole overwrite it, so that nothing need be cleared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT
from im2col_conv.engine.implicit.lines import room_for_rows, row_steps
from im2col_conv.engine.implicit.moves import (
    TURNED_BACK_AT_ONCE,
    move,
    turn,
    turning,
    unpack_taps,
)
from im2col_conv.engine.implicit.pairs import Axis, leaders_first, pairs_of, places_of
from im2col_conv.engine.implicit.tile import (
    KEPT,
    Shape,
    Tile,
    even_pieces,
    row_of,
    sums_of_rows,
)
from im2col_conv.engine.implicit.weights import Arranged, Blockwise, Whole
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Bias, Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = ["ChannelsInner"]

BLOCK = 64  # columns of the weights in one product
DEPTH = 128  # most rows of the weights in one product
TURNED_AT_ONCE = 2**17  # numbers of weights that one copy arranges
PACKED_AT_ONCE = 5 * 2**16  # of sums for weights, between those two


@dataclass(frozen=True)
class ChannelsInner:
    """The arrangement for layers with many channels.

    Attributes
    ----------
    interleaved : bool
        Whether the images of a tile lie cell by cell.
    planes : bool
        Whether x, and dout for dx, lie channel by channel: lines are read as they were given. Cells
        of x that are a stride apart then lie side by side, in as many phases as the stride.
    stride : int
        Of the last axis.
    """

    tile_bytes: ClassVar[int] = 5 * 2**18
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = True
    joins_groups: ClassVar[bool] = True

    interleaved: bool
    planes: bool
    stride: int

    def chunk(self, channels: int) -> int:
        return min(channels, BLOCK)

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        if self._as_planes(name):
            return n * c * row_of(_phases(cells, self.stride) if name == "x" else math.prod(outs))
        positions = math.prod(cells if name in ("x", "dx") else outs)
        return n * positions * row_of(c) + turning(c, positions)

    def unpacking(self, shape: Shape) -> int:
        _, _, *kernel = shape
        least = math.prod(kernel) * BLOCK  # a channel of one block
        return min(max(PACKED_AT_ONCE, least), math.prod(shape))

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        tile: Tile,
        dtype: np.dtype[Any],
    ) -> Array:
        if self._as_planes(name):
            return _as_planes(scratch, name, image, self.stride if name == "x" else 1, dtype)
        memory = self.room(scratch, name, image, tile, dtype)
        if not np.may_share_memory(memory, image):
            turn(blas, scratch, image, self._view(memory, image.shape))
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        if not self.interleaved:
            return room_for_rows(scratch, name, image, dtype)
        c, n, *cells = image.shape
        return scratch.array(name, (*cells, n, row_of(c)), dtype)[..., :c]

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
            memory += b
        if not np.may_share_memory(memory, image):
            move(blas, self._view(memory, image.shape), image)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of_rows(memory)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, blocks of F, taps, C, 64)."""
        g, F, C = w.shape[:3]
        weights = w.reshape(g, F, C, -1)
        W = room("weights", _packed_shape(g, C, F, weights.shape[-1]), dtype)
        if W.shape[1] == 1 and W.size < TURNED_AT_ONCE:
            W[:, 0] = weights.transpose(0, 3, 2, 1)
            return Whole(W)  # or workers would wait for who makes the block that all begin with

        def make(blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
            for part, packed in _parts(weights[group], W[group], block, TURNED_AT_ONCE):
                packed[...] = part.transpose(2, 1, 0)

        return Blockwise(W, make)

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, blocks of C, taps, F, 64)."""
        g, F, C = w.shape[:3]
        weights = w.reshape(g, F, C, -1)
        W = room("weights", _packed_shape(g, F, C, weights.shape[-1]), dtype)
        if W.shape[1] == 1 and W.size < TURNED_AT_ONCE:
            W[:, 0] = weights.transpose(0, 3, 1, 2)
            return Whole(W)

        def make(blas: OpenBlas, scratch: Scratch, group: int, block: int) -> None:
            first, many = _blocks(C)[block]
            part = weights[group, :, first : first + many]
            W[group, block, ..., :many] = part.transpose(2, 0, 1)

        return Blockwise(W, make)

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *kernel = shape
        return _packed_shape(g, C, F, math.prod(kernel))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        g, F, C = dw.shape[:3]
        weights = dw.reshape(g, F, C, -1)
        if sums.shape[1] == 1 and weights.size < TURNED_BACK_AT_ONCE:
            weights[...] = sums[:, 0, ..., :F].transpose(0, 3, 2, 1)
            return
        for group, block in np.ndindex(*sums.shape[:2]):
            for part, packed in _parts(weights[group], sums[group], block, PACKED_AT_ONCE):
                unpack_taps(blas, scratch, packed, part)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        lies = self._steps(x, "x"), self._steps(y, "y")
        products = _forward(tile, self, W.shape[-1], lies, b is not None)
        if not products.overwrites:
            y[...] = 0 if b is None else b
        blas.run(products, x, W, y, b)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        lies = self._steps(dx, "dx"), self._steps(dout, "dout")
        products = _input_grad(tile, self, W.shape[-1], lies)
        if not products.overwrites:
            dx[...] = 0
        blas.run(products, dout, W, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        lies = self._steps(x, "x"), self._steps(dout, "dout.T")
        blas.run(_weight_grad(tile, self, dw.shape[-1], lies), x, dout, dw)

    def _as_planes(self, name: str) -> bool:
        return self.planes and name in ("x", "dout")

    def _steps(self, memory: Array, name: str) -> Shape:
        """Return the numbers from row to row, and along each other axis; none of planes."""
        return () if self._as_planes(name) else row_steps(memory)

    def _view(self, memory: Array, shape: Shape) -> Array:
        """Return the view [c, n, *cells] of the memory of rows."""
        axes = len(shape) - 2
        places = (axes, *range(axes)) if self.interleaved else range(axes + 1)
        return memory.transpose(axes + 1, *places)


def _blocks(channels: int) -> list[tuple[int, int]]:
    """Return (first, how many) of each block of channels.

    Examples
    --------
    >>> _blocks(150)
    [(0, 64), (64, 64), (128, 22)]
    """
    return [(first, min(BLOCK, channels - first)) for first in range(0, channels, BLOCK)]


def _packed_shape(groups: int, rows: int, columns: int, taps: int) -> Shape:
    return (groups, len(_blocks(columns)), taps, rows, min(columns, BLOCK))


def _parts(
    weights: Array, packed: Array, block: int, numbers: int
) -> Iterator[tuple[Array, Array]]:
    """Yield parts of one block of filters of ``weights[f, c, tap]``, and of packed (tap, c, f)."""
    F, C, taps = weights.shape
    first, many = _blocks(F)[block]
    step = max(1, numbers // (taps * many))
    for c in range(0, C, step):
        yield weights[first : first + many, c : c + step], packed[block, :, c : c + step, :many]


Results: TypeAlias = Literal["outs", "cells"] | None


def _as_planes(
    scratch: Scratch, name: str, image: Array, stride: int, dtype: np.dtype[Any]
) -> Array:
    """Return memory (n, c, cells of each phase) with the numbers of ``image[c, n, *cells]``."""
    c, n, *outer, last = image.shape
    positions = _phases((*outer, last), stride)
    memory = scratch.array(name, (n, c, row_of(positions)), dtype)
    planes = memory[..., :positions].reshape(n, c, stride, *outer, -(-last // stride))
    for phase in range(stride):
        part = image[..., phase::stride]
        planes[:, :, phase, ..., : part.shape[-1]] = part.swapaxes(0, 1)
    return memory


def _phases(cells: Sequence[int], stride: int) -> int:
    """Return the numbers of a plane: lines of all phases are as long as the first's."""
    *outer, last = cells
    return math.prod(outer) * -(-last // stride) * stride


class _Lines:
    """The lines of a tile as operands, to be broadcast as (blocks, pairs, pieces).

    With ``results``, the pairs that may overwrite them come first.
    """

    def __init__(self, tile: Tile, lie: ChannelsInner, results: Results = None) -> None:
        self._interleaved = lie.interleaved
        together = tile.images if lie.interleaved else 1
        each_image = Axis(tile.images // together, tile.images // together, 0, 1, 1, 1)
        deepest = min(max(tile.C, tile.F), DEPTH) * min(tile.C, tile.F, BLOCK)
        longest = max(SMALL_PRODUCT // (deepest * together), 1)
        last = tile.axes[-1]
        axes = (each_image, *tile.axes)
        pairs = pairs_of(axes, longest)
        led = leaders_first(axes, pairs, results) if results else None
        pairs, leads = led or (pairs, np.zeros(len(pairs.out), bool))
        self.leads = leads[:, None]
        self._tile = tile
        self.length = (pairs.length * together)[:, None]
        self.tap = (pairs.tap * last.kernel + pairs.last_tap)[:, None]
        self._out = ((pairs.out * last.outs + pairs.at) * together)[:, None]
        self._cell = ((pairs.cell * last.cells + pairs.last_cell) * together)[:, None]

    def x(self, c: Array, steps: Shape) -> Operand:
        """Return the cells of each pair, from channel ``c`` of all; planes have no steps."""
        cells, stride = [axis.cells for axis in self._tile.axes], self._tile.axes[-1].stride
        if not steps:
            return self._planes(self._cell, cells, stride, self._tile.C, c)
        return Operand(self._rows(self._cell, cells, steps) + c, stride * steps[0])

    def y(self, f: Array, steps: Shape) -> Operand:
        """Return the outputs of each pair, from filter ``f`` of all, likewise."""
        outs = [axis.outs for axis in self._tile.axes]
        if not steps:
            return self._planes(self._out, outs, 1, self._tile.F, f)
        return Operand(self._rows(self._out, outs, steps) + f, steps[0])

    def weights(self, block: Array, row: Array, rows: int, width: int) -> Operand:
        """Return each pair's tap in weights packed as (blocks, taps, rows, width)."""
        return Operand(((block * self._tile.taps + self.tap) * rows + row) * width, width)

    def _rows(self, at: Array, positions: Sequence[int], steps: Shape) -> Array:
        """Return where the rows of each pair begin."""
        if self._interleaved:
            return at * steps[0]
        row, *others = steps
        images = self._tile.images
        *lines, place = places_of(at, (images, *positions))
        begin: Array = place * row
        for index, step in zip(lines, others, strict=True):
            begin = begin + index * step
        return begin

    def _planes(
        self, at: Array, positions: Sequence[int], stride: int, channels: int, first: Array
    ) -> Operand:
        *outer, last = positions
        lines, row = math.prod(outer), row_of(_phases(positions, stride))
        image, position = np.divmod(at, lines * last)
        line, place = np.divmod(position, last)
        in_phase = (place % stride * lines + line) * -(-last // stride) + place // stride
        return Operand((image * channels * self._tile.groups + first) * row + in_phase, row)


@lru_cache(maxsize=KEPT)
def _forward(
    tile: Tile, lie: ChannelsInner, width: int, steps: tuple[Shape, Shape], biased: bool
) -> Products:
    lines = _Lines(tile, lie, "outs")
    (f, F, f_block, g), (c, C) = _outer_blocks(tile.F, tile.groups), even_pieces(tile.C, DEPTH)
    # y line (L, F) += x line (L, C) @ W_t (C, F)
    W, transposed = lines.weights(f_block, c, tile.C, width), "a" * lie.planes
    x, y = lines.x(g * tile.C + c, steps[0]), lines.y(f, steps[1])
    over, b = lines.leads & (c == 0), Bias(f, by_rows=False) if biased else None
    return Products(lines.length, F, C, x, W, y, transposed=transposed, fresh=over, bias=b)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, lie: ChannelsInner, width: int, steps: tuple[Shape, Shape]) -> Products:
    lines = _Lines(tile, lie, "cells")
    (c, C, c_block, g), (f, F) = _outer_blocks(tile.C, tile.groups), even_pieces(tile.F, DEPTH)
    # dx line (L, C) += dout line (L, F) @ W_t.T (F, C)
    W, transposed = lines.weights(c_block, f, tile.F, width), "a" * lie.planes
    dx, dout = lines.x(c, steps[0]), lines.y(g * tile.F + f, steps[1])
    over = lines.leads & (f == 0)
    return Products(lines.length, C, F, dout, W, dx, transposed=transposed, fresh=over)


@lru_cache(maxsize=KEPT)
def _weight_grad(
    tile: Tile, lie: ChannelsInner, width: int, steps: tuple[Shape, Shape]
) -> Products:
    lines = _Lines(tile, lie)
    (f, F, f_block, g), (c, C) = _outer_blocks(tile.F, tile.groups), even_pieces(tile.C, DEPTH)
    # dW_t (C, F) += x line.T (C, L) @ dout line (L, F)
    dW, transposed = lines.weights(f_block, c, tile.C, width), "a" * (not lie.planes)
    x, dout = lines.x(g * tile.C + c, steps[0]), lines.y(f, steps[1])
    return Products(C, F, lines.length, x, dout, dW, transposed=transposed)


def _outer_blocks(channels: int, groups: int) -> tuple[Array, ...]:
    """Return first, how many, number and group of each block, along the first axis of three.

    They are counted through all groups, of so many ``channels`` each.
    """
    first, many = np.array(_blocks(channels)).reshape(-1, 2).T
    group = np.repeat(np.arange(groups), len(first))
    columns = (
        np.tile(first, groups) + group * channels,
        np.tile(many, groups),
        np.arange(len(group)),
        group,
    )
    return tuple(column[:, None, None] for column in columns)
