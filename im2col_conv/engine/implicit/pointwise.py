r"""Images as they are, for kernels of one cell: all positions of an image are one line.

.. math:: y\,(F \times L) \mathrel{+}= W\,(F \times C) \; x\,(C \times L), \quad
          dx \mathrel{+}= W^T \, dout, \quad
          dW^T\,(C \times F) \mathrel{+}= x\,(C \times L) \; dout^T\,(L \times F)

with channels first in memory, and y^T (L, F) += x^T (L, C) @ W^T with channels innermost, which is
the same numbers. Weights lie in blocks of 64 columns, as for channels innermost, and are the
transposed left side or the right side. Images are read and filled where they lie, and copied only
where they are no matrices; for dw, dout is copied with channels innermost if it does not lie so,
since products with a transposed right side are slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.inner import BLOCK, ChannelsInner
from im2col_conv.engine.implicit.moves import as_matrix, lies, move, move_images, span
from im2col_conv.engine.implicit.tile import KEPT, SPARE, Shape, Tile
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry

__all__ = ["Pointwise", "is_pointwise"]

LENGTH = 112  # most positions of one product
DEPTH = 128  # most channels that one product sums over


def is_pointwise(geometry: ConvGeometry) -> bool:
    """Say whether every output sees the one cell at its own place."""
    unpadded = not any(map(any, geometry.padding))
    return geometry.taps == 1 and unpadded and set(geometry.stride) == {1}


@dataclass(frozen=True)
class Pointwise(ChannelsInner):
    """The arrangement for kernels of one cell; memory is a view [c, n, position]."""

    interleaved: bool = False

    def numbers(self, name: str, shape: Shape, stride: int) -> int:
        c, *positions = shape
        if name == "dout.T":
            return math.prod(positions) * (c + SPARE)
        return c * (math.prod(positions) + SPARE)

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        stride: int,
        dtype: np.dtype[Any],
    ) -> Array:
        lines = _in_place(image, dtype)
        if name == "dout.T" and (lines is None or not _lie_of(lines).inner):
            memory, view = self._memory(scratch, name, image.shape, dtype)
            move(blas, image, view)
            return view.reshape(*image.shape[:2], -1)
        if lines is None:
            lines = _new_lines(scratch, name, image.shape, dtype)
            move_images(blas, image, lines.reshape(image.shape))
        return lines

    def start(self, scratch: Scratch, name: str, image: Array, stride: int, values: Array) -> Array:
        lines = _in_place(image, values.dtype)
        if lines is None:
            lines = _new_lines(scratch, name, image.shape, values.dtype)
        lines[...] = values[:, None, None]
        return lines

    def store(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        memory: Array,
        image: Array,
        stride: int,
    ) -> None:
        if _in_place(image, memory.dtype) is None:
            move_images(blas, memory.reshape(image.shape), image)

    def forward(self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array) -> None:
        _multiply(blas, x, W, y)

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        _multiply(blas, dout, W, dx)

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        products = _weight_grad(_lie_of(x), _lie_of(dout), dw.shape[-1])
        blas.run(products, span(x), span(dout), dw)


class _Lie(NamedTuple):
    """How a view [c, n, position] lies: ``row`` numbers from channel to channel, or, with channels
    ``inner``most, from position to position.
    """

    channels: int
    images: int
    positions: int
    row: int
    image: int
    inner: bool

    def at(self, image: Array, channel: Array | int, position: Array) -> Operand:
        row, column = (position, channel) if self.inner else (channel, position)
        return Operand(image * self.image + row * self.row + column, self.row)


def _in_place(image: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return ``image[c, n, *cells]`` as [c, n, position], if products can use it where it lies."""
    if image.dtype != dtype or not image.flags.aligned or image.strides[1] < 0:
        return None
    first = as_matrix(image[:, 0])
    if first is None or not (lies(first) or lies(first.T)) or image.strides[1] % dtype.itemsize:
        return None
    return image.reshape(*image.shape[:2], -1, copy=False)


def _new_lines(scratch: Scratch, name: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    c, n, *cells = shape
    numbers = n * math.prod(cells)
    return scratch.array(name, (c, numbers + SPARE), dtype)[:, :numbers].reshape(c, n, -1)


def _lie_of(lines: Array) -> _Lie:
    c, n, positions = lines.shape
    inner = not lies(lines[:, 0])
    columns, step = (c, lines.strides[2]) if inner else (positions, lines.strides[0])
    row = max(step // lines.itemsize, columns)
    return _Lie(c, n, positions, row, lines.strides[1] // lines.itemsize, inner)


def _multiply(blas: OpenBlas, source: Array, W: Array, target: Array) -> None:
    lie = _lie_of(target)
    products = _weighted(_lie_of(source), lie, W.shape[-1])
    a, b = (span(source), W) if lie.inner else (W, span(source))
    blas.run(products, a, b, span(target))


@lru_cache(maxsize=KEPT)
def _weighted(source: _Lie, target: _Lie, width: int) -> Products:
    """Return the products of y, or of dx, with weights packed as (blocks, rows, width)."""
    # (positions, images, blocks, rows)
    p, L = _pieces(source.positions, LENGTH, 0)
    n = np.arange(source.images).reshape(-1, 1, 1)
    m, M = _pieces(target.channels, BLOCK, 2)
    k, K = _pieces(source.channels, DEPTH, 3)
    W = Operand((m // BLOCK * source.channels + k) * width, width)
    x, y = source.at(n, k, p), target.at(n, m, p)
    if target.inner:
        # y.T (L, M) += x.T (L, K) @ W.T (K, M)
        return Products(L, M, K, x, W, y, transposed="" if source.inner else "a")
    # y (M, L) += W (M, K) @ x (K, L)
    return Products(M, L, K, W, x, y, transposed="ab" if source.inner else "a")


@lru_cache(maxsize=KEPT)
def _weight_grad(x: _Lie, dout: _Lie, width: int) -> Products:
    # (images, positions, blocks of F, pieces of C)
    n = np.arange(x.images).reshape(-1, 1, 1, 1)
    p, L = _pieces(x.positions, 2 * LENGTH, 1)
    f, F = _pieces(dout.channels, BLOCK, 2)
    c, C = _pieces(x.channels, BLOCK, 3)
    dW = Operand((f // BLOCK * x.channels + c) * width, width)
    # dW.T (C, F) += x (C, L) @ dout.T (L, F)
    products = x.at(n, c, p), dout.at(n, f, p), dW
    return Products(C, F, L, *products, transposed="a" if x.inner else "")


def _pieces(size: int, most: int, axis: int) -> tuple[Array, Array]:
    """Return first and how many of pieces of at most ``most``, along one axis of four."""
    shape = tuple(-1 if i == axis else 1 for i in range(4))
    first = np.arange(0, size, most)
    return first.reshape(shape), np.minimum(size - first, most).reshape(shape)
