"""The tasks of a direct pass as steps of machine code: what each reads, copies, sums and stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.cells import Cells, Part, Steps, is_folded, parts_of, steps_of
from im2col_conv.engine.direct.copied import copied
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.lines import turned_to_lines
from im2col_conv.engine.direct.plan import MOST_PARTS, MOST_TASKS_KEPT, DirectPlan
from im2col_conv.engine.direct.tile import Tile, sums_of
from im2col_conv.engine.direct.weights import numbers_of_group
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry

__all__ = [
    "Lies",
    "Of",
    "Task",
    "program_of",
    "room_for",
    "steps_of_lines",
    "task_of",
    "whole_program",
]


class Of(IntEnum):
    """The arrays of a program: the bias has zeros after it, the last two are a worker's own.

    COPY is one of cells of x, and TURNED has results with filters side by side.
    """

    X, Y, BIAS, W, COPY, TURNED = range(6)


class Lies(NamedTuple):
    """Numbers from one to the next along each axis of x and y; None where machine code cannot."""

    x: tuple[int, ...] | None
    y: tuple[int, ...] | None


class Task(NamedTuple):
    """What a task makes of y, sees of x, and which groups are its own."""

    made: tuple[slice, ...]
    seen: tuple[slice, ...]
    groups: slice
    cells: Cells

    @property
    def made_sizes(self) -> tuple[int, ...]:
        """How many images and filters, and outputs along each axis."""
        return tuple(each.stop - each.start for each in self.made)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many images, and channels of x, of all its groups."""
        images, channels, *_ = (each.stop - each.start for each in self.seen)
        return images, channels


def whole_program(plan: DirectPlan, lies: Lies) -> Program | None:
    """Return the program of all tasks, which is kept, unless there are too many.

    What stands for arrays that machine code cannot use is each task's own, and of another size.
    """
    if None in lies or not 0 < plan.tasks <= MOST_TASKS_KEPT:
        return None
    return plan.program(lies, lambda lies: program_of(plan, lies, range(plan.tasks)))


def program_of(plan: DirectPlan, lies: Lies, tasks: Sequence[int]) -> Program:
    """Return the program of some tasks."""
    found = (plan.step(index, partial(task_of, plan)) for index in tasks)
    return Program([_steps(plan, task, lies) for task in found])


def _steps(plan: DirectPlan, task: Task, lies: Lies) -> list[Step]:
    """Return what makes results: a copy of the cells that they see, if need be, and the sums."""
    geometry, places = plan.geometry, _places(plan, task, lies)
    parts = _parts_in_place(plan, task, lies)
    if parts is not None and lies.x is not None:
        made = (_made(plan, task, lies, places, part, steps) for part, steps in parts)
        return [step for each in made for step in each]
    B, told = Place(Of.COPY), []
    if lies.x is not None:
        given = places.x, Place(Of.BIAS, geometry.F), B
        told = copied(plan, task.cells, *task.sizes, lies.x, *given)
    steps = task.cells.steps(*task.sizes)
    return [*told, *_made(plan, task, lies, places._replace(x=B), _whole_of(task.cells), steps)]


class _Places(NamedTuple):
    """Where x, y, weights and biases of a task begin."""

    x: Place
    y: Place
    W: Place
    bias: Place


def _places(plan: DirectPlan, task: Task, lies: Lies) -> _Places:
    return _Places(
        _at(Of.X, task.seen, lies.x) if lies.x is not None else Place(Of.COPY),
        _at(Of.Y, task.made, lies.y) if lies.y is not None else Place(Of.Y),
        Place(Of.W, task.groups.start * numbers_of_group(plan)),
        Place(Of.BIAS, task.made[1].start),
    )


def _made(
    plan: DirectPlan, task: Task, lies: Lies, places: _Places, part: Part, steps: Steps
) -> list[Step]:
    """Return what makes some outputs of a task: their sums, turned if need be."""
    of_y = lies.y or _steps_of_room(task, last=plan.last)
    if not plan.turns:
        return [_sums(plan, task, places, part, steps, of_y)]
    side_by_side = _steps_of_room(task, last=True)
    turns = plan.table(
        (task.made_sizes, of_y),
        lambda _: turned_to_lines(task.made_sizes, side_by_side, of_y, plan.dtype.itemsize),
    )
    at, y = Place(Of.TURNED), places.y
    return [
        _sums(plan, task, places._replace(y=at), part, steps, side_by_side),
        *(each.of(at, y) for each in turns),
    ]


def _sums(
    plan: DirectPlan,
    task: Task,
    places: _Places,
    part: Part,
    steps: Steps,
    of_y: tuple[int, ...],
) -> Step:
    """Return the sums of some outputs of a task, which lie so."""
    geometry = plan.geometry
    tile = Tile(
        plan.kind,
        plan.form,
        plan.dtype,
        plan.flipped,
        part.cells,
        geometry.kernel,
        task.sizes[0],
        task.groups.stop - task.groups.start,
        geometry.C // geometry.groups,
        geometry.F // geometry.groups,
        steps,
        of_y,
    )
    W, B = places.W, places.x.further(part.first_cell, steps.axes)
    if plan.kind is Kind.CHANNELS:
        W = W.further(part.first_tap, _of_taps(geometry))
    A, B = (B, W) if plan.kind is Kind.OUTPUTS else (W, B)
    C = places.y.further(part.first_output, of_y[2:])
    return plan.table(tile, sums_of).of(A, B, C, places.bias)


def _of_taps(geometry: ConvGeometry) -> list[int]:
    """Return the numbers of weights from one tap to the next along each axis."""
    sizes = geometry.kernel
    return [math.prod(sizes[axis + 1 :]) * geometry.groups for axis in range(len(sizes))]


def _parts_in_place(plan: DirectPlan, task: Task, lies: Lies) -> list[tuple[Part, Steps]] | None:
    """Return the parts of a task whose cells sums can read in x, and how they lie; None for none.

    No vector may be longer than a line of what it is read from. Where a tap is one product for each
    cell, a copy would take as long: so outputs that see padding are made apart.
    """
    line = plan.geometry.C if plan.last else task.cells.outs[-1]
    if plan.last and plan.kind is Kind.OUTPUTS and is_folded(line):
        return None
    if lies.x is None or (plan.kind is not Kind.OUTPUTS and line < plan.lanes):
        return None
    parts = [_whole_of(task.cells)]
    if plan.kind is Kind.CHANNELS:
        parts = parts_of(task.cells)
    if len(parts) > MOST_PARTS or any(0 in part.cells.kernel for part in parts):
        return None
    found = []
    for part in parts:
        steps = part.cells.steps_in_place(lies.x, task.sizes[1], plan.dtype.itemsize)
        if steps is None:
            return None
        found.append((part, steps))
    return found


def _whole_of(cells: Cells) -> Part:
    none = (0,) * len(cells.outs)
    return Part(cells, none, none, none)


def task_of(plan: DirectPlan, index: int) -> Task:
    """Return a task of a plan."""
    geometry = plan.geometry
    groups, images, *outs = plan.tiling[index]
    if plan.kind is Kind.CHANNELS:
        groups = slice(0, geometry.groups)
    cells, inside = plan.cells(tuple(outs))
    channels, filters = (_of(groups, n // geometry.groups) for n in (geometry.C, geometry.F))
    return Task((images, filters, *outs), (images, channels, *inside), groups, cells)


def _of(groups: slice, each: int) -> slice:
    return slice(groups.start * each, groups.stop * each)


def _at(array: int, box: tuple[slice, ...], steps: tuple[int, ...]) -> Place:
    """Return where a box of an array begins."""
    return Place(array).further([each.start for each in box], steps)


def steps_of_lines(y: Array, dtype: np.dtype[Any], *, last: bool) -> tuple[int, ...] | None:
    """Return how results lie, if vectors of them can be stored there."""
    steps = steps_of(y, dtype)
    return steps if steps is not None and steps[1 if last else -1] == 1 else None


def _shape_of_room(task: Task, *, last: bool) -> tuple[int, ...]:
    """Return the shape of memory for the results, in the order of a layout."""
    n, f, *outs = task.made_sizes
    return (n, *outs, f) if last else (n, f, *outs)


def room_for(plan: DirectPlan, scratch: Scratch, task: Task) -> Array:
    """Return memory for the results of a task."""
    rows = scratch.array("y", _shape_of_room(task, last=plan.last), plan.dtype)
    return rows.transpose(0, -1, *range(1, rows.ndim - 1)) if plan.last else rows


def _steps_of_room(task: Task, *, last: bool) -> tuple[int, ...]:
    """Return how it lies."""
    shape = _shape_of_room(task, last=last)
    n, *apart = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return (n, apart[-1], *apart[:-1]) if last else (n, *apart)
