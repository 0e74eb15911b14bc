"""dout with filters side by side, so that vectors are read where all outputs of dw are summed."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np

from im2col_conv.engine.boxes import joined, places_of
from im2col_conv.engine.direct.cells import is_near
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import KeepingPlan
from im2col_conv.engine.direct.tile import blocks_of, vectors_of
from im2col_conv.engine.direct.turns import Strip, Turns, pieces_of, side_of

__all__ = ["Filters", "filters_of"]


class Filters(NamedTuple):
    """Filters side by side: how dout lies, as it was given or turned.

    ``first`` and ``at`` are those of each vector: its first filter, and where it is.
    """

    turning: tuple[Turns | Moves, ...]
    group: int  # numbers from group to group
    image: int
    axes: tuple[int, ...]
    first: tuple[int, ...]
    at: tuple[int, ...]


def filters_of(plan: KeepingPlan, outs: tuple[int, ...], n: int, given: tuple[int, ...]) -> Filters:
    """Return dout as it is, where no more than a block of filters lie side by side, or turned."""
    lanes, F = plan.lanes, plan.geometry.F // plan.geometry.groups
    image, channel, *axes = given
    blocks, width = blocks_of(F, plan.lanes)
    near = is_near((n, *outs), (image, *axes), plan.dtype.itemsize)
    if channel == 1 and lanes <= F <= width and plan.geometry.groups == 1 and near:
        first, _ = vectors_of(F, plan.lanes)
        vectors = tuple(int(f) for f in first)
        return Filters((), F, image, tuple(axes), vectors, vectors)
    positions = math.prod(outs)
    apart = tuple(width * math.prod(outs[axis + 1 :]) for axis in range(len(outs)))
    first = np.arange(0, F, lanes)
    block, lane = np.divmod(first, width)
    return Filters(
        plan.table((outs, n, given), lambda _: _turning(plan, outs, n, given)),
        blocks * n * positions * width,
        positions * width,
        apart,
        tuple(int(f) for f in first),
        tuple(int(at) for at in block * n * positions * width + lane),
    )


def _turning(
    plan: KeepingPlan, outs: tuple[int, ...], n: int, given: tuple[int, ...]
) -> tuple[Turns | Moves, ...]:
    """Return what turns dout[n, f, *outs] to (g, blocks of F, n, *outs, width).

    Where lines of outputs lie side by side, whole vectors of as many filters at a time.
    """
    G, F = plan.geometry.groups, plan.geometry.F // plan.geometry.groups
    image, channel, *axes = given
    (blocks, width), side = blocks_of(F, plan.lanes), side_of(plan.dtype.itemsize)
    (*outer, line), apart = joined(outs, axes)
    positions = math.prod(outs)
    into = tuple(width * math.prod((*outer, line)[axis + 1 :]) for axis in range(len(outer) + 1))
    strips: list[Strip] = []
    boxes: list[Box] = []
    for group, first in product(range(G), range(0, F, side)):
        block, lane = divmod(first, width)
        filters = min(side, F - first)
        source = (group * F + first) * channel
        target = (group * blocks + block) * n * positions * width + lane
        pieces = list(pieces_of(line, side)) if filters == side and apart[-1] == 1 else []
        far = zip(places_of(outer, apart[:-1]), places_of(outer, into[:-1]), strict=True)
        for (at, to), (piece, vectors) in product(far, pieces):
            strips.append(Strip(source + at + piece, target + to, vectors, piece))
        if not pieces:
            boxes.append(Box(source, target, (*outer, line, filters), apart, into))
    again = Again(n, image, positions * width)
    found: list[Turns | Moves] = []
    if strips:
        targets = np.arange(line) * width
        found.append(Turns(strips, channel, targets, again, plan.dtype.itemsize))
    if boxes:
        found.append(Moves(boxes, again, channel, plan.dtype.itemsize))
    return tuple(found)
