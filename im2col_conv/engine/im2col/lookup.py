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

a product as well. It is the note's: dout with zeros between and around its outputs, and w flipped.

Zero times infinity would be NaN. Where dw is not finite, or dx with a stride, whose zeros are no
padding, it is made as that of larger layers is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array, by_group
from im2col_conv.engine.arithmetic import Arithmetic, arithmetic_for, sums_of
from im2col_conv.engine.blas import may_share
from im2col_conv.engine.im2col import input_grad as scattered
from im2col_conv.engine.im2col import weight_grad as tiled
from im2col_conv.engine.im2col.columns import (
    LEAST_IMAGE,
    as_matrices,
    cut_by_image,
    tile_matrices,
)
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.plan import Pass, Plan
from im2col_conv.engine.tiling import Tiling, is_small
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import gather, last, tap_slices, whole

__all__ = ["LookupPlan", "drop_tables", "forward", "input_grad", "plan_lookup", "weight_grad"]

# Measured: docs/ideas.md.
MOST_NUMBERS = 2**16  # of columns and cells, that are sooner looked up than copied line by line
MOST_ZEROS = 4  # times the work that dx with a stride may be, with zeros between outputs
FEW_FLOPS = 2 * 10**6  # that are soon done, zeros or not
KEPT = 64  # tables
PLACE = np.dtype(np.intp)  # in which np.take reads a table as it is
ITERATOR = 2 * 8192  # numbers that NumPy may buffer to cast or to broadcast


@dataclass(frozen=True)
class LookupPlan(Plan):
    """One tile of a geometry, with a product of each image, ``by_image``, or one of all.

    Images of many outputs are a product each where y, or dout, does not lie as one matrix.
    ``may_be_shared`` is whether NumPy's BLAS might share a product among its threads. ``otherwise``
    is the plan of a gradient in which zeros may have met infinity.
    """

    geometry: ConvGeometry
    arithmetic: Arithmetic
    by_image: bool
    may_be_shared: bool
    otherwise: Plan | None

    @property
    def holds_blas(self) -> bool:
        """Whether NumPy's BLAS makes a product that it might share among threads."""
        return self.may_be_shared


class _Sides(NamedTuple):
    """A group's product (rows, depth) @ (depth, columns), and all numbers that it is made of."""

    rows: int
    depth: int
    columns: int
    table: int
    cells: int  # that are read
    made: int
    work: int


def plan_lookup(
    each: Pass,
    geometry: ConvGeometry,
    layout: str,
    result: np.dtype[Any],
    workspace: int,
    otherwise: Plan | None = None,
) -> LookupPlan | None:
    """Draw the plan of a pass that looks up x, or for dx dout; None where there is much of it.

    ``otherwise`` is the plan of larger layers, which a gradient may need.
    """
    arithmetic, sides = arithmetic_for(result), _sides(each, geometry)
    if not _pays(geometry, sides):
        return None
    places = geometry.size if each == "input_grad" else geometry.out
    by_image = layout == "channels_first" and math.prod(places) >= LEAST_IMAGE
    if arithmetic.dtype.kind not in "fc" or not _zeros_meet(each, geometry):
        otherwise = None
    nbytes = _bytes(each, geometry, arithmetic, sides, by_image=by_image)
    if otherwise is not None:
        nbytes += otherwise.worker_bytes + otherwise.shared_bytes
    if nbytes > workspace:
        return None
    M, K, N = sides.rows, sides.depth, sides.columns
    if each == "weight_grad":
        K, N = N, K
    extent = (geometry.N, geometry.groups, *places)
    return LookupPlan(
        tiling=Tiling(extent, extent),
        tasks=1,
        worker_bytes=nbytes,
        shared_bytes=0,
        work=sides.work,
        geometry=geometry,
        arithmetic=arithmetic,
        by_image=by_image,
        may_be_shared=may_share(M, K, N, arithmetic.dtype),
        otherwise=otherwise,
    )


def _sides(each: Pass, geometry: ConvGeometry) -> _Sides:
    """Return the sides of the product that makes y or dx; dw has those of y, in another order."""
    G, N = geometry.groups, geometry.N
    read, made = geometry.x_shape[1:], geometry.y_shape[1:]
    if each == "input_grad":
        read, made = made, read
    rows, depth, columns = made[0] // G, read[0] // G * geometry.taps, N * math.prod(made[1:])
    return _Sides(
        rows,
        depth,
        columns,
        table=G * depth * columns,
        cells=N * math.prod(read),
        made=N * math.prod(made),
        work=2 * G * rows * depth * columns,
    )


def _pays(geometry: ConvGeometry, sides: _Sides) -> bool:
    """Say whether there is so little that steps in Python are what takes long."""
    zeros = sides.work > max(MOST_ZEROS * geometry.flops, FEW_FLOPS)
    few = 0 < sides.table + sides.cells <= MOST_NUMBERS
    return few and is_small(sides.work) and not zeros


def _bytes(
    each: Pass, geometry: ConvGeometry, arithmetic: Arithmetic, sides: _Sides, *, by_image: bool
) -> int:
    """Return what a call takes, its table included."""
    weights = math.prod(geometry.w_shape)
    if each == "weight_grad" and by_image:
        weights *= 1 + geometry.N  # and so much for each image
    copied = sides.table + sides.cells + 2 * (weights + sides.made) + ITERATOR
    return (
        copied * arithmetic.dtype.itemsize
        + (sides.table + sides.cells) * PLACE.itemsize
        + arithmetic.extra_bytes(sides.table + sides.made + weights)
    )


def _zeros_meet(each: Pass, geometry: ConvGeometry) -> bool:
    """Say whether zeros of a gradient's columns may meet an infinity that no cell has a part in."""
    if each == "input_grad":
        return max(geometry.stride) > 1  # else they are padding, as of larger layers
    return each == "weight_grad" and any(map(any, geometry.padding))


def forward(plan: LookupPlan, x: Array, w: Array, b: Array | None, y: Array) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x`` and ``w``, plus ``b``."""
    G, F = plan.geometry.groups, len(w)
    W = w.reshape(G, 1, F // G, -1)

    def fill(_: int, scratch: Scratch) -> None:
        _multiply(plan, scratch, W, _columns(plan, scratch, x), b, y)

    return Work(fill)


def input_grad(plan: LookupPlan, dout: Array, w: Array, b: Array | None, dx: Array) -> Work:
    """Return what fills ``dx`` (N, C, *size), plus ``b`` (C,) in a transposed pass."""
    G, (F, C, *_) = plan.geometry.groups, w.shape
    W = w.reshape(G, 1, F // G, C, -1).swapaxes(2, 3).reshape(G, 1, C, -1)

    def fill(_: int, scratch: Scratch) -> None:
        product = _multiply(plan, scratch, W, _columns(plan, scratch, dout, adjoint=True), b, dx)
        if plan.otherwise is not None and not np.isfinite(product).all():
            assert isinstance(plan.otherwise, scattered.InputGradPlan)
            _run(scattered.input_grad(plan.otherwise, dout, w, b, dx), plan.otherwise)

    return Work(fill)


def _multiply(
    plan: LookupPlan, scratch: Scratch, W: Array, cols: Array, b: Array | None, made: Array
) -> Array:
    """Fill ``made`` with the products of ``W[g, 1, channels, K]``, and return them."""
    G, arithmetic = plan.geometry.groups, plan.arithmetic
    target = by_group(made, G)
    product = as_matrices(target, arithmetic.dtype, by_image=plan.by_image)
    in_place = product is not None
    if product is None:
        product = scratch.array("made", (G, 1, W.shape[2], cols.shape[-1]), arithmetic.dtype)
    weights = np.ascontiguousarray(W, arithmetic.operand_type(W.dtype))
    # y (g, m, F, L) = W (g, 1, F, K) @ cols (g, m, K, L), of all images or of one each
    arithmetic.matmul(weights, cut_by_image(cols, product.shape[1]), product)
    if b is not None:
        product += b.reshape(G, 1, -1, 1)
    if not in_place:
        target[...] = product.reshape(target.shape)
    return product


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
        product = _weight_product(plan, scratch, douts, x, dw)
        if plan.otherwise is not None and not np.isfinite(product).all():
            assert isinstance(plan.otherwise, tiled.WeightGradPlan)
            _run(tiled.weight_grad(plan.otherwise, dout, x, dw, None), plan.otherwise)

    return Work(fill)


def _weight_product(plan: LookupPlan, scratch: Scratch, dout: Array, x: Array, dw: Array) -> Array:
    """Fill ``dw`` with dout @ cols.T of ``dout[g, F, n, *o]``, and return it as (g, F, K)."""
    arithmetic, cols = plan.arithmetic, _columns(plan, scratch, x, conjugated=True)
    dout_type = arithmetic.operand_type(dout.dtype)
    douts = tile_matrices(scratch, "dout", dout, dout_type, by_image=plan.by_image)
    G, m, F, _ = douts.shape
    target = dw.reshape(G, F, -1)
    in_place = dw.dtype == arithmetic.dtype
    product = target if in_place else scratch.array("dw", target.shape, arithmetic.dtype)
    each = product[:, None]
    if m > 1:
        each = scratch.array("each", (G, m, F, cols.shape[1]), arithmetic.dtype)
    # dw (g, m, F, K) = dout (g, m, F, L) @ cols.T (g, m, L, K), of all images or of one each
    arithmetic.matmul(douts, cut_by_image(cols, m).swapaxes(2, 3), each)
    if m > 1:
        each.sum(axis=1, out=product)
    if not in_place:
        target[...] = product
    return product


def _run(work: Work, plan: Plan) -> None:
    with lend_scratch() as scratch:
        for index in range(plan.tasks):
            work.task(index, scratch)
    work.finish(1)


def _columns(
    plan: LookupPlan,
    scratch: Scratch,
    read: Array,
    *,
    adjoint: bool = False,
    conjugated: bool = False,
) -> Array:
    """Return the column matrix (g, K, L) of a whole pass, if complex and ``conjugated`` so."""
    dtype, geometry = plan.arithmetic.operand_type(read.dtype), plan.geometry
    conjugated = conjugated and dtype.kind == "c"
    if geometry.pointwise:
        cells = by_group(read.conj() if conjugated else read, geometry.groups)
        return cells.reshape(*cells.shape[:2], -1).astype(dtype, copy=False)
    table = _table(geometry, adjoint)
    numbers = scratch.array("numbers", (1 + read.size,), dtype)
    numbers[0] = 0
    numbers[1:].reshape(read.shape)[...] = read
    if conjugated:
        np.conjugate(numbers, out=numbers)
    cols = scratch.array("cols", table.shape, dtype)
    return numbers.take(table, out=cols, mode="clip")  # "raise" would fill a copy first


@lru_cache(maxsize=KEPT)
def _table(geometry: ConvGeometry, adjoint: bool) -> Array:
    """Return where each number of the column matrix (g, K, L) stands, or place 0.

    It is writeable, since np.take would copy one that is not in each call.
    """
    shape = geometry.y_shape if adjoint else geometry.x_shape
    places = by_group(np.arange(1, 1 + math.prod(shape)).reshape(shape), geometry.groups)
    G, C, N, *_ = places.shape
    made = geometry.size if adjoint else geometry.out
    table = np.zeros((G, C, *geometry.kernel, N, *made), PLACE)
    outs, cells = whole(geometry.out), whole(geometry.size)
    if adjoint:
        for tap, outputs, met in tap_slices(geometry, outs, cells):
            at_tap: Any = tap
            table[:, :, *at_tap][last(met)] = places[last(outputs)]
    else:
        gather(geometry, places, table, outs, cells)
    return table.reshape(G, C * geometry.taps, N * math.prod(made))


def drop_tables() -> None:
    """Give back the memory of all tables."""
    _table.cache_clear()
