r"""im2col and col2im: a gather and its exact adjoint.

Output ``o`` and tap ``t`` of an axis meet at input cell :math:`i = o s + t d - p`. Both directions
walk over the taps of :func:`tap_slices` and, for each, over all outputs that meet a cell inside the
input: one copies the cells to the columns, the other adds the columns to the cells. Padding is
never stored: in the gather it is a zero that no cell overwrites, in the scatter it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt

from im2col_conv.arguments import Padding, PerAxis, axis_sizes, shape_of
from im2col_conv.arrays import Array, computing_type, read_array, result_type, without_warnings
from im2col_conv.geometry import ConvGeometry, expect_shape, geometry_of

__all__ = [
    "Ends",
    "Index",
    "Slices",
    "col2im",
    "ends",
    "gather",
    "im2col",
    "last",
    "scatter",
    "tap_slices",
    "whole",
]

Slices = tuple[slice, ...]
Index = tuple[Any, ...]
Ends = tuple[tuple[int, int], ...]

FEW_TAPS = 32  # whose indices are kept from call to call


@lru_cache
def whole(sizes: tuple[int, ...]) -> Slices:
    """Return the box that covers axes of these sizes."""
    return tuple(slice(0, size) for size in sizes)


def ends(box: Slices) -> Ends:
    """Return where ``box`` starts and stops on each axis: it can be looked up, slices cannot."""
    return tuple([(part.start, part.stop) for part in box])


def last(index: Iterable[Any]) -> tuple[Any, ...]:
    """Return an index of an array's last axes."""
    return (..., *index)


def tap_slices(
    geometry: ConvGeometry, box: Slices, cells: Slices
) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Yield for each tap which outputs of ``box`` meet which of the input's ``cells``.

    Both come as slices relative to the starts of ``box`` and ``cells``, of equal lengths and
    empty where nothing meets.
    """
    axes = [
        [(tap, *_meeting(out, inside, s, tap * d - before)) for tap in range(kernel)]
        for out, inside, kernel, s, d, (before, _) in zip(
            box,
            cells,
            geometry.kernel,
            geometry.stride,
            geometry.dilation,
            geometry.padding,
            strict=True,
        )
    ]
    for meeting in product(*axes):
        tap, outputs, inputs = zip(*meeting, strict=True)
        yield tap, outputs, inputs


def _meeting(out: slice, inside: slice, stride: int, shift: int) -> tuple[slice, slice]:
    """Return the outputs o in ``out`` with o * stride + shift in ``inside``, and these cells."""
    first = max(out.start, -((shift - inside.start) // stride))
    stop = min(out.stop, (inside.stop - 1 - shift) // stride + 1)
    if first >= stop:
        return slice(0, 0), slice(0, 0)
    cell = first * stride + shift - inside.start
    last = cell + (stop - 1 - first) * stride
    return slice(first - out.start, stop - out.start), slice(cell, last + 1, stride)


def gather(geometry: ConvGeometry, x: Array, cols: Array, box: Slices, cells: Slices) -> None:
    """Fill ``cols`` (..., *kernel, n, *box) from ``x`` (..., n, *cells): each cell to its columns.

    The outer axes, groups and channels, are the same in both.
    """
    for tap, outputs, inputs, whole_column in _taps(geometry, box, cells):
        column = cols[tap]
        if not whole_column:
            column[...] = 0
        column[outputs] = x[inputs]


def scatter(geometry: ConvGeometry, cols: Array, x: Array, box: Slices, cells: Slices) -> None:
    """Add ``cols`` (..., *kernel, n, *box) to ``x`` (..., n, *cells): each column to its cells."""
    for tap, outputs, inputs, _ in _taps(geometry, box, cells):
        met = x[inputs]
        met += cols[tap][outputs]


class _Tap(NamedTuple):
    """One tap, as indices of columns and cells."""

    of_cols: Index
    outputs: Index
    inputs: Index
    whole: bool  # whether each of the outputs meets a cell


def _taps(geometry: ConvGeometry, box: Slices, cells: Slices) -> Iterable[_Tap]:
    """Return the taps of two boxes; those of whole arrays, where a call is short, are kept."""
    if geometry.taps <= FEW_TAPS and box == whole(geometry.out) and cells == whole(geometry.size):
        return _taps_of_all(geometry)
    return _indices(geometry, box, cells)


@lru_cache(maxsize=64)
def _taps_of_all(geometry: ConvGeometry) -> tuple[_Tap, ...]:
    return tuple(_indices(geometry, whole(geometry.out), whole(geometry.size)))


def _indices(geometry: ConvGeometry, box: Slices, cells: Slices) -> Iterator[_Tap]:
    lengths = tuple(out.stop - out.start for out in box)
    beyond = (slice(None),) * (1 + geometry.ndim)
    for tap, outputs, inputs in tap_slices(geometry, box, cells):
        met = tuple(out.stop - out.start for out in outputs)
        yield _Tap(last(tap + beyond), last(outputs), last(inputs), met == lengths)


def im2col(
    x: npt.ArrayLike,
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> Array:
    r"""Unroll the windows of ``x`` into the columns of a matrix.

    .. math:: \text{cols}[(c, t), (n, o)] = x[n, c, o \cdot \text{stride}
              + t \cdot \text{dilation} - \text{before}],

    zero where that is outside ``x``. ``w.reshape(F, -1) @ cols`` is the convolution of ``x``.

    Parameters
    ----------
    x : array_like
        (N, C, \*spatial).
    kernel_size : int or one int a spatial axis
    stride, dilation : int or one int a spatial axis
    padding : int, one int or one (before, after) pair a spatial axis, "valid" or "same"

    Returns
    -------
    ndarray
        (C \* prod(kernel_size), N \* prod(out)), of the type of ``x``. Rows run over channel and
        tap, columns over image and output position, both in C order.

    Raises
    ------
    TypeError
        Where ``x`` holds no numbers or an argument is not made of ints.
    ValueError
        Where the sizes do not fit one another.

    See Also
    --------
    col2im : Its adjoint.

    Notes
    -----
    Time and memory are those of the result, prod(kernel_size) / prod(stride) times the input.
    After Chellapilla, Puri and Simard, "High performance convolutional neural networks for
    document processing" (2006).

    Examples
    --------
    >>> im2col([[[1, 2, 3, 4]]], 3, padding=((1, 0),))
    array([[0, 1, 2],
           [1, 2, 3],
           [2, 3, 4]])

    The first window holds the cell of padding before 1.
    """
    x = read_array("x", x)
    geometry = _window_geometry(x.shape, kernel_size, stride, padding, dilation, "x")
    cols = np.empty((geometry.C, *geometry.kernel, geometry.N, *geometry.out), x.dtype)
    box, cells = whole(geometry.out), whole(geometry.size)
    gather(geometry, np.moveaxis(x, 0, 1), cols, box, cells)
    return cols.reshape(geometry.cols_shape)


@without_warnings
def col2im(
    cols: npt.ArrayLike,
    x_shape: Sequence[SupportsIndex],
    kernel_size: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
) -> Array:
    r"""Add the columns of a matrix to the windows that they came from: the adjoint of im2col.

    .. math:: x[n, c, i] = \sum_{(t, o):\; o \cdot \text{stride} + t \cdot \text{dilation}
              - \text{before} = i} \text{cols}[(c, t), (n, o)]

    Overlapping entries add, so this is not the inverse: ``col2im(im2col(x))`` is ``x`` times the
    number of windows that cover each cell.

    Parameters
    ----------
    cols : array_like
        (C \* prod(kernel_size), N \* prod(out)).
    x_shape : tuple of int
        (N, C, \*spatial) of the result.
    kernel_size, stride, dilation : int or one int a spatial axis
    padding : int, one int or one (before, after) pair a spatial axis, "valid" or "same"

    Returns
    -------
    ndarray
        Of ``x_shape``; integers and bools add as int64, float16 adds in float32 and is rounded
        once, other types stay.

    Raises
    ------
    TypeError
        Where ``cols`` holds no numbers or an argument is not made of ints.
    ValueError
        Where the sizes do not fit one another.

    Notes
    -----
    Time is that of reading ``cols`` once; memory beyond the result is none, but for float16 twice
    the result.

    Examples
    --------
    How many windows of three cover each of four cells:

    >>> col2im(np.ones((3, 2)), (1, 1, 4), 3)
    array([[[1., 2., 2., 1.]]])
    """
    cols = read_array("cols", cols)
    shape = shape_of("x_shape", x_shape)
    geometry = _window_geometry(shape, kernel_size, stride, padding, dilation, "x_shape")
    expect_shape("cols", cols.shape, geometry.cols_shape, "(C * prod(kernel), N * prod(out))")
    result = result_type(cols)
    x = np.zeros(geometry.x_shape, computing_type(result))
    columns = cols.reshape(geometry.C, *geometry.kernel, geometry.N, *geometry.out)
    scatter(geometry, columns, np.moveaxis(x, 0, 1), whole(geometry.out), whole(geometry.size))
    return x.astype(result, copy=False)


def _window_geometry(
    x_shape: tuple[int, ...],
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    name: str,
) -> ConvGeometry:
    """Return the geometry of one filter over all channels; F plays no part here."""
    if len(x_shape) < 3:
        raise ValueError(
            f"{name} must have at least one spatial axis, (N, C, *spatial), got shape {x_shape}"
        )
    kernel = axis_sizes("kernel_size", kernel_size, len(x_shape) - 2)
    w_shape = (1, x_shape[1], *kernel)
    return geometry_of(x_shape, w_shape, stride, padding, dilation, 1, names=(name, "kernel_size"))
