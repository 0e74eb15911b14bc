r"""Forward, the direct way, and dx as the forward pass of dout: no column is ever stored.

The column matrix is all in x, and where its number of row k and column p lies is a sum,

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

of where the tap and channel k is, seen from a window's first cell, and where the window p is. So
the product W cols needs two short tables in place of the matrix, and one routine that adds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.cells import Cells, Steps, steps_of
from im2col_conv.engine.direct.copied import copied, fill, numbers_of_copy
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.plan import MOST_TASKS_KEPT, DirectPlan
from im2col_conv.engine.direct.sums import lanes_of
from im2col_conv.engine.direct.tile import Tile, sums_of
from im2col_conv.engine.direct.weights import arranged, numbers_of_group
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.prepared import Weights

__all__ = ["forward"]


class Of(IntEnum):
    """The arrays of a program: x or a copy of its cells, weights, y, and the bias with zeros."""

    X, W, Y, BIAS, COPY = range(5)


class _Lies(NamedTuple):
    """Numbers from one to the next along each axis of x and y; None where machine code cannot."""

    x: tuple[int, ...] | None
    y: tuple[int, ...] | None


class _Box(NamedTuple):
    """What a task makes of y, sees of x, and which groups are its own."""

    made: tuple[slice, ...]
    seen: tuple[slice, ...]
    groups: slice
    cells: Cells

    @property
    def images(self) -> int:
        """How many images."""
        return self.made[0].stop - self.made[0].start

    @property
    def channels(self) -> int:
        """How many channels of x, of all its groups."""
        return self.seen[1].stop - self.seen[1].start


def forward(
    plan: DirectPlan, shared: Scratch, x: Array, weights: Weights, b: Array | None, y: Array
) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x``, plus ``b``."""
    geometry, dtype = plan.geometry, plan.dtype

    key = "direct", plan.kind, plan.flipped, geometry.groups, dtype
    W = weights.form(key, partial(arranged, plan), shared.array)
    bias = shared.array("bias", (geometry.F + 2 * lanes_of(dtype),), dtype)
    bias[: geometry.F] = 0 if b is None else b
    bias[geometry.F :] = 0
    lies = _Lies(steps_of(x, dtype), _steps_of_lines(y, dtype, last=plan.last))
    kept = plan.tasks <= MOST_TASKS_KEPT
    whole = plan.program(lies, partial(_program, plan, range(plan.tasks))) if kept else None

    def task(index: int, scratch: Scratch) -> None:
        box = plan.step(index, partial(_box, plan))
        program, at = (whole, index) if whole else (_program(plan, [index], lies), 0)
        copy = scratch.array("x", (_numbers_of(plan, box),), dtype)
        if lies.x is None:
            fill(box.cells, copy, x[box.seen])
        sums = y if lies.y is not None else _room(plan, scratch, box)
        program.run_task(at, [x, W, sums, bias, copy])
        if lies.y is None:
            y[box.made] = sums

    def at_once(workers: int) -> None:
        assert whole is not None
        with ExitStack() as stack:
            lent = [stack.enter_context(lend_scratch()) for _ in range(workers)]
            numbers = whole.numbers_in(Of.COPY)
            copies = [each.array("x", (numbers,), dtype) for each in lent]
            whole.run([[x, W, y, bias, copy] for copy in copies])

    native = whole is not None and None not in lies and shares_here()
    return Work(task, at_once=at_once if native else None)


def _program(plan: DirectPlan, tasks: Sequence[int], lies: _Lies) -> Program:
    return Program([_task(plan, plan.step(index, partial(_box, plan)), lies) for index in tasks])


def _task(plan: DirectPlan, box: _Box, lies: _Lies) -> list[Step]:
    """Return what makes a box of y: a copy of the cells that it sees, if need be, and the sums."""
    geometry, steps = plan.geometry, []
    lie = _in_place(plan, box, lies)
    B = Place(Of.COPY)
    if lie is not None and lies.x is not None:
        B = _at(Of.X, box.seen, lies.x)
    else:
        lie = box.cells.steps(box.images, box.channels)
        if lies.x is not None:
            places = _at(Of.X, box.seen, lies.x), Place(Of.BIAS, geometry.F), B
            steps = copied(plan, box.cells, box.images, box.channels, lies.x, *places)
    C, lie_of_y = Place(Of.Y), lies.y or _steps_of_room(plan, box)
    if lies.y is not None:
        C = _at(Of.Y, box.made, lies.y)
    tile = Tile(
        plan.kind,
        plan.dtype,
        plan.flipped,
        box.cells,
        box.images,
        box.groups.stop - box.groups.start,
        geometry.C // geometry.groups,
        geometry.F // geometry.groups,
        lie,
        lie_of_y,
    )
    A = Place(Of.W, box.groups.start * numbers_of_group(plan))
    if plan.kind is Kind.OUTPUTS:
        A, B = B, A
    D = Place(Of.BIAS, box.made[1].start)
    return [*steps, plan.table(tile, sums_of).of(A, B, C, D)]


def _box(plan: DirectPlan, index: int) -> _Box:
    geometry = plan.geometry
    groups, images, *outs = plan.tiling[index]
    if plan.kind is Kind.CHANNELS:
        groups = slice(0, geometry.groups)
    cells, inside = plan.cells(tuple(outs))
    channels, filters = (_of(groups, n // geometry.groups) for n in (geometry.C, geometry.F))
    return _Box((images, filters, *outs), (images, channels, *inside), groups, cells)


def _of(groups: slice, each: int) -> slice:
    return slice(groups.start * each, groups.stop * each)


def _at(array: int, box: tuple[slice, ...], steps: tuple[int, ...]) -> Place:
    """Return where a box of an array begins."""
    return Place(array, sum(each.start * step for each, step in zip(box, steps, strict=True)))


def _in_place(plan: DirectPlan, box: _Box, lies: _Lies) -> Steps | None:
    """Return how cells lie in x, if sums can read them there.

    No vector may be longer than a line of what it is read from.
    """
    line = plan.geometry.C if plan.last else box.cells.outs[-1]
    if lies.x is None or (plan.kind is not Kind.OUTPUTS and line < lanes_of(plan.dtype)):
        return None
    return box.cells.steps_in_place(lies.x, box.channels, plan.dtype.itemsize)


def _steps_of_lines(y: Array, dtype: np.dtype[Any], *, last: bool) -> tuple[int, ...] | None:
    """Return how results lie, if vectors of them can be stored there."""
    steps = steps_of(y, dtype)
    return steps if steps is not None and steps[1 if last else -1] == 1 else None


def _numbers_of(plan: DirectPlan, box: _Box) -> int:
    return numbers_of_copy(plan, box.cells, box.images, box.channels)


def _shape_of_room(plan: DirectPlan, box: _Box) -> tuple[int, ...]:
    """Return the shape of memory for a box of results, in the order of the layout."""
    n, f, *outs = (each.stop - each.start for each in box.made)
    return (n, *outs, f) if plan.last else (n, f, *outs)


def _room(plan: DirectPlan, scratch: Scratch, box: _Box) -> Array:
    """Return memory for a box of results."""
    rows = scratch.array("y", _shape_of_room(plan, box), plan.dtype)
    return rows.transpose(0, -1, *range(1, rows.ndim - 1)) if plan.last else rows


def _steps_of_room(plan: DirectPlan, box: _Box) -> tuple[int, ...]:
    """Return how it lies."""
    shape = _shape_of_room(plan, box)
    n, *apart = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return (n, apart[-1], *apart[:-1]) if plan.last else (n, *apart)
