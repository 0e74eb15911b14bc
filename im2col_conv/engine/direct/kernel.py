r"""The one routine of the direct way, in machine code: sums whose terms are found by two tables.

.. math:: C_{i,v} = D + \sum_k A_{i,k} B_{v,k},

where a row i is one number at a time and v is a vector of numbers side by side in memory: of eight
float32 or four float64, with AVX-512 also of twice as many. What is read for term k lies at the sum
of two offsets, one of the row or the vector and one of k. So a block of C, some rows by two
vectors, stays in registers until it is done.

.. code-block:: text

    for each part of the whole:                 an image, a group, some vectors
        for each block of rows:
            for each pair of vectors:
                C = D                           in registers
                for each k:                     C (rows, 2) += A (rows, 1) @ B (1, 2), in vectors
                    two loads of B
                    for each row: one load of A to all lanes, two multiply-adds
                store C

Where each channel sees itself alone, there is nothing to share between rows; then B has rows, lines
of a plane or cells, and A is one number for all of them (``planes``), or a vector (``channels``).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.machine.assembler import Address, Assembler, Form, Register, Vector
from im2col_conv.engine.machine.memory import loaded

__all__ = [
    "COLUMN",
    "PART",
    "ROW",
    "Call",
    "Kind",
    "Routine",
    "masks_of",
    "most_rows",
    "routine_for",
]


class Kind(Enum):
    """What is multiplied, and what D is for.

    Attributes
    ----------
    FILTERS
        A holds rows of weights and B lines of cells; D has a number for each row.
    OUTPUTS
        A holds cells, one a row, and B vectors of weights; D has a number for each lane.
    PLANES
        B holds lines of one plane, and A its weights; D is one number.
    CHANNELS
        B holds cells, vectors of channels, and A their weights; D has a number for each lane.
    """

    FILTERS = "filters"
    OUTPUTS = "outputs"
    PLANES = "planes"
    CHANNELS = "channels"

    @property
    def by_number(self) -> bool:
        """Whether A is one number for each row, and not the same for all of a block."""
        return self in (Kind.FILTERS, Kind.OUTPUTS)


class Call(NamedTuple):
    """What the routine is told, in 8 bytes each; the last ones are for its own use."""

    a: int
    b: int
    c: int
    d: int
    terms: int  # minus the bytes of a table
    alpha: int  # where the table of A's offsets ends
    beta: int  # and that of B's
    step: int  # from row to row of A, or of B
    c_step: int
    part: int
    parts_end: int
    rows: int
    rows_end: int
    columns: int
    masks: int
    a_part: int = 0
    b_part: int = 0
    c_part: int = 0
    d_part: int = 0
    first_column: int = 0
    row: int = 0
    a_block: int = 0
    b_block: int = 0
    d_block: int = 0
    kernel: int = 0


# What the tables hold, in 8 bytes each, as offsets in bytes.
PART = ("a", "b", "c", "d", "first", "end")  # of the columns
ROW = ("a", "b", "c", "d", "kernel")
COLUMN = ("b0", "b1", "c0", "c1", "d0", "d1", "mask0", "mask1")

_SLOT = 8
_RAX, _RCX, _RDX, _RBX, _RBP, _RSI, _RDI = (Register(n) for n in (0, 1, 2, 3, 5, 6, 7))
_R8, _R9, _R10, _R11, _R12, _R13, _R14, _R15 = (Register(n) for n in range(8, 16))
_SAVED = (_RBX, _RBP, _R12, _R13, _R14, _R15)  # which a function must leave as they were

# What stays in registers while a block is summed.
_TERM, _CALL, _STEP = _RAX, _RDI, _RBX
_B0, _B1, _A, _SECOND_A, _ALPHA, _BETA = _RCX, _RDX, _RSI, _RBP, _R8, _R9
_COLUMN, _COLUMNS_END, _C = _R13, _R14, _R15
_ROWS_APART = 6
_OTHERS = 4  # registers of vectors that hold no sums: two of them what all rows of a block meet

# A row lies at a register plus 0, 1, 2, 4 or 8 steps: which rows are found from the first one, and
# from others that a second register is set to, one after the other.
_FOUND_FROM = {0: (0, 1, 2, 4, 8), 1: (3, 5, 9), 5: (6, 7, 13), 9: (10, 11), 11: (12,)}


def most_rows(form: Form, kind: Kind) -> int:
    """Return how many rows a block has at most: twice as many sums stay in registers.

    Where rows have nothing to share, a few hide how long an addition takes, and the cells that more
    of them meet would not stay in the cache.

    Examples
    --------
    >>> from im2col_conv.engine.machine.assembler import AVX2, AVX512
    >>> [most_rows(form, Kind.OUTPUTS) for form in (AVX2, AVX512)], most_rows(AVX512, Kind.PLANES)
    ([6, 14], 6)
    """
    return (form.registers - _OTHERS) // 2 if kind.by_number else _ROWS_APART


@cache
def masks_of(form: Form, itemsize: int) -> Array:
    """Return masks of 8 bytes, or of a vector's size: the n-th keeps all but the last n numbers."""
    lanes = form.size // itemsize
    kept = np.arange(lanes) < np.arange(lanes, -1, -1)[:, np.newaxis]
    if form.masks:
        return kept @ (1 << np.arange(lanes))
    return -np.repeat(kept, itemsize, axis=1).astype(np.int8)


class Routine:
    """The routine for one form of vectors, type and kind of sums, ready to run.

    Attributes
    ----------
    address : int
        Where it begins; it is told a :class:`Call`.
    kernels : list of int
        Where the code for blocks of 1, 2, ... rows begins.
    """

    def __init__(self, form: Form, dtype: np.dtype[Any], kind: Kind) -> None:
        code = _Code(form, dtype, kind).code
        start = loaded(code.finished())
        self.address = start
        self.kernels = [
            start + code.place(f"{n} rows") for n in range(1, most_rows(form, kind) + 1)
        ]


@cache
def routine_for(form: Form, dtype: np.dtype[Any], kind: Kind) -> Routine:
    """Return the routine, which is written when it is first asked for."""
    return Routine(form, dtype, kind)


class _Code:
    """The routine as it is written, from its loops inwards."""

    def __init__(self, form: Form, dtype: np.dtype[Any], kind: Kind) -> None:
        self.code = Assembler(form, double=dtype.itemsize == 8)
        self._itemsize, self._kind = dtype.itemsize, kind
        others = range(form.registers - _OTHERS, form.registers)
        self._left, self._second_left, *self._right = map(Vector, others)
        self._mask = Vector(1) if form.masks else self._left
        self._enter()
        self._parts()
        self._rows()
        for rows in range(1, most_rows(form, kind) + 1):
            self._columns(rows)
        self._leave()

    def _enter(self) -> None:
        code = self.code
        for register in _SAVED:
            code.push(register)
        code.load(_ALPHA, _slot("alpha"))
        code.load(_BETA, _slot("beta"))
        code.load(_STEP, _slot("step"))

    def _leave(self) -> None:
        code = self.code
        code.label("end")
        for register in reversed(_SAVED):
            code.pop(register)
        code.clear_upper_halves()
        code.back()

    def _parts(self) -> None:
        code = self.code
        code.label("part")
        code.load(_R10, _slot("part"))
        code.compare(_R10, _slot("parts_end"))
        code.jump_if_zero("end")
        for name in "abcd":
            self._sum_to(f"{name}_part", _field(_R10, PART, name), _slot(name))
        self._sum_to("first_column", _field(_R10, PART, "first"), _slot("columns"))
        code.load(_COLUMNS_END, _field(_R10, PART, "end"))
        code.add(_COLUMNS_END, _slot("columns"))
        code.add_number(_R10, len(PART) * _SLOT)
        code.store(_slot("part"), _R10)
        code.load(_R10, _slot("rows"))
        code.store(_slot("row"), _R10)

    def _rows(self) -> None:
        code = self.code
        code.label("row")
        code.load(_R10, _slot("row"))
        code.compare(_R10, _slot("rows_end"))
        code.jump_if_zero("part")
        for name in "abd":
            self._sum_to(f"{name}_block", _field(_R10, ROW, name), _slot(f"{name}_part"))
        code.load(_C, _field(_R10, ROW, "c"))
        code.add(_C, _slot("c_part"))
        code.load(_R11, _field(_R10, ROW, "kernel"))
        code.store(_slot("kernel"), _R11)
        code.add_number(_R10, len(ROW) * _SLOT)
        code.store(_slot("row"), _R10)
        code.load(_COLUMN, _slot("first_column"))
        code.jump_to(_slot("kernel"))

    def _columns(self, rows: int) -> None:
        code = self.code
        code.label(f"{rows} rows")
        code.compare(_COLUMN, _COLUMNS_END)
        code.jump_if_zero("row")
        self._find()
        self._begin(rows)
        code.load(_TERM, _slot("terms"))
        code.label(f"{rows} rows, term")
        self._term(rows)
        code.add_number(_TERM, 4)
        code.jump_if_not_zero(f"{rows} rows, term")
        code.load(_R12, _slot("c_step"))
        for vector in range(2):
            self._store(rows, vector)
        code.add_number(_COLUMN, len(COLUMN) * _SLOT)
        code.jump(f"{rows} rows")

    def _find(self) -> None:
        """Find out where the operands of a block lie."""
        code = self.code
        for vector, (register, a) in enumerate(((_B0, _A), (_B1, _SECOND_A))):
            code.load(register, _column(f"b{vector}"))
            code.add(register, _slot("b_block"))
            code.load(a, _slot("a_block"))
            if self._kind is Kind.CHANNELS:
                code.add(a, _column(f"d{vector}"))

    def _begin(self, rows: int) -> None:
        """Set the sums of a block to D."""
        code = self.code
        code.load(_R10, _slot("d_block"))
        if self._kind in (Kind.OUTPUTS, Kind.CHANNELS):
            for vector in range(2):
                code.load(_R11, _column(f"d{vector}"))
                code.load_vector(_sum(0, vector), Address(_R10, _R11))
        else:
            code.broadcast(_sum(0, 0), Address(_R10))
            code.copy_vector(_sum(0, 1), _sum(0, 0))
        for row in range(1, rows):
            if self._kind is Kind.FILTERS:
                code.broadcast(_sum(row, 0), Address(_R10, displacement=row * self._itemsize))
                code.copy_vector(_sum(row, 1), _sum(row, 0))
            else:
                for vector in range(2):
                    code.copy_vector(_sum(row, vector), _sum(0, vector))

    def _term(self, rows: int) -> None:
        """Add one term to the sums of a block."""
        code = self.code
        code.load_int32(_R10, Address(_ALPHA, _TERM))
        code.load_int32(_R11, Address(_BETA, _TERM))
        if self._kind.by_number:
            code.load_vector(self._left, Address(_B0, _R11))
            code.load_vector(self._second_left, Address(_B1, _R11))
            code.add(_R10, _A)
            for row, place in self._places(_R10, _R12, rows):
                number = self._right[row % 2]
                code.broadcast(number, place)
                code.multiply_add(_sum(row, 0), number, self._left)
                code.multiply_add(_sum(row, 1), number, self._second_left)
            return
        second = self._left
        if self._kind is Kind.PLANES:
            code.broadcast(self._left, Address(_A, _R10))
        else:
            second = self._second_left
            code.load_vector(self._left, Address(_A, _R10))
            code.load_vector(self._second_left, Address(_SECOND_A, _R10))
        code.load_address(_R10, Address(_B0, _R11))
        code.load_address(_R12, Address(_B1, _R11))
        for vector, (begin, number) in enumerate(((_R10, self._left), (_R12, second))):
            for row, place in self._places(begin, _R11, rows):
                code.multiply_add(_sum(row, vector), number, place)

    def _places(self, begin: Register, spare: Register, rows: int) -> Iterator[tuple[int, Address]]:
        """Yield each row of a block and where it lies; ``spare`` is set on the way."""
        base, at = begin, 0
        for first, found in _FOUND_FROM.items():
            wanted = [row for row in found if row < rows]
            if wanted and first:
                self.code.load_address(spare, Address(base, _STEP, first - at))
                base, at = spare, first
            for row in wanted:
                yield row, Address(base, _STEP, row - at) if row > at else Address(base)

    def _store(self, rows: int, vector: int) -> None:
        """Store a vector of each row: all of it, or those numbers that its mask keeps."""
        code, masked, done = self.code, f"{rows} rows, mask {vector}", f"{rows} rows, {vector}"
        code.load(_R10, _column(f"c{vector}"))
        code.add(_R10, _C)
        code.load(_R11, _column(f"mask{vector}"))
        code.compare_with_zero(_R11)
        code.jump_if_not_zero(masked)
        for row in range(rows):
            code.store_vector(Address(_R10), _sum(row, vector))
            code.add(_R10, _R12)
        code.jump(done)
        code.label(masked)
        code.add(_R11, _slot("masks"))
        code.load_mask(self._mask, Address(_R11))
        for row in range(rows):
            code.store_masked(Address(_R10), self._mask, _sum(row, vector))
            code.add(_R10, _R12)
        code.label(done)

    def _sum_to(self, slot: str, offset: Address, base: Address) -> None:
        code = self.code
        code.load(_R11, offset)
        code.add(_R11, base)
        code.store(_slot(slot), _R11)


def _slot(name: str) -> Address:
    return _field(_CALL, Call._fields, name)


def _column(name: str) -> Address:
    return _field(_COLUMN, COLUMN, name)


def _field(base: Register, fields: tuple[str, ...], name: str) -> Address:
    return Address(base, displacement=fields.index(name) * _SLOT)


def _sum(row: int, vector: int) -> Vector:
    return Vector(2 * row + vector)
