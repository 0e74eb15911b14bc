r"""Images as they are, for kernels of one cell: all positions of an image are one line.

.. math:: y\,(F \times L) \mathrel{+}= W\,(F \times C) \; x\,(C \times L), \quad
          dx \mathrel{+}= W^T \, dout, \quad
          dW^T\,(C \times F) \mathrel{+}= x\,(C \times L) \; dout^T\,(L \times F)

with channels first in memory; with channels innermost, the transpose of either side. Images and W
are read and filled where they lie, and copied only where they are no matrices. They are cut in
pieces that OpenBLAS multiplies without packing them, or in larger ones where its kernel packs small
ones too. Small products with a transposed right side are slow: so for dw, dout is copied with
channels innermost if it does not lie so, or x where the two have changed places, and forward by
rows, W is turned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import add_to_rows
from im2col_conv.engine.copies import as_matrix, copy_lines, lies, shadow
from im2col_conv.engine.implicit.moves import (
    last_to,
    move,
    move_images,
    move_matrix,
)
from im2col_conv.engine.implicit.tile import (
    KEPT,
    SET_BYTES,
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

__all__ = ["Pointwise"]

BLOCK = 64  # channels of a result in one product
ROWS, DEPTH = 96, 128  # positions that are rows of a product, and the most that it sums over
LINE, LINE_DEPTH = 192, 64  # the same of positions that are columns: each row is on another page
PACKED_BLOCK, PACKED_LENGTH = 256, 1024  # channels and positions of products of packed operands
FEW_FILTERS = 16  # of rows that are filters, to which the bias is sooner added than multiplied
FEW_WEIGHTS = 2**15  # numbers of weights that one copy by NumPy turns before work is shared
MANY_WEIGHTS = 2**18  # that pay for a copy in which those of a product follow one another


@dataclass(frozen=True)
class Pointwise:
    """The arrangement for kernels of one cell; memory is a view [c, n, position].

    Attributes
    ----------
    by_rows : bool
        Whether y has a row for each position, as where channels are innermost in memory.
    packed : bool
        Whether operands are copied whatever their size, so that products may as well be large.
    """

    tile_bytes: ClassVar[int] = 2**22
    cell_cost: ClassVar[int] = 0
    chunks_first: ClassVar[bool] = False
    joins_groups: ClassVar[bool] = False

    by_rows: bool
    packed: bool = False

    def chunk(self, channels: int) -> int:
        block = PACKED_BLOCK if self.packed else BLOCK
        return channels if channels % block else block

    def partners(self, channels: slice) -> slice:
        return slice(None)

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        positions = n * math.prod(outs)
        return positions * row_of(c) if name == "dout.T" else c * row_of(positions)

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
        lines = _in_place(image, dtype)
        if name == "dout.T" and (lines is None or not _lie_of(lines).inner):
            memory = scratch.array(name, (*image.shape[1:], row_of(len(image))), dtype)
            channels_first = last_to(0, memory[..., : len(image)])
            move(blas, image, channels_first)
            return channels_first.reshape(*image.shape[:2], -1)
        if lines is None:
            lines = _new_lines(scratch, name, image.shape, dtype)
            move_images(blas, image, lines.reshape(image.shape))
        return lines

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        lines = _in_place(image, dtype)
        return _new_lines(scratch, name, image.shape, dtype) if lines is None else lines

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
            memory += b[:, None, None]
        if _in_place(image, memory.dtype) is None:
            move_images(blas, memory.reshape(image.shape), image)

    def sums(self, memory: Array, image: Array) -> Array:
        if _lie_of(memory).inner:
            return sums_of_rows(memory.transpose(1, 2, 0))
        # half of the time of np.sum, and as exact as the product with ones
        total: Array = np.einsum("cnp->c", memory)
        return total

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, chunks of F, F of a chunk, C), w itself if it can be; by rows, turned."""
        g, F, C = w.shape[:3]
        chunks = _contiguous(w, dtype).reshape(g, -1, self.chunk(F), C)
        if not self.by_rows:
            return Whole(chunks)
        W = room("weights", (g, F // self.chunk(F), C, self.chunk(F)), dtype)
        if W.shape[:2] == (1, 1) and W.size < FEW_WEIGHTS:
            W[0, 0] = chunks[0, 0].T
            return Whole(W)  # all workers begin with this chunk, and would wait for who makes it

        def make(blas: OpenBlas, scratch: Scratch, group: int, chunk: int) -> None:
            move_matrix(blas, chunks[group, chunk], W[group, chunk].T)

        return Blockwise(W, make)

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return (g, chunks of C, F, C of a chunk), a view of the same; by rows, a copy."""
        g, F, C = w.shape[:3]
        chunks = _contiguous(w, dtype).reshape(g, F, -1, self.chunk(C)).swapaxes(1, 2)
        if not self.by_rows or chunks.size < MANY_WEIGHTS:
            return Whole(chunks)
        W = room("weights", chunks.shape, dtype)

        def make(blas: OpenBlas, scratch: Scratch, group: int, chunk: int) -> None:
            copy_lines(chunks[group, chunk], W[group, chunk])

        return Blockwise(W, make)

    def weight_sums(self, shape: Shape) -> Shape:
        g, F, C, *_ = shape
        return (g, F // self.chunk(F), C, self.chunk(F))

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        _, chunks, C, F = sums.shape
        for chunk, filters in zip(sums[0], dw.reshape(chunks, F, C, copy=False), strict=True):
            move_matrix(blas, chunk.T, filters)

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        _multiply(blas, x, W, y, b, turned=self.by_rows, packed=self.packed)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        _multiply(blas, dout, W, dx, None, turned=True, packed=self.packed)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        products = _weight_grad(_lie_of(x), _lie_of(dout), dw.shape[-1])
        blas.run(products, x, dout, dw)


def _contiguous(w: Array, dtype: np.dtype[Any]) -> Array:
    if w.dtype == dtype and w.flags.c_contiguous and w.flags.aligned:  # sooner said than np.require
        return w
    return np.require(w, dtype, ["C", "A"])


class _Lie(NamedTuple):
    """How a view [c, n, position] lies, in numbers; a row is a channel, or ``inner`` a position.

    All rows of a ``crowded`` one begin in the same set of the processor's first cache.
    """

    channels: int
    images: int
    positions: int
    row: int
    image: int
    inner: bool
    crowded: bool

    @property
    def is_one_line(self) -> bool:
        """Whether the positions of one image follow those of the other, row by row."""
        return self.inner and self.image == self.positions * self.row

    def as_one_line(self) -> _Lie:
        return self._replace(images=1, positions=self.images * self.positions)

    def at(self, image: Array, channel: Array | int, position: Array | int) -> Operand:
        row, column = (position, channel) if self.inner else (channel, position)
        return Operand(image * self.image + row * self.row + column, self.row)


def _in_place(image: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return ``image[c, n, *cells]`` as [c, n, position], if products can use it where it lies."""
    if image.dtype != dtype or not image.flags.aligned:
        return None
    if not _has_matrices(image.shape, image.strides, dtype):
        return None
    return image.reshape(*image.shape[:2], -1, copy=False)


@lru_cache(maxsize=1024)
def _has_matrices(shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> bool:
    """Say whether each image [c, n, *cells] of so many cells, so far apart, is a matrix."""
    first = as_matrix(shadow(shape, strides, dtype)[:, 0])
    return (
        first is not None
        and (lies(first) or lies(first.T))
        and strides[1] >= 0
        and strides[1] % dtype.itemsize == 0
    )


def _new_lines(scratch: Scratch, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    c, n, *cells = shape
    numbers = n * math.prod(cells)
    return scratch.array(name, (c, row_of(numbers)), dtype)[:, :numbers].reshape(c, n, -1)


def _lie_of(lines: Array) -> _Lie:
    return _lie(lines.shape, lines.strides, lines.dtype)


@lru_cache(maxsize=1024)
def _lie(shape: Shape, strides: Shape, dtype: np.dtype[Any]) -> _Lie:
    lines = shadow(shape, strides, dtype)
    c, n, positions = shape
    inner = lies(lines[:, 0].T)
    columns, step = (c, strides[2]) if inner else (positions, strides[0])
    row = max(step // dtype.itemsize, columns)
    return _Lie(c, n, positions, row, strides[1] // dtype.itemsize, inner, step % SET_BYTES == 0)


def _multiply(
    blas: OpenBlas,
    source: Array,
    W: Array,
    target: Array,
    bias: Array | None,
    *,
    turned: bool,
    packed: bool,
) -> None:
    """Set ``target`` to W ``source`` plus ``bias``; ``turned``, W (M, K) is stored as (K, M)."""
    given, result = _lie_of(source), _lie_of(target)
    block, row = (step // W.itemsize for step in W.strides[1:3])
    if given.is_one_line and result.is_one_line:
        given, result = given.as_one_line(), result.as_one_line()
    a, b = (source, W) if result.inner else (W, source)
    few = result.inner and result.channels < FEW_FILTERS
    biased = bias is not None and not few
    pieces = _pieces_of(result, given.channels, packed)
    products = _weighted(given, result, (block, row, W.shape[-1]), pieces, turned, biased)
    blas.run(products, a, b, target, bias)
    if bias is not None and few:
        add_to_rows(target.transpose(1, 2, 0), bias)


def _pieces_of(target: _Lie, depth: int, packed: bool) -> tuple[int, int, int]:
    """Return how many channels and positions of ``target`` a product makes, and its depth."""
    if packed:
        return PACKED_BLOCK, PACKED_LENGTH, max(depth, 1)
    return (BLOCK, ROWS, DEPTH) if target.inner else (BLOCK, LINE, LINE_DEPTH)


@lru_cache(maxsize=KEPT)
def _weighted(
    source: _Lie,
    target: _Lie,
    weights: tuple[int, int, int],
    pieces: tuple[int, int, int],
    turned: bool,
    biased: bool,
) -> Products:
    block, row, width = weights
    if target.inner:
        left, right = not source.inner, not turned
    else:
        left, right = turned, source.inner
    transposed = "a" * left + "b" * right
    n = np.arange(source.images).reshape(-1, 1, 1, 1)
    channels, length, depth = pieces
    (p, L), (m, M) = _pieces(target.positions, length, 1), _pieces(target.channels, channels, 2)
    k, K = even_pieces(source.channels, depth)  # along the last axis of four
    W = Operand(m // width * block + m % width + k * row if turned else m * row + k, row)
    x, y, first = source.at(n, k, p), target.at(n, m, p), k == 0
    b = Bias(m, by_rows=not target.inner) if biased else None
    if target.inner:
        # y.T (L, M) += x.T (L, K) @ W.T (K, M); for dx, both with W.T for W
        return Products(L, M, K, x, W, y, transposed=transposed, fresh=first, bias=b)
    # y (M, L) += W (M, K) @ x (K, L)
    return Products(M, L, K, W, x, y, transposed=transposed, fresh=first, bias=b)


@lru_cache(maxsize=KEPT)
def _weight_grad(x: _Lie, dout: _Lie, width: int) -> Products:
    if x.is_one_line and dout.is_one_line:
        x, dout = x.as_one_line(), dout.as_one_line()
    n = np.arange(x.images).reshape(-1, 1, 1, 1)
    length, rows = (BLOCK, DEPTH) if x.inner else (DEPTH, BLOCK)
    if x.inner and x.crowded:
        length, rows = 16, 256
    p, L = _pieces(x.positions, length, 1)
    f, F = _pieces(dout.channels, BLOCK, 2)
    c, C = _pieces(x.channels, rows, 3)
    dW = Operand((f // width * x.channels + c) * width + f % width, width)
    # dW.T (C, F) += x (C, L) @ dout.T (L, F)
    transposed = "a" if x.inner else ""
    return Products(C, F, L, x.at(n, c, p), dout.at(n, f, p), dW, transposed=transposed)


def _pieces(size: int, most: int, axis: int) -> tuple[Array, Array]:
    """Return first and how many of pieces of at most ``most``, along one axis of four."""
    shape = tuple(-1 if i == axis else 1 for i in range(4))
    first = np.arange(0, size, most)
    return first.reshape(shape), np.minimum(size - first, most).reshape(shape)
