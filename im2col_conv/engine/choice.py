"""Which way a pass runs, the one that was named or the one that ``rule`` says, and its plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, Literal, ParamSpec, TypeAlias

import numpy as np

from im2col_conv.arrays import Array, computing_type
from im2col_conv.engine.adjoint import adjoint_of
from im2col_conv.engine.direct import forward as direct_forward
from im2col_conv.engine.direct import plan as direct_plan
from im2col_conv.engine.direct import weight_grad as direct_weight_grad
from im2col_conv.engine.im2col import dots, lookup
from im2col_conv.engine.im2col import forward as im2col_forward
from im2col_conv.engine.im2col import input_grad as im2col_input_grad
from im2col_conv.engine.im2col import weight_grad as im2col_weight_grad
from im2col_conv.engine.im2col.phased import PhasedPlan, input_grad_by_phases, plan_phases
from im2col_conv.engine.implicit import forward as implicit_forward
from im2col_conv.engine.implicit import input_grad as implicit_input_grad
from im2col_conv.engine.implicit import weight_grad as implicit_weight_grad
from im2col_conv.engine.implicit.plan import ImplicitPlan
from im2col_conv.engine.jobs import AtOnce, Job, Work
from im2col_conv.engine.machine.memory import forms_here, why_not_run
from im2col_conv.engine.openblas import OpenBlas, private_blas, why_not
from im2col_conv.engine.plan import Pass, Plan
from im2col_conv.engine.rule import direct_pays, tap_by_tap_pays
from im2col_conv.engine.winograd import forward as winograd_forward
from im2col_conv.engine.winograd import plan as winograd_plan
from im2col_conv.engine.workers import Scratch
from im2col_conv.geometry import ConvGeometry
from im2col_conv.prepared import Weights

__all__ = [
    "ALGORITHMS",
    "forward_job",
    "forward_plan",
    "input_grad_job",
    "input_grad_plan",
    "way_of",
    "weight_grad_job",
    "weight_grad_plan",
]

KEPT = 256  # plans of each pass
MOST_COPIES = 4  # of a cell, for the direct way to pay
ALGORITHMS = ("auto", "im2col", "implicit", "direct", "winograd")

P = ParamSpec("P")

Way: TypeAlias = Literal["im2col", "implicit", "direct", "winograd"]


def way_of(
    each: Pass, algorithm: str, geometry: ConvGeometry, layout: str, result: np.dtype[Any]
) -> Way:
    """Return how a pass runs whose result has the type ``result``.

    Raises
    ------
    ValueError
        Where the named algorithm does not cover the geometry or the type.
    ImportError
        Where the library that it needs is missing.
    """
    if algorithm == "im2col":
        return "im2col"
    dtype = computing_type(result)
    if algorithm == "auto":
        return _quickest(each, geometry, layout, dtype)
    if algorithm == "direct":
        _complain_of_machine(dtype)
        covered = direct_plan.covers(each, geometry)
        return "direct" if covered else _quickest(each, geometry, layout, dtype)
    _complain_of_blas(algorithm, dtype)
    if algorithm == "implicit":
        return "implicit"
    complaint = winograd_plan.covers(geometry, dtype)
    if complaint is not None:
        raise ValueError(f'algorithm="winograd" does not cover this: {complaint}')
    if each == "forward" or (each == "input_grad" and adjoint_of(geometry) is not None):
        return "winograd"
    return _quickest(each, geometry, layout, dtype)


def _quickest(each: Pass, geometry: ConvGeometry, layout: str, dtype: np.dtype[Any]) -> Way:
    """Return the way that "auto" takes."""
    covered = dtype in direct_plan.TYPES and direct_plan.covers(each, geometry)
    if why_not_run() is None and covered and direct_pays(each, geometry, layout):
        return "direct"
    return _quickest_of_others(each, geometry, layout, dtype)


def _quickest_of_others(
    each: Pass, geometry: ConvGeometry, layout: str, dtype: np.dtype[Any]
) -> Way:
    blas = private_blas()
    return "implicit" if tap_by_tap_pays(each, geometry, layout, dtype, blas) else "im2col"


def _complain_of_machine(dtype: np.dtype[Any]) -> None:
    complaint = why_not_run()
    if complaint is not None:
        raise ValueError(f'algorithm="direct" cannot run here: {complaint}')
    if dtype not in direct_plan.TYPES:
        raise ValueError(f'algorithm="direct" computes in float32 or float64, got {dtype}')


def _complain_of_blas(algorithm: str, dtype: np.dtype[Any]) -> None:
    blas = private_blas()
    if blas is None:
        raise ImportError(f'algorithm="{algorithm}" needs a private BLAS: {why_not()}')
    if dtype not in blas.types:
        raise ValueError(f'algorithm="{algorithm}" computes in float32 or float64, got {dtype}')


def _kept(draw: Callable[P, Plan]) -> Callable[P, Plan]:
    """Keep the plans that were drawn, each by all that it follows from.

    The private BLAS, and which forms vectors may have, too.
    """
    anew: Callable[..., Plan] = draw
    kept: Callable[..., Plan] = lru_cache(maxsize=KEPT)(
        lambda *given, **named: anew(*given[2:], **named)
    )

    @wraps(draw)
    def plan(*given: P.args, **named: P.kwargs) -> Plan:
        return kept(private_blas(), forms_here(), *given, **named)

    return plan


@_kept
def forward_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a forward pass."""
    way = way_of("forward", algorithm, geometry, layout, result)
    if way == "winograd":
        return winograd_plan.plan_forward(geometry, computing_type(result), workspace)
    if way == "direct":
        direct = direct_plan.plan_direct(
            geometry, layout, computing_type(result), workspace, forms_here(), flipped=False
        )
        if _fits(direct, algorithm, workspace) and _copies_little(direct, algorithm):
            return direct
    if way == "implicit":
        plan = implicit_forward.plan_forward(
            geometry, layout, computing_type(result), workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    return lookup.plan_lookup("forward", geometry, layout, result, workspace) or (
        im2col_forward.plan_forward(geometry, layout, x_type, result, workspace)
    )


@_kept
def weight_grad_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    x_type: np.dtype[Any],
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a backward pass to the weights."""
    way, dtype = way_of("weight_grad", algorithm, geometry, layout, result), computing_type(result)
    tiles = im2col_weight_grad.plan_weight_grad(
        geometry, layout, x_type, dout_type, result, workspace
    )
    if way == "direct":
        if x_type == dout_type == result == dtype:
            sums = direct_weight_grad.plan_weight_grad(
                geometry, layout, dtype, workspace, forms_here(), tiles
            )
            if sums is not None and _fits(sums, "auto", workspace):
                return sums
        way = _quickest_of_others("weight_grad", geometry, layout, dtype)
    if way == "implicit":
        plan = implicit_weight_grad.plan_weight_grad(
            geometry, layout, dtype, workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    return (
        lookup.plan_lookup("weight_grad", geometry, layout, result, workspace, tiles)
        or dots.plan_dots(geometry, layout, result, workspace)
        or tiles
    )


@_kept
def input_grad_plan(
    algorithm: str,
    geometry: ConvGeometry,
    layout: str,
    dout_type: np.dtype[Any],
    result: np.dtype[Any],
    workspace: int,
) -> Plan:
    """Return the plan of a backward pass to the input."""
    way = way_of("input_grad", algorithm, geometry, layout, result)
    if way == "winograd":
        adjoint = adjoint_of(geometry)
        assert adjoint is not None  # or it would not be the way
        return winograd_plan.plan_forward(adjoint, computing_type(result), workspace)
    if way == "direct":
        direct = direct_plan.plan_direct(
            geometry, layout, computing_type(result), workspace, forms_here(), flipped=True
        )
        if _fits(direct, algorithm, workspace) and _copies_little(direct, algorithm):
            return direct
    if way == "implicit":
        plan = implicit_input_grad.plan_input_grad(
            geometry, layout, computing_type(result), workspace, packs=_blas().packs
        )
        if _fits(plan, algorithm, workspace):
            return plan
    tiles = im2col_input_grad.plan_input_grad(geometry, layout, dout_type, result, workspace)
    return (
        lookup.plan_lookup("input_grad", geometry, layout, result, workspace, tiles)
        or plan_phases(geometry, layout, dout_type, result, workspace)
        or tiles
    )


def _copies_little(plan: direct_plan.DirectPlan, algorithm: str) -> bool:
    """Say whether tiles do not see the same cells again and again, unless the way was named."""
    return plan.copied_again <= MOST_COPIES or algorithm == plan.algorithm


def _fits(plan: Plan, algorithm: str, workspace: int) -> bool:
    """Say whether one tile fits the workspace; complain where the algorithm was named."""
    needed = plan.shared_bytes + plan.worker_bytes
    if needed > workspace and algorithm == plan.algorithm:
        raise ValueError(
            f'algorithm="{algorithm}" needs a workspace of {needed} bytes for this layer, and '
            f"{workspace} are set: see set_workspace"
        )
    return needed <= workspace


def forward_job(plan: Plan, x: Array, w: Weights, b: Array | None, y: Array) -> Job:
    """Return the job that fills ``y`` as the plan says."""

    def begin(shared: Scratch) -> Work | AtOnce:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.forward(plan, x, w.array, b, y)
        if isinstance(plan, im2col_forward.ForwardPlan):
            return im2col_forward.forward(plan, x, w.array, b, y)
        if isinstance(plan, direct_plan.DirectPlan):
            return direct_forward.forward(plan, shared, x, w, b, y)
        if isinstance(plan, winograd_plan.WinogradPlan):
            return winograd_forward.forward(plan, _blas(), shared, x, w, b, y)
        assert isinstance(plan, ImplicitPlan)
        return implicit_forward.forward(plan, _blas(), shared, x, w, b, y)

    return Job(plan, begin)


def weight_grad_job(plan: Plan, dout: Array, x: Array, dw: Array | None, db: Array | None) -> Job:
    """Return the job that fills ``dw`` and ``db`` as the plan says; what is None is left out."""

    def begin(shared: Scratch) -> Work | AtOnce:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.weight_grad(plan, dout, x, dw, db)
        if isinstance(plan, direct_weight_grad.WeightGradPlan):
            assert isinstance(plan.spine, im2col_weight_grad.WeightGradPlan)
            by_spine = partial(im2col_weight_grad.weight_grad, plan.spine, dout, x, dw, db)
            return direct_weight_grad.weight_grad(plan, shared, dout, x, dw, db, by_spine)
        if isinstance(plan, im2col_weight_grad.WeightGradPlan):
            return im2col_weight_grad.weight_grad(plan, dout, x, dw, db)
        if isinstance(plan, dots.DotsPlan):
            return dots.weight_grad(plan, private_blas(), dout, x, dw, db)
        assert isinstance(plan, implicit_weight_grad.WeightGradPlan)
        return implicit_weight_grad.weight_grad(plan, _blas(), shared, dout, x, dw, db)

    return Job(plan, begin)


def input_grad_job(plan: Plan, dout: Array, w: Weights, b: Array | None, dx: Array) -> Job:
    """Return the job that fills ``dx`` as the plan says."""

    def begin(shared: Scratch) -> Work | AtOnce:
        if isinstance(plan, lookup.LookupPlan):
            return lookup.input_grad(plan, dout, w.array, b, dx)
        if isinstance(plan, im2col_input_grad.InputGradPlan):
            return im2col_input_grad.input_grad(plan, dout, w.array, b, dx)
        if isinstance(plan, PhasedPlan):
            return input_grad_by_phases(plan, dout, w.array, b, dx)
        if isinstance(plan, direct_plan.DirectPlan):
            return direct_forward.forward(plan, shared, dout, w, b, dx)
        if isinstance(plan, im2col_input_grad.GatherPlan):
            return im2col_input_grad.gather(plan, dout, w.array, b, dx)
        if isinstance(plan, winograd_plan.WinogradPlan):
            return winograd_forward.forward(plan, _blas(), shared, dout, w, b, dx, adjoint=True)
        assert isinstance(plan, ImplicitPlan)
        return implicit_input_grad.input_grad(plan, _blas(), shared, dout, w, b, dx)

    return Job(plan, begin)


def _blas() -> OpenBlas:
    blas = private_blas()
    assert blas is not None  # or there would be no such plan
    return blas
