"""How large a tile is, and which part of the work each tile holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices, whole

__all__ = [
    "EVEN",
    "SMALL_FLOPS",
    "TILE_BYTES",
    "Tiling",
    "affordable",
    "copies_alone",
    "cut",
    "cut_evenly",
    "is_small",
    "overlap_of",
    "shared_positions",
    "shares_for",
]

# Measured: docs/ideas.md.
TILE_BYTES, TILE_BYTES_OF_GROUPS = 2**22, 2**23  # of one group, and of many small products
LEAST_POSITIONS = 512
LEAST_SHARE = 128
LEAST_AFFORDED = 32
SHARES = 8
EVEN = 4  # workers who should get as many tiles each
SHARE_FLOPS = 25 * 10**6
SMALL_FLOPS = 2 * 10**7
ALONE_FLOPS, ALONE_BYTES, ALONE_LINE = 10**8, 3_500_000, 16


@dataclass(frozen=True)
class Tiling:
    """A grid of boxes over axes of the sizes ``extent``, each box ``step`` long or what is left.

    Examples
    --------
    >>> tiling = Tiling(extent=(2, 5), step=(1, 2))
    >>> tiling.boxes, tiling[5]
    (6, (slice(1, 2, None), slice(4, 5, None)))
    """

    extent: tuple[int, ...]
    step: tuple[int, ...]

    @cached_property
    def cells(self) -> int:
        """Cells of a whole box."""
        return math.prod(self.step)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Boxes along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.extent, self.step, strict=True))

    @cached_property
    def boxes(self) -> int:
        """How many boxes there are."""
        return math.prod(self.counts)

    def __getitem__(self, index: int) -> Slices:
        """Return box number ``index``, counted in C order."""
        if self.boxes == 1:
            return self._whole
        box = []
        for size, step, boxes in self._inner_first:
            index, at = divmod(index, boxes)
            box.append(slice(at * step, min((at + 1) * step, size)))
        box.reverse()
        return tuple(box)

    @cached_property
    def _whole(self) -> Slices:
        return whole(self.extent)

    @cached_property
    def _inner_first(self) -> list[tuple[int, int, int]]:
        return list(zip(self.extent, self.step, self.counts, strict=True))[::-1]


def cut(extent: tuple[int, ...], cells: int, overlap: Sequence[float] = ()) -> Tiling:
    """Return a tiling whose boxes hold at most ``cells``: whole inner axes, even steps.

    Axes count as inner by the ``overlap`` of neighbouring boxes along them, if that is given.

    Examples
    --------
    >>> cut((4, 10, 6), 25).step              # three of ten rows of six would leave one over
    (1, 4, 6)
    >>> cut((4, 10, 6), 25, (2, 0, 9)).step
    (4, 1, 6)
    """
    step = [1] * len(extent)
    outer_first = sorted(range(len(extent)), key=lambda axis: overlap[axis] if overlap else axis)
    for axis in reversed(outer_first):
        size = max(extent[axis], 1)
        longest = max(1, min(size, cells))
        step[axis] = -(-size // -(-size // longest))
        cells //= longest
        if longest < size:
            break
    return Tiling(extent, tuple(step))


def cut_evenly(
    extent: tuple[int, ...], cells: int, shares: int, overlap: Sequence[float] = ()
) -> Tiling:
    """Return what :func:`cut` does, in a few more boxes where ``shares`` workers get equal parts.

    Examples
    --------
    >>> cut((100, 16, 16), 9000).boxes, cut_evenly((100, 16, 16), 9000, 2).step
    (3, (25, 16, 16))
    """
    tiling = cut(extent, cells, overlap)
    total = math.prod(extent)
    if total == 0:
        return tiling
    for boxes in range(tiling.boxes, tiling.boxes + shares):
        even = cut(extent, max(-(-total // boxes), 1), overlap)
        if even.boxes % shares == 0:
            return even
    return tiling


def overlap_of(geometry: ConvGeometry) -> tuple[float, ...]:
    """Return how many cells neighbouring boxes over (N, *out) both see; lines should stay whole.

    Examples
    --------
    >>> overlap_of(ConvGeometry.from_shapes((2, 3, 9, 9, 9), (4, 3, 3, 2, 2), stride=(1, 2, 1)))
    (0, 2, 0, inf)
    """
    axes = [max(reach - s, 0) for reach, s in zip(geometry.reach, geometry.stride, strict=True)]
    return (0, *axes[:-1], math.inf)


def shared_positions(geometry: ConvGeometry, unit_bytes: int) -> int:
    """Return how many positions of all groups, of ``unit_bytes`` each, one tile should take.

    As many as the cache holds, but enough for a product to pay, and few enough that there is a
    share for several workers.
    """
    tile_bytes = TILE_BYTES if geometry.groups == 1 else TILE_BYTES_OF_GROUPS
    units = max(tile_bytes // unit_bytes, LEAST_POSITIONS)
    if not is_small(geometry.flops):
        total = geometry.N * geometry.groups * geometry.positions
        units = min(units, max(-(-total // shares_for(geometry.flops)), LEAST_SHARE))
    return units


def shares_for(flops: int) -> int:
    """Return in how many parts a pass should come at least: each costs time of its own."""
    return max(2, min(SHARES, flops // SHARE_FLOPS))


def affordable(geometry: ConvGeometry, units: int, unit_bytes: int, available: int) -> int:
    """Return ``units``, or fewer so that ``available`` bytes hold tiles for four workers.

    Part of an output row is always afforded: below that, work is all overhead.
    """
    least = min(geometry.out[-1], LEAST_AFFORDED)
    return max(least, min(units, available // 4 // unit_bytes))


def is_small(flops: int) -> bool:
    """Say whether a pass is over before a second worker has begun."""
    return flops < SMALL_FLOPS


def copies_alone(work: int, copied_bytes: int, line: int) -> bool:
    """Say whether the caller copies what its first product needs before it asks for help.

    Each step of two workers who copy at the same time gives up the interpreter's lock and asks for
    it again, and who waits for it is woken late. That costs more than to begin one after the other,
    unless there is much to copy, as where lines are short, or little to do in all.
    """
    return work >= ALONE_FLOPS and copied_bytes <= ALONE_BYTES and line >= ALONE_LINE
