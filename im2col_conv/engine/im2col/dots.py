r"""Backward to the weights of depthwise layers: dots of long lines.

The cells of a channel, padding included, are stored as one line: image after image, row after row.
If dout is stored with as many numbers a row and an image, zeros among them for those that are no
outputs, then tap t meets at any position p the cell that is so many numbers further on:

.. math:: dw[c, t] = \sum_p dout[c, p] \; x[c, p + \text{offset}_t].

So the columns of a channel are a view of its line, and all taps are one call of ``np.vecdot``, for
which BLAS makes each sum. Lines are cut in pieces that stay in the first cache from tap to tap:
anywhere, since what is no output adds nothing. With a stride, the cells of each phase have a line
of their own. Channels that come last are turned first, where views of all of them (``depthwise``)
would take longer. Each tile of images has sums of its own, which are added in order at the end.
Zero times infinity would be NaN: where a sum is not finite, each tap is summed again, over the
outputs that meet a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, computing_type
from im2col_conv.engine.copies import copies_for
from im2col_conv.engine.im2col.columns import Shape
from im2col_conv.engine.im2col.depthwise import SHORT_LINE, multiply_inside
from im2col_conv.engine.im2col.stored import Axis, axis_of, store
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import Plan, total_of
from im2col_conv.engine.tiling import EVEN, Tiling, cut_evenly
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import last, whole

__all__ = ["DotsPlan", "has_lines", "plan_dots", "turning_pays", "weight_grad"]

# Measured: docs/ideas.md.
TILE_BYTES, LEAST_SHARED = 2**22, 4 * 10**7
PIECE_BYTES = 14 * 2**10
MOST_STORED = 4  # numbers of a line for each output
CELL_COST = 30  # operations of a product while a number is read
# Where channels come last: how many at least are read together, a line of the cache of float32;
# which pay.
CHANNELS_READ = 16
FEW_CHANNELS, MANY_CHANNELS = 8, 64
SOME_TAPS, MANY_TAPS = 8, 16


class _Line(NamedTuple):
    """How the cells (n, *axes) of a channel lie in a line, and the pieces it is cut in.

    All pieces have the same length; the last may end after the cells.
    """

    shape: Shape
    pieces: int
    length: int

    @property
    def numbers(self) -> int:
        return self.pieces * self.length


@dataclass(frozen=True, kw_only=True)
class DotsPlan(Plan):
    """Tiles over (N, C, *out): a task makes the sums of some channels over some images.

    Channels that come last are ``turned``.
    """

    geometry: ConvGeometry
    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]
    turned: bool

    @property
    def least_shared(self) -> int:
        """With many short steps in Python, two workers wait for each other below this."""
        return LEAST_SHARED


@lru_cache(maxsize=256)
def plan_dots(
    geometry: ConvGeometry, layout: str, result: np.dtype[Any], workspace: int
) -> DotsPlan | None:
    """Draw the tiles; None where it is no such layer, views pay, or lines are too long."""
    dtype = computing_type(result)
    if not has_lines(geometry, dtype):
        return None
    if layout == "channels_last" and not turning_pays(geometry, dtype):
        return None
    axes = _axes_of(geometry)
    plane = math.prod(axis.length for axis in axes)
    work = geometry.flops + CELL_COST * (math.prod(geometry.x_shape) + math.prod(geometry.y_shape))
    shares = EVEN if work >= LEAST_SHARED else 1
    turned = layout == "channels_last"
    beside = _numbers_beside(geometry, dtype, turned=turned)
    room = min(TILE_BYTES, workspace // (2 * EVEN)) // dtype.itemsize
    planes = max(1, room // (2 * plane + beside))
    images, channels = _tile(geometry, planes, shares, turned=turned)
    line = _line(axes, images, dtype)
    sums = (line.pieces + 2) * geometry.taps
    numbers = 2 * line.numbers + images * beside + _reach(axes, geometry.out) + sums
    worker_bytes = channels * numbers * dtype.itemsize
    tiling = Tiling((geometry.N, geometry.C, *geometry.out), (images, channels, *geometry.out))
    shared_bytes = tiling.counts[0] * geometry.C * (geometry.taps + 1) * dtype.itemsize
    if EVEN * worker_bytes + shared_bytes > workspace:
        return None
    return DotsPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=worker_bytes,
        shared_bytes=shared_bytes,
        work=work,
        geometry=geometry,
        dtype=dtype,
        axes=axes,
        turned=turned,
    )


def _numbers_beside(geometry: ConvGeometry, dtype: np.dtype[Any], *, turned: bool) -> int:
    """Return the numbers of a channel of an image that are stored beside its lines."""
    cells = math.prod(geometry.size)
    numbers = cells if dtype.kind == "c" else 0  # of x, where a sum is not finite
    if turned:  # dout, and then x
        numbers += geometry.positions if _has_phases(geometry) else max(cells, geometry.positions)
    return numbers


def _tile(geometry: ConvGeometry, planes: int, shares: int, *, turned: bool) -> tuple[int, int]:
    """Return the images and channels of a tile of at most so many planes.

    They are as many images as can be, and whole blocks of channels, which are turned together.
    """
    C = geometry.C
    block = min(planes, -(-C // max(1, C // CHANNELS_READ))) if turned else 1
    blocks = -(-C // block)
    images = max(1, min(geometry.N, planes // block))
    some = cut_evenly((blocks,), max(1, planes // (block * images)), shares).step[0]
    parts = -(-shares // -(-blocks // some))  # of images, where blocks are too few to share
    return min(images, -(-geometry.N // parts)) or 1, min(some * block, C)


def has_lines(geometry: ConvGeometry, dtype: np.dtype[Any]) -> bool:
    """Say whether each channel sees itself alone, and its lines are worth storing.

    Not where they would be mostly zeros, nor where a stride leaves lines of less than 16 outputs.
    """
    if not geometry.depthwise or dtype.kind not in "fc":
        return False
    stored = math.prod(axis.length for axis in _axes_of(geometry))
    long = max(geometry.stride) == 1 or geometry.out[-1] >= SHORT_LINE
    return long and stored <= MOST_STORED * geometry.positions


def _axes_of(geometry: ConvGeometry) -> tuple[Axis, ...]:
    sizes = (geometry.size, geometry.out, geometry.kernel, geometry.stride, geometry.dilation)
    before, _ = zip(*geometry.padding, strict=True)
    return tuple(map(axis_of, *sizes, before))


def turning_pays(geometry: ConvGeometry, dtype: np.dtype[Any]) -> bool:
    """Say whether channels that come last are sooner turned than multiplied as views."""
    channels, taps = geometry.C, geometry.taps
    if dtype.kind == "c":  # of which there are no views
        return True
    if geometry.ndim == 1:  # whose views are long lines
        return taps >= MANY_TAPS
    least = MANY_TAPS if channels >= MANY_CHANNELS else SOME_TAPS
    return channels < FEW_CHANNELS or taps >= least


def _line(axes: Sequence[Axis], images: int, dtype: np.dtype[Any]) -> _Line:
    shape = (images, *(axis.length for axis in axes))
    numbers = math.prod(shape)
    pieces = -(-numbers * dtype.itemsize // PIECE_BYTES)
    return _Line(shape, pieces, -(-numbers // pieces))


def _steps(axes: Sequence[Axis]) -> list[int]:
    """Return how many numbers of a line are from a cell to the next of each axis."""
    return [math.prod(axis.length for axis in axes[at:]) for at in range(1, len(axes) + 1)]


def _reach(axes: Sequence[Axis], outs: Shape) -> int:
    """Return the largest offset of a tap."""
    lengths = zip(_steps(axes), axes, outs, strict=True)
    return sum(step * (axis.length - out) for step, axis, out in lengths)


def weight_grad(
    plan: DotsPlan, blas: OpenBlas | None, dout: Array, x: Array, dw: Array | None, db: Array | None
) -> Work:
    """Return what fills ``dw`` (C, 1, *kernel) and ``db`` (C,); None is left out.

    A private BLAS only turns channels that come last, sooner than NumPy does.
    """
    geometry, images_of = plan.geometry, plan.tiling.step[0]
    x, dout = x.swapaxes(0, 1), dout.swapaxes(0, 1)
    shape = (max(plan.tiling.counts[0], 1), geometry.C)  # of no images: zeros
    dw_sums, db_sums = np.zeros((*shape, *geometry.kernel), plan.dtype), np.zeros(shape, plan.dtype)

    def add_up(index: int, scratch: Scratch) -> None:
        images, channels, *outs = plan.tiling[index]
        given, seen = dout[channels, images], x[channels, images]
        line = _line(plan.axes, given.shape[1], plan.dtype)
        lie, numbers, dtype = line.shape, line.numbers, plan.dtype
        # No name keeps what was turned: it has to go before x, which may be larger, is turned.
        douts = store(
            scratch, "dout", _turned(plan, blas, scratch, given), lie, outs, numbers, dtype
        )
        part = images.start // images_of
        if db is not None:
            db_sums[part, channels] = douts.sum(axis=1)
        if dw is not None:
            cells = seen if _has_phases(geometry) else _turned(plan, blas, scratch, seen)
            sums = _dots(plan, scratch, cells, douts, line)
            if not np.isfinite(sums).all():
                outs_last, sums_last = (np.moveaxis(each, 0, -1) for each in (given, sums))
                box = whole(geometry.out)
                multiply_inside(geometry, outs_last, seen[:, None].conj(), box, sums_last)
            dw_sums[part, channels] = sums

    def finish(workers: int) -> None:
        if dw is not None:
            dw[:, 0] = total_of(dw_sums)
        if db is not None:
            db[...] = total_of(db_sums)

    return Work(add_up, finish)


def _has_phases(geometry: ConvGeometry) -> bool:
    """Say whether the cells of x are stored by phases, which are copied from where x lies."""
    return max(geometry.stride) > 1


def _turned(plan: DotsPlan, blas: OpenBlas | None, scratch: Scratch, image: Array) -> Array:
    """Return ``image[c, n, *cells]``, or a turned copy if a private BLAS makes one sooner."""
    if not plan.turned or blas is None or image.dtype not in blas.types:
        return image
    turned = scratch.array("turned", image.shape, image.dtype)
    copies = copies_for(image, turned, each_image=False)
    if copies is None:
        return image
    blas.copy(copies, image, turned)
    return turned


def _dots(plan: DotsPlan, scratch: Scratch, x: Array, douts: Array, line: _Line) -> Array:
    """Return dw (c, *kernel) of ``x[c, n, *size]`` and the lines of dout, ``douts``."""
    dw = np.empty((len(x), *plan.geometry.kernel), plan.dtype)
    steps, reach = _steps(plan.axes), _reach(plan.axes, plan.geometry.out)
    apart = [d * step for d, step in zip(plan.geometry.dilation, steps, strict=True)]
    douts = douts.reshape(len(x), line.pieces, *[1] * len(steps), line.length)
    for turns in product(*(axis.turns for axis in plan.axes)):
        cells = x[last(turn.cells for turn in turns)]
        stored = [turn.stored for turn in turns]
        xs = store(scratch, "x", cells, line.shape, stored, line.numbers + reach, plan.dtype)
        offset = sum(turn.offset * step for turn, step in zip(turns, steps, strict=True))
        cols = np.ndarray(
            (len(x), line.pieces, *(turn.many for turn in turns), line.length),
            plan.dtype,
            xs,
            offset * xs.itemsize,
            [n * xs.itemsize for n in (line.numbers + reach, line.length, *apart, 1)],
        )
        # dw (t) = cols (t, p) @ dout (p), of each channel and piece
        dw[:, *(turn.taps for turn in turns)] = np.vecdot(cols, douts).sum(axis=1)
    return dw
