"""Where the cells of a tile are: as they were given, or in a copy with the zeros around them.

A tile's outputs o of an axis, counted from its first, meet its cells o s + t d at tap t, where the
first cell may be one of padding. Where channels come first and s > 1 on the last axis, cells a
stride apart lie side by side, phase after phase: then neighbouring outputs see neighbouring cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.sums import FARTHEST
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["Cells", "Part", "Steps", "cells_of", "is_folded", "is_near", "parts_of", "steps_of"]


# Cells so many channels apart, or a multiple, fall on few lines of the cache, where few of them
# fit: so they are copied, with some numbers more between them.
_FOLDED, _SPREAD = 512, 16


class Steps(NamedTuple):
    """Numbers from one cell to the next along each axis; of the last axis, from phase to phase."""

    image: int
    channel: int
    axes: tuple[int, ...]
    phase: int


@dataclass(frozen=True)
class Cells:
    """The cells that a tile of outputs sees, with padding.

    Attributes
    ----------
    outs, kernel, stride, dilation : tuple of int
        Of the tile.
    before, inside : tuple of int
        Cells of padding before, and cells of the input, along each axis.
    last : bool
        Whether channels come last.
    planes : bool
        Whether the copy has plane after plane where they come first, or the lines of all channels
        under each other, so that what a window holds lies on few pages.
    phased : bool
        Whether cells a stride apart lie side by side, since vectors are read along lines.
    """

    outs: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    inside: tuple[int, ...]
    last: bool
    planes: bool
    phased: bool

    @property
    def extent(self) -> tuple[int, ...]:
        """Cells along each axis, with padding."""
        sizes = zip(self.outs, self.stride, self.kernel, self.dilation, strict=True)
        return tuple((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in sizes)

    @property
    def phases(self) -> int:
        """In how many parts cells along the last axis lie."""
        return self.stride[-1] if self.phased else 1

    def numbers(self, images: int, channels: int) -> int:
        """Return the numbers of a copy."""
        return math.prod(self.shape(images, channels))

    def shape(self, images: int, channels: int) -> tuple[int, ...]:
        """Return that of a copy: (n, *cells, c), or (n, *outer, c, phases, cells of a phase).

        In planes, c comes before the outer axes.
        """
        *outer, line = self.extent
        if self.last:
            return (images, *outer, line, channels + _SPREAD * is_folded(channels))
        lines = (self.phases, -(-line // self.phases))
        if self.planes:
            return (images, channels, *outer, *lines)
        return (images, *outer, channels, *lines)

    def steps_in_place(self, given: tuple[int, ...], channels: int, itemsize: int) -> Steps | None:
        """Return how these lie in x, if sums can read them there; ``given`` are its steps."""
        line = given[1] if self.last else given[-1]
        if self.phases > 1 or self.padded or line != 1:
            return None
        if not is_near((channels, *self.inside), given[1:], itemsize):
            return None
        return Steps(given[0], given[1], given[2:], 0)

    @property
    def met(self) -> list[int]:
        """The phases that taps meet, in order."""
        taps = range(self.kernel[-1])
        return sorted({tap * self.dilation[-1] % self.phases for tap in taps})

    @property
    def padded(self) -> bool:
        """Whether any of the cells is one of padding."""
        return any(self.before) or self.inside != self.extent

    def phase(self, phase: int) -> tuple[int, tuple[int, ...], int]:
        """Return the first cell of a phase, where along each axis it is put, and how many follow.

        These are the cells along the last axis.
        """
        *outer, lead = self.before
        first = (phase - lead) % self.phases
        count = max(-(-(self.inside[-1] - first) // self.phases), 0)
        return first, (*outer, (lead + first) // self.phases), count

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of a copy in the order (n, c, *cells), phases before the last of them."""
        outer = len(self.outs) - 1
        if self.last:
            return (0, outer + 2, *range(1, outer + 2))
        if self.planes:
            return tuple(range(outer + 4))
        return (0, outer + 1, *range(1, outer + 1), outer + 2, outer + 3)

    def steps(self, images: int, channels: int) -> Steps:
        """Return how a copy lies."""
        shape = self.shape(images, channels)
        apart = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        n, c, *axes = (apart[axis] for axis in self.order)
        phase = 0 if self.last else axes.pop(-2)
        return Steps(n, c, tuple(axes), phase)

    def taps(self, steps: Steps) -> Array:
        """Return where the cell of each tap lies, from that of the first."""
        places = np.zeros(1, np.int64)
        for axis, (kernel, dilation) in enumerate(zip(self.kernel, self.dilation, strict=True)):
            tap = np.arange(kernel) * dilation
            step = steps.axes[axis]
            if axis == len(self.kernel) - 1:
                place = tap % self.phases * steps.phase + tap // self.phases * step
            else:
                place = tap * step
            places = np.add.outer(places, place).ravel()
        return places

    def apart(self, axis: int, steps: Steps) -> int:
        """Return how far the cells of neighbouring outputs lie apart."""
        in_phases = axis in (-1, len(self.outs) - 1) and self.phased
        return steps.axes[axis] * (1 if in_phases else self.stride[axis])


class Part(NamedTuple):
    """Outputs of a tile that meet no padding through some of the taps, and all through others.

    Attributes
    ----------
    cells : Cells
        What these taps see for these outputs.
    first_output, first_tap, first_cell : tuple of int
        Of the tile, along each axis; of the cells inside it.
    """

    cells: Cells
    first_output: tuple[int, ...]
    first_tap: tuple[int, ...]
    first_cell: tuple[int, ...]


def parts_of(cells: Cells) -> list[Part]:
    """Return the outputs of a tile in parts, so that no part sees padding.

    Examples
    --------
    A line of five cells with one of padding on each side, and three taps:

    >>> parts = parts_of(Cells((5,), (3,), (1,), (1,), (1,), (5,), True, False, False))
    >>> [(part.cells.outs, part.cells.kernel, part.first_cell) for part in parts]
    [((1,), (2,), (0,)), ((3,), (3,), (0,)), ((1,), (2,), (3,))]
    """
    axes = zip(
        cells.outs,
        cells.kernel,
        cells.stride,
        cells.dilation,
        cells.before,
        cells.inside,
        strict=True,
    )
    parts = []
    for spans in product(*(_spans(*axis) for axis in axes)):
        outs, first_output, taps, first_tap, first_cell = zip(*spans, strict=True)
        some = replace(cells, outs=outs, kernel=taps, before=(0,) * len(outs))
        parts.append(Part(replace(some, inside=some.extent), first_output, first_tap, first_cell))
    return parts


def _spans(
    outs: int, kernel: int, stride: int, dilation: int, before: int, inside: int
) -> list[tuple[int, ...]]:
    """Return outputs of an axis that meet cells through the same taps.

    How many, the first of them, how many taps, the first of these, and the first cell.
    """
    spans: list[tuple[int, ...]] = []
    for output in range(outs):
        begin = output * stride - before
        taps = [tap for tap in range(kernel) if 0 <= begin + tap * dilation < inside]
        first = taps[0] if taps else 0
        if spans and spans[-1][2:4] == (len(taps), first):
            count, *rest = spans[-1]
            spans[-1] = (count + 1, *rest)
        else:
            spans.append((1, output, len(taps), first, begin + first * dilation))
    return spans


def cells_of(
    geometry: ConvGeometry, box: Slices, *, last: bool, planes: bool = False, phased: bool = False
) -> tuple[Cells, Slices]:
    """Return the cells of a box of outputs, and which of the input those inside it are."""
    before, inside = [], []
    for o, stride, (padding, _), reach, size in zip(
        box, geometry.stride, geometry.padding, geometry.reach, geometry.size, strict=True
    ):
        first, end = o.start * stride - padding, (o.stop - 1) * stride - padding + reach
        start = min(max(first, 0), size)
        inside.append(slice(start, max(min(end, size), start)))
        before.append(min(max(start - first, 0), end - first))
    sizes = [each.stop - each.start for each in inside]
    cells = Cells(
        tuple(o.stop - o.start for o in box),
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        tuple(before),
        tuple(sizes),
        last,
        planes,
        phased,
    )
    return cells, tuple(inside)


def is_folded(channels: int) -> bool:
    """Say whether cells with so many channels meet in the same few lines of the cache."""
    return channels % _FOLDED == 0


def is_near(sizes: Sequence[int], steps: Sequence[int], itemsize: int) -> bool:
    """Say whether a table can tell how far any number of a box is from its first."""
    far = sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    return far * itemsize <= FARTHEST


def steps_of(array: Array, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Return the numbers along each axis from one to the next, if machine code can use them."""
    if array.dtype != dtype or not array.flags.aligned or array.size == 0:
        return None
    return _in_numbers(array.strides, array.itemsize)


@lru_cache(maxsize=1024)
def _in_numbers(strides: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
    if min(strides) < 0 or any(step % itemsize for step in strides):
        return None
    return tuple(step // itemsize for step in strides)
