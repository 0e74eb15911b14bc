"""Backward to the weights, the implicit way: dW_t = dout x_t.T, and db = dout summed.

A task is a chunk of filters and a part of the tiles; parts are partial sums, of a fixed number, and
added in order, so that the result does not depend on who made which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.plan import (
    ImplicitPlan,
    arrangement_for,
    channels_in_groups,
    channels_of,
    shares_of,
    tiles_of,
    weight_bytes,
    work_of,
    worker_bytes,
)
from im2col_conv.engine.implicit.tile import Shape
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import total_of
from im2col_conv.engine.tiling import SHARES, Tiling
from im2col_conv.engine.workers import Scratch, run_tasks
from im2col_conv.geometry import ConvGeometry

__all__ = ["plan_weight_grad", "weight_grad"]

CHEAP_SUM = 2**20  # bytes
WORTH_SHARING = 2**20  # bytes of sums that pay for waking a second worker


@dataclass(frozen=True, kw_only=True)
class WeightGradPlan(ImplicitPlan):
    """Tiles over (N, *out), ``sums`` partial sums, chunks over (groups, blocks of F)."""

    sums: int
    chunks: Tiling

    @property
    def tile_shape(self) -> Shape:
        images, *positions = self.tiling.step
        return (images, 1, *positions)


@lru_cache(maxsize=256)
def plan_weight_grad(
    geometry: ConvGeometry, dtype: np.dtype[Any], workspace: int
) -> WeightGradPlan:
    """Draw the tiles, partial sums and chunks of a pass to the weights."""
    arrangement, shares = arrangement_for(geometry), shares_of(geometry)
    sum_bytes = weight_bytes(geometry, arrangement, dtype)
    G, C, F = channels_in_groups(geometry, arrangement)
    most = max(1, min(shares, workspace // 2 // sum_bytes - 1))
    available = workspace - (most + 1) * sum_bytes
    whole = tiles_of(geometry, arrangement, geometry.out, F, dtype, available)
    tiling = Tiling(whole.extent[1:-1], whole.step[1:-1])
    # Bands: some planes a task. Else chunks copy the same cells each, so sums are shared instead
    # where it costs little to add them up.
    groups, blocks = whole.extent[0], whole.extent[-1]
    step = whole.step[-1] if geometry.groups > G else 1
    if geometry.groups == G and sum_bytes <= CHEAP_SUM:
        step = max(1, min(groups * blocks * min(most, tiling.boxes) // shares, blocks))
    chunks = Tiling((groups, blocks), (1, step))
    sums = max(1, min(-(-shares // chunks.boxes), most, tiling.boxes))
    n, *box = tiling.step
    numbers = arrangement.numbers("dout.T", (F, n, *box), 1) + arrangement.numbers(
        "x", (C, n, *most_cells(geometry, tuple(box))), geometry.stride[-1]
    )
    # A sum that is the only one of its chunk belongs to the worker who makes it.
    own_bytes = sum_bytes // (groups * blocks) * chunks.cells if sums == 1 else 0
    tile_bytes = worker_bytes(geometry, arrangement, numbers, n, tuple(box), dtype)
    return WeightGradPlan(
        tiling=tiling,
        tasks=sums * chunks.boxes,
        worker_bytes=tile_bytes + own_bytes,
        shared_bytes=sums * sum_bytes if sums > 1 else 0,
        work=work_of(geometry),
        geometry=geometry,
        dtype=dtype,
        arrangement=arrangement,
        sums=sums,
        chunks=chunks,
    )


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
    geometry, arrangement = plan.geometry, plan.arrangement
    G, _, F = channels_in_groups(geometry, arrangement)
    x, dout = by_group(x, G), by_group(dout, G)
    w_shape = (G, F, *geometry.w_shape[1:])
    dw = None if dw is None else dw.reshape(w_shape)
    sums_shape = arrangement.weight_sums(w_shape)
    dw_sums = shared.array("sums", (plan.sums * (plan.sums > 1), *sums_shape), plan.dtype)
    db_sums = np.zeros((plan.sums, G, F), plan.dtype)

    def channels(part: slice) -> slice:
        return channels_of(part, arrangement.chunk(F), F)

    def add_tiles(index: int, scratch: Scratch) -> None:
        number, chunk = divmod(index, plan.chunks.boxes)
        groups, part = plan.chunks[chunk]
        g, f = groups.start, channels(part)
        if dw is None:
            total = db_sums  # as good as any: nothing is added to it
        elif plan.sums > 1:
            total = dw_sums[number, g, part]
            total[...] = 0
        else:
            shape = (part.stop - part.start, *sums_shape[2:])
            total = scratch.array("dw", shape, plan.dtype)
            total[...] = 0
        tiles = plan.tiling.boxes
        for at in range(number * tiles // plan.sums, (number + 1) * tiles // plan.sums):
            images, *box = plan.tiling[at]
            cells = cells_seen(geometry, tuple(box))
            source, given = x[g, arrangement.partners(f), images, *cells], dout[g, f, images, *box]
            douts = arrangement.load(blas, scratch, "dout.T", given, 1, plan.dtype)
            if db is not None:
                db_sums[number, g, f] += arrangement.sums(douts, given)
            if dw is not None:
                tile = plan.tile(source, given, tuple(box), cells)
                seen = (plan, g, arrangement.partners(f), at)
                lines = scratch.known("x", seen)
                if lines is None:
                    lines = arrangement.load(blas, scratch, "x", source, plan.stride, plan.dtype)
                    scratch.know("x", seen, lines)
                arrangement.weight_grad(blas, tile, douts, lines, total)
        if dw is not None and plan.sums == 1:
            arrangement.unpack(blas, scratch, total, dw[g, f])

    def add_sums(workers: int) -> None:
        if db is not None:
            db[...] = total_of(db_sums).reshape(db.shape)
        if dw is None or plan.sums == 1:
            return
        step = -(-plan.chunks.extent[1] // SHARES)
        units = Tiling(plan.chunks.extent, (1, step))

        def add(index: int, scratch: Scratch) -> None:
            groups, part = units[index]
            total = total_of(dw_sums[:, groups.start, part])
            arrangement.unpack(blas, scratch, total, dw[groups.start, channels(part)])

        run_tasks(add, units.boxes, workers if dw_sums.nbytes >= WORTH_SHARING else 1)

    return Work(add_tiles, add_sums)
