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
from im2col_conv.engine.direct.cells import Cells, Part, Steps, parts_of, steps_of
from im2col_conv.engine.direct.copied import copied, fill, numbers_of_copy
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.plan import MOST_PARTS, MOST_TASKS_KEPT, DirectPlan
from im2col_conv.engine.direct.sums import lanes_of
from im2col_conv.engine.direct.tile import Tile, sums_of
from im2col_conv.engine.direct.weights import arranged, numbers_of_group
from im2col_conv.engine.jobs import AtOnce, Work
from im2col_conv.engine.machine.crew import shares_here
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.geometry import ConvGeometry
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

    if program is not None and shares_here():
        return AtOnce(partial(_run, program, shared, arrange, [x, y, bias]))
    W = arrange(1)

    def task(index: int, scratch: Scratch) -> None:
        box = plan.step(index, partial(_box, plan))
        one, at = (program, index) if program else (_program(plan, lies, [index]), 0)
        numbers = one.numbers_in(Of.COPY)
        if lies.x is None:
            numbers = numbers_of_copy(plan, box.cells, *box.sizes)
        copy = scratch.array("cells of x", (numbers,), dtype)
        if lies.x is None:
            fill(box.cells, copy, x[box.seen])
        sums = y if lies.y is not None else _room(plan, scratch, box)
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
    """Return the program of all tasks, which is kept, unless there are too many.

    What stands for arrays that machine code cannot use is each task's own, and of another size.
    """
    if None in lies or not 0 < plan.tasks <= MOST_TASKS_KEPT:
        return None
    return plan.program(lies, lambda lies: _program(plan, lies, range(plan.tasks)))


def _program(plan: DirectPlan, lies: _Lies, tasks: Sequence[int]) -> Program:
    return Program([_task(plan, plan.step(index, partial(_box, plan)), lies) for index in tasks])


def _task(plan: DirectPlan, box: _Box, lies: _Lies) -> list[Step]:
    """Return what makes a box of y: a copy of the cells that it sees, if need be, and the sums."""
    geometry, places = plan.geometry, _places(plan, box, lies)
    parts = _parts_in_place(plan, box, lies)
    if parts is not None and lies.x is not None:
        return [_sums(plan, box, lies, places, part, steps) for part, steps in parts]
    B, told = Place(Of.COPY), []
    if lies.x is not None:
        given = places.x, Place(Of.BIAS, geometry.F), B
        told = copied(plan, box.cells, *box.sizes, lies.x, *given)
    steps = box.cells.steps(*box.sizes)
    return [*told, _sums(plan, box, lies, places._replace(x=B), _whole_of(box.cells), steps)]


class _Places(NamedTuple):
    """Where a box of x, y and their weights and biases begins."""

    x: Place
    y: Place
    W: Place
    bias: Place


def _places(plan: DirectPlan, box: _Box, lies: _Lies) -> _Places:
    return _Places(
        _at(Of.X, box.seen, lies.x) if lies.x is not None else Place(Of.COPY),
        _at(Of.Y, box.made, lies.y) if lies.y is not None else Place(Of.Y),
        Place(Of.W, box.groups.start * numbers_of_group(plan)),
        Place(Of.BIAS, box.made[1].start),
    )


def _sums(
    plan: DirectPlan, box: _Box, lies: _Lies, places: _Places, part: Part, steps: Steps
) -> Step:
    """Return the sums of some outputs of a box."""
    geometry = plan.geometry
    of_y = lies.y or _steps_of_room(plan, box)
    tile = Tile(
        plan.kind,
        plan.dtype,
        plan.flipped,
        part.cells,
        geometry.kernel,
        box.sizes[0],
        box.groups.stop - box.groups.start,
        geometry.C // geometry.groups,
        geometry.F // geometry.groups,
        steps,
        of_y,
    )
    W, B = places.W, _further(places.x, part.first_cell, steps.axes)
    if plan.kind is Kind.CHANNELS:
        W = _further(W, part.first_tap, _of_taps(geometry))
    A, B = (B, W) if plan.kind is Kind.OUTPUTS else (W, B)
    C = _further(places.y, part.first_output, of_y[2:])
    return plan.table(tile, sums_of).of(A, B, C, places.bias)


def _of_taps(geometry: ConvGeometry) -> list[int]:
    """Return the numbers of weights from one tap to the next along each axis."""
    sizes = geometry.kernel
    return [math.prod(sizes[axis + 1 :]) * geometry.groups for axis in range(len(sizes))]


def _further(place: Place, first: Sequence[int], steps: Sequence[int]) -> Place:
    far = sum(at * step for at, step in zip(first, steps, strict=True))
    return Place(place.array, place.offset + far)


def _parts_in_place(plan: DirectPlan, box: _Box, lies: _Lies) -> list[tuple[Part, Steps]] | None:
    """Return the parts of a box whose cells sums can read in x, and how they lie; None for none.

    No vector may be longer than a line of what it is read from. Where a tap is one product for each
    cell, a copy would take as long: so outputs that see padding are made apart.
    """
    line = plan.geometry.C if plan.last else box.cells.outs[-1]
    if lies.x is None or (plan.kind is not Kind.OUTPUTS and line < lanes_of(plan.dtype)):
        return None
    parts = [_whole_of(box.cells)]
    if plan.kind is Kind.CHANNELS:
        parts = parts_of(box.cells)
    if len(parts) > MOST_PARTS or any(0 in part.cells.kernel for part in parts):
        return None
    found = []
    for part in parts:
        steps = part.cells.steps_in_place(lies.x, box.sizes[1], plan.dtype.itemsize)
        if steps is None:
            return None
        found.append((part, steps))
    return found


def _whole_of(cells: Cells) -> Part:
    none = (0,) * len(cells.outs)
    return Part(cells, none, none, none)


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


def _steps_of_lines(y: Array, dtype: np.dtype[Any], *, last: bool) -> tuple[int, ...] | None:
    """Return how results lie, if vectors of them can be stored there."""
    steps = steps_of(y, dtype)
    return steps if steps is not None and steps[1 if last else -1] == 1 else None


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
