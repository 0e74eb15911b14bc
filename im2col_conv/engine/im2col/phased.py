r"""Backward to the input with a stride, as several forward passes: one for each phase of the cells.

Cell :math:`i = r + m s` meets output o at tap t where :math:`o s + t d - p = i`. So the cells of a
phase r see but some taps, :math:`t_0` and every T-th after it, T being :math:`s / \gcd(s, d)`, at
outputs that are :math:`T d / s` apart, and from one of these cells to the next the outputs move by
one: a convolution of dout with stride 1, and with these taps of w, flipped. Where no tap meets a
phase, dx is zero there.

Columns of several phases are many small ones. It pays where they are views: for depthwise layers
whose channels lie beside each other, or are laid so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from im2col_conv.arrays import Array
from im2col_conv.engine.im2col.depthwise import is_viewed
from im2col_conv.engine.im2col.forward import ForwardPlan, forward, plan_forward
from im2col_conv.engine.jobs import Work, in_a_row
from im2col_conv.engine.plan import Plan
from im2col_conv.geometry import ConvGeometry
from im2col_conv.lowering import Slices

__all__ = ["PhasedPlan", "input_grad_by_phases", "plan_phases"]

MOST_PHASES = 16


class _Phase(NamedTuple):
    """Some cells of dx, the outputs and the taps that they see, and the pass that makes them."""

    cells: Slices
    outs: Slices
    taps: Slices
    plan: ForwardPlan


@dataclass(frozen=True)
class PhasedPlan(Plan):
    """The forward passes that make dx, and cells that see no output."""

    phases: tuple[_Phase, ...]
    unseen: tuple[Slices, ...]


@lru_cache(maxsize=256)
def plan_phases(
    geometry: ConvGeometry,
    layout: str,
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> PhasedPlan | None:
    """Draw the passes that make dx; None where their columns are no views, or phases are many."""
    most = math.prod(map(min, geometry.stride, geometry.size))
    if not is_viewed(geometry, layout, result) or not 1 < most <= MOST_PHASES:
        return None
    phases, unseen = [], []
    for axes in product(*_phases_of_axes(geometry)):
        cells, outs, taps = (tuple(each) for each in list(zip(*axes, strict=True))[:3])
        part = _part(geometry, axes)
        if part is None:
            unseen.append(cells)
            continue
        # All phases as views, however small: these lie so in any layout.
        plan = plan_forward(part, "channels_last", dout_type, result, workspace // 2)
        if plan.views is None:
            return None
        phases.append(_Phase(cells, outs, taps, plan))
    plans = [phase.plan for phase in phases]
    worker_bytes = max((plan.worker_bytes for plan in plans), default=0)
    shared_bytes = sum(plan.shared_bytes for plan in plans)
    if worker_bytes + shared_bytes > workspace or not plans:
        return None
    return PhasedPlan(
        tiling=max((plan.tiling for plan in plans), key=lambda tiling: tiling.cells),
        tasks=sum(plan.tasks for plan in plans),
        worker_bytes=worker_bytes,
        shared_bytes=shared_bytes,
        work=sum(plan.work for plan in plans),
        phases=tuple(phases),
        unseen=tuple(unseen),
    )


def input_grad_by_phases(
    plan: PhasedPlan, dout: Array, w: Array, b: Array | None, dx: Array
) -> Work:
    """Return what fills ``dx`` with col2im(W.T @ dout), plus ``b`` (C,) in a transposed pass."""
    for cells in plan.unseen:
        dx[:, :, *cells] = 0 if b is None else b.reshape(-1, *[1] * len(cells))
    tasks = []
    for phase in plan.phases:
        taps = np.flip(w[:, :, *phase.taps], tuple(range(2, w.ndim)))
        part = dx[:, :, *phase.cells]
        tasks.append(forward(phase.plan, dout[:, :, *phase.outs], taps, b, part).task)
    return Work(in_a_row(tasks, [phase.plan.tasks for phase in plan.phases]))


class _AxisPhase(NamedTuple):
    """Every stride-th cell of an axis, and the outputs and taps that these see.

    A window of ``kernel`` taps, ``dilation`` apart, moves over ``size`` outputs and ``padding``.
    """

    cells: slice
    outs: slice
    taps: slice
    size: int
    kernel: int
    dilation: int
    padding: tuple[int, int]


def _phases_of_axes(geometry: ConvGeometry) -> Iterator[list[_AxisPhase]]:
    axes = zip(
        geometry.size,
        geometry.out,
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        (before for before, _ in geometry.padding),
        strict=True,
    )
    for axis in axes:
        yield [_phase_of_axis(first, *axis) for first in range(min(axis[3], axis[0]))]


def _phase_of_axis(
    cell: int, size: int, out: int, kernel: int, stride: int, dilation: int, before: int
) -> _AxisPhase:
    """Return the phase of which ``cell`` is the first."""
    period = stride // math.gcd(stride, dilation)
    first_taps = (
        t for t in range(min(period, kernel)) if (cell + before - t * dilation) % stride == 0
    )
    tap = next(first_taps, kernel)
    taps, apart = len(range(tap, kernel, period)), period * dilation // stride
    cells = len(range(cell, size, stride))
    # outputs that the first cell meets at its last tap, and the last cell at its first
    end = (cell + before - tap * dilation) // stride + cells
    first = end - cells - (taps - 1) * apart
    start = max(first, 0)
    stop = max(min(end, out), start)
    return _AxisPhase(
        cells=slice(cell, None, stride),
        outs=slice(start, stop),
        taps=slice(tap, None, period),
        size=stop - start,
        kernel=taps,
        dilation=apart,
        padding=(start - first, end - stop),
    )


def _part(geometry: ConvGeometry, axes: tuple[_AxisPhase, ...]) -> ConvGeometry | None:
    """Return the forward pass that makes a phase; None where no output sees it."""
    if any(axis.size == 0 or axis.kernel == 0 for axis in axes):
        return None
    return replace(
        geometry,
        C=geometry.F,
        F=geometry.C,
        size=tuple(axis.size for axis in axes),
        kernel=tuple(axis.kernel for axis in axes),
        stride=(1,) * geometry.ndim,
        padding=tuple(axis.padding for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
    )
