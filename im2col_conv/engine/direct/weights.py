"""Weights in the order in which the sums of a kind read them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.tile import blocks_of
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
    (g, F, C), taps = _sizes(plan), plan.geometry.taps
    blocks, width = blocks_of(F, plan.lanes)
    each_filter, each_channel = (taps, F * taps) if plan.flipped else (C * taps, taps)
    first, each_tap = (taps - 1, -1) if plan.flipped else (0, 1)
    apart = width * each_filter, taps * C * width

    def box(block: int) -> Box:
        source, target = (block * each for each in apart)
        steps = (each_channel, each_tap), (width, C * width)
        return Box(first + source, target, (C, taps, min(width, F - block * width)), *steps)

    if g > 1:
        groups_apart = F * C * taps, numbers_of_group(plan)
        given = [(box(block), g, groups_apart) for block in range(blocks)]
    else:
        whole = F // width
        given = [(box(0), whole, apart)] * (whole > 0) + [(box(whole), 1, apart)] * (whole < blocks)
    return Program([[copy] for each in given for copy in _copies(plan, *each, each_filter)])


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
