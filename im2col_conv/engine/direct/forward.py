r"""Forward, the direct way, and dx as the forward pass of dout: no column is ever stored.

The column matrix is all in x, and where its number of row k and column p lies is a sum,

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

of where the tap and channel k is, seen from a window's first cell, and where the window p is. So
the product W cols needs two short tables in place of the matrix, and one routine that adds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from im2col_conv.engine.jobs import AtOnce, Work
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.prepared import Weights

__all__ = ["forward"]


class Of(IntEnum):
    """The arrays of a program: the bias has zeros after it, and COPY is one of cells of x."""

    X, Y, BIAS, W, COPY = range(5)


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
    def sizes(self) -> tuple[int, int]:
        """How many images, and channels of x, of all its groups."""
        images, channels, *_ = (each.stop - each.start for each in self.seen)
        return images, channels


def forward(
    plan: DirectPlan, shared: Scratch, x: Array, weights: Weights, b: Array | None, y: Array
) -> Work | AtOnce:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x``, plus ``b``."""
    geometry, dtype = plan.geometry, plan.dtype
    lies = _Lies(steps_of(x, dtype), _steps_of_lines(y, dtype, last=plan.last))
    program = _whole(plan, lies)

    bias = shared.array("bias", (geometry.F + 2 * lanes_of(dtype),), dtype)
    bias[: geometry.F] = 0 if b is None else b
    bias[geometry.F :] = 0

    def arrange(workers: int) -> Array:
        key = "direct", plan.kind, plan.flipped, geometry.groups, dtype
        return weights.form(key, partial(arranged, plan, workers), shared.array)

    if program is not None and None not in lies and shares_here():
        return AtOnce(partial(_run, program, shared, arrange, [x, y, bias]))
    W = arrange(1)

    def task(index: int, scratch: Scratch) -> None:
        box = plan.step(index, partial(_box, plan))
        copy = scratch.array("cells of x", (_numbers_of(plan, box),), dtype)
        if lies.x is None:
            fill(box.cells, copy, x[box.seen])
        sums = y if lies.y is not None else _room(plan, scratch, box)
        one, at = (program, index) if program else (_program(plan, lies, [index]), 0)
        one.run_task(at, [x, sums, bias, W, copy])
        if lies.y is None:
            y[box.made] = sums

    return Work(task)


def _run(
    program: Program,
    shared: Scratch,
    arrange: Callable[[int], Array],
    arrays: Sequence[Array],
    workers: int,
) -> None:
    """Arrange weights and run all tasks, each worker with a copy of cells of its own."""
    W, (*_, bias) = arrange(workers), arrays
    with ExitStack() as stack:
        lent = [stack.enter_context(lend_scratch()) for _ in range(workers - 1)]
        numbers = program.numbers_in(Of.COPY)
        copies = [each.array("cells of x", (numbers,), bias.dtype) for each in (shared, *lent)]
        program.run([[*arrays, W, copy] for copy in copies])


def _whole(plan: DirectPlan, lies: _Lies) -> Program | None:
    """Return the program of all tasks, which is kept, unless there are too many."""
    if not 0 < plan.tasks <= MOST_TASKS_KEPT:
        return None
    return plan.program(lies, lambda lies: _program(plan, lies, range(plan.tasks)))


def _program(plan: DirectPlan, lies: _Lies, tasks: Sequence[int]) -> Program:
    return Program([_task(plan, plan.step(index, partial(_box, plan)), lies) for index in tasks])


def _task(plan: DirectPlan, box: _Box, lies: _Lies) -> list[Step]:
    """Return what makes a box of y: a copy of the cells that it sees, if need be, and the sums."""
    geometry, steps = plan.geometry, []
    lie = _in_place(plan, box, lies)
    B = Place(Of.COPY)
    if lie is not None and lies.x is not None:
        B = _at(Of.X, box.seen, lies.x)
    else:
        lie = box.cells.steps(*box.sizes)
        if lies.x is not None:
            places = _at(Of.X, box.seen, lies.x), Place(Of.BIAS, geometry.F), B
            steps = copied(plan, box.cells, *box.sizes, lies.x, *places)
    C, lie_of_y = Place(Of.Y), lies.y or _steps_of_room(plan, box)
    if lies.y is not None:
        C = _at(Of.Y, box.made, lies.y)
    tile = Tile(
        plan.kind,
        plan.dtype,
        plan.flipped,
        box.cells,
        box.sizes[0],
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
    return box.cells.steps_in_place(lies.x, box.sizes[1], plan.dtype.itemsize)


def _steps_of_lines(y: Array, dtype: np.dtype[Any], *, last: bool) -> tuple[int, ...] | None:
    """Return how results lie, if vectors of them can be stored there."""
    steps = steps_of(y, dtype)
    return steps if steps is not None and steps[1 if last else -1] == 1 else None


def _numbers_of(plan: DirectPlan, box: _Box) -> int:
    return numbers_of_copy(plan, box.cells, *box.sizes)


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
