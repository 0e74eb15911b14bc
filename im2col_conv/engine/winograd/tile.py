"""What a chunk of tiles meets: their cells, of which some are padding, and their outputs."""

from __future__ import annotations

from typing import NamedTuple

from im2col_conv.engine.winograd.transforms import transform_for

__all__ = ["Axis", "Chunk"]


class Axis(NamedTuple):
    """One axis of a chunk: tile t sees the cells from t ``step`` + ``lead``, where there are any.

    Attributes
    ----------
    outs, cells : int
        How many of each the chunk has.
    lead : int
        The first cell that the first tile sees: negative where padding comes first.
    step : int
        Outputs of a tile.
    """

    outs: int
    cells: int
    lead: int
    step: int

    @property
    def tiles(self) -> int:
        """How many tiles there are; the last may be left with fewer outputs."""
        return -(-self.outs // self.step)

    def seen(self) -> list[tuple[int, int, int, int]]:
        """Return (tile, its first cell, place of this cell in the tile, cells).

        Examples
        --------
        Tiles of four for six outputs of five cells, which one of padding precedes and two follow:

        >>> Axis(outs=6, cells=5, lead=-1, step=4).seen()
        [(0, 0, 1, 5), (1, 3, 0, 2)]
        """
        found = []
        for tile in range(self.tiles):
            start = tile * self.step + self.lead
            first = max(-start, 0)
            end = min(self.cells - start, transform_for(self.step).cells)
            if first < end:
                found.append((tile, start + first, first, end - first))
        return found

    def made(self) -> list[tuple[int, int, int]]:
        """Return (tile, its first output, outputs)."""
        starts = range(0, self.outs, self.step)
        return [(t, start, min(self.step, self.outs - start)) for t, start in enumerate(starts)]


class Chunk(NamedTuple):
    """All that the products of a chunk follow from.

    Attributes
    ----------
    images, C, F : int
        How many images, channels and filters it has.
    rows, columns : Axis
    width : int
        Numbers in a row of U: filters of a whole block, also where the chunk has fewer.
    """

    images: int
    rows: Axis
    columns: Axis
    C: int
    F: int
    width: int

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.images * self.rows.tiles * self.columns.tiles
