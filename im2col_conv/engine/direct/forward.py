r"""Forward, the direct way, and dx as the forward pass of dout: no column is ever stored.

The column matrix is all in x, and where its number of row k and column p lies is a sum,

.. math:: \text{cols}[k, p] = x[\alpha_k + \beta_p],

of where the tap and channel k is, seen from a window's first cell, and where the window p is. So
the product W cols needs two short tables in place of the matrix, and one routine that adds them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.direct.cells import Cells
from im2col_conv.engine.direct.copied import copied
from im2col_conv.engine.direct.kernel import Kind
from im2col_conv.engine.direct.plan import DirectPlan
from im2col_conv.engine.direct.sums import lanes_of
from im2col_conv.engine.direct.tile import Tile, sums_of
from im2col_conv.engine.direct.weights import arranged
from im2col_conv.engine.jobs import Work
from im2col_conv.engine.machine.row import Told, run_in_a_row
from im2col_conv.engine.workers import Scratch
from im2col_conv.prepared import Weights

__all__ = ["forward"]


class _Step(NamedTuple):
    """A tile of a task: what it reads of x, makes of y, and which filters are its own."""

    seen: tuple[Any, ...]
    made: tuple[Any, ...]
    filters: slice
    groups: int
    cells: Cells


def forward(
    plan: DirectPlan, shared: Scratch, x: Array, weights: Weights, b: Array | None, y: Array
) -> Work:
    """Return what fills ``y`` (N, F, *out) with the convolution of ``x``, plus ``b``."""
    geometry, dtype = plan.geometry, plan.dtype
    lanes = lanes_of(dtype)

    key = "direct", plan.kind, plan.flipped, geometry.groups, dtype
    W = weights.form(key, partial(arranged, plan), shared.array)
    bias = shared.array("bias", (geometry.F + 2 * lanes,), dtype)
    bias[: geometry.F] = 0 if b is None else b
    bias[geometry.F :] = 0

    def draw(index: int) -> _Step:
        groups, images, *box = plan.tiling[index]
        if plan.kind is Kind.CHANNELS:
            groups = slice(0, geometry.groups)
        cells, inside = plan.cells(tuple(box))
        channels, filters = (_of(groups, n // geometry.groups) for n in (geometry.C, geometry.F))
        many = groups.stop - groups.start
        return _Step((images, channels, *inside), (images, filters, *box), filters, many, cells)

    def fill(index: int, scratch: Scratch) -> None:
        step = plan.step(index, draw)
        target = y[step.made]
        image = x[step.seen]
        steps = step.cells.steps_in_place(image, dtype) if _wide(plan, step) else None
        told: list[Told] = []
        if steps is None:
            image, steps, told = copied(plan, scratch, step.cells, image)
        sums = target if _lies(target, dtype, last=plan.last) else _room(plan, scratch, target)
        tile = Tile(
            plan.kind,
            dtype,
            plan.flipped,
            step.cells,
            len(target),
            step.groups,
            geometry.C // geometry.groups,
            geometry.F // geometry.groups,
            steps,
            tuple(each // dtype.itemsize for each in sums.strides),
        )
        group = slice(step.filters.start * geometry.groups // geometry.F, None)
        A, B = W[group], image
        if plan.kind is Kind.OUTPUTS:
            A, B = B, A
        told.append(plan.table(tile, sums_of).of(A, B, sums, bias[step.filters.start :]))
        run_in_a_row(told)
        if sums is not target:
            target[...] = sums

    return Work(fill)


def _of(groups: slice, each: int) -> slice:
    return slice(groups.start * each, groups.stop * each)


def _wide(plan: DirectPlan, step: _Step) -> bool:
    """Say whether no vector is longer than a line of what it is read from."""
    if plan.kind is Kind.OUTPUTS:
        return True
    line = plan.geometry.C if plan.last else step.cells.outs[-1]
    return line >= lanes_of(plan.dtype)


def _lies(target: Array, dtype: np.dtype[Any], *, last: bool) -> bool:
    """Say whether sums can be stored where they are wanted."""
    line = target.strides[1] if last else target.strides[-1]
    return (
        target.dtype == dtype
        and target.flags.aligned
        and line == target.itemsize
        and all(step >= 0 and step % target.itemsize == 0 for step in target.strides)
    )


def _room(plan: DirectPlan, scratch: Scratch, target: Array) -> Array:
    """Return memory for the sums of ``target[n, f, *outs]`` in the same layout."""
    n, f, *outs = target.shape
    if plan.last:
        rows = scratch.array("y", (n, *outs, f), plan.dtype)
        return rows.transpose(0, -1, *range(1, rows.ndim - 1))
    return scratch.array("y", target.shape, plan.dtype)
