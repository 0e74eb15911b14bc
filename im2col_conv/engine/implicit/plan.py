"""The plan of an implicit pass: how its tiles lie in memory, and how large they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import most_cells, most_outputs
from im2col_conv.engine.implicit.arrangements import Made
from im2col_conv.engine.implicit.bands import Bands
from im2col_conv.engine.implicit.pairs import axes_between
from im2col_conv.engine.implicit.pointwise import Pointwise
from im2col_conv.engine.implicit.shifted import Shifted
from im2col_conv.engine.implicit.tile import Arrangement, Shape, Tile
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import (
    EVEN,
    SHARES,
    SMALL_FLOPS,
    Tiling,
    cut,
    cut_evenly,
    overlap_of,
)
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = [
    "ImplicitPlan",
    "Step",
    "channels_in_groups",
    "channels_of",
    "loaded",
    "shares_of",
    "step_of",
    "tile_numbers",
    "tiles_of",
    "weight_bytes",
    "work_of",
    "worker_bytes",
]

# Measured: docs/ideas.md.
LEAST_SHARE = 128
LIST_BYTES = 2**23  # at most, as estimated, for the products of several groups
LEAST_WORK = 5e7
LEAST_SHARED = 4 * 10**7


@dataclass(frozen=True, kw_only=True)
class ImplicitPlan(Plan):
    """Tiles over (groups, N, *axes, chunks of channels), of one geometry and type.

    Some have more weights to arrange than cells to load.
    """

    algorithm: ClassVar[str] = "implicit"
    most_steps: ClassVar[int] = 1024  # of about a kilobyte each

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    arrangement: Arrangement
    many_weights: bool = False

    @property
    def least_shared(self) -> int:
        return _least_shared(self.arrangement)

    @property
    def holds_blas(self) -> bool:
        """Whether results are looked through for infinity, by a product of themselves."""
        return isinstance(self.arrangement, Bands)

    @property
    def tile_shape(self) -> Shape:
        groups, images, *positions, _ = self.tiling.step
        return (images, groups, *positions)


class Step(NamedTuple):
    """A tile of a task: which chunks of which groups' weights it takes, what it reads and makes.

    ``seen`` and ``made`` are indices of arrays [c, n, *cells], with the channels of all groups.
    """

    groups: slice
    part: slice
    seen: tuple[Any, ...]
    made: tuple[Any, ...]
    tile: Tile


def step_of(
    plan: ImplicitPlan,
    made: Made,
    groups: slice,
    part: slice,
    images: slice,
    box: Slices,
    cells: Slices,
) -> Step:
    """Return the step in which outputs ``box`` meet ``cells``, for chunks of the channels made."""
    _, C, F = channels_in_groups(plan.geometry, plan.arrangement)
    channels = C if made == "dx" else F
    own = channels_of(part, plan.arrangement.chunk(channels), channels)
    others = plan.arrangement.partners(own)
    c, f = (own, others) if made == "dx" else (others, own)
    parts = ((plan.geometry.N, images), (C, c), (F, f), (groups.stop, groups))
    tile = Tile(axes_between(plan.geometry, box, cells), *(len(range(n)[p]) for n, p in parts))
    x, y = (_of_all(groups, c, C), images, *cells), (_of_all(groups, f, F), images, *box)
    return Step(groups, part, y, x, tile) if made == "dx" else Step(groups, part, x, y, tile)


def _of_all(groups: slice, channels: slice, each: int) -> slice:
    """Return channels of some groups, ``each`` of which has so many, as counted through all."""
    start, stop, _ = channels.indices(each)
    return slice(groups.start * each + start, (groups.stop - 1) * each + stop)


def loaded(
    plan: ImplicitPlan, blas: OpenBlas, scratch: Scratch, name: str, images: Array, step: Step
) -> Array:
    """Return memory with what a step reads of ``images``.

    Tasks of one tile follow each other: what one of them has loaded serves the next. Tiles may see
    the same cells at other taps, and some arrangements load them tap by tap.
    """
    what = step.seen, step.tile.axes
    memory = scratch.known(name, what)
    if memory is None:
        source = images[step.seen]
        memory = plan.arrangement.load(blas, scratch, name, source, step.tile, plan.dtype)
        scratch.know(name, what, memory)
    return memory


def channels_in_groups(geometry: ConvGeometry, arrangement: Arrangement) -> tuple[int, int, int]:
    """Return (groups, C, F) as an arrangement sees them: bands take all planes as one group."""
    groups = 1 if isinstance(arrangement, Bands) else geometry.groups
    return groups, geometry.C // groups, geometry.F // groups


def tiles_of(
    geometry: ConvGeometry,
    arrangement: Arrangement,
    axes: Shape,
    made: Made,
    dtype: np.dtype[Any],
    available: int,
    shares: int,
) -> Tiling:
    """Return tiles over (groups, N, *axes, chunks of the channels that are ``made``).

    As many positions as the cache holds; where that makes fewer tiles than ``shares``, chunks of
    channels are shared as well: their products are the same whoever makes them.
    """
    groups, C, F = channels_in_groups(geometry, arrangement)
    channels = C if made == "dx" else F
    if isinstance(arrangement, Bands):
        units = _units(geometry, arrangement, axes, made, channels, dtype, available)
        return _planes_of(geometry, arrangement, axes, channels, units * channels, shares)
    one = arrangement.chunk(channels)
    chunks = -(-channels // one)
    total, split, overlap = geometry.N * math.prod(axes), groups, overlap_of(geometry)
    if arrangement.joins_groups and groups >= max(shares, 2) and total > 0:
        units = _units(geometry, arrangement, axes, made, channels, dtype, available)
        listed = min(LIST_BYTES, available // 4) // _list_bytes(geometry, geometry.N, geometry.out)
        most = min(units // total, listed)
        if most > 0:
            whole = geometry.N, *axes, chunks
            joined = _groups_at_once(groups, most, shares)
            return Tiling((groups, *whole), (joined, *whole))
    if arrangement.chunks_first:
        split *= chunks
    least = max(-(-total // -(-shares // split)), LEAST_SHARE)
    for at_once in (one, channels):  # one chunk at once, or else all that a task is given
        units = _units(geometry, arrangement, axes, made, at_once, dtype, available)
        extent, cells = (geometry.N, *axes), max(min(units, least), 1)
        if isinstance(arrangement, Shifted):
            cells = _with_margins(
                geometry, arrangement, extent, made, at_once, dtype, available, cells
            )
        tiling = cut(extent, cells, overlap)
        if groups * tiling.boxes * chunks % EVEN:
            tiling = cut_evenly(extent, cells, min(shares, EVEN), overlap)
        chunk = max(1, chunks // -(-shares // max(groups * tiling.boxes, 1)))
        if chunk == 1:
            break
    return Tiling((groups, *tiling.extent, chunks), (1, *tiling.step, chunk))


def _groups_at_once(groups: int, most: int, shares: int) -> int:
    """Return how many groups a tile holds: at most so many, and as many for each of the workers.

    Examples
    --------
    >>> _groups_at_once(9, 100, 2), _groups_at_once(16, 100, 3), _groups_at_once(39, 7, 8)
    (5, 4, 5)
    """
    even = EVEN if shares >= EVEN else min(shares, 2)
    return cut_evenly((groups,), min(most, -(-groups // shares)), even).step[0]


def _with_margins(
    geometry: ConvGeometry,
    arrangement: Arrangement,
    extent: Shape,
    made: Made,
    channels: int,
    dtype: np.dtype[Any],
    available: int,
    cells: int,
) -> int:
    """Return ``cells`` of a tile, or fewer so that there is room for four with all that they see.

    A tile of few lines sees many beside its own, and shifted planes have copies of them. Part of a
    line sees as many as the whole one.
    """
    while cells > extent[-1]:
        n, *step = cut(extent, cells, overlap_of(geometry)).step
        box = tuple(step)
        outs = most_outputs(geometry, box) if made == "dx" else box
        seen = box if made == "dx" else most_cells(geometry, box)
        numbers = tile_numbers(geometry, arrangement, made, 1, channels, n, seen, outs)
        if numbers * dtype.itemsize <= available // 4:
            break
        cells = max(cells * 3 // 4, extent[-1])
    return cells


def _units(
    geometry: ConvGeometry,
    arrangement: Arrangement,
    axes: Shape,
    made: Made,
    channels: int,
    dtype: np.dtype[Any],
    available: int,
) -> int:
    """Return how many positions of a tile the cache holds, where it makes so many channels."""
    many = 64  # images, for any number: one alone would count spare numbers as well
    numbers = tile_numbers(
        geometry, arrangement, made, 1, channels, many, geometry.size, geometry.out
    )
    each = max(numbers, 1) / max(many * math.prod(axes), 1) * dtype.itemsize
    return int(max(min(arrangement.tile_bytes, available // 4), 1) / each)


def tile_numbers(
    geometry: ConvGeometry,
    arrangement: Arrangement,
    made: Made,
    groups: int,
    channels: int,
    images: int,
    cells: Shape,
    outs: Shape,
) -> int:
    """Return the numbers of a tile that makes so many channels a group, or reads them for dw."""
    _, C, F = channels_in_groups(geometry, arrangement)
    if isinstance(arrangement, Bands):
        C = F = channels  # each plane from one
    image, other, others = ("dx", "dout", F) if made == "dx" else (made, "x", C)
    return sum(
        arrangement.numbers(name, groups * c, images, cells, outs)
        for name, c in ((image, channels), (other, others))
    )


def _planes_of(
    geometry: ConvGeometry, lie: Bands, axes: Shape, channels: int, units: int, shares: int
) -> Tiling:
    """Return tiles of the planes of some images, of some planes of one, or of part of a plane.

    Images that lie cell by cell are in one tile, as far as they can be, and it is planes of theirs
    that are dealt out.
    """
    share = -(-channels * math.prod(axes) * geometry.N // shares)
    cells = max(1, min(units, max(share, LEAST_SHARE)))
    order = (1, 0) if lie.interleaved else (0, 1)  # of images and channels, the outer one first
    outer, inner = ((geometry.N, channels)[place] for place in order)
    step = cut_evenly((outer, inner, *axes), cells, min(shares, EVEN)).step
    images, planes = (step[place] for place in order)
    return Tiling((1, geometry.N, *axes, channels), (1, images, *step[2:], planes))


def weight_bytes(geometry: ConvGeometry, arrangement: Arrangement, dtype: np.dtype[Any]) -> int:
    """Return what arranged weights take, of either pass: blocks are whole, bands have zeros."""
    G, C, F = channels_in_groups(geometry, arrangement)
    taps = geometry.kernel
    shapes = ((G, F, geometry.C // geometry.groups, *taps), (G, C, F, *taps))
    return max(math.prod(arrangement.weight_sums(shape)) for shape in shapes) * dtype.itemsize


def worker_bytes(
    geometry: ConvGeometry, numbers: int, images: int, outs: Shape, dtype: np.dtype[Any]
) -> int:
    """Return what a worker takes: ``numbers`` of a tile, and its list, ``images`` of all groups."""
    return numbers * dtype.itemsize + _list_bytes(geometry, images, outs)


def _list_bytes(geometry: ConvGeometry, images: int, outs: Shape) -> int:
    """Return about what the list of products of a tile takes: some numbers for each product."""
    lines = images * math.prod(outs[:-1]) * geometry.taps
    depth, width = (-(-n // geometry.groups // 64) for n in (geometry.C, geometry.F))
    return 300 * lines * depth * width


def shares_of(geometry: ConvGeometry, arrangement: Arrangement) -> int:
    """Return in how many parts a pass should come, for workers to share."""
    work = work_of(geometry, arrangement)
    least = 2 if work >= _least_shared(arrangement) else 1
    return max(least, min(SHARES, int(work // LEAST_WORK)))


def _least_shared(arrangement: Arrangement) -> int:
    """Return the work that pays for a second worker.

    With many short steps in Python, two wait for each other: large products have few.
    """
    few_steps = isinstance(arrangement, Shifted) or (
        isinstance(arrangement, Pointwise) and arrangement.packed
    )
    return SMALL_FLOPS if few_steps else LEAST_SHARED


def work_of(geometry: ConvGeometry, arrangement: Arrangement) -> int:
    """Return the operations that large products would do in the time of a pass."""
    numbers = math.prod(geometry.x_shape) + math.prod(geometry.y_shape)
    return geometry.flops + numbers * arrangement.cell_cost


def channels_of(part: slice, chunk: int, channels: int) -> slice:
    """Return the channels of some chunks."""
    return slice(part.start * chunk, min(part.stop * chunk, channels))
