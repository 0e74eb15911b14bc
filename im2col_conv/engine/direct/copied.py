"""A copy of the cells that a tile sees, with zeros where there is padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.cells import Cells, Steps, steps_of
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.sums import lanes_of
from im2col_conv.engine.machine.row import Told
from im2col_conv.engine.workers import Scratch

__all__ = ["copied"]

_ZERO = {dtype: np.zeros(1, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


class _Lie(NamedTuple):
    """How both sides of a copy lie: ``given`` are the steps of ``image[n, c, *inside]``."""

    cells: Cells
    images: int
    channels: int
    given: tuple[int, ...]
    itemsize: int


def copied(
    plan: DirectPlan, scratch: Scratch, cells: Cells, image: Array
) -> tuple[Array, Steps, list[Told]]:
    """Return memory for a copy of ``image[n, c, *inside]``, how it lies, and what fills it.

    A vector of the last numbers may reach past them: so some more follow. No result keeps what
    comes of them; they are zero since numbers too small to be normal would be slow.
    """
    dtype, (n, c) = plan.dtype, image.shape[:2]
    size = cells.numbers(n, c)
    memory = scratch.array("x", (size + lanes_of(dtype),), dtype)
    given, told = steps_of(image, dtype), []
    if given is None:
        memory[...] = 0
        _fill(cells, memory[:size].reshape(cells.shape(n, c)), image)
    else:
        memory[size:] = 0
        blank, filled = plan.table(_Lie(cells, n, c, given, dtype.itemsize), _moves)
        pairs = (blank, _ZERO[dtype]), (filled, image)
        told = [moves.of(source, memory) for moves, source in pairs if moves is not None]
    return memory, cells.steps(n, c), told


def _fill(cells: Cells, copy: Array, image: Array) -> None:
    """Copy what machine code cannot read: other types, and steps backwards."""
    ordered = copy.transpose(cells.order)
    for phase in cells.met:
        first, places, count = cells.phase(phase)
        sizes = (*cells.inside[:-1], count)
        box = (slice(p, p + m) for p, m in zip(places, sizes, strict=True))
        view = ordered if cells.last else ordered[..., phase, :]
        view[(slice(None), slice(None), *box)] = image[..., first :: cells.phases]


def _moves(lie: _Lie) -> tuple[Moves | None, Moves | None]:
    """Return what sets the padding of a copy to zero, and what fills the rest; None for nothing."""
    cells, n, c, given, itemsize = lie
    steps = cells.steps(n, c)
    into = (steps.channel, *steps.axes)
    extent = (c, *cells.extent[:-1], -(-cells.extent[-1] // cells.phases))
    filled, blank = [], []
    for phase in cells.met:
        first, places, count = cells.phase(phase)
        begin, box = (0, *places), (c, *cells.inside[:-1], count)
        target = phase * steps.phase
        taken = (*given[1:-1], given[-1] * cells.phases)
        if count > 0:
            source = first * given[-1]
            filled.append(_box(cells, source, target, begin, box, taken, into))
        blank += [
            _box(cells, 0, target, edge, sizes, (0,) * len(into), into)
            for edge, sizes in _around(begin, box, extent)
        ]
    step = given[1] if cells.last else given[-1] * cells.phases
    zeros = Moves(blank, Again(n, 0, steps.image), 0, itemsize) if blank else None
    numbers = Moves(filled, Again(n, given[0], steps.image), step, itemsize) if filled else None
    return zeros, numbers


def _box(
    cells: Cells,
    source: int,
    target: int,
    begin: tuple[int, ...],
    box: tuple[int, ...],
    taken: tuple[int, ...],
    into: tuple[int, ...],
) -> Box:
    """Return a box [c, *cells] of one image, the axis at its end along which a copy has lines."""
    target += sum(at * step for at, step in zip(begin, into, strict=True))
    order = (*range(1, len(box)), 0) if cells.last else range(len(box))
    box, taken, into = (tuple(each[axis] for axis in order) for each in (box, taken, into))
    return Box(source, target, box, taken[:-1], into[:-1])


def _around(
    begin: tuple[int, ...], box: tuple[int, ...], extent: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (begin, sizes) of boxes that hold all of ``extent`` that a box leaves out.

    Examples
    --------
    >>> list(_around((0, 1), (2, 3), (2, 5)))
    [((0, 0), (2, 1)), ((0, 4), (2, 1))]
    """
    for axis, (at, size, whole) in enumerate(zip(begin, box, extent, strict=True)):
        for first, end in ((0, at), (at + size, whole)):
            if end > first:
                edge = (*begin[:axis], first, *[0] * (len(begin) - axis - 1))
                yield edge, (*box[:axis], end - first, *extent[axis + 1 :])
