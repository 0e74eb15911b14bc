"""Weights in blocks: for each tap a matrix of at most 64 columns, read row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.lines import BLOCK, blocks

__all__ = ["pack", "packed_shape", "unpack"]


def packed_shape(groups: int, rows: int, columns: int, taps: int) -> tuple[int, ...]:
    """Return the shape of packed weights: (groups, blocks of columns, rows, taps, block)."""
    return (groups, len(blocks(columns)), rows, taps, min(columns, BLOCK))


def pack(weights: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``weights[g, row, column, tap]`` packed; what is past the last column is not filled."""
    groups, rows, columns, taps = weights.shape
    packed = np.empty(packed_shape(groups, rows, columns, taps), dtype)
    for block, (first, many) in enumerate(blocks(columns)):
        part = weights[:, :, first : first + many]
        packed[:, block, :, :, :many] = part.swapaxes(2, 3)
    return packed


def unpack(packed: Array, weights: Array) -> None:
    """Fill ``weights[g, row, column, tap]`` from packed ones: :func:`pack` undone."""
    for block, (first, many) in enumerate(blocks(weights.shape[2])):
        part = packed[:, block, :, :, :many]
        weights[:, :, first : first + many] = part.swapaxes(2, 3)
