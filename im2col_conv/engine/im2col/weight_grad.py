"""Backward to the weights, dw = dout @ cols.T and db = dout @ 1, tile by tile of positions.

All tiles add to the same sum. So that it does not depend on who adds what when, the tiles are dealt
out in order to a fixed number of partial sums; one worker makes a partial sum from first tile to
last, and in the end they are added in order. Where dw is large, that would cost more than it saves:
there is one sum, cut by channels, and a worker gathers the windows of some channels alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.arithmetic import Arithmetic, arithmetic_for, sums_of
from im2col_conv.engine.im2col import depthwise
from im2col_conv.engine.im2col.columns import (
    Columns,
    columns_for,
    cut_by_image,
    pays_by_image,
    tile_matrices,
)
from im2col_conv.engine.im2col.depthwise import ViewedColumns, viewed_columns
from im2col_conv.engine.im2col.gathering import band_of, column_bytes, gather_tile
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Plan, total_of
from im2col_conv.engine.tiling import (
    SHARES,
    TILE_BYTES,
    affordable,
    cut,
    shared_positions,
    shares_for,
)
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices, last, tap_slices, whole

__all__ = ["WeightGradPlan", "plan_weight_grad", "weight_grad"]

# Measured: docs/ideas.md.
CHEAP_SUM = 2**20  # bytes, up to which partial sums cost less than gathers by channels
FEW_WEIGHTS = 2**15  # of an image's dw, which cost little to add to the others'
FEW_FILTERS = 64  # of upright windows' dw, whose transpose is sooner made


@dataclass(frozen=True)
class WeightGradPlan(Plan):
    """Tiles over (N, groups, *out), ``sums`` partial sums of each of some runs of ``channels``."""

    sums: int
    channels: int
    columns: Columns
    arithmetic: Arithmetic
    by_image: bool = False
    views: ViewedColumns | None = None


@lru_cache(maxsize=256)
def plan_weight_grad(
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> WeightGradPlan:
    """Draw the tiles and partial sums of a pass to the weights from shapes and types alone."""
    arithmetic, columns = arithmetic_for(result), columns_for(geometry, layout)
    views = viewed_columns(geometry, layout, arithmetic.dtype, workspace // 2)
    if views is not None:
        sum_bytes = math.prod(geometry.w_shape) * arithmetic.dtype.itemsize
        sums = max(1, min(views.tiling.boxes, SHARES, workspace // 2 // sum_bytes - 1))
        return WeightGradPlan(
            tiling=views.tiling,
            tasks=sums,
            worker_bytes=views.tile_bytes + sum_bytes,
            shared_bytes=sums * sum_bytes if sums > 1 else 0,
            work=views.work,
            columns=Columns(geometry, rows=True),
            arithmetic=arithmetic,
            sums=sums,
            channels=1,
            views=views,
        )
    F, C = geometry.F // geometry.groups, geometry.C // geometry.groups
    sum_bytes = geometry.F * C * geometry.taps * arithmetic.dtype.itemsize
    shares = shares_for(geometry.flops)
    sums, parts = max(1, min(shares, workspace // 2 // sum_bytes)), 1
    if sum_bytes > CHEAP_SUM and geometry.groups == 1:
        sums, parts = 1, min(shares, C)
    channels = -(-C // parts)
    K = channels * geometry.taps
    conjugated = result.kind == "c"  # which takes a copy of the columns
    unit = (
        (1 + conjugated) * column_bytes(K, arithmetic.operand_type(x_type))
        + F * arithmetic.operand_type(dout_type).itemsize
        + arithmetic.extra_bytes(F + K)
        + arithmetic.deep_bytes(F * K)
    )
    extent = (geometry.N, geometry.groups, *geometry.out)
    available = workspace - (sums + 1) * sum_bytes
    units = shared_positions(geometry, unit) if parts == 1 else TILE_BYTES // unit
    units = affordable(geometry, units, unit, available)
    tiling = cut(extent, units)
    sums = max(1, min(sums, tiling.boxes))
    by_image = pays_by_image(geometry, channels) and F * K <= FEW_WEIGHTS
    images = tiling.step[0] if by_image else 1  # each with a product
    return WeightGradPlan(
        tiling=tiling,
        tasks=sums * -(-C // channels),
        worker_bytes=unit * tiling.cells
        + sum_bytes // C * channels * tiling.step[1] // geometry.groups * images
        + (sum_bytes // C * channels if sums == 1 else 0),
        shared_bytes=sums * sum_bytes if sums > 1 else 0,
        work=geometry.flops,
        columns=columns,
        arithmetic=arithmetic,
        sums=sums,
        channels=channels,
        by_image=by_image,
    )


def weight_grad(
    plan: WeightGradPlan,
    dout: Array,
    x: Array,
    dw: Array | None,
    db: Array | None,
) -> Work:
    """Return what fills ``dw`` (F, C // groups, *kernel) and ``db`` (F,); None is left out."""
    geometry, columns, arithmetic = plan.columns.geometry, plan.columns, plan.arithmetic
    x, dout = by_group(x, geometry.groups), by_group(dout, geometry.groups)
    G, F, C = geometry.groups, geometry.F // geometry.groups, geometry.C // geometry.groups
    parts = [slice(c, min(c + plan.channels, C)) for c in range(0, C, plan.channels)]
    weights = None if dw is None else dw.reshape(G, F, C, *geometry.kernel)
    partial = weights is not None and plan.sums > 1
    dw_sums = np.zeros((plan.sums, G, F, C * geometry.taps * partial), arithmetic.dtype)
    db_sums = np.zeros((plan.sums, G, F), arithmetic.dtype)

    def add_tiles(index: int, scratch: Scratch) -> None:
        number, part = divmod(index, len(parts))
        channels, tiles = parts[part], plan.tiling.boxes
        total = dw_sums[number]
        if not partial:
            depth = (channels.stop - channels.start) * geometry.taps
            total = scratch.array("sum", (G, F, depth), arithmetic.dtype)
            total[...] = 0
        for tile in range(number * tiles // plan.sums, (number + 1) * tiles // plan.sums):
            images, groups, *box = plan.tiling[tile]
            given = dout[groups, :, images, *box]
            if db is not None and part == 0:
                db_sums[number, groups] += sums_of(given, arithmetic.dtype, kept=2)
            if weights is not None:
                source = x[groups, channels, images]
                total[groups] += _product(plan, scratch, given, source, tuple(box))
        if weights is not None and not partial:
            weights[:, :, channels] = columns.unpacked(total)

    def add_sums(_: int) -> None:
        if weights is not None and partial:
            weights[...] = columns.unpacked(total_of(dw_sums))
        if db is not None:
            db[...] = total_of(db_sums).reshape(db.shape)

    return Work(add_tiles, add_sums)


def _product(plan: WeightGradPlan, scratch: Scratch, dout: Array, x: Array, box: Slices) -> Array:
    """Return one tile's dout @ cols.T, (g, F, K), of ``dout[g, F, n, *o]``."""
    columns, arithmetic = plan.columns, plan.arithmetic
    if plan.views is not None:
        views, dtype = plan.views, arithmetic.dtype
        return depthwise.weight_product(columns, views, scratch, dout, x, dtype, box)
    x_type = arithmetic.operand_type(x.dtype)
    cols = gather_tile(columns, scratch, x, x_type, band_of(columns, box))
    if arithmetic.dtype.kind == "c":
        cols = np.conjugate(cols)
    dout_type = arithmetic.operand_type(dout.dtype)
    douts = tile_matrices(scratch, "dout", dout, dout_type, by_image=plan.by_image)
    G, m, F, _ = douts.shape
    K = cols.shape[1]
    if m == 1 and (columns.rows or F > FEW_FILTERS):
        product = scratch.array("dw", (G, F, K), arithmetic.dtype)
        # dw (g, F, K) = dout (g, F, L) @ cols.T (g, L, K)
        arithmetic.matmul_deep(douts[:, 0], cols.swapaxes(1, 2), product)
    else:
        each = scratch.array("dw", (G, m, K, F), arithmetic.dtype)
        # dw.T of each image (g, m, K, F) = cols (g, m, K, L) @ dout.T (g, m, L, F)
        arithmetic.matmul_deep(cut_by_image(cols, m), douts.swapaxes(2, 3), each)
        product = (each[:, 0] if m == 1 else each.sum(axis=1)).swapaxes(1, 2)
    if any(map(any, columns.geometry.padding)) and not np.isfinite(product).all():
        _multiply_inside(columns, dout, cols, box, product)
    return product


def _multiply_inside(
    columns: Columns, dout: Array, cols: Array, box: Slices, product: Array
) -> None:
    """Set ``product`` to dout @ cols.T tap by tap, without the positions where a tap is padding.

    There a zero of padding meets an infinity or NaN of dout and makes a NaN that no cell of the
    input has a part in.
    """
    geometry = columns.geometry
    positions = (-1, *(o.stop - o.start for o in box))
    (G, F), C = dout.shape[:2], product.shape[-1] // geometry.taps
    dw = columns.unpacked(product)
    cols = np.moveaxis(columns.unpacked(cols.swapaxes(1, 2)), 1, -1)  # (g, c, *tap, L)
    for tap, outputs, _ in tap_slices(geometry, box, whole(geometry.size)):
        at_tap: Any = tap
        column = cols[:, :, *at_tap].reshape(G, C, *positions)
        # dw_tap (g, F, C) = dout (g, F, L') @ column.T (g, L', C)
        dw[:, :, :, *at_tap] = np.matmul(
            dout[last(outputs)].reshape(G, F, -1),
            column[last(outputs)].reshape(G, C, -1).swapaxes(1, 2),
        )
