"""Backward to the weights, the implicit way: dW_t = dout x_t.T, and db = dout summed.

A task is a chunk of filters and a part of the tiles; parts are partial sums, of a fixed number, and
added in order, so that the result does not depend on who made which.

Kernels of one cell use x where it lies, and turn dout where channels come first; where they come
last, x is read again for each chunk of many filters. With more filters than channels the two are
exchanged then: dw.T = x dout.T is the same pass of the adjoint layer, whose channels are this one's
filters, and "x" and "dout.T" below are dout and x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.arrangements import arrangement_for
from im2col_conv.engine.implicit.plan import (
    ImplicitPlan,
    Step,
    channels_in_groups,
    channels_of,
    loaded,
    shares_of,
    step_of,
    tile_numbers,
    tiles_of,
    weight_bytes,
    work_of,
    worker_bytes,
)
from im2col_conv.engine.implicit.pointwise import Pointwise
from im2col_conv.engine.implicit.tile import Arrangement, Shape
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import total_of
from im2col_conv.engine.tiling import SHARES, Tiling
from im2col_conv.engine.workers import Scratch, run_tasks
from im2col_conv.geometry import ConvGeometry

__all__ = ["plan_weight_grad", "weight_grad"]

CHEAP_SUM = 2**20  # bytes
LEAST_SUMMED = 2048  # positions of a sum that pay for adding it to the others
WORTH_SHARING = 2**20  # bytes of sums that pay for waking a second worker


@dataclass(frozen=True, kw_only=True)
class WeightGradPlan(ImplicitPlan):
    """Tiles over (N, *out), ``sums`` partial sums, chunks over (groups, blocks of F).

    Where x and dout are ``exchanged``, ``geometry`` is the adjoint one, and F the layer's channels.
    """

    sums: int
    chunks: Tiling
    exchanged: bool

    @property
    def holds_blas(self) -> bool:
        """Whether NumPy's BLAS has a part: it adds up db, and looks through dout for infinity."""
        return True

    @property
    def tile_shape(self) -> Shape:
        images, *positions = self.tiling.step
        return (images, self.chunks.step[0], *positions)


@lru_cache(maxsize=256)
def plan_weight_grad(
    geometry: ConvGeometry, layout: str, dtype: np.dtype[Any], workspace: int, *, packs: bool
) -> WeightGradPlan:
    """Draw the tiles, partial sums and chunks of a pass to the weights."""
    arrangement = arrangement_for(geometry, layout, "dout.T", packs=packs)
    sum_bytes = weight_bytes(geometry, arrangement, dtype)
    exchanged = adjoint_of(geometry) if _exchange_pays(geometry, arrangement, sum_bytes) else None
    if exchanged is not None:
        geometry = exchanged
    shares = shares_of(geometry, arrangement)
    G, C, F = channels_in_groups(geometry, arrangement)
    in_place = isinstance(arrangement, Pointwise)
    summed = geometry.N * geometry.positions // LEAST_SUMMED if in_place else shares
    most = max(1, min(shares, summed, workspace // 2 // sum_bytes - 1))
    available = workspace - (most + 1) * sum_bytes
    tiles = most if in_place else shares
    whole = tiles_of(geometry, arrangement, geometry.out, "dout.T", dtype, available, tiles)
    tiling = Tiling(whole.extent[1:-1], whole.step[1:-1])
    groups, blocks, joined = whole.extent[0], whole.extent[-1], whole.step[0]
    if joined > 1 or geometry.groups > G:  # all blocks of these groups, or some planes
        step = whole.step[-1]
    elif sum_bytes >= CHEAP_SUM:
        step = 1
    else:  # chunks copy the same cells each: rather share sums, which costs little
        step = max(1, min(groups * blocks * min(most, tiling.boxes) // shares, blocks))
    chunks = Tiling((groups, blocks), (joined, step))
    sums = max(1, min(-(-shares // chunks.boxes), most, tiling.boxes))
    n, *box = tiling.step
    outs, cells = tuple(box), most_cells(geometry, tuple(box))
    filters = min(step * arrangement.chunk(F), F)
    numbers = tile_numbers(geometry, arrangement, "dout.T", joined, filters, n, cells, outs)
    # A sum that is the only one of its chunk belongs to the worker who makes it.
    own_bytes = sum_bytes // (groups * blocks) * chunks.cells if sums == 1 else 0
    numbers += arrangement.unpacking((F, C, *geometry.kernel))
    tile_bytes = worker_bytes(geometry, numbers, joined * n, outs, dtype)
    return WeightGradPlan(
        tiling=tiling,
        tasks=sums * chunks.boxes,
        worker_bytes=tile_bytes + own_bytes,
        shared_bytes=sums * sum_bytes if sums > 1 else 0,
        work=work_of(geometry, arrangement),
        geometry=geometry,
        dtype=dtype,
        arrangement=arrangement,
        sums=sums,
        chunks=chunks,
        exchanged=exchanged is not None,
    )


def _exchange_pays(geometry: ConvGeometry, arrangement: Arrangement, sum_bytes: int) -> bool:
    """Say whether x, which has fewer channels, is sooner turned, or cut in chunks, than dout."""
    if not isinstance(arrangement, Pointwise) or geometry.F <= geometry.C:
        return False
    _, _, F = channels_in_groups(geometry, arrangement)
    in_chunks = sum_bytes >= CHEAP_SUM and arrangement.chunk(F) < F
    return in_chunks or not arrangement.by_rows


def weight_grad(
    plan: WeightGradPlan,
    blas: OpenBlas,
    shared: Scratch,
    dout: Array,
    x: Array,
    dw: Array | None,
    db: Array | None,
) -> Work:
    """Return what fills ``dw`` (F, C // groups, *kernel) and ``db`` (F,); None is left out."""
    sums = _Sums(plan, blas, shared, dw, db)
    left, right = (dout, x) if plan.exchanged else (x, dout)
    left, right = left.swapaxes(0, 1), right.swapaxes(0, 1)
    arrangement = plan.arrangement

    def draw(key: tuple[int, int]) -> Step:
        (images, *box), (groups, part) = plan.tiling[key[0]], plan.chunks[key[1]]
        cells = cells_seen(plan.geometry, tuple(box))
        return step_of(plan, "dout.T", groups, part, images, tuple(box), cells)

    def add_tiles(index: int, scratch: Scratch) -> None:
        number, chunk = divmod(index, plan.chunks.boxes)
        groups, part = plan.chunks[chunk]
        total = sums.start(number, groups, part, scratch)
        # all chunks of an exchanged layer read the same dout
        summed = db is not None and (part.start == 0 or not plan.exchanged)
        for at in sums.tiles(number):
            step = plan.step((at, chunk), draw)
            given = right[step.made]
            if total is not None or (summed and not plan.exchanged):
                turned = arrangement.load(blas, scratch, "dout.T", given, step.tile, plan.dtype)
            if total is not None or (summed and plan.exchanged):
                lines = loaded(plan, blas, scratch, "x", left, step)
            if total is not None:
                arrangement.weight_grad(blas, step.tile, turned, lines, total)
            if summed and plan.exchanged:
                sums.db[number, step.seen[0]] += arrangement.sums(lines, left[step.seen])
            elif summed:
                sums.db[number, step.made[0]] += arrangement.sums(turned, given)
        if total is not None:
            sums.end(total, groups, part, scratch)

    return Work(add_tiles, sums.finish)


class _Sums:
    """The partial sums of dw and db; a sum of dw that is the only one belongs to who makes it."""

    def __init__(
        self,
        plan: WeightGradPlan,
        blas: OpenBlas,
        shared: Scratch,
        dw: Array | None,
        db: Array | None,
    ) -> None:
        self._plan, self._blas = plan, blas
        G, C, F = channels_in_groups(plan.geometry, plan.arrangement)
        self._chunked = F
        w_shape = (G, F, *plan.geometry.w_shape[1:])
        self._dw_result = None if dw is None else _of_groups(dw, w_shape, plan.exchanged)
        self._db_result = db
        self._shape = plan.arrangement.weight_sums(w_shape)
        self.db = np.zeros((plan.sums, G * (C if plan.exchanged else F)), plan.dtype)
        kept = plan.sums if plan.sums > 1 and dw is not None else 0
        self._dw = shared.array("sums", (kept, *self._shape), plan.dtype)

    def tiles(self, number: int) -> range:
        """Return the tiles of a partial sum, in the order in which they are added."""
        tiles, sums = self._plan.tiling.boxes, self._plan.sums
        return range(number * tiles // sums, (number + 1) * tiles // sums)

    def start(self, number: int, groups: slice, part: slice, scratch: Scratch) -> Array | None:
        """Return a partial sum of dw for some chunks or groups, cleared; None without dw."""
        if self._dw_result is None:
            return None
        if len(self._dw):
            total: Array = self._dw[number, groups, part]
        else:
            shape = (groups.stop - groups.start, part.stop - part.start, *self._shape[2:])
            total = scratch.array("dw", shape, self._plan.dtype)
        total[...] = 0
        return total

    def end(self, total: Array, groups: slice, part: slice, scratch: Scratch) -> None:
        """Fill dw if there is but one sum."""
        if not len(self._dw):
            self._unpack(total, groups, part, scratch)

    def finish(self, workers: int) -> None:
        """Add up partial sums, in order, and fill dw and db with them."""
        if self._db_result is not None:
            self._db_result[...] = total_of(self.db)
        if len(self._dw):
            chunks = self._plan.chunks.extent
            parts = Tiling(chunks, (1, -(-chunks[1] // SHARES)))

            def add(index: int, scratch: Scratch) -> None:
                groups, part = parts[index]
                total = total_of(self._dw[:, groups, part])
                self._unpack(total, groups, part, scratch)

            shared = self._dw.nbytes >= WORTH_SHARING
            run_tasks(add, parts.boxes, workers if shared else 1, holds_blas=False)

    def _unpack(self, total: Array, groups: slice, part: slice, scratch: Scratch) -> None:
        assert self._dw_result is not None  # or there would be no sum of it
        f = channels_of(part, self._plan.arrangement.chunk(self._chunked), self._chunked)
        self._plan.arrangement.unpack(self._blas, scratch, total, self._dw_result[groups, f])


def _of_groups(dw: Array, shape: Shape, exchanged: bool) -> Array:
    """Return dw as a view (g, f, c, *tap); of an adjoint layer f are the channels of this one."""
    g, f, c, *taps = shape
    return dw.reshape(g, c, f, *taps).swapaxes(1, 2) if exchanged else dw.reshape(shape)
