"""A copy of the cells that a tile sees, with zeros where there is padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import places_of
from im2col_conv.engine.direct.cells import Cells
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import KeepingPlan
from im2col_conv.engine.direct.turns import Turns, side_of, strips_of
from im2col_conv.engine.machine.program import Place, Step

__all__ = ["copied", "fill", "numbers_of_copy"]


class _Lie(NamedTuple):
    """How both sides of a copy lie: ``given`` are the steps of ``image[n, c, *inside]``."""

    cells: Cells
    images: int
    channels: int
    given: tuple[int, ...]
    itemsize: int
    spare: int


def numbers_of_copy(plan: KeepingPlan, cells: Cells, images: int, channels: int) -> int:
    """Return how many numbers a copy takes.

    A vector of the last numbers may reach past them: so some more follow. No result keeps what
    comes of them; they are zero since numbers too small to be normal would be slow.
    """
    return cells.numbers(images, channels) + plan.lanes


def copied(
    plan: KeepingPlan,
    cells: Cells,
    images: int,
    channels: int,
    given: tuple[int, ...],
    image: Place,
    zero: Place,
    copy: Place,
) -> list[Step]:
    """Return the steps that copy ``image[n, c, *inside]``, which lies as ``given``."""
    lie = _Lie(cells, images, channels, given, plan.dtype.itemsize, plan.lanes)
    moves = plan.table(lie, _moves)
    pairs = zip(moves, (zero, zero, image), strict=True)
    return [each.of(source, copy) for each, source in pairs if each is not None]


def fill(cells: Cells, memory: Array, image: Array) -> None:
    """Copy ``image`` where machine code cannot read it: of other types, or with steps backwards."""
    n, c = image.shape[:2]
    memory[...] = 0
    copy = memory[: cells.numbers(n, c)].reshape(cells.shape(n, c))
    ordered = copy.transpose(cells.order)
    for phase in cells.met:
        first, places, count = cells.phase(phase)
        sizes = (*cells.inside[:-1], count)
        box = (slice(p, p + m) for p, m in zip(places, sizes, strict=True))
        view = ordered if cells.last else ordered[..., phase, :]
        view[(slice(None), slice(c), *box)] = image[..., first :: cells.phases]


def _moves(lie: _Lie) -> tuple[Moves | Turns | None, ...]:
    """Return what sets what follows a copy, and its padding, to zero, and what fills the rest.

    None for nothing.
    """
    cells, n, c, given, itemsize, spare = lie
    steps = cells.steps(n, c)
    into = (steps.channel, *steps.axes)
    extent = (c, *cells.extent[:-1], -(-cells.extent[-1] // cells.phases))
    filled: list[Box] = []
    blank: list[Box] = []
    for phase in cells.met:
        first, places, count = cells.phase(phase)
        begin, box = (0, *places), (c, *cells.inside[:-1], count)
        target = phase * steps.phase
        taken = (*given[1:-1], given[-1] * cells.phases)
        if min(box) > 0:
            source = first * given[-1]
            filled.append(_box(cells, source, target, begin, box, taken, into))
        blank += [
            _box(cells, 0, target, edge, sizes, (0,) * len(into), into)
            for edge, sizes in _around(begin, box, extent)
        ]
    after = Box(0, cells.numbers(n, c), (spare,), (), ())
    step = given[1] if cells.last else given[-1] * cells.phases
    again = Again(n, given[0], steps.image)
    return (
        Moves([after], Again(1, 0, 0), 0, itemsize),
        Moves(blank, Again(n, 0, steps.image), 0, itemsize) if blank else None,
        _turned(lie, again) or (Moves(filled, again, step, itemsize) if filled else None),
    )


def _turned(lie: _Lie, again: Again) -> Turns | None:
    """Return what turns cells whose channels come last to lines of cells, if whole squares can."""
    cells, n, c, given, itemsize, _ = lie
    (*outer, line), side = cells.inside, side_of(itemsize)
    if cells.last or cells.phases > 1 or given[1] != 1 or min(line, c) < side or 0 in outer:
        return None
    steps = cells.steps(n, c)
    begin = sum(at * step for at, step in zip(cells.before, steps.axes, strict=True))
    lines = zip(
        places_of(outer, given[2:-1]), begin + places_of(outer, steps.axes[:-1]), strict=True
    )
    strips = strips_of(lines, line, given[-1], c, side)
    return Turns(strips, given[-1], np.arange(c) * steps.channel, again, itemsize)


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
