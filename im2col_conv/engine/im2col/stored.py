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
    # At output 0, tap t meets cell number ``first[t]`` of phase ``phase[t]``; the next tap that
    # meets a cell of this phase is a stride further on, and its cell a dilation.
    first, phase = zip(*[divmod(t * dilation - before, stride) for t in range(kernel)], strict=True)
    turns = range(min(stride, kernel))
    many = [len(range(turn, kernel, stride)) for turn in turns]
    start = min(first[turn] for turn in turns)
    end = max(first[turn] + (many[turn] - 1) * dilation for turn in turns) + out
    begin = max(start, 0)
    ends = [max(min(end, len(range(phase[turn], size, stride))), begin) for turn in turns]
    return Axis(
        end - start,
        tuple(
            Turn(
                taps=slice(turn, None, stride),
                many=many[turn],
                offset=first[turn] - start,
                cells=slice(
                    phase[turn] + begin * stride, phase[turn] + ends[turn] * stride, stride
                ),
                stored=slice(begin - start, ends[turn] - start),
            )
            for turn in turns
        ),
    )


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
    copy_lines(cells, axes[last(stored)])
    return lines
