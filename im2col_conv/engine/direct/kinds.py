"""Which kind of sums a pass is made of, and which form its vectors have."""

from __future__ import annotations

from typing import Any

import numpy as np

from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.machine.assembler import Form
from im2col_conv.geometry import ConvGeometry

__all__ = ["form_for", "form_of", "kind_of"]

# Measured: docs/ideas.md.
TURN_COST = 20  # terms of a sum in the time in which a result is turned
COST_OF_HALVES = 1.35  # how much longer a sum takes where vectors have not the widest form
FEW_FILTERS = 2  # of a group, for which lines of outputs are made one filter at a time


def kind_of(
    geometry: ConvGeometry, forms: tuple[Form, ...], dtype: np.dtype[Any], *, last: bool
) -> Kind:
    """Return what is summed: by where channels are, and how many filters see them.

    Where channels come first, vectors of filters leave results to be turned; those of a line's
    outputs may be the emptier ones.
    """
    filters, channels = geometry.F // geometry.groups, geometry.C // geometry.groups
    if last:
        return Kind.CHANNELS if filters == channels == 1 else Kind.OUTPUTS
    if filters <= FEW_FILTERS:
        return Kind.PLANES
    lines, side_by_side = (
        _sums_for_each(geometry, kind, forms, dtype) for kind in (Kind.FILTERS, Kind.OUTPUTS)
    )
    saved = channels * geometry.taps * (lines - side_by_side)
    return Kind.OUTPUTS if saved > TURN_COST else Kind.FILTERS


def _sums_for_each(
    geometry: ConvGeometry, kind: Kind, forms: tuple[Form, ...], dtype: np.dtype[Any]
) -> float:
    """Return how many numbers are summed for each that is wanted, with those that vectors leave."""
    numbers, vectors = _side_by_side(geometry, kind)
    form = form_of(forms, dtype, numbers, vectors)
    block = vectors * form.lanes(dtype)
    cost = 1 if form == forms[0] else COST_OF_HALVES
    return cost * -(-numbers // block) * block / numbers


def _side_by_side(geometry: ConvGeometry, kind: Kind) -> tuple[int, int]:
    """Return how many numbers of a result are side by side, and how many vectors share them."""
    if kind is Kind.OUTPUTS:
        return geometry.F // geometry.groups, 2
    return geometry.F if kind is Kind.CHANNELS else geometry.out[-1], 1


def form_for(
    geometry: ConvGeometry, kind: Kind, forms: tuple[Form, ...], dtype: np.dtype[Any]
) -> Form:
    """Return the form of vectors for a kind of sums."""
    return form_of(forms, dtype, *_side_by_side(geometry, kind))


def form_of(forms: tuple[Form, ...], dtype: np.dtype[Any], numbers: int, vectors: int) -> Form:
    """Return the form for so many numbers side by side, where vectors come in such a number.

    The widest one, unless half of each would be empty.

    Examples
    --------
    >>> from im2col_conv.engine.machine.assembler import AVX2, AVX512
    >>> forms, dtype = (AVX512, AVX2), np.dtype(np.float32)
    >>> [form_of(forms, dtype, numbers, 2).size for numbers in (16, 17)]
    [32, 64]
    """
    return next((form for form in forms if 2 * numbers > vectors * form.lanes(dtype)), forms[-1])
