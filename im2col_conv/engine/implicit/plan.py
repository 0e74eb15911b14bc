"""The plan of an implicit pass: how its tiles lie in memory, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from im2col_conv.engine.implicit.boxes import axes_between
from im2col_conv.engine.implicit.inner import ChannelsInner
from im2col_conv.engine.implicit.outer import ChannelsOuter
from im2col_conv.engine.implicit.tile import Arrangement, Shape, Tile
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import SHARES, Tiling, cut
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["ImplicitPlan", "arrangement_for", "channels_of", "shares_of", "tiles_of"]

# Measured: docs/performance.md.
TILE_BYTES = 2**20
LEAST_SHARE = 128
LEAST_FLOPS = 1.5e7
FEW = 100
SHORT_LINE = 30


@dataclass(frozen=True, kw_only=True)
class ImplicitPlan(Plan):
    """Tiles over (groups, chunks of channels, N, *axes), of one geometry and type."""

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    arrangement: Arrangement

    @property
    def stride(self) -> int:
        """The stride of the last axis, along which lines run."""
        return self.geometry.stride[-1]

    def tile(self, images: int, box: Slices, cells: Slices, C: int, F: int) -> Tile:
        """Return what the products of a tile follow from."""
        return Tile(axes_between(self.geometry, box, cells), images, C, F)


def arrangement_for(geometry: ConvGeometry) -> Arrangement:
    """Return where channels lie: before the last axis where they and a kernel's rows are few."""
    rows = geometry.kernel[-2] if geometry.ndim > 1 else 1
    if geometry.C // geometry.groups * rows <= FEW:
        return ChannelsOuter(interleaved=geometry.out[-1] < SHORT_LINE)
    return ChannelsInner()


def tiles_of(
    geometry: ConvGeometry, arrangement: Arrangement, axes: Shape, channels: int, available: int
) -> Tiling:
    """Return tiles over (groups, chunks of ``channels``, N, *axes).

    As many positions as the cache holds; where that makes too few tiles to share, chunks of
    channels are shared as well: their products are the same whoever makes them.
    """
    chunks = -(-channels // arrangement.chunk(channels))
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    # 16384 stands for any number: that of one position alone would count spare numbers as well.
    unit = (arrangement.numbers((F, 1, 2**14), 1) + arrangement.numbers((C, 1, 2**14), 1)) * 4 / 2**14
    units = max(1, int(min(TILE_BYTES, available // 4) / unit))
    total = geometry.N * int(np.prod(axes))
    shares = shares_of(geometry)
    units = min(units, max(-(-total // -(-shares // (geometry.groups * chunks))), LEAST_SHARE))
    tiling = cut((geometry.N, *axes), units)
    chunk = max(1, chunks // -(-shares // max(geometry.groups * tiling.boxes, 1)))
    return Tiling((geometry.groups, chunks, *tiling.extent), (1, chunk, *tiling.step))


def shares_of(geometry: ConvGeometry) -> int:
    """Return in how many parts a pass should come, for workers to share."""
    return max(1, min(SHARES, int(geometry.flops // LEAST_FLOPS)))


def channels_of(part: slice, chunk: int, channels: int) -> slice:
    """Return the channels of some chunks."""
    return slice(part.start * chunk, min(part.stop * chunk, channels))
