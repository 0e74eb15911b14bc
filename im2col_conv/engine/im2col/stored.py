"""How the padded cells of single channels are stored: the cells of a phase together.

Where the stride is more than 1, a tap meets every so many-th cell, a *phase* of them, and taps that
are a stride apart meet the same phase. Stored together, cells of neighbouring outputs are
neighbours, whatever the stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.copies import copy_lines
from im2col_conv.engine.im2col.columns import Shape
from im2col_conv.engine.workers import Scratch
from im2col_conv.lowering import last

__all__ = ["Axis", "Turn", "axis_of", "store"]


class Turn(NamedTuple):
    """Taps of an axis that meet cells of one phase, and where these are stored.

    At output 0 the first of ``many`` taps meets the cell that is stored at ``offset``, and the
    others meet every dilation-th after it.
    """

    taps: slice
    many: int
    offset: int
    cells: slice  # of the phase, that any of the taps meets
    stored: slice


class Axis(NamedTuple):
    """An axis as it is stored: so many cells of each phase, some of them padding."""

    length: int
    turns: tuple[Turn, ...]


def axis_of(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> Axis:
    """Return how the cells of an axis are stored that ``out`` outputs see.

    The first window begins ``before`` the first cell: for outputs further on that is less than 0.
    """
    # Cell i of the padded axis is number i // stride of phase i % stride. At output 0, tap t meets
    # cell t * dilation: the last tap the furthest.
    length = out + (kernel - 1) * dilation // stride
    turns = []
    for turn in range(min(stride, kernel)):
        offset, phase = divmod(turn * dilation, stride)
        shift = before - phase  # of the first cell of the phase before the first of the input
        begin = max(-(-shift // stride), 0)
        end = max(min(length, -(-(size + shift) // stride)), begin)
        turns.append(
            Turn(
                taps=slice(turn, None, stride),
                many=len(range(turn, kernel, stride)),
                offset=offset,
                cells=slice(begin * stride - shift, end * stride - shift, stride),
                stored=slice(begin, end),
            )
        )
    return Axis(length, tuple(turns))


def store(
    scratch: Scratch,
    name: str,
    cells: Array,
    shape: Shape,
    stored: Sequence[slice],
    numbers: int,
    dtype: np.dtype[Any],
) -> Array:
    """Return ``cells[c, n, *cells]`` as lines (c, numbers), which begin with (n, *axes), ``shape``.

    They are zero where nothing is ``stored``.
    """
    lines = scratch.array(name, (len(cells), numbers), dtype)
    lines[...] = 0  # sooner than the ends of each row
    axes = lines[:, : math.prod(shape)].reshape(len(cells), *shape, copy=False)
    target = axes[last(stored)]
    if cells.strides[0] < cells.strides[-1]:  # turned image by image, each of which the caches hold
        for image in range(cells.shape[1]):
            target[:, image] = cells[:, image]
    else:
        copy_lines(cells, target)
    return lines
