"""Forward, y = W @ cols + b, tile by tile of output positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.arithmetic import Arithmetic, arithmetic_for
from im2col_conv.engine.im2col.columns import Columns, as_matrix, columns_for
from im2col_conv.engine.im2col.gathering import column_bytes, gather_tile
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import affordable, cut, shared_positions
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry

__all__ = ["ForwardPlan", "forward", "plan_forward"]


@dataclass(frozen=True)
class ForwardPlan(Plan):
    """Tiles over (N, groups, *out)."""

    columns: Columns
    arithmetic: Arithmetic


@lru_cache(maxsize=256)
def plan_forward(
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> ForwardPlan:
    """Draw the tiles of a forward pass from shapes and types alone."""
    arithmetic, columns = arithmetic_for(result), columns_for(geometry, layout)
    _, _, K = geometry.gemm
    F = geometry.F // geometry.groups
    unit = (
        column_bytes(K, arithmetic.operand_type(x_type))
        + F * arithmetic.dtype.itemsize
        + arithmetic.extra_bytes(F + K)
    )
    shared = geometry.F * K * arithmetic.dtype.itemsize
    extent = (geometry.N, geometry.groups, *geometry.out)
    total = geometry.N * geometry.groups * geometry.positions
    units = shared_positions(total, unit, geometry.flops)
    units = affordable(geometry, units, unit, workspace - shared)
    tiling = cut(extent, units)
    return ForwardPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=unit * tiling.cells,
        shared_bytes=shared,
        work=geometry.flops,
        columns=columns,
        arithmetic=arithmetic,
    )


def forward(plan: ForwardPlan, x: Array, w: Array, b: Array | None, y: Array) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``."""
    geometry, columns, arithmetic = plan.columns.geometry, plan.columns, plan.arithmetic
    x, y = by_group(x, geometry.groups), by_group(y, geometry.groups)
    W = columns.weights(w, arithmetic.operand_type(w.dtype))
    bias = None if b is None else b.reshape(geometry.groups, -1, 1).astype(arithmetic.dtype)
    x_type = arithmetic.operand_type(x.dtype)

    def fill(index: int, scratch: Scratch) -> None:
        images, groups, *box = plan.tiling[index]
        cols = gather_tile(columns, scratch, x[groups, :, images], x_type, tuple(box))
        part = y[groups, :, images, *box]
        target = as_matrix(part) if part.dtype == arithmetic.dtype else None
        product = target
        if product is None:
            product = scratch.array("y", (*part.shape[:2], cols.shape[-1]), arithmetic.dtype)
        # y (g, F, L) = W (g, F, K) @ cols (g, K, L)
        arithmetic.matmul(W[groups], cols, product)
        if bias is not None:
            product += bias[groups]
        if target is None:
            part[...] = product.reshape(part.shape)

    return Work(fill)
