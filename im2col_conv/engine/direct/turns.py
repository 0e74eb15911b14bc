"""Matrices turned by machine code: as many rows at a time as a vector has numbers.

Rows that lie far apart are read a vector at a time, not a number at a time as lines of ``moves``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.moves import Again, go_further
from im2col_conv.engine.machine.assembler import AVX2, Address, Assembler, Register, Vector
from im2col_conv.engine.machine.memory import loaded
from im2col_conv.engine.machine.program import Need, Place, Step

__all__ = ["Strip", "Turns", "pieces_of", "side_of", "strips_of"]

_VECTOR = AVX2.size


class Strip(NamedTuple):
    """As many rows as a vector has numbers: where they begin, and how many vectors are in each.

    ``first`` is the number, in the list of targets, of the first column.
    """

    source: int
    target: int
    vectors: int
    first: int


class Turns:
    """Strips of rows, which become columns: target[targets[j] + i] = source[i, j].

    Offsets and steps are counted in numbers.

    Parameters
    ----------
    strips : sequence of Strip
    step : int
        From row to row of the source.
    targets : array of int
        Where each column goes, as a row, from where a strip's target begins.
    again : Again
    itemsize : int

    Examples
    --------
    >>> from im2col_conv.engine.machine.program import Program
    >>> turns = Turns([Strip(0, 0, 1, 0)], 5, np.array([0, 4, 12, 8]), Again(1, 0, 0), 8)
    >>> source, target = np.arange(20.0), np.zeros(16)
    >>> Program([[turns.of(Place(0), Place(1))]]).run([[source, target]])
    >>> target[:8], target[12:]
    (array([ 0.,  5., 10., 15.,  1.,  6., 11., 16.]), array([ 2.,  7., 12., 17.]))
    """

    def __init__(
        self, strips: Sequence[Strip], step: int, targets: Array, again: Again, itemsize: int
    ) -> None:
        table = np.array(strips, np.int64).reshape(-1, len(Strip._fields))
        side = side_of(itemsize)
        if again.times < 1 or table.size == 0 or table[:, 2].min() < 1:
            raise ValueError("there is nothing to turn")
        source, target, vectors, first = table.T
        if min(step, *again, table.min(), targets.min()) < 0:
            raise ValueError("a strip begins before its array")
        if (first + vectors * side).max() > len(targets):
            raise ValueError(f"a strip has columns that are none of the {len(targets)} targets")
        last = again.times - 1
        columns = zip(first, first + vectors * side, strict=True)
        farthest = np.array([targets[begin:end].max() for begin, end in columns])
        ends = (
            source + (side - 1) * step + vectors * side + last * again.source,
            target + farthest + side + last * again.target,
        )
        self._needs = tuple(
            Need(int(end.max()), itemsize, None, written)
            for end, written in zip(ends, (False, True), strict=True)
        )
        self._targets = targets.astype(np.int64) * itemsize
        self._table = table * np.array([itemsize, itemsize, 1, 8])
        self._table[:, 3] += self._targets.ctypes.data
        begin, end = self._table.ctypes.data, self._table.ctypes.data + self._table.nbytes
        apart = again.source * itemsize, again.target * itemsize
        self._told = (step * itemsize, begin, end, again.times, *apart)
        self._routine = _turner(itemsize)

    def of(self, source: Place, target: Place) -> Step:
        """Return the step that turns what begins at one place, to another."""
        return Step(self._routine, (source, target), self._needs, self._told, self)


def side_of(itemsize: int) -> int:
    """Return how many rows a strip has: as many as a vector has numbers."""
    return _VECTOR // itemsize


def pieces_of(numbers: int, side: int) -> Iterator[tuple[int, int]]:
    """Yield the first of some numbers and how many vectors begin there; the last may overlap.

    Examples
    --------
    >>> list(pieces_of(19, 8)), list(pieces_of(16, 8)), list(pieces_of(7, 8))
    ([(0, 2), (11, 1)], [(0, 2)], [])
    """
    whole = numbers // side
    if whole:
        yield 0, whole
        if numbers % side:
            yield numbers - side, 1


def strips_of(
    begins: Iterable[tuple[int, int]], rows: int, step: int, columns: int, side: int
) -> list[Strip]:
    """Return the strips of matrices that begin so, in source and target; the last may overlap.

    Examples
    --------
    >>> [(strip.source, strip.target) for strip in strips_of([(100, 0)], 9, 20, 8, 8)]
    [(100, 0), (120, 1)]
    """
    first = [at + side * n for at, strips in pieces_of(rows, side) for n in range(strips)]
    return [
        Strip(source + row * step + at, target + row, vectors, at)
        for (source, target), row in product(begins, first)
        for at, vectors in pieces_of(columns, side)
    ]


_FIELDS = (
    *("source", "target", "step", "strips", "strips_end"),
    *("times", "source_apart", "target_apart"),
)
_RAX, _RDX, _RBX, _RSI, _RDI = (Register(n) for n in (0, 2, 3, 6, 7))
_R8, _R9, _R10, _R11 = (Register(n) for n in range(8, 12))


@cache
def _turner(itemsize: int) -> int:
    """Return where the routine begins, which is written when it is first asked for."""
    code, side = Assembler(AVX2, double=itemsize == 8), side_of(itemsize)
    code.push(_RBX)
    code.load(_R8, _field(_RDI, _FIELDS, "step"))
    code.load_address(_R9, Address(_R8, _R8, 2))
    code.label("again")
    code.load(_RBX, _field(_RDI, _FIELDS, "strips"))
    code.label("strip")
    code.compare(_RBX, _field(_RDI, _FIELDS, "strips_end"))
    code.jump_if_zero("next")
    for register, name in ((_RSI, "source"), (_RDX, "target")):
        code.load(register, _field(_RBX, Strip._fields, name))
        code.add(register, _field(_RDI, _FIELDS, name))
    code.load(_RAX, _field(_RBX, Strip._fields, "vectors"))
    code.load(_R11, _field(_RBX, Strip._fields, "first"))
    code.add_number(_RBX, len(Strip._fields) * 8)
    code.label("vector")
    for row, place in enumerate(_rows(code)[:side]):
        code.load_vector(Vector(row), place)
    for column, vector in enumerate(_turn(code, [Vector(row) for row in range(side)])):
        code.load(_R10, Address(_R11, displacement=8 * column))
        code.store_vector(Address(_RDX, _R10), vector)
    code.add_number(_RSI, _VECTOR)
    code.add_number(_R11, 8 * side)
    code.add_number(_RAX, -1)
    code.jump_if_not_zero("vector")
    code.jump("strip")
    code.label("next")
    go_further(code, _FIELDS)
    code.load(_RAX, _field(_RDI, _FIELDS, "times"))
    code.add_number(_RAX, -1)
    code.store(_field(_RDI, _FIELDS, "times"), _RAX)
    code.compare_with_zero(_RAX)
    code.jump_if_not_zero("again")
    code.pop(_RBX)
    code.clear_upper_halves()
    code.back()
    return loaded(code.finished())


def _rows(code: Assembler) -> list[Address]:
    """Return where eight rows begin; another register is set to where the fourth does."""
    code.load_address(_R10, Address(_RSI, _R9))
    return [
        Address(_RSI),
        Address(_RSI, _R8),
        Address(_RSI, _R8, 2),
        Address(_R10),
        Address(_RSI, _R8, 4),
        Address(_R10, _R8, 2),
        Address(_RSI, _R9, 2),
        Address(_R10, _R8, 4),
    ]


def _turn(code: Assembler, rows: list[Vector]) -> list[Vector]:
    """Turn a square of vectors: numbers in pairs, pairs in halves, halves; return its rows."""
    lanes = len(rows)
    spare = [Vector(lanes + n) for n in range(lanes)]
    for double in (True,) if lanes == 4 else (False, True):
        apart = lanes // 4 if double else 1  # rows that are interleaved
        for n in range(lanes):
            pair, high = _pair(n, apart)
            code.interleave(spare[n], rows[pair], rows[pair + apart], high=high, double=double)
        rows, spare = spare, rows
    for n in range(lanes):
        half = lanes // 2
        code.join_halves(spare[n], rows[n % half], rows[n % half + half], high=n >= half)
    return spare


def _pair(n: int, apart: int) -> tuple[int, bool]:
    """Return which row the ``n``-th result begins with, and whether it has the higher numbers."""
    if apart == 1:
        return n // 2 * 2, n % 2 == 1
    return n // 4 * 4 + n % 4 // 2, n % 2 == 1


def _field(base: Register, fields: tuple[str, ...], name: str) -> Address:
    return Address(base, displacement=fields.index(name) * 8)
