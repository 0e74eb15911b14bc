"""What a tile is, and what an arrangement of its numbers in memory must offer."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.implicit.pairs import Axis
from im2col_conv.engine.implicit.weights import Arranged
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Room

__all__ = [
    "KEPT",
    "SPARE",
    "Arrangement",
    "Shape",
    "Tile",
    "even_pieces",
    "row_of",
    "sums_of_rows",
]

Shape = tuple[int, ...]

SET_BYTES = 2**12  # from one address to the next that falls in the same set of the first cache
KEPT = 64  # lists of products, of some hundred kilobytes at most
SPARE = 16  # numbers of a line of the cache, or two


class Tile(NamedTuple):
    """All that the products of a tile follow from: how its axes meet, and each group's channels."""

    axes: tuple[Axis, ...]
    images: int
    C: int
    F: int
    groups: int = 1

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        taps = 1
        for axis in self.axes:
            taps *= axis.kernel
        return taps


def row_of(numbers: int) -> int:
    """Return how far it is from one row of so many numbers to the next, in numbers.

    Whole lines of the cache, and not a multiple of 512 bytes: the rows of 1024 channels would all
    begin in the same few sets of the cache, and a product take up to twice as long.

    Examples
    --------
    >>> row_of(64), row_of(70), row_of(1024)
    (64, 80, 1040)
    """
    row = -(-numbers // SPARE) * SPARE
    return row if row % 128 else row + SPARE


def even_pieces(size: int, most: int) -> tuple[Array, Array]:
    """Return first and how many of pieces of at most ``most``, as long as each other.

    Examples
    --------
    >>> [[int(n) for n in numbers] for numbers in even_pieces(130, 128)]
    [[0, 65], [65, 65]]
    """
    pieces = -(-size // most)
    bounds = np.arange(pieces + 1) * size // max(pieces, 1)
    return bounds[:-1], np.diff(bounds)


def sums_of_rows(memory: Array) -> Array:
    """Return the sum of each channel of ``memory[..., line, c]``, by a product with ones."""
    *_, lines, channels = memory.shape
    total: Array
    try:
        rows = memory.reshape(-1, channels, copy=False)
    except ValueError:  # line by line
        totals = np.matmul(np.ones(lines, memory.dtype), memory)
        total = totals.reshape(-1, channels).sum(axis=0)
    else:  # np.matmul would keep the interpreter's lock, since what it makes is small
        total = np.dot(np.ones(len(rows), memory.dtype), rows)
    return total


class Arrangement(Protocol):
    """How the numbers of a tile lie in memory, and the products that follow from it.

    ``image[c, n, *cells]`` is a part of "x", "dx", "y" or "dout"; "dout.T" is dout as the products
    of dw read it. Where a tile has several groups, c runs over the channels of all.

    Attributes
    ----------
    tile_bytes : int
        What the memory of a tile should take, as measured.
    cell_cost : int
        Operations that a large product does while a cell or an output is read or written.
    chunks_first : bool
        Whether work is better shared by channels than by positions.
    joins_groups : bool
        Whether a tile may have several groups, all channels of each.
    """

    tile_bytes: ClassVar[int]
    chunks_first: ClassVar[bool]
    joins_groups: ClassVar[bool]
    cell_cost: ClassVar[int]

    def chunk(self, channels: int) -> int:
        """Return how many channels of a result are the least that one task makes."""

    def partners(self, channels: slice) -> slice:
        """Return the channels that some channels of a group's results are made from."""

    def numbers(self, name: str, c: int, n: int, cells: Shape, outs: Shape) -> int:
        """Return the numbers in the memory of ``name``, in a tile of so many cells and outputs."""

    def unpacking(self, shape: Shape) -> int:
        """Return the numbers that :meth:`unpack` needs between two copies, for dw (f, c, *tap)."""

    def load(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        image: Array,
        tile: Tile,
        dtype: np.dtype[Any],
    ) -> Array:
        """Return memory with the numbers of ``image``, which may be the image itself."""

    def room(
        self, scratch: Scratch, name: str, image: Array, tile: Tile, dtype: np.dtype[Any]
    ) -> Array:
        """Return unfilled memory for ``image``, which may be the image itself."""

    def store(
        self,
        blas: OpenBlas,
        scratch: Scratch,
        name: str,
        memory: Array,
        image: Array,
        tile: Tile,
        b: Array | None,
    ) -> None:
        """Fill ``image`` with the numbers of its memory, plus ``b[c]``."""

    def sums(self, memory: Array, image: Array) -> Array:
        """Return the sum of each channel of dout, ``image[f, n, *outs]``, which lies in memory."""

    def forward_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return ``w[g, f, c, *tap]`` as the forward products read it, by chunks of filters."""

    def input_grad_weights(self, w: Array, dtype: np.dtype[Any], room: Room) -> Arranged:
        """Return ``w[g, f, c, *tap]`` as the products of dx read it, by chunks of channels."""

    def weight_sums(self, shape: Shape) -> Shape:
        """Return the shape in which dw (g, f, c, *tap) is added up."""

    def unpack(self, blas: OpenBlas, scratch: Scratch, sums: Array, dw: Array) -> None:
        """Fill ``dw[g, f, c, *tap]``, some chunks of filters of one group or all of several."""

    def forward(
        self, blas: OpenBlas, tile: Tile, x: Array, W: Array, y: Array, b: Array | None
    ) -> None:
        """Set y to W x, plus ``b[f]``, each in its memory."""

    def input_grad(self, blas: OpenBlas, tile: Tile, dout: Array, W: Array, dx: Array) -> None:
        """Set dx to W.T dout, each in its memory."""

    def weight_grad(self, blas: OpenBlas, tile: Tile, dout: Array, x: Array, dw: Array) -> None:
        """Add dout x.T to the sums of dw."""
