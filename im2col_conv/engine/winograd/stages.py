r"""The five steps from a chunk's cells to its outputs, each a list of products.

Channels lie innermost in every buffer, each with a number of spare numbers, so that a transform
along one axis multiplies a small matrix with rows of channels, where they lie::

    x [n, h, w]          cells
    X [n, h, j, q]       = sum_l B^T[j, l] x [n, h, m q + l]             columns
    V [i, j, n, r, q]    = sum_l B^T[i, l] X [n, m r + l, j, q]          rows
    M [i, j, n, r, q]    = V [i, j] @ U [i, j]                           multiply
    Y [a, j, n, r, q]    = sum_i A^T[a, i] M [i, j, n, r, q]             back_rows
    y [n, m r + a, m q + b] += sum_j A^T[b, j] Y [a, j, n, r, q]         back_columns

Tile (r, q) of image n, entries (i, j) of a transformed tile. Where a tile reaches into padding its
sum over l is shorter, where it reaches over the last output it makes fewer, so that neither is
stored. One axis after the other takes a third of the operations of both at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.arithmetic import SMALL_PRODUCT
from im2col_conv.engine.implicit.tile import KEPT, row_of
from im2col_conv.engine.products import Operand, Products
from im2col_conv.engine.winograd.tile import Axis, Chunk
from im2col_conv.engine.winograd.transforms import transform_for

__all__ = ["BLOCK", "Sizes", "Stages", "blocks", "sizes_of", "stages_of"]

BLOCK = 64  # filters of one product


class Sizes(NamedTuple):
    """The numbers in each buffer, in the order in which they are filled."""

    cells: int
    columns: int
    rows: int
    products: int
    back_rows: int
    outs: int


class Stages(NamedTuple):
    """The products of a chunk, in the order in which they are done."""

    columns: Products
    rows: Products
    multiply: Products
    back_rows: Products
    back_columns: Products


def blocks(filters: int) -> int:
    """Return in how many blocks filters are multiplied."""
    return -(-filters // BLOCK)


def sizes_of(chunk: Chunk) -> Sizes:
    """Return what the buffers of a chunk must hold."""
    images, rows, columns, *_ = chunk
    C, F = row_of(chunk.C), row_of(chunk.F)
    m, n = rows.step, transform_for(rows.step).cells
    return Sizes(
        cells=images * rows.cells * columns.cells * C,
        columns=images * rows.cells * n * columns.tiles * C,
        rows=n * n * chunk.tiles * C,
        products=n * n * chunk.tiles * F,
        back_rows=m * n * chunk.tiles * F,
        outs=images * rows.outs * columns.outs * F,
    )


@lru_cache(maxsize=KEPT)
def stages_of(chunk: Chunk) -> Stages:
    """Return the products of a chunk."""
    return Stages(
        _columns(chunk), _rows(chunk), _multiply(chunk), _back_rows(chunk), _back_columns(chunk)
    )


def _columns(chunk: Chunk) -> Products:
    images, rows, columns, C, *_ = chunk
    n, row = transform_for(columns.step).cells, row_of(C)
    line = np.arange(images * rows.cells)[:, None]
    q, cell, first, many = _table(columns.seen(), 4)
    x = Operand((line * columns.cells + cell) * row, row)
    X = Operand((line * n * columns.tiles + q) * row, columns.tiles * row)
    return Products(n, C, many, Operand(first, n), x, X, fresh=len(q) == columns.tiles)


def _rows(chunk: Chunk) -> Products:
    images, rows, columns, C, *_ = chunk
    n, line = transform_for(rows.step).cells, columns.tiles * row_of(C)
    image, j = np.arange(images)[:, None, None], np.arange(n)[:, None]
    r, cell, first, many = _table(rows.seen(), 4)
    X = Operand(((image * rows.cells + cell) * n + j) * line, n * line)
    V = Operand(((j * images + image) * rows.tiles + r) * line, n * chunk.tiles * row_of(C))
    return Products(n, line, many, Operand(first, n), X, V, fresh=len(r) == rows.tiles)


def _multiply(chunk: Chunk) -> Products:
    tiles, C, F = chunk.tiles, chunk.C, chunk.F
    n = transform_for(chunk.rows.step).cells
    width = chunk.width
    block, k = np.arange(blocks(F))[:, None], np.arange(n * n)[:, None, None]
    parts = -(-C * tiles * width // SMALL_PRODUCT)
    edges = np.arange(parts + 1) * C // parts
    c, depth = edges[:-1], np.diff(edges)
    V = Operand(k * tiles * row_of(C) + c, row_of(C))
    U = Operand(((block * n * n + k) * C + c) * width, width)
    M = Operand(k * tiles * row_of(F) + block * BLOCK, row_of(F))
    filters = np.minimum(F - block * BLOCK, BLOCK)
    return Products(tiles, filters, depth, V, U, M, fresh=c == 0)


def _back_rows(chunk: Chunk) -> Products:
    m, n = chunk.rows.step, transform_for(chunk.rows.step).cells
    plane = chunk.tiles * row_of(chunk.F)
    j = np.arange(n)
    both = Operand(j * plane, n * plane)
    return Products(m, plane, n, Operand(0, n), both, both, fresh=True)


def _back_columns(chunk: Chunk) -> Products:
    images, rows, columns, _, F, _ = chunk
    n, row = transform_for(columns.step).cells, row_of(F)
    a, r = _each_output(rows)
    image, line = np.arange(images)[:, None, None], np.arange(rows.outs)[:, None]
    q, out, many = _table(columns.made(), 3)
    tile = (image * rows.tiles + r[:, None]) * columns.tiles + q
    Y = Operand((a[:, None] * n * chunk.tiles + tile) * row, chunk.tiles * row)
    y = Operand(((image * rows.outs + line) * columns.outs + out) * row, row)
    return Products(many, F, n, Operand(0, n), Y, y)


def _each_output(axis: Axis) -> tuple[Array, Array]:
    """Return the place in its tile and the tile of each output."""
    tile, place = np.divmod(np.arange(axis.outs), axis.step)
    return place, tile


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Array:
    """Return the columns of a table, which may have no row."""
    return np.array(rows, np.int64).reshape(-1, width).T
