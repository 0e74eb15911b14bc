r"""Small layers: all columns of a pass in one lookup, and one product.

What a small layer takes is the steps of Python that find out what to copy. So they are taken once:
a table says of each number of the column matrix where it stands among the cells,

.. math:: \text{cols}[k, l] = \text{numbers}[\text{table}[k, l]], \qquad
          \text{numbers} = (0 \mid x),

with place 0 for padding. Then

.. math:: y\,(F \times L) = W\,(F \times K) \; \text{cols}\,(K \times L), \qquad
          dw\,(F \times K) = dout\,(F \times L) \; \text{cols}^T\,(L \times K).

dx needs no scatter, whatever the stride. At most one output o meets cell i through tap t: a second
table, which says where it stands among the numbers of dout, makes

.. math:: dx[c, i] = \sum_{f, t} w[f, c, t] \; dout[f, o(i, t)]

a product as well. Zero times infinity would be NaN: where dw is not finite, it is made tile by tile
as that of larger layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.arithmetic import Arithmetic, arithmetic_for, is_finite, sums_of
from im2col_conv.engine.blas import may_share
from im2col_conv.engine.im2col import weight_grad as tiles
from im2col_conv.engine.im2col.columns import (
    LEAST_IMAGE,
    as_matrices,
    cut_by_image,
    tile_matrices,
)
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Plan
from im2col_conv.engine.tiling import Tiling, is_small
from im2col_conv.engine.workers import Scratch, Task, lend_scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import gather, last, tap_slices, whole

__all__ = ["LookupPlan", "forward", "input_grad", "plan_lookup", "weight_grad"]

# Measured: docs/ideas.md.
MOST_NUMBERS = 2**15  # of columns and cells, that are sooner looked up than copied line by line
KEPT = 64  # tables
PLACE = np.dtype(np.intp)  # in which np.take reads a table as it is


@dataclass(frozen=True)
class LookupPlan(Plan):
    """One tile of a geometry, ``by_image`` with a product of each image, else with one of all.

    For dx it is the ``adjoint`` lookup, of dout. ``otherwise`` is the plan of a dw that is not
    finite, where there is padding that an infinity may have met.
    """

    geometry: ConvGeometry
    arithmetic: Arithmetic
    adjoint: bool
    by_image: bool
    shared: bool
    otherwise: tiles.WeightGradPlan | None

    @property
    def holds_blas(self) -> bool:
        """Whether NumPy's BLAS makes a product that it might share among threads."""
        return self.shared


def plan_lookup(
    geometry: ConvGeometry,
    layout: str,
    result: np.dtype[Any],
    workspace: int,
    *,
    adjoint: bool = False,
    otherwise: tiles.WeightGradPlan | None = None,
) -> LookupPlan | None:
    """Draw the plan of a pass that looks up x, or for dx dout; None where there is much of it."""
    arithmetic, G, N = arithmetic_for(result), geometry.groups, geometry.N
    x, y = (geometry.C, *geometry.size), (geometry.F, *geometry.out)
    (C, *cells), (F, *places) = (y, x) if adjoint else (x, y)
    K, L = C // G * geometry.taps, N * math.prod(places)
    numbers = G * K * L + N * C * math.prod(cells)
    by_image = layout == "channels_first" and math.prod(places) >= LEAST_IMAGE
    weights = (2 + by_image * N) * math.prod(geometry.w_shape)
    others = N * (math.prod(x) + math.prod(y)) + weights
    nbytes = (numbers + others) * arithmetic.dtype.itemsize
    nbytes += G * L * arithmetic.extra_bytes(F // G + K) + G * K * L * PLACE.itemsize
    padded = arithmetic.dtype.kind in "fc" and any(map(any, geometry.padding))
    few = 0 < numbers <= MOST_NUMBERS and is_small(2 * F * K * L)
    if not few or nbytes > workspace:
        return None
    extent = (N, G, *places)
    return LookupPlan(
        tiling=Tiling(extent, extent),
        tasks=1,
        worker_bytes=nbytes,
        shared_bytes=0,
        work=geometry.flops,
        geometry=geometry,
        arithmetic=arithmetic,
        adjoint=adjoint,
        by_image=by_image,
        shared=may_share(F // G, K, L, arithmetic.dtype),
        otherwise=otherwise if padded else None,
    )


def forward(plan: LookupPlan, x: Array, w: Array, b: Array | None, y: Array) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``."""
    G, F = plan.geometry.groups, len(w)
    return Work(_multiply(plan, w.reshape(G, 1, F // G, -1), x, b, y))


def input_grad(plan: LookupPlan, dout: Array, w: Array, b: Array | None, dx: Array) -> Work:
    """Return what fills ``dx`` (N, C, *size), plus ``b`` (C,) in a transposed pass."""
    G, (F, C, *_) = plan.geometry.groups, w.shape
    weights = w.reshape(G, 1, F // G, C, -1).swapaxes(2, 3)
    return Work(_multiply(plan, weights.reshape(G, 1, C, -1), dout, b, dx))


def _multiply(plan: LookupPlan, W: Array, read: Array, b: Array | None, made: Array) -> Task:
    """Return what fills ``made`` with products of ``W[g, 1, channels, K]``."""
    G, arithmetic = plan.geometry.groups, plan.arithmetic

    def fill(_: int, scratch: Scratch) -> None:
        cols, target = _columns(plan, scratch, read), by_group(made, G)
        product = as_matrices(target, arithmetic.dtype, by_image=plan.by_image)
        in_place = product is not None
        if product is None:
            shape = (G, 1, W.shape[2], cols.shape[-1])
            product = scratch.array("made", shape, arithmetic.dtype)
        weights = np.ascontiguousarray(W, arithmetic.operand_type(W.dtype))
        # y (g, m, F, L) = W (g, 1, F, K) @ cols (g, m, K, L), of all images or of one each
        arithmetic.matmul(weights, cut_by_image(cols, product.shape[1]), product)
        if b is not None:
            product += b.reshape(G, 1, -1, 1)
        if not in_place:
            target[...] = product.reshape(target.shape)

    return fill


def weight_grad(
    plan: LookupPlan, dout: Array, x: Array, dw: Array | None, db: Array | None
) -> Work:
    """Return what fills ``dw`` (F, C // groups, *kernel) and ``db`` (F,); None is left out."""

    def fill(_: int, scratch: Scratch) -> None:
        douts = by_group(dout, plan.geometry.groups)
        if db is not None:
            db[...] = sums_of(douts, plan.arithmetic.dtype, kept=2).reshape(-1)
        if dw is None:
            return
        product = _product(plan, scratch, douts, x, dw)
        if plan.otherwise is not None and not is_finite(product):
            _run(tiles.weight_grad(plan.otherwise, dout, x, dw, None), plan.otherwise)
        elif product.dtype != dw.dtype:
            dw[...] = product.reshape(dw.shape)

    return Work(fill)


def _product(plan: LookupPlan, scratch: Scratch, dout: Array, x: Array, dw: Array) -> Array:
    """Return dout @ cols.T, (g, F, K), of ``dout[g, F, n, *o]``: a view of ``dw`` if it can be."""
    arithmetic, cols = plan.arithmetic, _columns(plan, scratch, x)
    if arithmetic.dtype.kind == "c":
        cols = np.conjugate(cols)
    dout_type = arithmetic.operand_type(dout.dtype)
    douts = tile_matrices(scratch, "dout", dout, dout_type, by_image=plan.by_image)
    G, m, F, _ = douts.shape
    product = dw.reshape(G, F, -1)
    if dw.dtype != arithmetic.dtype:
        product = scratch.array("dw", product.shape, arithmetic.dtype)
    each = product[:, None]
    if m > 1:
        each = scratch.array("each", (G, m, F, cols.shape[1]), arithmetic.dtype)
    # dw (g, m, F, K) = dout (g, m, F, L) @ cols.T (g, m, L, K), of all images or of one each
    arithmetic.matmul(douts, cut_by_image(cols, m).swapaxes(2, 3), each)
    if m > 1:
        each.sum(axis=1, out=product)
    return product


def _run(work: Work, plan: Plan) -> None:
    with lend_scratch() as scratch:
        for index in range(plan.tasks):
            work.task(index, scratch)
    work.finish(1)


def _columns(plan: LookupPlan, scratch: Scratch, read: Array) -> Array:
    """Return the column matrix (g, K, L) of the whole pass."""
    dtype, geometry = plan.arithmetic.operand_type(read.dtype), plan.geometry
    if geometry.pointwise:
        cells = by_group(read, geometry.groups)
        return cells.reshape(*cells.shape[:2], -1).astype(dtype, copy=False)
    table = _table(geometry, plan.adjoint)
    numbers = scratch.array("numbers", (1 + read.size,), dtype)
    numbers[0] = 0
    numbers[1:].reshape(read.shape)[...] = read
    cols = scratch.array("cols", table.shape, dtype)
    return numbers.take(table, out=cols, mode="clip")  # "raise" would fill a copy first


@lru_cache(maxsize=KEPT)
def _table(geometry: ConvGeometry, adjoint: bool) -> Array:
    """Return where each number of the column matrix (g, K, L) stands, or place 0."""
    shape = geometry.y_shape if adjoint else geometry.x_shape
    places = np.arange(1, 1 + math.prod(shape)).reshape(shape)
    numbers = by_group(places, geometry.groups)
    G, C, N, *_ = numbers.shape
    made = geometry.size if adjoint else geometry.out
    table = np.zeros((G, C, *geometry.kernel, N, *made), PLACE)
    outs, cells = whole(geometry.out), whole(geometry.size)
    if adjoint:
        for tap, outputs, met in tap_slices(geometry, outs, cells):
            at_tap: Any = tap
            table[:, :, *at_tap][last(met)] = numbers[last(outputs)]
    else:
        gather(geometry, numbers, table, outs, cells)
    matrix = table.reshape(G, C * geometry.taps, N * math.prod(made))
    matrix.flags.writeable = False  # it serves later calls
    return matrix
