"""How far two right answers may lie apart: rounding, and nothing but rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["share_of_tolerance"]

Array = NDArray[Any]


def share_of_tolerance(found: Array, expected: Array, terms: int, magnitude: Array) -> float:
    """Return the largest difference as a share of what rounding can explain; above 1 is wrong.

    Parameters
    ----------
    found, expected : ndarray
        Two results for the same sums of products.
    terms : int
        Products that are added up in one cell.
    magnitude : ndarray
        The same sums, over the absolute values of the factors.

    Returns
    -------
    float

    Notes
    -----
    A sum of K products a_i b_i, in any order, passes each product through at most K roundings, each
    of which changes it by at most eps / 2 of its size. So it is off by at most
    K eps/2 sum |a_i b_i| (to first order), and two such sums differ by at most twice that:
    K eps * magnitude, cell by cell. Products too small for the type add at most its smallest normal
    number each.
    """
    kind = np.finfo(found.dtype)
    tolerance = terms * (kind.eps * magnitude.astype(np.float64) + float(kind.smallest_normal))
    return float((np.abs(found.astype(np.float64) - expected) / tolerance).max())
