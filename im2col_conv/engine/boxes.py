"""Which cells belong to a box of outputs, and which outputs to a box of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["cells_seen", "joined", "most_cells", "most_outputs", "outputs_touching", "places_of"]


def cells_seen(geometry: ConvGeometry, box: Slices) -> Slices:
    """Return the cells from the first to the last that the windows of the outputs ``box`` hold."""
    return tuple(
        slice(
            min(max(o.start * stride - before, 0), size),
            max(min((o.stop - 1) * stride - before + reach, size), 0),
        )
        for o, stride, (before, _), reach, size in zip(
            box, geometry.stride, geometry.padding, geometry.reach, geometry.size, strict=True
        )
    )


def outputs_touching(geometry: ConvGeometry, cells: Slices) -> Slices:
    """Return the outputs from the first to the last whose windows may hold one of ``cells``."""
    touching = []
    for inside, reach, stride, (before, _), out in zip(
        cells, geometry.reach, geometry.stride, geometry.padding, geometry.out, strict=True
    ):
        first = max(-((reach - 1 - before - inside.start) // stride), 0)
        end = min((inside.stop - 1 + before) // stride + 1, out)
        touching.append(slice(first, max(first, end)))
    return tuple(touching)


def most_cells(geometry: ConvGeometry, outs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the most cells an axis that a box of so many outputs sees."""
    return tuple(
        min((o - 1) * stride + reach, size)
        for o, stride, reach, size in zip(
            outs, geometry.stride, geometry.reach, geometry.size, strict=True
        )
    )


def most_outputs(geometry: ConvGeometry, cells: tuple[int, ...]) -> tuple[int, ...]:
    """Return the most outputs an axis that touch a box of so many cells."""
    return tuple(
        min((i + reach - 2) // stride + 1, out)
        for i, stride, reach, out in zip(
            cells, geometry.stride, geometry.reach, geometry.out, strict=True
        )
    )


def places_of(sizes: Sequence[int], steps: Sequence[int]) -> Array:
    """Return where the cells of a box lie, in C order, whose axes have so many, so far apart.

    Examples
    --------
    >>> places_of((2, 3), (10, 2))
    array([ 0,  2,  4, 10, 12, 14])
    """
    places = np.zeros(1, np.int64)
    for size, step in zip(sizes, steps, strict=True):
        places = np.add.outer(places, np.arange(size) * step).ravel()
    return places


def joined(sizes: Sequence[int], apart: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return fewer and longer axes, where the cells of a box follow one another, and their steps.

    Examples
    --------
    >>> joined((3, 4, 5), (40, 5, 1)), joined((3, 4), (8, 2))
    (((3, 20), (40, 1)), ((12,), (2,)))
    """
    longer, steps = list(sizes[-1:]), list(apart[-1:])
    for size, step in zip(sizes[-2::-1], apart[-2::-1], strict=True):
        if step == longer[0] * steps[0]:
            longer[0] *= size
        else:
            longer.insert(0, size)
            steps.insert(0, step)
    return tuple(longer), tuple(steps)
