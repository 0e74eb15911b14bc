"""Forward, the implicit way: y = sum over taps of W_t x_t, plus b, tile by tile of outputs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.columns import by_group
from im2col_conv.engine.implicit.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.lines import move, new_lines, row_length
from im2col_conv.engine.implicit.plan import ImplicitPlan, channels_of, tiles_of
from im2col_conv.engine.implicit.tile_products import forward_products
from im2col_conv.engine.implicit.weights import pack
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.workers import Scratch, run_tasks
from im2col_conv.geometry import ConvGeometry

__all__ = ["forward", "plan_forward"]


@lru_cache(maxsize=256)
def plan_forward(geometry: ConvGeometry, dtype: np.dtype[Any], workspace: int) -> ImplicitPlan:
    """Draw the tiles of a forward pass, over (groups, blocks of F, N, *out)."""
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    shared = geometry.F * geometry.gemm.K * dtype.itemsize
    unit = (row_length(F) + row_length(C)) * dtype.itemsize
    tiling = tiles_of(geometry, geometry.out, F, unit, workspace - shared)
    _, _, n, *box = tiling.step
    cells = most_cells(geometry, tuple(box))
    numbers = n * (tiling.cells // n * row_length(F) + cells * row_length(C))
    return ImplicitPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=numbers * dtype.itemsize,
        shared_bytes=shared,
        flops=geometry.flops,
        geometry=geometry,
        dtype=dtype,
    )


def forward(
    plan: ImplicitPlan,
    blas: OpenBlas,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    workers: int,
    workspace: int,
) -> None:
    """Fill ``y`` (N, F, *out) with the convolution of ``x`` (N, C, *size) and ``w``, plus ``b``."""
    geometry, G = plan.geometry, plan.geometry.groups
    C, F = geometry.C // G, geometry.F // G
    x, y = by_group(x, G), by_group(y, G)
    W = pack(w.reshape(G, F, C, geometry.taps).swapaxes(1, 2), plan.dtype)
    bias = np.zeros((G, F), plan.dtype) if b is None else b.reshape(G, F)

    def fill(index: int, scratch: Scratch) -> None:
        groups, part, images, *box = plan.tiling[index]
        g, f = groups.start, channels_of(part, F)
        cells = cells_seen(geometry, tuple(box))
        source = x[g, :, images, *cells]
        target = y[g, f, images, *box]
        tile = plan.tile(source.shape[1], tuple(box), cells, C, target.shape[0])
        lines, x_memory = new_lines(scratch, "x", source.shape, plan.dtype, tile.interleaved)
        sums, y_memory = new_lines(scratch, "y", target.shape, plan.dtype, tile.interleaved)
        move(blas, source, lines)
        y_memory[..., : target.shape[0]] = bias[g, f]
        # y lines (L, F) += x lines (L, C) @ W_t (C, F)
        blas.run(forward_products(tile), x_memory, W[g, part], y_memory)
        move(blas, sums, target)

    run_tasks(fill, plan.tasks, workers_for(plan, workers, workspace))
