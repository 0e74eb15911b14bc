"""Lists of small matrix products, whose bounds are proved when the list is made.

A list says where each product's operands lie in three arrays, as offsets and leading dimensions
counted in numbers. What it can reach is computed once, from all of its products; when it is run, an
array whose memory is smaller than that is refused. So a wrong offset is an error, and never
an address outside an array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from im2col_conv.arrays import Array, address, numbers_in

__all__ = ["Bias", "Operand", "Products"]

Ints: TypeAlias = Array | int

_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # CBLAS's numbers for these words
_TYPES = (np.dtype(np.float32), np.dtype(np.float64))
_LARGEST = np.iinfo(np.int32).max  # of a size in C
_A, _B, _C, _BIAS, _ONES = range(5)  # the arrays in which operands lie


class Operand(NamedTuple):
    """Where a matrix lies for each product: its first number, and from row to row."""

    offset: Ints
    ld: Ints


class Bias(NamedTuple):
    """Where the bias of a product's C begins: a number for each of its rows, or of its columns."""

    offset: Ints
    by_rows: bool


class Products:
    """Products C (m, n) += A (m, k) @ B (k, n), or A.T with A (k, m), all in rows.

    They are done in order, so that several may add to the same C. Those that are ``fresh`` set C
    to the product, whatever was there.

    Parameters
    ----------
    m, n, k : int or array of int
        Sizes, one for all or one a product.
    a, b, c : Operand
    transposed : {"", "a", "b", "ab"}
        The operands that are stored transposed: A as (k, m), B as (n, k).
    fresh : bool or array of bool
        Which products overwrite their C.
    bias : Bias, optional
        What is added to each C that a fresh product sets, after the last product that begins where
        C does: it is in the cache then.

    Examples
    --------
    Two products of (1, 2) by (2, 3), which add to the same row:

    >>> products = Products(1, 3, 2, Operand(np.array([0, 2]), 2), Operand(0, 3), Operand(0, 3))
    >>> products.count, products.reach
    (2, (4, 6, 3))
    """

    def __init__(
        self,
        m: Ints,
        n: Ints,
        k: Ints,
        a: Operand,
        b: Operand,
        c: Operand,
        *,
        transposed: str = "",
        fresh: Array | bool = False,
        bias: Bias | None = None,
    ) -> None:
        start = 0 if bias is None else bias.offset
        words = [_TRANSPOSED if operand in transposed else _AS_IT_IS for operand in "ab"]
        *columns, start = _columns(
            *words, m, n, k, a.ld, b.ld, c.ld, np.logical_not(fresh), a.offset, b.offset, c.offset,
            _A, _B, start,
        )  # fmt: skip
        entries = _Entries(*columns)
        self.overwrites = not entries.beta.all()
        arrays = [_A, _B, _C]
        if bias is not None and self.overwrites:
            entries = _with_bias(entries, start, bias.by_rows)
            arrays += [_BIAS, _ONES]
        self.count = int(entries.m.size)
        self.reach = tuple(entries.reach(array) for array in arrays)
        self._offsets = np.stack((entries.a, entries.b, entries.c))
        self._parts = _parts(entries.a_in, entries.b_in, np.full_like(entries.c, _C))
        self._idle: list[_Table] = []  # as many as workers have run the list at once
        self._groups = _Groups(entries)

    def run(
        self, gemm_batch: Callable[..., None], a: Array, b: Array, c: Array, bias: Array | None
    ) -> None:
        """Do the products with CBLAS's ``gemm_batch`` of the arrays' type.

        Of an array with gaps, all memory from its first number to its last is used. A list without
        :class:`Bias` does not look at ``bias``.
        """
        arrays = [a, b, c]
        if len(self.reach) > len(arrays):
            if bias is None:
                raise ValueError("the products need a bias")
            arrays += [bias, _ones(self.reach[_ONES], c.dtype)]
        for array, reach in zip(arrays, self.reach, strict=True):
            if array.dtype != c.dtype or numbers_in(array) < reach:
                raise ValueError(
                    f"the products need {reach} numbers of {c.dtype}, got an array of shape "
                    f"{array.shape}, {array.dtype}, strides {array.strides}"
                )
        if not c.flags.writeable:
            raise ValueError("the products need a writeable array for their results")
        if self.count == 0:
            return
        table = self._taken(c.itemsize)
        table.move([address(array) for array in arrays], self._parts)
        at_a, at_b, at_c = table.rows
        sizes = self._groups
        one, beta = sizes.factors[c.dtype]
        gemm_batch(
            _ROW_MAJOR, *sizes.words, *sizes.mnk, one, at_a, sizes.lda, at_b, sizes.ldb, beta, at_c,
            sizes.ldc, sizes.count, sizes.lengths,
        )  # fmt: skip
        self._idle.append(table)

    def _taken(self, itemsize: int) -> _Table:
        """Return a table of addresses that nobody else has until it is given back.

        The one that was used last is in the cache, and to move it takes a third of the time in
        which it was written.
        """
        with suppress(IndexError):  # all of them are at work
            table = self._idle.pop()
            if table.itemsize == itemsize:
                return table
        return _Table(self._offsets, itemsize, len(self.reach))


class _Part(NamedTuple):
    """The operands of one row of a table that lie in one array: 1 at each, None if all do."""

    row: int
    array: int
    which: Array | None


def _parts(*lie_in: Array) -> list[_Part]:
    """Return the parts of rows whose operands lie in the given arrays."""
    return [
        _Part(row, int(array), None if (each == array).all() else (each == array).astype(np.int64))
        for row, each in enumerate(lie_in)
        for array in np.unique(each)
    ]


class _Table:
    """The address of each operand (3, products), for arrays that begin at certain places.

    Attributes
    ----------
    rows : list of int
        Where the rows of the table begin.
    itemsize : int
        Of the arrays' numbers.
    """

    def __init__(self, offsets: Array, itemsize: int, arrays: int) -> None:
        self._addresses = offsets * itemsize
        self._starts: Sequence[int] = (0,) * arrays
        self.rows = _rows(self._addresses)
        self.itemsize = itemsize

    def move(self, starts: Sequence[int], parts: Sequence[_Part]) -> None:
        """Make the addresses those of arrays that begin at ``starts``."""
        for row, array, which in parts:
            step = starts[array] - self._starts[array]
            if step:
                addresses = self._addresses[row]
                addresses += step if which is None else step * which
        self._starts = starts


class _Entries(NamedTuple):
    """What CBLAS is told of each product, and in which arrays its operands lie."""

    word_a: Array
    word_b: Array
    m: Array
    n: Array
    k: Array
    lda: Array
    ldb: Array
    ldc: Array
    beta: Array
    a: Array
    b: Array
    c: Array
    a_in: Array
    b_in: Array

    def reach(self, array: int) -> int:
        """Return how many numbers ``array`` must have to hold every matrix that lies in it."""
        if array == _C:
            return _reach(self.m, self.n, self.c, self.ldc)
        turned_a, turned_b = self.word_a == _TRANSPOSED, self.word_b == _TRANSPOSED
        a, b = self.a_in == array, self.b_in == array
        rows_a, columns_a = np.where(turned_a, (self.k, self.m), (self.m, self.k))[:, a]
        rows_b, columns_b = np.where(turned_b, (self.n, self.k), (self.k, self.n))[:, b]
        return max(
            _reach(rows_a, columns_a, self.a[a], self.lda[a]),
            _reach(rows_b, columns_b, self.b[b], self.ldb[b]),
        )


def _columns(*numbers: Ints) -> Array:
    """Return a row for each of ``numbers``, with one for each product."""
    table: Array = np.stack(np.broadcast_arrays(*numbers)).reshape(len(numbers), -1)
    return table.astype(np.int64)


def _with_bias(entries: _Entries, start: Array, by_rows: bool) -> _Entries:
    """Return the products with one more, of a depth of one, for each that sets its C."""
    sets = np.flatnonzero(entries.beta == 0)
    m, n, c, ldc = (numbers[sets] for numbers in (entries.m, entries.n, entries.c, entries.ldc))
    # C (m, n) += bias (m, 1) @ ones (1, n), or ones (m, 1) @ bias (1, n)
    a, b, a_in, b_in = (start[sets], 0, _BIAS, _ONES) if by_rows else (0, start[sets], _ONES, _BIAS)
    added = _columns(_AS_IT_IS, _AS_IT_IS, m, n, 1, 1, n, ldc, 1, a, b, c, a_in, b_in)
    begins, place = np.unique(entries.c, return_inverse=True)
    last = np.zeros(len(begins), np.int64)
    last[place] = np.arange(len(place))  # the last of those that begin at the same number
    order = np.argsort(np.r_[np.arange(len(place)), last[place[sets]]], kind="stable")
    return _Entries(*np.concatenate((np.stack(entries), added), axis=1)[:, order])


def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return _kept_ones(1 << (count - 1).bit_length(), dtype)


@lru_cache(maxsize=4)
def _kept_ones(count: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(count, dtype)


class _Groups:
    """The sizes of a list as C wants them: once for neighbours that have the same."""

    def __init__(self, entries: _Entries) -> None:
        sizes = np.stack(entries[: _Entries._fields.index("beta") + 1])
        if sizes.size and sizes.max() > _LARGEST:
            raise ValueError(f"a size of {sizes.max()} is more than BLAS takes, {_LARGEST}")
        changes = (np.diff(sizes) != 0).any(axis=0)
        starts = np.flatnonzero(np.r_[[True] * (sizes.shape[1] > 0), changes])
        lengths = np.diff(np.r_[starts, sizes.shape[1]]).astype(np.int32)
        *integers, beta = sizes[:, starts]
        table = np.array(integers, np.int32)
        factors = {dtype: np.stack((np.ones(len(beta)), beta)).astype(dtype) for dtype in _TYPES}
        self.count = len(starts)
        at = _rows(table)
        self.words, self.mnk, (self.lda, self.ldb, self.ldc) = at[:2], at[2:5], at[5:]
        self.lengths = lengths.ctypes.data
        self.factors: dict[Any, list[int]] = {
            dtype: _rows(array) for dtype, array in factors.items()
        }
        self._kept = (table, lengths, *factors.values())  # alive as long as their addresses


def _reach(rows: Array, columns: Array, offset: Array, ld: Array) -> int:
    """Return how many numbers an array must have to hold every one of the matrices."""
    if rows.size == 0:
        return 0
    if min(rows.min(), columns.min()) < 1 or offset.min() < 0 or (ld < columns).any():
        raise ValueError("a matrix of the products is empty, begins before its array or overlaps")
    return int((offset + (rows - 1) * ld + columns).max())


def _rows(table: Array) -> list[int]:
    """Return where each row of a table begins."""
    if not table.flags.c_contiguous:
        raise ValueError(f"a table for C has gaps: strides {table.strides}, shape {table.shape}")
    start: int = table.ctypes.data
    step: int = table.strides[0]
    addresses: list[int] = [start + step * row for row in range(len(table))]
    return addresses
