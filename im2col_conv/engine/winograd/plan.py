"""What Winograd's way covers, which tiles it takes, and how a pass is cut into chunks of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from im2col_conv.engine.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.tile import row_of
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import Tiling, cut, is_small
from im2col_conv.engine.winograd.stages import BLOCK, blocks, sizes_of
from im2col_conv.engine.winograd.tile import Axis, Chunk
from im2col_conv.engine.winograd.transforms import KERNEL, transform_for
from im2col_conv.engine.winograd.weights import scratch_bytes, transform_bytes
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["Place", "WinogradPlan", "covers", "plan_forward", "tile_for"]

# Measured on layers of 64 to 512 channels. Few tiles would read U too often. The cells are
# transformed again for each chunk of filters, so that there are no more chunks than these shares.
CHUNK_BYTES = 5 * 2**19
LEAST_TILES = 32
SHARES = 4


class Place(NamedTuple):
    """Where the work of a task lies: group, blocks of filters, filters, images, outputs, cells."""

    group: int
    part: slice
    filters: slice
    images: slice
    outs: Slices
    cells: Slices


@dataclass(frozen=True, kw_only=True)
class WinogradPlan(Plan):
    """Chunks over (groups, blocks of F, N, rows of tiles, columns of tiles).

    Attributes
    ----------
    tile : int
        Outputs of a tile along an axis.
    numbers : int
        What each of the two buffers of a worker holds.
    """

    algorithm: ClassVar[str] = "winograd"

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    tile: int
    numbers: int

    @property
    def holds_blas(self) -> bool:
        """All products are the private BLAS's."""
        return False

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """A whole chunk: (images, groups, *positions)."""
        _, _, images, *tiles = self.tiling.step
        return (images, 1, *(self.tile * many for many in tiles))

    def place(self, index: int) -> Place:
        """Return where task number ``index`` works."""
        groups, part, images, *tiles = self.tiling[index]
        outs = tuple(
            slice(t.start * self.tile, min(t.stop * self.tile, out))
            for t, out in zip(tiles, self.geometry.out, strict=True)
        )
        F = self.geometry.F // self.geometry.groups
        filters = slice(part.start * BLOCK, min(part.stop * BLOCK, F))
        return Place(groups.start, part, filters, images, outs, cells_seen(self.geometry, outs))

    def chunk(self, place: Place) -> Chunk:
        """Return what the products of a task follow from."""
        rows, columns = (
            Axis(o.stop - o.start, i.stop - i.start, o.start - before - i.start, self.tile)
            for o, i, (before, _) in zip(
                place.outs, place.cells, self.geometry.padding, strict=True
            )
        )
        images, filters = (p.stop - p.start for p in (place.images, place.filters))
        C, F = (channels // self.geometry.groups for channels in (self.geometry.C, self.geometry.F))
        return Chunk(images, rows, columns, C, filters, min(F, BLOCK))


def covers(geometry: ConvGeometry, dtype: np.dtype[Any]) -> str | None:
    """Say why a geometry or a type is not covered; None where both are."""
    if geometry.kernel != (KERNEL, KERNEL):
        return f"it needs a kernel of 3 by 3, got {geometry.kernel}"
    if geometry.stride != (1, 1):
        return f"it needs a stride of 1, got {geometry.stride}"
    if geometry.dilation != (1, 1):
        return f"it needs a dilation of 1, got {geometry.dilation}"
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        return f"it computes in float32 or float64, got {dtype}"
    return None


def tile_for(geometry: ConvGeometry) -> int:
    """Return the outputs of a tile along an axis: 4 where that makes fewer multiplications.

    Tiles of 2 are more exact. They are as fast where tiles of 4 would reach far over the last
    output, as with images of 2, 5 or 6 cells, and slower where not.
    """
    return 4 if _multiplications(geometry, 4) < _multiplications(geometry, 2) else 2


def _multiplications(geometry: ConvGeometry, tile: int) -> int:
    """Return the multiplications for an image, a channel and a filter."""
    return transform_for(tile).cells ** 2 * math.prod(-(-out // tile) for out in geometry.out)


@lru_cache(maxsize=256)
def plan_forward(geometry: ConvGeometry, dtype: np.dtype[Any], workspace: int) -> WinogradPlan:
    """Draw the chunks of a forward pass from shapes and the type alone."""
    tile = tile_for(geometry)
    shared, own = transform_bytes(geometry, tile, dtype), scratch_bytes(geometry, dtype)
    tiling = _chunks(geometry, tile, dtype.itemsize, workspace - shared - own)
    numbers = _most_numbers(geometry, tile, tiling.step)
    return WinogradPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=2 * numbers * dtype.itemsize + own,
        shared_bytes=shared,
        work=geometry.flops,
        geometry=geometry,
        dtype=dtype,
        tile=tile,
        numbers=numbers,
    )


def _chunks(geometry: ConvGeometry, tile: int, itemsize: int, available: int) -> Tiling:
    """Return as many tiles a chunk as the cache holds; few tiles are shared filter by filter."""
    G, F = geometry.groups, geometry.F // geometry.groups
    widest = row_of(max(geometry.C // G, F))
    unit = 2 * transform_for(tile).cells ** 2 * widest * itemsize
    units = min(max(CHUNK_BYTES // unit, LEAST_TILES), available // 4 // unit)
    tiling = cut((geometry.N, *(-(-out // tile) for out in geometry.out)), max(units, 1))
    shares = 1 if is_small(geometry.flops) else -(-SHARES // max(G * tiling.boxes, 1))
    part = -(-blocks(F) // shares)
    return Tiling((G, blocks(F), *tiling.extent), (1, part, *tiling.step))


def _most_numbers(geometry: ConvGeometry, tile: int, step: tuple[int, ...]) -> int:
    """Return the numbers of the largest buffer that a chunk needs."""
    _, part, images, *tiles = step
    outs = tuple(min(t * tile, out) for t, out in zip(tiles, geometry.out, strict=True))
    rows, columns = (
        Axis(o, i, 0, tile) for o, i in zip(outs, most_cells(geometry, outs), strict=True)
    )
    C, F = geometry.C // geometry.groups, geometry.F // geometry.groups
    filters = min(part * BLOCK, F)
    return max(sizes_of(Chunk(images, rows, columns, C, filters, min(F, BLOCK))))
