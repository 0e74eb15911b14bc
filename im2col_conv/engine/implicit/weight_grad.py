"""Backward to the weights, the implicit way: dW_t = dout x_t.T, and db = dout summed.

A task is a chunk of filters and a part of the tiles; parts are partial sums, of a fixed number, and
added in order, so that the result does not depend on who made which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.columns import by_group
from im2col_conv.engine.implicit.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.lines import blocks, move, new_lines, row_length
from im2col_conv.engine.implicit.plan import ImplicitPlan, channels_of, tiles_of
from im2col_conv.engine.implicit.tile_products import weight_grad_products
from im2col_conv.engine.implicit.weights import packed_shape, unpack
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.tiling import SHARES, Tiling, is_small
from im2col_conv.engine.workers import Scratch, run_tasks
from im2col_conv.geometry import ConvGeometry

__all__ = ["plan_weight_grad", "weight_grad"]


@dataclass(frozen=True, kw_only=True)
class WeightGradPlan(ImplicitPlan):
    """Tiles over (N, *out), ``sums`` partial sums, chunks over (groups, blocks of F)."""

    sums: int
    chunks: Tiling


@lru_cache(maxsize=256)
def plan_weight_grad(
    geometry: ConvGeometry, dtype: np.dtype[Any], workspace: int
) -> WeightGradPlan:
    """Draw the tiles, partial sums and chunks of a pass to the weights."""
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    sum_bytes = geometry.F * geometry.gemm.K * dtype.itemsize
    unit = (row_length(F) + row_length(C)) * dtype.itemsize
    most = max(1, min(SHARES, workspace // 2 // sum_bytes - 1))
    tiling = tiles_of(geometry, geometry.out, F, unit, workspace - (most + 1) * sum_bytes)
    tiling = Tiling(tiling.extent[2:], tiling.step[2:])
    chunks = Tiling((geometry.groups, len(blocks(F))), (1, 1))
    sums = 1
    if not is_small(geometry.flops):
        sums = max(1, min(-(-SHARES // chunks.boxes), most, tiling.boxes))
    n, *box = tiling.step
    numbers = n * (tiling.cells // n * row_length(F) + most_cells(geometry, tuple(box)) * row_length(C))
    return WeightGradPlan(
        tiling=tiling,
        tasks=sums * chunks.boxes,
        worker_bytes=numbers * dtype.itemsize,
        shared_bytes=sums * sum_bytes,
        flops=geometry.flops,
        geometry=geometry,
        dtype=dtype,
        sums=sums,
        chunks=chunks,
    )


def weight_grad(
    plan: WeightGradPlan,
    blas: OpenBlas,
    dout: Array,
    x: Array,
    dw: Array | None,
    db: Array | None,
    workers: int,
    workspace: int,
) -> None:
    """Fill ``dw`` (F, C // groups, *kernel) and ``db`` (F,); what is None is not computed."""
    geometry, G = plan.geometry, plan.geometry.groups
    C, F = geometry.C // G, geometry.F // G
    x, dout = by_group(x, G), by_group(dout, G)
    packed = packed_shape(G, C, F, geometry.taps)
    dw_sums = np.empty((plan.sums, *packed), plan.dtype)
    db_sums = np.zeros((plan.sums, G, F), plan.dtype)

    def add_tiles(index: int, scratch: Scratch) -> None:
        number, chunk = divmod(index, plan.chunks.boxes)
        groups, part = plan.chunks[chunk]
        g, f = groups.start, channels_of(part, F)
        total = dw_sums[number, g, part]
        total[...] = 0
        tiles = plan.tiling.boxes
        for at in range(number * tiles // plan.sums, (number + 1) * tiles // plan.sums):
            images, *box = plan.tiling[at]
            cells = cells_seen(geometry, tuple(box))
            source, given = x[g, :, images, *cells], dout[g, f, images, *box]
            tile = plan.tile(given.shape[1], tuple(box), cells, C, given.shape[0])
            lines, x_memory = new_lines(scratch, "x", source.shape, plan.dtype, tile.interleaved)
            douts, y_memory = new_lines(scratch, "dout", given.shape, plan.dtype, tile.interleaved)
            if db is not None:
                db_sums[number, g, f] += given.sum(axis=tuple(range(1, given.ndim)), dtype=plan.dtype)
            if dw is not None:
                move(blas, source, lines)
                move(blas, given, douts)
                # dW_t (C, F) += x lines.T (C, L) @ dout lines (L, F)
                blas.run(weight_grad_products(tile), x_memory, y_memory, total)

    run_tasks(add_tiles, plan.tasks, workers_for(plan, workers, workspace))
    if dw is not None:
        unpack(_total(dw_sums), dw.reshape(G, F, C, geometry.taps).swapaxes(1, 2))
    if db is not None:
        db[...] = _total(db_sums).reshape(db.shape)


def _total(sums: Array) -> Array:
    """Add the partial sums to the first, in order."""
    total: Array = sums[0]
    for partial in sums[1:]:
        total += partial
    return total
