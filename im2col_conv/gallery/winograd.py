r"""Winograd's F(2x2, 3x3): 16 matrix products in place of 36 multiplications a tile of 2 by 2.

.. math:: Y = A^T \Bigl[ \sum_c (G g G^T) \odot (B^T d B) \Bigr] A

for a tile d of 4 by 4 cells and a kernel g of 3 by 3. At each of the 16 places the sum over the
channels is a product of its own, over all tiles T of the image:

.. math:: M_{ij} \; {}_{f \times T} = U_{ij} \; {}_{f \times c} \; V_{ij} \; {}_{c \times T}

with :math:`U = G g G^T`, :math:`V = B^T d B`. All entries are 0, 1 or -1, but for halves in G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.gallery.interface import Lowering, padded_image
from im2col_conv.geometry import ConvGeometry

__all__ = ["WINOGRAD"]

_A_T = ((1, 1, 1, 0), (0, 1, -1, -1))
_B_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_TWO_G = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))


def _combine(coefficients: Sequence[int], terms: Sequence[Array], out: Array) -> None:
    """Write the sum of coefficient times term to ``out``, with no other memory."""
    out[...] = 0
    for coefficient, term in zip(coefficients, terms, strict=True):
        add = np.add if coefficient > 0 else np.subtract
        for _ in range(abs(coefficient)):
            add(out, term, out=out)


def _weights(w: Array) -> Array:
    """Return U (4, 4, f, c), and give the half-way G g back."""
    half = np.empty((4, 3, *w.shape[:2]), w.dtype)
    U = np.empty((4, 4, *w.shape[:2]), w.dtype)
    for i, row in enumerate(_TWO_G):
        for v in range(3):
            _combine(row, [w[:, :, t, v] for t in range(3)], half[i, v])
    for i in range(4):
        for j, row in enumerate(_TWO_G):
            _combine(row, list(half[i]), U[i, j])
    U *= w.dtype.type(0.25)
    return U


def _one(x: Array, w: Array, y: Array, geometry: ConvGeometry) -> None:
    c, f, (oh, ow) = len(x), len(w), geometry.out
    th, tw = _tiles(geometry)
    image = padded_image(x, geometry, more=(oh % 2, ow % 2))
    U = _weights(w)
    V, M = np.empty((4, 4, c, th, tw), x.dtype), np.empty((4, 4, f, th, tw), x.dtype)
    down = np.empty((4, c, th, image.shape[2]), x.dtype)
    for i, row in enumerate(_B_T):
        _combine(row, [image[:, r : r + 2 * th - 1 : 2] for r in range(4)], down[i])
        for j, column in enumerate(_B_T):
            _combine(column, [down[i, :, :, r : r + 2 * tw - 1 : 2] for r in range(4)], V[i, j])
    for i, j in np.ndindex(4, 4):
        # M_ij (f, T) = U_ij (f, c) @ V_ij (c, T)
        np.matmul(U[i, j], V[i, j].reshape(c, -1), out=M[i, j].reshape(f, -1))
    half = np.empty((4, f, th, tw), x.dtype)
    for i, row in enumerate(_A_T):
        for j in range(4):
            _combine(row, list(M[:, j]), half[j])
        for j, column in enumerate(_A_T):
            out = y[:, i::2, j::2]
            _combine(column, [part[:, : out.shape[1], : out.shape[2]] for part in half], out)


def _tiles(geometry: ConvGeometry) -> tuple[int, int]:
    oh, ow = geometry.out
    return (oh + 1) // 2, (ow + 1) // 2


def _buffers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> dict[str, int]:
    c, f = geometry.C // geometry.groups, geometry.F // geometry.groups
    th, tw = _tiles(geometry)
    cells = {
        "padded image": c * (2 * th + 2) * (2 * tw + 2),
        "U": 16 * f * c,
        "V": 16 * c * th * tw,
        "M": 16 * f * th * tw,
        "half-way": 4 * c * th * (2 * tw + 2) + 4 * f * th * tw,
    }
    return {name: number * dtype.itemsize for name, number in cells.items()}


def _refuses(geometry: ConvGeometry) -> str | None:
    if geometry.kernel != (3, 3):
        return f"it needs a kernel of (3, 3), got {geometry.kernel}"
    if geometry.stride != (1, 1) or geometry.dilation != (1, 1):
        return (
            f"it needs stride and dilation 1, got stride {geometry.stride} and dilation "
            f"{geometry.dilation}"
        )
    return None


WINOGRAD = Lowering(
    name="winograd",
    source="Lavin and Gray (2016), Fast Algorithms for Convolutional Neural Networks",
    matrices="M_ij (f, T) = U_ij (f, c) @ V_ij (c, T), for each of 16 places i, j",
    layout="channels_first",
    one=_one,
    gemms_of_one=lambda geometry, dtype: 16,
    buffers=_buffers,
    refuses=_refuses,
)
