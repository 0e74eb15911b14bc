r"""Depthwise layers: with channels innermost, columns are a view, and nothing is copied to them.

Every channel sees itself alone, so a column holds the taps of one channel, and beside it lie those
of all others. The columns of a tile are therefore a view :math:`cols[t, n, o, c]` of its padded
cells, and

.. math:: y[n, o, c] = \sum_t w[t, c] \, cols[t, n, o, c], \qquad
          dw[t, c] = \sum_{n, o} dout[n, o, c] \, cols[t, n, o, c]

multiply number by number. ``np.einsum`` does so in one pass over lines of L numbers, which should
be long: the channels of a *run* of neighbouring cells, for each of which the weights are stored
once. Where the stride is more than 1, cells are stored by phases, so that those under neighbouring
outputs are neighbours too, unless a cell alone has channels enough. Where channels come first, the
copies that are made anyway, of the padded cells, of y and dout, have them innermost: lines of few
outputs, and integers, pay for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.im2col.columns import Columns, Shape
from im2col_conv.engine.im2col.gathering import view_windows
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.tiling import EVEN, Tiling, cut_evenly, is_small
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices, tap_slices, whole

__all__ = [
    "SHORT_LINE",
    "ViewedColumns",
    "forward",
    "is_viewed",
    "multiply_inside",
    "viewed_columns",
    "weight_product",
]

# Measured: docs/ideas.md.
TILE_BYTES = 2**22
MOST_WEIGHTS = 2**16  # numbers of all cells of a run
MANY_CHANNELS = 80  # that make a line of their own
SHORT_LINE = 16  # outputs, below which channels that come first are laid beside each other
LEAST_TURNED = 5 * 10**5  # operations of a pass that pay for it
CELL_COST = 4  # operations of a product while a number is read or written


class ViewedColumns(NamedTuple):
    """Tiles over (N, groups, *out) whose columns are views, and what they take.

    Attributes
    ----------
    tiling : Tiling
    run : int
        Cells of a line that are multiplied side by side.
    phases : int
        In how many a line of cells is stored.
    tile_bytes, weight_bytes : int
        Memory of a tile, and of the weights of a run.
    work : int
        Operations that columns would be multiplied with in the time of a pass.
    """

    tiling: Tiling
    run: int
    phases: int
    tile_bytes: int
    weight_bytes: int
    work: int


def is_viewed(geometry: ConvGeometry, layout: str, dtype: np.dtype[Any]) -> bool:
    """Say whether each channel sees itself alone, and all lie beside each other or should.

    Complex numbers have no such columns.
    """
    if dtype.kind == "c" or not geometry.depthwise:
        return False
    slow = geometry.out[-1] < SHORT_LINE or dtype.kind == "i"  # as columns that are copied
    return layout == "channels_last" or (slow and geometry.flops >= LEAST_TURNED)


def viewed_columns(
    geometry: ConvGeometry, layout: str, dtype: np.dtype[Any], workspace: int
) -> ViewedColumns | None:
    """Return the tiles of a depthwise layer; None where its columns are no views.

    None also where windows are so sparse that views would take more memory than columns, or where
    the workspace is too small.
    """
    if not is_viewed(geometry, layout, dtype) or 0 in geometry.y_shape:
        return None
    phases = geometry.stride[-1] if geometry.C < MANY_CHANNELS else 1
    run = _run(geometry) if phases == geometry.stride[-1] else 1
    cell = geometry.C * dtype.itemsize
    weight_bytes = geometry.taps * run * cell
    numbers = math.prod(geometry.x_shape) + math.prod(geometry.y_shape)
    work = geometry.flops + CELL_COST * numbers
    shares = 1 if is_small(work) else EVEN
    share = -(-geometry.N * geometry.positions // shares)
    most = min(share, max(TILE_BYTES // (cell * (1 + math.prod(geometry.stride))), 1))
    while most:
        images, *outs = cut_evenly((geometry.N, *geometry.out), most, shares).step
        made, seen = math.prod(outs), math.prod(_seen(geometry, tuple(outs), phases))
        # what is seen, made, and with several phases the sums of one
        stored = images * (seen + (2 if phases > 1 else 1) * made)
        if EVEN * (stored * cell + weight_bytes) + weight_bytes <= workspace:
            if seen > geometry.taps * made:
                return None
            extent = (geometry.N, geometry.groups, *geometry.out)
            tiling = Tiling(extent, (images, geometry.groups, *outs))
            tile_bytes = stored * cell + weight_bytes
            return ViewedColumns(tiling, run, phases, tile_bytes, weight_bytes, work)
        most //= 2
    return None


def _run(geometry: ConvGeometry) -> int:
    """Return how many cells of a line make a run: all, or equal parts of few enough weights."""
    line = geometry.out[-1]
    longest = max(1, MOST_WEIGHTS // (geometry.C * geometry.taps))
    return -(-line // -(-line // longest))


def _seen(geometry: ConvGeometry, outs: Shape, phases: int) -> Shape:
    """Return the cells of each axis that the windows of some outputs hold, as they are stored."""
    axes = zip(outs, geometry.stride, geometry.reach, strict=True)
    *outer, line = ((o - 1) * s + reach for o, s, reach in axes)
    return (*outer, -(-line // phases) * phases)


def forward(
    columns: Columns,
    views: ViewedColumns,
    dtype: np.dtype[Any],
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
) -> Work:
    """Return what fills ``y`` (N, C, *out), by sums of ``dtype``."""
    kernel, channels, run = columns.geometry.kernel, columns.geometry.C, views.run
    W = np.empty((*kernel, run, channels), dtype)
    W[...] = np.moveaxis(w[:, 0], 0, -1)[..., None, :]
    W = W.reshape(*kernel, -1)
    bias = None if b is None else np.tile(b.astype(dtype), run)
    image = by_group(x, 1)

    def fill(index: int, scratch: Scratch) -> None:
        images, _, *box = views.tiling[index]
        part = np.moveaxis(y[images, :, *box], 1, -1)
        in_place = part.dtype == dtype and _follow(part)
        made = part if in_place else scratch.array("y", part.shape, dtype)
        seen = image[:, :, images]
        turns = view_windows(columns, scratch, seen, dtype, tuple(box), views.phases)
        _sum_up(turns, W, bias, run, made)
        if not in_place:
            part[...] = made

    return Work(fill)


def _sum_up(
    turns: Iterable[tuple[Slices, Array]], W: Array, bias: Array | None, run: int, y: Array
) -> None:
    """Set ``y[n, *o, c]`` to the sums of all taps, which come in turns, and the bias."""
    for turn, (taps, windows) in enumerate(turns):
        for cols, sums in _runs(run, windows, y):
            t, o = _axes(len(taps), cols)
            L = sums.shape[-1]
            # y (o, L) = the sum over t of W (t, L) * cols (t, o, L)
            terms = cols, t + o, W[*taps, :L], t + o[-1:], o
            if turn > 0:
                sums += np.einsum(*terms)
                continue
            np.einsum(*terms, out=sums)
            if bias is not None:
                sums += bias[:L]


def weight_product(
    columns: Columns,
    views: ViewedColumns,
    scratch: Scratch,
    dout: Array,
    x: Array,
    dtype: np.dtype[Any],
    box: Slices,
) -> Array:
    """Return one tile's dw (g, 1, taps), of ``dout[g, 1, n, *o]`` and ``x[g, 1, n, *size]``."""
    geometry = columns.geometry
    part = np.moveaxis(dout[:, 0], 0, -1)
    douts = part
    if part.dtype != dtype or not _follow(part):
        douts = scratch.array("dout", part.shape, dtype)
        douts[...] = part
    dw = np.zeros((*geometry.kernel, len(x)), dtype)
    turns = view_windows(columns, scratch, x.swapaxes(0, 1), dtype, box, views.phases)
    for taps, windows in turns:
        for cols, line in _runs(views.run, windows, douts):
            t, o = _axes(geometry.ndim, cols)
            for some in _parts(views.run, cols, geometry.ndim):
                # dW (t, L) = the sum over o of dout (o, L) * cols (t, o, L)
                product = np.einsum(cols[some], t + o, line, o, t + o[-1:])
                cells = product.reshape(*product.shape[:-1], -1, len(x))
                dw[*taps][some] += cells.sum(axis=-2)
    if any(map(any, geometry.padding)) and not np.isfinite(dw).all():
        multiply_inside(geometry, douts, x, box, dw)
    return np.moveaxis(dw, -1, 0).reshape(len(x), 1, -1)


def multiply_inside(geometry: ConvGeometry, dout: Array, x: Array, box: Slices, dw: Array) -> None:
    """Set ``dw[*tap, c]`` to sums without padding, whose zeros times infinity make NaN.

    ``dout[n, *o, c]`` are the outputs of the box, ``x[c, 1, n, *size]`` all cells.
    """
    cells, axes = np.moveaxis(x[:, 0], 0, -1), list(range(dout.ndim))
    for tap, outputs, inputs in tap_slices(geometry, box, whole(geometry.size)):
        terms = dout[:, *outputs], axes, cells[:, *inputs], axes
        dw[*tap] = np.einsum(*terms, axes[-1:], dtype=dw.dtype)


def _parts(run: int, cols: Array, taps: int) -> list[Any]:
    """Return indices of ``cols[*tap, n, *o, L]`` for one sum each.

    Where a line has several runs, and two axes have taps, one tap of the last axis after the other:
    ``np.einsum`` takes up to twice as long for sums that it goes on with line by line.
    """
    if taps == 1 or run == 1 or cols.shape[-2] == 1:
        return [...]
    outer = (slice(None),) * (taps - 1)
    return [(*outer, slice(tap, tap + 1)) for tap in range(cols.shape[taps - 1])]


def _axes(taps: int, cols: Array) -> tuple[list[int], list[int]]:
    """Return the numbers of the axes of taps, and of those of (n, *o, L)."""
    axes = list(range(cols.ndim))
    return axes[:taps], axes[taps:]


def _runs(run: int, windows: Array, outs: Array) -> Iterator[tuple[Array, Array]]:
    """Yield ``windows[0, c, *tap, n, *o]`` and ``outs[n, *o, c]`` as [..., runs, L], and a rest.

    Where a run is one cell, or cells do not follow one another in memory, axes stay as they are.
    """
    cols = np.moveaxis(windows[0], 0, -1)
    if run == 1 or not (_follow(cols) and _follow(outs)):
        yield cols, outs
        return
    line = outs.shape[-2]
    whole_runs = line // run * run
    for first, end, length in ((0, whole_runs, run), (whole_runs, line, line - whole_runs)):
        if first < end:
            yield (
                _in_runs(cols[..., first:end, :], length),
                _in_runs(outs[..., first:end, :], length),
            )


def _in_runs(cells: Array, run: int) -> Array:
    """Return a view [..., runs, L] of cells [..., o, c]."""
    *outer, line, channels = cells.shape
    return cells.reshape(*outer, line // run, run * channels, copy=False)


def _follow(cells: Array) -> bool:
    """Say whether the cells of each line follow one another."""
    *_, cell, channel = cells.strides
    return bool(cells.shape[-2] == 1 or cell == cells.shape[-1] * channel)
