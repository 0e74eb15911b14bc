"""The matrix products of a layer and nothing else: a limit for whoever lowers it with this BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.cli.benchmark.data import Array, Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["set_up"]


def set_up(layer: Layer, data: Data, _: int) -> Runs:
    """Return W @ cols, and dout @ cols.T with W.T @ dout, from and into ready matrices."""
    filters = layer.filters // layer.groups
    W = _matrix(layer, data.w, filters, layer.depth)
    cols = _matrix(layer, data.x, layer.depth, layer.positions)
    y = _matrix(layer, data.dout, filters, layer.positions)
    dw, dcols = np.empty_like(W), np.empty_like(cols)

    def backward() -> tuple[Any, ...]:
        np.matmul(y, cols.swapaxes(1, 2), out=dw)
        return dw, np.matmul(W.swapaxes(1, 2), y, out=dcols)

    return Runs(lambda: np.matmul(W, cols, out=y), backward)


def _matrix(layer: Layer, values: Array, rows: int, columns: int) -> Array:
    """Return (groups, rows, columns) of any values; the transposed order for channels last.

    There, where a position is a row, every matrix of the lowering lies transposed in memory.
    """
    if layer.layout == "channels_last":
        return np.resize(values, (layer.groups, columns, rows)).swapaxes(1, 2)
    return np.resize(values, (layer.groups, rows, columns))
