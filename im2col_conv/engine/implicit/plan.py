"""The plan of an implicit pass: what a tile takes, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from im2col_conv.engine.implicit.boxes import axes_between
from im2col_conv.engine.implicit.lines import BLOCK, blocks
from im2col_conv.engine.implicit.tile_products import Tile
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import SHARES, Tiling, cut, is_small
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["ImplicitPlan", "tiles_of"]

# Measured: docs/performance.md.
TILE_BYTES = 2**20
LEAST_SHARE = 128


@dataclass(frozen=True, kw_only=True)
class ImplicitPlan(Plan):
    """Tiles over (groups, blocks of channels, N, *axis), of one geometry and type."""

    geometry: ConvGeometry
    dtype: np.dtype[Any]

    @property
    def interleaved(self) -> bool:
        """Whether the images of a tile lie cell by cell: a stride would leave gaps in lines."""
        return self.geometry.stride[-1] == 1

    def tile(self, images: int, box: Slices, cells: Slices, C: int, F: int) -> Tile:
        """Return what the products of a tile follow from."""
        axes = axes_between(self.geometry, box, cells)
        return Tile(axes, images, self.interleaved and images > 1, C, F)


def tiles_of(
    geometry: ConvGeometry, axes: tuple[int, ...], channels: int, unit_bytes: int, available: int
) -> Tiling:
    """Return tiles over (groups, blocks of ``channels``, N, *axes).

    As many positions as the cache holds of ``unit_bytes`` each; where that makes too few tiles to
    share, blocks of channels are shared as well: their products are the same whoever makes them.
    """
    units = max(1, min(TILE_BYTES, available // 4) // unit_bytes)
    extent = (geometry.N, *axes)
    if not is_small(geometry.flops):
        shares = -(-SHARES // (geometry.groups * len(blocks(channels))))
        units = min(units, max(-(-int(np.prod(extent)) // shares), LEAST_SHARE))
    tiling = cut(extent, units)
    chunk = len(blocks(channels))
    if not is_small(geometry.flops):
        chunk = -(-chunk // max(1, -(-SHARES // max(geometry.groups * tiling.boxes, 1))))
    return Tiling(
        (geometry.groups, len(blocks(channels)), *tiling.extent), (1, max(chunk, 1), *tiling.step)
    )


def channels_of(part: slice, channels: int) -> slice:
    """Return the channels of some blocks."""
    return slice(part.start * BLOCK, min(part.stop * BLOCK, channels))
