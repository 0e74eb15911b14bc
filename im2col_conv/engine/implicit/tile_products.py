"""The products of a tile, by pass: every pair of lines, times every block of channels and filters."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.lines import blocks, row_length
from im2col_conv.engine.implicit.pairs import Axis, Pairs, pairs_of
from im2col_conv.engine.products import Operand, Products

__all__ = ["Tile", "forward_products", "input_grad_products", "weight_grad_products"]

KEPT = 64  # lists, of some hundred kilobytes at most


class Tile(NamedTuple):
    """All that the products of a tile follow from.

    Where images are interleaved, a line is ``images`` times as long; else each has lines of its own.
    """

    axes: tuple[Axis, ...]
    images: int
    interleaved: bool
    C: int
    F: int

    def pairs(self) -> Pairs:
        """Return the pairs of lines of all images."""
        if not self.interleaved:
            each_image = Axis(self.images, self.images, 0, 1, 1, 1)
            return pairs_of((each_image, *self.axes))
        out, cell, tap, length = pairs_of(self.axes)
        return Pairs(out * self.images, cell * self.images, tap, length * self.images)

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return int(np.prod([axis.kernel for axis in self.axes]))

    def x(self, pairs: Pairs, c: Array) -> Operand:
        """Return the cells of each pair, from channel ``c``, as (length, C) lines of x or dx."""
        row = row_length(self.C)
        return Operand(pairs.cell * row + c, self.axes[-1].stride * row)

    def y(self, pairs: Pairs, f: Array) -> Operand:
        """Return the outputs of each pair, from filter ``f``, as (length, F) lines of y or dout."""
        row = row_length(self.F)
        return Operand(pairs.out * row + f, row)


@lru_cache(maxsize=KEPT)
def forward_products(tile: Tile) -> Products:
    """Return y line (L, F) += x line (L, C) @ W_t (C, F)."""
    pairs = tile.pairs()
    (f, F, f_block), (c, C, _) = _blocks(tile.F, 0), _blocks(tile.C, 1)
    W = _packed(f_block, c, pairs.tap, tile.C, tile.F, tile.taps)
    return Products(pairs.length, F, C, tile.x(pairs, c), W, tile.y(pairs, f))


@lru_cache(maxsize=KEPT)
def input_grad_products(tile: Tile) -> Products:
    """Return dx line (L, C) += dout line (L, F) @ W_t.T (F, C)."""
    pairs = tile.pairs()
    (c, C, c_block), (f, F, _) = _blocks(tile.C, 0), _blocks(tile.F, 1)
    W = _packed(c_block, f, pairs.tap, tile.F, tile.C, tile.taps)
    return Products(pairs.length, C, F, tile.y(pairs, f), W, tile.x(pairs, c))


@lru_cache(maxsize=KEPT)
def weight_grad_products(tile: Tile) -> Products:
    """Return dW_t (C, F) += x line.T (C, L) @ dout line (L, F), one tap after the other."""
    pairs = tile.pairs()
    by_tap = np.argsort(pairs.tap, kind="stable")
    pairs = Pairs(*(numbers[by_tap] for numbers in pairs))
    (f, F, f_block), (c, C, _) = _blocks(tile.F, 0), _blocks(tile.C, 1)
    dW = _packed(f_block, c, pairs.tap, tile.C, tile.F, tile.taps)
    return Products(C, F, pairs.length, tile.x(pairs, c), tile.y(pairs, f), dW, transposed=True)


def _blocks(channels: int, axis: int) -> tuple[Array, Array, Array]:
    """Return first, how many and number of each block, to broadcast as (blocks, blocks, pairs)."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    first, many = np.array(blocks(channels)).T
    return first.reshape(shape), many.reshape(shape), np.arange(len(first)).reshape(shape)


def _packed(
    block: Array, row: Array, tap: Array, rows: int, columns: int, taps: int
) -> Operand:
    """Return where packed weights (blocks, rows, taps, width) have a tap's matrix."""
    width = min(columns, blocks(columns)[0][1])
    return Operand(((block * rows + row) * taps + tap) * width, taps * width)
