"""What the routine of the direct way is to sum, with bounds that are proved beforehand.

As for :class:`~im2col_conv.engine.products.Products`: what can be reached in each of four arrays
is computed once, from all offsets, and a program refuses arrays whose memory is smaller.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.kernel import (
    COLUMN,
    PART,
    ROW,
    Call,
    Kind,
    masks_of,
    most_rows,
    routine_for,
)
from im2col_conv.engine.machine.assembler import Form
from im2col_conv.engine.machine.program import Need, Place, Step

__all__ = ["FARTHEST", "Parts", "Runs", "Sums", "Terms", "Vectors"]

FARTHEST = np.iinfo(np.int32).max  # bytes that a table holds as the offset of a term


class Terms(NamedTuple):
    """Offsets of each term, in A and in B."""

    a: Array
    b: Array


class Runs(NamedTuple):
    """Rows that follow each other: where the first of each run lies, and how many there are."""

    a: Array
    b: Array
    c: Array
    d: Array
    rows: Array


class Vectors(NamedTuple):
    """Vectors of C: where each lies, and how many of its numbers are wanted."""

    b: Array
    c: Array
    d: Array
    numbers: Array


class Parts(NamedTuple):
    """Where the arrays of each part of the whole begin: all is done for each of them."""

    a: Array
    b: Array
    c: Array
    d: Array


class Sums:
    """Sums C[i, v] = D + sum over k of A[i, k] B[v, k], for all rows i and all vectors v.

    Offsets are counted in numbers, and what is read or written lies at the sum of those of the
    part, the row, the vector and the term.

    Parameters
    ----------
    form : Form
        Of the vectors.
    dtype : dtype
        float32 or float64.
    kind : Kind
        What A, B and D hold.
    terms : Terms
    runs : Runs
    steps : (int, int)
        From row to row of A, or of B where the rows are its own; and of C.
    vectors : Vectors
    parts : Parts
    together : int
        Vectors that all rows meet before the next ones.

    Examples
    --------
    Two filters of two taps, on a line of ten cells:

    >>> from im2col_conv.engine.machine.assembler import AVX2
    >>> one, none = np.array([1]), np.zeros(1, int)
    >>> sums = Sums(
    ...     AVX2,
    ...     np.dtype(np.float32),
    ...     Kind.FILTERS,
    ...     Terms(np.arange(2), np.arange(2)),
    ...     Runs(none, none, none, none, 2 * one),
    ...     (2, 8),
    ...     Vectors(none, none, none, 8 * one),
    ...     Parts(none, none, none, none),
    ...     together=2,
    ... )
    >>> sums.reach
    {'a': 4, 'b': 9, 'c': 16, 'd': 2}
    """

    def __init__(
        self,
        form: Form,
        dtype: np.dtype[Any],
        kind: Kind,
        terms: Terms,
        runs: Runs,
        steps: tuple[int, int],
        vectors: Vectors,
        parts: Parts,
        *,
        together: int,
    ) -> None:
        self._dtype, size = dtype, dtype.itemsize
        self._routine = routine_for(form, dtype, kind)
        self._masks = masks_of(form, size)
        blocks = _cut(runs, kind, steps, most_rows(form, kind))
        lanes = form.lanes(dtype)
        self.reach = _reach(dtype, lanes, kind, terms, blocks, steps, vectors, parts)
        self._terms = np.stack(terms).astype(np.int32) * np.int32(size)
        self._rows = _table(ROW, (*blocks[:4], self._kernels(blocks.rows)), size, counted=4)
        left_out = (lanes - vectors.numbers) * self._masks.strides[0]
        self._columns = _table(COLUMN, _pairs((*vectors[:3], left_out)), size, counted=6)
        self._parts = _table(PART, _chunks(parts, len(self._columns), together), size, counted=4)
        self._steps = [step * size for step in steps]
        self._call = self._told()

    def _kernels(self, rows: Array) -> Array:
        kernels: Array = np.array(self._routine.kernels, np.int64)[rows - 1]
        return kernels

    def _told(self) -> tuple[int, ...]:
        """Return what the routine is told, but where the arrays begin."""
        alpha, beta = (each.ctypes.data + each.nbytes for each in self._terms)
        rows, parts = self._rows.ctypes.data, self._parts.ctypes.data
        return Call(
            a=0,
            b=0,
            c=0,
            d=0,
            terms=-self._terms[0].nbytes,
            alpha=alpha,
            beta=beta,
            step=self._steps[0],
            c_step=self._steps[1],
            part=parts,
            parts_end=parts + self._parts.nbytes,
            rows=rows,
            rows_end=rows + self._rows.nbytes,
            columns=self._columns.ctypes.data,
            masks=self._masks.ctypes.data,
        )[4:]

    def of(self, a: Place, b: Place, c: Place, d: Place) -> Step:
        """Return the step that makes the sums of arrays that begin at four places.

        Of an array with gaps, all memory from its first number to its last is used.
        """
        needs = tuple(
            Need(numbers, self._dtype.itemsize, self._dtype, name == "c")
            for name, numbers in self.reach.items()
        )
        return Step(self._routine.address, (a, b, c, d), needs, self._call, self)


def _cut(runs: Runs, kind: Kind, steps: tuple[int, int], most: int) -> Runs:
    """Return runs of at most as many rows as a block has, as long as each other."""
    pieces = -(-runs.rows // most)
    run = np.repeat(np.arange(len(pieces)), pieces)
    piece = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first, end = (at * runs.rows[run] // pieces[run] for at in (piece, piece + 1))
    a, b, c, d = (column[run] for column in runs[:4])
    if kind.by_number:
        a = a + first * steps[0]
    else:
        b = b + first * steps[0]
    if kind is Kind.FILTERS:
        d = d + first
    return Runs(a, b, c + first * steps[1], d, end - first)


def _reach(
    dtype: np.dtype[Any],
    lanes: int,
    kind: Kind,
    terms: Terms,
    blocks: Runs,
    steps: tuple[int, int],
    vectors: Vectors,
    parts: Parts,
) -> dict[str, int]:
    """Return how many numbers each array must have; complain about what lies before it."""
    numbers = [*terms, *blocks, *vectors, *parts, np.array(steps)]
    if any(each.size == 0 or each.min() < 0 for each in numbers) or blocks.rows.min() < 1:
        raise ValueError("the sums are empty, or something of them begins before its array")
    after = blocks.rows - 1
    in_a = blocks.a + after * steps[0] * kind.by_number
    in_b = blocks.b + after * steps[0] * (not kind.by_number)
    lane = vectors.d.max() + lanes
    of_a = lane if kind is Kind.CHANNELS else 1
    of_d = lane if kind in (Kind.OUTPUTS, Kind.CHANNELS) else 1
    in_d = blocks.d + after * (kind is Kind.FILTERS)
    in_c = (blocks.c + after * steps[1]).max() + (vectors.c + vectors.numbers).max()
    reach = {
        "a": parts.a.max() + in_a.max() + terms.a.max() + of_a,
        "b": parts.b.max() + in_b.max() + vectors.b.max() + terms.b.max() + lanes,
        "c": parts.c.max() + in_c,
        "d": parts.d.max() + in_d.max() + of_d,
    }
    farthest = max(each.max() for each in terms) * dtype.itemsize
    if farthest > FARTHEST:
        raise ValueError(f"a term is further than {FARTHEST} bytes from the first: {farthest}")
    if vectors.numbers.max() > lanes:
        raise ValueError(f"a vector holds {lanes} numbers, got {vectors.numbers.max()}")
    return {name: int(numbers) for name, numbers in reach.items()}


def _pairs(columns: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return columns of pairs of vectors; a single one is paired with itself, and made twice."""
    odd = len(columns[0]) % 2
    columns = tuple(np.r_[each, each[-1:]] if odd else each for each in columns)
    return tuple(each[at::2] for each in columns for at in range(2))


def _chunks(parts: Parts, pairs: int, together: int) -> tuple[Array, ...]:
    """Return the columns of each part once for each chunk of pairs, and its first and end."""
    first = np.arange(0, pairs, max(together // 2, 1))
    end = np.r_[first[1:], pairs]
    repeated = [np.repeat(column, len(first)) for column in parts]
    row = len(COLUMN) * 8
    return (*repeated, np.tile(first * row, len(parts.a)), np.tile(end * row, len(parts.a)))


def _table(
    fields: tuple[str, ...], columns: tuple[Array, ...], itemsize: int, *, counted: int
) -> Array:
    """Return a table with a row for each place of the columns; the first ones count numbers."""
    table = np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int64)
    assert table.shape[1] == len(fields)
    table[:, :counted] *= itemsize
    return np.ascontiguousarray(table)
