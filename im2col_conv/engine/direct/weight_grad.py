r"""Backward to the weights, the direct way: the same sums with outputs for terms.

.. math:: dW[f, k] = \sum_p dout[f, p] \, x[\alpha_k + \beta_p].

A is x, one number for each row k of the column matrix; B is dout with filters side by side, turned
where they are not; and two tables say where the terms are. Each task makes a partial sum from its
outputs, and the partial sums are added in order. Some more rows are sums of dout alone, for db.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.boxes import places_of
from im2col_conv.engine.direct.cells import Cells, Steps, cells_of, is_folded, is_near, steps_of
from im2col_conv.engine.direct.copied import copied
from im2col_conv.engine.direct.filters import Filters, filters_of
from im2col_conv.engine.direct.kernel import Kind, most_rows
from im2col_conv.engine.direct.kinds import form_of
from im2col_conv.engine.direct.plan import (
    TILE_BYTES,
    KeepingPlan,
    cut_to_fit,
    shares_of,
    work_of,
)
from im2col_conv.engine.direct.sums import Parts, Runs, Sums, Terms, Vectors
from im2col_conv.engine.direct.tile import blocks_of
from im2col_conv.engine.jobs import AtOnce, Work, run_alone
from im2col_conv.engine.machine.assembler import Form
from im2col_conv.engine.machine.program import Place, Program, Step
from im2col_conv.engine.plan import Plan, total_of
from im2col_conv.engine.tiling import overlap_of
from im2col_conv.engine.workers import Scratch, lend_scratch
from im2col_conv.geometry import ConvGeometry

__all__ = ["WeightGradPlan", "plan_weight_grad", "weight_grad"]

MOST_SUMS = 32  # partial sums of a pass
_NONE = np.zeros(1, np.int64)


class Of(IntEnum):
    """The arrays of a program: ONE has a one and then zeros; the last two are a worker's own."""

    X, DOUT, ONE, SUMS, COPY, TURNED = range(6)


@dataclass(frozen=True, kw_only=True)
class WeightGradPlan(KeepingPlan):
    """Tiles over (N, *out), each of which makes a partial sum; and the plan for what is left.

    Attributes
    ----------
    spine : Plan
        Of the same pass, for arrays that machine code cannot read, and for padding that met
        infinity.
    """

    spine: Plan

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Groups, and filters and rows of the column matrix of each."""
        geometry = self.geometry
        depth = geometry.C // geometry.groups * geometry.taps
        return geometry.groups, geometry.F // geometry.groups, depth

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """A whole tile: (images, groups, *positions)."""
        images, *positions = self.tiling.step
        return (images, self.geometry.groups, *positions)


@lru_cache(maxsize=256)
def plan_weight_grad(
    geometry: ConvGeometry,
    layout: str,
    dtype: np.dtype[Any],
    workspace: int,
    forms: tuple[Form, ...],
    spine: Plan,
) -> WeightGradPlan | None:
    """Draw the tiles of a pass to the weights; None where there would be too many."""
    form = form_of(forms, dtype, geometry.F // geometry.groups, 2)
    lanes = form.lanes(dtype)
    blocks, width = blocks_of(geometry.F // geometry.groups, lanes)
    depth = geometry.C // geometry.groups * geometry.taps
    sum_bytes = geometry.groups * (depth + _most(form)) * blocks * width * dtype.itemsize
    room = min(TILE_BYTES, workspace // 8)
    tiling = cut_to_fit(
        (geometry.N, *geometry.out),
        shares_of(geometry),
        overlap_of(geometry),
        lambda tiling: _tile_bytes(geometry, dtype, lanes, tiling.step) <= room,
    )
    if tiling.boxes > MOST_SUMS or tiling.boxes * sum_bytes > workspace // 4:
        return None
    worker_bytes = _tile_bytes(geometry, dtype, lanes, tiling.step)
    return WeightGradPlan(
        tiling=tiling,
        tasks=tiling.boxes,
        worker_bytes=max(worker_bytes, spine.worker_bytes),
        shared_bytes=tiling.boxes * sum_bytes + worker_bytes + spine.shared_bytes,
        work=work_of(geometry),
        geometry=geometry,
        form=form,
        dtype=dtype,
        last=layout == "channels_last",
        spine=spine,
    )


def _tile_bytes(
    geometry: ConvGeometry, dtype: np.dtype[Any], lanes: int, step: tuple[int, ...]
) -> int:
    """Return what a worker takes: a copy of cells, dout turned, and what tables take when made."""
    images, *outs = step
    if not all(step):
        return 0
    box = tuple(slice(0, n) for n in outs)
    cells, _ = cells_of(geometry, box, last=False)
    blocks, width = blocks_of(geometry.F // geometry.groups, lanes)
    positions = images * math.prod(outs)
    numbers = cells.numbers(images, geometry.C) + lanes
    numbers += geometry.groups * blocks * width * positions
    lines = geometry.C * math.prod(cells.extent[:-1]) + geometry.groups * blocks * math.prod(outs)
    return numbers * dtype.itemsize + 150 * lines + 40 * positions


def weight_grad(
    plan: WeightGradPlan,
    shared: Scratch,
    dout: Array,
    x: Array,
    dw: Array | None,
    db: Array | None,
    by_spine: Callable[[], Work],
) -> AtOnce:
    """Return what fills ``dw`` (F, C // groups, *kernel) and ``db`` (F,); None is left out."""
    lies = _Lies(steps_of(x, plan.dtype), steps_of(dout, plan.dtype))
    padded = any(map(any, plan.geometry.padding))

    def run(workers: int) -> None:
        if None in lies:
            run_alone(plan.spine, by_spine(), workers)
            return
        G, F, K = plan.sizes
        total = _summed(plan, shared, lies, x, dout, workers)  # (G, K and some more, blocks of F)
        sums = total[:, :K, :F]
        if padded and not np.isfinite(sums).all():
            run_alone(plan.spine, by_spine(), workers)
            return
        if dw is not None:
            dw.reshape(G, F, K)[...] = sums.swapaxes(1, 2)
        if db is not None:
            db.reshape(G, F)[...] = total[:, K:, :F].sum(axis=1)

    return AtOnce(run)


class _Lies(NamedTuple):
    """Numbers from one to the next along each axis; None where machine code cannot read them."""

    x: tuple[int, ...] | None
    dout: tuple[int, ...] | None


def _summed(
    plan: WeightGradPlan, shared: Scratch, lies: _Lies, x: Array, dout: Array, workers: int
) -> Array:
    """Return dw.T of each group, and under it some sums that make db."""
    program = plan.program(lies, lambda lies: _program(plan, lies))
    (G, F, K), dtype = plan.sizes, plan.dtype
    blocks, width = blocks_of(F, plan.lanes)
    rows = K + _most(plan.form)
    sums = shared.array("dw sums", (plan.tasks, G, rows, blocks * width), dtype)
    sums[:, :, K:] = 0  # of which a task may make fewer
    one = np.zeros(1 + plan.lanes, dtype)
    one[0] = 1
    with ExitStack() as stack:
        lent = [stack.enter_context(lend_scratch()) for _ in range(workers - 1)]
        own = [
            [
                each.array(name, (program.numbers_in(array),), dtype)
                for name, array in (("cells of x, for dw", Of.COPY), ("dout.T", Of.TURNED))
            ]
            for each in (shared, *lent)
        ]
        program.run([[x, dout, one, sums, *arrays] for arrays in own])
    return total_of(sums)


def _program(plan: WeightGradPlan, lies: _Lies) -> Program:
    return Program([_task(plan, index, lies) for index in range(plan.tasks)])


def _task(plan: WeightGradPlan, index: int, lies: _Lies) -> list[Step]:
    """Return what makes a partial sum: copies, if need be, and the sums."""
    assert lies.x is not None
    assert lies.dout is not None
    (G, F, K), geometry = plan.sizes, plan.geometry
    images, *outs = plan.tiling[index]
    cells, inside = cells_of(geometry, tuple(outs), last=False)
    n = images.stop - images.start
    x = _at(Of.X, (images, *inside), lies.x)
    near = is_near((n, *cells.inside), (lies.x[0], *lies.x[2:]), plan.dtype.itemsize)
    # Where channels come last, each tap would go through the lines of all cells.
    far_apart = plan.last and (geometry.taps > 1 or is_folded(geometry.C))
    if cells.padded or not near or far_apart:
        copy = Place(Of.COPY)
        steps = copied(plan, cells, n, geometry.C, lies.x, x, Place(Of.ONE, 1), copy)
        x, lie = copy, cells.steps(n, geometry.C)
    else:
        steps, lie = [], Steps(lies.x[0], lies.x[1], lies.x[2:], 0)
    dout = _at(Of.DOUT, (images, *outs), lies.dout)
    filters = filters_of(plan, cells.outs, n, lies.dout)
    if filters.turning:
        turned = Place(Of.TURNED)
        steps += [each.of(dout, turned) for each in filters.turning]
        dout = turned
    blocks, width = blocks_of(F, plan.lanes)
    row = blocks * width
    partial = Place(Of.SUMS, index * G * (K + _most(plan.form)) * row)
    one, zeros = Place(Of.ONE), Place(Of.ONE, 1)
    tile = _Tile(plan.form, plan.dtype, cells, n, G, geometry.C // G, F, lie, filters, row)
    steps.append(plan.table(tile, _sums).of(x, dout, partial, zeros))
    db = plan.table((tile, "db"), lambda _: _sums_of_ones(tile))
    steps.append(db.of(one, dout, partial, zeros))
    return steps


def _at(array: int, box: tuple[slice, ...], steps: tuple[int, ...]) -> Place:
    """Return where a box (n, *cells) of all channels begins."""
    image, _, *axes = steps
    return Place(array).further([each.start for each in box], (image, *axes))


class _Tile(NamedTuple):
    """All that the sums of a tile follow from; ``row`` is how far rows of dw.T are apart."""

    form: Form
    dtype: np.dtype[Any]
    cells: Cells
    images: int
    groups: int
    C: int
    F: int
    x: Steps
    filters: Filters
    row: int


def _sums(tile: _Tile) -> Sums:
    # dw.T (K, F) = x[alpha_k + beta_p] (K, P) @ dout.T (P, F), P outputs of a tile
    terms, taps = _terms(tile), tile.cells.taps(tile.x)
    kernel, channels = tile.cells.kernel[-1], np.arange(tile.C)
    most = _most(tile.form)
    if _fill(tile.C, most) >= _fill(kernel, most):  # rows of a block are channels
        none = np.zeros_like(taps)
        places = np.arange(len(taps)) * tile.row
        runs = Runs(taps, none, places, none, none + tile.C)
        steps = tile.x.channel, len(taps) * tile.row
    else:  # or taps of the last axis
        first = np.add.outer(channels * tile.x.channel, taps[::kernel]).ravel()
        none = np.zeros_like(first)
        places = np.arange(len(first)) * kernel * tile.row
        runs = Runs(first, none, places, none, none + kernel)
        steps = tile.cells.dilation[-1] * tile.x.axes[-1], tile.row
    return _of_rows(tile, Kind.OUTPUTS, terms, runs, steps, tile.C * tile.x.channel)


def _sums_of_ones(tile: _Tile) -> Sums:
    # rows of db (R, F) = ones (1, P / R) @ dout.T (R, P / R, F)
    places = _rows_alike(_terms(tile).b, _most(tile.form))
    depth = tile.C * math.prod(tile.cells.kernel)
    R, first = len(places), places[:1, 0]
    runs = Runs(_NONE, first, _NONE + depth * tile.row, _NONE, _NONE + R)
    step = int(places[1, 0] - places[0, 0]) if R > 1 else 0
    terms = Terms(0 * places[0], places[0] - first)
    return _of_rows(tile, Kind.PLANES, terms, runs, (step, tile.row), 0)


def _rows_alike(places: Array, most: int) -> Array:
    """Return places in rows, as many as a block has if they can be, each a step from the last.

    Examples
    --------
    >>> _rows_alike(np.arange(8), 6).tolist(), _rows_alike(np.array([0, 1, 5, 7]), 6).tolist()
    ([[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1, 5, 7]])
    """
    for number in range(most, 1, -1):
        if len(places) % number == 0:
            rows = places.reshape(number, -1)
            step = rows[1, 0] - rows[0, 0]
            if (rows == rows[0] + step * np.arange(number)[:, np.newaxis]).all():
                return rows
    return places[np.newaxis]


def _of_rows(
    tile: _Tile, kind: Kind, terms: Terms, runs: Runs, steps: tuple[int, int], x_group: int
) -> Sums:
    group, filters = np.arange(tile.groups), tile.filters
    depth = tile.C * math.prod(tile.cells.kernel)
    parts = Parts(
        group * x_group,
        group * filters.group,
        group * (depth + _most(tile.form)) * tile.row,
        0 * group,
    )
    first, at = np.array(filters.first), np.array(filters.at)
    numbers = np.full_like(first, tile.form.lanes(tile.dtype))
    vectors = Vectors(at, first, 0 * first, numbers)
    return Sums(
        tile.form, tile.dtype, kind, terms, runs, steps, vectors, parts, together=len(first) + 1
    )


def _terms(tile: _Tile) -> Terms:
    """Return where windows begin in x, and outputs in dout, over all of a tile in C order."""
    sizes = tile.images, *tile.cells.outs
    apart = [tile.cells.apart(axis, tile.x) for axis in range(len(tile.cells.outs))]
    at_x = places_of(sizes, (tile.x.image, *apart))
    return Terms(at_x, places_of(sizes, (tile.filters.image, *tile.filters.axes)))


def _most(form: Form) -> int:
    """Return how many rows a block has at most, and how many are kept for sums that make db."""
    return most_rows(form, Kind.OUTPUTS)


def _fill(rows: int, most: int) -> float:
    """Return how many rows a block has, in the mean, which holds so many at most."""
    return rows / -(-rows // most)
