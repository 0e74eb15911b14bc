r"""The matrices of Winograd's way along one axis, in fractions.

Take n - 1 points :math:`p_s`, the polynomial :math:`M(z) = \prod_s (z - p_s)`, and for each point
:math:`N_s = \prod_{r \ne s} (p_s - p_r)`. With the last row or column standing for a point at
infinity,

.. math:: A^T_{is} = p_s^i, \qquad G_{st} = p_s^t / N_s, \qquad
          \sum_l B^T_{sl} z^l = M(z) / (z - p_s)

and :math:`A^T_{i,n} = [i = m - 1]`, :math:`G_{n,t} = [t = 2]`, :math:`\sum_l B^T_{nl} z^l = M(z)`.

That :math:`y_i = \sum_t g_t d_{i+t}` says that :math:`\sum_s A^T_{is} G_{st} B^T_{sl}` is 1 where
l = i + t and else 0. Multiplied by :math:`z^l` and added over l, the sum over the finite points is
the polynomial of degree below n - 1 that agrees with :math:`z^{i+t}` at all of them: this power
itself, unless i + t = n - 1, when it is :math:`z^{n-1} - M(z)`. In this case alone, i = m - 1 and
t = 2, the last term is not 0 but M(z). So it is :math:`z^{i+t}` always.

The points decide how much is lost by rounding, and products do not mind what the numbers are. With
0, ±5/8, ±3/2 the error of m = 4 is a quarter of what the usual 0, ±1, ±2 gives, and A and B, sums
of powers of two, are still exact in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from im2col_conv.arrays import Array

__all__ = ["KERNEL", "Arrays", "Matrix", "Transform", "arrays_for", "transform_for"]

KERNEL = 3
Matrix: TypeAlias = tuple[tuple[Fraction, ...], ...]

_POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}


class Transform(NamedTuple):
    """The matrices for tiles of ``outs`` outputs, which see ``cells`` cells.

    Attributes
    ----------
    A_T : Matrix
        (outs, cells), from products to outputs.
    G : Matrix
        (cells, 3), from weights to factors.
    B_T : Matrix
        (cells, cells), from cells to factors.
    """

    outs: int
    cells: int
    A_T: Matrix
    G: Matrix
    B_T: Matrix


class Arrays(NamedTuple):
    """The same as arrays, each entry rounded once; G (cells², 9) along two axes at once."""

    A_T: Array
    G: Array
    B_T: Array


@cache
def transform_for(outs: int) -> Transform:
    """Return the transform for tiles of 2 or 4 outputs along an axis.

    Examples
    --------
    >>> for row in transform_for(2).A_T:
    ...     print(*row)
    1 1 1 0
    0 1 -1 1
    """
    points = _POINTS[outs]
    others = [[q for q in points if q != p] for p in points]
    A_T = [[*(p**i for p in points), _one(i == outs - 1)] for i in range(outs)]
    G = [[p**t / _over(p, q) for t in range(KERNEL)] for p, q in zip(points, others, strict=True)]
    B_T = [[*_coefficients(q), Fraction(0)] for q in others]
    G.append([_one(t == KERNEL - 1) for t in range(KERNEL)])
    B_T.append(_coefficients(points))
    return Transform(outs, len(points) + 1, _frozen(A_T), _frozen(G), _frozen(B_T))


def _one(true: bool) -> Fraction:
    return Fraction(int(true))


def _over(point: Fraction, others: Sequence[Fraction]) -> Fraction:
    return math.prod((point - other for other in others), start=Fraction(1))


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (z - root), that of 1 first."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(root * c for c in found), Fraction(0)]
        found = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return found


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


@cache
def arrays_for(outs: int, dtype: np.dtype[Any]) -> Arrays:
    """Return the matrices of a transform in ``dtype``; nobody may write to them.

    Examples
    --------
    >>> arrays_for(4, np.dtype(np.float32)).G.shape
    (36, 9)
    """
    transform = transform_for(outs)
    G = [[a * b for a in first for b in second] for first in transform.G for second in transform.G]
    return Arrays(*(_array(matrix, dtype) for matrix in (transform.A_T, G, transform.B_T)))


def _array(matrix: Sequence[Sequence[Fraction]], dtype: np.dtype[Any]) -> Array:
    array = np.array([[float(entry) for entry in row] for row in matrix], dtype)
    array.flags.writeable = False
    return array
