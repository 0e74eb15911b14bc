"""Lists of small matrix products, whose bounds are proved when the list is made.

A list says where each product's operands lie in three arrays, as offsets and leading dimensions
counted in numbers. What it can reach is computed once, from all of its products; when it is run, an
array that is smaller than that, or has gaps, is refused. So a wrong offset is an error, and never
an address outside an array.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from im2col_conv.arrays import Array

__all__ = ["Operand", "Products"]

Ints: TypeAlias = Array | int

KEPT_TABLES = 4  # of addresses, a list

_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # CBLAS's numbers for these words
_TYPES = (np.dtype(np.float32), np.dtype(np.float64))
_LARGEST = np.iinfo(np.int32).max  # of a size in C


class Operand(NamedTuple):
    """Where a matrix lies for each product: its first number, and from row to row."""

    offset: Ints
    ld: Ints


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
    ) -> None:
        table = np.stack(np.broadcast_arrays(m, n, k, *a, *b, *c, fresh)).reshape(10, -1)
        m, n, k, a_offset, lda, b_offset, ldb, c_offset, ldc, fresh = table.astype(np.int64)
        self.count = int(m.size)
        self.reach = (
            _reach(*((k, m) if "a" in transposed else (m, k)), a_offset, lda),
            _reach(*((n, k) if "b" in transposed else (k, n)), b_offset, ldb),
            _reach(m, n, c_offset, ldc),
        )
        self._offsets = np.stack((a_offset, b_offset, c_offset))
        self._pointers: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self._groups = _Groups(np.stack((m, n, k, lda, ldb, ldc, 1 - fresh)), transposed)

    @property
    def overwrites(self) -> bool:
        """Whether some of the products are fresh."""
        return self._groups.fresh

    @property
    def nbytes(self) -> int:
        """The memory of the list while it runs."""
        return int((1 + KEPT_TABLES) * self._offsets.nbytes) + self._groups.nbytes

    def run(self, gemm_batch: Callable[..., None], a: Array, b: Array, c: Array) -> None:
        """Do the products with CBLAS's ``gemm_batch`` of the arrays' type."""
        for array, reach in zip((a, b, c), self.reach, strict=True):
            if array.size < reach or array.dtype != c.dtype or not array.flags.c_contiguous:
                raise ValueError(
                    f"the products need {reach} numbers of {c.dtype} without gaps, got an array of "
                    f"shape {array.shape}, {array.dtype}, strides {array.strides}"
                )
        if not c.flags.writeable:
            raise ValueError("the products need a writeable array for their results")
        if self.count == 0:
            return
        pointers = self._table(c.itemsize, a.ctypes.data, b.ctypes.data, c.ctypes.data)
        at_a, at_b, at_c = _addresses(pointers)
        sizes = self._groups
        one, beta = sizes.factors[c.dtype]
        gemm_batch(
            _ROW_MAJOR, *sizes.words, *sizes.mnk, one, at_a, sizes.lda, at_b, sizes.ldb, beta, at_c,
            sizes.ldc, sizes.count, sizes.lengths,
        )  # fmt: skip

    def _table(self, itemsize: int, *starts: int) -> Array:
        """Return the address of each operand, from where the arrays start.

        Buffers are used again and again, so that the last few tables are kept. A table follows
        from its key alone, and is never changed: threads may share it.
        """
        key = (itemsize, *starts)
        table = self._pointers.get(key)
        if table is None:
            table = self._offsets * itemsize + np.array(starts)[:, None]
            self._pointers[key] = table
            while len(self._pointers) > KEPT_TABLES:
                with suppress(KeyError):  # another thread was sooner
                    self._pointers.popitem(last=False)
        return table


class _Groups:
    """The sizes of a list as C wants them: once for neighbours that have the same."""

    def __init__(self, sizes: Array, transposed: str) -> None:
        if sizes.size and sizes.max() > _LARGEST:
            raise ValueError(f"a size of {sizes.max()} is more than BLAS takes, {_LARGEST}")
        changes = (np.diff(sizes) != 0).any(axis=0)
        starts = np.flatnonzero(np.r_[[True] * (sizes.shape[1] > 0), changes])
        lengths = np.diff(np.r_[starts, sizes.shape[1]]).astype(np.int32)
        words = np.full((2, len(starts)), _AS_IT_IS, np.int32)
        for operand in transposed:
            words["ab".index(operand)] = _TRANSPOSED
        table = np.ascontiguousarray(sizes[:6, starts], np.int32)
        factors = {
            dtype: np.stack((np.ones(len(starts)), sizes[6, starts])).astype(dtype)
            for dtype in _TYPES
        }
        self.count = len(starts)
        self.fresh = not factors[_TYPES[0]].all()
        self.words = _addresses(words)
        *self.mnk, self.lda, self.ldb, self.ldc = _addresses(table)
        self.lengths = lengths.ctypes.data
        self.factors: dict[Any, list[int]] = {
            dtype: _addresses(array) for dtype, array in factors.items()
        }
        self._kept = (words, table, lengths, *factors.values())  # alive as long as their addresses
        self.nbytes: int = sum(array.nbytes for array in self._kept)


def _reach(rows: Array, columns: Array, offset: Array, ld: Array) -> int:
    """Return how many numbers an array must have to hold every one of the matrices."""
    if rows.size == 0:
        return 0
    if min(rows.min(), columns.min()) < 1 or offset.min() < 0 or (ld < columns).any():
        raise ValueError("a matrix of the products is empty, begins before its array or overlaps")
    return int((offset + (rows - 1) * ld + columns).max())


def _addresses(table: Array) -> list[int]:
    """Return the address of each row of a table."""
    if not table.flags.c_contiguous:
        raise ValueError(f"a table for C has gaps: strides {table.strides}, shape {table.shape}")
    start: int = table.ctypes.data
    step: int = table.strides[0]
    addresses: list[int] = [start + step * row for row in range(len(table))]
    return addresses
