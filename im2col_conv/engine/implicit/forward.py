"""Forward, the implicit way: y = sum over taps of W_t x_t, plus b, tile by tile of outputs."""

from __future__ import annotations

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
    tiles_of,
    weight_bytes,
    work_of,
    worker_bytes,
)
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.plan import workers_for
from im2col_conv.engine.workers import Scratch, run_tasks
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Weights

__all__ = ["forward", "plan_forward"]


@lru_cache(maxsize=256)
def plan_forward(geometry: ConvGeometry, dtype: np.dtype[Any], workspace: int) -> ImplicitPlan:
    """Draw the tiles of a forward pass, over (groups, blocks of F, N, *out)."""
    arrangement = arrangement_for(geometry)
    shared = weight_bytes(geometry, arrangement, dtype)
    _, C, F = channels_in_groups(geometry, arrangement)
    tiling = tiles_of(geometry, arrangement, geometry.out, F, dtype, workspace - shared)
    _, _, n, *box = tiling.step
    numbers = arrangement.numbers("y", (F, n, *box), 1) + arrangement.numbers(
        "x", (C, n, *most_cells(geometry, tuple(box))), geometry.stride[-1]
    )
    return ImplicitPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=worker_bytes(geometry, arrangement, numbers, n, tuple(box), dtype),
        shared_bytes=shared,
        work=work_of(geometry),
        geometry=geometry,
        dtype=dtype,
        arrangement=arrangement,
    )


def forward(
    plan: ImplicitPlan,
    blas: OpenBlas,
    x: Array,
    weights: Weights,
    b: Array | None,
    y: Array,
    workers: int,
    workspace: int,
) -> None:
    """Fill ``y`` (N, F, *out) with the convolution of ``x`` (N, C, *size) and ``w``, plus ``b``."""
    geometry, arrangement, stride = plan.geometry, plan.arrangement, plan.stride
    G, _, F = channels_in_groups(geometry, arrangement)
    workers = workers_for(plan, workers, workspace)
    x, y = by_group(x, G), by_group(y, G)

    def arranged(w: Array) -> Array:
        by_filter = w.reshape(G, F, *w.shape[1:])
        return arrangement.forward_weights(by_filter, plan.dtype, blas, workers)

    W = weights.form(("forward", arrangement, G, plan.dtype), arranged)
    bias = np.zeros((G, F), plan.dtype) if b is None else b.reshape(G, F).astype(plan.dtype)

    def fill(index: int, scratch: Scratch) -> None:
        groups, part, images, *box = plan.tiling[index]
        g, f = groups.start, channels_of(part, arrangement.chunk(F), F)
        cells = cells_seen(geometry, tuple(box))
        source, target = x[g, arrangement.partners(f), images, *cells], y[g, f, images, *box]
        tile = plan.tile(source, target, tuple(box), cells)
        lines = arrangement.load(blas, scratch, "x", source, stride, plan.dtype)
        sums = arrangement.start(scratch, "y", target, 1, bias[g, f])
        arrangement.forward(blas, tile, lines, W[g, part], sums)
        arrangement.store(blas, scratch, "y", sums, target, 1)

    run_tasks(fill, plan.tasks, workers)
