"""The classic lowering, as textbooks write it: the whole column matrix, one GEMM a group.

It is what this library is measured against: pad, unroll every window, multiply, transpose;
backward to the weights with the same matrix again, and to the input by scattering W.T @ dout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2col_conv.cli.layers import Layer

__all__ = ["backward", "forward"]

Array = NDArray[Any]


def forward(layer: Layer, x: Array, w: Array, b: Array) -> Array:
    """Return y = W @ cols + b, of shape (N, F, H_out, W_out)."""
    N, out = layer.images, layer.out_size
    y = _grouped_weights(layer, w) @ _columns(layer, x)  # (groups, F // groups, N * H_out * W_out)
    y = y.reshape(layer.filters, -1) + b[:, np.newaxis]
    return np.ascontiguousarray(y.reshape(-1, N, out, out).transpose(1, 0, 2, 3))


def backward(layer: Layer, x: Array, w: Array, dout: Array) -> tuple[Array, Array, Array]:
    """Return dx = col2im(W.T @ dout), dw = dout @ cols.T and db = dout summed."""
    rows = dout.transpose(1, 0, 2, 3).reshape(layer.groups, layer.filters // layer.groups, -1)
    dw = rows @ _columns(layer, x).transpose(0, 2, 1)
    dcols = _grouped_weights(layer, w).transpose(0, 2, 1) @ rows
    return _scatter(layer, dcols), dw.reshape(w.shape), dout.sum(axis=(0, 2, 3))


def _grouped_weights(layer: Layer, w: Array) -> Array:
    return w.reshape(layer.groups, layer.filters // layer.groups, -1)


def _columns(layer: Layer, x: Array) -> Array:
    """Return the column matrix of each group: (groups, C // groups * taps, N * H_out * W_out)."""
    K, out, padding = layer.kernel, layer.out_size, layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    cols = np.empty((layer.channels, K, K, layer.images, out, out), x.dtype)
    for i, j, window in _windows(layer):
        cols[:, i, j] = padded[window].transpose(1, 0, 2, 3)
    return cols.reshape(layer.groups, -1, layer.images * out * out)


def _scatter(layer: Layer, dcols: Array) -> Array:
    """Add every entry of the column matrix back to the cell that it was read from."""
    N, C, H, W = layer.x_shape
    K, out, padding = layer.kernel, layer.out_size, layer.padding
    dcols = dcols.reshape(C, K, K, N, out, out)
    padded = np.zeros((N, C, H + 2 * padding, W + 2 * padding), dcols.dtype)
    for i, j, window in _windows(layer):
        padded[window] += dcols[:, i, j].transpose(1, 0, 2, 3)
    return padded[:, :, padding : padding + H, padding : padding + W]


def _windows(layer: Layer) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yield each tap of the kernel with the cells that it meets in the padded input."""
    reach = layer.stride * (layer.out_size - 1) + 1
    for i in range(layer.kernel):
        for j in range(layer.kernel):
            rows = slice(i, i + reach, layer.stride)
            columns = slice(j, j + reach, layer.stride)
            yield i, j, np.s_[:, :, rows, columns]
