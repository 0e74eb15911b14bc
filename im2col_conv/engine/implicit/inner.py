r"""Channels innermost: a line of cells is a matrix with a row for each cell.

.. math:: y_{line}\,(L \times F) \mathrel{+}= x_{line}\,(L \times C) \; W_t\,(C \times F), \quad
          dx_{line} \mathrel{+}= dout_{line}\, W_t^T, \quad
          dW_t \mathrel{+}= x_{line}^T \, dout_{line}

for each tap t, blocks of 64 columns of W_t (or of its transpose) and pieces of up to 256 of its
rows, which lie one after the other. With stride 1, the images of a tile lie cell by cell, so that
lines are as many times longer; with another, one image follows the other.

A row has some numbers more than channels. Without them the rows of 1024 channels would all begin
in the same few sets of the cache: a product then takes up to twice as long (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.moves import move, move_matrix
from im2col_conv.engine.implicit.pairs import Axis, Pairs, pairs_of
from im2col_conv.engine.implicit.tile import KEPT, SMALL_PRODUCT, SPARE, Shape, Tile
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.tiling import Tiling
from im2col_conv.engine.workers import Scratch, run_tasks

__all__ = ["ChannelsInner"]

BLOCK = 64  # columns of the weights in one product
DEPTH = 256  # most rows of the weights in one product
PACKED_AT_ONCE = 2**18  # numbers of weights between the two copies that arrange them
WORTH_SHARING = 2**20  # bytes of weights that pay for waking a second worker


@dataclass(frozen=True)
class ChannelsInner:
    """The arrangement for layers with many channels.

    Attributes
    ----------
    interleaved : bool
        Whether the images of a tile lie cell by cell: lines of cells a stride apart have no room
        for others between them.
    """

    tile_bytes: ClassVar[int] = 2**20
    flop_cost: ClassVar[int] = 1

    interleaved: bool

    def chunk(self, channels: int) -> int:
        return min(channels, BLOCK)

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, shape: Shape, stride: int) -> int:
        c, *positions = shape
        return int(np.prod(positions)) * (c + SPARE)

    def packing(self, shape: Shape) -> int:
        _, C, *kernel = shape
        least = int(np.prod(kernel)) * max(C, BLOCK)  # one filter, or a channel of one block
        return min(max(PACKED_AT_ONCE, least), int(np.prod(shape)))

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        stride: int,
        dtype: np.dtype[Any],
    ) -> Array:
        memory, view = self._memory(scratch, name, image.shape, dtype)
        move(blas, image, view)
        return memory

    def start(self, scratch: Scratch, name: str, image: Array, stride: int, values: Array) -> Array:
        memory, _ = self._memory(scratch, name, image.shape, values.dtype)
        memory[..., : len(values)] = values
        return memory

    def store(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        memory: Array,
        image: Array,
        stride: int,
    ) -> None:
        move(blas, self._view(memory, image.shape), image)

    def forward_weights(
        self, w: Array, dtype: np.dtype[Any], blas: OpenBlas, workers: int
    ) -> Array:
        """Return (g, blocks of F, taps, C, 64)."""
        g, F, C = w.shape[:3]
        weights = w.reshape(g, F, C, -1)
        W = np.empty(_packed_shape(g, C, F, weights.shape[-1]), dtype)

        def fill(index: int, scratch: Scratch) -> None:
            for part, packed in _parts(weights, W, index):
                order = (*part.shape[1:], len(part))
                buffer = scratch.array("W", order, dtype)  # in between, as (c, tap, f)
                move_matrix(blas, part, buffer.transpose(2, 0, 1))
                packed[...] = buffer.swapaxes(0, 1)

        run_tasks(fill, g * W.shape[1], _packers(W, workers))
        return W

    def input_grad_weights(
        self, w: Array, dtype: np.dtype[Any], blas: OpenBlas, workers: int
    ) -> Array:
        """Return (g, blocks of C, taps, F, 64)."""
        g, F, C = w.shape[:3]
        weights = w.reshape(g, F, C, -1)
        W = np.empty(_packed_shape(g, F, C, weights.shape[-1]), dtype)
        rows = max(1, PACKED_AT_ONCE // weights[0, 0].size)
        tiling = Tiling((g, F), (1, rows))

        def fill(index: int, scratch: Scratch) -> None:
            group, f = tiling[index]
            part = weights[group.start, f].transpose(2, 0, 1)
            buffer = scratch.array("W", part.shape, dtype)  # in between, as (tap, f, c)
            move_matrix(blas, part, buffer)
            for block, (first, many) in enumerate(_blocks(C)):
                W[group.start, block, :, f, :many] = buffer[..., first : first + many]

        run_tasks(fill, tiling.boxes, _packers(W, workers))
        return W

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *kernel = shape
        return _packed_shape(g, C, F, int(np.prod(kernel)))

    def unpack(self, sums: Array, dw: Array, blas: OpenBlas, workers: int) -> None:
        g, F, C = dw.shape[:3]
        weights = dw.reshape(g, F, C, -1)

        def fill(index: int, scratch: Scratch) -> None:
            for part, packed in _parts(weights, sums, index):
                order = (*part.shape[1:], len(part))
                buffer = scratch.array("W", order, sums.dtype)  # in between, as (c, tap, f)
                buffer[...] = packed.swapaxes(0, 1)
                move_matrix(blas, buffer.transpose(2, 0, 1), part)

        run_tasks(fill, g * sums.shape[1], _packers(sums, workers))

    def forward(self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array) -> None:
        blas.run(_forward(tile, self.interleaved, W.shape[-1]), x, W, y)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        blas.run(_input_grad(tile, self.interleaved, W.shape[-1]), dout, W, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        blas.run(_weight_grad(tile, self.interleaved, dw.shape[-1]), x, dout, dw)

    def _memory(
        self, scratch: Scratch, name: str, shape: Shape, dtype: np.dtype[Any]
    ) -> tuple[Array, Array]:
        """Return memory for an image (c, n, *cells), and the view of it."""
        c, n, *cells = shape
        order = (*cells, n) if self.interleaved else (n, *cells)
        memory = scratch.array(name, (*order, c + SPARE), dtype)
        return memory, self._view(memory, shape)

    def _view(self, memory: Array, shape: Shape) -> Array:
        axes = len(shape) - 2
        places = (axes, *range(axes)) if self.interleaved else range(axes + 1)
        return memory[..., : shape[0]].transpose(axes + 1, *places)


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


def _parts(weights: Array, packed: Array, index: int) -> Iterator[tuple[Array, Array]]:
    """Yield parts of block ``index`` of ``weights[g, f, c, tap]``, and of packed (tap, c, f)."""
    _, F, C, taps = weights.shape
    group, block = divmod(index, packed.shape[1])
    first, many = _blocks(F)[block]
    step = max(1, PACKED_AT_ONCE // (taps * many))
    for c in range(0, C, step):
        yield (
            weights[group, first : first + many, c : c + step],
            packed[group, block, :, c : c + step, :many],
        )


def _packers(packed: Array, workers: int) -> int:
    """Return how many workers to arrange weights with."""
    return workers if packed.nbytes >= WORTH_SHARING else 1


class _Lines:
    """The lines of a tile as operands, to be broadcast as (blocks, pairs, pieces)."""

    def __init__(self, tile: Tile, interleaved: bool, *, by_tap: bool = False) -> None:
        together = tile.images if interleaved else 1
        each_image = Axis(tile.images // together, tile.images // together, 0, 1, 1, 1)
        deepest = min(max(tile.C, tile.F), DEPTH) * min(tile.C, tile.F, BLOCK)
        longest = max(SMALL_PRODUCT // (deepest * together), 1)
        last = tile.axes[-1]
        pairs = pairs_of((each_image, *tile.axes), longest)
        if by_tap:
            order = np.argsort(pairs.tap * last.kernel + pairs.last_tap, kind="stable")
            pairs = Pairs(*(numbers[order] for numbers in pairs))
        self._tile = tile
        self.length = (pairs.length * together)[:, None]
        self.tap = (pairs.tap * last.kernel + pairs.last_tap)[:, None]
        self._out = ((pairs.out * last.outs + pairs.at) * together)[:, None]
        self._cell = ((pairs.cell * last.cells + pairs.last_cell) * together)[:, None]

    def x(self, c: Array) -> Operand:
        """Return the cells of each pair, from channel ``c``."""
        row = self._tile.C + SPARE
        return Operand(self._cell * row + c, self._tile.axes[-1].stride * row)

    def y(self, f: Array) -> Operand:
        """Return the outputs of each pair, from filter ``f``."""
        row = self._tile.F + SPARE
        return Operand(self._out * row + f, row)

    def weights(self, block: Array, row: Array, rows: int, width: int) -> Operand:
        """Return each pair's tap in weights packed as (blocks, taps, rows, width)."""
        return Operand(((block * self._tile.taps + self.tap) * rows + row) * width, width)


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, interleaved: bool, width: int) -> Products:
    lines = _Lines(tile, interleaved)
    (f, F, f_block), (c, C) = _outer_blocks(tile.F), _pieces(tile.C)
    # y line (L, F) += x line (L, C) @ W_t (C, F)
    W = lines.weights(f_block, c, tile.C, width)
    return Products(lines.length, F, C, lines.x(c), W, lines.y(f))


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, interleaved: bool, width: int) -> Products:
    lines = _Lines(tile, interleaved)
    (c, C, c_block), (f, F) = _outer_blocks(tile.C), _pieces(tile.F)
    # dx line (L, C) += dout line (L, F) @ W_t.T (F, C)
    W = lines.weights(c_block, f, tile.F, width)
    return Products(lines.length, C, F, lines.y(f), W, lines.x(c))


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile, interleaved: bool, width: int) -> Products:
    lines = _Lines(tile, interleaved, by_tap=True)
    (f, F, f_block), (c, C) = _outer_blocks(tile.F), _pieces(tile.C)
    # dW_t (C, F) += x line.T (C, L) @ dout line (L, F)
    dW = lines.weights(f_block, c, tile.C, width)
    return Products(C, F, lines.length, lines.x(c), lines.y(f), dW, transposed="a")


def _outer_blocks(channels: int) -> tuple[Array, Array, Array]:
    """Return first, how many and number of each block, along the first axis of three."""
    first, many = np.array(_blocks(channels)).reshape(-1, 2).T
    return first[:, None, None], many[:, None, None], np.arange(len(first))[:, None, None]


def _pieces(channels: int) -> tuple[Array, Array]:
    """Return first and how many of even pieces of at most DEPTH channels, along the last axis."""
    pieces = -(-channels // DEPTH)
    bounds = np.arange(pieces + 1) * channels // pieces
    return bounds[:-1], np.diff(bounds)
