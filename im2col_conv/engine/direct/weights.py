"""Weights in the order in which the sums of a kind read them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import places_of
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.tile import blocks_of
from im2col_conv.engine.direct.turns import Strip, Turns, pieces_of, side_of
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.tiling import SHARES
from im2col_conv.prepared import Room

__all__ = ["arranged", "numbers_of_group"]

_GIVEN, _ARRANGED = range(2)  # arrays of a program
SHARE_NUMBERS = 2**16  # that a worker arranges at least


def arranged(plan: DirectPlan, workers: int, w: Array, room: Room) -> Array:
    """Return weights with the groups of the convolution that is run along their first axis.

    ``workers`` share it, if there is enough to do. Rows of filters are as they were given, unless
    dx is made: its filters are the layer's channels. Vectors hold filters side by side.
    """
    given = np.ascontiguousarray(w, plan.dtype)
    if not given.flags.aligned:
        given = given.copy()
    if plan.kind is Kind.CHANNELS:
        return _by_taps(plan, given, room)
    if plan.kind is Kind.OUTPUTS:
        return _in_vectors(plan, workers, given, room)
    g, F, C = _sizes(plan)
    if not plan.flipped or min(F, C) == 1:
        return given.reshape(g, -1)
    return _exchanged(plan, workers, given, room)


def numbers_of_group(plan: DirectPlan) -> int:
    """Return how many numbers the arranged weights of a group take."""
    _, F, C = _sizes(plan)
    if plan.kind is Kind.OUTPUTS:
        blocks, width = blocks_of(F, plan.lanes)
        F = blocks * width
    return F * C * plan.geometry.taps


def _sizes(plan: DirectPlan) -> tuple[int, int, int]:
    """Return groups, filters and channels of a group of the convolution that is run."""
    geometry = plan.geometry
    return geometry.groups, geometry.F // geometry.groups, geometry.C // geometry.groups


def _by_taps(plan: DirectPlan, w: Array, room: Room) -> Array:
    """Return (1, taps times channels, and some more that a vector may reach over)."""
    taps, channels, lanes = plan.geometry.taps, plan.geometry.C, plan.lanes
    memory = room("weights", (1, taps * channels + lanes), plan.dtype)
    memory[0, taps * channels :] = 0
    order = slice(None, None, -1 if plan.flipped else 1)
    rows = memory[0, : taps * channels].reshape(taps, channels)
    rows[...] = w.reshape(channels, taps).T[order]
    return memory


def _exchanged(plan: DirectPlan, workers: int, w: Array, room: Room) -> Array:
    """Return (g, F C taps) of weights that were given as (g, C, F, taps)."""
    memory = room("weights", (plan.geometry.groups, numbers_of_group(plan)), plan.dtype)
    _run(plan.program("weights", lambda _: _exchanging(plan)), workers, w, memory)
    return memory


def _exchanging(plan: DirectPlan) -> Program:
    (g, F, C), taps = _sizes(plan), plan.geometry.taps
    if g > 1:
        times, apart = g, (F * C * taps, F * C * taps)
        box = Box(0, 0, (C, F, taps), (F * taps, taps), (taps, C * taps))
    else:
        times, apart = C, (F * taps, taps)
        box = Box(0, 0, (F, taps), (taps,), (C * taps,))
    return Program([[copy] for copy in _copies(plan, box, times, apart, 1)])


def _in_vectors(plan: DirectPlan, workers: int, w: Array, room: Room) -> Array:
    """Return (g, blocks of F taps C width), each block with so many filters side by side."""
    g, F, _ = _sizes(plan)
    blocks, width = blocks_of(F, plan.lanes)
    memory = room("weights", (g, numbers_of_group(plan)), plan.dtype)
    if F % width:
        memory.reshape(g, blocks, -1, width)[:, -1, :, F % width :] = 0
    _run(plan.program("weights", lambda _: _turning(plan)), workers, w, memory)
    return memory


def _turning(plan: DirectPlan) -> Program:
    """Return what lays filters side by side: whole squares are turned, the rest is copied."""
    _, F, C = _sizes(plan)
    side, taps = side_of(plan.dtype.itemsize), plan.geometry.taps
    columns = taps if plan.flipped else C * taps
    turned = F // side * side if columns >= side else 0
    steps = [*_turned(plan, turned), *_laid(plan, turned)]
    return Program([[step] for step in steps])


def _rows_apart(plan: DirectPlan) -> tuple[int, int]:
    """Return how far rows of neighbouring channels, and taps, are apart in the order of sums."""
    (_, F, C), taps = _sizes(plan), plan.geometry.taps
    _, width = blocks_of(F, plan.lanes)
    return (width, C * width) if plan.last else (taps * width, width)


def _turned(plan: DirectPlan, turned: int) -> Iterator[Step]:
    """Yield the steps that turn the first filters, in parts that workers may share.

    Of each, all that is summed lies side by side; where dx is made, the taps of a channel.
    """
    (g, F, C), taps, itemsize = _sizes(plan), plan.geometry.taps, plan.dtype.itemsize
    side, (_, width) = side_of(itemsize), blocks_of(F, plan.lanes)
    each_channel, each_tap = _rows_apart(plan)
    step, targets, again = C * taps, places_of((C, taps), (each_channel, each_tap)), Again(1, 0, 0)
    if plan.flipped:
        last_tap_first = np.arange(taps)[::-1] * each_tap
        step, targets, again = taps, last_tap_first, Again(C, F * taps, each_channel)
    strips = []
    for group, first in product(range(g), range(0, turned, side)):
        block, lane = divmod(first, width)
        source = group * F * C * taps + first * step
        target = group * numbers_of_group(plan) + block * C * taps * width + lane
        pieces = pieces_of(len(targets), side)
        strips += [Strip(source + at, target, vectors, at) for at, vectors in pieces]
    numbers = again.times * side * len(targets)
    each = max(SHARE_NUMBERS // numbers, -(-len(strips) // SHARES), 1)
    for first in range(0, len(strips), each):
        some = Turns(strips[first : first + each], step, targets, again, itemsize)
        yield some.of(Place(_GIVEN), Place(_ARRANGED))


def _laid(plan: DirectPlan, first: int) -> Iterator[Step]:
    """Yield the steps that copy the filters from ``first`` on, number by number."""
    (g, F, C), taps = _sizes(plan), plan.geometry.taps
    blocks, width = blocks_of(F, plan.lanes)
    each_filter, each_channel = (taps, F * taps) if plan.flipped else (C * taps, taps)
    begin, each_tap = (taps - 1, -1) if plan.flipped else (0, 1)
    apart = width * each_filter, taps * C * width

    def box(block: int) -> Box:
        lane = max(first - block * width, 0)
        source, target = (block * each for each in apart)
        filters = min(width, F - block * width) - lane
        steps = (each_channel, each_tap), _rows_apart(plan)
        shape = C, taps, filters
        return Box(begin + source + lane * each_filter, target + lane, shape, *steps)

    given: list[tuple[Box, int, tuple[int, int]]] = []
    if g > 1:
        groups_apart = F * C * taps, numbers_of_group(plan)
        given = [(box(block), g, groups_apart) for block in range(first // width, blocks)]
    elif first:
        given = [(box(first // width), 1, apart)]
    else:
        whole = F // width
        given = [(box(0), whole, apart)] * (whole > 0) + [(box(whole), 1, apart)] * (whole < blocks)
    for each in given if first < F else ():
        yield from _copies(plan, *each, each_filter)


def _copies(
    plan: DirectPlan, box: Box, times: int, apart: tuple[int, int], step: int
) -> Iterator[Step]:
    """Yield the steps that copy a box so many times, in parts that workers may share."""
    each = max(SHARE_NUMBERS // math.prod(box.shape), -(-times // SHARES), 1)
    for first in range(0, times, each):
        places = (Place(which, first * far) for which, far in enumerate(apart))
        again = Again(min(each, times - first), *apart)
        yield Moves([box], again, step, plan.dtype.itemsize).of(*places)


def _run(program: Program, workers: int, w: Array, memory: Array) -> None:
    program.run([[w, memory]] * min(workers, program.tasks))
