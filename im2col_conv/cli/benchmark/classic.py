"""The classic lowering, as textbooks write it: the whole column matrix, one GEMM a group.

It is what this library is measured against: pad, unroll every window, multiply, transpose;
backward to the weights with the same matrix again, and to the input by scattering W.T @ dout.

For channels first, the matrix is (K, P): a row for each channel and tap, a column for each output
position. For channels last it lies transposed in memory, a row of taps and channels for each
position, as is usual there; here it is named and indexed in the one way all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from im2col_conv.cli.benchmark.data import Array, Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["backward", "forward", "set_up"]


def set_up(layer: Layer, data: Data, _: int) -> Runs:
    """Return both passes; the threads of NumPy are set for the whole process."""
    x, w, b, dout = data
    return Runs(lambda: forward(layer, x, w, b), lambda: backward(layer, x, w, dout))


def forward(layer: Layer, x: Array, w: Array, b: Array) -> Array:
    """Return y = W @ cols + b, in the layer's layout."""
    y = _product(layer, _filters(layer, w), _columns(layer, x))
    if _is_last(layer):
        return y.transpose(2, 0, 1).reshape(layer.y_shape) + b
    y = y.reshape(layer.filters, -1) + b[:, np.newaxis]
    return np.ascontiguousarray(y.reshape(-1, layer.images, *layer.out).swapaxes(0, 1))


def backward(layer: Layer, x: Array, w: Array, dout: Array) -> tuple[Array, Array, Array]:
    """Return dx = col2im(W.T @ dout), dw = dout @ cols.T and db = dout summed."""
    rows = _rows(layer, dout)
    dw = rows @ _columns(layer, x).swapaxes(1, 2)
    dcols = _product(layer, _filters(layer, w).swapaxes(1, 2), rows)
    return _scatter(layer, dcols), _as_weights(layer, dw), rows.sum(axis=2).ravel()


def _is_last(layer: Layer) -> bool:
    return layer.layout == "channels_last"


def _product(layer: Layer, a: Array, b: Array) -> Array:
    """Return a @ b, (groups, rows, P), with the positions outermost in memory for channels last."""
    if _is_last(layer):
        return (b.swapaxes(1, 2) @ a.swapaxes(1, 2)).swapaxes(1, 2)
    return a @ b


def _filters(layer: Layer, w: Array) -> Array:
    """Return W: (groups, F // groups, K)."""
    w = np.moveaxis(w, 1, -1) if _is_last(layer) else w
    return w.reshape(layer.groups, -1, layer.depth)


def _as_weights(layer: Layer, dw: Array) -> Array:
    """Return (groups, F // groups, K) as weights."""
    if not _is_last(layer):
        return dw.reshape(layer.w_shape)
    per_tap = dw.reshape(layer.filters, *layer.kernel, -1)
    return np.ascontiguousarray(np.moveaxis(per_tap, -1, 1))


def _rows(layer: Layer, dout: Array) -> Array:
    """Return the gradient of the output as a matrix for each group: (groups, F // groups, P)."""
    if _is_last(layer):
        return dout.reshape(layer.positions, layer.groups, -1).transpose(1, 2, 0)
    return dout.swapaxes(0, 1).reshape(layer.groups, -1, layer.positions)


def _columns(layer: Layer, x: Array) -> Array:
    """Return the column matrix of each group: (groups, K, P)."""
    shape = layer.groups, layer.depth, layer.positions
    if _is_last(layer):
        cols = np.empty((shape[0], shape[2], shape[1]), x.dtype).swapaxes(1, 2)
    else:
        cols = np.empty(shape, x.dtype)
    cells, entries = _cells(layer, np.pad(x, _widths(layer))), _entries(layer, cols)
    for tap, window in _windows(layer):
        entries[tap] = cells[window]
    return cols


def _scatter(layer: Layer, dcols: Array) -> Array:
    """Add every entry of the column matrix back to the cell that it was read from."""
    widths = _widths(layer)
    shape = [size + sum(width) for size, width in zip(layer.x_shape, widths, strict=True)]
    padded = np.zeros(shape, dcols.dtype)
    cells, entries = _cells(layer, padded), _entries(layer, dcols)
    for tap, window in _windows(layer):
        cells[window] += entries[tap]
    inner = (slice(before, -after or None) for before, after in widths)
    return padded[tuple(inner)]


def _widths(layer: Layer) -> list[tuple[int, int]]:
    """Return the padding before and after each axis of the input."""
    spatial = [(padding, padding) for padding in layer.padding]
    return [(0, 0), *spatial, (0, 0)] if _is_last(layer) else [(0, 0), (0, 0), *spatial]


def _cells(layer: Layer, padded: Array) -> Array:
    """View the padded input as (groups, C // groups, N, *padded)."""
    groups, channels = layer.groups, layer.channels // layer.groups
    if _is_last(layer):
        cells = padded.reshape(*padded.shape[:-1], groups, channels)
        return np.moveaxis(cells, (-2, -1), (0, 1))
    cells = padded.reshape(layer.images, groups, channels, *padded.shape[2:])
    return np.moveaxis(cells, 0, 2)


def _entries(layer: Layer, cols: Array) -> Array:
    """View the column matrix as (groups, C // groups, *kernel, N, *out)."""
    positions = layer.images, *layer.out
    if _is_last(layer):
        rows = cols.swapaxes(1, 2).reshape(layer.groups, *positions, *layer.kernel, -1)
        rows = np.moveaxis(rows, -1, 1)
        taps = range(3 + layer.axes, 3 + 2 * layer.axes)
        return np.moveaxis(rows, tuple(taps), tuple(range(2, 2 + layer.axes)))
    return cols.reshape(layer.groups, -1, *layer.kernel, *positions)


def _windows(layer: Layer) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield where the entries of a tap are, and where the cells that it meets are, tap by tap."""
    for tap in product(*map(range, layer.kernel)):
        axes = zip(tap, layer.out, layer.stride, strict=True)
        window = (slice(at, at + step * (out - 1) + 1, step) for at, out, step in axes)
        yield (..., *tap, *(slice(None),) * (1 + layer.axes)), (..., *window)
