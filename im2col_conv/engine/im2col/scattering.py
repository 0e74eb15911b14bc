"""Add a tile's columns to a block of cells: to the cells as they are, or to their phases.

The cells that a tap meets lie a stride apart. In a phase of their own they lie side by side, so
that columns are added line by line; in the end the phases are put where the cells belong.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.im2col.columns import Columns
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Ends, Index, Slices, ends, last, scatter, tap_slices

__all__ = ["put_phases", "room_for_phases", "scatter_tile"]


def room_for_phases(
    columns: Columns, scratch: Scratch, block: Array, phases: int, dtype: np.dtype[Any]
) -> Array:
    """Return unfilled memory ``cells[phase, g, c, n, *cells]`` for ``block[g, c, n, *cells]``."""
    g, *others, line = block.shape
    shape = (phases * g, *others, -(-line // phases))
    return columns.like_image(scratch, "dx", shape, dtype).reshape(phases, g, *shape[1:])


def put_phases(cells: Array, block: Array) -> None:
    """Fill ``block[g, c, n, *cells]`` with the numbers of its phases."""
    for phase, numbers in enumerate(cells):
        part = block[..., phase :: len(cells)]
        part[...] = numbers[..., : part.shape[-1]]


def scatter_tile(
    geometry: ConvGeometry, cols: Array, cells: Array, box: Slices, block: Slices
) -> None:
    """Add ``cols[g, c, *tap, n, *o]`` of the outputs ``box`` to the cells of a ``block``.

    ``cells`` are [phase, g, c, n, *cells], in as many phases as the last stride, or in one.
    """
    if len(cells) == 1:
        scatter(geometry, cols, cells[0], box, block)
        return
    for met in _meetings(geometry, ends(box), ends(block)):
        part = cells[met.phase][met.places]
        part += cols[met.column][met.outputs]


class _Meeting(NamedTuple):
    """The outputs of a tile that a tap brings to cells of a block, as indices of arrays."""

    column: Index
    outputs: Index
    phase: int
    places: Index


@lru_cache(maxsize=64)
def _meetings(geometry: ConvGeometry, box: Ends, block: Ends) -> list[_Meeting]:
    found = []
    boxes = [tuple(slice(*axis) for axis in each) for each in (box, block)]
    for tap, outputs, (*outer, line) in tap_slices(geometry, *boxes):
        first, phase = divmod(line.start, geometry.stride[-1])
        places = slice(first, first + outputs[-1].stop - outputs[-1].start)
        column = (slice(None), slice(None), *tap)
        found.append(_Meeting(column, last(outputs), phase, last((*outer, places))))
    return found
