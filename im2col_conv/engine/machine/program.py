"""Tasks that are rows of machine code alone, for one thread or several, in one call from Python.

A call into machine code gives up the interpreter's lock, and asks for it again when it is over.
Where two threads run short routines one by one, they wait for that lock, and for Python, longer
than they work. So a whole pass is drawn up once, as a table of steps; where its arrays begin is
added when it is run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, address, numbers_in
from im2col_conv.engine.machine.crew import ARRAYS, MOST_NUMBERS, PLACES, Block, share

__all__ = ["Need", "Place", "Program", "Step"]

_FRONT, _BACK = 8, 16  # counters that no line of the cache has together


class Place(NamedTuple):
    """Which of a program's arrays, and how many numbers after its first."""

    array: int
    offset: int = 0

    def further(self, steps: Sequence[int], apart: Sequence[int]) -> Place:
        """Return the place so many steps further along each axis, which are so far apart."""
        far = sum(step * each for step, each in zip(steps, apart, strict=True))
        return Place(self.array, self.offset + far)


class Need(NamedTuple):
    """What a step needs of the memory from a place on: how many numbers, of what type or size."""

    numbers: int
    itemsize: int
    dtype: np.dtype[Any] | None
    written: bool


class Step(NamedTuple):
    """A routine and the numbers of 8 bytes that it is told, the places first.

    ``kept`` is what must live for as long as the step may run.
    """

    routine: int
    places: tuple[Place, ...]
    needs: tuple[Need, ...]
    numbers: tuple[int, ...]
    kept: object


class Program:
    """Tasks, each of some steps that are run in order, and what arrays they need.

    Parameters
    ----------
    tasks : sequence of sequence of Step
        No task may need what another one makes.

    Examples
    --------
    >>> from im2col_conv.engine.direct.moves import Again, Box, Moves
    >>> moves = Moves([Box(0, 0, (3,), (), ())], Again(1, 0, 0), 1, 4)
    >>> program = Program([[moves.of(Place(0, 4 * task), Place(1, 3 * task))] for task in range(2)])
    >>> source, target = np.arange(8, dtype=np.float32), np.zeros(6, np.float32)
    >>> program.run([[source, target]])
    >>> target
    array([0., 1., 2., 4., 5., 6.], dtype=float32)
    """

    def __init__(self, tasks: Sequence[Sequence[Step]]) -> None:
        steps = [step for task in tasks for step in task]
        self._kept = [step.kept for step in steps]
        self._needs = _all_needs(steps)
        self.tasks = len(tasks)
        self._told = [np.array(_told(step), np.int64) for step in steps]
        rows = [_row(step, told) for step, told in zip(steps, self._told, strict=True)]
        self._steps = np.array(rows, np.int64)
        row_bytes = self._steps.strides[0]
        ends = np.cumsum([len(task) for task in tasks]) * row_bytes
        begins = np.r_[0, ends[:-1]]
        ranges = np.stack((begins, ends), axis=1) + self._steps.ctypes.data
        self._forth = np.ascontiguousarray(ranges)
        self._back = np.ascontiguousarray(ranges[::-1])
        self._forth_begins, self._back_begins = self._forth.ctypes.data, self._back.ctypes.data

    def numbers_in(self, array: int) -> int:
        """Return how many numbers an array must have."""
        return self._needs[array].numbers if array in self._needs else 0

    def run(self, arrays: Sequence[Sequence[Array | None]]) -> None:
        """Run all tasks, on a thread for each of ``arrays``: those that its tasks use.

        An array that no step needs may be None. Fewer threads do it where no more are to be had.
        """
        self._run(arrays, 0, self.tasks)

    def run_task(self, index: int, arrays: Sequence[Array | None]) -> None:
        """Run one task."""
        self._run([arrays], index, 1)

    def _run(self, arrays: Sequence[Sequence[Array | None]], first: int, tasks: int) -> None:
        counters = (ctypes.c_int64 * (_BACK + 1))()
        drawn = ctypes.addressof(counters)
        forth = self._forth_begins + first * self._forth.strides[0]
        workers = []
        for worker, own in enumerate(arrays):
            begins = self._begins(own)
            # Every other one draws tasks from the end, so that neighbours are one worker's.
            forwards = worker % 2 == 0
            counter, table = (_FRONT, forth) if forwards else (_BACK, self._back_begins)
            workers.append(Block(drawn, tasks, drawn + 8 * counter, table, tuple(begins)))
        share(workers)

    def _begins(self, arrays: Sequence[Array | None]) -> list[int]:
        """Return where arrays begin; complain if one does not hold what steps need of it."""
        begins = [0] * len(arrays)
        for place, need in self._needs.items():
            array = arrays[place]
            if array is None or not _holds(array, need):
                _complain(place, array, need)
            assert array is not None
            begins[place] = address(array)
        return begins


def _holds(array: Array, need: Need) -> bool:
    """Say whether an array is of the right type, large enough, and open to what is done to it."""
    if array.itemsize != need.itemsize or (need.dtype and array.dtype != need.dtype):
        return False
    return numbers_in(array) >= need.numbers and (array.flags.writeable or not need.written)


def _all_needs(steps: Sequence[Step]) -> dict[int, Need]:
    """Return what all steps together need of each array."""
    found: dict[int, Need] = {}
    for step in steps:
        for place, need in zip(step.places, step.needs, strict=True):
            if place.offset < 0:
                raise ValueError(f"a step begins before its array: at {place.offset}")
            here = need._replace(numbers=place.offset + need.numbers)
            found[place.array] = _both(found.get(place.array, here), here)
    return found


def _both(one: Need, other: Need) -> Need:
    """Return what two steps need of an array."""
    types = {one.dtype, other.dtype} - {None}
    if one.itemsize != other.itemsize or len(types) > 1:
        raise ValueError(f"steps need an array of two types: {one}, {other}")
    return Need(
        max(one.numbers, other.numbers),
        one.itemsize,
        one.dtype or other.dtype,
        one.written or other.written,
    )


def _complain(place: int, array: Array | None, need: Need) -> None:
    kind = need.dtype or f"{need.itemsize} bytes"
    if array is None:
        raise ValueError(f"the steps need {need.numbers} numbers of {kind} in array {place}")
    if need.written and not array.flags.writeable:
        raise ValueError(f"the steps need a writeable array {place} for their results")
    raise ValueError(
        f"the steps need {need.numbers} numbers of {kind} in array {place}, got an array of "
        f"shape {array.shape}, {array.dtype}, strides {array.strides}"
    )


def _told(step: Step) -> tuple[int, ...]:
    """Return what the routine is told, with offsets in bytes from where arrays begin."""
    pairs = zip(step.places, step.needs, strict=True)
    numbers = (*(place.offset * need.itemsize for place, need in pairs), *step.numbers)
    if len(numbers) > MOST_NUMBERS or len(step.places) > PLACES:
        raise ValueError(f"a routine is told {MOST_NUMBERS} numbers at most, got {len(numbers)}")
    return numbers


def _row(step: Step, told: Array) -> tuple[int, ...]:
    """Return a row of the table of steps: array 0 of a block is none, and begins at 0."""
    arrays = [1 + place.array for place in step.places]
    if max(arrays) >= ARRAYS:
        raise ValueError(f"a program has {ARRAYS - 1} arrays at most, got {max(arrays)}")
    unused = [0] * (PLACES - len(arrays))
    return (step.routine, told.ctypes.data, len(told), *arrays, *unused)
