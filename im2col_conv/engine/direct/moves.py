"""Copies of many short lines in one call of machine code, during which other threads go on.

NumPy copies a box at a time and gives up the interpreter's lock for each. Two workers who copy
many small boxes wait for that lock longer than they copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import places_of
from im2col_conv.engine.machine.assembler import AVX2, Address, Assembler, Register, Vector
from im2col_conv.engine.machine.memory import loaded
from im2col_conv.engine.machine.program import Need, Place, Step

__all__ = ["Again", "Box", "Moves", "go_further"]

_VECTOR = AVX2.size


class Box(NamedTuple):
    """Lines to copy: where the first begins, and how far it is to the next along each axis.

    Offsets and steps are counted in numbers. ``shape`` has the numbers of a line at its end.
    """

    source: int
    target: int
    shape: tuple[int, ...]
    source_steps: tuple[int, ...]
    target_steps: tuple[int, ...]


class Again(NamedTuple):
    """How often all boxes are copied, and how much further on each time."""

    times: int
    source: int
    target: int


class Moves:
    """Copies of boxes whose lines are taken in the same ``step``, and laid side by side.

    Parameters
    ----------
    boxes : sequence of Box
    again : Again
    step : int
        From one number of a line to the next, in the source; 0 repeats one.
    itemsize : int

    Examples
    --------
    Every other number of two lines:

    >>> from im2col_conv.engine.machine.program import Program
    >>> moves = Moves([Box(1, 0, (3,), (), ())], Again(2, 6, 3), 2, 4)
    >>> source, target = np.arange(12, dtype=np.float32), np.zeros(6, np.float32)
    >>> Program([[moves.of(Place(0), Place(1))]]).run([[source, target]])
    >>> target
    array([ 1.,  3.,  5.,  7.,  9., 11.], dtype=float32)
    """

    def __init__(self, boxes: Sequence[Box], again: Again, step: int, itemsize: int) -> None:
        lines = np.concatenate([_lines(_joined(box, step)) for box in boxes])
        lines = lines[lines[:, 2] > 0]
        if again.times == 0 or lines.size == 0:
            raise ValueError("there is nothing to copy")
        source, target, numbers = lines.T
        self._reach = (
            _reach(source, source + (numbers - 1) * step, again.times, again.source),
            _reach(target, target + numbers - 1, again.times, again.target),
        )
        self._itemsize = itemsize
        self._table = np.ascontiguousarray(lines) * itemsize
        begin = self._table.ctypes.data
        apart = again.source * itemsize, again.target * itemsize
        self._told = (step * itemsize, begin, begin + self._table.nbytes, again.times, *apart)
        self._routine = _copier(itemsize)

    def of(self, source: Place, target: Place) -> Step:
        """Return the step that copies from one place to another.

        Of arrays with gaps, all memory from first number to last is used.
        """
        needs = tuple(
            Need(numbers, self._itemsize, None, written)
            for numbers, written in zip(self._reach, (False, True), strict=True)
        )
        return Step(self._routine, (source, target), needs, self._told, self)


def _reach(first: Array, last: Array, times: int, apart: int) -> int:
    """Return how many numbers an array must have that holds all lines each time."""
    shift = (times - 1) * apart
    if min(first.min(), last.min()) + min(shift, 0) < 0:
        raise ValueError("a line of the copies begins before its array")
    return int(max(first.max(), last.max())) + max(shift, 0) + 1


def _joined(box: Box, step: int) -> Box:
    """Return a box with fewer and longer lines, where they follow one another in both arrays.

    Examples
    --------
    >>> _joined(Box(0, 0, (4, 5, 3), (40, 3), (15, 3)), 1)
    Box(source=0, target=0, shape=(4, 15), source_steps=(40,), target_steps=(15,))
    """
    while box.source_steps:
        *outer, lines, numbers = box.shape
        if box.source_steps[-1] != numbers * step or box.target_steps[-1] != numbers:
            break
        shape = (*outer, lines * numbers)
        box = Box(box.source, box.target, shape, box.source_steps[:-1], box.target_steps[:-1])
    return box


def _lines(box: Box) -> Array:
    """Return where each line of a box begins, in source and target, and how many it has."""
    *outer, numbers = box.shape
    source = box.source + places_of(outer, box.source_steps)
    target = box.target + places_of(outer, box.target_steps)
    return np.stack((source, target, np.full_like(source, numbers)), axis=1)


_FIELDS = (
    *("source", "target", "step", "lines", "lines_end"),
    *("times", "source_apart", "target_apart"),
)
_LINE = ("source", "target", "bytes")

_RAX, _RCX, _RDX, _RSI, _RDI = (Register(n) for n in (0, 1, 2, 6, 7))
_R8, _R9, _R10, _R11 = (Register(n) for n in range(8, 12))


@cache
def _copier(itemsize: int) -> int:
    """Return where the routine begins, which is written when it is first asked for."""
    code = Assembler(AVX2, double=itemsize == 8)
    for register, name in ((_R8, "step"), (_R10, "lines_end"), (_R11, "times")):
        code.load(register, _field(_RDI, _FIELDS, name))
    code.label("again")
    code.load(_R9, _field(_RDI, _FIELDS, "lines"))
    code.label("line")
    code.compare(_R9, _R10)
    code.jump_if_zero("next")
    for register, name in ((_RSI, "source"), (_RDX, "target")):
        code.load(register, _field(_R9, _LINE, name))
        code.add(register, _field(_RDI, _FIELDS, name))
    code.load(_RCX, _field(_R9, _LINE, "bytes"))
    code.add_number(_R9, len(_LINE) * 8)
    code.compare_with(_R8, itemsize)
    code.jump_if_zero("vector")
    if itemsize == 4:
        _every_other(code)
    code.jump("one")
    code.label("vector")
    code.compare_with(_RCX, _VECTOR)
    code.jump_if_less("rest")
    code.load_vector(Vector(0), Address(_RSI))
    code.store_vector(Address(_RDX), Vector(0))
    for register, bytes_ in ((_RSI, _VECTOR), (_RDX, _VECTOR), (_RCX, -_VECTOR)):
        code.add_number(register, bytes_)
    code.jump("vector")
    code.label("rest")
    code.compare_with_zero(_RCX)
    code.jump_if_zero("line")
    code.label("one")
    code.load_one(Vector(0), Address(_RSI))
    code.store_one(Address(_RDX), Vector(0))
    code.add(_RSI, _R8)
    code.add_number(_RDX, itemsize)
    code.add_number(_RCX, -itemsize)
    code.jump_if_not_zero("one")
    code.jump("line")
    code.label("next")
    go_further(code, _FIELDS)
    code.add_number(_R11, -1)
    code.jump_if_not_zero("again")
    code.clear_upper_halves()
    code.back()
    return loaded(code.finished())


def go_further(code: Assembler, fields: tuple[str, ...]) -> None:
    """Move on where both arrays begin, of a routine that is told such fields by register 7."""
    for name in ("source", "target"):
        code.load(_RAX, _field(_RDI, fields, f"{name}_apart"))
        code.add(_RAX, _field(_RDI, fields, name))
        code.store(_field(_RDI, fields, name), _RAX)


def _every_other(code: Assembler) -> None:
    """Copy vectors of every other number, while more than one vector is left.

    Of the last one the number after it would be read, which may be past the end of the source.
    """
    code.compare_with(_R8, 8)
    code.jump_if_not_zero("one")
    code.label("every other")
    code.compare_with(_RCX, _VECTOR + 4)
    code.jump_if_less("one")
    code.load_vector(Vector(0), Address(_RSI))
    code.take_even(Vector(0), Address(_RSI, displacement=_VECTOR))
    code.store_vector(Address(_RDX), Vector(0))
    for register, bytes_ in ((_RSI, 2 * _VECTOR), (_RDX, _VECTOR), (_RCX, -_VECTOR)):
        code.add_number(register, bytes_)
    code.jump("every other")


def _field(base: Register, fields: tuple[str, ...], name: str) -> Address:
    return Address(base, displacement=fields.index(name) * 8)
