"""Backward to the input, the implicit way: dx_t += W_t.T dout, tile by tile of the input.

Every pair of an output and a tap belongs to one cell, so tiles of cells share no work and need no
order: a tile's owner makes all that is added to it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import most_outputs, outputs_touching
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
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Room, Weights

__all__ = ["input_grad", "plan_input_grad"]


@lru_cache(maxsize=256)
def plan_input_grad(
    geometry: ConvGeometry, layout: str, dtype: np.dtype[Any], workspace: int, *, packs: bool
) -> ImplicitPlan:
    """Draw the tiles of a pass to the input, over (groups, N, *size, chunks of C)."""
    arrangement = arrangement_for(geometry, layout, "dx", packs=packs)
    shared = weight_bytes(geometry, arrangement, dtype)
    _, C, _ = channels_in_groups(geometry, arrangement)
    available, shares = workspace - shared, shares_of(geometry, arrangement)
    tiling = tiles_of(geometry, arrangement, geometry.size, "dx", dtype, available, shares)
    groups, n, *cells, part = tiling.step
    outs = most_outputs(geometry, tuple(cells))
    channels = min(part * arrangement.chunk(C), C)
    numbers = tile_numbers(geometry, arrangement, "dx", groups, channels, n, tuple(cells), outs)
    return ImplicitPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=worker_bytes(geometry, numbers, groups * n, outs, dtype),
        shared_bytes=shared,
        work=work_of(geometry, arrangement),
        geometry=geometry,
        dtype=dtype,
        arrangement=arrangement,
    )


def input_grad(
    plan: ImplicitPlan,
    blas: OpenBlas,
    shared: Scratch,
    dout: Array,
    weights: Weights,
    b: Array | None,
    dx: Array,
) -> Work:
    """Return what fills ``dx`` with col2im(W.T @ dout), plus ``b`` (C,) in a transposed pass."""
    geometry, arrangement = plan.geometry, plan.arrangement
    G, _, F = channels_in_groups(geometry, arrangement)
    dx, dout = dx.swapaxes(0, 1), dout.swapaxes(0, 1)

    def arranged(w: Array, room: Room) -> Arranged:
        return arrangement.input_grad_weights(w.reshape(G, F, *w.shape[1:]), plan.dtype, room)

    W = weights.form(("input_grad", arrangement, G, plan.dtype), arranged, shared.array)
    bias = None if b is None else b.astype(plan.dtype)

    def draw(index: int) -> Step:
        groups, images, *cells, part = plan.tiling[index]
        box = outputs_touching(geometry, tuple(cells))
        return step_of(plan, "dx", groups, part, images, box, tuple(cells))

    def fill(index: int, scratch: Scratch) -> None:
        step = plan.step(index, draw)
        target = dx[step.made]
        w_part = W.part(blas, scratch, step.groups, step.part)
        lines = loaded(plan, blas, scratch, "dout", dout, step)
        sums = arrangement.room(scratch, "dx", target, step.tile, plan.dtype)
        arrangement.input_grad(blas, step.tile, lines, w_part, sums)
        b_part = None if bias is None else bias[step.made[0]]
        arrangement.store(blas, scratch, "dx", sums, target, step.tile, b_part)

    return Work(fill)
