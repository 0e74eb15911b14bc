"""Forward, the implicit way: y = sum over taps of W_t x_t, plus b, tile by tile of outputs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import cells_seen, most_cells
from im2col_conv.engine.implicit.arrangements import arrangement_for
from im2col_conv.engine.implicit.plan import (
    ImplicitPlan,
    Step,
    channels_in_groups,
    loaded,
    shares_of,
    step_of,
    tile_numbers,
    tiles_of,
    weight_bytes,
    work_of,
    worker_bytes,
)
from im2col_conv.engine.implicit.weights import Arranged
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.openblas import OpenBlas
from im2col_conv.engine.tiling import copies_alone
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room, Weights

__all__ = ["forward", "plan_forward"]


@lru_cache(maxsize=256)
def plan_forward(
    geometry: ConvGeometry, layout: str, dtype: np.dtype[Any], workspace: int, *, packs: bool
) -> ImplicitPlan:
    """Draw the tiles of a forward pass, over (groups, N, *out, chunks of F)."""
    arrangement = arrangement_for(geometry, layout, "y", packs=packs)
    shared = weight_bytes(geometry, arrangement, dtype)
    _, C, F = channels_in_groups(geometry, arrangement)
    available, shares = workspace - shared, shares_of(geometry, arrangement)
    tiling = tiles_of(geometry, arrangement, geometry.out, "y", dtype, available, shares)
    groups, n, *box, part = tiling.step
    outs, cells = tuple(box), most_cells(geometry, tuple(box))
    filters = min(part * arrangement.chunk(F), F)
    numbers = tile_numbers(geometry, arrangement, "y", groups, filters, n, cells, outs)
    copied = arrangement.numbers("x", groups * C, n, cells, outs) * geometry.stride[-1]
    arranged = filters * C * geometry.taps
    work = work_of(geometry, arrangement)
    # Weights take about three times as long as lines do, and cells apart as often as their stride.
    copied_bytes = (copied + 3 * arranged) * dtype.itemsize
    return ImplicitPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=worker_bytes(geometry, numbers, groups * n, outs, dtype),
        shared_bytes=shared,
        work=work,
        at_product=copies_alone(work, copied_bytes, outs[-1]),
        geometry=geometry,
        dtype=dtype,
        arrangement=arrangement,
        many_weights=arranged > copied,
    )


def forward(
    plan: ImplicitPlan,
    blas: OpenBlas,
    shared: Scratch,
    x: Array,
    weights: Weights,
    b: Array | None,
    y: Array,
) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``."""
    geometry, arrangement = plan.geometry, plan.arrangement
    G, _, F = channels_in_groups(geometry, arrangement)
    x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)

    def arranged(w: Array, room: Room) -> Arranged:
        return arrangement.forward_weights(w.reshape(G, F, *w.shape[1:]), plan.dtype, room)

    W = weights.form(("forward", arrangement, G, plan.dtype), arranged, shared.array)
    bias = None if b is None else b.astype(plan.dtype)

    def draw(index: int) -> Step:
        groups, images, *box, part = plan.tiling[index]
        cells = cells_seen(geometry, tuple(box))
        return step_of(plan, "y", groups, part, images, tuple(box), cells)

    def fill(index: int, scratch: Scratch) -> None:
        step = plan.step(index, draw)
        target = y[step.made]
        if plan.many_weights and scratch.of_helper:  # while the caller arranges its own
            lines = loaded(plan, blas, scratch, "x", x, step)
            w_part = W.part(blas, scratch, step.groups, step.part)
        else:
            w_part = W.part(blas, scratch, step.groups, step.part)
            lines = loaded(plan, blas, scratch, "x", x, step)
        sums = arrangement.room(scratch, "y", target, step.tile, plan.dtype)
        b_part = None if bias is None else bias[step.made[0]]
        scratch.begin_product()
        arrangement.forward(blas, step.tile, lines, w_part, sums, b_part)
        arrangement.store(blas, scratch, "y", sums, target, step.tile, None)

    return Work(fill)
