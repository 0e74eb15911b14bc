r"""Channels before the last axis: a line of cells lies under the line of the next channel.

.. math:: y_{line}\,(F \times L) \mathrel{+}= W_t\,(F \times rC) \; x_{lines}\,(rC \times L), \quad
          dx_{lines} \mathrel{+}= W_t^T \, dout_{line}, \quad
          dW_t^T \mathrel{+}= x_{lines} \, dout_{line}^T

for each tap t of the last axis, where r taps of the axis before it, which meet neighbouring lines,
are one matrix: this makes products of few channels deep enough to pay. Cells of the last axis that
are a stride apart lie side by side, in as many phases as the stride. Where lines are short, the
images of a tile lie cell by cell.

x and dx are copied to lie so. The lines of y and dout are used where they are, if they are long;
only for dw, long lines of dout are copied with their channels innermost, since products with a
transposed right side are slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.moves import last_to, move, move_images, span
from im2col_conv.engine.implicit.pairs import Axis, leaders_first, pairs_of
from im2col_conv.engine.implicit.tile import KEPT, SMALL_PRODUCT, Shape, Tile, row_of, sums_of
from im2col_conv.engine.implicit.weights import Arranged, Made
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = ["ChannelsOuter"]

BLOCK = 64  # filters of one product
OUTPUTS = ("y", "dout", "dout.T")
ALIASED = 4096  # bytes from row to row that put all rows in the same few sets of the cache


@dataclass(frozen=True)
class ChannelsOuter:
    """The arrangement for layers with few channels."""

    tile_bytes: ClassVar[int] = 2**22
    flop_cost: ClassVar[int] = 1

    interleaved: bool

    def chunk(self, channels: int) -> int:
        return channels

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, shape: Shape, stride: int) -> int:
        c, n, *cells = shape
        if name == "dout.T" and not self.interleaved:
            return n * math.prod(cells) * row_of(c)
        if name in OUTPUTS:
            return c * row_of(n * math.prod(cells))
        return math.prod(self._order(shape, stride)) + self.interleaved * math.prod(shape)

    def packing(self, shape: Shape) -> int:
        return 0

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        stride: int,
        dtype: np.dtype[Any],
    ) -> Array:
        if name == "dout.T" and not self.interleaved:
            return _channels_inner(blas, scratch, image, dtype)
        if name in OUTPUTS:
            memory = self._outputs(scratch, name, image, dtype)
            if memory is not image:
                move_images(blas, image, self._images(memory, image.shape))
            return memory
        memory = scratch.array(name, self._order(image.shape, stride), dtype)
        if self.interleaved:
            copy = _images_inner(scratch, image.shape, dtype)
            move_images(blas, image, copy)
            image = copy
        for phase in range(len(memory)):
            part = image[..., phase::stride]
            self._view(memory[phase], part.shape)[...] = part
        return memory

    def room(
        self, scratch: Scratch, name: str, image: Array, stride: int, dtype: np.dtype[Any]
    ) -> Array:
        if name in OUTPUTS:
            return self._outputs(scratch, name, image, dtype)
        return scratch.array(name, self._order(image.shape, stride), dtype)

    def fill(self, name: str, memory: Array, values: Array) -> None:
        channel_first = name in OUTPUTS
        memory[...] = values.reshape(-1, *[1] * (memory.ndim - 1 if channel_first else 1))

    def store(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        memory: Array,
        image: Array,
        stride: int,
    ) -> None:
        if name in OUTPUTS:
            if memory is not image:
                move_images(blas, self._images(memory, image.shape), image)
            return
        target = _images_inner(scratch, image.shape, memory.dtype) if self.interleaved else image
        for phase in range(len(memory)):
            part = target[..., phase::stride]
            part[...] = self._view(memory[phase], part.shape)
        if self.interleaved:
            move_images(blas, target, image)

    def sums(self, memory: Array, image: Array) -> Array:
        return sums_of(image, memory.dtype)

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, 1, taps of the last axis, F, other taps, C)."""
        g, F, C, *_, last = w.shape
        rows = w.reshape(g, 1, F, C, -1, last)
        return Made(np.ascontiguousarray(rows.transpose(0, 1, 5, 2, 4, 3), dtype))

    input_grad_weights = forward_weights

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *outer, last = shape
        return (g, 1, last, int(np.prod(outer)), C, F)

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        F, C, *_, last = dw.shape
        dw.reshape(F, C, -1, last)[...] = sums[0].transpose(3, 2, 1, 0)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, *, fresh: bool
    ) -> None:
        products = _forward(tile, self.interleaved, _steps(y), fresh)
        if fresh and not products.overwrites:
            y[...] = 0
        blas.run(products, W, x, span(y))

    def input_grad(
        self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array, *, fresh: bool
    ) -> None:
        if fresh:
            dx[...] = 0
        blas.run(_input_grad(tile, self.interleaved, _steps(dout)), W, span(dout), dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        if self.interleaved:
            blas.run(_weight_grad_by_lines(tile, _steps(dout)), x, span(dout), dw)
        else:
            blas.run(_weight_grad(tile), x, dout, dw)

    def _order(self, shape: Shape, stride: int) -> Shape:
        """Return the shape of the memory of x or dx: (phase, image, *outer, c, line)."""
        c, n, *outer, last = shape
        together = n if self.interleaved else 1
        line = row_of(-(-last // stride) * together)
        return (min(stride, max(last, 1)), n // together, *outer, c, line)

    def _view(self, memory: Array, shape: Shape) -> Array:
        """Return the view [c, n, *cells] of one phase."""
        _, n, *_, last = shape
        together = n if self.interleaved else 1
        lines = memory[..., : last * together].reshape(*memory.shape[:-1], last, together)
        # (n // together, *outer, c, last, together)
        c = lines.ndim - 3
        n, rest = (c + 2, 0) if self.interleaved else (0, c + 2)
        return lines.transpose(c, n, *range(1, c), c + 1, rest)[..., 0]

    def _outputs(self, scratch: Scratch, name: str, image: Array, dtype: np.dtype[Any]) -> Array:
        """Return memory (f, image, *outer, line) for y or dout: the image, if it can be."""
        f, n, *outer, last = image.shape
        if self.interleaved:
            return scratch.array(name, (f, 1, *outer, last * n), dtype)
        if _has_lines(image, dtype) and (name == "y" or image.strides[0] % ALIASED):
            return image
        cells = math.prod(image.shape[1:])
        return scratch.array(name, (f, row_of(cells)), dtype)[:, :cells].reshape(image.shape)

    def _images(self, memory: Array, shape: Shape) -> Array:
        """Return the view [f, n, *outs] of the memory of y or dout."""
        f, n, *outs = shape
        return last_to(1, memory.reshape(f, *outs, n)) if self.interleaved else memory


class _Lines:
    """The lines of a tile as operands, to be broadcast as (blocks of F, pairs)."""

    def __init__(self, tile: Tile, interleaved: bool, *, fresh: bool = False) -> None:
        last = tile.axes[-1]
        self._tile = tile
        self._together = together = tile.images if interleaved else 1
        images = Axis(tile.images // together, tile.images // together, 0, 1, 1, 1)
        depth = tile.C * tile.axes[-2].kernel if len(tile.axes) > 1 else tile.C
        longest = SMALL_PRODUCT // (depth * min(tile.F, BLOCK) * together)
        axes = (images, *tile.axes)
        pairs = pairs_of(axes, max(longest, 1), windows=True)
        led = leaders_first(axes, pairs, "outs") if fresh else None
        self._pairs, self.leads = pairs, _ = led or (pairs, np.zeros(len(pairs.out), bool))
        self.length = pairs.length * together
        self.depth = pairs.taps * tile.C
        self._outer = (images, *tile.axes[:-1])
        self._outer_taps = tile.taps // last.kernel

    def x(self) -> Operand:
        """Return the cells of each pair: a row for each tap and channel."""
        last, pairs = self._tile.axes[-1], self._pairs
        row = row_of(-(-last.cells // last.stride) * self._together)
        phase = math.prod(axis.cells for axis in self._outer)
        lines = pairs.last_cell % last.stride * phase + pairs.cell
        return Operand(
            lines * self._tile.C * row + pairs.last_cell // last.stride * self._together, row
        )

    def y(self, f: Array, steps: Shape) -> Operand:
        """Return the outputs of each pair: a row for each filter from ``f``."""
        row, *outer = steps
        at = np.unravel_index(self._pairs.out, [axis.outs for axis in self._outer])
        lines = sum(index * step for index, step in zip(at, outer, strict=True))
        return Operand(lines + f * row + self._pairs.at * self._together, row)

    def dout_rows(self, f: Array) -> Operand:
        """Return the outputs of each pair: a row for each of them, columns from ``f``."""
        row = row_of(self._tile.F)
        outs = self._pairs.out * self._tile.axes[-1].outs + self._pairs.at
        return Operand(outs * row + f, row)

    def weights(self, f: Array) -> Operand:
        """Return each pair's matrix in weights (last taps, F, other taps, C)."""
        row = self._outer_taps * self._tile.C
        first = (self._pairs.last_tap * self._tile.F + f) * row
        return Operand(first + self._pairs.tap * self._tile.C, row)

    def weight_sums(self, f: Array) -> Operand:
        """Return each pair's matrix in sums (last taps, other taps, C, F)."""
        F, C = self._tile.F, self._tile.C
        lines = (self._pairs.last_tap * self._outer_taps + self._pairs.tap) * C
        return Operand(lines * F + f, F)


@lru_cache(maxsize=KEPT)
def _forward(tile: Tile, interleaved: bool, steps: Shape, fresh: bool) -> Products:
    lines, (f, F) = _Lines(tile, interleaved, fresh=fresh), _blocks(tile.F)
    # y line (F, L) += W (F, rC) @ x lines (rC, L)
    W, x, y = lines.weights(f), lines.x(), lines.y(f, steps)
    return Products(F, lines.length, lines.depth, W, x, y, fresh=lines.leads)


@lru_cache(maxsize=KEPT)
def _input_grad(tile: Tile, interleaved: bool, steps: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved), _blocks(tile.F)
    # dx lines (rC, L) += W.T (rC, F) @ dout line (F, L)
    W, dout = lines.weights(f), lines.y(f, steps)
    return Products(lines.depth, lines.length, F, W, dout, lines.x(), transposed="a")


@lru_cache(maxsize=KEPT)
def _weight_grad(tile: Tile) -> Products:
    lines, (f, F) = _Lines(tile, interleaved=False), _blocks(tile.F)
    # dW.T (rC, F) += x lines (rC, L) @ dout (L, F)
    x, dout, dW = lines.x(), lines.dout_rows(f), lines.weight_sums(f)
    return Products(lines.depth, F, lines.length, x, dout, dW)


@lru_cache(maxsize=KEPT)
def _weight_grad_by_lines(tile: Tile, steps: Shape) -> Products:
    lines, (f, F) = _Lines(tile, interleaved=True), _blocks(tile.F)
    # dW.T (rC, F) += x lines (rC, L) @ dout line.T (L, F)
    x, dout, dW = lines.x(), lines.y(f, steps), lines.weight_sums(f)
    return Products(lines.depth, F, lines.length, x, dout, dW, transposed="b")


def _blocks(filters: int) -> tuple[Array, Array]:
    """Return first and how many of each block of filters, to broadcast as (blocks, pairs)."""
    first = np.arange(0, filters, BLOCK)[:, None]
    return first, np.minimum(filters - first, BLOCK)


def _images_inner(scratch: Scratch, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return a view [c, n, *cells] of memory in which n is innermost."""
    c, n, *cells = shape
    return last_to(1, scratch.array("images", (c, *cells, n), dtype))


def _channels_inner(blas: OpenBlas, scratch: Scratch, image: Array, dtype: np.dtype[Any]) -> Array:
    """Return a copy (n, *outs, f) of ``image[f, n, *outs]``, with some numbers to spare."""
    f, *positions = image.shape
    memory = scratch.array("dout.T", (*positions, row_of(f)), dtype)
    move(blas, image, last_to(0, memory[..., :f]))
    return memory


def _has_lines(image: Array, dtype: np.dtype[Any]) -> bool:
    """Say whether products can read the lines of ``image[f, n, *outs]``, and not only a copy."""
    *outer, item = image.strides
    line = image.shape[-1] * dtype.itemsize
    return (
        image.dtype == dtype
        and image.flags.aligned
        and (item == dtype.itemsize or image.shape[-1] == 1)
        and all(
            size == 1 or (step >= line and step % dtype.itemsize == 0)
            for size, step in zip(image.shape[:-1], outer, strict=True)
        )
    )


def _steps(memory: Array) -> Shape:
    """Return the numbers from one line to the next, along each axis but the last."""
    line = memory.shape[-1]
    return tuple(max(step // memory.itemsize, line) for step in memory.strides[:-1])
