"""Fill a tile's columns from the input: as a view, in one strided copy, or tap by tap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.im2col.columns import Columns, Shape, as_matrix
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Ends, Slices, ends, gather, last, whole

__all__ = ["Band", "band_of", "column_bytes", "gather_tile", "phases_of", "view_windows"]

BAND_SHARE = 2
MOST_LIES = 4  # of the cells of a band, kept from call to call
# Measured: docs/ideas.md.
LEAST_LINE = 12  # outputs of a line that pay for cells by phases


def band_of(columns: Columns, box: Slices) -> Band:
    """Return what the windows of the outputs ``box`` see, as :func:`gather_tile` stores it."""
    geometry = columns.geometry
    return _band(geometry, ends(box), 1 if columns.rows else phases_of(geometry))


def gather_tile(
    columns: Columns,
    scratch: Scratch,
    x: Array,
    dtype: np.dtype[Any],
    band: Band,
    *,
    ones: bool = False,
) -> Array:
    """Return the column matrix (g, K, L) of the outputs of a band of ``x[g, c, n, *size]``.

    With ``ones``, a row of ones may stand below it: see :meth:`Columns.empty`.

    A kernel of one tap may find the matrix in ``x`` as it lies. Else all windows are copied at once
    from the band, itself a copy where padding, phases or another type are wanted; or, where windows
    are so sparse that the copy would be large, tap by tap.
    """
    if band.alone is not None and x.dtype == dtype:
        view = as_matrix(x[band.alone])
        if view is not None:
            return view
    windows: list[tuple[Slices, Array]] = []
    if band.dense or _lies(x, dtype, band):
        windows = _windows(_cells(columns, scratch, x, dtype, band), band)
    positions = (x.shape[2], *band.lengths)
    cols, matrix = columns.empty(scratch, dtype, x.shape[0], x.shape[1], positions, ones=ones)
    for taps, part in windows:
        copy_lines(part, cols[:, :, *taps])
    if not windows:
        gather(columns.geometry, x, cols, band.box, whole(columns.geometry.size))
    return matrix


def view_windows(
    columns: Columns, scratch: Scratch, x: Array, dtype: np.dtype[Any], box: Slices, phases: int
) -> list[tuple[Slices, Array]]:
    """Return taps, and their columns of the outputs ``box`` as a view [g, c, *tap, n, *o]."""
    band = _band(columns.geometry, ends(box), phases)
    return _windows(_cells(columns, scratch, x, dtype, band), band)


@lru_cache(maxsize=64)
def phases_of(geometry: ConvGeometry) -> int:
    """Return in how many phases the cells of a line are stored for upright windows.

    The cells that a tap meets lie a stride apart: in a phase of their own they are contiguous, and
    are copied, or added to, line by line. Short lines, or few taps, do not pay for storing them so.
    """
    stride = geometry.stride[-1]
    return stride if geometry.out[-1] >= LEAST_LINE and geometry.kernel[-1] > stride else 1


def column_bytes(window: int, dtype: np.dtype[Any]) -> int:
    """Return what a column of ``window`` numbers takes, with its share of the largest band."""
    nbytes = window * dtype.itemsize
    return nbytes + nbytes // BAND_SHARE


class Band(NamedTuple):
    """The cells from the first to the last that a ``box`` of outputs sees, padding included.

    They are worth storing where they are ``dense``, few beside the box's windows. A line of them
    comes in as many ``phases``, each of every so many-th cell.
    """

    box: Slices
    lengths: Shape  # of the box
    alone: tuple[Any, ...] | None  # which cells one tap meets without padding, in a whole image
    shape: Shape
    phases: int
    inside: tuple[Any, ...]  # which cells of the input are among them
    loads: tuple[_Load, ...]  # of these
    padded: bool
    dense: bool
    stride: Shape  # among the cells of a phase
    turns: tuple[_Turn, ...]
    lies: dict[tuple[Shape, Shape], list[_View]]  # by the shape and strides of its cells


class _Load(NamedTuple):
    """Which cells of the input belong to a phase, where in it they are, and where among all."""

    phase: int
    inside: tuple[Any, ...]
    middle: Slices
    place: tuple[Any, ...]


class _Turn(NamedTuple):
    """Taps that meet cells of one phase on the last axis, every so many-th of it."""

    taps: Slices
    kernel: Shape  # how many they are
    dilation: Shape  # among the cells of the phase
    phase: int
    place: int  # where in it the first of them begins


class _View(NamedTuple):
    """How what a turn's taps meet lies in memory, in bytes from the first cell."""

    shape: Shape
    offset: int
    strides: Shape


@lru_cache(maxsize=64)
def _band(geometry: ConvGeometry, box: Ends, phases: int) -> Band:
    """Return what the outputs ``box``, (start, stop) on each axis, see."""
    lengths = tuple(stop - start for start, stop in box)
    seen = [
        (start * s - before, (stop - 1) * s - before + reach)
        for (start, stop), s, reach, (before, _) in zip(
            box, geometry.stride, geometry.reach, geometry.padding, strict=True
        )
    ]
    inside = tuple(
        slice(min(max(start, 0), size), max(min(stop, size), 0))
        for (start, stop), size in zip(seen, geometry.size, strict=True)
    )
    middle = tuple(
        slice(cells.start - start, cells.stop - start)
        for cells, (start, _) in zip(inside, seen, strict=True)
    )
    *outer, cells = (stop - start for start, stop in seen)
    shape = (*outer, -(-cells // phases) * phases)
    return Band(
        box=tuple(slice(*part) for part in box),
        lengths=lengths,
        alone=_cells_of_one_tap(geometry, box),
        shape=shape,
        phases=phases,
        inside=last(inside),
        loads=tuple(_loads(inside, middle, phases)),
        padded=middle != whole(shape),
        dense=BAND_SHARE * math.prod(shape) <= geometry.taps * math.prod(lengths),
        stride=(*geometry.stride[:-1], geometry.stride[-1] // phases),
        turns=tuple(_turns(geometry, phases)),
        lies={},
    )


def _loads(inside: Slices, middle: Slices, phases: int) -> Iterator[_Load]:
    (*outer, line), (*places, place) = inside, middle
    for phase in range(phases):
        skipped = (phase - place.start) % phases
        part = slice(line.start + skipped, line.stop, phases)
        at = (place.start + skipped) // phases
        within = (*places, slice(at, at + len(range(part.start, part.stop, phases))))
        yield _Load(phase, last((*outer, part)), within, (phase, *last(within)))


def _cells_of_one_tap(geometry: ConvGeometry, box: Ends) -> tuple[Any, ...] | None:
    if geometry.taps > 1 or any(map(any, geometry.padding)):
        return None
    axes = zip(box, geometry.stride, strict=True)
    return last(slice(start * s, (stop - 1) * s + 1, s) for (start, stop), s in axes)


def _turns(geometry: ConvGeometry, phases: int) -> Iterator[_Turn]:
    (*outer, taps), (*apart, dilation) = geometry.kernel, geometry.dilation
    turns = phases // math.gcd(phases, dilation)
    for turn in range(min(turns, taps)):
        place, phase = divmod(turn * dilation, phases)
        yield _Turn(
            taps=(*whole(tuple(outer)), slice(turn, None, turns)),
            kernel=(*outer, len(range(turn, taps, turns))),
            dilation=(*apart, dilation * turns // phases),
            phase=phase,
            place=place,
        )


def _lies(x: Array, dtype: np.dtype[Any], band: Band) -> bool:
    """Say whether the band is a part of ``x`` as it is."""
    return not band.padded and x.dtype == dtype and band.phases == 1


def _cells(columns: Columns, scratch: Scratch, x: Array, dtype: np.dtype[Any], band: Band) -> Array:
    """Return ``x[g, c, n, *band]`` by [phase, ...] in ``dtype``, zero where that is padding."""
    if _lies(x, dtype, band):
        inside: Array = x[band.inside]
        return inside[None]
    *outer, line = band.shape
    G, phases = len(x), band.phases
    shape = (phases * G, *x.shape[1:3], *outer, line // phases)
    cells = columns.like_image(scratch, "band", shape, dtype).reshape(phases, G, *shape[1:])
    if band.padded and not columns.rows:
        cells[...] = 0  # sooner than the ends of each line
    for load in band.loads:
        if columns.rows:
            _clear_beside(cells[load.phase], load.middle)
        cells[load.place] = x[load.inside]
    return cells


def _clear_beside(cells: Array, middle: Slices) -> None:
    """Set ``cells[..., *band]`` to zero but in their middle."""
    for axis, part in enumerate(middle, start=cells.ndim - len(middle)):
        index: list[Any] = [slice(None)] * cells.ndim
        for index[axis] in (slice(part.start), slice(part.stop, None)):
            cells[*index] = 0


def _windows(cells: Array, band: Band) -> list[tuple[Slices, Array]]:
    """Return taps, and the view [g, c, *tap, n, *o] of what they meet among the ``cells``."""
    lie = cells.shape[1:4], cells.strides
    views = band.lies.get(lie)
    if views is None:
        views = [_view_of(turn, band, *lie) for turn in band.turns]
        if len(band.lies) < MOST_LIES:
            band.lies[lie] = views
    turns = zip(band.turns, views, strict=True)
    if not cells.flags.c_contiguous:
        return [(turn.taps, _among(cells, turn, view)) for turn, view in turns]
    # NumPy checks that these views stay inside, and is the faster.
    return [
        (turn.taps, np.ndarray(v.shape, cells.dtype, cells, v.offset, v.strides))
        for turn, v in turns
    ]


def _among(cells: Array, turn: _Turn, view: _View) -> Array:
    first = cells[turn.phase, ..., turn.place :]
    return as_strided(first, view.shape, view.strides, writeable=False)


def _view_of(turn: _Turn, band: Band, outer: Shape, strides: Shape) -> _View:
    """Return what a turn's taps meet among cells (phase, g, c, n, *band), ``outer`` (g, c, n)."""
    (G, C, N), (apart, g, c, n, *steps) = outer, strides
    taps = _strides(steps, turn.dilation, turn.kernel)
    outs = _strides(steps, band.stride, band.lengths)
    return _View(
        shape=(G, C, *turn.kernel, N, *band.lengths),
        offset=turn.phase * apart + turn.place * steps[-1],
        strides=(g, c, *taps, n, *outs),
    )


def _strides(steps: list[int], apart: Shape, lengths: Shape) -> list[int]:
    """Return the strides of axes whose entries are so many cells ``apart``.

    One entry is apart from none, and its stride or dilation may be larger than any array.
    """
    return [
        step * cells if length > 1 else 0
        for step, cells, length in zip(steps, apart, lengths, strict=True)
    ]
