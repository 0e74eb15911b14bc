"""Which outputs of a tile meet which of its cells, and at which tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array

__all__ = ["Axis", "Pairs", "pairs_of"]


class Axis(NamedTuple):
    """One axis of a tile: output ``o`` and tap ``t`` meet at cell o stride + t dilation + lead."""

    outs: int
    cells: int
    lead: int
    kernel: int
    stride: int
    dilation: int

    def runs(self) -> list[tuple[int, int, int, int]]:
        """Return (first output, its cell, tap, outputs) of each tap that meets the tile's cells."""
        found = []
        for tap in range(self.kernel):
            shift = tap * self.dilation + self.lead
            first = max(-(shift // self.stride), 0)
            end = min((self.cells - 1 - shift) // self.stride + 1, self.outs)
            if first < end:
                found.append((first, first * self.stride + shift, tap, end - first))
        return found

    def singles(self) -> list[tuple[int, int, int]]:
        """Return (output, its cell, tap) of each output and tap that meet, by outputs."""
        return sorted(
            (first + i, cell + i * self.stride, tap)
            for first, cell, tap, outs in self.runs()
            for i in range(outs)
        )


class Pairs(NamedTuple):
    """For each line of outputs and each tap: where it begins, where its cells do, its length.

    Positions are counted in C order over the tile's outputs and over its cells.
    """

    out: Array
    cell: Array
    tap: Array
    length: Array


def pairs_of(axes: Sequence[Axis]) -> Pairs:
    """Return all pairs of a tile; lines run along the last axis.

    Examples
    --------
    Three outputs of a kernel of 3 over the cells 0, 1, 2, with one cell of padding on each side:

    >>> pairs = pairs_of([Axis(outs=3, cells=3, lead=-1, kernel=3, stride=1, dilation=1)])
    >>> [[int(i) for i in numbers] for numbers in pairs]
    [[1, 0, 0], [0, 0, 1], [0, 1, 2], [2, 3, 2]]
    """
    *outer, last = axes
    out = cell = tap = np.zeros(1, np.int64)
    for axis in outer:
        o, i, t = _columns(axis.singles(), 3)
        out = np.add.outer(out * axis.outs, o).ravel()
        cell = np.add.outer(cell * axis.cells, i).ravel()
        tap = np.add.outer(tap * axis.kernel, t).ravel()
    o, i, t, length = _columns(last.runs(), 4)
    return Pairs(
        np.add.outer(out * last.outs, o).ravel(),
        np.add.outer(cell * last.cells, i).ravel(),
        np.add.outer(tap * last.kernel, t).ravel(),
        np.tile(length, len(out)),
    )


def _columns(rows: list[tuple[int, ...]], width: int) -> Array:
    return np.array(rows, np.int64).reshape(-1, width).T
