"""Weights in the order in which the sums of a kind read them."""

from __future__ import annotations

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.moves import Again, Box, Moves
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.sums import lanes_of
from im2col_conv.engine.direct.tile import blocks_of
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.prepared import Room

__all__ = ["arranged", "numbers_of_group"]

_GIVEN, _ARRANGED = range(2)  # arrays of a program


def arranged(plan: DirectPlan, w: Array, room: Room) -> Array:
    """Return weights with the groups of the convolution that is run along their first axis.

    Rows of filters are as they were given, unless dx is made: its filters are the layer's channels.
    Vectors hold filters side by side.
    """
    given = np.ascontiguousarray(w, plan.dtype)
    if not given.flags.aligned:
        given = given.copy()
    if plan.kind is Kind.CHANNELS:
        return _by_taps(plan, given, room)
    if plan.kind is Kind.OUTPUTS:
        return _in_vectors(plan, given, room)
    g, F, C = _sizes(plan)
    if not plan.flipped or min(F, C) == 1:
        return given.reshape(g, -1)
    return _exchanged(plan, given, room)


def numbers_of_group(plan: DirectPlan) -> int:
    """Return how many numbers the arranged weights of a group take."""
    _, F, C = _sizes(plan)
    if plan.kind is Kind.OUTPUTS:
        blocks, width = blocks_of(F, plan.dtype)
        F = blocks * width
    return F * C * plan.geometry.taps


def _sizes(plan: DirectPlan) -> tuple[int, int, int]:
    """Return groups, filters and channels of a group of the convolution that is run."""
    geometry = plan.geometry
    return geometry.groups, geometry.F // geometry.groups, geometry.C // geometry.groups


def _by_taps(plan: DirectPlan, w: Array, room: Room) -> Array:
    """Return (1, taps times channels, and some more that a vector may reach over)."""
    taps, channels, lanes = plan.geometry.taps, plan.geometry.C, lanes_of(plan.dtype)
    memory = room("weights", (1, taps * channels + lanes), plan.dtype)
    memory[0, taps * channels :] = 0
    order = slice(None, None, -1 if plan.flipped else 1)
    rows = memory[0, : taps * channels].reshape(taps, channels)
    rows[...] = w.reshape(channels, taps).T[order]
    return memory


def _exchanged(plan: DirectPlan, w: Array, room: Room) -> Array:
    """Return (g, F C taps) of weights that were given as (g, C, F, taps)."""
    groups = plan.geometry.groups
    memory = room("weights", (groups, numbers_of_group(plan)), plan.dtype)
    plan.table("weights", lambda _: _exchanging(plan)).run([[w, memory]])
    return memory


def _exchanging(plan: DirectPlan) -> Program:
    (g, F, C), taps = _sizes(plan), plan.geometry.taps
    if g > 1:
        box = Box(0, 0, (C, F, taps), (F * taps, taps), (taps, C * taps))
        again = Again(g, F * C * taps, F * C * taps)
    else:
        box = Box(0, 0, (F, taps), (taps,), (C * taps,))
        again = Again(C, F * taps, taps)
    moves = Moves([box], again, 1, plan.dtype.itemsize)
    return Program([[moves.of(Place(_GIVEN), Place(_ARRANGED))]])


def _in_vectors(plan: DirectPlan, w: Array, room: Room) -> Array:
    """Return (g, blocks of F taps C width), each block with so many filters side by side."""
    g, F, _ = _sizes(plan)
    blocks, width = blocks_of(F, plan.dtype)
    memory = room("weights", (g, numbers_of_group(plan)), plan.dtype)
    if F % width:
        memory.reshape(g, blocks, -1, width)[:, -1, :, F % width :] = 0
    plan.table("weights", lambda _: _turning(plan)).run([[w, memory]])
    return memory


def _turning(plan: DirectPlan) -> Program:
    (g, F, C), taps = _sizes(plan), plan.geometry.taps
    _, width = blocks_of(F, plan.dtype)
    whole, rest = divmod(F, width)
    each_filter, each_channel = (taps, F * taps) if plan.flipped else (C * taps, taps)
    first, each_tap = (taps - 1, -1) if plan.flipped else (0, 1)
    apart = width * each_filter, taps * C * width

    def copy(block: int, filters: int, again: Again) -> Step:
        steps = (each_tap, each_channel), (C * width, width)
        source, target = (block * each for each in apart)
        box = Box(first + source, target, (taps, C, filters), *steps)
        moves = Moves([box], again, each_filter, plan.dtype.itemsize)
        return moves.of(Place(_GIVEN), Place(_ARRANGED))

    if g > 1:
        again = Again(g, F * C * taps, numbers_of_group(plan))
        sizes = [(block, width) for block in range(whole)] + [(whole, rest)] * (rest > 0)
        return Program([[copy(block, filters, again) for block, filters in sizes]])
    copies = [copy(0, width, Again(whole, *apart))] if whole else []
    if rest:
        copies.append(copy(whole, rest, Again(1, 0, 0)))
    return Program([copies])
