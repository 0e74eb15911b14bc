r"""Matrix products of each type of number: floating point as it is, integers exactly.

Integers are multiplied by the float64 GEMM wherever it is exact. A number of at most 22 bits is a
float64 as it stands; a longer one is cut in limbs of 22 bits,
:math:`a = \sum_i a_i 2^{22 i}`, and

.. math:: a b \equiv \sum_{i + j \le 2} a_i b_j 2^{22 (i + j)} \pmod{2^{64}}.

The sum over K is taken in pieces so short that no partial sum passes :math:`2^{53}`: whatever the
order in which BLAS adds, nothing is rounded. Pieces are added as int64, which wraps.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np

from im2col_conv.arrays import Array, computing_type

__all__ = [
    "SMALL_PRODUCT",
    "Arithmetic",
    "add_to_rows",
    "arithmetic_for",
    "is_finite",
    "sums_of",
]

# Measured: docs/ideas.md.
SMALL_PRODUCT = 10**6  # m n k up to which OpenBLAS multiplies without packing its operands
LEAST_PIECE, LONGEST_PIECE = 256, 1024
SHORT_ROW, LINE = 32, 1024  # numbers of a row, and of many that are added to at once

LIMB = 22
EXACT = 53  # float64 holds every integer of so many bits


class Arithmetic(Protocol):
    """How sums of products of one type of result are made."""

    dtype: np.dtype[Any]

    def operand_type(self, given: np.dtype[Any]) -> np.dtype[Any]:
        """Return the type in which operands of a ``given`` type go into :meth:`matmul`."""

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        """Set ``out`` (..., M, N) to ``a`` (..., M, K) @ ``b`` (..., K, N)."""

    def matmul_deep(self, a: Array, b: Array, out: Array) -> None:
        """Do as :meth:`matmul` does, where K may be far the longest side."""

    def extra_bytes(self, depth: int) -> int:
        """Return the scratch that a product takes for each of its N columns and ``depth`` M + K."""

    def deep_bytes(self, numbers: int) -> int:
        """Return what :meth:`matmul_deep` takes for each of K terms of so many ``numbers`` M N."""


class FloatArithmetic:
    """Real and complex floating point: a GEMM, or several where one side is far the longest.

    OpenBLAS copies the operands of a large product to suit it. Where two of the sides are short,
    that takes longer than the product itself; up to ``SMALL_PRODUCT`` multiplications it has
    kernels that do without. So a long side is cut in pieces.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def operand_type(self, given: np.dtype[Any]) -> np.dtype[Any]:
        return self.dtype

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        (M, K), N = a.shape[-2:], b.shape[-1]
        if K == 1:  # a sum of one term; the GEMM of depthwise dx takes ten times as long
            np.multiply(a, b, out=out)
        elif N <= LEAST_PIECE or (piece := _piece(M * K, N)) == N:
            np.matmul(a, b, out=out)
        else:
            whole = N - N % piece
            # C (m, M, L) = A (1, M, K) @ B (m, K, L), N = m L and what is left
            pieces = (_column_pieces(x[..., :whole], piece) for x in (b, out))
            np.matmul(a[..., None, :, :], next(pieces), out=next(pieces))
            np.matmul(a, b[..., whole:], out=out[..., whole:])

    def matmul_deep(self, a: Array, b: Array, out: Array) -> None:
        (M, K), N = a.shape[-2:], b.shape[-1]
        piece = _piece(M * N, K)
        if piece == K:
            np.matmul(a, b, out=out)
            return
        whole = K - K % piece
        a_pieces = _column_pieces(a[..., :whole], piece)
        b_pieces = _column_pieces(b.swapaxes(-2, -1)[..., :whole], piece).swapaxes(-2, -1)
        # C (M, N) = the sum of A (m, M, L) @ B (m, L, N), K = m L and what is left
        np.matmul(a_pieces, b_pieces).sum(axis=-3, out=out)
        out += np.matmul(a[..., whole:], b[..., whole:, :])

    def extra_bytes(self, depth: int) -> int:
        return 0

    def deep_bytes(self, numbers: int) -> int:
        piece = _piece(numbers, sys.maxsize)
        return -(-numbers * self.dtype.itemsize // piece)


class ExactArithmetic:
    """Integers modulo 2**64, through float64 GEMMs."""

    dtype = np.dtype(np.int64)

    def operand_type(self, given: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.uint8) if given == np.bool_ else given.newbyteorder("=")

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        if a.shape[-2] < _limbs(a.dtype) * _limbs(b.dtype):  # few rows: limbs would cost more
            np.matmul(a.astype(np.int64), b.astype(np.int64), out=out)
            return
        out[...] = 0
        K = a.shape[-1]
        piece = 1 << (EXACT - _limb_bits(a.dtype) - _limb_bits(b.dtype))
        for start in range(0, K, piece):
            terms = slice(start, start + piece)
            _add_product(a[..., terms], b[..., terms, :], out)

    def matmul_deep(self, a: Array, b: Array, out: Array) -> None:
        self.matmul(a, b, out)

    def deep_bytes(self, numbers: int) -> int:
        return 0

    def extra_bytes(self, depth: int) -> int:
        # A limb of an operand, before and after its conversion, and a product, as float and int.
        return 16 * depth


def _piece(others: int, length: int) -> int:
    """Return how long a piece of the long side should be; the other two multiply to ``others``."""
    if length <= LEAST_PIECE:
        return length
    piece = min(SMALL_PRODUCT // max(others, 1), LONGEST_PIECE) // 64 * 64
    return piece if LEAST_PIECE <= piece < length else length


def _column_pieces(matrix: Array, piece: int) -> Array:
    """Return a view (..., m, rows, piece) of a matrix (..., rows, m * piece)."""
    *outer, rows, columns = matrix.shape
    return matrix.reshape(*outer, rows, columns // piece, piece, copy=False).swapaxes(-3, -2)


def arithmetic_for(result: np.dtype[Any]) -> Arithmetic:
    """Return how results of this type are computed."""
    return ExactArithmetic() if result.kind == "i" else FloatArithmetic(computing_type(result))


def _add_product(a: Array, b: Array, out: Array) -> None:
    for j in range(_limbs(b.dtype)):
        b_limb = _limb(b, j)
        for i in range(_limbs(a.dtype)):
            shift = LIMB * (i + j)
            if shift < 64:
                # out (M, N) += a_i (M, K) @ b_j (K, N) << shift
                out += np.matmul(_limb(a, i), b_limb).astype(np.int64) << shift


def _bits(dtype: np.dtype[Any]) -> int:
    return 8 * dtype.itemsize + (dtype.kind == "u")


def _limbs(dtype: np.dtype[Any]) -> int:
    return -(-_bits(dtype) // LIMB)


def _limb_bits(dtype: np.dtype[Any]) -> int:
    """Return b such that every limb is at most 2**b in size: the sign needs none."""
    return LIMB if _limbs(dtype) > 1 else _bits(dtype) - 1


def _limb(array: Array, index: int) -> Array:
    """Return limb ``index`` as float64: all are in [0, 2**22) but the last, which has the sign."""
    last = _limbs(array.dtype) - 1
    if last == 0:
        return array.astype(np.float64)
    shifted = array.astype(np.int64)
    shifted >>= LIMB * index
    if index < last:
        shifted &= 2**LIMB - 1
    return shifted.astype(np.float64)


def add_to_rows(rows: Array, b: Array) -> None:
    """Add ``b`` to each of the ``rows[..., f]``.

    NumPy adds row by row, which takes ten times as long where rows have but few numbers. So if they
    follow one another in memory, many are given to it as one.
    """
    if len(b) >= SHORT_ROW or not rows.flags.c_contiguous:
        rows += b
        return
    together = LINE // len(b)
    each = rows.reshape(-1, len(b))
    whole = len(each) // together * together
    lines = each[:whole].reshape(-1, together * len(b))
    lines += np.tile(b, together)
    each[whole:] += b


def sums_of(array: Array, dtype: np.dtype[Any], kept: int = 1) -> Array:
    """Return the sums over all axes but the first ``kept``, added up in ``dtype``.

    Where neighbours in memory belong to different sums, np.einsum does it in a quarter to nine
    tenths of the time of np.sum. Elsewhere np.sum is more exact, since it adds in pairs.
    """
    axes = list(range(array.ndim))
    total: Array
    if array.strides[kept - 1] < array.strides[-1]:
        total = np.einsum(array, axes, axes[:kept], dtype=dtype)
    else:
        total = array.sum(axis=tuple(axes[kept:]), dtype=dtype)
    return total


def is_finite(memory: Array) -> bool:
    """Say whether no number is infinite or NaN; may say no where numbers are huge."""
    numbers = memory.reshape(-1)
    return bool(np.isfinite(np.dot(numbers, numbers)))  # a third of the time of a sum
