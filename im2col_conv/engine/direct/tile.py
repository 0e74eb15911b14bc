r"""The sums of a tile: which numbers meet which, for each way in which channels may lie.

With :math:`\alpha_k` where the tap and channel k is, seen from a window's first cell, and
:math:`\beta_p` where the window of output p begins, the column matrix is

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

and what is summed is W cols, where windows lie. ``FILTERS`` and ``PLANES`` are for channels that
come first, where outputs lie side by side; ``OUTPUTS`` and ``CHANNELS`` for those that come last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import places_of
from im2col_conv.engine.direct.cells import Cells, Steps
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.sums import Parts, Runs, Sums, Terms, Vectors
from im2col_conv.engine.machine.assembler import Form

__all__ = ["Tile", "blocks_of", "sums_of", "vectors_of"]

# Vectors that all rows meet before the next ones.
TOGETHER = {Kind.FILTERS: 8, Kind.OUTPUTS: 2, Kind.PLANES: 8, Kind.CHANNELS: 16}

_NONE = np.zeros(1, np.int64)


class Tile(NamedTuple):
    """All that the sums of a tile follow from.

    Attributes
    ----------
    kind, form, dtype
        Of the sums.
    flipped : bool
        Whether weights are those of the convolution whose dx is made.
    cells : Cells
    kernel : tuple of int
        Of the layer: the cells may be those of some of its taps alone.
    images, groups : int
    C, F : int
        Channels read and made, of a group.
    x : Steps
    y : tuple of int
        Numbers from one image, filter and output to the next.
    """

    kind: Kind
    form: Form
    dtype: np.dtype[Any]
    flipped: bool
    cells: Cells
    kernel: tuple[int, ...]
    images: int
    groups: int
    C: int
    F: int
    x: Steps
    y: tuple[int, ...]

    @property
    def lanes(self) -> int:
        """The numbers of a vector."""
        return self.form.lanes(self.dtype)


def sums_of(tile: Tile) -> Sums:
    """Return the sums of a tile, for weights, cells, results and bias in the order of its kind."""
    return _MAKERS[tile.kind](tile)


def blocks_of(filters: int, lanes: int) -> tuple[int, int]:
    """Return how many blocks of filters side by side there are, and of how many: two vectors.

    Examples
    --------
    >>> blocks_of(20, 8), blocks_of(20, 4)
    ((2, 16), (3, 8))
    """
    width = 2 * lanes
    return -(-filters // width), width


def _of_filters(tile: Tile) -> Sums:
    # y (F, L) = W (F, K) @ x[alpha_k + beta_p] (K, L), lines of L outputs
    lines, at_y = _windows(tile, range(len(tile.cells.outs) - 1))
    vectors = _vectors_of(lines, at_y, *vectors_of(tile.cells.outs[-1], tile.lanes))
    a, step = _weights(tile)
    image, group = _images_and(tile.images, tile.groups)
    parts = Parts(
        group * tile.C * tile.F * len(tile.cells.taps(tile.x)),
        image * tile.x.image + group * tile.C * tile.x.channel,
        image * tile.y[0] + group * tile.F * tile.y[1],
        group * tile.F,
    )
    runs = Runs(_NONE, _NONE, _NONE, _NONE, _NONE + tile.F)
    return _sums(tile, Terms(a, _terms(tile)), runs, (step, tile.y[1]), vectors, parts)


def _of_outputs(tile: Tile) -> Sums:
    # y.T (L, F) = x[alpha_k + beta_p] (L, K) @ W.T (K, F), lines of L outputs
    lines, at_y = _windows(tile, range(len(tile.cells.outs) - 1))
    blocks, width = blocks_of(tile.F, tile.lanes)
    lanes, K = tile.lanes, tile.C * len(tile.cells.taps(tile.x))
    first = np.arange(0, blocks * width, lanes)
    block, lane = np.divmod(first, width)
    numbers = np.clip(tile.F - first, 0, lanes)
    image, group = _images_and(tile.images, tile.groups)
    parts = Parts(
        image * tile.x.image + group * tile.C * tile.x.channel,
        group * blocks * K * width,
        image * tile.y[0] + group * tile.F * tile.y[1],
        group * tile.F,
    )
    none = np.zeros_like(lines)
    runs = Runs(lines, none, at_y, none, none + tile.cells.outs[-1])
    steps = tile.cells.apart(-1, tile.x), tile.y[-1]
    at_x = _terms(tile)
    if tile.cells.last:  # channels of a cell follow one another
        at_x = at_x.reshape(tile.C, -1).T.ravel()
    terms = Terms(at_x, np.arange(K) * width)
    made = np.where(numbers > 0, first, 0)
    vectors = Vectors(block * K * width + lane, made, first, numbers)
    return _sums(tile, terms, runs, steps, vectors, parts)


def _of_planes(tile: Tile) -> Sums:
    # y (L) = W (1, K) @ x[alpha_k + beta_p] (K, L), lines of L outputs of one filter
    first, numbers = vectors_of(tile.cells.outs[-1], tile.lanes)
    lines, apart, at_y, y_apart, rows = _lines_under_each_other(tile, odd=len(first) % 2 == 1)
    vectors = _vectors_of(lines, at_y, first, numbers)
    a, step = _weights(tile)
    image, filters = _images_and(tile.images, tile.groups * tile.F)
    group, f = np.divmod(filters, tile.F)
    parts = Parts(
        group * tile.C * tile.F * len(tile.cells.taps(tile.x)) + f * step,
        image * tile.x.image + group * tile.C * tile.x.channel,
        image * tile.y[0] + filters * tile.y[1],
        filters,
    )
    runs = Runs(_NONE, _NONE, _NONE, _NONE, _NONE + rows)
    return _sums(tile, Terms(a, _terms(tile)), runs, (apart, y_apart), vectors, parts)


def _of_channels(tile: Tile) -> Sums:
    # y[p] (C) = the sum over taps of w_t (C) * x[alpha_t + beta_p] (C), number by number
    longest = int(np.argmax(tile.cells.outs))
    lines, at_y = _windows(tile, [n for n in range(len(tile.cells.outs)) if n != longest])
    first, numbers = vectors_of(tile.groups, tile.lanes)
    none = np.zeros_like(lines)
    image, _ = _images_and(tile.images, 1)
    parts = Parts(0 * image, image * tile.x.image, image * tile.y[0], 0 * image)
    runs = Runs(none, lines, at_y, none, none + tile.cells.outs[longest])
    steps = tile.cells.apart(longest, tile.x), tile.y[2 + longest]
    taps = np.arange(math.prod(tile.kernel)).reshape(tile.kernel)
    some = taps[tuple(slice(0, n) for n in tile.cells.kernel)]
    terms = Terms(some.ravel() * tile.groups, tile.cells.taps(tile.x))
    return _sums(tile, terms, runs, steps, Vectors(first, first, first, numbers), parts)


_MAKERS = {
    Kind.FILTERS: _of_filters,
    Kind.OUTPUTS: _of_outputs,
    Kind.PLANES: _of_planes,
    Kind.CHANNELS: _of_channels,
}


def _sums(
    tile: Tile, terms: Terms, runs: Runs, steps: tuple[int, int], vectors: Vectors, parts: Parts
) -> Sums:
    together = TOGETHER[tile.kind]
    return Sums(
        tile.form, tile.dtype, tile.kind, terms, runs, steps, vectors, parts, together=together
    )


def _windows(tile: Tile, axes: Sequence[int]) -> tuple[Array, Array]:
    """Return where windows begin in x, and their outputs in y, over some axes in C order."""
    outs = [tile.cells.outs[axis] for axis in axes]
    at_x = places_of(outs, [tile.cells.apart(axis, tile.x) for axis in axes])
    return at_x, places_of(outs, [tile.y[2 + axis] for axis in axes])


def _lines_under_each_other(tile: Tile, *, odd: bool) -> tuple[Array, int, Array, int, int]:
    """Return where planes of lines begin, in x and y, how far lines are apart, and how many.

    Where a line has an ``odd`` number of vectors, its last would be alone: so a plane is taken as
    two halves, beside each other. One line of both may be the same: it is made twice.
    """
    if len(tile.cells.outs) == 1:
        return _NONE, 0, _NONE, 0, 1
    at_x, at_y = _windows(tile, range(len(tile.cells.outs) - 2))
    lines, apart, y_apart = tile.cells.outs[-2], tile.cells.apart(-2, tile.x), tile.y[-2]
    if odd and lines > 1:
        half = -(-lines // 2)
        halves = np.array([0, lines - half])
        at_x = np.add.outer(at_x, halves * apart).ravel()
        at_y = np.add.outer(at_y, halves * y_apart).ravel()
        lines = half
    return at_x, apart, at_y, y_apart, lines


def vectors_of(numbers: int, lanes: int) -> tuple[Array, Array]:
    """Return first and how many of each vector of a line: the last may overlap the one before.

    Examples
    --------
    >>> [[int(n) for n in column] for column in vectors_of(19, 8)]
    [[0, 8, 11], [8, 8, 8]]
    """
    first = np.minimum(np.arange(0, numbers, lanes), max(numbers - lanes, 0))
    return first, np.full_like(first, min(lanes, numbers))


def _vectors_of(lines: Array, at_y: Array, first: Array, numbers: Array) -> Vectors:
    """Return the vectors of lines that begin so in x and in y."""
    b, c = (np.add.outer(begin, first).ravel() for begin in (lines, at_y))
    return Vectors(b, c, np.zeros_like(b), np.tile(numbers, len(lines)))


def _terms(tile: Tile) -> Array:
    """Return where channel c and tap t of a window are, in C order."""
    return np.add.outer(np.arange(tile.C) * tile.x.channel, tile.cells.taps(tile.x)).ravel()


def _weights(tile: Tile) -> tuple[Array, int]:
    """Return where channel c and tap t of a filter's weights are, and from filter to filter.

    For dx, taps are met in reverse.
    """
    taps = len(tile.cells.taps(tile.x))
    order = np.arange(taps)[:: -1 if tile.flipped else 1]
    return np.add.outer(np.arange(tile.C) * taps, order).ravel(), tile.C * taps


def _images_and(images: int, others: int) -> tuple[Array, Array]:
    """Return the number of the image, and of the other thing, of each pair of both."""
    image, other = np.divmod(np.arange(images * others), others)
    return image, other
