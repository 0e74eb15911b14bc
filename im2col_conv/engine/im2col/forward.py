"""Forward, y = W @ cols + b, in tiles of output positions, and of filters where these are few."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.arithmetic import Arithmetic, add_to_rows, arithmetic_for
from im2col_conv.engine.im2col import depthwise, toeplitz
from im2col_conv.engine.im2col.columns import (
    Columns,
    as_matrices,
    columns_for,
    cut_by_image,
    pays_by_image,
)
from im2col_conv.engine.im2col.depthwise import ViewedColumns, viewed_columns
from im2col_conv.engine.im2col.gathering import Band, band_of, column_bytes, gather_tile
from im2col_conv.engine.im2col.toeplitz import ToeplitzLines, toeplitz_lines
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import (
    Tiling,
    affordable,
    copies_alone,
    cut,
    is_small,
    shared_positions,
    shares_for,
)
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry

__all__ = ["ForwardPlan", "forward", "plan_forward"]


# Measured: docs/ideas.md.
LEAST_FILTERS = 128  # of a task, each of which has the columns copied by BLAS


@dataclass(frozen=True)
class ForwardPlan(Plan):
    """Tiles over (N, groups, *out), multiplied as a whole or ``by_image``.

    Or as ``views``, or without columns by ``squares`` of a Toeplitz matrix. A tile of columns is
    several tasks, one for each of its ``parts`` of the filters.
    """

    columns: Columns
    arithmetic: Arithmetic
    by_image: bool = False
    parts: int = 1
    views: ViewedColumns | None = None
    squares: ToeplitzLines | None = None


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
    views = viewed_columns(geometry, layout, arithmetic.dtype, workspace)
    squares = None if views else toeplitz_lines(geometry, layout, arithmetic.dtype, workspace)
    uncopied = views or squares
    if uncopied is not None:
        return ForwardPlan(
            tiling=uncopied.tiling,
            tasks=uncopied.tiling.boxes,
            worker_bytes=uncopied.tile_bytes,
            shared_bytes=uncopied.weight_bytes,
            work=uncopied.work,
            columns=Columns(geometry, rows=views is not None),
            arithmetic=arithmetic,
            views=views,
            squares=squares,
        )
    _, _, K = geometry.gemm
    F = geometry.F // geometry.groups
    by_image = pays_by_image(geometry, geometry.C // geometry.groups)
    unit = (
        column_bytes(K + by_image, arithmetic.operand_type(x_type))
        + F * arithmetic.dtype.itemsize
        + arithmetic.extra_bytes(F + K)
    )
    shared = geometry.F * K * arithmetic.dtype.itemsize
    extent = (geometry.N, geometry.groups, *geometry.out)
    units = shared_positions(geometry, unit)
    units = affordable(geometry, units, unit, workspace - shared)
    tiling = cut(extent, units)
    parts = _parts(geometry, tiling)
    copied = column_bytes(K, arithmetic.operand_type(x_type)) * tiling.cells
    return ForwardPlan(
        tiling=tiling,
        tasks=tiling.boxes * parts,
        worker_bytes=unit * tiling.cells,
        shared_bytes=shared,
        work=geometry.flops,
        at_product=parts == 1 and copies_alone(geometry.flops, copied, geometry.out[-1]),
        columns=columns,
        arithmetic=arithmetic,
        by_image=by_image,
        parts=parts,
    )


def _parts(geometry: ConvGeometry, tiling: Tiling) -> int:
    """Return in how many parts the filters are multiplied, where tiles are too few to share."""
    if is_small(geometry.flops):
        return 1
    wanted = -(-shares_for(geometry.flops) // max(tiling.boxes, 1))
    return max(1, min(wanted, geometry.F // geometry.groups // LEAST_FILTERS))


class _Step(NamedTuple):
    """A task: its tile, and indices of x, y [g, c, n, *cells], W and b (g, 1, f, K)."""

    tile: int
    seen: tuple[Any, ...]
    made: tuple[Any, ...]
    weights: tuple[Any, ...]
    band: Band


def forward(plan: ForwardPlan, x: Array, w: Array, b: Array | None, y: Array) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``."""
    geometry, columns, arithmetic = plan.columns.geometry, plan.columns, plan.arithmetic
    if plan.views is not None:
        return depthwise.forward(columns, plan.views, arithmetic.dtype, x, w, b, y)
    if plan.squares is not None:
        return toeplitz.forward(geometry, plan.squares, arithmetic.dtype, x, w, b, y)
    x, y = by_group(x, geometry.groups), by_group(y, geometry.groups)
    W = columns.weights(w, arithmetic.operand_type(w.dtype))
    bias = None if b is None else b.reshape(geometry.groups, -1, 1).astype(arithmetic.dtype)
    x_type, K, F = arithmetic.operand_type(x.dtype), columns.window, y.shape[1]
    ones = False
    if plan.by_image and bias is not None and W.dtype == bias.dtype and not columns.rows:
        W, ones = np.concatenate((W, bias), axis=-1), True

    def draw(index: int) -> _Step:
        tile, part = divmod(index, plan.parts)
        images, groups, *box = plan.tiling[tile]
        filters = slice(part * F // plan.parts, (part + 1) * F // plan.parts)
        seen, made = (groups, slice(None), images), (groups, filters, images, *box)
        return _Step(tile, seen, made, (groups, None, filters), band_of(columns, tuple(box)))

    def fill(index: int, scratch: Scratch) -> None:
        step = plan.step(index, draw)
        cols = scratch.known("cols", step.tile) if plan.parts > 1 else None
        if cols is None:
            cols = gather_tile(columns, scratch, x[step.seen], x_type, step.band, ones=ones)
            scratch.know("cols", step.tile, cols)
        made, terms = y[step.made], cols.shape[1]
        product = as_matrices(made, arithmetic.dtype, by_image=plan.by_image)
        in_place = product is not None
        if product is None:
            shape = (len(made), 1, made.shape[1], cols.shape[-1])
            product = scratch.array("y", shape, arithmetic.dtype)
        scratch.begin_product()
        # y (g, m, F, L) = W (g, 1, F, K) @ cols (g, m, K, L), of all images or of one each
        cols = cut_by_image(cols, product.shape[1])
        W_part = W[step.weights]
        if terms < W_part.shape[-1]:  # cols are a view of x, which has no ones below it
            W_part = W_part[..., :terms]
        arithmetic.matmul(W_part, cols, product)
        if bias is not None and terms == K:
            _add_bias(product, bias[step.weights])
        if not in_place:
            made[...] = product.reshape(made.shape)

    return Work(fill)


def _add_bias(product: Array, bias: Array) -> None:
    """Add ``bias[g, 1, f, 1]`` to ``product[g, m, f, L]``, by its rows if filters are innermost."""
    if len(product) == 1 and product.strides[-2] < product.strides[-1]:
        add_to_rows(product[0].swapaxes(-2, -1), bias.reshape(-1))
    else:
        product += bias
