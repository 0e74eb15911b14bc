"""Which outputs of a tile meet which of its cells, and at which tap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = [
    "Axis",
    "Pairs",
    "axes_between",
    "leaders_first",
    "meetings",
    "pairs_of",
    "places_of",
]


class Axis(NamedTuple):
    """One axis of a tile: output ``o`` and tap ``t`` meet at cell o stride + t dilation + lead."""

    outs: int
    cells: int
    lead: int
    kernel: int
    stride: int
    dilation: int

    def adjoint(self) -> Axis:
        """Return how cells meet the outputs at the taps in reverse, for a stride of 1."""
        lead = -self.lead - (self.kernel - 1) * self.dilation
        return self._replace(outs=self.cells, cells=self.outs, lead=lead)

    def lines(self, longest: int) -> list[tuple[int, int, int, int]]:
        """Return (first output, its cell, tap, outputs) of each tap that meets the tile's cells.

        Lines of more than ``longest`` outputs are cut.
        """
        found = []
        for tap in range(self.kernel):
            shift = tap * self.dilation + self.lead
            first = max(-(shift // self.stride), 0)
            end = min((self.cells - 1 - shift) // self.stride + 1, self.outs)
            for at in range(first, end, longest):
                length = min(longest, end - at)
                found.append((at, at * self.stride + shift, tap, length))
        return found

    def singles(self) -> list[tuple[int, int, int, int]]:
        """Return (output, its cell, tap, 1) of each output and tap that meet, by outputs."""
        return sorted(
            (first + i, cell + i * self.stride, tap, 1)
            for first, cell, tap, outs in self.lines(max(self.outs, 1))
            for i in range(outs)
        )

    def runs(self, longest: int) -> list[tuple[int, int, int, int]]:
        """Return (output, first cell, first tap, taps) of runs of taps on neighbouring cells."""
        if self.dilation > 1:
            return self.singles()
        found: list[tuple[int, int, int, int]] = []
        for out, cell, tap, _ in self.singles():
            if found and found[-1][0] == out and found[-1][3] < longest:
                found[-1] = (*found[-1][:3], found[-1][3] + 1)
            else:
                found.append((out, cell, tap, 1))
        return found


def axes_between(geometry: ConvGeometry, box: Slices, cells: Slices) -> tuple[Axis, ...]:
    """Return how the outputs ``box`` meet ``cells``: the same for all tiles that lie alike."""
    return tuple(
        Axis(
            outs=o.stop - o.start,
            cells=max(i.stop - i.start, 0),
            lead=o.start * stride - before - i.start,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
        )
        for o, i, stride, (before, _), kernel, dilation in zip(
            box,
            cells,
            geometry.stride,
            geometry.padding,
            geometry.kernel,
            geometry.dilation,
            strict=True,
        )
    )


@lru_cache(maxsize=64)
def meetings(axis: Axis) -> list[tuple[int, slice, slice, list[slice]]]:
    """Return each tap, the outputs at which it meets cells, those cells, and the other outputs.

    Examples
    --------
    >>> axis = Axis(outs=3, cells=3, lead=-1, kernel=2, stride=1, dilation=1)
    >>> [(tap, outs, others) for tap, outs, _, others in meetings(axis)][0]
    (0, slice(1, 3, None), [slice(0, 1, None)])
    """
    lines = {tap: (out, cell, outs) for out, cell, tap, outs in axis.lines(max(axis.outs, 1))}
    found = []
    for tap in range(axis.kernel):
        out, cell, outs = lines.get(tap, (0, 0, 0))
        cells = slice(cell, cell + (outs - 1) * axis.stride + 1 if outs else cell, axis.stride)
        others = [slice(0, out), slice(out + outs, axis.outs)]
        others = [each for each in others if each.start < each.stop]
        found.append((tap, slice(out, out + outs), cells, others))
    return found


class Pairs(NamedTuple):
    """Lines of outputs and the cells that they meet at a tap, or at a run of taps.

    Attributes
    ----------
    out, cell : ndarray
        Where the line begins, in C order over the axes but the last.
    at, last_cell, last_tap : ndarray
        First output, its cell and the tap on the last axis.
    tap, taps : ndarray
        First tap, in C order over the axes but the last, and how many follow each other.
    length : ndarray
        Outputs.
    """

    out: Array
    cell: Array
    tap: Array
    taps: Array
    at: Array
    last_cell: Array
    last_tap: Array
    length: Array


def pairs_of(axes: Sequence[Axis], longest: int, *, run: int = 1) -> Pairs:
    """Return all pairs of a tile: lines run along its last axis.

    Up to ``run`` taps of the axis before the last are one pair, where they meet neighbouring cells.

    Examples
    --------
    Three outputs of a kernel of 3 over three cells, with one cell of padding on each side:

    >>> axis = Axis(outs=3, cells=3, lead=-1, kernel=3, stride=1, dilation=1)
    >>> pairs = pairs_of([axis], longest=100)
    >>> [[int(i) for i in row] for row in (pairs.at, pairs.last_cell, pairs.last_tap, pairs.length)]
    [[1, 0, 0], [0, 0, 1], [0, 1, 2], [2, 3, 2]]
    """
    *outer, last = axes
    out = cell = tap = np.zeros(1, np.int64)
    taps = np.ones(1, np.int64)
    for axis in outer:
        met = axis.runs(run if axis is outer[-1] else 1)
        o, i, t, taps = np.array(met, np.int64).reshape(-1, 4).T
        out = np.add.outer(out * axis.outs, o).ravel()
        cell = np.add.outer(cell * axis.cells, i).ravel()
        tap = np.add.outer(tap * axis.kernel, t).ravel()
    lines = np.array(last.lines(longest), np.int64).reshape(-1, 4)
    taps = np.tile(taps, len(out) // max(len(taps), 1))
    outer_numbers = (np.repeat(numbers, len(lines)) for numbers in (out, cell, tap, taps))
    return Pairs(*outer_numbers, *np.tile(lines.T, len(out)))


def leaders_first(
    axes: Sequence[Axis], pairs: Pairs, results: Literal["outs", "cells"]
) -> tuple[Pairs, Array] | None:
    """Return the pairs in an order in which each result is first met as one of a whole line.

    Beside them, which pairs these leaders are: their products may overwrite what was there before.
    None where a line of results meets no tap that it meets as a whole.

    Examples
    --------
    >>> axis = Axis(outs=3, cells=3, lead=-1, kernel=3, stride=1, dilation=1)
    >>> pairs, leads = leaders_first([axis], pairs_of([axis], longest=100), "outs")
    >>> [int(tap) for tap in pairs.last_tap], [bool(lead) for lead in leads]
    ([1, 0, 2], [True, False, False])
    """
    *outer, last = axes
    line, lines = (last.outs, pairs.out) if results == "outs" else (last.cells, pairs.cell)
    apart = last.stride > 1 and results == "cells"
    taps = [tap for _, _, tap, length in last.lines(max(line, 1)) if length == line]
    met, first = np.unique(lines, return_index=True)
    if apart or not taps or len(met) < math.prod(getattr(axis, results) for axis in outer):
        return None
    leads = (pairs.last_tap == taps[0]) & (pairs.tap == pairs.tap[first][lines])
    order = np.lexsort((~leads, lines))  # line by line, so that each stays in the cache
    return Pairs(*(numbers[order] for numbers in pairs)), leads[order]


def places_of(numbers: Array, sizes: Sequence[int]) -> list[Array]:
    """Return the index along each axis of cells that are counted in C order.

    ``np.unravel_index`` does so too, but of columns of more than 8192 numbers it returns wrong ones
    (NumPy's issue 31980).

    Examples
    --------
    >>> [[int(i) for i in indices] for indices in places_of(np.array([0, 7, 29]), (2, 3, 5))]
    [[0, 0, 1], [0, 1, 2], [0, 2, 4]]
    """
    indices = []
    for size in reversed(sizes):
        numbers, index = np.divmod(numbers, size)
        indices.append(index)
    return indices[::-1]
